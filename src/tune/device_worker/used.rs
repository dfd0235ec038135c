//! How much of its share of the budget a race has used.
//!
//! A race has a share of what is left of the budget. A worker that is lost costs all races that are open on its device: the time from its
//! last answer until a fresh one is up. So does a request that takes longer than its launches can, because a library compiled a module
//! or was imported at its first call. Neither is the race's doing: it is given back, but no more than another share, so that a race whose
//! workers die every time ends. The budget itself is never extended.

use std::time::Duration;

/// Part of a share after which a race goes on to its run-off and its check, which take the rest.
const SEARCH: f64 = 0.6;

/// Shares that may be given back to one race.
const GIVEN_BACK: f64 = 1.0;

/// Whether a race that was opened `elapsed` ago, of which `lost` was not its own doing, has used what it may of its `share`.
pub(super) fn is_late(elapsed: Duration, lost: Duration, share: Duration) -> bool {
    let given_back = lost.min(share.mul_f64(GIVEN_BACK));
    elapsed.saturating_sub(given_back) > share.mul_f64(SEARCH)
}

/// What of a request's time was none of its launches.
pub(super) fn beyond(waited: Duration, takes: Duration) -> Duration {
    waited.saturating_sub(takes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn time_that_a_lost_worker_took_is_given_back() {
        let share = seconds(10.0);
        assert!(!is_late(seconds(6.0), Duration::ZERO, share));
        assert!(is_late(seconds(6.1), Duration::ZERO, share));
        // Half a minute of a module's build would have ended it.
        assert!(!is_late(seconds(12.0), seconds(9.0), share));
        assert!(is_late(seconds(15.1), seconds(9.0), share));
    }

    #[test]
    fn a_race_whose_workers_die_every_time_ends() {
        let share = seconds(10.0);
        // All of its time is lost: it ends after 1.6 shares.
        assert!(!is_late(seconds(16.0), seconds(16.0), share));
        assert!(is_late(seconds(16.1), seconds(16.1), share));
        assert!(is_late(seconds(1e6), seconds(1e6), share));
    }

    #[test]
    fn a_request_that_takes_as_long_as_its_launches_may_loses_nothing() {
        assert_eq!(beyond(seconds(0.2), seconds(1.0)), Duration::ZERO);
        assert_eq!(beyond(seconds(61.0), seconds(1.0)), seconds(60.0));
    }
}
