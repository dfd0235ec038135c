//! The races of a fused MoE: each of its two GEMMs with each BLOCK_SIZE_M, and then the whole operation.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::problem::fused_moe::{MoeOp, MoeProblem, Scales};
use crate::tune::protocol::Candidate;
use crate::tune::task::Task;

/// The part of the operation that is raced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The gate and up projection: M·topk rows of N·2 columns over K.
    Up,
    /// The down projection: M·topk rows of K columns over N.
    Down,
    /// The whole operation, with a row for each.
    Whole,
}

/// The sizes of a fused MoE on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sizes {
    /// Local experts, a fused shared expert included.
    pub experts: u32,
    /// Columns between the GEMMs, half of the up projection's rows.
    pub inter: u32,
    /// Hidden size.
    pub hidden: u32,
    /// Experts for each token, a fused shared expert included.
    pub topk: u32,
}

/// One race: a part of a fused MoE, or all of it, for one number of tokens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MoeTask {
    op: MoeOp,
    /// Local experts, a fused shared expert included.
    #[serde(rename = "E")]
    pub experts: u32,
    /// Columns between the GEMMs.
    #[serde(rename = "N")]
    pub inter: u32,
    /// Hidden size.
    #[serde(rename = "K")]
    pub hidden: u32,
    /// Experts for each token, a fused shared expert included.
    pub topk: u32,
    /// How many of `experts` and `topk` are fused shared experts, which every token uses.
    pub shared: u32,
    pub part: Part,
    /// The BLOCK_SIZE_M with which a GEMM is raced; 0 for the whole operation, whose rows have it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub block_m: u32,
    /// Tokens of the forward.
    #[serde(rename = "M")]
    pub m: u32,
    /// Experts of all ranks, if a call is given a mask of those that this one has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts_of_all: Option<u32>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Values of BLOCK_SIZE_M to try. SGLang's tuner goes up to 256; on an H200 none of 28 winners had more than 128.
const BLOCKS_M: [u32; 4] = [16, 32, 64, 128];

impl MoeTask {
    /// The whole operation of `sizes` for `m` tokens.
    pub fn whole(sizes: Sizes, m: u32) -> Self {
        let Sizes {
            experts,
            inter,
            hidden,
            topk,
        } = sizes;
        Self {
            op: MoeOp::FusedMoeTriton,
            experts,
            inter,
            hidden,
            topk,
            // The number of routed experts is even in every model into which SGLang fuses a shared one (256, 160,
            // 512, and what expert parallelism leaves of them), so an odd number includes one.
            shared: u32::from(experts % 2 == 1 && topk > 1),
            part: Part::Whole,
            block_m: 0,
            m,
            experts_of_all: None,
        }
    }

    /// aiter's operation on `problem` for `m` tokens, or the reason why it cannot be raced; it is tuned only as a
    /// whole.
    pub fn of_aiter(problem: &MoeProblem, m: u32) -> Result<Self, String> {
        let task = Self::of(problem, m, (128, 128))?;
        Ok(Self {
            op: MoeOp::FusedMoeAiter,
            // With a mask the experts here are a subset, which may or may not include the shared one.
            shared: if problem.experts_of_all.is_some() {
                0
            } else {
                task.shared
            },
            experts_of_all: problem.experts_of_all,
            ..task
        })
    }

    /// The problem without M.
    pub fn problem(&self) -> MoeProblem {
        MoeProblem {
            experts: self.experts,
            n: self.inter,
            hidden: Some(self.hidden),
            topk: Some(self.topk),
            dtype: "fp8_w8a8".to_owned(),
            scales: Scales::Block(128, 128),
            experts_of_all: self.experts_of_all,
        }
    }

    /// The whole operation of `problem`, whose scale blocks are `block`, for `m` tokens, or the reason why it cannot
    /// be raced.
    pub fn of(problem: &MoeProblem, m: u32, block: (u32, u32)) -> Result<Self, String> {
        let (Some(hidden), Some(topk)) = (problem.hidden, problem.topk) else {
            return Err("its hidden size and topk are not known".to_owned());
        };
        let known = problem.scales == Scales::Block(block.0, block.1);
        if problem.dtype != "fp8_w8a8" || !known {
            return Err(format!(
                "only FP8 experts (dtype fp8_w8a8) with scales of {}x{} are raced",
                block.0, block.1
            ));
        }
        if topk > problem.experts_of_all.unwrap_or(problem.experts)
            || !problem.n.is_multiple_of(block.0)
            || !hidden.is_multiple_of(block.1)
        {
            return Err(format!(
                "SGLang would not load it: N and K have to be multiples of {} and {}, and topk at most E",
                block.0, block.1
            ));
        }
        let sizes = Sizes {
            experts: problem.experts,
            inter: problem.n,
            hidden,
            topk,
        };
        Ok(Self::whole(sizes, m))
    }

    /// The sizes of the fused MoE that it is a race of.
    pub const fn sizes(&self) -> Sizes {
        Sizes {
            experts: self.experts,
            inter: self.inter,
            hidden: self.hidden,
            topk: self.topk,
        }
    }

    /// The race of one of its GEMMs with one BLOCK_SIZE_M.
    fn part(&self, part: Part, block_m: u32) -> Self {
        Self {
            part,
            block_m,
            ..self.clone()
        }
    }

    /// Rows of work: one for each token and each of its experts.
    pub fn pairs(&self) -> u64 {
        u64::from(self.m) * u64::from(self.topk)
    }

    /// Most experts that can have at least one row.
    fn experts_hit(&self) -> u64 {
        let routed = u64::from(self.m) * u64::from(self.topk - self.shared);
        u64::from(self.experts).min(routed + u64::from(self.shared))
    }

    /// Rows of the weight and columns of both operands of a GEMM.
    pub const fn gemm(&self, part: Part) -> (u32, u32) {
        match part {
            Part::Down => (self.hidden, self.inter),
            Part::Up | Part::Whole => (2 * self.inter, self.hidden),
        }
    }

    /// The BLOCK_SIZE_M worth racing: within a factor of four of the mean number of rows of a used expert. On an H200
    /// no winner of four models was outside.
    pub fn blocks_m(&self) -> Vec<u32> {
        let rows = self.pairs().div_ceil(self.experts_hit().max(1));
        let rows = rows.max(1).next_power_of_two();
        BLOCKS_M
            .into_iter()
            .filter(|block| {
                let block = u64::from(*block);
                rows <= 4 * block && block <= (4 * rows).max(16)
            })
            .chain((rows > 4 * 128).then_some(128))
            .collect()
    }

    /// The product of rows, columns and depth, summed over its GEMMs.
    fn products(&self, rows: u64) -> f64 {
        let of = |part| {
            let (n, k) = self.gemm(part);
            rows as f64 * f64::from(n) * f64::from(k)
        };
        match self.part {
            Part::Whole => of(Part::Up) + of(Part::Down),
            part => of(part),
        }
    }
}

impl fmt::Display for MoeTask {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sizes {
            experts,
            inter,
            hidden,
            topk,
        } = self.sizes();
        write!(
            formatter,
            "{} E={experts} N={inter} K={hidden} topk={topk} M={}",
            self.op, self.m
        )?;
        if let Some(all) = self.experts_of_all {
            write!(formatter, " of {all} experts")?;
        }
        match self.part {
            Part::Whole => Ok(()),
            Part::Up => write!(formatter, " (up, BLOCK_SIZE_M {})", self.block_m),
            Part::Down => write!(formatter, " (down, BLOCK_SIZE_M {})", self.block_m),
        }
    }
}

impl Task for MoeTask {
    type Op = MoeOp;

    fn op(&self) -> MoeOp {
        self.op
    }

    fn m(&self) -> u32 {
        self.m
    }

    type Weights = (Sizes, Part, u32);

    fn weights(&self) -> Self::Weights {
        (Self::sizes(self), self.part, self.block_m)
    }

    fn at((sizes, part, block_m): &Self::Weights, m: u32) -> Self {
        Self::whole(*sizes, m).part(*part, *block_m)
    }

    fn flops(&self) -> f64 {
        2.0 * self.products(self.pairs())
    }

    /// Operations, plus weight bytes, which dominate for few rows: 64 rows stand for the bytes of each used expert,
    /// as for a dense GEMM.
    ///
    /// The whole operation costs next to nothing compared with its parts, and comes last: a worker imports SGLang for
    /// it, and is slower at everything after that.
    fn cost(&self) -> f64 {
        let cost = self.products(self.pairs().max(64 * self.experts_hit()));
        match self.part {
            Part::Whole => cost * 1e-9,
            Part::Up | Part::Down => cost,
        }
    }

    fn sizes(&self) -> Map<String, Value> {
        let sizes = json!({"e": self.experts, "n": self.inter, "k": self.hidden, "topk": self.topk, "m": self.m,
            "part": self.part, "block_m": self.block_m});
        sizes.as_object().cloned().unwrap_or_default()
    }

    fn parts(&self) -> Vec<Self> {
        match self.part {
            Part::Whole => self
                .blocks_m()
                .into_iter()
                .flat_map(|block_m| [Part::Up, Part::Down].map(|part| self.part(part, block_m)))
                .collect(),
            Part::Up | Part::Down => Vec::new(),
        }
    }

    /// Combines the fastest up and the fastest down for each BLOCK_SIZE_M, since both read one sort of the tokens.
    fn assembled(&self, winner: &dyn Fn(&Self) -> Option<Candidate>) -> Vec<Candidate> {
        let of = |part, block_m| winner(&self.part(part, block_m));
        if self.part != Part::Whole {
            return Vec::new();
        }
        self.blocks_m()
            .into_iter()
            .filter_map(|block_m| {
                Some(pair(
                    &of(Part::Up, block_m)?,
                    Some(&of(Part::Down, block_m)?),
                ))
            })
            .collect()
    }
}

/// The candidate that runs the GEMMs with these rows; without a down row the runtime uses the up row for both.
pub fn pair(up: &Candidate, down: Option<&Candidate>) -> Candidate {
    json!({"up": up, "down": down})
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::tune::points::{Points, Refine};

    pub(in crate::tune::backends::sglang_moe) const QWEN: Sizes = Sizes {
        experts: 128,
        inter: 768,
        hidden: 2048,
        topk: 8,
    };

    #[test]
    fn blocks_follow_the_mean_rows_of_an_expert_that_is_hit() {
        let blocks = |m| MoeTask::whole(QWEN, m).blocks_m();
        assert_eq!(blocks(1), [16]);
        assert_eq!(blocks(64), [16]);
        assert_eq!(blocks(256), [16, 32, 64]);
        assert_eq!(blocks(1024), [16, 32, 64, 128]);
        assert_eq!(blocks(4096), [64, 128]);
        assert_eq!(blocks(1 << 20), [128]);
    }

    #[test]
    fn an_odd_number_of_experts_holds_a_shared_one() {
        let deepseek = Sizes {
            experts: 257,
            inter: 256,
            hidden: 7168,
            topk: 9,
        };
        assert_eq!(MoeTask::whole(deepseek, 1).shared, 1);
        assert_eq!(MoeTask::whole(QWEN, 1).shared, 0);
    }

    #[test]
    fn the_whole_is_raced_when_its_parts_are_and_with_what_won_them() {
        let whole = MoeTask::whole(QWEN, 4);
        let mut all = whole.parts();
        assert_eq!(all.len(), 2);
        all.push(whole.clone());
        let mut points = Points::new(&all, Refine::Every);
        let mut first = points.hand_out();
        assert_eq!(first.len(), 2, "{first:?}");
        let row = |part: Part| json!({"BLOCK_SIZE_M": 16, "of": part});
        let last = first.pop().unwrap();
        points.finished(&first[0], Some(row(first[0].part)));
        assert_eq!(points.hand_out(), [], "the other part is not known yet");
        points.finished(&last, Some(row(last.part)));
        assert_eq!(points.hand_out(), std::slice::from_ref(&whole));
        let expected = pair(&row(Part::Up), Some(&row(Part::Down)));
        assert_eq!(points.neighbours(&whole), [expected]);
    }

    #[test]
    fn a_part_for_which_nothing_ran_leaves_the_others() {
        let whole = MoeTask::whole(QWEN, 256);
        let winner =
            |part: &MoeTask| (part.block_m != 32).then(|| json!({"BLOCK_SIZE_M": part.block_m}));
        let blocks: Vec<_> = whole
            .assembled(&winner)
            .iter()
            .map(|pair| pair["up"]["BLOCK_SIZE_M"].clone())
            .collect();
        assert_eq!(blocks, [16, 64]);
    }

    #[test]
    fn a_task_reads_back_and_says_what_it_is() {
        let part = MoeTask::whole(QWEN, 4).parts().remove(1);
        let text = serde_json::to_string(&part).unwrap();
        assert_eq!(
            text,
            r#"{"op":"fused_moe_triton","E":128,"N":768,"K":2048,"topk":8,"shared":0,"part":"down","block_m":16,"M":4}"#
        );
        assert_eq!(serde_json::from_str::<MoeTask>(&text).unwrap(), part);
        assert_eq!(
            part.to_string(),
            "fused_moe_triton E=128 N=768 K=2048 topk=8 M=4 (down, BLOCK_SIZE_M 16)"
        );
    }
}
