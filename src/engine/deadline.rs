//! How long to wait, learnt from the baseline where there is one.
//!
//! The scheme is that of cargo-mutants (`src/timeouts.rs`): the observed time multiplied by a factor, with a minimum,
//! and the user's own limit while nothing has been observed.

use std::time::Duration;

/// A tuned or instrumented server may be this much slower than the baseline before it counts as hung.
const FACTOR: f64 = 5.0;

/// Below this, a long wait is more likely caused by a busy machine than by a hang.
const FLOOR: Duration = Duration::from_secs(30);

/// The limit for an operation whose baseline took `seen_seconds`; `configured` if that is unknown, and never more
/// than `configured`.
pub fn learned(seen_seconds: Option<f64>, configured: Duration) -> Duration {
    match seen_seconds {
        Some(seconds) if seconds.is_finite() && seconds >= 0.0 => {
            Duration::from_secs_f64((seconds * FACTOR).min(configured.as_secs_f64()))
                .max(FLOOR)
                .min(configured)
        }
        _ => configured,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_the_baseline_between_the_floor_and_the_configured_limit() {
        let configured = Duration::from_secs(1800);
        assert_eq!(learned(None, configured), configured);
        assert_eq!(learned(Some(100.0), configured), Duration::from_secs(500));
        assert_eq!(learned(Some(1.0), configured), FLOOR);
        assert_eq!(learned(Some(1e9), configured), configured);
        assert_eq!(learned(Some(f64::NAN), configured), configured);
        assert_eq!(
            learned(Some(1.0), Duration::from_secs(3)),
            Duration::from_secs(3)
        );
    }
}
