//! Numbers formatted for display.

use crate::compare::MetricResult;

/// `value` with `digits` significant digits, thousands separated by a thin space; `–` for `None`.
pub(super) fn significant(value: Option<f64>, digits: i32) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else {
        return "–".to_owned();
    };
    if value == 0.0 {
        return "0".to_owned();
    }
    let decimals = (digits - 1 - value.abs().log10().floor() as i32).clamp(0, 6) as usize;
    grouped(&format!("{value:.decimals$}"))
}

/// A whole number, thousands separated.
pub(super) fn whole(value: impl TryInto<i128>) -> String {
    value
        .try_into()
        .map_or_else(|_| "–".to_owned(), |value| grouped(&value.to_string()))
}

/// A share of 1 as a percentage.
pub(super) fn percent(share: f64) -> String {
    if !share.is_finite() {
        return "–".to_owned();
    }
    let percent = share * 100.0;
    if percent > 99.9 && percent < 100.0 {
        return "> 99.9 %".to_owned();
    }
    format!("{percent:.1} %")
}

/// A ratio with three decimals.
pub(super) fn ratio(ratio: Option<f64>) -> String {
    ratio
        .filter(|ratio| ratio.is_finite())
        .map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.3}"))
}

/// Baseline, tuned, ratio and interval of a metric.
pub(super) fn measured(metric: &MetricResult) -> [String; 4] {
    let bound = &metric.ratio;
    [
        significant(metric.baseline, 4),
        significant(metric.tuned, 4),
        ratio(bound.median),
        format!("{} to {}", ratio(bound.low), ratio(bound.high)),
    ]
}

/// Separates thousands of the whole part from 10 000 on (U+202F, narrow no-break space).
fn grouped(text: &str) -> String {
    let (sign, text) = text
        .strip_prefix('-')
        .map_or(("", text), |text| ("-", text));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut grouped = String::from(sign);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && whole.len() > 4 && (whole.len() - index).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    if !fraction.is_empty() {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(significant(Some(2678.03), 4), "2678");
        assert_eq!(significant(Some(0.012_345), 3), "0.0123");
        assert_eq!(significant(Some(1_234_567.0), 4), "1\u{202f}234\u{202f}567");
        assert_eq!(significant(Some(f64::NAN), 4), "–");
        assert_eq!(significant(None, 4), "–");
        assert_eq!(whole(12_345_u64), "12\u{202f}345");
        assert_eq!(whole(-1234_i64), "-1234");
        assert_eq!(percent(0.9996), "> 99.9 %");
        assert_eq!(percent(1.0), "100.0 %");
        assert_eq!(ratio(Some(1.17)), "1.170");
    }
}
