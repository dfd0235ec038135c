//! What the baseline server's profiler recorded. It is not part of a stage's document: a run continues without it.

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::Document;
use crate::profile::LoadProfile;
use crate::store::run_dir::RunDir;

/// Where the time of a step goes, for each load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Profiled {
    /// The loads that could be profiled.
    pub loads: Vec<LoadProfile>,
    /// What could not be determined, and why.
    pub remarks: Vec<String>,
}

impl Document for Profiled {
    fn path(run: &RunDir) -> Utf8PathBuf {
        run.stage("profile")
    }
}
