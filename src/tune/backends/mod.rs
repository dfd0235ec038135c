//! What differs between the kernels that can be raced: candidates, rules, and the table that is written.
//!
//! A backend starts no process and measures nothing; workers do.

pub mod aiter_triton;
pub mod compiled;
pub mod families;
pub mod reference;
mod settings;
pub mod sglang_moe;
pub mod sglang_triton;

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::points::Refine;
use super::protocol::{Candidate, Device};
use super::race::Rules;
use super::results::Row;
use super::rules::Effort;
use super::task::Task;
use super::tuned::TunedTable;
use crate::problem::Shape;
use crate::store::file::write_atomic;

/// The candidates of one race, in the order to try them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Field {
    /// Candidates without duplicates; the first is the incumbent if `has_incumbent`.
    pub candidates: Vec<Candidate>,
    /// Whether it is known what serves the shape today.
    pub has_incumbent: bool,
}

impl Field {
    /// A field of `incumbent` followed by `others`, without duplicates and with at most `at_most` candidates.
    pub fn new(
        incumbent: Option<Candidate>,
        others: impl IntoIterator<Item = Candidate>,
        at_most: usize,
    ) -> Self {
        let has_incumbent = incumbent.is_some();
        let mut candidates: Vec<Candidate> = incumbent.into_iter().collect();
        for candidate in others {
            if candidates.len() == at_most {
                break;
            }
            if !candidates.contains(&candidate) {
                candidates.push(candidate);
            }
        }
        Self {
            candidates,
            has_incumbent,
        }
    }
}

/// How to keep a device of this kind busy, and when to give up a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Most candidates timed in one request: what has to be repeated after a fault.
    pub batch: usize,
    /// Shapes raced concurrently on one device, so that one is timed while others are compiled.
    pub side_by_side: usize,
    /// Requests for different shapes that are sent to a worker at once and that use the device: with two it can
    /// prepare one while its device runs the other, with three it has the next one ready when it has answered one.
    pub under_way: usize,
    /// Whether workers on one host share the resource that they measure, so that only one may measure at a time.
    pub one_at_a_time: bool,
    pub deadlines: Deadlines,
}

impl Pace {
    /// The pace of kernels that a GPU worker compiles and times.
    pub(crate) fn on_gpus() -> Self {
        Self {
            batch: 16,
            side_by_side: 8,
            under_way: 3,
            one_at_a_time: false,
            deadlines: Deadlines {
                // Importing torch and SGLang from a network file system takes minutes.
                hello: Duration::from_secs(300),
                prepare: Duration::from_secs(300),
                floor: Duration::from_secs(15),
                slowest_flops: 1e10,
                check_flops: 1e11,
            },
        }
    }
}

/// Time limits of the requests to a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deadlines {
    /// For `hello`, which opens the device and imports the software.
    pub hello: Duration,
    /// For `prepare`; the worker has a shorter limit of its own.
    pub prepare: Duration,
    /// For `time` and `check`, in addition to the time that launches should take.
    pub floor: Duration,
    /// No candidate worth timing is slower than this, in floating-point operations per second.
    pub slowest_flops: f64,
    /// Least speed of the reference in `check`, in floating-point operations per second.
    pub check_flops: f64,
}

/// The files and tables that a backend wrote.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// Every file: the tables, and what deploys them without a run.
    pub files: Vec<Utf8PathBuf>,
    /// The current contents of the tables.
    pub tables: Vec<TunedTable>,
}

impl Written {
    /// Writes a table into `folder`.
    fn put(&mut self, folder: &Utf8Path, table: TunedTable) -> std::io::Result<()> {
        let path = folder.join(&table.name);
        write_atomic(&path, table.text().as_bytes())?;
        self.files.push(path);
        self.tables.push(table);
        Ok(())
    }
}

/// A kind of kernel that can be raced.
pub trait Backend<P: Task = Shape>: Send + Sync {
    /// Its name on the command line and in results.
    fn name(&self) -> &'static str;

    /// Settings for the worker's `hello`; part of the results' identity.
    fn options(&self) -> serde_json::Value;

    /// The operation it tunes.
    fn op(&self) -> P::Op;

    /// Which M to race.
    fn refine(&self, effort: Effort) -> Refine;

    /// The rules of its races.
    fn rules(&self, effort: Effort) -> Rules;

    /// How to keep its devices busy.
    fn pace(&self) -> Pace;

    /// What serves `shape` today.
    fn incumbent(&self, device: &Device, shape: &P) -> Option<Candidate>;

    /// The candidates for `shape`: the incumbent first, then `neighbours`, the winners of similar shapes.
    fn field(&self, device: &Device, shape: &P, neighbours: &[Candidate], effort: Effort) -> Field;

    /// Candidates one step away from `candidate`.
    fn relatives(&self, device: &Device, shape: &P, candidate: &Candidate) -> Vec<Candidate>;

    /// Writes the tables of `rows` into `folder`. Existing files of the same name are merged, so that nothing is
    /// lost.
    fn write(
        &self,
        folder: &Utf8Path,
        device: &Device,
        rows: &[Row<P>],
    ) -> std::io::Result<Written>;
}
