//! The numbers of the deployed tables, in a process of its own with the tuned server's environment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::deployed::{Deployed, Row};
use super::{FOLDER, SglangMoe};
use crate::engine::ports::DeployedMoePart;
use crate::kernel::placed::{Check, refuse_other};
use crate::run::documents::MoeCheck;
use crate::run::error::Error;
use crate::tune::backends::sglang_triton::worker_files;
use crate::tune::moe::{MoeTask, Sizes};

/// Runs SGLang's own operation on dummy weights and compares it with float32.
const CHECK: Check = Check {
    program: include_str!("../../../python/probe/moe_check.py"),
    name: "check of fused MoE",
    longest: Duration::from_secs(900),
};

/// Largest accepted error. Both sides quantise the activations to FP8 twice, and where one rounds a tie the other way
/// an element changes by an eighth: 0.004 to 0.018 on an H200 for three models (docs/evidence/fused-moe-tune-h200). A
/// BLOCK_SIZE_K over two scale blocks gave 0.45 there.
const LIMIT: f64 = 0.05;

/// Tries the deployed operation at each size that won, and at sizes served by rows of every kind.
pub(super) fn run(
    kernels: &SglangMoe,
    part: &DeployedMoePart<'_>,
    deployed: &Deployed,
) -> Result<Vec<MoeCheck>, Error> {
    let tasks = sizes(part.tuned.won().map(|row| &row.shape));
    let folder = part.run.tune().join(FOLDER);
    fs_err::create_dir_all(&folder).map_err(|error| Error::file(&error))?;
    let worker = worker_files::write(&folder).map_err(|error| Error::file(&error))?;
    let order = json!({
        "worker": worker.parent().map_or("", camino::Utf8Path::as_str),
        "tasks": tasks,
    });
    let env = part.env.clone();
    let answers: Vec<Answer> =
        CHECK.ask_about(&kernels.site, env, &order, tasks.len(), part.interrupt)?;
    let other = answers.iter().find_map(|answer| answer.not_of(deployed));
    refuse_other("check of fused MoE", other)?;
    Ok(answers.into_iter().map(Answer::into_check).collect())
}

/// Each size that won, and for each weight M of 1, 2, 33, 128 and the largest, where rows taken over from the
/// previous table serve too.
fn sizes<'a>(won: impl Iterator<Item = &'a MoeTask>) -> Vec<MoeTask> {
    let mut by_weight: BTreeMap<Sizes, BTreeSet<u32>> = BTreeMap::new();
    for task in won {
        let sizes = by_weight.entry(task.sizes()).or_default();
        sizes.extend([1, 2, 33, 128, task.m]);
    }
    by_weight
        .into_iter()
        .flat_map(|(sizes, all)| all.into_iter().map(move |m| MoeTask::whole(sizes, m)))
        .collect()
}

/// One answer of the check.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(flatten)]
    task: MoeTask,
    relative_error: Option<f64>,
    /// The rows that SGLang's look-up returned: `{"up": …, "down": …}`; null if it was not called.
    rows: Value,
    failure: Option<String>,
}

impl Answer {
    fn row(&self) -> Option<Row> {
        (!self.rows.is_null()).then(|| Row::of(&self.rows["up"], &self.rows["down"]))
    }

    /// If something other than the deployed row served this size: a description of that, because the check is then
    /// about another kernel.
    fn not_of(&self, deployed: &Deployed) -> Option<String> {
        let meant = deployed.row(self.task.experts, self.task.inter, self.task.m);
        let found = self.row();
        if self.failure.is_some() || (found.is_some() && found == meant) {
            return None;
        }
        let name = |row: Option<Row>| row.map_or_else(|| "no row".to_owned(), |row| row.name());
        Some(format!(
            "{} ran with {}, not with the deployed {}",
            self.task,
            name(found),
            name(meant)
        ))
    }

    fn into_check(self) -> MoeCheck {
        let row = self.row();
        MoeCheck {
            kernel: match (self.failure, row) {
                (Some(failure), _) => failure,
                (None, Some(row)) => row.name(),
                (None, None) => "a row that was not named".to_owned(),
            },
            task: self.task,
            relative_error: self.relative_error,
            limit: LIMIT,
            us: None,
            tuned_us: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN: Sizes = Sizes {
        experts: 128,
        inter: 768,
        hidden: 2048,
        topk: 8,
    };

    #[test]
    fn every_size_that_won_is_tried_and_sizes_between() {
        let won = [MoeTask::whole(QWEN, 8), MoeTask::whole(QWEN, 4096)];
        let tried: Vec<u32> = sizes(won.iter()).iter().map(|task| task.m).collect();
        assert_eq!(tried, [1, 2, 8, 33, 128, 4096]);
    }
}
