//! The tuner of the fused MoE, supervised: healthy, and through what goes wrong.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::said::{line, plain};
use crate::support::{Like, Ran, Site, write};

pub(crate) const HEADER: &str = "token,model_dim,inter_dim,expert,topk,act_type,dtype,q_dtype_a,q_dtype_w,q_type,use_g1u1,doweight_stage1";
const FP8: &str = "torch.float8_e4m3fnuz";

pub(crate) fn call(token: u32) -> String {
    format!(
        "{token},7168,256,257,9,ActivationType.Silu,torch.bfloat16,{FP8},{FP8},QuantType.per_1x128,1,0"
    )
}

/// Calls of DeepSeek-V3 on eight cards, as `gemmtune plan` writes them.
fn site(like: Like, tokens: &[u32]) -> Site {
    let site = Site::new(like, &[]);
    let lines: Vec<String> = tokens.iter().map(|token| call(*token) + "\n").collect();
    write(
        &site.folder.join("s.csv"),
        &format!("{HEADER}\n{}", lines.concat()),
    );
    site
}

pub(crate) fn tokens(ran: &Ran, field: &str) -> Vec<u64> {
    ran.list(field)
        .iter()
        .map(|entry| {
            let shape = entry.get("shape").unwrap_or(entry);
            shape["token"].as_u64().unwrap()
        })
        .collect()
}

pub(crate) fn remarks(ran: &Ran) -> String {
    ran.list("remarks")
        .iter()
        .map(|remark| remark.as_str().unwrap().to_owned() + "\n")
        .collect()
}

fn table(site: &Site) -> String {
    fs_err::read_to_string(site.folder.join("out/tuned_fmoe.csv")).unwrap()
}

#[test]
fn calls_become_a_table_that_lint_and_lookup_take_and_the_tree_stays_as_it_was() {
    for (like, columns) in [
        (Like::Old, "cu_num,token,"),
        (Like::New, "gfx,cu_num,token,"),
    ] {
        let site = site(like, &[8, 16, 64, 128, 256]);
        let ran = site.run(&[]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(tokens(&ran, "rows"), [8, 16, 64, 128, 256]);
        let table = table(&site);
        assert!(table.starts_with(columns), "{table}");
        let small_tiles = remarks(&ran).contains("block_m 32, 64, 128 for two stages and never 16");
        assert_eq!(small_tiles, like == Like::Old, "{}", remarks(&ran));
        assert!(remarks(&ran).contains("only end to end"));
        let said = "token=64 model_dim=7168 inter_dim=256 expert=257 topk=9 Silu torch.float8_e4m3fnuz per_1x128: ";
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
        assert_eq!(ran.list("rows")[2]["row"]["token"], "64");
        // One call first, then the others; every candidate is kept, and nothing of it in the tree.
        assert_eq!(site.asked("01"), [8]);
        assert_eq!(site.asked("02"), [16, 64, 128, 256]);
        let candidates = site.folder.join("out/attempts/02/candidates.csv");
        let candidates = fs_err::read_to_string(candidates).unwrap();
        let each = if like == Like::Old { 7 } else { 9 };
        assert_eq!(candidates.lines().count(), 1 + 4 * each, "{candidates}");
        assert!(!site.folder.join("tree/aiter/configs").exists());
        let gemmtune = |args: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_gemmtune"));
            let output = command
                .current_dir(&site.folder)
                .args(args)
                .output()
                .unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            (output.status.code(), text)
        };
        let (code, said) = gemmtune(&["lint", "out/tuned_fmoe.csv"]);
        assert_eq!(code, Some(0), "{said}");
        let revision = if like == Like::Old { "P" } else { "H" };
        let card = ["--gfx", "gfx942", "--cu", "304", "--revision", revision];
        let files = ["--table", "out/tuned_fmoe.csv", "--shapes", "s.csv"];
        let (_, said) = gemmtune(&[&["--json", "lookup"], &files[..], &card].concat());
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["hits"], 5, "{said}");
        site.nothing_is_left();
    }
}

#[test]
fn a_dry_run_shows_the_command_and_writes_nothing() {
    let site = site(Like::Old, &[8, 64]);
    let ran = site.run(&["--dry-run"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let words: Vec<&str> = ran
        .list("command")
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    let line = words.join(" ");
    for part in [
        "/gemm_moe_tune.py -i ",
        "--errRatio 0.1 ",
        " -o2 ",
        " --batch 2",
        " --timeout ",
    ] {
        assert!(line.contains(part), "{line}");
    }
    assert!(!words.contains(&"-k"), "{line}");
    assert_eq!(ran.json["shapes"], 2);
    assert!(!site.folder.join("out").exists());
}

#[test]
fn rows_with_too_many_wrong_numbers_are_refused_by_name_though_the_tuner_takes_them() {
    // Told to, the script leaves such kernels out itself.
    let site = site(Like::Old, &[64, 128]).faults("err=0.3@*:64x7168x256");
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(15), "{}", ran.stderr);
    assert_eq!(tokens(&ran, "failed"), [64]);
    insta::assert_snapshot!(ran.list("failed")[0]["reason"].as_str().unwrap(), @"no candidate gave right numbers in time");
    // One that does not listen is not believed.
    let deaf = self::site(Like::Old, &[64, 128])
        .faults("err=0.3@*:64x7168x256")
        .env("STANDIN_DEAF", "1");
    let ran = deaf.run(&[]);
    assert_eq!(ran.code, Some(15), "{}", ran.stderr);
    assert_eq!(
        (tokens(&ran, "rows"), tokens(&ran, "failed")),
        (vec![128], vec![64])
    );
    let refused = &ran.list("refused")[0];
    assert_eq!(refused["shape"]["token"], 64);
    insta::assert_snapshot!(refused["reason"].as_str().unwrap(), @"err1 says that 30.0 % of its numbers are wrong, at most 10.0 % may be");
    assert!(!table(&deaf).contains(",64,7168,"));
}

#[test]
fn a_raised_limit_lets_rows_through_that_say_so() {
    let faults = "err=0.17@*:64x7168x256";
    let site = site(Like::Old, &[64, 128])
        .faults(faults)
        .args(&["--err-ratio", "0.2"]);
    let ran = site.run(&["--dry-run"]);
    let command = ran.json["command"].to_string();
    assert!(command.contains(r#""--errRatio","0.2""#), "{command}");
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let above: Vec<bool> = ran
        .list("rows")
        .iter()
        .map(|row| row["above_default"].as_bool().unwrap())
        .collect();
    assert_eq!(above, [true, false]);
    let limits = ["err_ratio", "default_err_ratio"].map(|name| ran.json[name].as_f64());
    assert_eq!(limits, [Some(0.2), Some(0.1)]);
    insta::assert_snapshot!(line(&remarks(&ran), "of a stage's numbers wrong"), @"rows are taken here with up to 20.0 % of a stage's numbers wrong, and 10.0 % is what is allowed otherwise");
    insta::assert_snapshot!(line(&ran.stderr, "with more wrong numbers than"), @"token=64 model_dim=7168 inter_dim=256 expert=257 topk=9 Silu torch.float8_e4m3fnuz per_1x128: 46.2 us by standin_stage1_64 and standin_stage2_64, with more wrong numbers than are taken by default");
    // Rows of another limit are not mixed with these.
    let strict = site.without("--err-ratio").run(&[]);
    assert_eq!(strict.code, Some(17), "{}", strict.stderr);
}

#[test]
fn what_the_tuner_would_make_no_row_for_is_named_and_not_asked() {
    let site = site(Like::Old, &[]);
    let other_fp8 = call(16).replace("fnuz", "fn");
    let fp4 = call(32).replace("per_1x128", "per_1x32");
    let one_gate = call(64).replace(",1,0", ",0,0");
    let text = [HEADER, &call(5), &call(8), &other_fp8, &fp4, &one_gate].join("\n") + "\n";
    write(&site.folder.join("s.csv"), &text);
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(15), "{}", ran.stderr);
    assert_eq!(
        (tokens(&ran, "rows"), tokens(&ran, "failed")),
        (vec![8], vec![16, 32, 64])
    );
    insta::assert_snapshot!(line(&remarks(&ran), "that no look-up asks for"), @"1 calls have tokens that no look-up asks for: they are tuned as their look-up rounds them");
    assert_eq!(site.asked("01"), [8], "5 tokens are looked up as 8");
    let failed = ran.list("failed").iter();
    let reasons: Vec<&str> = failed
        .map(|failed| failed["reason"].as_str().unwrap())
        .collect();
    insta::assert_snapshot!(reasons.join("\n"), @"
    on gfx942 FP8 is torch.float8_e4m3fnuz, not torch.float8_e4m3fn
    the tuner does per_1x32 on gfx950 only, and this is gfx942
    the tuner has no candidate without g1u1
    ");
}

#[test]
fn a_call_whose_worker_dies_goes_alone_and_the_others_keep_their_rows() {
    let site = site(Like::Old, &[8, 16, 64, 128])
        .faults("exit@stage1_32:64x7168x256")
        .args(&[
            "--limit",
            "task=1s",
            "--limit",
            "silence=2s",
            "--limit",
            "build=1s",
        ]);
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(tokens(&ran, "rows"), [8, 16, 64, 128]);
    insta::assert_snapshot!(line(&remarks(&ran), "it made no progress"), @"the tuner was restarted: it made no progress; finished rows are kept");
    site.nothing_is_left();
}

#[test]
fn a_tuner_that_a_call_kills_is_started_again_without_it() {
    let site = site(Like::New, &[8, 16, 64])
        .faults("kill@table:64x7168x256")
        .args(&["--batch", "1"]);
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(15), "{}", ran.stderr);
    assert_eq!(
        (tokens(&ran, "rows"), tokens(&ran, "failed")),
        (vec![8, 16], vec![64])
    );
    insta::assert_snapshot!(ran.list("failed")[0]["reason"].as_str().unwrap(), @"the tuner died over it with exit code 137");
    site.nothing_is_left();
}

#[test]
fn an_interrupt_keeps_what_was_found_and_the_next_run_goes_on() {
    let mut site = site(Like::New, &[8, 16, 32, 64, 128])
        .faults("sleep=0.2@*:*")
        .args(&["--batch", "1"]);
    let child = site.start();
    site.wait_for_rows(2);
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(130), "{}", ran.stderr);
    assert_eq!(ran.json["interrupted"], true);
    let kept = tokens(&ran, "rows").len();
    assert!((2..5).contains(&kept), "{kept}");
    assert_eq!(tokens(&ran, "not_reached").len(), 5 - kept);
    assert_eq!(table(&site).lines().count(), 1 + kept);
    site.nothing_is_left();
    site.without_fault();
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(
        (tokens(&ran, "rows").len(), tokens(&ran, "resumed").len()),
        (5, kept)
    );
    assert_eq!(site.asked("03").len(), 5 - kept);
}

#[test]
fn another_key_than_the_known_one_is_refused_by_name() {
    let site = site(Like::Old, &[8]);
    let script = site
        .folder
        .join("tree/csrc/ck_gemm_moe_2stages_codegen/gemm_moe_tune.py");
    let text = fs_err::read_to_string(&script).unwrap();
    write(
        &script,
        &text.replace(
            "        \"topk\",\n",
            "        \"topk\",\n        \"hidden_pad\",\n",
        ),
    );
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(11), "{}", ran.stderr);
    insta::assert_snapshot!(plain(&ran.stderr, &site.folder), @"
    error: failed to tune: use `[folder]/tree/csrc/ck_gemm_moe_2stages_codegen/gemm_moe_tune.py`: the columns of its key are not known (cu_num, token, model_dim, inter_dim, expert, topk, hidden_pad, act_type, dtype, q_dtype_a, q_dtype_w, q_type, use_g1u1, doweight_stage1)

    hint: look with --dry-run; `gemmtune doctor` says what the tree can do
    ");
}
