//! `gemmtune profile`: where a served step's time goes, from traces of torch.profiler.

use std::fmt::Write as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use super::printer::Printer;
use crate::log::input;
use crate::profile::{self, Phase, PhaseProfile, Profile, ProfileError};
use crate::run::error::{Error, ErrorKind};

/// Arguments of `gemmtune profile`.
#[derive(Debug, clap::Args)]
pub struct ProfileArgs {
    /// Traces of torch.profiler (`*.trace.json`, also gzip), one a rank, or folders of them
    ///
    /// SGLang writes them where `/start_profile` asks for the activity GPU; with CPU as well, releases from 0.5.11 on name
    /// their steps.
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<Utf8PathBuf>,
}

#[derive(Serialize)]
struct Document {
    /// One for each device of each trace.
    profiles: Vec<Profile>,
    /// For each phase the rank that the others wait for.
    slowest: Vec<Slowest>,
}

#[derive(Serialize)]
struct Slowest {
    phase: Phase,
    rank: String,
    /// The conclusion from its profile, in a sentence.
    says: String,
}

/// Reads the traces and prints where the time of a step goes.
pub fn run(args: &ProfileArgs, printer: &Printer) -> Result<(), Error> {
    let mut profiles = Vec::new();
    for file in traces(&args.traces)? {
        let trace = profile::read(&file).map_err(|error| refused(&error))?;
        profiles.extend(profile::profiles(
            &trace,
            file.file_name().unwrap_or_default(),
        ));
    }
    let document = Document {
        slowest: slowest(&profiles),
        profiles,
    };
    if printer.is_json() {
        return printer.json(&document);
    }
    let mut text = String::new();
    for profile in &document.profiles {
        write_profile(&mut text, profile);
    }
    let several = document.profiles.len() > 1;
    for found in &document.slowest {
        let of = if several {
            format!("{}: ", found.rank)
        } else {
            String::new()
        };
        let _ = writeln!(text, "{of}{}", found.says);
    }
    printer.data(text.as_bytes())
}

/// The files that were named, and those in named folders whose names are a trace's.
fn traces(paths: &[Utf8PathBuf]) -> Result<Vec<Utf8PathBuf>, Error> {
    let mut found = Vec::new();
    for path in paths {
        let is_folder = path.is_dir();
        let files = input::files(path).map_err(|error| {
            Error::to(ErrorKind::Usage, &format!("find traces in `{path}`"), error)
        })?;
        let before = found.len();
        found.extend(
            files
                .into_iter()
                .filter(|file| !is_folder || is_trace(file)),
        );
        if found.len() == before {
            return Err(
                Error::new(ErrorKind::Usage, format!("`{path}` holds no traces"))
                    .hint("traces are called *.trace.json or *.trace.json.gz; name other files themselves"),
            );
        }
    }
    Ok(found)
}

/// Whether a file in a folder is a rank's trace: SGLang's merged one contains the same kernels again.
fn is_trace(file: &Utf8Path) -> bool {
    let name = file.file_name().unwrap_or_default();
    !name.starts_with("merged")
        && (name.ends_with(".trace.json") || name.ends_with(".trace.json.gz"))
}

fn refused(error: &ProfileError) -> Error {
    let hint = match error {
        ProfileError::NoKernels(_) => {
            "record with {\"activities\": [\"CPU\", \"GPU\"]} while the server serves"
        }
        ProfileError::Torn { .. } => "wait until the server has written it, or record it again",
        ProfileError::TooLarge { .. } => "record with a smaller `num_steps`",
        _ => "give traces that torch.profiler exported (`export_chrome_trace`), one a rank",
    };
    Error::caused(ErrorKind::Usage, error).hint(hint)
}

/// For each phase that a profile has, the slowest rank.
fn slowest(profiles: &[Profile]) -> Vec<Slowest> {
    [Phase::Decode, Phase::Prefill, Phase::Mixed, Phase::All]
        .into_iter()
        .filter_map(|phase| {
            let slowest = profile::slowest(profiles, phase)?;
            let found = slowest.phases.iter().find(|found| found.phase == phase)?;
            Some(Slowest {
                phase,
                rank: slowest.rank.clone(),
                says: found.sentence(""),
            })
        })
        .collect()
}

fn write_profile(text: &mut String, profile: &Profile) {
    let device = profile
        .device
        .as_ref()
        .map_or_else(String::new, |device| format!(" on {device}"));
    let _ = writeln!(text, "{}{device} ({})", profile.rank, profile.file);
    for phase in &profile.phases {
        write_phase(text, phase);
    }
}

fn write_phase(text: &mut String, phase: &PhaseProfile) {
    let _ = writeln!(text, "  {}", phase.describe());
    let line = |text: &mut String, name: &str, us: f64, more: &str| {
        let share = us / phase.step_us * 100.0;
        let line = format!("    {name:<26} {share:>5.1} %  {us:>10.1} µs  {more}");
        let _ = writeln!(text, "{}", line.trim_end());
    };
    for part in &phase.operations {
        let families: Vec<&str> = part
            .families
            .iter()
            .take(3)
            .map(|family| family.family.as_str())
            .collect();
        line(text, part.operation.name(), part.us, &families.join(", "));
    }
    line(text, "idle", phase.idle_us, "");
    for kernel in &phase.unknown {
        let _ = writeln!(text, "    not known: {:.1} µs  {}", kernel.us, kernel.name);
    }
}
