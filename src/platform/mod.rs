//! What differs between the engines gemmtune can tune, behind one seam.
//!
//! A platform answers questions and does single steps; the order of things, the journal and the
//! trials are the engine's.

mod aiter;
mod contest;
mod reference;
mod sglang_triton;
mod site;

use std::collections::{BTreeMap, BTreeSet};

pub use contest::{Contest, Finding, Gain};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::engine::server::Environment;
use crate::log::summary::LogSummary;
use crate::plan::cost::Cost;
use crate::plan::fold::Fold;
use crate::probe::ran::Ran;
use crate::proc::{Interrupt, Keeper};
use crate::run::error::{Error, ErrorKind};
use crate::shape::{Op, Shape};
use crate::store::journal::JournalError;
use crate::store::lock::LockError;
use crate::store::run_dir::RunDir;
use crate::table::aiter::Table;
use crate::table::lookup::Resolver;
use crate::table::revision::Revision;
use crate::table::roofline::Device;
use crate::table::sglang_json::{Config, FileName};
use crate::tune::clocks::Clocks;
use crate::tune::results::{ResultsError, Row};
use crate::tune::{TuneError, TuneEvent, TuneOutcome};
use crate::workload::config::{self, BackendKind};

/// What the inspect stage found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// Facts that must not change while the run lasts.
    pub identity: BTreeMap<String, String>,
    /// Operation that will be tuned.
    pub op: Op,
    /// Architecture as the tables name it.
    pub gfx: String,
    /// Compute units as the tables count them.
    pub cu_num: u32,
    /// The kernel path that serves the operation today, in words.
    pub path: String,
    /// The server's function that was seen to reach the operation, once the workload was captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linear: Option<String>,
    /// Table the environment uses before tuning, if any.
    pub table: Option<Utf8PathBuf>,
    /// Worth knowing.
    pub remarks: Vec<String>,
}

/// What the deploy stage did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    /// Environment of the tuned arm, on top of the baseline's.
    pub env: BTreeMap<String, String>,
    /// Variables of the baseline that the tuned arm must not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unset: Vec<String>,
    /// What a reader of the result has to know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The one table deployed.
    pub table: Utf8PathBuf,
    /// Its content digest.
    pub digest: String,
    /// Rows in it.
    pub rows: usize,
    /// Files and folders that were not there before and appear when the deployment is used: build products, which go
    /// with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub appear: Vec<Utf8PathBuf>,
    /// What undo takes back, in words.
    pub takes_back: Vec<String>,
    /// Whether the next server start may build code.
    pub may_build: bool,
}

impl Deployment {
    /// What the tuned arm's environment differs by.
    pub fn environment(&self) -> Environment {
        let unset = self.unset.iter().map(|name| (name.clone(), None));
        let set = self.env.iter();
        unset
            .chain(set.map(|(name, value)| (name.clone(), Some(value.clone()))))
            .collect()
    }
}

/// The deployed operation against a reference in higher precision, on one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayoutCheck {
    /// Tokens.
    pub m: u32,
    /// Output features.
    pub n: u32,
    /// Input features.
    pub k: u32,
    /// Kernel that ran.
    pub kernel: String,
    /// ‖y − ref‖ / ‖ref‖; absent when the output was not finite.
    pub relative_error: Option<f64>,
    /// The largest error accepted.
    pub limit: f64,
}

impl LayoutCheck {
    /// Whether the numbers are right.
    pub fn passes(&self) -> bool {
        self.relative_error.is_some_and(|error| error <= self.limit)
    }
}

/// How long a deployed kernel takes, against what the tuner measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelTime {
    /// The problem.
    pub shape: Shape,
    /// The tuner's time, µs.
    pub tuned_us: f64,
    /// The deployed operation's, µs, in a process of its own; absent where it could not be timed.
    pub us: Option<f64>,
    /// What `us` is a time of: `device` or `wall`.
    pub clock: String,
    /// The device's name of the kernel that ran longest, where there is one.
    #[serde(default)]
    pub kernel: Option<String>,
}

impl KernelTime {
    /// How far the two may be apart and count as the same kernel.
    pub const TOLERANCE: f64 = 0.03;

    /// Whether the deployed operation takes the time that was tuned.
    pub fn agrees(&self) -> bool {
        self.us
            .is_some_and(|us| (us / self.tuned_us - 1.0).abs() <= Self::TOLERANCE)
    }
}

/// What a fresh process found about the deployed operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Probed {
    /// Its numbers.
    pub layout: Vec<LayoutCheck>,
    /// Its times.
    pub times: Vec<KernelTime>,
    /// The modules it loaded.
    pub modules: Vec<Module>,
    /// What that says of the kernels that ran.
    pub ran: Ran,
}

/// A compiled module that the process loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// The file.
    pub path: Utf8PathBuf,
    /// Of its bytes.
    pub digest: String,
    /// Whether it is asked for a kernel by name; otherwise a table is compiled into it.
    pub by_name: bool,
}

/// What the tune stage found, in the form later stages and the report read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// The device, in words.
    pub device: String,
    /// One row for every shape that was raced.
    pub rows: Vec<Row>,
    /// Shapes without a winner, with the reason.
    pub failed: Vec<String>,
    /// Shapes the budget left out.
    pub not_reached: Vec<Shape>,
    /// Candidates that fault, hang or compute wrong numbers, with the evidence.
    pub quarantined: Vec<String>,
    /// What was lost for good: why a device gave up, or a library of which no candidate was measured.
    #[serde(default)]
    pub lost: Vec<String>,
    /// What serves each planned shape today against its row; none where that was not timed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contests: Vec<Contest>,
    /// What a reader of the result has to know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// Files of the table, as the tuner wrote them.
    pub files: Vec<Utf8PathBuf>,
    /// What the devices' clocks did while candidates were timed; empty where the tuner does not tell.
    #[serde(default)]
    pub clocks: Clocks,
    /// Seconds devices were held by requests, all together.
    pub busy_seconds: f64,
    /// Seconds from start to end of the last attempt.
    pub seconds: f64,
}

impl Tuned {
    /// How the row of a problem did against what serves it today.
    pub fn contest(&self, shape: &Shape) -> Option<&Contest> {
        self.contests.iter().find(|contest| {
            let of = &contest.shape;
            (of.m, of.n, of.k) == (shape.m, shape.n, shape.k)
        })
    }
}

impl From<TuneOutcome> for Tuned {
    fn from(outcome: TuneOutcome) -> Self {
        Self {
            device: outcome.device.name,
            rows: outcome.rows,
            failed: outcome
                .failed
                .iter()
                .map(|unserved| format!("{}: {}", unserved.shape, unserved.reason))
                .collect(),
            not_reached: outcome.not_reached,
            quarantined: outcome
                .quarantined
                .iter()
                .map(|bad| format!("{} {}: {}", bad.shape, bad.candidate, bad.evidence))
                .collect(),
            lost: outcome.lost,
            contests: Vec::new(),
            remarks: Vec::new(),
            files: outcome.files,
            clocks: outcome.clocks,
            busy_seconds: outcome.busy_s,
            seconds: outcome.seconds,
        }
    }
}

/// Look-ups a tuned server reported while it served the workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Engagement {
    /// Shapes looked up that hit the row meant for them.
    pub hit: usize,
    /// Shapes looked up that missed although a row is meant for them, named.
    pub missed: Vec<String>,
    /// Rows that the workload did not bring up this time, named.
    pub unseen: Vec<String>,
    /// Shapes looked up that no row is meant for, named.
    pub unplanned: Vec<String>,
    /// Hits that named another kernel than the one deployed.
    pub other_kernel: Vec<String>,
}

impl Engagement {
    /// Shapes looked up that no deployed row served, named. Terminal and report count and list these.
    pub fn not_served(&self) -> Vec<String> {
        let lists = [&self.missed, &self.other_kernel, &self.unplanned];
        lists.into_iter().flatten().cloned().collect()
    }

    /// Shapes the server looked up.
    pub fn looked_up(&self) -> usize {
        self.hit + self.not_served().len()
    }

    /// Share of the shapes looked up that took the row deployed for them.
    pub fn hit_rate(&self) -> Option<f64> {
        let looked_up = self.looked_up();
        (looked_up > 0).then(|| self.hit as f64 / looked_up as f64)
    }

    /// The two counts in words.
    pub fn sentence(&self) -> String {
        format!(
            "{} of {} shapes that the tuned server looked up took the row deployed for them",
            self.hit,
            self.looked_up()
        )
    }

    /// Why the deployed table is not what serves; `None` where it is.
    ///
    /// The kernel's name in the log comes from the table the server reads, so another table contradicts or misses
    /// nearly every look-up; single contradictions are torn lines, the head of one look-up with the tail of another.
    pub fn refusal(&self) -> Option<String> {
        let missed = self.missed.len();
        if self.hit > 0 && self.other_kernel.len() <= self.hit && missed <= self.hit {
            return None;
        }
        Some(match (self.other_kernel.first(), self.missed.first()) {
            (Some(shape), _) => format!("another kernel than the tuned one runs: {shape}"),
            (None, Some(shape)) => format!(
                "{missed} of {} shapes were not served by the row that is deployed for them, first {shape}",
                self.hit + missed
            ),
            (None, None) => "no shape of the workload was served by the deployed table".to_owned(),
        })
    }
}

/// What a tune step needs.
#[derive(Debug)]
pub struct TuneOrder<'a> {
    /// The run.
    pub run: &'a RunDir,
    /// What was found.
    pub inspection: &'a Inspection,
    /// Shapes to tune, most valuable first.
    pub shapes: &'a [Shape],
    /// Wall time; what was found by then is kept.
    pub budget: std::time::Duration,
    /// Ends a search early.
    pub interrupt: &'a Interrupt,
}

/// What a plan for this platform is made with.
#[derive(Debug)]
pub struct PlanTerms {
    /// Tables that serve today.
    pub tables: Vec<Table>,
    /// SGLang's tables that serve today, by the names they are found under.
    pub configs: Vec<(FileName, Config)>,
    /// Look-up rules.
    pub revision: Revision,
    /// Rates that weigh shapes against one another.
    pub device: Device,
    /// How many M share a row.
    pub fold: Fold,
    /// What tuning costs.
    pub cost: Cost,
}

/// What is deployed, and where what belongs to it lies.
#[derive(Clone, Copy, Debug)]
pub struct Deployed<'a> {
    /// The run.
    pub run: &'a RunDir,
    /// What was found.
    pub inspection: &'a Inspection,
    /// What was put in place.
    pub deployment: &'a Deployment,
    /// Ends a check early.
    pub interrupt: &'a Interrupt,
}

/// One engine gemmtune can tune.
pub trait Platform: Send + Sync {
    /// What decides from outside the run folder which code is served, by name. A run is not gone on with under
    /// another value: its arms would no longer be the same but for the tuning.
    fn surroundings(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Finds what serves.
    fn inspect(&self) -> Result<Inspection, Error>;

    /// Environment that makes a server tell its shapes, record files going to `records`.
    fn capture_env(&self, run: &RunDir, records: &Utf8Path) -> Result<Environment, Error>;

    /// What was found, as the workload was seen to use it; refuses a capture that cannot be complete.
    fn check_capture(
        &self,
        inspection: &Inspection,
        log_summary: &LogSummary,
    ) -> Result<Inspection, Error>;

    /// Environment that makes a server with `deployment` tell which rows it uses, record files going to
    /// `records`. It goes on top of the deployment's own.
    fn engagement_env(
        &self,
        run: &RunDir,
        deployment: &Deployment,
        records: &Utf8Path,
    ) -> Result<Environment, Error>;

    /// What a plan is made with.
    fn plan_terms(&self, inspection: &Inspection) -> Result<PlanTerms, Error>;

    /// Tunes.
    fn tune(
        &self,
        order: &TuneOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<Tuned, Error>;

    /// Puts what was tuned in place, in files and variables of its own.
    fn deploy(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &Tuned,
    ) -> Result<Deployment, Error>;

    /// Takes a deployment back. Doing it twice is doing it once.
    fn undo(&self, run: &RunDir, deployment: &Deployment) -> Result<(), Error>;

    /// Shapes that the deployed table would not serve, by the runtime's own rules.
    fn misses(
        &self,
        inspection: &Inspection,
        deployment: &Deployment,
        shapes: &[Shape],
    ) -> Result<Vec<Shape>, Error>;

    /// Which of the tuned shapes the server whose log is `log summary` was served by the deployed table.
    fn engagement(
        &self,
        inspection: &Inspection,
        deployment: &Deployment,
        log_summary: &LogSummary,
    ) -> Result<Engagement, Error>;

    /// Tries the deployed operation in a fresh process with the tuned server's environment, before such a server is
    /// started: its numbers on `shapes` and its time on what was tuned. A platform that needs no process of its
    /// own finds nothing.
    fn probe(
        &self,
        _deployed: &Deployed<'_>,
        _shapes: &[Shape],
        _tuned: &Tuned,
    ) -> Result<Probed, Error> {
        Ok(Probed::default())
    }

    /// Checks the deployed operation: in the server at `base_url`, or in a fresh process with its environment.
    fn check_layout(
        &self,
        deployed: &Deployed<'_>,
        base_url: &str,
        shapes: &[Shape],
    ) -> Result<Vec<LayoutCheck>, Error>;

    /// The name of a candidate, for people.
    fn kernel_name(&self, candidate: &serde_json::Value) -> String;

    /// Keys of the resolved server arguments that differ between the arms because of the tuning.
    fn expected_differences(&self) -> &'static [&'static str];
}

/// What `log summary`, the log of a server that was told to name its look-ups, says about a deployed table.
///
/// The unit is the shape the server looked up; whether it should have hit is asked of the runtime's own
/// rules, so a shape that no row serves by design is "unplanned", not "missed".
fn engagement_of(resolver: &Resolver<'_>, table: &Table, log_summary: &LogSummary) -> Engagement {
    let mut engagement = Engagement::default();
    let mut used = BTreeSet::new();
    for (shape, served) in log_summary.served() {
        let Some(row) = resolver.find(&shape).row() else {
            engagement.unplanned.push(shape.to_string());
            continue;
        };
        used.insert((row.m, row.n, row.k));
        let told = served
            .hit
            .as_ref()
            .and_then(|hit| hit.kernel_name.as_deref());
        if served.hits == 0 {
            engagement.missed.push(shape.to_string());
        } else if told.is_some() && told != row.kernel_name.as_deref() {
            let (told, want) = (told.unwrap_or_default(), row.kernel_name.as_deref());
            engagement.other_kernel.push(format!(
                "{shape}: {told} instead of {}",
                want.unwrap_or("an unnamed kernel")
            ));
        } else {
            engagement.hit += 1;
        }
    }
    engagement.unseen = table
        .rows
        .iter()
        .filter(|row| !used.contains(&(row.m, row.n, row.k)))
        .map(|row| row.shape(table.op).to_string())
        .collect();
    engagement
}

/// Taking away what is gone already is no trouble: an undo can be repeated.
fn gone(removed: std::io::Result<()>) -> Result<(), Error> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file(&error)),
        _ => Ok(()),
    }
}

/// The platform of a configuration.
pub fn of(config: &config::Config, keeper: &Keeper) -> Result<std::sync::Arc<dyn Platform>, Error> {
    match config.backend.kind {
        BackendKind::Reference => Ok(std::sync::Arc::new(reference::Reference::new(
            config, keeper,
        ))),
        BackendKind::SglangTriton => Ok(std::sync::Arc::new(sglang_triton::SglangTriton::new(
            site::Site::new(config, keeper)?,
        ))),
        BackendKind::Aiter => Ok(std::sync::Arc::new(aiter::Aiter::new(config, keeper)?)),
    }
}

/// Results that cannot be gone on with, or a disk that does not take them.
fn class_of(error: &ResultsError) -> ErrorKind {
    match error {
        ResultsError::Journal(JournalError::Io { .. })
        | ResultsError::Lock(LockError::Io { .. }) => ErrorKind::Environment,
        _ => ErrorKind::NotResumable,
    }
}

/// A tuning run that could not take place, in the loop's words.
fn tune_error(error: &TuneError) -> Error {
    match error {
        TuneError::Interrupted => crate::engine::server::interrupted(),
        TuneError::NoShapes => Error::caused(ErrorKind::NoShapes, error),
        TuneError::Results(results) => Error::caused(class_of(results), error),
        TuneError::Write { .. } => Error::caused(ErrorKind::Environment, error),
        _ => Error::caused(ErrorKind::TunerFailed, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engagement_holds_while_most_shapes_are_served_as_deployed() {
        let seen = |hit: usize, missed: usize, other: usize| Engagement {
            hit,
            missed: vec!["a".to_owned(); missed],
            other_kernel: vec!["b: x instead of y".to_owned(); other],
            ..Engagement::default()
        };
        for (engagement, says) in [
            (seen(8, 0, 0), None),
            (seen(8, 2, 3), None),
            (seen(0, 0, 0), Some("no shape")),
            (seen(1, 15, 0), Some("15 of 16 shapes were not served")),
            (seen(3, 0, 4), Some("another kernel")),
        ] {
            let refusal = engagement.refusal();
            assert_eq!(refusal.is_some(), says.is_some(), "{engagement:?}");
            assert!(
                refusal
                    .unwrap_or_default()
                    .contains(says.unwrap_or_default())
            );
        }
    }
}
