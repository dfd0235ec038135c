//! `gemmtune instrument`: GEMM shapes and the dispatch into the server's log.

use camino::Utf8PathBuf;
use serde::Serialize;

use super::printer::Printer;
use super::tree_changes::{CAPTURING, DECISION, OVERLAY_MARK, RootArgs};
use super::{trace, tree_changes};
use crate::overlay;
use crate::proc::quoted;
use crate::run::error::Error;
use crate::tree::instrument::{self, DUMP, Instrumented, LOG_DISPATCH};
use crate::tree::package::Package;

const NAME: &str = "instrument";

/// Arguments of `gemmtune instrument`.
#[derive(Debug, clap::Args)]
pub struct InstrumentArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Put the hooks in place; twice is as good as once
    Apply(ApplyArgs),
    /// Say which hooks are in place
    Status(RootArgs),
    /// Take the hooks away again, to the byte
    Undo(RootArgs),
}

#[derive(Debug, clap::Args)]
struct ApplyArgs {
    /// A folder that holds the `sglang` package, the package itself, or a source checkout
    root: Utf8PathBuf,

    /// How: a folder on PYTHONPATH that leaves the tree alone, or edits of the tree
    #[arg(long, value_enum, default_value_t = Mode::Overlay)]
    mode: Mode,

    /// Where the overlay's processes write their record files
    #[arg(long, value_name = "DIR", default_value = "gemmtune-records")]
    records: Utf8PathBuf,

    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Overlay,
    Patch,
}

#[derive(Debug, Serialize)]
struct Applied {
    mode: Mode,
    dry_run: bool,
    /// Files changed (or that would be), empty where everything was in place.
    changed: Vec<String>,
    /// The hooks that were there before.
    before: Option<Instrumented>,
    /// Variables that enable the hooks in the server.
    env: serde_json::Map<String, serde_json::Value>,
    notes: Vec<String>,
    /// Unified diff of a dry run.
    diff: Option<String>,
}

#[derive(Debug, Serialize)]
struct Status {
    hooks: Instrumented,
    overlay: Option<String>,
    patch: Option<tree_changes::Recorded>,
}

/// Runs `apply`, `status` or `undo`.
pub fn run(args: &InstrumentArgs, printer: &Printer) -> Result<(), Error> {
    match &args.verb {
        Verb::Apply(args) => apply(args, printer),
        Verb::Status(args) => status(args, printer),
        Verb::Undo(args) => {
            let files = [CAPTURING, DECISION];
            tree_changes::undo_all(args, NAME, files, "the overlay is gone", printer)
        }
    }
}

fn apply(args: &ApplyArgs, printer: &Printer) -> Result<(), Error> {
    let package = Package::find(&args.root).map_err(trace::failure)?;
    let applied = match args.mode {
        Mode::Overlay => apply_overlay(args, &package)?,
        Mode::Patch => apply_patch(args, &package)?,
    };
    if printer.is_json() {
        return printer.json(&applied);
    }
    for note in &applied.notes {
        printer.warn(note);
    }
    if let Some(diff) = &applied.diff {
        printer.data(diff.as_bytes())?;
    }
    if applied.changed.is_empty() {
        printer.say("nothing to do: the hooks are in place");
    }
    tree_changes::tell(&applied.changed, args.dry_run, printer);
    printer.say("start the server with:");
    printer.say(exports(&applied.env));
    printer.say(format!(
        "take it back with `gemmtune instrument undo {}`",
        quoted(&args.root)
    ));
    Ok(())
}

fn apply_patch(args: &ApplyArgs, package: &Package) -> Result<Applied, Error> {
    if !args.dry_run {
        tree_changes::recover(package, "gemmtune instrument apply")?;
    }
    let plan = instrument::plan(package).map_err(trace::failure)?;
    let diff = args.dry_run.then(|| {
        plan.edits
            .iter()
            .map(crate::tree::package::FileEdit::diff)
            .collect()
    });
    if !args.dry_run && !plan.edits.is_empty() {
        let detail = serde_json::json!({ "mode": "patch" });
        tree_changes::apply(package, NAME, detail, &plan.edits)?;
    }
    let mut env = serde_json::Map::new();
    for name in [DUMP, LOG_DISPATCH] {
        env.insert(name.to_owned(), "1".into());
    }
    Ok(Applied {
        mode: Mode::Patch,
        dry_run: args.dry_run,
        changed: plan
            .edits
            .iter()
            .map(|edit| edit.path.to_string())
            .collect(),
        before: Some(plan.now),
        env,
        notes: plan.notes,
        diff,
    })
}

fn apply_overlay(args: &ApplyArgs, package: &Package) -> Result<Applied, Error> {
    let folder = package.overlay_folder();
    let there = folder.join(CAPTURING).exists();
    // A tree that is patched as well would log every GEMM twice.
    let hooks = instrument::presence(package).map_err(trace::failure)?;
    if !args.dry_run {
        tree_changes::write_overlay(&folder, &folder.join(CAPTURING), b"{}\n")?;
    }
    let records = std::path::absolute(&args.records)
        .ok()
        .and_then(|path| Utf8PathBuf::from_path_buf(path).ok())
        .unwrap_or_else(|| args.records.clone());
    let env = overlay_env(&folder, &overlay::OverlayOptions::capture(records));
    let mut notes = Vec::new();
    let hooked = |hook| hook != instrument::Presence::Absent;
    if hooked(hooks.shapes) || hooks.per_channel.is_some_and(hooked) {
        notes.push(
            "the tree has a shape hook of its own: with the overlay each GEMM is logged twice"
                .to_owned(),
        );
    }
    Ok(Applied {
        mode: Mode::Overlay,
        dry_run: args.dry_run,
        changed: if there {
            Vec::new()
        } else {
            vec![folder.to_string()]
        },
        before: Some(hooks),
        env,
        notes,
        diff: None,
    })
}

pub(super) fn overlay_env(
    folder: &camino::Utf8Path,
    options: &overlay::OverlayOptions,
) -> serde_json::Map<String, serde_json::Value> {
    overlay::environment(folder, options, |_| None)
        .into_iter()
        .map(|(name, value)| (name, value.into()))
        .collect()
}

/// `export` lines to paste; the current value of PYTHONPATH is kept after ours.
pub(super) fn exports(env: &serde_json::Map<String, serde_json::Value>) -> String {
    env.iter()
        .map(|(name, value)| {
            let value = value.as_str().unwrap_or_default();
            let quoted = quoted(value);
            if name == "PYTHONPATH" {
                format!("    export PYTHONPATH={quoted}${{PYTHONPATH:+:$PYTHONPATH}}")
            } else {
                format!("    export {name}={quoted}")
            }
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn status(args: &RootArgs, printer: &Printer) -> Result<(), Error> {
    let package = Package::find(&args.root).map_err(trace::failure)?;
    let hooks = instrument::presence(&package).map_err(trace::failure)?;
    let folder = package.overlay_folder();
    let status = Status {
        hooks,
        overlay: folder
            .join(OVERLAY_MARK)
            .exists()
            .then(|| folder.to_string()),
        patch: tree_changes::recorded(&package, NAME)?,
    };
    if printer.is_json() {
        return printer.json(&status);
    }
    let text = format!(
        "shape hook: {}\nper-channel hook: {}\ndispatch hook: {}\noverlay: {}\nledger: {}\n",
        words(hooks.shapes),
        hooks
            .per_channel
            .map_or("the tree's linears never reach aiter's GEMM", words),
        words(hooks.dispatch),
        status.overlay.as_deref().unwrap_or("none"),
        if status.patch.is_some() {
            "an edit that can be undone"
        } else {
            "nothing to undo"
        }
    );
    printer.data(text.as_bytes())
}

fn words(presence: instrument::Presence) -> &'static str {
    match presence {
        instrument::Presence::Absent => "absent",
        instrument::Presence::Gemmtune => "written by gemmtune",
        instrument::Presence::ByHand => "written by hand",
    }
}
