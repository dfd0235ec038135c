//! The device's clock while candidates were timed.
//!
//! A race compares candidates on one device within moments, so a lowered clock seldom changes a winner; but it does
//! change the reported times, and with them the expected gain. So it is recorded and reported.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Reasons for which the driver holds the clock below the requested one: `nvmlClocksThrottleReasons` of NVIDIA's
/// `nvml.h`. Idle (bit 0), application clocks (1), sync boost (4) and display clocks (8) are choices, not throttling.
const REASONS: [(u64, &str); 5] = [
    (1 << 2, "power cap"),
    (1 << 3, "hardware slowdown"),
    (1 << 5, "software thermal limit"),
    (1 << 6, "hardware thermal limit"),
    (1 << 7, "power brake"),
];

/// Clocks of the timing requests of a race or a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Clocks {
    /// Timing requests whose reasons could be read.
    pub requests: u32,
    /// Those that ended on a throttled device.
    pub throttled: u32,
    /// Requests by reason; one request may have several.
    pub reasons: BTreeMap<String, u32>,
    /// Slowest SM clock before or after a request, MHz.
    pub lowest_mhz: Option<f64>,
    /// Fastest SM clock before or after a request, MHz.
    pub highest_mhz: Option<f64>,
}

impl Clocks {
    /// The clocks of one timing request: SM clocks before and after it and NVML's bit set of reasons, `None` if the
    /// driver does not report them.
    pub fn of_request(mhz: &[f64], reasons: Option<u64>) -> Self {
        let named: BTreeMap<String, u32> = REASONS
            .into_iter()
            .filter(|(bit, _)| reasons.is_some_and(|set| set & bit != 0))
            .map(|(_, name)| (name.to_owned(), 1))
            .collect();
        Self {
            requests: u32::from(reasons.is_some()),
            throttled: u32::from(!named.is_empty()),
            reasons: named,
            lowest_mhz: mhz.iter().copied().reduce(f64::min),
            highest_mhz: mhz.iter().copied().reduce(f64::max),
        }
    }

    /// Adds the requests of `other`.
    pub fn add(&mut self, other: &Self) {
        let either = |a: Option<f64>, b: Option<f64>, pick: fn(f64, f64) -> f64| match (a, b) {
            (Some(a), Some(b)) => Some(pick(a, b)),
            (a, b) => a.or(b),
        };
        self.requests += other.requests;
        self.throttled += other.throttled;
        for (reason, count) in &other.reasons {
            *self.reasons.entry(reason.clone()).or_default() += count;
        }
        self.lowest_mhz = either(self.lowest_mhz, other.lowest_mhz, f64::min);
        self.highest_mhz = either(self.highest_mhz, other.highest_mhz, f64::max);
    }

    /// A remark for readers of the result; `None` if no request ended on a throttled device.
    pub fn remark(&self) -> Option<String> {
        (self.throttled > 0).then(|| {
            let reasons: Vec<&str> = self.reasons.keys().map(String::as_str).collect();
            let range = match (self.lowest_mhz, self.highest_mhz) {
                (Some(low), Some(high)) => format!(", SM clock {low:.0} to {high:.0} MHz"),
                _ => String::new(),
            };
            format!(
                "the device was throttled at the end of {} of {} timing requests ({}{range}): times of different shapes may not compare",
                self.throttled,
                self.requests,
                reasons.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_or_full_clock_is_no_throttling_and_an_unknown_one_is_not_counted() {
        let mut clocks = Clocks::of_request(&[1980.0], Some(0));
        clocks.add(&Clocks::of_request(&[345.0, 1980.0], Some(1)));
        clocks.add(&Clocks::of_request(&[], None));
        assert_eq!((clocks.requests, clocks.throttled), (2, 0));
        assert_eq!(clocks.remark(), None);
    }

    #[test]
    fn throttled_requests_are_counted_by_reason() {
        let mut clocks = Clocks::of_request(&[1980.0, 1200.0], Some(1 << 2 | 1 << 5));
        clocks.add(&Clocks::of_request(&[1980.0], Some(1 << 2)));
        clocks.add(&Clocks::of_request(&[1980.0], Some(0)));
        assert_eq!(
            clocks.remark().unwrap(),
            "the device was throttled at the end of 2 of 3 timing requests (power cap, software thermal limit, SM clock \
             1200 to 1980 MHz): times of different shapes may not compare"
        );
    }
}
