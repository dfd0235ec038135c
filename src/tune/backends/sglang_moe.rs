//! SGLang's Triton kernel for fused MoE: two grouped GEMMs over one sort of the tokens, raced separately and then
//! together.
//!
//! Both GEMMs read one sorted routing, so their rows share BLOCK_SIZE_M but are otherwise independent, and their
//! times add up. So for each number of tokens and each reasonable BLOCK_SIZE_M *up* and *down* are separate races
//! ([`task::Part`]); their winners are combined, and the pairs race as whole operations against the pair that serves
//! today, in SGLang's own `fused_experts` if the worker can import it. A row is kept only if it won there.

pub mod tables;
pub mod task;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use self::tables::Today;
use self::task::{MoeTask, Part, Sizes, pair};
use super::sglang_triton::space::{Config, Space, is_rocm};
use super::{Backend, Deadlines, Field, Pace, Written};
use crate::problem::fused_moe::MoeOp;
use crate::problem::{Op, Shape};
use crate::tune::points::Refine;
use crate::tune::protocol::{Candidate, Device};
use crate::tune::race::Rules;
use crate::tune::results::Row;
use crate::tune::rules::{Effort, gpu_rules};

/// Which token goes to which experts while candidates are timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routing {
    /// Every expert is as likely as any other, as in a balanced model.
    #[default]
    Uniform,
    /// The r-th expert is r times less likely than the first.
    Skewed,
}

impl Routing {
    const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Skewed => "skewed",
        }
    }
}

/// The runtime for which tables are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// SGLang: a row for each of the two GEMMs.
    #[default]
    Sglang,
    /// vLLM: one row for both, in a file with a different name.
    Vllm,
}

/// The backend of SGLang's Triton kernel for fused MoE with block-scaled FP8 experts.
#[derive(Debug)]
pub struct SglangMoe {
    /// Scale block of the weights: N side, K side.
    pub block: (u32, u32),
    /// Tables in use: an `sglang` package, or the folder that `SGLANG_MOE_CONFIG_DIR` names; those of the worker's
    /// software when absent.
    pub tables: Option<Utf8PathBuf>,
    /// The routing with which candidates are timed.
    pub routing: Routing,
    /// The runtime for which tables are written.
    pub engine: Engine,
    /// Whether the worker runs SGLang's whole operation; otherwise the two GEMMs replace it, and a worker starts at
    /// once.
    pub whole: bool,
    today: Mutex<BTreeMap<Sizes, Today>>,
}

impl SglangMoe {
    /// The backend for scale blocks of `block`.
    pub fn new(block: (u32, u32)) -> Self {
        Self {
            block,
            tables: None,
            routing: Routing::default(),
            engine: Engine::default(),
            whole: true,
            today: Mutex::default(),
        }
    }

    /// What serves `task` without a new table.
    fn served(&self, device: &Device, task: &MoeTask) -> Candidate {
        let sizes = task.sizes();
        let mut known = self.today.lock().unwrap_or_else(PoisonError::into_inner);
        let today = known
            .entry(sizes)
            .or_insert_with(|| self.look_up(device, sizes));
        today.pair(task.m)
    }

    fn look_up(&self, device: &Device, sizes: Sizes) -> Today {
        match self.engine {
            Engine::Sglang => Today::of(device, self.tables.as_deref(), sizes, self.block),
            // vLLM has its own tables, which are not read; its default is the same.
            Engine::Vllm => Today::default_of(device, sizes, self.block),
        }
    }

    /// The rows, columns and depth of a part's tiles as those of a dense GEMM, which determines the settings. Rows
    /// are those SGLang sorts into, padding included.
    fn as_gemm(task: &MoeTask) -> Shape {
        let (n, k) = task.gemm(task.part);
        let padding = u64::from(task.experts + 1) * u64::from(task.block_m.saturating_sub(1));
        let padded = task.pairs() + padding.min(task.pairs() * u64::from(task.block_m));
        Shape {
            op: Op::TritonBlockFp8,
            m: u32::try_from(padded).unwrap_or(u32::MAX),
            n,
            k,
            dtype: String::new(),
        }
    }

    /// The settings of one GEMM with its BLOCK_SIZE_M.
    pub fn settings(&self, device: &Device, part: &MoeTask) -> Vec<Config> {
        let configs = self.space(device).configs(device, &Self::as_gemm(part));
        configs
            .into_iter()
            .filter(|config| config.block_m == part.block_m)
            .collect()
    }

    /// SGLang's space of dense GEMMs; on ROCm also with tiles of 16 rows: the matrix instruction has 16, in decode a
    /// token's experts have fewer, and SGLang's own tuner for fused MoE starts at 32 there (0.5.16).
    fn space(&self, device: &Device) -> Space {
        let space = Space::of(device, self.block.1);
        if is_rocm(device) {
            Space {
                block_m: &[16, 32, 64, 128, 256],
                ..space
            }
        } else {
            space
        }
    }
}

/// A row without the key for how operands are loaded, which SGLang removes before it launches.
fn launched(row: &Candidate) -> Candidate {
    let mut row = row.clone();
    if let Some(row) = row.as_object_mut() {
        row.shift_remove("USE_TMA");
    }
    row
}

impl Backend<MoeTask> for SglangMoe {
    fn name(&self) -> &'static str {
        "sglang-moe"
    }

    fn options(&self) -> Value {
        let (n, k) = self.block;
        let mut options = json!({"problem": "fused_moe", "block": [n, k], "routing": self.routing.name(),
            "joint": self.engine == Engine::Vllm});
        if !self.whole {
            options["whole"] = false.into();
        }
        options
    }

    fn op(&self) -> MoeOp {
        MoeOp::FusedMoeTriton
    }

    fn refine(&self, _: Effort) -> Refine {
        Refine::Every
    }

    fn rules(&self, effort: Effort) -> Rules {
        let rules = gpu_rules(effort);
        Rules {
            // Each step of a GEMM's search is small, and in a race of `experiments/fused-moe` the fourth was still
            // worthwhile.
            expansions: rules.expansions.max(4),
            expansion_gain: rules.expansion_gain.min(0.005),
            // A worker counts elements that are off by a twentieth or more; correct ones have none.
            max_err_ratio: 0.01,
            ..rules
        }
    }

    fn pace(&self) -> Pace {
        let pace = Pace::on_gpus();
        Pace {
            deadlines: Deadlines {
                hello: 2 * pace.deadlines.hello,
                // In the first whole operations Triton and torch may load and compile what surrounds the GEMMs.
                floor: Duration::from_secs(60),
                ..pace.deadlines
            },
            ..pace
        }
    }

    fn incumbent(&self, device: &Device, task: &MoeTask) -> Option<Candidate> {
        let served = self.served(device, task);
        let row = match task.part {
            Part::Whole => return Some(served),
            Part::Up => &served["up"],
            Part::Down if served["down"].is_null() => &served["up"],
            Part::Down => &served["down"],
        };
        (row["BLOCK_SIZE_M"] == task.block_m).then(|| launched(row))
    }

    fn field(
        &self,
        device: &Device,
        task: &MoeTask,
        neighbours: &[Candidate],
        effort: Effort,
    ) -> Field {
        let incumbent = self.incumbent(device, task);
        if task.part == Part::Whole {
            let others: Vec<Candidate> = match self.engine {
                Engine::Sglang => neighbours.to_vec(),
                Engine::Vllm => neighbours.iter().flat_map(joint).collect(),
            };
            return Field::new(incumbent, others, 16);
        }
        let shape = Self::as_gemm(task);
        let space = self.space(device);
        let folded = |row: &Candidate| match Config::read(row) {
            Some(config) => space.canonical(&config, &shape).candidate(),
            None => row.clone(),
        };
        let known = incumbent.as_ref().map(folded);
        let (first, rest): (Vec<Config>, Vec<Config>) = self
            .settings(device, task)
            .into_iter()
            .partition(|config| is_likely(config, self.block.1, is_rocm(device)));
        let others = neighbours
            .iter()
            .map(folded)
            .chain(first.iter().chain(&rest).map(Config::candidate))
            .filter(|candidate| Some(candidate) != known.as_ref());
        let at_most = match effort {
            Effort::Quick => 28,
            Effort::Full => 96,
        };
        Field::new(incumbent, others, at_most)
    }

    fn relatives(&self, device: &Device, task: &MoeTask, candidate: &Candidate) -> Vec<Candidate> {
        let Some(config) = Config::read(candidate) else {
            return Vec::new(); // a pair: its rows have won already
        };
        self.space(device)
            .around(&config, device, &Self::as_gemm(task))
            .iter()
            .filter(|config| config.block_m == task.block_m)
            .map(Config::candidate)
            .collect()
    }

    fn write(
        &self,
        folder: &Utf8Path,
        device: &Device,
        rows: &[Row<MoeTask>],
    ) -> std::io::Result<Written> {
        let whole: Vec<&Row<MoeTask>> = rows
            .iter()
            .filter(|row| row.shape.part == Part::Whole)
            .collect();
        if whole.is_empty() {
            return Ok(Written::default());
        }
        let mut by_sizes: BTreeMap<Sizes, Vec<(u32, Candidate)>> = BTreeMap::new();
        for row in &whole {
            let raced = by_sizes.entry(row.shape.sizes()).or_default();
            raced.push((row.shape.m, row.candidate.clone()));
        }
        let tables: Vec<tables::Table> = by_sizes
            .into_iter()
            .map(|(sizes, raced)| {
                let today = self.look_up(device, sizes);
                tables::Table::placed(device, sizes, self.block, &raced, &today)
            })
            .collect();
        let provenance = tables::provenance(device, &whole);
        match self.engine {
            Engine::Sglang => {
                let carried = self
                    .tables
                    .as_deref()
                    .unwrap_or(Utf8Path::new(&device.shipped));
                tables::write_sglang(folder, device, carried, &tables, &provenance)
            }
            Engine::Vllm => tables::write_vllm(folder, &tables, &provenance),
        }
    }
}

/// A pair as candidates that use one row for both GEMMs.
fn joint(candidate: &Candidate) -> Vec<Candidate> {
    let rows = [&candidate["up"], &candidate["down"]];
    rows.into_iter()
        .filter(|row| !row.is_null())
        .map(|row| pair(row, None))
        .collect()
}

/// Where the search begins: whole scale blocks and tiles of medium width and depth, one or two steps from the winners
/// of four models on an H200.
fn is_likely(config: &Config, scale_k: u32, rocm: bool) -> bool {
    config.block_k == scale_k
        && matches!(config.block_n, 64 | 128 | 256)
        && (rocm || matches!(config.stages, 3 | 4))
        && (config.group_m == 1 || config.block_m >= 64 && config.group_m == 32)
}

#[cfg(test)]
mod tests {
    use super::super::sglang_triton::space::tests::h100;
    use super::task::tests::QWEN;
    use super::*;
    use crate::tune::task::Task as _;

    #[test]
    fn the_default_is_the_incumbent_where_there_is_no_table() {
        let backend = SglangMoe::new((128, 128));
        let whole = MoeTask::whole(QWEN, 4);
        let field = backend.field(&h100(&[]), &whole, &[], Effort::Quick);
        let default = json!({"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128,
            "GROUP_SIZE_M": 32, "num_warps": 4, "num_stages": 3});
        assert_eq!(field.candidates, [pair(&default, None)]);
        assert!(field.has_incumbent);
        // With its own BLOCK_SIZE_M it is also what a GEMM's race must beat.
        for part in MoeTask::whole(QWEN, 256).parts() {
            let field = backend.field(&h100(&[]), &part, &[], Effort::Quick);
            assert_eq!(field.has_incumbent, part.block_m == 64, "{part}");
            assert_eq!(field.candidates.contains(&default), part.block_m == 64);
        }
    }

    #[test]
    fn a_gemm_is_raced_under_its_block_size_and_whole_scale_blocks() {
        let backend = SglangMoe::new((128, 128));
        let device = h100(&[]);
        for part in MoeTask::whole(QWEN, 1024).parts() {
            let field = backend.field(&device, &part, &[], Effort::Full);
            assert!(field.candidates.len() > 28, "{part}");
            let around = backend.relatives(&device, &part, &field.candidates[1]);
            assert!(around.len() > 4, "{part}: {around:?}");
            for candidate in field.candidates.iter().chain(&around) {
                assert_eq!(candidate["BLOCK_SIZE_M"], part.block_m);
                assert!(128 % candidate["BLOCK_SIZE_K"].as_u64().unwrap() == 0);
            }
        }
    }

    #[test]
    fn vllm_gets_one_row_for_both_gemms() {
        let backend = SglangMoe {
            engine: Engine::Vllm,
            ..SglangMoe::new((128, 128))
        };
        let (up, down) = (
            json!({"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64}),
            json!({"BLOCK_SIZE_M": 16}),
        );
        let raced = pair(&up, Some(&down));
        let field = backend.field(
            &h100(&[]),
            &MoeTask::whole(QWEN, 1),
            &[raced],
            Effort::Quick,
        );
        assert_eq!(field.candidates[1..], [pair(&up, None), pair(&down, None)]);
    }
}
