//! What a configuration must be beyond having the right types.

use super::{BackendKind, Config, FusedMoe, Load, Routing};
use crate::workload::load;

/// Why a `gemmtune.toml` is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, a wrong type, an unknown or a missing name. The text shows the line.
    #[error("read the configuration: {0}")]
    Syntax(#[from] toml::de::Error),
    /// Two names of which exactly one must be there.
    #[error(
        "accept the configuration: `[{table}]` needs exactly one of `{one}` and `{other}`, and has {found}"
    )]
    ExactlyOne {
        /// Table of the two.
        table: &'static str,
        /// First name.
        one: &'static str,
        /// Second name.
        other: &'static str,
        /// `both` or `neither`.
        found: &'static str,
    },
    /// A name that another value makes necessary.
    #[error("accept the configuration: `{name}` is missing: {why}")]
    Missing {
        /// Dotted name.
        name: &'static str,
        /// What makes it necessary.
        why: &'static str,
    },
    /// A value that no run could work with.
    #[error("accept the configuration: `{name} = {value}`: {why}")]
    Value {
        /// Dotted name.
        name: String,
        /// The value as given.
        value: String,
        /// What is expected.
        why: &'static str,
    },
}

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let name = &self.workload.name;
        let plain =
            |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(ConfigError::Value {
                name: "workload.name".to_owned(),
                value: format!("{name:?}"),
                why: "letters, digits, `.`, `_` and `-`, and no `.` in front: it names a folder",
            });
        }
        for (key, command) in [
            ("server.command", &self.server.command),
            ("benchmark.command", &self.benchmark.command),
        ] {
            if command.as_ref().is_some_and(Vec::is_empty) {
                return Err(ConfigError::Value {
                    name: key.to_owned(),
                    value: "[]".to_owned(),
                    why: "a program is expected",
                });
            }
        }
        self.check_counts()?;
        self.check_variables()?;
        self.launch()?;
        self.measure()?;
        load::check(&self.benchmark.loads)?;
        if !self.backend.kind.is_built_in() && self.backend.python.is_none() {
            return Err(ConfigError::Missing {
                name: "backend.python",
                why: "the interpreter that runs the server decides which trees are used",
            });
        }
        let is_raced = matches!(
            self.backend.kind,
            BackendKind::SglangMoe | BackendKind::SglangTriton | BackendKind::SglangFamilies
        );
        if self.backend.expert_routing == Routing::Skewed && !is_raced {
            return Err(ConfigError::Value {
                name: "backend.expert_routing".to_owned(),
                value: "\"skewed\"".to_owned(),
                why: "only the fused MoE of SGLang's Triton kernel is raced under a routing: kinds `sglang-moe`, `sglang-triton` and `sglang-families`",
            });
        }
        let limit = self.backend.err_ratio;
        if let Some(share) = limit.filter(|_| self.backend.kind != BackendKind::Aiter) {
            return Err(ConfigError::Value {
                name: "backend.err_ratio".to_owned(),
                value: share.get().to_string(),
                why: "it is a limit of aiter's own tuners: kind `aiter`",
            });
        }
        if self.backend.kind == BackendKind::SglangMoe {
            let (name, value, why) = if self.backend.fused_moe == FusedMoe::Leave {
                let why = "`kind = \"sglang-moe\"` tunes nothing else";
                ("backend.fused_moe", "\"leave\"".to_owned(), why)
            } else if let Some(table) = &self.backend.table {
                let why = "no table of fused MoE is judged as it is yet: its race takes minutes";
                ("backend.table", format!("{:?}", table.as_str()), why)
            } else {
                return Ok(());
            };
            return Err(ConfigError::Value {
                name: name.to_owned(),
                value,
                why,
            });
        }
        Ok(())
    }

    /// No count may be zero: a zero means that the writer did not know, and then the name is left out.
    fn check_counts(&self) -> Result<(), ConfigError> {
        let mut counts = vec![
            ("workload.tp", Some(u64::from(self.workload.tp))),
            (
                "workload.concurrency",
                self.workload.concurrency.map(u64::from),
            ),
            ("server.port", Some(u64::from(self.server.port))),
            ("server.ready_timeout_s", Some(self.server.ready_timeout_s)),
            ("benchmark.repeats", Some(u64::from(self.benchmark.repeats))),
            ("benchmark.timeout_s", Some(self.benchmark.timeout_s)),
            ("backend.cu_num", self.backend.cu_num.map(u64::from)),
            ("compare.pairs", Some(u64::from(self.compare.pairs))),
        ];
        let loads = self.benchmark.builtin.iter().chain(&self.benchmark.loads);
        counts.extend(loads.flat_map(Load::counts));
        match counts.iter().find(|(_, count)| *count == Some(0)) {
            Some((name, _)) => Err(ConfigError::Value {
                name: (*name).to_owned(),
                value: "0".to_owned(),
                why: "at least 1 is expected",
            }),
            None => Ok(()),
        }
    }

    fn check_variables(&self) -> Result<(), ConfigError> {
        for name in self.server.env.keys().chain(&self.server.unset) {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(ConfigError::Value {
                    name: "server.env".to_owned(),
                    value: format!("{name:?}"),
                    why: "the name of an environment variable is expected",
                });
            }
        }
        match self
            .server
            .unset
            .iter()
            .find(|name| self.server.env.contains_key(*name))
        {
            Some(name) => Err(ConfigError::Value {
                name: "server.unset".to_owned(),
                value: format!("{name:?}"),
                why: "the same variable is set in `server.env`",
            }),
            None => Ok(()),
        }
    }
}
