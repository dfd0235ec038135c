//! What is worth tuning of aiter's fused MoE: the rows that calls will look up but not find.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::problem::dtype::fp8_of as fp8_dtype;
use crate::problem::fused_moe::{MoeProblem, Scales};
use crate::problem::op::fused_moe_aiter::Problem;
use crate::problem::op::fused_moe_aiter::Request;
use crate::table::fmoe::lookup::Resolver;
use crate::table::fmoe::requests::{Counted, untuned};
use crate::table::fmoe::rules::Rules;
use crate::table::fmoe::table::Row;

/// The input of a plan.
pub struct Input<'a> {
    /// Calls that were captured, or calls with the weights of a model.
    pub calls: &'a [Counted],
    /// The table that serves today.
    pub table: Option<&'a Resolver<'a>>,
    /// Rules of the aiter that runs.
    pub rules: Rules,
    /// Tokens of forwards that will occur besides those captured: captured decode sizes.
    pub decode: &'a [u32],
    /// The largest prefill chunk; every number of tokens up to it will occur sooner or later.
    pub chunk: Option<u32>,
    /// Whether rows that are found should be tuned again.
    pub refine: bool,
}

/// Why a row is in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PlanReason {
    /// A captured call looks it up.
    Seen,
    /// A graph of that decode size is captured.
    Decode,
    /// Prefill chunks may have this many tokens.
    Prefill,
}

/// A row to tune.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The problem, with `topk` as the key has it.
    pub problem: Problem,
    /// Tokens of the key: those of the forward, rounded.
    pub token: u32,
    pub because: PlanReason,
    /// Captured calls that look it up.
    pub records: u64,
    /// Tokens of captured calls that are rounded to it.
    pub serves: BTreeSet<u32>,
}

/// Rows to tune, largest first, and what was left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub rows: Vec<Wanted>,
    /// Keys that a row already serves.
    pub served: usize,
}

impl Plan {
    /// The rows as the input of aiter's tuner (`untuned_fmoe.csv`).
    pub fn untuned_csv(&self) -> String {
        untuned(self.rows.iter().map(|row| (row.problem.clone(), row.token)))
    }
}

/// The problem of aiter's fused MoE for a model's experts on a card of `gfx`; `None` for scales that its look-up does
/// not support, and where the sizes are not all known.
///
/// This is what SGLang passes: bf16 tokens, gate and up projection as one weight, Silu, the router's weight applied
/// last; the input is quantised to the weights' dtype, which is the architecture's FP8.
pub fn of_model(experts: &MoeProblem, gfx: &str) -> Option<Problem> {
    let q_type = match experts.scales {
        Scales::Block(128, 128) => "per_1x128",
        Scales::Channel => "per_Token",
        Scales::Block(..) | Scales::None => return None,
    };
    let fp8 = fp8_dtype(gfx);
    Some(Problem {
        model_dim: experts.hidden?,
        inter_dim: experts.n,
        expert: experts.experts,
        topk: experts.topk?,
        activation: "Silu".to_owned(),
        dtype: "torch.bfloat16".to_owned(),
        q_dtype_a: fp8.to_owned(),
        q_dtype_w: fp8.to_owned(),
        q_type: q_type.to_owned(),
        use_g1u1: true,
        doweight_stage1: false,
    })
}

/// The plan for `input`: every row that its calls look up and do not find, by the number of calls.
pub fn make(input: &Input<'_>) -> Plan {
    type Key = (Problem, u32);
    let mut wanted: BTreeMap<Key, Wanted> = BTreeMap::new();
    let mut add = |problem: &Problem, ep: bool, tokens: u32, because: PlanReason, records: u64| {
        let mut problem = problem.clone();
        problem.topk = input.rules.topk(problem.topk, ep);
        let token = input.rules.rounding.token(tokens);
        let row = wanted
            .entry((problem.clone(), token))
            .or_insert_with(|| Wanted {
                problem,
                token,
                because,
                records: 0,
                serves: BTreeSet::new(),
            });
        row.because = row.because.min(because);
        row.records += records;
        if records > 0 {
            row.serves.insert(tokens);
        }
    };
    let mut weights: BTreeSet<(&Problem, bool)> = BTreeSet::new();
    for call in input.calls {
        let Request {
            problem,
            tokens,
            ep,
        } = &call.request;
        weights.insert((problem, *ep));
        if *tokens > 0 {
            add(problem, *ep, *tokens, PlanReason::Seen, call.records);
        }
    }
    for (problem, ep) in weights {
        for tokens in input.decode.iter().filter(|tokens| **tokens > 0) {
            add(problem, ep, *tokens, PlanReason::Decode, 0);
        }
        if let Some(chunk) = input.chunk {
            let last = input.rules.rounding.token(chunk);
            for token in input.rules.rounding.tokens() {
                if token <= last {
                    add(problem, ep, token, PlanReason::Prefill, 0);
                }
            }
        }
    }
    let mut plan = Plan::default();
    for row in wanted.into_values() {
        if !input.refine
            && input
                .table
                .is_some_and(|table| serves(table, &row).is_some())
        {
            plan.served += 1;
        } else {
            plan.rows.push(row);
        }
    }
    // So that a tuner that is stopped early has done the rows with most calls.
    plan.rows
        .sort_by_key(|row| (row.because, std::cmp::Reverse(row.records), row.token));
    plan
}

/// The row with exactly this key and activation: a row that another tier or another activation provides is worth
/// replacing.
fn serves<'a>(table: &Resolver<'a>, row: &Wanted) -> Option<&'a Row> {
    let answer = table.find(&Request {
        problem: row.problem.clone(),
        tokens: row.token,
        ep: false,
    });
    let own = format!("ActivationType.{}", row.problem.activation);
    answer
        .served
        .row()
        .filter(|found| found.token == row.token && found.act_type() == own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::fmoe::lookup::Site;
    use crate::table::fmoe::requests::Card;
    use crate::table::fmoe::rules::Release;
    use crate::table::fmoe::table::Table;

    const TRAPS: &[u8] = include_bytes!("../../testdata/lookup/aiter-fmoe-traps.csv");

    fn call(tokens: u32, sizes: (u32, u32, u32, u32), ep: bool) -> Counted {
        Counted {
            request: Request {
                problem: Problem {
                    model_dim: sizes.0,
                    inter_dim: sizes.1,
                    expert: sizes.2,
                    topk: sizes.3,
                    activation: "Silu".to_owned(),
                    dtype: "torch.bfloat16".to_owned(),
                    q_dtype_a: "torch.float8_e4m3fnuz".to_owned(),
                    q_dtype_w: "torch.float8_e4m3fnuz".to_owned(),
                    q_type: "per_1x128".to_owned(),
                    use_g1u1: true,
                    doweight_stage1: false,
                },
                tokens,
                ep,
            },
            card: Card::default(),
            records: 3,
        }
    }

    fn plan(
        calls: &[Counted],
        release: Release,
        decode: &[u32],
        chunk: Option<u32>,
    ) -> Vec<(u32, u32, PlanReason)> {
        let table = Table::read("traps.csv", TRAPS).unwrap();
        let rules = Rules::new(release);
        let resolver = Resolver::new(&table, rules, Site::new("gfx942", 304)).unwrap();
        let plan = make(&Input {
            calls,
            table: Some(&resolver),
            rules,
            decode,
            chunk,
            refine: false,
        });
        plan.rows
            .iter()
            .map(|row| (row.token, row.problem.topk, row.because))
            .collect()
    }

    #[test]
    fn rows_are_planned_for_what_tokens_round_to_and_no_row_serves() {
        let model = (7168, 256, 256, 8);
        let calls = [
            call(5, model, false),
            call(6, model, false),
            call(16, model, false),
        ];
        assert_eq!(
            plan(&calls, Release::P, &[], None),
            [(8, 8, PlanReason::Seen)]
        );
        assert_eq!(
            plan(&calls, Release::P, &[3, 130], None),
            [(8, 8, PlanReason::Seen), (256, 8, PlanReason::Decode)],
            "4 tokens have a row"
        );
        let prefill = plan(&calls[2..], Release::P, &[], Some(4096));
        let tokens: Vec<u32> = prefill.iter().map(|row| row.0).collect();
        assert_eq!(tokens, [8, 128, 256, 512, 4096]);
        // v0.1.9 rounds a chunk of 4096 to 2048, which has a row; up to 128 tokens times topk no row is used.
        let older: Vec<u32> = plan(&calls[2..], Release::V9, &[], Some(4096))
            .iter()
            .map(|row| row.0)
            .collect();
        assert_eq!(older, [16, 1, 2, 4, 8, 128, 256, 512]);
    }

    #[test]
    fn under_expert_parallelism_the_row_has_the_topk_that_is_asked_for() {
        let call = call(64, (4096, 1536, 16, 8), true);
        assert_eq!(plan(std::slice::from_ref(&call), Release::P, &[], None), []);
        assert_eq!(
            plan(&[call], Release::H, &[], None),
            [(64, 7, PlanReason::Seen)]
        );
    }

    #[test]
    fn the_experts_of_a_model_have_the_key_that_is_shipped_for_them() {
        // DeepSeek-V3 at TP8 with its shared expert fused: 7168/256/257/9 in aiter's tables.
        let experts = MoeProblem {
            experts: 257,
            n: 256,
            hidden: Some(7168),
            topk: Some(9),
            dtype: "fp8_w8a8".to_owned(),
            scales: Scales::Block(128, 128),
            experts_of_all: None,
        };
        let on = |gfx: &str| of_model(&experts, gfx).unwrap();
        assert_eq!(
            on("gfx950").to_string(),
            "model_dim=7168 inter_dim=256 expert=257 topk=9 Silu torch.float8_e4m3fn per_1x128"
        );
        assert_eq!(on("gfx942").q_dtype_a, "torch.float8_e4m3fnuz");
        let channel = MoeProblem {
            scales: Scales::Channel,
            ..experts.clone()
        };
        assert_eq!(of_model(&channel, "gfx942").unwrap().q_type, "per_Token");
        assert_eq!(
            of_model(
                &MoeProblem {
                    topk: None,
                    ..experts
                },
                "gfx942"
            ),
            None
        );
    }

    #[test]
    fn a_row_that_another_activation_lends_is_tuned() {
        let call = call(8, (6144, 256, 257, 9), false);
        assert_eq!(plan(std::slice::from_ref(&call), Release::P, &[], None), []);
        assert_eq!(
            plan(&[call], Release::H, &[], None),
            [(8, 9, PlanReason::Seen)]
        );
    }
}
