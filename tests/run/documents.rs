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
    check("run-dry-run", &json(&["run", "--dry-run"]));
    check("run-paused", &json(&["run", "--until", "plan"]));
    check("status", &json(&["status"]));
    check("demo", &json(&["run"]));
    check("status", &json(&["status"]));
    check("report", &json(&["report"]));
    check("undo", &json(&["undo", "--dry-run"]));
    check("undo", &json(&["undo"]));
    check("status", &json(&["status"]));
}
