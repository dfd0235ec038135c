//! The metrics of a `bench_serving` run: name, unit, and which direction is better.

use serde::{Deserialize, Serialize};

use crate::bench::result::Run;

/// The direction in which a metric improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// A higher value, as for throughput.
    Higher,
    /// A lower value, as for a latency or duration.
    Lower,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Key in the result file, and the name on the command line.
    pub key: &'static str,
    /// The name of the same quantity in vLLM's `benchmark_serving.py`; empty where it is the same or absent there.
    alias: &'static str,
    /// Unit of the value.
    pub unit: &'static str,
    /// The direction in which it improves.
    pub better: Better,
    /// Whether it is shown when no particular metric is requested.
    pub headline: bool,
}

/// The value of a metric in one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reading {
    /// A finite number above zero.
    Usable(f64),
    /// Zero, negative, infinite or NaN, so no ratio can be computed.
    Unusable(f64),
    /// The key is absent, null or not a number.
    Missing,
}

/// The metric that decides unless the user chose another one beforehand.
pub const DEFAULT: &str = "output_throughput";

const fn rate(
    key: &'static str,
    alias: &'static str,
    unit: &'static str,
    headline: bool,
) -> Metric {
    Metric {
        key,
        alias,
        unit,
        better: Better::Higher,
        headline,
    }
}

const fn time(key: &'static str, alias: &'static str, headline: bool) -> Metric {
    Metric {
        key,
        alias,
        unit: "ms",
        better: Better::Lower,
        headline,
    }
}

/// Every metric that has a direction, in display order. Keys: SGLang `bench_serving`
/// 0.5.5 to 0.5.23; aliases: `vllm bench serve`; per GPU: InferenceX. The last also writes times in seconds, under the
/// same names without `_ms`.
pub const METRICS: &[Metric] = &[
    rate("output_throughput", "", "tok/s", true),
    rate("total_throughput", "total_token_throughput", "tok/s", false),
    rate("input_throughput", "", "tok/s", false),
    rate("request_throughput", "", "req/s", true),
    time("median_ttft_ms", "", true),
    time("mean_ttft_ms", "", false),
    time("p90_ttft_ms", "", false),
    time("p95_ttft_ms", "", false),
    time("p99_ttft_ms", "", true),
    time("median_tpot_ms", "", true),
    time("mean_tpot_ms", "", false),
    time("p90_tpot_ms", "", false),
    time("p95_tpot_ms", "", false),
    time("p99_tpot_ms", "", false),
    time("median_itl_ms", "", true),
    time("mean_itl_ms", "", false),
    time("p90_itl_ms", "", false),
    time("p95_itl_ms", "", false),
    time("p99_itl_ms", "", false),
    time("median_e2e_latency_ms", "median_e2el_ms", true),
    time("mean_e2e_latency_ms", "mean_e2el_ms", false),
    time("p90_e2e_latency_ms", "p90_e2el_ms", false),
    time("p95_e2e_latency_ms", "p95_e2el_ms", false),
    time("p99_e2e_latency_ms", "p99_e2el_ms", false),
    rate("output_tput_per_gpu", "", "tok/s/GPU", false),
    rate("tput_per_gpu", "", "tok/s/GPU", false),
    rate("input_tput_per_gpu", "", "tok/s/GPU", false),
    Metric {
        key: "duration",
        alias: "",
        unit: "s",
        better: Better::Lower,
        headline: false,
    },
];

/// The metric with that key; `None` if there is none.
pub fn named(name: &str) -> Option<&'static Metric> {
    if name.is_empty() {
        return None;
    }
    // Times in seconds have the same name with `_s` in place of `_ms`.
    let milliseconds = format!("{}_ms", name.strip_suffix("_s").unwrap_or(name));
    let has = |metric: &&Metric, name: &str| metric.key == name || metric.alias == name;
    let metrics = || METRICS.iter();
    metrics()
        .find(|metric| has(metric, name))
        .or_else(|| metrics().find(|metric| has(metric, &milliseconds)))
}

impl Metric {
    /// The value of this metric in `run`.
    pub fn reading(&self, run: &Run) -> Reading {
        let Some(number) = self.number(run) else {
            return Reading::Missing;
        };
        if number.is_finite() && number > 0.0 {
            Reading::Usable(number)
        } else {
            Reading::Unusable(number)
        }
    }

    /// The value in this metric's unit, under whichever of its names the run has.
    fn number(&self, run: &Run) -> Option<f64> {
        let names = || {
            [self.key, self.alias]
                .into_iter()
                .filter(|name| !name.is_empty())
        };
        names().find_map(|name| run.number(name)).or_else(|| {
            names()
                .filter_map(|name| name.strip_suffix("_ms"))
                .find_map(|name| {
                    let seconds = run
                        .number(name)
                        .or_else(|| run.number(&format!("{name}_s")));
                    Some(seconds? * 1e3)
                })
        })
    }

    /// Numerator and denominator of the ratio that is above 1 when the tuned arm is better.
    pub fn oriented(&self, baseline: f64, tuned: f64) -> (f64, f64) {
        match self.better {
            Better::Higher => (tuned, baseline),
            Better::Lower => (baseline, tuned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_one_name_and_the_default_is_one_of_them() {
        for metric in METRICS {
            assert_eq!(named(metric.key), Some(metric));
        }
        assert!(named(DEFAULT).is_some());
        assert_eq!(
            named("median_e2el_ms").unwrap().key,
            "median_e2e_latency_ms"
        );
        assert_eq!(named("median_ttft").unwrap().key, "median_ttft_ms");
        assert_eq!(named("median_e2el_s").unwrap().key, "median_e2e_latency_ms");
        assert_eq!(named(""), None);
        assert_eq!(named("throughput"), None);
    }

    #[test]
    fn seconds_are_read_where_the_key_says_so() {
        let reading = |line: &str, name: &str| {
            let runs = crate::bench::result::parse("b", line).unwrap();
            named(name).unwrap().reading(&runs[0])
        };
        for line in [
            r#"{"median_ttft": 0.25}"#,
            r#"{"median_ttft_s": 0.25}"#,
            r#"{"median_ttft_ms": 250}"#,
            r#"{"median_ttft_ms": 250, "median_ttft": 9}"#,
        ] {
            assert_eq!(
                reading(line, "median_ttft_ms"),
                Reading::Usable(250.0),
                "{line}"
            );
        }
        let line = r#"{"median_e2el": 3.5, "duration": 4}"#;
        assert_eq!(
            reading(line, "median_e2e_latency_ms"),
            Reading::Usable(3500.0)
        );
        assert_eq!(reading(line, "duration"), Reading::Usable(4.0));
        assert_eq!(reading(line, "median_tpot_ms"), Reading::Missing);
        assert_eq!(
            reading(r#"{"median_ttft": 0}"#, "median_ttft_ms"),
            Reading::Unusable(0.0)
        );
    }

    #[test]
    fn the_ratio_is_above_one_when_tuned_is_better() {
        let ratio = |name: &str, baseline, tuned| {
            let (above, below) = named(name).unwrap().oriented(baseline, tuned);
            above / below
        };
        assert!(ratio("output_throughput", 100.0, 120.0) > 1.0);
        assert!(ratio("median_ttft_ms", 100.0, 80.0) > 1.0);
        assert!(ratio("duration", 10.0, 12.0) < 1.0);
    }
}
