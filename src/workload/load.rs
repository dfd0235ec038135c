//! The loads that gemmtune's own generator makes: `[benchmark] builtin = {…}`, or one `[[benchmark.loads]]` each.
//!
//! ```toml
//! [[benchmark.loads]]
//! name = "decode-1"
//! metric = "median_tpot_ms"      # what decides for this load; `compare.metric` when absent
//! concurrency = 1
//! prompts = 2
//! input_len = 128
//! output_len = 256
//! ```

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::config::ConfigError;

/// Up to this concurrency loads of as many requests gave intervals of 1 to 3 % (docs/evidence/sglang-h200-route).
const MEASURED: u32 = 32;

/// One load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Name among several loads, in result lines and in the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The metric that decides for this load alone; `compare.metric` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// Requests in flight at once (closed loop).
    pub concurrency: u32,
    /// Requests in all.
    pub prompts: u32,
    /// Prompt tokens per request.
    pub input_len: u32,
    /// Tokens generated per request; end-of-sequence is ignored.
    pub output_len: u32,
    /// Requests before the clock starts.
    #[serde(default = "one")]
    pub warmup: u32,
    /// Seed of the prompts: the same seed makes the same requests in both arms.
    #[serde(default)]
    pub seed: u64,
}

impl Load {
    /// Says so where the load has too few requests to stay at its concurrency.
    pub fn remark(&self) -> Option<String> {
        let least = 2 * u64::from(self.concurrency);
        (self.concurrency > MEASURED && u64::from(self.prompts) < least).then(|| {
            format!(
                "{} has {} requests at concurrency {}: all prefill at once and then all decode, and it falls below its concurrency when the \
                 first ones end; {least} and more (`prompts`) keep it there longer",
                self.name.as_deref().unwrap_or("the load"),
                self.prompts,
                self.concurrency,
            )
        })
    }

    /// Counts that may not be zero, by name.
    pub(super) fn counts(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("benchmark.builtin.concurrency", self.concurrency),
            ("benchmark.builtin.prompts", self.prompts),
            ("benchmark.builtin.input_len", self.input_len),
            ("benchmark.builtin.output_len", self.output_len),
        ]
        .map(|(name, count)| (name, Some(u64::from(count))))
    }
}

/// Refuses loads without a name and two of one name.
pub(super) fn check(loads: &[Load]) -> Result<(), ConfigError> {
    let mut names = BTreeSet::new();
    for load in loads {
        let name = load.name.as_deref().filter(|name| !name.trim().is_empty());
        let Some(name) = name else {
            return Err(ConfigError::Missing {
                name: "benchmark.loads.name",
                why: "each of several loads is judged on its own, under its name",
            });
        };
        if !names.insert(name) {
            return Err(ConfigError::Value {
                name: "benchmark.loads.name".to_owned(),
                value: format!("{name:?}"),
                why: "two loads have this name",
            });
        }
    }
    Ok(())
}

fn one() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use crate::workload::config::{Config, Measure};

    const TWO: &str = r#"
        [workload]
        name = "two"
        [server]
        command = ["serve"]
        [[benchmark.loads]]
        name = "decode"
        metric = "median_tpot_ms"
        concurrency = 1
        prompts = 2
        input_len = 128
        output_len = 256
        [[benchmark.loads]]
        name = "prefill"
        concurrency = 4
        prompts = 8
        input_len = 2048
        output_len = 32
        seed = 1
        [backend]
        kind = "reference"
    "#;

    #[test]
    fn several_loads_are_read_and_written_back() {
        let config = Config::parse(TWO).unwrap();
        let Measure::Builtin(loads) = config.measure().unwrap() else {
            panic!("loads were asked for");
        };
        assert_eq!(loads.len(), 2);
        assert_eq!(loads[0].metric.as_deref(), Some("median_tpot_ms"));
        assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn a_load_that_cannot_stay_at_its_concurrency_is_remarked() {
        let of = |concurrency, prompts| super::Load {
            name: Some("decode".to_owned()),
            metric: None,
            concurrency,
            prompts,
            input_len: 128,
            output_len: 256,
            warmup: 1,
            seed: 0,
        };
        let said = of(128, 128).remark().unwrap();
        insta::assert_snapshot!(said, @"decode has 128 requests at concurrency 128: all prefill at once and then all decode, and it falls below its concurrency when the first ones end; 256 and more (`prompts`) keep it there longer");
        assert_eq!(of(128, 256).remark(), None);
        assert_eq!(of(32, 32).remark(), None);
    }

    #[test]
    fn loads_are_refused_by_what_is_wrong_with_them() {
        let said = [
            ("name = \"prefill\"", "name = \"decode\""),
            ("name = \"prefill\"", ""),
            ("prompts = 8", "prompts = 0"),
            (
                "[[benchmark.loads]]\n        name = \"decode\"",
                "[benchmark]\nbuiltin = { concurrency = 1, prompts = 1, input_len = 1, output_len = 1 }\n[[benchmark.loads]]\nname = \"decode\"",
            ),
        ]
        .map(|(from, to)| {
            let error = Config::parse(&TWO.replacen(from, to, 1)).unwrap_err();
            error.to_string()
        });
        insta::assert_snapshot!(said.join("\n"), @r#"
        accept the configuration: `benchmark.loads.name = "decode"`: two loads have this name
        accept the configuration: `benchmark.loads.name` is missing: each of several loads is judged on its own, under its name
        accept the configuration: `benchmark.builtin.prompts = 0`: at least 1 is expected
        accept the configuration: `[benchmark]` needs exactly one of `builtin` and `loads`, and has both
        "#);
    }
}
