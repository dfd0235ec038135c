//! `gemmtune switch`: force CK or Triton in an SGLang tree, by the least invasive means that gives right results.

use camino::Utf8PathBuf;
use serde::Serialize;

use super::instrument;
use super::printer::Printer;
use super::tree_changes::{CAPTURING, DECISION, RootArgs};
use super::{trace, tree_changes};
use crate::overlay;
use crate::proc::quoted;
use crate::run::error::{Error, ErrorKind};
use crate::tree::era::{self, Era};
use crate::tree::force::{self, ForceError, Means, Plan, Rule, Step, SwitchRequest, Target};
use crate::tree::package::{FP8_UTILS, FileEdit, Package};
use crate::tree::{Arch, Rocm, reach, route, switch};

const NAME: &str = "switch";

/// Arguments of `gemmtune switch`.
#[derive(Debug, clap::Args)]
pub struct SwitchArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Force a kernel
    Apply(ApplyArgs),
    /// Say what is forced
    Status(RootArgs),
    /// Take it back, to the byte
    Undo(RootArgs),
}

#[derive(Debug, clap::Args)]
struct ApplyArgs {
    /// A folder that holds the `sglang` package, the package itself, or a source checkout
    root: Utf8PathBuf,

    /// The kernel
    #[arg(long, value_enum)]
    to: To,

    /// Send only these GEMMs to CK and all others to Triton: N,K or N,K,M<=CAP
    #[arg(long, value_name = "N,K[,M<=CAP]", value_parser = parse_route)]
    route: Vec<Rule>,

    /// The GPU that will serve
    #[arg(long, value_parser = parse_arch)]
    arch: Arch,

    /// Its ROCm version, such as 7.1
    #[arg(long, value_parser = parse_rocm)]
    rocm: Option<Rocm>,

    /// How; by default the least invasive way that gives right results
    #[arg(long, value_enum)]
    mode: Option<Mode>,

    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum To {
    Ck,
    Triton,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Env,
    Overlay,
    Patch,
}

fn parse_arch(text: &str) -> Result<Arch, String> {
    match text {
        "gfx942" => Ok(Arch::Gfx942),
        "gfx950" => Ok(Arch::Gfx950),
        _ => Err("known are gfx942 and gfx950".to_owned()),
    }
}

fn parse_rocm(text: &str) -> Result<Rocm, String> {
    Rocm::of_version(text)
        .ok_or_else(|| "a version has at least two numbers, such as 7.1".to_owned())
}

fn parse_route(text: &str) -> Result<Rule, String> {
    let wrong = || format!("`{text}` is not N,K or N,K,M<=CAP, such as 2112,7168,M<=256");
    let number = |text: &str| {
        let value: u32 = text.trim().parse().map_err(|_| wrong())?;
        if value == 0 {
            Err(wrong())
        } else {
            Ok(u64::from(value))
        }
    };
    let parts: Vec<&str> = text.split(',').collect();
    let (n, k, cap) = match parts[..] {
        [n, k] => (n, k, None),
        [n, k, cap] => (n, k, Some(cap)),
        _ => return Err(wrong()),
    };
    let max_m = cap
        .map(|cap| {
            let cap = cap.trim();
            number(
                cap.strip_prefix("M<=")
                    .or_else(|| cap.strip_prefix("<="))
                    .unwrap_or(cap),
            )
        })
        .transpose()?;
    Ok(Rule {
        n: number(n)?,
        k: number(k)?,
        min_m: None,
        max_m,
    })
}

#[derive(Debug, Serialize)]
struct Applied {
    era: Era,
    means: Means,
    detail: String,
    dry_run: bool,
    /// Files changed (or that would be).
    changed: Vec<String>,
    /// Variables to set for the server.
    env: serde_json::Map<String, serde_json::Value>,
    /// Variables that must not be set.
    unset: Vec<String>,
    steps: Vec<Step>,
    diff: Option<String>,
}

#[derive(Debug, Serialize)]
struct Status {
    /// Whether the tree contains gemmtune's lines.
    patched: bool,
    /// The decision that the overlay applies.
    overlay: Option<serde_json::Value>,
    patch: Option<tree_changes::Recorded>,
}

/// Runs `apply`, `status` or `undo`.
pub fn run(args: &SwitchArgs, printer: &Printer) -> Result<(), Error> {
    match &args.verb {
        Verb::Apply(args) => apply(args, printer),
        Verb::Status(args) => status(args, printer),
        Verb::Undo(args) => {
            let gone = "the overlay switches nothing any more";
            tree_changes::undo_all(args, NAME, [DECISION, CAPTURING], gone, printer)
        }
    }
}

fn apply(args: &ApplyArgs, printer: &Printer) -> Result<(), Error> {
    let package = Package::find(&args.root).map_err(trace::failure)?;
    if !args.dry_run {
        tree_changes::recover(&package, "gemmtune switch apply")?;
    }
    let detail = request(args);
    if let Some(done) = tree_changes::recorded(&package, NAME)? {
        return already(args, &package, &done, &detail, printer);
    }
    // What cannot be traced is not switched either.
    route::trace(&package).map_err(trace::failure)?;
    let source = package.read(FP8_UTILS).map_err(trace::failure)?;
    let dispatch = era::dispatch(&source).map_err(|refusal| trace::failure(refusal.into()))?;
    if switch::is_switched(&source) {
        return Err(Error::new(
            ErrorKind::Environment,
            "the tree is switched already, by a gemmtune whose ledger is gone",
        )
        .hint("reinstall this SGLang release, then switch again"));
    }
    let wish = SwitchRequest {
        to: match args.to {
            To::Ck => Target::Ck,
            To::Triton => Target::Triton,
        },
        routes: &args.route,
        arch: args.arch,
        rocm: args.rocm,
        env: !matches!(args.mode, Some(Mode::Overlay | Mode::Patch)),
    };
    let plan =
        force::plan(&dispatch, &route::safe_m(&source), &wish).map_err(|error| refused(&error))?;
    reach::both_readers(&package, dispatch.era, &plan, (wish.arch, wish.rocm))
        .map_err(trace::failure)?;
    let means = chosen(args.mode, &plan)?;
    let edit = switch::edit(&source, &dispatch, &plan, &wish).map_err(trace::failure)?;
    let mut env: serde_json::Map<String, serde_json::Value> = plan
        .env
        .iter()
        .map(|(name, value)| (name.clone(), value.clone().into()))
        .collect();
    let mut changed = Vec::new();
    let mut diff = None;
    match means {
        Means::Overlay => {
            let folder = package.overlay_folder();
            let decision = folder.join(DECISION);
            if !args.dry_run {
                let text = overlay::decision(&plan.steps);
                tree_changes::write_overlay(&folder, &decision, text.as_bytes())?;
            }
            changed.push(decision.to_string());
            let options = overlay::OverlayOptions {
                switch: Some(decision),
                ..overlay::OverlayOptions::default()
            };
            env.extend(instrument::overlay_env(&folder, &options));
        }
        Means::Patch => {
            let edits: Vec<FileEdit> = edit.into_iter().collect();
            changed.extend(edits.iter().map(|edit| edit.path.to_string()));
            diff = args
                .dry_run
                .then(|| edits.iter().map(FileEdit::diff).collect());
            if !args.dry_run && !edits.is_empty() {
                tree_changes::apply(&package, NAME, detail, &edits)?;
            }
        }
        Means::None | Means::Env | Means::Refused => {}
    }
    let applied = Applied {
        era: dispatch.era,
        means,
        detail: plan.detail,
        dry_run: args.dry_run,
        changed,
        env,
        unset: plan.unset,
        steps: plan.steps,
        diff,
    };
    if printer.is_json() {
        return printer.json(&applied);
    }
    tell(args, &applied, printer)
}

fn tell(args: &ApplyArgs, applied: &Applied, printer: &Printer) -> Result<(), Error> {
    if let Some(diff) = &applied.diff {
        printer.data(diff.as_bytes())?;
    }
    printer.say(format!("{}: {}", applied.means.as_str(), applied.detail));
    tree_changes::tell(&applied.changed, args.dry_run, printer);
    if !applied.env.is_empty() {
        printer.say("start the server with:");
        printer.say(instrument::exports(&applied.env));
    }
    for name in &applied.unset {
        printer.say(format!("and without {name}"));
    }
    if args.to == To::Ck && applied.means != Means::None {
        printer.say(
            "do not run CK without a tuned table: untuned shapes can be slower than Triton, or hang",
        );
    }
    if !applied.changed.is_empty() {
        printer.say(format!(
            "take it back with `gemmtune switch undo {}`",
            quoted(&args.root)
        ));
    }
    Ok(())
}

/// The request, as stored in the ledger.
fn request(args: &ApplyArgs) -> serde_json::Value {
    serde_json::json!({
        "to": format!("{:?}", args.to).to_lowercase(),
        "arch": args.arch.as_str(),
        "rocm": args.rocm.map(|rocm| match rocm {
            Rocm::Below72 => "<7.2",
            Rocm::From72 => ">=7.2",
        }),
        "routes": args.route,
    })
}

/// For a tree that is patched already: the same request is done, another one needs an undo first.
fn already(
    args: &ApplyArgs,
    package: &Package,
    done: &tree_changes::Recorded,
    wanted: &serde_json::Value,
    printer: &Printer,
) -> Result<(), Error> {
    if done.detail != *wanted {
        return Err(Error::new(
            ErrorKind::Environment,
            format!("the tree is switched otherwise already: {}", done.detail),
        )
        .hint(format!(
            "run `gemmtune switch undo {}` first",
            quoted(&args.root)
        )));
    }
    if printer.is_json() {
        return printer.json(&serde_json::json!({
            "means": Means::Patch,
            "detail": "in place already",
            "dry_run": args.dry_run,
            "changed": [],
            "patch": done,
            "package": package.folder,
        }));
    }
    printer.say("nothing to do: the tree is switched already");
    Ok(())
}

fn refused(error: &ForceError) -> Error {
    match error {
        ForceError::NeedsRocm(_) => Error::new(ErrorKind::Usage, error.to_string())
            .hint("add `--rocm`, such as `--rocm 7.1`"),
        ForceError::RoutesToTriton => Error::new(ErrorKind::Usage, error.to_string())
            .hint("use `--to ck` with `--route`; every other GEMM then runs Triton"),
        ForceError::WholeShapesOnly { n, k } => {
            Error::new(ErrorKind::Environment, error.to_string())
                .hint(format!("route the whole shape: `--route {n},{k}`"))
        }
        ForceError::NoName(_) => Error::new(ErrorKind::SourceNotRecognised, error.to_string())
            .hint("run `gemmtune trace` on the tree"),
    }
}

/// The means to use: the requested one if it works, else the least invasive one.
fn chosen(mode: Option<Mode>, plan: &Plan) -> Result<Means, Error> {
    let wanted = match mode {
        None => return Ok(plan.means),
        Some(Mode::Env) => Means::Env,
        Some(Mode::Overlay) => Means::Overlay,
        Some(Mode::Patch) => Means::Patch,
    };
    if plan.means == Means::None || plan.means <= wanted {
        return Ok(if plan.means == Means::None {
            Means::None
        } else {
            wanted
        });
    }
    Err(Error::new(
        ErrorKind::Environment,
        format!(
            "{} cannot do this on this tree: {}",
            wanted.as_str(),
            plan.detail
        ),
    )
    .hint(format!("use `--mode {}`", plan.means.as_str())))
}

fn status(args: &RootArgs, printer: &Printer) -> Result<(), Error> {
    let package = Package::find(&args.root).map_err(trace::failure)?;
    let source = package.read(FP8_UTILS).map_err(trace::failure)?;
    let decision = package.overlay_folder().join(DECISION);
    let status = Status {
        patched: switch::is_switched(&source),
        overlay: fs_err::read(&decision)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok()),
        patch: tree_changes::recorded(&package, NAME)?,
    };
    if printer.is_json() {
        return printer.json(&status);
    }
    let text = format!(
        "tree: {}\noverlay: {}\n",
        match (&status.patch, status.patched) {
            (Some(patch), _) => format!("switched, {}", patch.detail),
            (None, true) => "switched, and no ledger to undo it".to_owned(),
            (None, false) => "not switched".to_owned(),
        },
        if status.overlay.is_some() {
            decision.as_str()
        } else {
            "none"
        }
    );
    printer.data(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_with_and_without_a_bound() {
        let route = |text| parse_route(text).map(|route| (route.n, route.k, route.max_m));
        assert_eq!(route("512,7168"), Ok((512, 7168, None)));
        assert_eq!(route("512,7168,M<=256"), Ok((512, 7168, Some(256))));
        assert!(route("512").is_err());
        assert!(route("512,7168,M<=0").is_err());
        assert!(route("512,7168,256,1").is_err());
    }

    #[test]
    fn a_rocm_version_is_compared_as_numbers() {
        assert_eq!(parse_rocm("7.1.1"), Ok(Rocm::Below72));
        assert_eq!(parse_rocm("7.2"), Ok(Rocm::From72));
        assert_eq!(parse_rocm("7.10"), Ok(Rocm::From72));
        assert_eq!(parse_rocm("6.4.1-83"), Ok(Rocm::Below72));
        assert!(parse_rocm("7").is_err());
    }
}
