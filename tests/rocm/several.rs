//! Two dense operations and the fused MoE of one server, in one run.

use serde_json::Value;

use crate::STAGES;
use crate::schema;
use crate::site::{Change, Site, count, document, stderr};

/// Two weights with a scale per channel and one with block scales, then four experts of a width of 128, two for each token.
fn site() -> Site {
    let site = Site::new(&Change {
        weights: Some("256,128,channel;256,256,channel;128,256"),
        experts: Some("4,128,2"),
        ..Change::default()
    });
    // Every part gets its rows whatever else this machine does.
    let path = site.folder.join("gemmtune.toml");
    let text = fs_err::read_to_string(&path).unwrap();
    fs_err::write(&path, text.replace("tune = \"60s\"", "tune = \"3000s\"")).unwrap();
    site
}

/// The variable of each operation's table.
const CHANNEL: (&str, &str) = (
    "gemm_a8w8_bpreshuffle",
    "AITER_CONFIG_GEMM_A8W8_BPRESHUFFLE",
);
const BLOCK: (&str, &str) = ("gemm_a8w8_blockscale", "AITER_CONFIG_GEMM_A8W8_BLOCKSCALE");
const EXPERTS: &str = "AITER_CONFIG_FMOE";

#[test]
fn two_dense_operations_and_the_fused_moe_go_through_one_run_and_are_taken_back_together() {
    let site = site();
    let output = site.run(&["run", "--until", "baseline"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let before = site.trees();
    let output = site.run(&["run", "--json"]);
    // Two pairs support no verdict; everything before it passed.
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let journal = site.journal();
    for stage in STAGES {
        assert_eq!(count(&journal, "stage_finished", stage), 1, "{stage}");
    }
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["parity"], true, "{printed}");

    let run = site.latest();
    let captured = document(&run.join("capture.json"));
    assert_eq!(captured["fused_moe"][0]["E"], 4, "{captured}");
    let tune = document(&run.join("tune.json"));
    for (op, _) in [CHANNEL, BLOCK] {
        let rows = tune["rows"].as_array().unwrap().iter();
        assert!(
            rows.filter(|row| row["shape"]["op"] == op).count() > 0,
            "{tune}"
        );
    }
    assert!(
        !tune["fused_moe"]["rows"].as_array().unwrap().is_empty(),
        "{tune}"
    );

    // Three tables, each under its own variable.
    let deployed = document(&run.join("deploy.json"));
    let table = |name: &str| deployed["env"][name].as_str().unwrap().to_owned();
    let tables = [CHANNEL.1, BLOCK.1, EXPERTS].map(table);

    // Each was engaged.
    let verified = document(&run.join("verify.json"));
    let asked = |asked: &Value| {
        assert!(asked["hit"].as_u64().unwrap() > 0, "{verified}");
        assert_eq!(asked["missed"], 0, "{verified}");
    };
    let missed = |part: &Value| assert_eq!(part["engagement"]["missed"], serde_json::json!([]));
    missed(&verified);
    missed(&verified["fused_moe"]);
    for (op, _) in [CHANNEL, BLOCK] {
        asked(&verified["engagement"]["operations"][op]);
    }
    asked(&verified["fused_moe"]["engagement"]["families"]["E=4 N=128"]);
    let report = document(&run.join("report.json"));
    schema::check("report", &report);
    assert_eq!(report["operations"].as_array().unwrap().len(), 2);
    assert_eq!(report["fused_moe"].as_array().unwrap().len(), 1);
    let digests = report["digests"].to_string();
    for what in [
        "\"deployed table\"",
        "deployed table of gemm_a8w8_blockscale",
        "of fused MoE",
    ] {
        assert!(digests.contains(what), "{digests}");
    }

    let output = site.run(&["undo"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(site.trees(), before);
    for gone in &tables {
        assert!(!std::path::Path::new(gone).exists(), "{gone}");
    }
    site.assert_nothing_left();
}

#[test]
fn a_table_of_one_operation_that_only_the_tuned_server_does_not_read_takes_all_three_back() {
    let site = site();
    // A launcher that loses a variable: the other table and the fused MoE serve as deployed.
    let script = format!("[ -z \"${EXPERTS}\" ] || unset {}\nexec \"$@\"\n", BLOCK.1);
    Site::write(&site.folder.join("launch"), &script);
    let path = site.folder.join("gemmtune.toml");
    let text = fs_err::read_to_string(&path).unwrap();
    let launched = format!("command = [\"sh\", \"{}/launch\", ", site.folder);
    fs_err::write(&path, text.replace("command = [", &launched)).unwrap();

    let output = site.run(&["run", "--until", "baseline"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let before = site.trees();
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(
        said.contains("engagement: none of the")
            && said.contains(&format!("shapes of {}", BLOCK.0)),
        "{said}"
    );
    let run = site.latest();
    let verified = document(&run.join("verify.json"));
    let asked = &verified["engagement"]["operations"];
    assert_eq!(asked[BLOCK.0]["hit"], 0, "{asked}");
    assert_eq!(asked[CHANNEL.0]["missed"], 0, "{asked}");
    assert_eq!(count(&site.journal(), "stage_started", "compare"), 0);
    let deployed = document(&run.join("deploy.json"));
    for name in [CHANNEL.1, BLOCK.1, EXPERTS] {
        let table = deployed["env"][name].as_str().unwrap();
        assert!(!std::path::Path::new(table).exists(), "{table}");
    }
    assert_eq!(site.trees(), before);
}
