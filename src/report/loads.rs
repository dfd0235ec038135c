//! Several loads, each judged by its own metric.

use maud::{Markup, html};

use super::model::{Report, plain_name};
use super::number::{ratio, significant};
use super::section::{Number, Text, Wide, table};
use crate::compare::{Comparison, LoadComparison};

/// The section of the page; absent where there was one load.
pub(super) fn section(report: &Report) -> Option<Markup> {
    let comparison = report.comparison.as_ref()?;
    if comparison.loads.is_empty() {
        return None;
    }
    let columns = [
        ("load", Wide),
        ("decided by", Text),
        ("baseline", Number),
        ("tuned", Number),
        ("ratio", Number),
        ("interval", Number),
        ("verdict", Text),
        ("predicted", Number),
        ("off by", Number),
    ];
    let caption = "Each load by its own metric, over the same pairs of server starts";
    Some(html! {
        p {
            "The predicted ratio was computed before anything was deployed, from the times of the kernels and the calls \
             of a forward pass; off by says how far the measured one is from it."
        }
        (table(caption, &columns, &lines(comparison)))
    })
}

/// A row for each load: name, metric, both values, ratio, interval, verdict, prediction, error of the prediction.
pub(super) fn lines(comparison: &Comparison) -> Vec<Vec<String>> {
    let line = |load: &LoadComparison| {
        let own = &load.comparison;
        let decisive = own.metrics.first();
        let sign = |off: f64| format!("{:+.1} %", off * 100.0);
        vec![
            load.load.clone(),
            decisive.map_or_else(String::new, |metric| {
                format!("{}, {}", plain_name(metric), metric.unit)
            }),
            significant(decisive.and_then(|metric| metric.baseline), 4),
            significant(decisive.and_then(|metric| metric.tuned), 4),
            ratio(own.ratio.median),
            format!("{} to {}", ratio(own.ratio.low), ratio(own.ratio.high)),
            own.verdict.to_string(),
            ratio(load.predicted),
            load.off().map_or_else(|| "–".to_owned(), sign),
        ]
    };
    comparison.loads.iter().map(line).collect()
}
