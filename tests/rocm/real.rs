//! The same loop around released SGLang on a real torch: `tests/realtrees/run` prepares both and starts these.

use serde_json::Value;

use crate::site::{Change, Real, Site, asked, count, document, stderr};

/// The releases that `tests/realtrees/run` was asked for, and where they are. Not 0.5.5, which `run` refuses.
fn releases() -> Vec<Real> {
    let variable =
        |name: &str| asked(name).unwrap_or_else(|| panic!("{name} is set by tests/realtrees/run"));
    let (cache, python) = (
        variable("GEMMTUNE_TESTS_CACHE"),
        variable("GEMMTUNE_REALTREES_PYTHON"),
    );
    variable("GEMMTUNE_REALTREES")
        .split_whitespace()
        .filter(|release| *release != "0.5.5")
        .map(|release| Real {
            release: release.to_owned(),
            tree: format!("{cache}/sglang-{release}").into(),
            python: python.clone().into(),
        })
        .collect()
}

#[test]
#[ignore = "started by tests/realtrees/run"]
fn a_released_sglang_is_tuned_verified_and_compared() {
    let all = releases();
    let Some(real) = all.first() else { return };
    let site = Site::new(&Change {
        real: Some(real.clone()),
        ..Change::default()
    });
    let before = site.trees();
    let output = site.run(&["run", "--json"]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["pairs"], 2, "{printed}");
    assert_eq!(printed["parity"], true, "{printed}");
    assert_eq!(printed["hit_rate"], 1.0, "{printed}");
    verified_as_it_should(&site, real);
    assert_eq!(site.run(&["undo"]).status.code(), Some(0));
    assert_eq!(site.trees(), before, "{}", real.release);
    site.assert_nothing_left();
}

#[test]
#[ignore = "started by tests/realtrees/run"]
fn a_released_sglang_with_per_channel_weights_is_tuned_and_a_misread_layout_is_caught() {
    let all = releases();
    let Some(real) = all.first() else { return };
    let change = |env| Change {
        real: Some(real.clone()),
        weights: Some("512,1024,channel;1024,512,channel"),
        env,
        ..Change::default()
    };
    let site = Site::new(&change(&[]));
    let output = site.run(&["run", "--json"]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["pairs"], 2, "{printed}");
    assert_eq!(printed["parity"], true, "{printed}");
    assert_eq!(printed["hit_rate"], 1.0, "{printed}");
    let run = site.latest();
    let captured = document(&run.join("capture.json"));
    assert_eq!(
        captured["inspection"]["op"], "gemm_a8w8_bpreshuffle",
        "{captured}"
    );
    assert_eq!(
        captured["inspection"]["linear"], "apply_fp8_ptpc_linear",
        "{captured}"
    );
    let verified = document(&run.join("verify.json"));
    for check in verified["layout"].as_array().unwrap() {
        let error = check["relative_error"].as_f64().unwrap();
        assert!((0.001..0.003).contains(&error), "{}: {check}", real.release);
    }
    assert!(
        verified["engagement"]["hit"].as_u64().unwrap() > 0,
        "{verified}"
    );
    assert_eq!(site.run(&["undo"]).status.code(), Some(0));
    site.assert_nothing_left();

    // Every tuned kernel reads the (16, 16) tiles as rows.
    let site = Site::new(&change(&[("STANDIN_MISREADS", "standin")]));
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("layout check"),
        "{}",
        stderr(&output)
    );
    assert_eq!(count(&site.journal(), "stage_started", "compare"), 0);
}

#[test]
#[ignore = "started by tests/realtrees/run"]
fn other_releases_are_verified_and_a_wrong_kernel_is_taken_back() {
    let all = releases();
    let full = asked("GEMMTUNE_REALTREES_DEPTH").is_some_and(|depth| depth == "full");
    let from = if full {
        1
    } else {
        all.len().saturating_sub(1).max(1)
    };
    for real in all.iter().skip(from) {
        let site = Site::new(&Change {
            real: Some(real.clone()),
            ..Change::default()
        });
        let output = site.run(&["run", "--until", "verify"]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}: {}",
            real.release,
            stderr(&output)
        );
        verified_as_it_should(&site, real);
    }
    let Some(real) = all.last().cloned() else {
        return;
    };
    let site = Site::new(&Change {
        env: &[("STANDIN_WRONG", "standin")],
        real: Some(real.clone()),
        ..Change::default()
    });
    let before = site.trees();
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("layout check"),
        "{}",
        stderr(&output)
    );
    assert_eq!(site.trees(), before, "{}", real.release);
    assert_eq!(count(&site.journal(), "stage_started", "compare"), 0);
}

/// Layout, kernels and engagement of the verify stage.
fn verified_as_it_should(site: &Site, real: &Real) {
    let verified = document(&site.latest().join("verify.json"));
    let layout = verified["layout"].as_array().unwrap();
    let tuned = layout
        .iter()
        .filter(|check| check["kernel"].as_str().unwrap().contains("standin"))
        .count();
    assert!(tuned > 0, "{}: {layout:?}", real.release);
    for check in layout {
        let error = check["relative_error"].as_f64().unwrap();
        assert!((0.001..0.003).contains(&error), "{}: {check}", real.release);
    }
    let engagement = &verified["engagement"];
    assert!(engagement["hit"].as_u64().unwrap() > 0, "{engagement}");
    for list in ["missed", "other_kernel", "unplanned"] {
        let named = engagement[list].as_array().unwrap();
        assert!(named.is_empty(), "{}: {engagement}", real.release);
    }
}
