//! `gemmtune init`: a configuration from a launch script or a running server.

use std::io::{Read as _, Seek as _, Write as _};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use crate::proc::{Keeper, Spawn};
use crate::store::file::entries;
use crate::workload::config::{Config, FILE_NAME};
use crate::workload::container;
use crate::workload::draft::{Draft, Made};
use crate::workload::quote::{cut, quoted};
use crate::workload::role::{self, Role};
use crate::workload::script::{self, LONGEST, Surroundings};
use crate::workload::secret::masked;
use crate::workload::watch::{self, Ending, Until, WatchEvent, Watched};
use crate::workload::{env, observe};

use super::files;
use super::printer::Printer;
use crate::run::error::{Error, ErrorKind};

/// Arguments of `gemmtune init`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "gemmtune init [OPTIONS] -- COMMAND…\n       gemmtune init [OPTIONS] SCRIPT [-- ARGUMENTS…]\n       gemmtune init [OPTIONS] --pid PID"
)]
pub struct InitArgs {
    /// A simple bash script that starts the server and its benchmark: it is read, not run
    #[arg(required_unless_present_any = ["pid", "command"], conflicts_with = "pid")]
    script: Option<Utf8PathBuf>,
    /// Observe the running server with this process id instead
    #[arg(long, conflicts_with = "command")]
    pid: Option<u32>,
    /// Where to write the configuration
    #[arg(short, long, default_value = FILE_NAME)]
    output: Utf8PathBuf,
    /// Replace a configuration that is there
    #[arg(long)]
    force: bool,
    /// When to stop a command that is run and watched, besides Ctrl-C
    #[arg(long, value_enum, default_value = "bench")]
    until: Stop,
    /// The command to run and watch, as you start it: `bash launch.sh ARGS`; behind SCRIPT, that script's arguments
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Stop {
    /// The server is ready
    Ready,
    /// Its benchmarks have ended
    Bench,
    /// The command has ended by itself
    Exit,
}

/// Writes the configuration, with questions for what could not be determined.
pub fn run(args: &InitArgs, printer: &Printer) -> Result<(), Error> {
    let is_stream = files::stream(&args.output).is_some();
    if !args.force && !is_stream && args.output.exists() {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("`{}` is there already", args.output),
        )
        .hint("use `--force` to replace it, or `-o OTHER.toml`"));
    }
    // Never overwrites a script, whatever path names it, nor any file of the command.
    let named = args.command.iter().map(Utf8Path::new);
    let inputs = args.script.iter().map(Utf8PathBuf::as_path).chain(named);
    files::refuse_overwriting(&args.output, inputs)?;
    let made = made(args, printer)?;
    let draft = made.draft;
    let text = draft.to_toml(&made.origin);
    files::write(&args.output, text.as_bytes(), printer)?;
    for note in &draft.notes {
        printer.warn(note);
    }
    for question in &draft.questions {
        let needed = if question.needed {
            "needed"
        } else {
            "optional"
        };
        printer.say(format!(
            "  ? {} ({needed}): {}",
            question.name, question.why
        ));
    }
    let check = Config::parse(&text).err().map(|error| error.to_string());
    let complete = draft.is_complete() && check.is_none();
    if printer.is_json() {
        return printer.json(&json!({
            "written": args.output,
            "complete": complete,
            "questions": draft.questions,
            "notes": draft.notes,
            "check": check,
            "watched": made.watched,
        }));
    }
    let asks = draft.questions.iter().any(|question| question.needed);
    printer.say(if complete {
        format!(
            "wrote `{0}`; next: `gemmtune doctor`, then `gemmtune run {0}`",
            args.output
        )
    } else {
        format!(
            "wrote `{}`; fill in the lines that start with `# ?`",
            args.output
        )
    });
    if asks && args.script.is_some() && draft.has_server() {
        printer.say("or let it run once: `gemmtune init --force -- bash SCRIPT ARGUMENTS` writes down what is really started");
    }
    if let (true, Some(check)) = (draft.is_complete(), check) {
        printer.warn(check);
    }
    Ok(())
}

struct Outcome {
    draft: Draft,
    origin: String,
    watched: Option<serde_json::Value>,
}

fn made(args: &InitArgs, printer: &Printer) -> Result<Outcome, Error> {
    let folder = env::folder()
        .map_err(|error| Error::to(ErrorKind::Environment, "find the working directory", error))?;
    let read = |path: &Utf8Path| read_text(path).ok();
    let has_arguments = !args.command.is_empty();
    let surroundings = Surroundings {
        read: &read,
        variable: &env::variable,
        folder,
        arguments: has_arguments.then(|| args.command.clone()),
    };
    let made = Made {
        surroundings: &surroundings,
        find: &find,
        machine: machine(),
        gpu: gpu(),
        gfx: gfx(),
    };
    match (&args.script, args.pid) {
        (Some(path), _) => from_script(path, &made),
        (None, Some(pid)) => from_process(pid, &made),
        (None, None) => from_watching(args, printer, &made),
    }
}

fn from_script(path: &Utf8Path, made: &Made<'_>) -> Result<Outcome, Error> {
    let watch_instead = "let it run once instead: `gemmtune init -- bash SCRIPT ARGUMENTS` writes down what is really started";
    let text = read_text(path).map_err(|error| {
        Error::to(ErrorKind::Usage, "read the script", error).hint(watch_instead)
    })?;
    if let Some(kind) = container::manifest(path.as_str(), &text) {
        let commands = container::commands_in(&text);
        let shown = commands.iter().map(|command| format!("\n    {command}"));
        let inside = if commands.is_empty() {
            String::new()
        } else {
            format!(", which runs{}", shown.collect::<String>())
        };
        return Err(Error::new(
            ErrorKind::Usage,
            format!("`{path}` is {kind}, not a script{inside}"),
        )
        .hint(container::advice("kubectl")));
    }
    let facts = script::read(&text, path, made.surroundings).map_err(|error| {
        Error::to(ErrorKind::Usage, "understand the script", error).hint(watch_instead)
    })?;
    let name = path.file_stem().unwrap_or("workload");
    Ok(Outcome {
        draft: Draft::from_script(name, &facts, made),
        origin: format!("`{path}`"),
        watched: None,
    })
}

fn from_process(pid: u32, made: &Made<'_>) -> Result<Outcome, Error> {
    let process = observe::observe(Utf8Path::new("/proc"), pid)
        .map_err(|error| Error::to(ErrorKind::Environment, "observe the server", error))?;
    let mut argv: Vec<&str> = process.argv.iter().map(String::as_str).collect();
    if process.is_python() && !argv.is_empty() {
        argv[0] = "python";
    }
    let answer = watch::ask(pid);
    let is_server = role::role(role::looked_through(&argv)) == Some(Role::Server);
    if !is_server && answer.is_none() {
        let shown = quoted(&masked(&process.argv).join(" "));
        let wrapped =
            role::role(role::looked_through(&argv[argv.len().min(1)..])) == Some(Role::Server);
        let hint = if wrapped {
            "name the process that it started"
        } else {
            "`pgrep -f launch_server` lists servers; the one meant is the first, not its `sglang::` ranks"
        };
        return Err(Error::new(
            ErrorKind::Usage,
            format!("process {pid} is no SGLang server: it runs `{shown}`"),
        )
        .hint(hint));
    }
    Ok(Outcome {
        draft: Draft::from_process(
            &process,
            answer.as_ref(),
            &env::all().into_iter().collect(),
            made,
        ),
        origin: format!("process {pid}"),
        watched: None,
    })
}

fn from_watching(args: &InitArgs, printer: &Printer, made: &Made<'_>) -> Result<Outcome, Error> {
    let environment =
        |what: &str, error: std::io::Error| Error::to(ErrorKind::Environment, what, error);
    let interrupt = super::interrupt()?;
    let keeper =
        Keeper::this_binary().map_err(|error| environment("find gemmtune itself", error))?;
    let kept_output =
        tempfile::tempdir().map_err(|error| environment("keep the command's output", error))?;
    let log = Utf8PathBuf::try_from(kept_output.path().join("output"))
        .map_err(|error| environment("keep the command's output", std::io::Error::other(error)))?;
    let mut spawn = Spawn::new(args.command.clone(), &log);
    spawn.linger = true;
    let ours = env::all().into_iter().collect();
    let shown = cut(&masked(&args.command).join(" "), 300);
    printer.say(match args.until {
        Stop::Ready => format!("running `{shown}` until its server is ready"),
        Stop::Bench => {
            format!("running `{shown}` until its benchmark ends; Ctrl-C when you have seen enough")
        }
        Stop::Exit => format!("running `{shown}` until it ends; Ctrl-C when you have seen enough"),
    });
    let started = Instant::now();
    let mut kept = spawn
        .start(&keeper)
        .map_err(|error| Error::to(ErrorKind::Usage, "run the command", error))?;
    let mut output = Tail::of(&log);
    let until = match args.until {
        Stop::Ready => Until::Ready,
        Stop::Bench => Until::Benchmark,
        Stop::Exit => Until::Exit,
    };
    let watched = watch::watch(&mut kept, until, &interrupt, &mut |tell| {
        output.pass_on(false);
        let seconds = started.elapsed().as_secs_f64();
        match tell {
            WatchEvent::Started(seen) => printer.say(format!(
                "[init {seconds:.1} s] {}: `{}`",
                match seen.role {
                    Role::Benchmark => "a benchmark",
                    Role::Server => "a server",
                    _ => "a server that is not SGLang",
                },
                cut(&masked(&seen.process.argv).join(" "), 300)
            )),
            WatchEvent::Ready(seen) => printer.say(format!(
                "[init {seconds:.1} s] the server of process {} is ready{}",
                seen.process.pid,
                seen.answer
                    .as_ref()
                    .map_or_else(String::new, |answer| format!(
                        " on port {}",
                        answer.address.port()
                    ))
            )),
            WatchEvent::Elsewhere(tool) => printer.say(format!(
                "[init {seconds:.1} s] `{tool}` starts something elsewhere, which is not watched"
            )),
            WatchEvent::Tick => {}
        }
    });
    printer.say("ending what was started");
    let code = kept.stop(crate::proc::interrupt::Urgency::Stop, &interrupt);
    output.pass_on(true);
    let has_server = watched.of(Role::Server).next().is_some();
    if !has_server && watched.of(Role::Benchmark).next().is_none() {
        return Err(nothing(&watched, code, &shown));
    }
    let name = args
        .command
        .iter()
        .map(Utf8Path::new)
        .find(|word| word.extension() == Some("sh"))
        .or_else(|| args.command.first().map(Utf8Path::new))
        .and_then(Utf8Path::file_stem)
        .unwrap_or("workload");
    let ready = watched.of(Role::Server).any(|seen| seen.answer.is_some());
    let summary = json!({
        "servers": watched.of(Role::Server).count(),
        "benchmarks": watched.of(Role::Benchmark).count(),
        "ready": ready,
        "ended_by": match watched.ending {
            Ending::Reached => "reached",
            Ending::Exited => "exited",
            Ending::ServerEnded => "server ended",
            Ending::Interrupted => "interrupted",
        },
    });
    Ok(Outcome {
        draft: Draft::from_watched(name, &watched, &ours, made),
        origin: format!("what `{shown}` started"),
        watched: Some(summary),
    })
}

/// Why watching found nothing, and how to proceed.
fn nothing(watched: &Watched, code: u8, shown: &str) -> Error {
    if let Some((tool, argv)) = watched.elsewhere.first() {
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        let inside = container::inside(tool, &words);
        return Error::new(
            ErrorKind::Environment,
            format!(
                "`{shown}` starts its server elsewhere, with `{tool}`{}",
                inside.map_or_else(String::new, |inside| format!(": {inside}"))
            ),
        )
        .hint(container::advice(tool));
    }
    let how = match watched.ending {
        Ending::Interrupted => "before it was stopped".to_owned(),
        _ => format!("and ended with code {code}"),
    };
    Error::new(
        ErrorKind::WorkloadFailed,
        format!("`{shown}` started no SGLang server {how}"),
    )
    .hint("run it without gemmtune first; a server is recognised by `sglang.launch_server`, `sglang serve`, or its answers")
}

/// Forwards a command's output as it is written.
struct Tail {
    path: Utf8PathBuf,
    file: Option<fs_err::File>,
    passed: Option<Instant>,
}

impl Tail {
    fn of(path: &Utf8Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            passed: None,
        }
    }

    /// At most ten times a second, which is as fast as a person reads, unless it is the last time.
    fn pass_on(&mut self, last: bool) {
        let is_due = self
            .passed
            .is_none_or(|passed| passed.elapsed() > Duration::from_millis(100));
        if !is_due && !last {
            return;
        }
        self.passed = Some(Instant::now());
        if self.file.is_none() {
            self.file = fs_err::File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else {
            return;
        };
        let mut bytes = Vec::new();
        if file.take(1 << 20).read_to_end(&mut bytes).is_ok() && !bytes.is_empty() {
            // The command's own output, as it would have been on the terminal.
            let _ = std::io::stderr().lock().write_all(&bytes);
        }
        let _ = file.stream_position();
    }
}

/// The text of a script: a regular file of ordinary size.
fn read_text(path: &Utf8Path) -> std::io::Result<String> {
    let other = |why: &str| std::io::Error::other(format!("read `{path}`: {why}"));
    let data = fs_err::metadata(path)?;
    if !data.is_file() {
        return Err(other("it is no regular file"));
    }
    if data.len() > LONGEST as u64 {
        return Err(other(&format!(
            "it has {} bytes, and launch scripts have less than {LONGEST}",
            data.len()
        )));
    }
    fs_err::read_to_string(path)
}

/// The backend that this machine's GPUs allow, judged by the driver's device files.
fn machine() -> Option<(&'static str, &'static str)> {
    if Utf8Path::new("/dev/kfd").exists() {
        return Some(("aiter", "this machine has AMD GPUs (/dev/kfd)"));
    }
    Utf8Path::new("/dev/nvidiactl").exists().then_some((
        "sglang-families",
        "this machine has NVIDIA GPUs (/dev/nvidiactl), and the server chooses its kernel itself: on Hopper DeepGEMM, which reads no table",
    ))
}

/// The first NVIDIA GPU of this machine, by the name that its driver gives it.
pub(super) fn gpu() -> Option<String> {
    let files = entries(Utf8Path::new("/proc/driver/nvidia/gpus")).ok()?;
    let text = files
        .first()
        .and_then(|gpu| fs_err::read_to_string(gpu.path().join("information")).ok())?;
    model(&text)
}

/// The architecture of the first AMD GPU of this machine, as reported by the kernel driver.
fn gfx() -> Option<String> {
    let nodes = entries(Utf8Path::new("/sys/class/kfd/kfd/topology/nodes")).ok()?;
    nodes
        .iter()
        .find_map(|node| target(&fs_err::read_to_string(node.path().join("properties")).ok()?))
}

/// The architecture in a node's properties: `gfx_target_version 90402` is gfx942, the last two numbers in hexadecimal (Linux,
/// `amdkfd/kfd_device.c`); a CPU's is 0.
fn target(properties: &str) -> Option<String> {
    let line = properties
        .lines()
        .find_map(|line| line.strip_prefix("gfx_target_version "))?;
    let version: u32 = line.trim().parse().ok().filter(|version| *version > 0)?;
    let (major, minor, step) = (version / 10_000, version / 100 % 100, version % 100);
    Some(format!("gfx{major}{minor:x}{step:x}"))
}

/// The model that the driver's file on a GPU names.
fn model(information: &str) -> Option<String> {
    let line = information
        .lines()
        .find_map(|line| line.strip_prefix("Model:"))?;
    Some(line.trim().to_owned()).filter(|name| !name.is_empty())
}

/// The first executable file of that name on the path.
pub(super) fn find(program: &str, path: &str) -> Option<Utf8PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let candidates = path
        .split(':')
        .filter(|folder| !folder.is_empty())
        .map(|folder| Utf8Path::new(folder).join(program));
    candidates.into_iter().find(|file| {
        fs_err::metadata(file)
            .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_file_names_the_gpu() {
        let text = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 20\n";
        assert_eq!(model(text).as_deref(), Some("NVIDIA H200"));
        assert_eq!(model("IRQ: 20\n"), None);
    }

    #[test]
    fn the_drivers_number_is_an_architecture() {
        for (version, gfx) in [
            ("90402", Some("gfx942")),
            ("90500", Some("gfx950")),
            ("90010", Some("gfx90a")),
            ("0", None),
        ] {
            let text = format!("cpu_cores_count 0\ngfx_target_version {version}\nvendor_id 4098\n");
            assert_eq!(target(&text).as_deref(), gfx);
        }
    }
}
