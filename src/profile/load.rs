//! The profile of one load, all ranks of it.

use serde::{Deserialize, Serialize};

use super::document::{PhaseProfile, Profile, slowest};
use super::steps::Phase;

/// Where the time goes while one load is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadProfile {
    /// Its name; empty where there is only one.
    pub load: String,
    pub concurrency: u32,
    /// What it comes to, in a sentence.
    pub says: String,
    /// What tuning can bring to the step of `says` at most; absent where nothing bounds it.
    pub at_most: Option<f64>,
    /// By rank.
    pub ranks: Vec<Profile>,
}

impl LoadProfile {
    /// The profile of the load called `load`.
    pub fn new(load: String, concurrency: u32, ranks: Vec<Profile>) -> Self {
        let mut profile = Self {
            load,
            concurrency,
            says: String::new(),
            at_most: None,
            ranks,
        };
        let name = if profile.load.is_empty() {
            String::new()
        } else {
            format!("{}: ", profile.load)
        };
        let main = profile.phases().into_iter().next();
        let said = main.map(|(_, phase)| {
            let at = format!("at concurrency {concurrency}");
            (phase.sentence(&at), phase.bound.at_most)
        });
        if let Some((said, at_most)) = said {
            profile.says = format!("{name}{said}");
            profile.at_most = at_most;
        }
        profile
    }

    /// Each phase as the slowest rank has it: decode first.
    pub fn phases(&self) -> Vec<(&Profile, &PhaseProfile)> {
        Phase::ALL
            .into_iter()
            .filter_map(|phase| {
                let rank = slowest(&self.ranks, phase)?;
                let found = rank.phases.iter().find(|found| found.phase == phase)?;
                Some((rank, found))
            })
            .collect()
    }
}
