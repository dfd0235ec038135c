//! Numbers that describe one sample: median, spread, quantiles.
//!
//! Every function takes the values in any order, ignores nothing, and returns `None` for an empty
//! sample. A NaN among the values gives a NaN, never a number that hides it.

/// The values in ascending order; NaN sorts last.
pub fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The quantile at `share` (0 to 1) with linear interpolation between order statistics: type 7 of
/// Hyndman and Fan, the default of `numpy.quantile`, which `bench_serving` uses for its percentiles.
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    if values.iter().any(|value| value.is_nan()) || share.is_nan() {
        return values.first().map(|_| f64::NAN);
    }
    quantile_of_sorted(&sorted(values), share)
}

/// [`quantile`] of values already in ascending order and free of NaN.
pub(crate) fn quantile_of_sorted(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = share.clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(last);
    let fraction = position - below as f64;
    let (low, high) = (sorted[below], sorted[above]);
    // Equal neighbours first: infinity minus infinity, or times zero, would be NaN.
    Some(if fraction > 0.0 && low < high {
        low + (high - low) * fraction
    } else {
        low
    })
}

pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The median absolute deviation from the median, unscaled (multiply by 1.4826 to estimate the
/// standard deviation of normal data).
pub fn mad(values: &[f64]) -> Option<f64> {
    let centre = median(values)?;
    let deviations: Vec<f64> = values.iter().map(|value| (value - centre).abs()).collect();
    median(&deviations)
}

pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The standard deviation of the values as a whole population (`numpy.std`, which `bench_serving`
/// writes as `std_…`).
pub fn std(values: &[f64]) -> Option<f64> {
    let centre = mean(values)?;
    let squares: f64 = values.iter().map(|value| (value - centre).powi(2)).sum();
    Some((squares / values.len() as f64).sqrt())
}

/// Indices of values farther from the median than `limit` scaled median absolute deviations. They
/// are to be named, not dropped. Empty when at least half of the values are equal.
pub fn outliers(values: &[f64], limit: f64) -> Vec<usize> {
    // 1.4826 makes the MAD estimate the standard deviation under normality (Hampel 1974).
    let (Some(centre), Some(spread)) = (median(values), mad(values).map(|mad| mad * 1.4826)) else {
        return Vec::new();
    };
    if spread == 0.0 {
        return Vec::new();
    }
    (0..values.len())
        .filter(|&index| ((values[index] - centre) / spread).abs() > limit)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_sample_has_no_numbers() {
        assert_eq!(median(&[]), None);
        assert_eq!(mad(&[]), None);
        assert_eq!(mean(&[]), None);
        assert_eq!(std(&[]), None);
        assert_eq!(quantile(&[], 0.9), None);
        assert!(outliers(&[], 5.0).is_empty());
    }

    #[test]
    fn a_nan_is_never_hidden_and_infinities_are_ordered() {
        assert!(median(&[1.0, f64::NAN, 2.0]).unwrap().is_nan());
        assert!(mean(&[1.0, f64::NAN]).unwrap().is_nan());
        assert_eq!(median(&[f64::INFINITY, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[f64::INFINITY, f64::INFINITY]), Some(f64::INFINITY));
    }

    #[test]
    fn the_one_far_value_is_named() {
        let values = [10.0, 10.2, 9.9, 10.1, 14.0, 10.0];
        assert_eq!(outliers(&values, 5.0), vec![4]);
        assert!(outliers(&[1.0, 1.0, 1.0, 9.0], 5.0).is_empty());
    }

    #[test]
    fn numbers_agree_with_numpy_and_scipy() {
        for case in super::super::paired::tests::reference("samples") {
            let values: Vec<f64> = serde_json::from_value(case["values"].clone()).unwrap();
            let near = |ours: Option<f64>, key: &str| {
                let theirs = case[key].as_f64().unwrap();
                let ours = ours.unwrap();
                assert!(
                    (ours - theirs).abs() <= 1e-12 * theirs.abs().max(1.0),
                    "{key}: {ours} is not {theirs} for {values:?}"
                );
            };
            near(median(&values), "median");
            near(mad(&values), "mad");
            near(mean(&values), "mean");
            near(std(&values), "std");
            near(quantile(&values, 0.9), "p90");
            near(quantile(&values, 0.99), "p99");
        }
    }
}
