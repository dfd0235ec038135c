//! The built-in CPU engine as a server: it logs its shapes and look-ups as SGLang and aiter do, and offers a check of
//! its numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::Utf8Path;
use serde::Deserialize;
use serde_json::json;

use crate::engine::ports::Server;
use crate::log::summary::LogSummary;
use crate::probe::found::LayoutCheck;
use crate::problem::Shape;
use crate::run::error::{Error, ErrorKind};
use crate::store::run_dir::RunDir;
use crate::workload::env::Environment;
use crate::workload::loopback::agent;

/// One numerics probe of the largest shape takes well under this on one core.
const PROBE: Duration = Duration::from_secs(60);

/// The built-in CPU engine as a server.
#[derive(Debug)]
pub(crate) struct Reference;

impl Server for Reference {
    fn surroundings(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn capture_env(&self, _run: &RunDir, _records: &Utf8Path) -> Result<Environment, Error> {
        Ok(set(&[
            ("SGLANG_DUMP_AITER_FP8_GEMM_SHAPES", "1"),
            ("SGLANG_LOG_FP8_BLOCK_GEMM_DISPATCH", "1"),
        ]))
    }

    fn check_capture(&self, log_summary: &LogSummary) -> Result<(), Error> {
        if log_summary.dispatch.is_empty() {
            return Err(Error::new(
                ErrorKind::NoShapes,
                "the instrumented server never said which implementation serves its block-FP8 layers",
            ));
        }
        Ok(())
    }

    fn check_layout(&self, base_url: &str, shapes: &[Shape]) -> Result<Vec<LayoutCheck>, Error> {
        let agent = agent(PROBE);
        let url = format!("{base_url}/gemm_check");
        let mut checks = Vec::new();
        for (index, shape) in shapes.iter().enumerate() {
            let question = json!({ "M": shape.m, "N": shape.n, "K": shape.k, "seed": index });
            let failed = |why: String| {
                Error::new(
                    ErrorKind::WorkloadFailed,
                    format!("the numerics probe of {shape} failed: {why}"),
                )
            };
            let text = agent
                .post(&url)
                .header("content-type", "application/json")
                .send(question.to_string())
                .and_then(|mut response| response.body_mut().read_to_string())
                .map_err(|error| failed(error.to_string()))?;
            let answer: Answer = serde_json::from_str(&text)
                .map_err(|error| failed(format!("{error} in {text:?}")))?;
            checks.push(LayoutCheck {
                m: shape.m,
                n: shape.n,
                k: shape.k,
                kernel: answer.kernel_name,
                relative_error: answer.relative_error.filter(|_| answer.finite),
                limit: LIMIT,
            });
        }
        Ok(checks)
    }

    fn expected_differences(&self) -> &'static [&'static str] {
        &["table_path", "table_digest"]
    }
}

/// An environment that sets these variables.
pub(crate) fn set(pairs: &[(&str, &str)]) -> Environment {
    pairs
        .iter()
        .map(|&(name, value)| (name.to_owned(), Some(value.to_owned())))
        .collect()
}

/// Largest accepted error of the engine's kernels: rounding to bfloat16 costs about 0.0017 in norm, a wrong scale
/// layout 0.18 or more.
const LIMIT: f64 = 0.004;

/// The part of the `/gemm_check` response that is used here.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(rename = "kernelName")]
    kernel_name: String,
    relative_error: Option<f64>,
    finite: bool,
}
