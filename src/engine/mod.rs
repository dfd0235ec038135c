//! The loop: it gets the next step from the pure `stage::next`, does it, and records what happened.
//!
//! The journal is written before the effect. A stage that was started and has no recorded end runs again as the next
//! attempt; what it had made durable (finished trials, tuned shapes) is not repeated. The engine never prints: it
//! notifies an observer.

pub(crate) mod budget;
pub mod deadline;
pub(crate) mod in_place;
mod neighbours;
mod port;
pub mod ports;
pub mod server;
mod stages;
mod trial;

#[cfg(feature = "cli")] // used by `probe RUN`
pub(crate) use stages::inspection;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use camino::Utf8Path;

use ports::{Backend, FindBackend};

use crate::proc::{Interrupt, Keeper, quoted, tree};
use crate::run::documents::Document;
use crate::run::event::{Event, FORMAT, Header, Notice, Progress};
use crate::run::stage::{Action, RunMode, Stage, State, next};
use crate::store::digest::short as digest;
use crate::store::file::{self, write_atomic, write_private};
use crate::store::journal::{Journal, JournalError, Record};
use crate::store::lock::{Holder, Lock, LockError, host_and_boot};
use crate::store::run_dir::RunDir;
use crate::workload::config::Config;
use crate::workload::env;
use crate::workload::secret::Secrets;

use crate::run::error::{Error, ErrorKind};

/// Set to the run folder in every process that a run starts. A resumed run uses it to find processes left by a killed
/// one, although their keepers should have ended them already.
pub const RUN_VARIABLE: &str = "GEMMTUNE_RUN";

/// Name of the run folder in a run's identity.
const FOLDER: &str = "run folder";

/// How an invocation of the loop ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The report is written.
    Complete,
    /// The requested stage is done.
    Paused,
}

/// One run of the loop, locked for this process.
pub struct Engine<'a> {
    run: RunDir,
    config: Config,
    backend: Backend,
    keeper: Keeper,
    interrupt: Interrupt,
    host: String,
    journal: Journal,
    state: State,
    observer: &'a mut dyn FnMut(&Notice),
    secrets: Secrets,
    command: String,
    _lock: Lock,
}

/// What an engine needs from outside the run folder.
pub struct Surroundings<'a> {
    /// Finds the server and the kernels to tune.
    pub backend: FindBackend,
    pub keeper: Keeper,
    /// The user's requests to stop.
    pub interrupt: Interrupt,
    pub observer: &'a mut dyn FnMut(&Notice),
    /// The command line, reported to a process that finds the run locked.
    pub command: String,
}

impl<'a> Engine<'a> {
    /// Starts a run of `config` in the new folder `run`. Paths in `config` must be absolute.
    pub fn begin(run: RunDir, config: Config, with: Surroundings<'a>) -> Result<Self, Error> {
        let lock = take_lock(&run, &with.command)?;
        let text = config.to_toml();
        // A configuration may contain keys and tokens, which the server needs.
        write_private(&run.config(), text.as_bytes()).map_err(|error| Error::file(&error))?;
        let header = Header {
            format: FORMAT,
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            identity: BTreeMap::from([
                ("configuration".to_owned(), digest(text.as_bytes())),
                (FOLDER.to_owned(), run.path().to_string()),
            ]),
        };
        let journal = Journal::create(&run.journal()).map_err(|error| journal_error(&error))?;
        let mut engine = Self::new(run, config, journal, State::default(), with, lock)?;
        engine.record(Event::RunStarted { header })?;
        Ok(engine)
    }

    /// Continues the run in `run`.
    pub fn resume(run: RunDir, with: Surroundings<'a>) -> Result<Self, Error> {
        let lock = take_lock(&run, &with.command)?;
        let (journal, records) =
            Journal::open::<Event>(&run.journal()).map_err(|error| journal_error(&error))?;
        let config = config_of(&run, &records)?;
        let state = State::fold(records.iter().map(|record| &record.event));
        refuse_copy(&state, &run)?;
        let mut engine = Self::new(run, config, journal, state, with, lock)?;
        engine.end_leftovers()?;
        let event = Event::RunResumed {
            host: engine.host.clone(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        engine.record(event)?;
        Ok(engine)
    }

    fn new(
        run: RunDir,
        config: Config,
        journal: Journal,
        state: State,
        with: Surroundings<'a>,
        lock: Lock,
    ) -> Result<Self, Error> {
        let backend = (with.backend)(&config, &with.keeper)?;
        Ok(Self {
            secrets: Secrets::of(&config, env::all()),
            command: with.command,
            run,
            config,
            backend,
            keeper: with.keeper,
            interrupt: with.interrupt,
            host: host_and_boot(),
            journal,
            state,
            observer: with.observer,
            _lock: lock,
        })
    }

    /// Runs stages up to and including `until`.
    pub fn run(&mut self, until: Stage) -> Result<Finish, Error> {
        let _place = self.meet_neighbours()?;
        let mode = if self.config.compare.only_noise {
            RunMode::OnlyNoise
        } else {
            RunMode::Full
        };
        loop {
            match next(&self.state, mode, until) {
                Action::Finish => return Ok(Finish::Complete),
                Action::Pause => return Ok(Finish::Paused),
                Action::Start { stage, attempt } => {
                    self.identify(self.backend.server.surroundings())?;
                    self.perform(stage, attempt)?;
                }
            }
        }
    }

    /// The current state of the run.
    pub fn state(&self) -> &State {
        &self.state
    }

    fn perform(&mut self, stage: Stage, attempt: u32) -> Result<(), Error> {
        if self.interrupt.is_raised() {
            self.record(Event::Interrupted { stage })?;
            return Err(Error::interrupted());
        }
        if stage.serves() {
            self.wait_for_port()?;
        }
        self.record(Event::StageStarted { stage, attempt })?;
        let started = Instant::now();
        let result = stages::perform(self, stage).map_err(|error| self.masked(error));
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(done) => self.record(Event::StageFinished {
                stage,
                attempt,
                seconds,
                summary: done.summary,
                nothing_to_gain: done.nothing_to_gain,
            }),
            Err(error) => {
                self.record(if error.kind() == ErrorKind::Interrupted {
                    Event::Interrupted { stage }
                } else {
                    Event::StageFailed {
                        stage,
                        attempt,
                        seconds,
                        reason: error.to_string(),
                    }
                })?;
                // If something could not be put in place or verified, nothing stays deployed.
                let placing = matches!(stage, Stage::Deploy | Stage::Verify);
                if placing && error.kind() != ErrorKind::Interrupted {
                    self.undo(&error.to_string())?;
                }
                Err(error)
            }
        }
    }

    /// What the run has deployed, in words.
    pub fn deployed(&self) -> Result<Vec<String>, Error> {
        stages::deployed(self)
    }

    /// Undoes the deployment and records `reason`; the stages from `deploy` on are then pending again.
    pub fn undo(&mut self, reason: &str) -> Result<(), Error> {
        stages::undo(self)?;
        self.record(Event::Undone {
            reason: reason.to_owned(),
        })
    }

    fn record(&mut self, event: Event) -> Result<(), Error> {
        let record = Record {
            at: jiff::Timestamp::now(),
            event,
        };
        self.journal
            .append(&record)
            .map_err(|error| journal_error(&error))?;
        self.state.apply(&record.event);
        (self.observer)(&Notice::Recorded(record.event));
        Ok(())
    }

    fn progress(&mut self, progress: Progress) {
        (self.observer)(&Notice::Progress(progress));
    }

    /// Reports what `stage` is doing, where it takes a while and has no steps to count.
    fn stage_progress(&mut self, stage: Stage, doing: &str) {
        self.progress(Progress {
            stage,
            doing: doing.to_owned(),
            steps: None,
            eta_seconds: None,
            passing: false,
        });
    }

    fn remark(&mut self, text: impl Into<String>) {
        (self.observer)(&Notice::Remark(text.into()));
    }

    /// An error with secrets masked, because it may quote a server's log.
    fn masked(&self, error: Error) -> Error {
        error.rewritten(|text| self.secrets.mask(text).into_owned())
    }

    /// Waits until a server that was killed with an earlier process has released its port. This is done before the
    /// stage begins, because a port that stays in use says nothing about the deployment.
    fn wait_for_port(&self) -> Result<(), Error> {
        let is_first = self.state.trials().is_empty();
        let patience = if is_first {
            Duration::ZERO
        } else {
            port::PATIENCE
        };
        port::wait_for_port(self.config.server.port, patience, &self.interrupt)
    }

    /// Writes a document of the run without secrets.
    fn write_masked(&self, path: &Utf8Path, document: &impl serde::Serialize) -> Result<(), Error> {
        let mut document = serde_json::to_value(document)
            .map_err(|error| Error::new(ErrorKind::Bug, format!("`{path}`: {error}")))?;
        self.secrets.mask_json(&mut document);
        write_json(path, &document)
    }

    /// Refuses to share a GPU with another run, and reports other runs on the host, because runs disturb each other's
    /// measurements.
    fn meet_neighbours(&mut self) -> Result<Option<neighbours::Place>, Error> {
        let this = neighbours::Run::of(&self.config, &self.command);
        // A host without a folder for temporary files has nowhere to register.
        let Some((place, others)) =
            neighbours::folder().and_then(|folder| neighbours::join(&folder, &this).ok())
        else {
            return Ok(None);
        };
        for other in &others {
            if let Some(device) = this.shares(other) {
                return Err(Error::new(
                    ErrorKind::Environment,
                    format!(
                        "another run is active on the same GPUs ({device}): {}",
                        other.holder
                    ),
                )
                .hint("wait for it, or give each run GPUs of its own with HIP_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES"));
            }
            self.remark(format!(
                "another run is active on this host, and each of the two measures the load of the other: {}",
                other.holder
            ));
        }
        Ok(Some(place))
    }

    /// Records facts about the installation; an error if a recorded one has changed.
    fn identify(&mut self, facts: BTreeMap<String, String>) -> Result<(), Error> {
        let mut fresh = BTreeMap::new();
        for (name, found) in facts {
            match self.state.identity().get(&name) {
                None => {
                    fresh.insert(name, found);
                }
                Some(recorded) if *recorded == found => {}
                Some(recorded) => {
                    return Err(Error::new(
                        ErrorKind::NotResumable,
                        format!("{name} was `{recorded}` when this run began and is `{found}` now"),
                    )
                    .hint("begin a new run: `gemmtune run --new`"));
                }
            }
        }
        if fresh.is_empty() {
            Ok(())
        } else {
            self.record(Event::Identified { identity: fresh })
        }
    }

    /// Waits for processes of this run that a killed gemmtune left, then ends them.
    fn end_leftovers(&mut self) -> Result<(), Error> {
        let value = self.run.path().as_str().to_owned();
        let alive = || tree::marked(RUN_VARIABLE, &value);
        if alive().is_empty() {
            return Ok(());
        }
        self.remark("ending what the interrupted run left running");
        // Their keepers are already ending them within their grace period; processes without a keeper are not waited
        // for.
        let until = Instant::now() + Duration::from_secs(15);
        while Instant::now() < until && alive().into_iter().any(tree::is_keeper) {
            if self.interrupt.sleep(Duration::from_millis(50)) {
                return Err(Error::interrupted());
            }
        }
        let left = tree::kill_all(alive);
        if left.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Environment,
            format!("processes {left:?} of the interrupted run cannot be killed"),
        ))
    }
}

/// The configuration that a run was started with, checked against the digest in its journal.
fn config_of(run: &RunDir, records: &[Record<Event>]) -> Result<Config, Error> {
    let text = file::read_text(&run.config()).map_err(|error| Error::file(&error))?;
    let Some(Event::RunStarted { header }) = records.first().map(|record| &record.event) else {
        return Err(Error::new(
            ErrorKind::NotResumable,
            format!("`{}` does not begin with a header", run.journal()),
        )
        .hint("begin a new run: `gemmtune run --new`"));
    };
    check_header(header, text.as_bytes(), run)?;
    Config::parse(&text).map_err(|error| Error::caused(ErrorKind::NotResumable, &error))
}

/// Why a run's records can no longer be relied on, if that is so.
pub fn damage(run: &RunDir) -> Option<Error> {
    read_events(run)
        .and_then(|records| config_of(run, &records))
        .err()
}

/// Undoes what is in the ledger of `run`, for a run with [`damage`]; returns what was undone, in words. With `dry`
/// nothing is touched.
pub fn undo_damaged(run: &RunDir, command: &str, dry: bool) -> Result<Vec<String>, Error> {
    let _lock = take_lock(run, command)?;
    let changes = stages::in_ledger(run)?;
    if !dry {
        stages::take_back(run)?;
    }
    Ok(changes)
}

fn take_lock(run: &RunDir, command: &str) -> Result<Lock, Error> {
    Lock::take(&run.lock(), &Holder::this_process(command)).map_err(|error| match &error {
        LockError::Held { .. } => Error::caused(ErrorKind::NotResumable, &error).hint(format!(
            "watch it with `gemmtune status {}`",
            quoted(run.path())
        )),
        LockError::Io { .. } => Error::caused(ErrorKind::Environment, &error),
    })
}

fn check_header(header: &Header, config: &[u8], run: &RunDir) -> Result<(), Error> {
    if header.format > FORMAT {
        return Err(Error::new(
            ErrorKind::NotResumable,
            format!(
                "`{}` was written by gemmtune {} in format {}, and this version writes format {FORMAT}",
                run.path(),
                header.tool_version,
                header.format
            ),
        )
        .hint("go on with the newer gemmtune"));
    }
    let found = digest(config);
    match header.identity.get("configuration") {
        Some(recorded) if *recorded != found => Err(Error::new(
            ErrorKind::NotResumable,
            format!("configuration was `{recorded}` when this run began and is `{found}` now"),
        )
        .hint(format!("restore {} or begin a new run", run.config()))),
        _ => Ok(()),
    }
}

/// Documents of a run name files in its folder, so a copy would serve, and undo, what the original deployed.
fn refuse_copy(state: &State, run: &RunDir) -> Result<(), Error> {
    match state.identity().get(FOLDER) {
        Some(begun) if begun != run.path() => Err(Error::new(
            ErrorKind::NotResumable,
            format!(
                "{} is a copy of a run that began in {begun}, and names files there",
                run.path()
            ),
        )
        .hint(format!(
            "go on there, or move it there; `gemmtune report {}` works on a copy",
            quoted(run.path())
        ))),
        _ => Ok(()),
    }
}

fn journal_error(error: &JournalError) -> Error {
    match error {
        JournalError::Io { .. } => Error::caused(ErrorKind::Environment, error),
        JournalError::Damaged { .. } => Error::caused(ErrorKind::NotResumable, error)
            .hint("`gemmtune undo` takes back what the run changed; then begin a new one: `gemmtune run --new`"),
    }
}

/// Reads the events of a run without locking or changing it.
pub fn read_events(run: &RunDir) -> Result<Vec<Record<Event>>, Error> {
    Journal::read(&run.journal()).map_err(|error| journal_error(&error))
}

/// Reads a stage's document.
fn read_document<D: Document>(run: &RunDir) -> Result<D, Error> {
    read_json(&D::path(run))
}

/// Writes a stage's document.
fn write_document<D: Document>(run: &RunDir, document: &D) -> Result<(), Error> {
    write_json(&D::path(run), document)
}

/// Reads a document in JSON.
fn read_json<T: serde::de::DeserializeOwned>(path: &Utf8Path) -> Result<T, Error> {
    let text = file::read_text(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => spoilt(format!("`{path}` is gone")),
        _ => Error::file(&error),
    })?;
    serde_json::from_str(&text).map_err(|error| spoilt(format!("`{path}` does not parse: {error}")))
}

/// The error for a document of a finished stage that is not as the stage left it. Documents are written atomically,
/// so something else changed it.
fn spoilt(reason: String) -> Error {
    Error::new(ErrorKind::NotResumable, reason)
        .hint("put the file back, or begin a new run: `gemmtune run --new`")
}

/// Writes a document for later stages and for readers.
fn write_json(path: &Utf8Path, document: &impl serde::Serialize) -> Result<(), Error> {
    let mut text = serde_json::to_vec_pretty(document)
        .map_err(|error| Error::new(ErrorKind::Bug, format!("`{path}`: {error}")))?;
    text.push(b'\n');
    write_atomic(path, &text).map_err(|error| Error::file(&error))
}
