//! How `budget.tune` is shared among the parts of a run that are tuned one after another.

use std::time::Duration;

/// What tuning a part is estimated to take, in seconds of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Need {
    /// Before its first result: modules that are compiled, software that is imported. Where it was done before it takes nothing.
    pub once_s: f64,
    /// For all of its rows.
    pub rows_s: f64,
}

/// What of the time that is `left` the next part gets, which needs `next`; `later` ones come behind it and get what it leaves.
///
/// Rows come first: as long as the time does not do for all of them it is shared by what they take. Beyond that what is done once weighs as
/// far as the time pays for it, so that a build that may not be needed takes no rows from the others. With time for everything all is shared
/// by what each needs.
pub(crate) fn share(left: Duration, next: Need, later: &[Need]) -> Duration {
    let sum = |of: fn(&Need) -> f64| of(&next) + later.iter().map(of).sum::<f64>();
    let (once_s, rows_s) = (sum(|need| need.once_s), sum(|need| need.rows_s));
    let paid = if once_s > 0.0 {
        ((left.as_secs_f64() - rows_s) / once_s).clamp(0.0, 1.0)
    } else {
        0.0
    };
    let all = rows_s + once_s * paid;
    if later.is_empty() || all <= 0.0 {
        return left;
    }
    left.mul_f64((next.rows_s + next.once_s * paid) / all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENSE: Need = Need {
        once_s: 0.0,
        rows_s: 100.0,
    };
    const EXPERTS: Need = Need {
        once_s: 600.0,
        rows_s: 200.0,
    };

    fn dense(left_s: f64) -> f64 {
        share(Duration::from_secs_f64(left_s), DENSE, &[EXPERTS]).as_secs_f64()
    }

    fn about(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6
    }

    #[test]
    fn a_small_budget_is_shared_by_what_the_rows_take() {
        // By the whole need it would be 7 s of 60: the build of the other part is no reason to tune nothing.
        assert!(about(dense(60.0), 20.0));
        assert!(about(dense(300.0), 100.0));
    }

    #[test]
    fn a_part_has_time_for_its_rows_before_another_parts_build_is_paid() {
        for left_s in [300.0, 450.0, 600.0, 900.0] {
            assert!(about(dense(left_s), 100.0), "{left_s}: {}", dense(left_s));
        }
    }

    #[test]
    fn with_time_for_everything_it_is_shared_by_what_each_needs() {
        assert!(about(dense(1800.0), 200.0));
        let first = share(Duration::from_secs(1800), EXPERTS, &[DENSE]);
        assert!(about(first.as_secs_f64(), 1600.0));
    }

    #[test]
    fn the_last_part_gets_all_that_is_left_whatever_it_needs() {
        let left = Duration::from_secs(70);
        assert_eq!(share(left, EXPERTS, &[]), left);
        assert_eq!(share(left, Need::default(), &[]), left);
        // Parts that take nothing leave everything.
        assert_eq!(share(left, DENSE, &[Need::default()]), left);
        assert_eq!(share(left, Need::default(), &[DENSE]), Duration::ZERO);
    }

    #[test]
    fn what_one_part_leaves_is_the_next_ones() {
        let parts = [DENSE, DENSE, EXPERTS];
        let mut left = Duration::from_secs(400);
        // The first takes half of what it gets, the second all.
        let first = share(left, parts[0], &parts[1..]);
        assert!(about(first.as_secs_f64(), 100.0));
        left -= first / 2;
        let second = share(left, parts[1], &parts[2..]);
        assert!(about(second.as_secs_f64(), 100.0));
        left -= second;
        assert_eq!(share(left, parts[2], &[]), Duration::from_secs(250));
    }
}
