//! Which rows are taken, of which operation, and what is said before.

use crate::support::{Like, Site, TEN, write};

#[test]
fn a_time_no_device_can_reach_is_refused_and_the_runner_up_taken() {
    let healthy = Site::new(Like::New, &TEN[..1]).run(&[]);
    let honest = healthy.row(16)["row"]["us"].as_f64().unwrap();
    let site = Site::new(Like::New, &TEN[..1]).faults("us=0.0001@2:16x256x512");
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let refused = &ran.list("refused")[0];
    insta::assert_snapshot!(refused["reason"].as_str().unwrap(), @"0.0001 us means 41943 TFLOPS; gfx942 with 304 compute units does at most 2615");
    assert!(ran.row(16)["row"]["us"].as_f64().unwrap() >= honest);
    assert_ne!(ran.row(16)["row"]["kernelId"], 2);
}

#[test]
fn sums_without_a_fixed_order_are_refused_and_shallower_splits_taken() {
    let site = Site::new(Like::New, &TEN[..1]).args(&["--split-k", "yes"]);
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let refused = &ran.list("refused")[0];
    assert_eq!(refused["row"]["splitK"], 2);
    insta::assert_snapshot!(refused["reason"].as_str().unwrap(), @"splitK 2 adds partial sums in no fixed order: two runs differ (ROCm/aiter#4581)");
    assert_eq!(ran.row(16)["row"]["splitK"], 1);
}

#[test]
fn a_shape_its_incumbent_serves_better_is_a_route_and_no_row_of_the_table() {
    let site = Site::new(Like::New, &TEN[..3]).args(&["--incumbents", "i.csv", "--table", "t.csv"]);
    // The row in use for 48 is this device's and fast, that for 32 another device's.
    write(
        &site.folder.join("t.csv"),
        "gfx,cu_num,M,N,K,us,errRatio\ngfx942,304,48,256,512,2.5,0.0\ngfx942,80,32,256,512,2.5,0.0\n",
    );
    write(
        &site.folder.join("i.csv"),
        "M,N,K,us,what\n16,256,512,1.5,Triton\n32,256,512,9000,Triton\n",
    );
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.row(16)["incumbent_stays"], true);
    assert_eq!(ran.row(32)["incumbent_stays"], false);
    assert_eq!(ran.row(48)["incumbent"]["what"], "the row in use");
    assert_eq!(ran.row(48)["incumbent_stays"], true);
    let table = site.table();
    assert_eq!(table.lines().count(), 2);
    assert!(table.contains(",32,256,512,"), "{table}");
}

#[test]
fn every_operation_has_its_script_keys_and_columns() {
    for (op, header, cell) in [
        (
            "gemm_a8w8_blockscale_bpreshuffle",
            "cu_num,M,N,K,libtype,",
            "304",
        ),
        (
            "gemm_a8w8_bpreshuffle",
            "cu_num,M,N,K,q_dtype_w,libtype,",
            "torch.float8_e4m3fnuz",
        ),
        (
            "gemm_a8w8",
            "cu_num,M,N,K,q_dtype_w,kernelId,",
            "torch.float8_e4m3fnuz",
        ),
        ("gemm_a4w4", "cu_num,M,N,K,kernelId,", "a4w4_blockscale_"),
    ] {
        // gfx942 has no FP4, so a time of such an operation is bounded by nothing there.
        let site = Site::new(Like::Old, &TEN[..2]).args(&["--op", op, "--split-k", "no"]);
        let ran = site.run(&[]);
        assert_eq!(ran.code, Some(0), "{op}: {}", ran.stderr);
        let table = site.table();
        assert!(table.starts_with(header), "{op}: {table}");
        assert!(table.contains(cell), "{op}: {table}");
    }
}

#[test]
fn a_dry_run_shows_the_command_and_writes_nothing() {
    let site = Site::new(Like::Old, &TEN);
    let ran = site.run(&["--dry-run"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let command: Vec<&str> = ran
        .list("command")
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    let after = |flag: &str| command[command.iter().position(|word| *word == flag).unwrap() + 1];
    assert_eq!(
        (after("--mp"), after("--batch"), after("--libtype")),
        ("2", "4", "both")
    );
    assert!(after("-i").starts_with('/') && after("-o").starts_with('/'));
    assert!(!command.contains(&"-k"), "this tree ignores splits of K");
    assert_eq!(ran.json["flags_from"], "help");
    assert_eq!(ran.json["env"]["PYTHONUNBUFFERED"], "1");
    assert!(!site.folder.join("out").exists());
}

#[test]
fn flags_come_from_source_where_the_script_cannot_be_asked() {
    let site = Site::new(Like::New, &TEN[..1]).env("STANDIN_PYTHONLESS", "1");
    let ran = site.run(&["--dry-run"]);
    assert_eq!(ran.json["flags_from"], "source");
    insta::assert_snapshot!(ran.list("remarks")[0].as_str().unwrap(), @"flags were read from source: `--help` ended with exit code 1: ImportError: no module named torch");
    let help = Site::new(Like::New, &TEN[..1]).run(&["--dry-run"]);
    let plain = |ran: &crate::support::Ran, site: &str| {
        serde_json::to_string(ran.list("command"))
            .unwrap()
            .replace(site, "")
    };
    let (one, other) = (plain(&ran, site.folder.as_str()), plain(&help, ""));
    assert_eq!(one.matches("--").count(), other.matches("--").count());
}

#[test]
fn without_an_interpreter_a_dry_run_still_says_what_it_can() {
    let site = Site::new(Like::New, &TEN[..1]).args(&["--python", "/nowhere/python"]);
    let ran = site.run(&["--dry-run"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.json["device"], serde_json::Value::Null);
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(10), "{}", ran.stderr);
}
