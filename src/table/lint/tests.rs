use std::collections::BTreeSet;

use super::*;

fn check(name: &str, text: &str) -> Report {
    let mut report = Report::default();
    if name.contains(".json") {
        report.check_json(name, text.as_bytes());
    } else {
        report.check_csv(name, text.as_bytes());
    }
    report.sort();
    report
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
        assert!(
            ids(&report).contains(&rule.id),
            "{}: {:#?}",
            rule.id,
            report.findings
        );
        // A doubled header or the deliberately odd file may break more; everything else is one thing.
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
    let report = check("tuned_fmoe.csv", "cu_num,token,model_dim,us\n80,1,2,3\n");
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
    assert_eq!(rule("gfx1201", "32"), None);
}
