//! Medians, spread and the exact sign test: all the statistics a race needs.
//!
//! Pure arithmetic on finite numbers. Verdicts about served throughput are made in another room; here the unit is one
//! sample of one kernel.

/// The median; `None` for an empty sample. The mean of the middle two when the count is even.
pub fn median(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    Some(if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    })
}

/// Spread of the values relative to their median: the median absolute deviation scaled to a standard
/// deviation (1.4826, the consistency constant of the normal distribution) over the median.
pub fn relative_spread(values: &[f64]) -> Option<f64> {
    let centre = median(values)?;
    if centre <= 0.0 {
        return None;
    }
    let deviations: Vec<f64> = values.iter().map(|value| (value - centre).abs()).collect();
    median(&deviations).map(|deviation| 1.4826 * deviation / centre)
}

/// The fewest successes out of `trials` that a fair coin reaches with probability at most `alpha`;
/// `None` when even all of them are not enough evidence.
pub fn sign_test_threshold(trials: usize, alpha: f64) -> Option<usize> {
    // Walk the upper tail of Binomial(trials, 1/2) from the top until it weighs more than alpha.
    let mut term = 0.5f64.powi(i32::try_from(trials).ok()?);
    let mut tail = 0.0;
    let mut threshold = None;
    for successes in (0..=trials).rev() {
        tail += term;
        if tail > alpha {
            break;
        }
        threshold = Some(successes);
        // C(n, s-1) = C(n, s) · s / (n - s + 1)
        term *= successes as f64 / (trials - successes + 1) as f64;
    }
    threshold
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_spread_ignore_one_wild_value() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[10.0, 10.0, 9000.0]), Some(10.0));
        assert_eq!(relative_spread(&[10.0, 10.0, 9000.0]), Some(0.0));
        assert_eq!(relative_spread(&[0.0]), None);
    }

    /// Tail weights of Binomial(n, 1/2) by hand: 1/2^9 = 0.00195, 10/2^9 = 0.0195, 46/2^9 = 0.0898.
    #[test]
    fn the_sign_test_threshold_is_exact() {
        assert_eq!(sign_test_threshold(9, 0.0019), None);
        assert_eq!(sign_test_threshold(9, 0.002), Some(9));
        assert_eq!(sign_test_threshold(9, 0.0196), Some(8));
        assert_eq!(sign_test_threshold(9, 0.09), Some(7));
        assert_eq!(sign_test_threshold(0, 0.5), None);
    }
}
