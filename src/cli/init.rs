//! `gemmtune init`: a configuration from a launch script or a running server.

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use crate::store::file::write_atomic;
use crate::workload::config::{Config, FILE_NAME};
use crate::workload::draft::Draft;
use crate::workload::script::{self, Surroundings};
use crate::workload::{env, observe};

use super::printer::Printer;
use crate::run::error::{Error, ErrorKind};

/// Arguments of `gemmtune init`.
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// The bash script that starts the server and its benchmark
    #[arg(required_unless_present = "pid", conflicts_with = "pid")]
    script: Option<Utf8PathBuf>,
    /// Observe the running server with this process id instead
    #[arg(long)]
    pid: Option<u32>,
    /// Where to write the configuration
    #[arg(short, long, default_value = FILE_NAME)]
    output: Utf8PathBuf,
    /// Replace a configuration that is there
    #[arg(long)]
    force: bool,
}

/// Writes the configuration, and asks by name for what it could not tell.
pub fn run(args: &InitArgs, printer: &Printer) -> Result<(), Error> {
    if !args.force && args.output.exists() {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("`{}` is there already", args.output),
        )
        .hint("use `--force` to replace it, or `-o OTHER.toml`"));
    }
    let (draft, origin) = draft(args)?;
    let text = draft.to_toml(&origin);
    write_atomic(&args.output, text.as_bytes())
        .map_err(|error| Error::to(ErrorKind::Environment, "write the configuration", error))?;
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
        }));
    }
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
    if let (true, Some(check)) = (draft.is_complete(), check) {
        printer.warn(check);
    }
    Ok(())
}

fn draft(args: &InitArgs) -> Result<(Draft, String), Error> {
    let folder = env::folder()
        .map_err(|error| Error::to(ErrorKind::Environment, "find the working directory", error))?;
    let read = |path: &Utf8Path| crate::store::file::read_text(path).ok();
    let surroundings = Surroundings {
        read: &read,
        variable: &env::variable,
        folder,
    };
    match (&args.script, args.pid) {
        (Some(path), _) => {
            let text = crate::store::file::read_text(path)
                .map_err(|error| Error::to(ErrorKind::Usage, "read the script", error))?;
            let facts = script::read(&text, path, &surroundings).map_err(|error| {
                Error::to(ErrorKind::Usage, "understand the script", error)
                    .hint("start the server, then `gemmtune init --pid PID` reads what really runs")
            })?;
            let name = path.file_stem().unwrap_or("workload");
            Ok((
                Draft::from_script(name, &facts, &surroundings, &find),
                format!("`{path}`"),
            ))
        }
        (None, Some(pid)) => {
            let process = observe::observe(Utf8Path::new("/proc"), pid)
                .map_err(|error| Error::to(ErrorKind::Environment, "observe the server", error))?;
            Ok((
                Draft::from_process(&process, &surroundings, &find),
                format!("process {pid}"),
            ))
        }
        (None, None) => Err(Error::new(
            ErrorKind::Usage,
            "neither a script nor a process was given",
        )),
    }
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
