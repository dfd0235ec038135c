//! What the commands about runs print with `--json` is as the published schemas say.

use serde_json::Value;

use crate::schema::check;
use crate::support::{Change, Site};

#[test]
fn the_documents_of_a_run_are_as_published() {
    let site = Site::new(&Change {
        pairs: Some(1),
        ..Change::default()
    });
    let json = |arguments: &[&str]| -> Value {
        let output = site.run(&[&["--json"], arguments].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!(
                "{arguments:?}: {error}: {}",
                String::from_utf8_lossy(&output.stderr)
            )
        })
    };
    // Several loads, so that what a comparison says of each is there too.
    let path = site.folder.join("gemmtune.toml");
    let config = fs_err::read_to_string(&path).unwrap();
    let load = "concurrency = 3, prompts = 6, input_len = 9, output_len = 5 }";
    let loads = format!("loads = [{{ name = \"few\", {load}, {{ name = \"more\", {load}]");
    let several = config.replace(&format!("builtin = {{ {load}"), &loads);
    assert_ne!(config, several);
    fs_err::write(&path, several).unwrap();
    check("run-dry-run", &json(&["run", "--dry-run"]));
    check("run-paused", &json(&["run", "--until", "plan"]));
    check("status", &json(&["status"]));
    let whole = json(&["run"]);
    assert_eq!(whole["loads"].as_array().map(Vec::len), Some(2));
    check("demo", &whole);
    check("status", &json(&["status"]));
    check("report", &json(&["report"]));
    check("undo", &json(&["undo", "--dry-run"]));
    check("undo", &json(&["undo"]));
    check("status", &json(&["status"]));
}
