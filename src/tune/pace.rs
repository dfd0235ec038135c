//! Estimates how long the remaining races will take, from the finished ones.
//!
//! A race takes a fixed time (setup, small kernels) and a time that grows with its shape: seconds = a + b·cost with
//! a, b ≥ 0, fitted to the finished races. Several races are open at once on each device, so when the first one ends
//! most of the time so far has gone into unfinished ones: it is deducted from what is left.

/// Finished races: their cost, in arbitrary units, and their seconds of device time.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    races: Vec<(f64, f64)>,
    /// Device seconds of all races, unfinished ones included.
    held_s: f64,
}

impl Pace {
    /// Adds a finished race.
    pub(super) fn add(&mut self, cost: f64, seconds: f64) {
        self.races.push((cost, seconds));
    }

    /// Number of finished races.
    pub(super) fn races(&self) -> usize {
        self.races.len()
    }

    /// Adds seconds for which some race held the device.
    pub(super) fn held(&mut self, seconds: f64) {
        self.held_s += seconds;
    }

    /// Wall seconds until races of these costs are finished, including those in progress, `elapsed` after the first
    /// began.
    pub(super) fn left_s(&self, costs: &[f64], elapsed: f64) -> f64 {
        let over_s: f64 = self.races.iter().map(|(_, seconds)| seconds).sum();
        let under_way_s = (self.held_s - over_s).max(0.0);
        let left_s = (self.seconds(costs) - under_way_s).max(0.0);
        // Wall time per second of device time so far, which accounts for compiling and several devices.
        left_s * elapsed / (over_s + under_way_s).max(1e-9)
    }

    /// Device seconds that races of these costs will take; 0 while none is finished.
    fn seconds(&self, costs: &[f64]) -> f64 {
        let (fixed, per_cost) = self.fit();
        costs.iter().map(|cost| fixed + per_cost * cost).sum()
    }

    /// Least squares with both coefficients at least zero.
    fn fit(&self) -> (f64, f64) {
        let count = self.races.len() as f64;
        if self.races.is_empty() {
            return (0.0, 0.0);
        }
        let mean = |of: fn(&(f64, f64)) -> f64| self.races.iter().map(of).sum::<f64>() / count;
        let (mean_cost, mean_s) = (mean(|race| race.0), mean(|race| race.1));
        let covariance = mean(|race| race.0 * race.1) - mean_cost * mean_s;
        let variance = mean(|race| race.0 * race.0) - mean_cost * mean_cost;
        let slope = covariance / variance;
        let fixed = mean_s - slope * mean_cost;
        if !slope.is_finite() || fixed < 0.0 {
            // One race, or races of one cost: proportional.
            return (0.0, mean_s / mean_cost.max(f64::MIN_POSITIVE));
        }
        if slope < 0.0 {
            return (mean_s, 0.0);
        }
        (fixed, slope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(races: &[(f64, f64)]) -> Pace {
        Pace {
            races: races.to_vec(),
            held_s: 0.0,
        }
    }

    fn about(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn what_is_left_follows_the_line_through_what_is_over() {
        // 1 + cost / 10
        let pace = pace(&[(100.0, 11.0), (50.0, 6.0), (10.0, 2.0)]);
        assert!(about(pace.seconds(&[20.0, 20.0]), 6.0));
    }

    /// 64 equal races of 1 s on one device, eight open at once and served in turn: the first ends after 7.5 s, which
    /// does not mean that the others take 7.5 s each.
    #[test]
    fn what_went_into_races_that_are_not_over_is_spent_on_what_is_left() {
        let mut pace = Pace::default();
        for _ in 0..15 {
            pace.held(0.5);
        }
        pace.add(1.0, 1.0);
        let left = pace.left_s(&[1.0; 63], 7.5);
        assert!(about(left, 56.5), "{left}");
        // If compiling takes as long again, a second of device time is two of wall time.
        assert!(about(pace.left_s(&[1.0; 63], 15.0), 113.0));
        // Two devices halve it.
        assert!(about(pace.left_s(&[1.0; 63], 3.75), 28.25));
    }

    #[test]
    fn one_race_predicts_in_proportion_and_none_predicts_nothing() {
        assert!(about(pace(&[(100.0, 20.0)]).seconds(&[10.0, 10.0]), 4.0));
        assert!(about(pace(&[]).seconds(&[10.0]), 0.0));
    }

    #[test]
    fn coefficients_are_never_negative() {
        assert!(about(
            pace(&[(1.0, 4.0), (3.0, 2.0)]).seconds(&[1000.0]),
            3.0
        ));
        assert!(about(pace(&[(1.0, 1.0), (2.0, 4.0)]).seconds(&[3.0]), 5.0));
    }
}
