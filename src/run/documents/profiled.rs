//! What the baseline server's profiler said. It belongs to no stage's document: a run without it goes on as well.

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::Document;
use crate::profile::LoadProfile;
use crate::store::run_dir::RunDir;

/// Where the time of a step goes, by load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Profiled {
    /// Those that could be profiled.
    pub loads: Vec<LoadProfile>,
    /// What could not be told, and why.
    pub remarks: Vec<String>,
}

impl Document for Profiled {
    fn path(run: &RunDir) -> Utf8PathBuf {
        run.stage("profile")
    }
}
