//! The profile of one load, on all ranks.

use serde::{Deserialize, Serialize};

use super::bound::Bound;
use super::class::Operation;
use super::document::{PhaseProfile, Profile, slowest};
use super::steps::Phase;

/// Where the time goes while one load is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadProfile {
    /// Its name; empty where there is only one.
    pub load: String,
    pub concurrency: u32,
    /// The conclusion, in a sentence.
    pub says: String,
    /// The most that tuning can gain in the step of `says`; absent where there is no bound.
    pub at_most: Option<f64>,
    /// The same if those GEMMs ran at the device's peak rates; absent where the rates or the calls are not known.
    #[serde(default)]
    pub at_peak: Option<AtPeak>,
    pub ranks: Vec<Profile>,
}

/// A step whose tuned GEMMs run at the device's peak rates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AtPeak {
    /// The step's time divided by its time in that case.
    pub ratio: f64,
    /// µs of the step that the GEMMs take in that case.
    pub us: f64,
    /// The assumed rates and where they come from.
    pub assumed: String,
}

impl AtPeak {
    /// A step of `step` µs whose tuned GEMMs took what `bound` records, if each takes `least` µs; `None` where one of
    /// them is not known. None takes longer than it did.
    pub fn new(
        step: f64,
        bound: &Bound,
        least: &[(Operation, f64)],
        assumed: String,
    ) -> Option<Self> {
        let mut us = 0.0;
        for part in &bound.operations {
            let (_, least) = least.iter().find(|(known, _)| *known == part.operation)?;
            us += least.min(part.us);
        }
        let us = us.min(bound.us);
        (us > 0.0).then(|| Self {
            ratio: step / (step - bound.us + us),
            us,
            assumed,
        })
    }

    /// The same as a sentence.
    pub fn says(&self) -> String {
        format!(
            "At the device's peak rates the same GEMMs take {:.0} µs of the step, which is {:.2}x ({})",
            self.us, self.ratio, self.assumed
        )
    }
}

impl LoadProfile {
    /// The profile of the load called `load`, in which the operations `tuned` are tuned.
    pub fn new(
        load: String,
        concurrency: u32,
        mut ranks: Vec<Profile>,
        tuned: &[Operation],
    ) -> Self {
        for rank in &mut ranks {
            rank.restrict(tuned);
        }
        let mut profile = Self {
            load,
            concurrency,
            says: String::new(),
            at_most: None,
            at_peak: None,
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

    /// Each phase on its slowest rank, decode first.
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

#[cfg(test)]
mod tests {
    use super::super::bound::bound;
    use super::*;

    #[test]
    fn gemms_at_the_devices_peak_still_take_time() {
        let bound = bound(100.0, [60.0, 10.0], 70.0);
        let peak = |least: &[(Operation, f64)]| {
            AtPeak::new(100.0, &bound, least, String::new()).map(|peak| (peak.us, peak.ratio))
        };
        let (moe, dense) = (Operation::FusedMoe, Operation::DenseFp8);
        assert_eq!(peak(&[(moe, 15.0), (dense, 5.0)]), Some((20.0, 2.0)));
        // A cache may be faster than the assumed memory: then there is nothing to gain.
        assert_eq!(peak(&[(moe, 10.0), (dense, 50.0)]), Some((20.0, 2.0)));
        assert_eq!(peak(&[(moe, 15.0)]), None, "half is not known");
    }
}
