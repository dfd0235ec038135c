//! `gemmtune doctor`: whether this machine and its trees are ready for tuning, and how to fix them.

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use crate::proc::{Interrupt, Keeper};
use crate::tree::doctor::devices::Gpu;
use crate::tree::doctor::{self, Aiter, Check, Verdict, fix};
use crate::tree::git::Checkout;
use crate::tree::locate::{self, Answer, Entry, Question};
use crate::workload::config::{Config, FILE_NAME};
use crate::workload::env;

use super::printer::Printer;
use crate::run::error::{Error, ErrorKind};

/// Arguments of `gemmtune doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// The interpreter that runs the server [default: that of gemmtune.toml, else python3]
    #[arg(long)]
    python: Option<Utf8PathBuf>,
    /// An SGLang tree, instead of the one the interpreter imports
    #[arg(long, value_name = "ROOT")]
    sglang: Option<Utf8PathBuf>,
    /// An aiter tree, instead of the one the interpreter imports
    #[arg(long, value_name = "ROOT")]
    aiter: Option<Utf8PathBuf>,
    /// Realign the aiter checkout: fetch, check out, submodules, compiled modules away, reinstall
    #[arg(long)]
    fix: bool,
    /// With --fix: say the steps, and do nothing
    #[arg(long, requires = "fix")]
    dry_run: bool,
    /// With --fix: the commit to check out instead of the pin
    #[arg(long, requires = "fix", value_name = "COMMIT")]
    to: Option<String>,
    /// Take the last --fix back
    #[arg(long, conflicts_with = "fix")]
    undo_fix: bool,
}

/// Reports what is wrong, and fixes it on request.
pub fn run(args: &DoctorArgs, printer: &Printer) -> Result<(), Error> {
    let keeper = Keeper::this_binary()
        .map_err(|error| Error::to(ErrorKind::Bug, "find our own binary", error))?;
    let interrupt = super::interrupt()?;
    let config = crate::store::file::read_text(FILE_NAME.into())
        .ok()
        .and_then(|text| Config::parse(&text).ok());
    let answer = ask(args, config.as_ref(), &keeper, &interrupt);
    let package = aiter_package(args, answer.as_ref().ok());
    if args.undo_fix {
        return undo(package.as_deref(), &keeper, &interrupt, printer);
    }
    let mut checks = Vec::new();
    match &answer {
        Ok(answer) => checks.extend(doctor::interpreter(answer)),
        Err(error) => checks.push(Check {
            name: "interpreter",
            verdict: Verdict::Failure,
            found: error.to_string(),
            fix: Some("name it with `--python`".to_owned()),
        }),
    }
    match (&args.sglang, &answer) {
        (Some(root), _) => checks.extend(doctor::sglang(root)),
        (None, Ok(answer)) => match answer.folder("sglang") {
            Ok(folder) => checks.extend(doctor::sglang(folder)),
            Err(error) => checks.push(failed(
                "SGLang",
                &error,
                "name the interpreter with `--python`, or the tree with `--sglang`",
            )),
        },
        (None, Err(_)) => {}
    }
    let aiter = package
        .as_deref()
        .map(|package| doctor::look_at_aiter(package, env::variable, &keeper, &interrupt));
    match (&aiter, &answer) {
        (Some(aiter), _) => checks.extend(doctor::aiter(aiter)),
        (None, Ok(answer)) if answer.torch.hip.is_some() => {
            let hint = "install aiter, or name its tree with `--aiter`";
            checks.extend(
                answer
                    .folder("aiter")
                    .err()
                    .map(|error| failed("aiter", &error, hint)),
            );
        }
        _ => checks.push(Check {
            name: "aiter",
            verdict: Verdict::Note,
            found: "not there, and not needed without a ROCm build of torch".to_owned(),
            fix: None,
        }),
    }
    let hip = answer
        .as_ref()
        .ok()
        .and_then(|answer| answer.torch.hip.clone());
    let seen = doctor::machine::gpus(&keeper, &interrupt);
    checks.extend(doctor::machine::checks(
        &seen,
        doctor::machine::rocm(env::variable).as_deref(),
        hip.as_deref(),
        env::variable,
    ));
    if only_reference(args, config.as_ref(), answer.as_ref().ok(), &seen.gpus) {
        doctor::for_reference_alone(&mut checks);
    }
    if !printer.is_json() || args.fix {
        print_table(&checks, printer);
    }
    if args.fix {
        let Some(aiter) = &aiter else {
            return Err(
                Error::new(ErrorKind::Environment, "there is no aiter tree to realign")
                    .hint("name it with `--aiter ROOT`"),
            );
        };
        return fix(
            args,
            aiter,
            answer.as_ref().ok(),
            &keeper,
            &interrupt,
            printer,
        );
    }
    let worst = checks.iter().map(|check| check.verdict).max();
    if printer.is_json() {
        printer.json(&json!({ "checks": checks, "python": answer.as_ref().ok(), "aiter": aiter, "gpus": seen.gpus, "pin": doctor::PIN }))?;
    }
    if worst == Some(Verdict::Failure) {
        let count = checks
            .iter()
            .filter(|check| check.verdict == Verdict::Failure)
            .count();
        return Err(
            Error::new(ErrorKind::Environment, format!("{count} checks failed"))
                .hint("each failed line above says what to do; then `gemmtune doctor` again"),
        );
    }
    Ok(())
}

fn failed(name: &'static str, error: &locate::LocateError, fix: &str) -> Check {
    Check {
        name,
        verdict: Verdict::Failure,
        found: error.to_string(),
        fix: Some(fix.to_owned()),
    }
}

/// The interpreter's answer, in the environment that gemmtune.toml describes if there is one.
fn ask(
    args: &DoctorArgs,
    config: Option<&Config>,
    keeper: &Keeper,
    interrupt: &Interrupt,
) -> Result<Answer, Error> {
    let mut question = Question {
        python: args.python.clone().unwrap_or_else(|| "python3".into()),
        entry: Entry::Module,
        folder: None,
        env: Vec::new(),
    };
    if let Some(config) = config {
        question.folder.clone_from(&config.server.cwd);
        question.env = config
            .server
            .env
            .iter()
            .map(|(name, value)| (name.clone(), Some(value.clone())))
            .collect();
        question
            .env
            .extend(config.server.unset.iter().map(|name| (name.clone(), None)));
        if let (None, Some(python)) = (&args.python, &config.backend.python) {
            question.python.clone_from(python);
        }
    }
    locate::ask(keeper, &question, interrupt)
        .map_err(|error| Error::to(ErrorKind::Environment, "ask the interpreter", error))
}

/// Whether the built-in reference engine is the only candidate: either the configuration names it, or there is no
/// configuration and nothing was named, no GPU is found, and the interpreter has neither torch nor a tree.
fn only_reference(
    args: &DoctorArgs,
    config: Option<&Config>,
    answer: Option<&Answer>,
    gpus: &[Gpu],
) -> bool {
    let named = args.python.is_some() || args.sglang.is_some() || args.aiter.is_some();
    if named || args.fix {
        return false;
    }
    match config {
        Some(config) => config.backend.kind.is_built_in(),
        None => {
            gpus.is_empty()
                && answer.is_none_or(|answer| {
                    answer.torch.version.is_none()
                        && answer.folder("sglang").is_err()
                        && answer.folder("aiter").is_err()
                })
        }
    }
}

/// The aiter package: the one named, else the one that is imported.
fn aiter_package(args: &DoctorArgs, answer: Option<&Answer>) -> Option<Utf8PathBuf> {
    match &args.aiter {
        Some(root) => {
            let inside = root.join("aiter");
            let folder = if inside.is_dir() {
                inside
            } else {
                root.clone()
            };
            folder.canonicalize_utf8().ok()
        }
        None => answer
            .and_then(|answer| answer.folder("aiter").ok())
            .map(Utf8Path::to_owned),
    }
}

fn print_table(checks: &[Check], printer: &Printer) {
    let width = checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    for check in checks {
        // A word for each, so that colour is never the only indication.
        let word = match check.verdict {
            Verdict::Good => "ok     ",
            Verdict::Note => "note   ",
            Verdict::Warning => "warning",
            Verdict::Failure => "FAILED ",
        };
        printer.say(format!("{word}  {:width$}  {}", check.name, check.found));
        if let Some(fix) = &check.fix {
            printer.say(format!("         {:width$}  fix: {fix}", ""));
        }
    }
}

fn checkout_of<'a>(
    package: &Utf8Path,
    keeper: &'a Keeper,
    interrupt: &'a Interrupt,
) -> Result<Checkout<'a>, Error> {
    Checkout::of(package, keeper, interrupt).ok_or_else(|| {
        Error::new(
            ErrorKind::Environment,
            format!("`{package}` is no git checkout, so there is nothing to realign"),
        )
        .hint("install another release of aiter instead")
    })
}

fn fix(
    args: &DoctorArgs,
    aiter: &Aiter,
    answer: Option<&Answer>,
    keeper: &Keeper,
    interrupt: &Interrupt,
    printer: &Printer,
) -> Result<(), Error> {
    let checkout = checkout_of(&aiter.package, keeper, interrupt)?;
    let python = answer.map_or_else(
        || Utf8PathBuf::from("python3"),
        |answer| answer.executable.clone(),
    );
    // A tree with all capabilities stays at its commit; only what depends on it is renewed.
    let head = checkout.head().map_err(refused)?;
    let target = args
        .to
        .as_deref()
        .unwrap_or(if aiter.capabilities.missing.is_empty() {
            &head
        } else {
            doctor::PIN
        });
    let products = aiter
        .products
        .modules
        .iter()
        .chain(&aiter.products.builds)
        .chain(&aiter.products.stale_locks);
    let mut products: Vec<_> = products.cloned().collect();
    // A lock inside a build folder is moved with the folder.
    let builds = aiter.products.builds.clone();
    products.retain(|path| {
        !builds
            .iter()
            .any(|build| path != build && path.starts_with(build))
    });
    let plan = fix::plan(&checkout, target, products, &python).map_err(fix_failed)?;
    printer.say(format!(
        "\n{} is at {}; to get to {target}:",
        plan.root, plan.previous.commit
    ));
    for step in &plan.steps {
        printer.say(format!("  {step}"));
    }
    let there = checkout.commit(target).map_err(refused)?.is_some();
    if args.dry_run {
        if there
            && let Err(error) = fix::installable(&checkout, target, plan.python(keeper, interrupt))
        {
            let failure = fix_failed(error);
            printer.warn(failure.to_string());
        }
        return if printer.is_json() {
            printer.json(&plan)
        } else {
            Ok(())
        };
    }
    let done = fix::execute(&checkout, &plan, keeper, interrupt, |step| {
        printer.say(format!("> {step}"));
    })
    .map_err(fix_failed)?;
    if printer.is_json() {
        return printer.json(&json!({ "plan": plan, "done": done }));
    }
    for change in &done.packages {
        printer.say(format!("the installation changed {change}"));
    }
    printer.say("done; `gemmtune doctor` checks it, `gemmtune doctor --undo-fix` takes it back");
    Ok(())
}

fn undo(
    package: Option<&Utf8Path>,
    keeper: &Keeper,
    interrupt: &Interrupt,
    printer: &Printer,
) -> Result<(), Error> {
    let Some(package) = package else {
        return Err(Error::new(ErrorKind::Environment, "there is no aiter tree")
            .hint("name it with `--aiter ROOT`"));
    };
    let (done, left) = fix::undo(&checkout_of(package, keeper, interrupt)?, keeper, interrupt)
        .map_err(fix_failed)?;
    for one in &left {
        printer.warn(format!("not taken back in {}: {one}", done.python));
    }
    if printer.is_json() {
        return printer.json(&done);
    }
    printer.say(format!(
        "back at {}",
        done.previous
            .branch
            .as_ref()
            .unwrap_or(&done.previous.commit)
    ));
    Ok(())
}

fn refused(error: crate::tree::git::GitError) -> Error {
    Error::to(ErrorKind::Environment, "read the checkout", error)
}

fn fix_failed(error: fix::FixError) -> Error {
    let hint = match &error {
        fix::FixError::Dirty { .. } => {
            Some("commit them, or put them away with `git stash`".to_owned())
        }
        fix::FixError::StepFailed { step, .. } if step.starts_with("git fetch") => Some(
            "is the network there? a commit that was fetched elsewhere can be fetched from a path"
                .to_owned(),
        ),
        fix::FixError::CannotInstall {
            later: Some(later), ..
        } => Some(format!(
            "`--to {later}` is the oldest later commit whose requirements are there"
        )),
        fix::FixError::CannotInstall { .. } => Some(
            "no later commit that is fetched installs: fetch, and name one with `--to`".to_owned(),
        ),
        _ => None,
    };
    let failure = Error::to(ErrorKind::Environment, "realign the checkout", error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
