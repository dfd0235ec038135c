//! What a tuning run reports while it runs, and its result.

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::clocks::Clocks;
use super::protocol::Device;
use super::results::{Quarantined, Row};
use super::tuned::TunedTable;
use crate::problem::Shape;

/// An event of a tuning run, for progress and logs.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TuneEvent<P = Shape> {
    /// The device is open and earlier results are read.
    Started {
        device: Box<Device>,
        workers: u32,
        shapes: usize,
        /// Those done by an earlier run.
        resumed: usize,
        /// Most races to run.
        races_at_most: usize,
    },
    /// A candidate is the fastest so far for its shape.
    Leads {
        shape: P,
        /// Its time so far, µs.
        us: f64,
        /// Candidates in the race.
        entrants: usize,
    },
    /// A race is over and its row is durable.
    Finished {
        row: Box<Row<P>>,
        /// Races finished in this run.
        done: usize,
        /// Most races that may still come, those running included.
        left_at_most: usize,
        /// Estimated seconds for them, judged by the finished ones.
        eta_s: f64,
    },
    /// A shape has no winner.
    Failed(Unserved<P>),
    /// A candidate will not be tried again.
    Quarantined(Quarantined<P>),
    /// A worker died and a fresh one took its place.
    WorkerRestarted {
        worker: u32,
        reason: String,
    },
    /// A worker could not be started again; others race its shapes.
    DeviceLost {
        worker: u32,
        reason: String,
    },
    /// Progress of a tuner that measures many shapes together.
    Batch {
        /// Finished tasks of the current batch.
        done: usize,
        of: usize,
        /// Most shapes that may still come.
        left_at_most: usize,
        /// Estimated seconds left, once a shape was finished.
        eta_s: Option<f64>,
    },
    Remark {
        text: String,
    },
    /// A file of the table was written.
    Wrote {
        path: Utf8PathBuf,
    },
}

/// A shape without a winner.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unserved<P = Shape> {
    pub shape: P,
    pub reason: String,
}

/// How long a race used one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceTime {
    /// Its index among the visible devices.
    pub device: u32,
    /// Seconds for which requests held it.
    pub busy_s: f64,
    /// Seconds for which it had work.
    pub active_s: f64,
}

/// `device 0 busy 93 %, device 1 busy 90 %`; `None` for a single device.
pub fn busy_shares(devices: &[DeviceTime]) -> Option<String> {
    let shares: Vec<String> = devices
        .iter()
        .filter(|time| time.active_s > 0.0)
        .map(|time| {
            let share = 100.0 * time.busy_s / time.active_s;
            format!("device {} busy {share:.0} %", time.device)
        })
        .collect();
    (devices.len() > 1).then(|| shares.join(", "))
}

/// The result of a tuning run.
#[derive(Clone, Debug, Serialize)]
pub struct TuneOutcome<P = Shape> {
    pub device: Device,
    /// A row for every raced shape, from this run or an earlier one.
    pub rows: Vec<Row<P>>,
    /// Those of the shapes whose row is from an earlier run.
    pub resumed: Vec<P>,
    /// Shapes without a row that are served by the row of a neighbouring M.
    pub served_by_neighbours: Vec<P>,
    /// Shapes without a winner.
    pub failed: Vec<Unserved<P>>,
    /// Shapes that were left out because of the budget, an interrupt or lost devices.
    pub not_reached: Vec<P>,
    /// Candidates that fault, hang or compute wrong numbers.
    pub quarantined: Vec<Quarantined<P>>,
    /// Files of the table.
    pub files: Vec<Utf8PathBuf>,
    /// The same tables as rows.
    #[serde(skip)]
    pub tables: Vec<TunedTable>,
    pub restarts: u32,
    /// What was lost permanently: why a device worker gave up, or a library without a measured candidate.
    pub lost: Vec<String>,
    /// The devices' clocks while candidates were timed.
    pub clocks: Clocks,
    /// Remarks for readers of the result.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// The time of each device, by its index.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceTime>,
    /// Total seconds for which requests held devices.
    pub busy_s: f64,
    /// Total seconds for which device workers had work.
    pub active_s: f64,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Whether the user interrupted it.
    pub interrupted: bool,
}

impl<P> TuneOutcome<P> {
    pub(super) fn new(device: Device) -> Self {
        Self {
            device,
            rows: Vec::new(),
            resumed: Vec::new(),
            served_by_neighbours: Vec::new(),
            failed: Vec::new(),
            not_reached: Vec::new(),
            quarantined: Vec::new(),
            files: Vec::new(),
            tables: Vec::new(),
            restarts: 0,
            lost: Vec::new(),
            clocks: Clocks::default(),
            remarks: Vec::new(),
            devices: Vec::new(),
            busy_s: 0.0,
            active_s: 0.0,
            seconds: 0.0,
            interrupted: false,
        }
    }
}
