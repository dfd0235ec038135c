use std::collections::BTreeSet;

use super::*;

fn check(name: &str, text: &str) -> Report {
    let mut report = Report::default();
    if name.contains(".json") {
        report.check_json(name, text.as_bytes());
    } else {
        report.check_csv(name, text.as_bytes(), None);
    }
    report.sort();
    report
}

/// What only several fused-MoE tables together show.
fn together(report: &mut Report, files: &[(&str, &str)], release: Option<&str>) {
    let release = release.map(|release| release.parse().unwrap());
    let files: Vec<_> = files
        .iter()
        .filter_map(|(path, text)| {
            Report::default().check_config(path, text.as_bytes(), release, None)
        })
        .collect();
    moe::together(&files, &mut report.findings);
}

fn ids(report: &Report) -> Vec<&'static str> {
    report.findings.iter().map(|finding| finding.rule).collect()
}

#[test]
fn every_rule_fires_on_its_example() {
    for rule in rules::ALL {
        let mut report = check(rule.example.file, rule.example.text);
        if rule == &rules::DUPLICATE_ACROSS_FILES {
            let read = |name: &str| Table::read(name, rule.example.text.as_bytes(), None).unwrap();
            report.check_together(&[
                read("a8w8_blockscale_tuned_gemm.csv"),
                read("b_a8w8_blockscale_tuned_gemm.csv"),
            ]);
        }
        if rule == &rules::UP_DOWN_BLOCK_M || rule == &rules::DOWN_OF_OTHER_TRITON {
            let up = if rule == &rules::UP_DOWN_BLOCK_M {
                "triton_3_6_0"
            } else {
                "triton_3_7_1"
            };
            let up_file = rule.example.file.replace("_down", "");
            together(
                &mut report,
                &[
                    (
                        &format!("{up}/{up_file}"),
                        rules::TRITON_FOLDER_UNREAD.example.text,
                    ),
                    (
                        &format!("triton_3_6_0/{}", rule.example.file),
                        rule.example.text,
                    ),
                ],
                None,
            );
        }
        assert!(
            ids(&report).contains(&rule.id),
            "{}: {:#?}",
            rule.id,
            report.findings
        );
        // A doubled header or the deliberately odd file may break more rules; everything else breaks one.
        let others: BTreeSet<_> = report
            .findings
            .iter()
            .filter(|finding| finding.rule != rule.id && finding.severity == Severity::Error)
            .map(|finding| finding.rule)
            .collect();
        assert!(others.len() <= 1, "{} comes with {others:?}", rule.id);
    }
}

#[test]
fn ids_are_unique_and_every_text_is_a_sentence() {
    let unique: BTreeSet<_> = rules::ALL.iter().map(|rule| rule.id).collect();
    assert_eq!(unique.len(), rules::ALL.len());
    for rule in rules::ALL {
        assert!(
            rule.why.ends_with('.') && rule.fix.ends_with('.'),
            "{}",
            rule.id
        );
        assert!(!rule.title.ends_with('.'), "{}", rule.id);
    }
}

#[test]
fn the_reference_page_is_the_registry() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/lint.md");
    let page = fs_err::read_to_string(path).unwrap();
    assert!(
        page == rules::reference(),
        "write `gemmtune lint --rules` to docs/lint.md"
    );
}

#[test]
fn a_clean_table_has_no_findings() {
    let text = "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n\
        gfx942,304,1,3072,1536,ck,8,0,6.6154,a8w8_blockscale_1x128x128_256x16x64x256_16x16_16x16_1x1_16x16x1_16x16x1_1x16x1x16_4_1x1_intrawave_v1,1.43,714.43,0.0\n\
        gfx942,304,2,3072,1536,ck,8,0,6.62,a8w8_blockscale_1x128x128_256x16x64x256_16x16_16x16_1x1_16x16x1_16x16x1_1x16x1x16_4_1x1_intrawave_v1,2.85,715.1,0.0\n";
    let report = check("a8w8_blockscale_tuned_gemm.csv", text);
    assert_eq!(report.findings, []);
    assert_eq!((report.files, report.rows), (1, 2));
}

#[test]
fn a_table_of_the_reference_engine_is_judged_by_what_applies_to_it() {
    let text = "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n\
        avx512,2,1,512,256,ref,3,0,20.0,tile_4x16,0.01,6.63,0.0\n";
    assert_eq!(check("table.csv", text).findings, []);
}

#[test]
fn tables_of_other_kinds_are_said_to_be_skipped() {
    let report = check("other_tuned.csv", "cu_num,token,model_dim,us\n80,1,2,3\n");
    assert_eq!(
        (report.files, report.skipped.len(), report.findings.len()),
        (0, 1, 0)
    );
}

#[test]
fn a_key_that_no_gpu_has_is_told_from_one_that_is_only_unknown() {
    let text = include_str!("rules/examples/cu-num-unknown.csv");
    let rule = |gfx: &str, cu_num: &str| {
        let text = text
            .replace("gfx942,", &format!("{gfx},"))
            .replace(",77,", &format!(",{cu_num},"));
        let report = check("a8w8_blockscale_tuned_gemm.csv", &text);
        ids(&report).first().copied()
    };
    assert_eq!(rule("gfx942", "77"), Some("cu-num-unknown"));
    assert_eq!(rule("gfx942", "256"), Some("row-unreachable"));
    assert_eq!(rule("gfx950", "304"), Some("row-unreachable"));
    assert_eq!(rule("gfx950", "256"), None);
    assert_eq!(rule("gfx908", "120"), Some("row-unreachable"));
    // CK has no code there, which only an aiter after #5586 notices too late.
    assert_eq!(rule("gfx1201", "32"), Some("libtype-by-revision"));
}

const HEAD: &str = "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n";
const NAME: &str = "a8w8_blockscale_1x128x128_256x16x64x256_16x16_16x16_1x1_16x16x1_16x16x1_1x16x1x16_4_1x1_intrawave_v1";

/// A table of M, us, tflops and bw with one kernel a row.
fn rows(rows: &[(u32, &str, &str, &str, u32)]) -> Report {
    let mut text = HEAD.to_owned();
    for (m, us, tflops, bw, split) in rows {
        let row = format!("gfx942,304,{m},3072,1536,ck,8,{split},{us},{NAME},{tflops},{bw},0.0\n");
        text.push_str(&row);
    }
    check("a8w8_blockscale_tuned_gemm.csv", &text)
}

#[test]
fn a_zero_that_stands_for_not_recorded_is_told_once_and_is_no_contradiction() {
    let report = rows(&[(1, "6.6154", "0", "0.0", 0), (2, "6.62", "0", "715.1", 0)]);
    let found: Vec<_> = report
        .findings
        .iter()
        .map(|finding| (finding.rule, finding.line, finding.severity))
        .collect();
    let once = ("column-evidence", Some(2), Severity::Warning);
    assert_eq!(found, [once, once], "{:#?}", report.findings);
    insta::assert_snapshot!(report.findings[0].message, @"tflops is 0 here and in 1 more row: not recorded");
    let wrong = rows(&[(1, "6.6154", "2.86", "714.43", 0)]);
    assert_eq!(ids(&wrong), ["tflops-contradicts-us"]);
}

#[test]
fn a_row_is_compared_with_the_row_the_look_up_would_take_without_it() {
    // Without M=40 the row of M=48 serves it, which is no faster; the one of M=64 would not be looked up.
    let report = rows(&[
        (40, "7.0", "", "", 0),
        (48, "7.0", "", "", 1),
        (64, "6.7", "", "", 2),
    ]);
    let lines: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.rule == "shadows-faster")
        .map(|finding| finding.line)
        .collect();
    assert_eq!(lines, [Some(3)], "{:#?}", report.findings);
}

#[test]
fn a_missing_column_is_said_of_the_header_and_not_of_every_row() {
    let text = format!(
        "gfx,cu_num,M,N,K,libtype,kernelId,splitK,kernelName,tflops,bw,errRatio\n\
         gfx942,304,1,3072,1536,ck,8,0,{NAME},1.43,714.43,0.0\n"
    );
    let report = check("a8w8_blockscale_tuned_gemm.csv", &text);
    assert_eq!(ids(&report), ["column-missing"]);
}

#[test]
fn a_quote_that_is_never_closed_is_found_on_its_line() {
    let row = |m: u32, name: &str| format!("gfx942,304,{m},3072,1536,ck,8,0,6.6154,{name},,,0.0\n");
    let text = [
        HEAD,
        &row(1, NAME),
        &row(2, &format!("\"{NAME}")),
        &row(4, NAME),
    ]
    .concat();
    let report = check("a8w8_blockscale_tuned_gemm.csv", &text);
    assert_eq!(ids(&report), ["line-unreadable"]);
    assert_eq!(report.findings[0].line, Some(3));
}

#[test]
fn linear_attention_shapes_are_no_gemm_table() {
    let header = "gfx,cu_num,H,Hg,V,is_varlen,use_h0,store_fs,total_chunks,max_seq_chunks\n";
    let report = check("chunk_gdn_h_opt_untuned.csv", header);
    assert_eq!((report.skipped.len(), report.findings.len()), (1, 0));
}

const CONFIG: &str =
    "N=1536,K=7168,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json";

#[test]
fn a_parameter_that_stands_twice_is_told_by_its_line() {
    let entry = |extra: &str| {
        format!(
            "{{\"1\": {{\"BLOCK_SIZE_M\": 64,{extra} \"BLOCK_SIZE_N\": 64, \"BLOCK_SIZE_K\": 128, \"GROUP_SIZE_M\": 32, \
             \"num_warps\": 4, \"num_stages\": 3}},\n \"4096\": {{\"BLOCK_SIZE_M\": 64, \"BLOCK_SIZE_N\": 64, \
             \"BLOCK_SIZE_K\": 128, \"GROUP_SIZE_M\": 32, \"num_warps\": 4, \"num_stages\": 3}}}}\n"
        )
    };
    let found = |extra: &str| {
        let report = check(CONFIG, &entry(extra));
        let of_keys = report.findings.into_iter();
        of_keys
            .filter(|finding| finding.rule != "m-set-gap")
            .map(|finding| (finding.rule, finding.line))
            .collect::<Vec<_>>()
    };
    assert_eq!(found(""), []);
    assert_eq!(
        found(" \"BLOCK_SIZE_M\": 16,"),
        [("duplicate-conflicting", Some(1))]
    );
    assert_eq!(
        found(" \"BLOCK_SIZE_M\": 64,"),
        [("duplicate-equal", Some(1))]
    );
}

#[test]
fn json_that_cannot_be_read_is_told_with_its_line() {
    let report = check(CONFIG, "{\n \"1\": {\n  \"BLOCK_SIZE_M\": 64,\n }\n}\n");
    assert_eq!(ids(&report), ["file-unreadable"]);
    assert_eq!(report.findings[0].line, Some(4));
}

#[test]
fn a_device_name_without_its_brand_is_none() {
    let rules_of = |device: &str| {
        let name = CONFIG.replace("NVIDIA_H200", device);
        let report = check(&name, "{}");
        ids(&report)
    };
    assert!(rules_of("AMD_MI300X").contains(&"file-name-unread"));
    assert!(rules_of("NVIDIA_RTX_5090").contains(&"file-name-unread"));
    assert!(rules_of("NVIDIA_X9000").contains(&"device-name-unknown"));
    assert!(!rules_of("AMD_Instinct_MI300X").contains(&"file-name-unread"));
}

#[test]
fn options_of_one_vendors_compiler_are_no_parameters_on_the_others_device() {
    let found = |device: &str, param: &str| {
        let text = format!(
            "{{\"1\": {{\"BLOCK_SIZE_M\": 64, \"BLOCK_SIZE_N\": 64, \"BLOCK_SIZE_K\": 128, \"GROUP_SIZE_M\": 32, \
             \"num_warps\": 4, \"num_stages\": 2, \"{param}\": 2}}}}"
        );
        let report = check(&CONFIG.replace("NVIDIA_H200", device), &text);
        ids(&report).contains(&"config-key-unknown")
    };
    for param in ["waves_per_eu", "matrix_instr_nonkdim", "kpack"] {
        assert!(!found("AMD_Instinct_MI300X", param) && found("NVIDIA_H200", param));
    }
    assert!(found("AMD_Instinct_MI300X", "maxnreg") && !found("NVIDIA_H200", "maxnreg"));
    assert!(!found("AMD_Instinct_MI300X", "num_ctas") && !found("NVIDIA_H200", "num_ctas"));
    assert!(found("NVIDIA_H200", "NUM_WARPS"));
}

const MOE: &str = "E=128,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json";
const MOE_TEXT: &str = rules::TRITON_FOLDER_UNREAD.example.text;

#[test]
fn names_of_fused_moe_tables_that_nobody_reads_are_found() {
    let of = |name: &str| ids(&check(name, MOE_TEXT));
    assert_eq!(of(MOE), [""; 0]);
    let unread = ["file-name-unread"];
    assert_eq!(of(&MOE.replace(", 128", ",128")), unread, "vLLM's spelling");
    assert_eq!(
        of(&format!("vllm/configs/{MOE}")),
        unread,
        "SGLang's spelling"
    );
    assert_eq!(
        of(&format!("vllm/configs/{}", MOE.replace(", 128", ",128"))),
        [""; 0]
    );
    assert_eq!(of(&MOE.replace("NVIDIA_H200", "NVIDIA H200")), unread);
    assert_eq!(
        of(&MOE.replace("NVIDIA_H200", "")),
        unread,
        "SGLang ships one"
    );
    assert_eq!(
        of(&MOE.replace("NVIDIA_H200", "NVIDIA_H300")),
        ["device-name-unknown"]
    );
    assert_eq!(
        of(&MOE.replace(",dtype=fp8_w8a8", "")),
        unread,
        "SGLang ships one"
    );
    assert_eq!(
        of(&MOE.replace("], ", "]").replace(".json", "_up.json")),
        unread
    );
    assert_eq!(of(&format!("x/configs/{MOE}")), ["triton-folder-unread"]);
}

#[test]
fn a_row_of_a_fused_moe_table_is_judged_by_what_its_kernel_takes() {
    let of = |name: &str, replace: (&str, &str)| {
        ids(&check(name, &MOE_TEXT.replacen(replace.0, replace.1, 1)))
    };
    assert_eq!(
        of(MOE, ("\"BLOCK_SIZE_K\": 128", "\"BLOCK_SIZE_K\": 256")),
        ["block-k-above-scale"]
    );
    assert_eq!(
        of(MOE, ("\"BLOCK_SIZE_K\": 128", "\"BLOCK_SIZE_K\": 64")),
        [""; 0]
    );
    let bf16 = "E=128,N=768,device_name=NVIDIA_H200.json";
    assert_eq!(
        of(bf16, ("\"BLOCK_SIZE_K\": 128", "\"BLOCK_SIZE_K\": 256")),
        [""; 0],
        "no scales"
    );
    assert_eq!(
        of(MOE, ("\"num_stages\": 3", "\"SPLIT_K\": 1")),
        ["config-key-unknown"]
    );
    let down = MOE.replace(".json", "_down.json");
    assert_eq!(
        of(&down, ("\"num_stages\": 3", "\"USE_TMA\": true")),
        [""; 0]
    );
    assert_eq!(
        of(&down, ("\"num_stages\": 3", "\"USE_TMA\": 1")),
        ["config-value-invalid"]
    );
    assert_eq!(
        of(MOE, ("\"num_stages\": 3", "\"USE_TMA\": true")),
        ["up-row-tma"]
    );
    assert_eq!(
        of(MOE, ("{\n", "{\n\"triton_version\": \"3.6.0\",\n")),
        ["config-value-invalid", "key-not-integer"]
    );
    let vllm = format!("vllm/{}", MOE.replace(", 128", ",128"));
    assert_eq!(
        of(&vllm, ("{\n", "{\n\"triton_version\": \"3.6.0\",\n")),
        [""; 0]
    );
    assert_eq!(
        of(MOE, ("{\n", "{\n\"triton\": 3,\n\"1\": 4\n")),
        ["file-unreadable"]
    );
}

#[test]
fn how_bad_an_up_and_a_down_row_of_different_block_size_m_are_depends_on_the_release() {
    let down = format!("triton_3_6_0/{}", MOE.replace(".json", "_down.json"));
    let other = MOE_TEXT.replacen("\"BLOCK_SIZE_M\": 64", "\"BLOCK_SIZE_M\": 32", 1);
    let found = |release: Option<&str>, text: &str| {
        let mut report = Report::default();
        together(
            &mut report,
            &[(&format!("triton_3_6_0/{MOE}"), MOE_TEXT), (&down, text)],
            release,
        );
        report
            .findings
            .iter()
            .map(|finding| (finding.rule, finding.severity, finding.line))
            .collect::<Vec<_>>()
    };
    let rule = |severity| [("up-down-block-m", severity, Some(2))];
    assert_eq!(found(Some("0.5.12.post1"), &other), rule(Severity::Error));
    assert_eq!(found(Some("0.5.13.post1"), &other), rule(Severity::Warning));
    assert_eq!(found(None, &other), rule(Severity::Error));
    assert_eq!(found(None, MOE_TEXT), []);
    // Equal keys agree, but between them the nearest keys of the two tables do not.
    let gap = "{\"1\": {\"BLOCK_SIZE_M\": 64}, \"4096\": {\"BLOCK_SIZE_M\": 64}, \"100\": {\"BLOCK_SIZE_M\": 128}}";
    assert_eq!(found(None, gap).len(), 1);
}

#[test]
fn a_down_table_of_another_triton_is_told_where_its_rows_would_be_taken() {
    let down = MOE.replace(".json", "_down.json");
    let found = |files: &[&str], release: &str| {
        let files: Vec<(&str, &str)> = files.iter().map(|file| (*file, MOE_TEXT)).collect();
        let mut report = Report::default();
        together(&mut report, &files, Some(release));
        report
            .findings
            .into_iter()
            .map(|finding| (finding.rule, finding.message))
            .collect::<Vec<_>>()
    };
    let (new_up, old_down) = (
        format!("c/triton_3_6_0/{MOE}"),
        format!("c/triton_3_5_1/{down}"),
    );
    let stale = found(&[&new_up, &old_down], "0.5.23");
    assert_eq!(stale.len(), 1, "{stale:?}");
    assert_eq!(stale[0].0, "down-of-other-triton");
    insta::assert_snapshot!(stale[0].1, @"with Triton 3.5.1 the up rows come from `triton_3_6_0` and the down rows from `triton_3_5_1`");
    // 0.5.11 looks into that folder where its own Triton runs only, and there the new up table is not seen.
    let unread = found(&[&new_up, &old_down], "0.5.11");
    assert!(
        unread
            .iter()
            .all(|(_, message)| !message.contains("from `triton_3_5_1`")),
        "{unread:?}"
    );
    let own_down = format!("c/triton_3_6_0/{down}");
    assert_eq!(
        found(&[&new_up, &own_down, &old_down], "0.5.23").len(),
        1,
        "Triton 3.5.1 has no up table"
    );
    let alone = found(&[&old_down], "0.5.23");
    insta::assert_snapshot!(alone[0].1, @"there is no table of the up projection beside it: with Triton 3.5.1 the default goes with these down rows");
}

#[test]
fn a_folder_of_another_triton_is_told_where_a_release_does_not_look() {
    let found = |folder: &str, release: &str| {
        let mut report = Report::default();
        together(
            &mut report,
            &[(&format!("configs/{folder}/{MOE}"), MOE_TEXT)],
            Some(release),
        );
        report
            .findings
            .iter()
            .map(|finding| (finding.rule, finding.severity))
            .collect::<Vec<_>>()
    };
    let unread = |severity| vec![("triton-folder-unread", severity)];
    assert_eq!(found("triton_3_3_0", "0.5.9"), unread(Severity::Warning));
    assert_eq!(found("triton_3_5_1", "0.5.9"), [], "the one it requires");
    assert_eq!(found("triton_3_5_1", "0.5.11"), unread(Severity::Warning));
    assert_eq!(found("triton_3_5_1", "0.5.12"), []);
    assert_eq!(
        found("triton_3_4_0+git12", "0.5.23"),
        unread(Severity::Error)
    );
}
