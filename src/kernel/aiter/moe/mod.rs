//! aiter's fused MoE beside the dense GEMMs: its own tuner, rows judged end to end, one merged table in
//! `AITER_CONFIG_FMOE`.
//!
//! `docs/rocm.md` documents what of this was run, and on which hardware.

mod ask;
mod deploy;
mod engagement;
mod judge;
mod kept;
mod lookups;
mod rows;
mod tune;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use camino::Utf8Path;
use serde_json::Value;

use self::ask::{Order, Tried};
use self::engagement::Deployed;
use self::lookups::Lookups;
use super::Aiter;
use crate::engine::ports::{DeployedMoePart, FusedMoeKernels, MoeOrder, MoeTerms, Need};
use crate::kernel::placed::refuse_other;
use crate::log::record::AiterMoe as Call;
use crate::log::summary::LogSummary;
use crate::overlay::OverlayOptions;
use crate::plan::experts::Weights;
use crate::plan::fused_moe::of_model;
use crate::plan::moe::Ladder;
use crate::problem::fused_moe::{MoeProblem, Scales};
use crate::problem::op::fused_moe_aiter::OP;
use crate::run::documents::{DeployedMoe, Engagement, Inspection, MoeCheck, SeenMoe, TunedMoe};
use crate::run::error::{Error, ErrorKind};
use crate::stats::sample::median;
use crate::store::run_dir::RunDir;
use crate::table::roofline::Device as Rates;
use crate::tune::TuneEvent;
use crate::tune::moe::MoeTask;
use crate::workload::env::Environment;

/// Folder in the run's tune folder; separate because the tuning of dense GEMMs has files of the same names.
const FOLDER: &str = "fused-moe";

/// Seconds that the tuner takes for one size once its modules are compiled: SGLang #37072 reports ten for bf16 on
/// MI355X. After that two processes time the row.
const SIZE_S: f64 = 15.0;

/// Seconds to compile the tuner's modules: minutes each, once (ROCm/aiter issues 5266, 882). Assumed.
const START_S: f64 = 600.0;

/// The kernel family of aiter's fused MoE under SGLang on ROCm.
#[derive(Debug)]
pub(crate) struct AiterMoe {
    aiter: Arc<Aiter>,
}

impl AiterMoe {
    pub(crate) fn new(aiter: Arc<Aiter>) -> Self {
        Self { aiter }
    }

    fn lookups(&self, inspection: &Inspection) -> Result<Lookups, Error> {
        Lookups::of(
            self,
            &self.aiter.trees()?,
            &inspection.gfx,
            inspection.cu_num,
        )
    }

    /// Remarks on how this server reaches aiter's operation.
    fn remarks(&self, gfx: &str) -> Result<Vec<String>, Error> {
        const SORTING: &str = "apply_aiter_small_moe_sort_patch";
        let trees = self.aiter.trees()?;
        let runner = trees
            .sglang
            .folder
            .join("srt/layers/moe/moe_runner/aiter.py");
        let patches = fs_err::read(runner)
            .is_ok_and(|text| memchr::memmem::find(&text, SORTING.as_bytes()).is_some());
        let mut remarks = Vec::new();
        if patches && gfx.starts_with("gfx95") {
            remarks.push(format!(
                "this SGLang puts a sorting of its own into aiter's fused MoE ({SORTING}), in both arms; rows are judged with aiter's"
            ));
        }
        for name in ["AITER_KSPLIT", "AITER_USE_NT"] {
            if let Some(value) = self.aiter.site.variable(name) {
                remarks.push(format!(
                    "{name}={value} changes what rows of the fused MoE mean; it holds in both arms and where rows are judged"
                ));
            }
        }
        Ok(remarks)
    }
}

/// Whether a call of the fused MoE that a workload was seen to run can be tuned on a card of `gfx`, else why not; nothing where none ran.
pub(super) fn tunable(log_summary: &LogSummary, gfx: &str) -> Option<Result<(), String>> {
    let mut why = None;
    for call in log_summary.aiter_moe.calls.keys() {
        match problem_of(call, gfx) {
            Ok(_) => return Some(Ok(())),
            Err(because) => why = why.or(Some(because)),
        }
    }
    why.map(Err)
}

/// The problem of a call on a card of `gfx`; the error is why `run` does not tune it.
fn problem_of(call: &Call, gfx: &str) -> Result<MoeProblem, String> {
    let asked = &call.request.problem;
    if let Some(why) = Weights::of_call(asked).why_left() {
        return Err(why);
    }
    let problem = MoeProblem {
        experts: asked.expert,
        n: asked.inter_dim,
        hidden: Some(asked.model_dim),
        topk: Some(asked.topk),
        dtype: "fp8_w8a8".to_owned(),
        scales: Scales::Block(128, 128),
        experts_of_all: call.experts_of_all,
    };
    if call.request.ep && call.experts_of_all.is_none() {
        return Err("the length of its expert mask was not seen".to_owned());
    }
    if of_model(&problem, gfx).as_ref() == Some(asked) {
        Ok(problem)
    } else {
        Err(
            "`run` tunes FP8 experts with Silu on bf16 tokens, gate and up in one weight"
                .to_owned(),
        )
    }
}

impl FusedMoeKernels for AiterMoe {
    fn inspect(&self) -> Result<Inspection, Error> {
        self.aiter.inspect_site()
    }

    fn op(&self) -> &'static str {
        OP
    }

    fn seen(
        &self,
        inspection: &Inspection,
        log_summary: &LogSummary,
    ) -> Result<(Vec<SeenMoe>, Vec<String>), Error> {
        let calls = &log_summary.aiter_moe.calls;
        if calls.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        self.refuse_side_exits()?;
        let lookups = self.lookups(inspection)?;
        let mut remarks: BTreeSet<String> = self.remarks(&inspection.gfx)?.into_iter().collect();
        let mut by_problem: BTreeMap<MoeProblem, (BTreeMap<u32, u64>, Option<u32>)> =
            BTreeMap::new();
        for (call, count) in calls {
            match problem_of(call, &inspection.gfx) {
                Ok(problem) => {
                    let (calls, per_forward) = by_problem.entry(problem).or_default();
                    *calls.entry(call.request.tokens).or_default() += count;
                    *per_forward = (*per_forward).max(log_summary.aiter_moe.per_forward(call));
                }
                Err(why) => {
                    let problem = &call.request.problem;
                    remarks.insert(format!("fused MoE {problem} is not tuned: {why}"));
                }
            }
        }
        let seen = by_problem
            .into_iter()
            .map(|(problem, (calls, per_forward))| {
                Ok(SeenMoe {
                    today: lookups.today(&problem, calls.keys().copied())?,
                    per_forward,
                    problem,
                    calls,
                })
            });
        let seen = seen.collect::<Result<Vec<_>, Error>>()?;
        Ok((seen, remarks.into_iter().collect()))
    }

    fn unseen(&self) -> Error {
        Error::new(
            ErrorKind::NoShapes,
            "the instrumented server served the workload and ran no fused MoE of aiter's",
        )
        .hint("does the model have experts in FP8, and is SGLANG_USE_AITER set?")
    }

    fn task(&self, problem: &MoeProblem, m: u32) -> Result<MoeTask, String> {
        MoeTask::of_aiter(problem, m)
    }

    fn terms(&self, inspection: &Inspection) -> Result<MoeTerms, Error> {
        let lookups = self.lookups(inspection)?;
        let device = Rates::of_key(&inspection.gfx, inspection.cu_num)
            .unwrap_or_else(|| Rates::unknown(&inspection.gfx, inspection.cu_num));
        Ok(MoeTerms {
            device,
            ladder: Ladder::Rounded(lookups.rules.rounding),
            left: Box::new(move |problem, m| lookups.left(problem, m)),
        })
    }

    fn need(&self, tasks: &[MoeTask]) -> Need {
        Need {
            once_s: if tasks.is_empty() { 0.0 } else { START_S },
            rows_s: tasks.len() as f64 * SIZE_S,
        }
    }

    fn tune(
        &self,
        order: &MoeOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent<MoeTask>),
    ) -> Result<TunedMoe, Error> {
        self.tune_and_judge(order, observer)
    }

    fn deploy(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &TunedMoe,
    ) -> Result<DeployedMoe, Error> {
        self.put_in_place(run, inspection, tuned)
    }

    fn undo(&self, deployed: &DeployedMoe) -> Result<(), Error> {
        deploy::take_away(deployed)
    }

    fn probe(&self, part: &DeployedMoePart<'_>) -> Result<Vec<MoeCheck>, Error> {
        self.check(part)
    }

    fn engagement_env(
        &self,
        run: &RunDir,
        _deployed: &DeployedMoe,
        records: &Utf8Path,
    ) -> Result<Environment, Error> {
        let options = OverlayOptions {
            shapes: true,
            records: Some(records.to_owned()),
            ..OverlayOptions::default()
        };
        let mut env = self.aiter.site.overlay(run, &options)?;
        for (name, value) in crate::probe::LOOKUPS_TOLD {
            env.insert(name.to_owned(), Some(value.to_owned()));
        }
        Ok(env)
    }

    fn engagement(
        &self,
        inspection: &Inspection,
        deployed: &DeployedMoe,
        log_summary: &LogSummary,
    ) -> Result<Engagement, Error> {
        let trees = self.aiter.trees()?;
        self.aiter
            .site
            .check_records(log_summary, &trees.sglang.folder)
            .map_err(|error| {
                Error::new(
                    ErrorKind::NotBetter,
                    format!("engagement: {error}; the deployment was undone"),
                )
            })?;
        let lookups = Lookups::of(self, &trees, &inspection.gfx, inspection.cu_num)?;
        let (table, ours) = deploy::deployed(deployed)?;
        let deployed = Deployed {
            path: &deployed.table,
            marked: deploy::resolver(&lookups, &table, true)?,
            unmarked: deploy::resolver(&lookups, &table, false)?,
            ours: &ours,
        };
        Ok(engagement::of(&deployed, log_summary))
    }

    fn row_name(&self, candidate: &Value) -> String {
        rows::name(candidate)
    }
}

impl AiterMoe {
    /// Tries the deployed table in a fresh process: each size that won, and for each weight M of 1, 2, 33 and 128,
    /// where rows taken over from the previous tables serve, or none.
    fn check(&self, part: &DeployedMoePart<'_>) -> Result<Vec<MoeCheck>, Error> {
        let lookups = self.lookups(part.inspection)?;
        let (table, _) = deploy::deployed(part.deployed)?;
        let resolver = lookups.resolver(&table)?;
        let mut sizes: BTreeMap<MoeProblem, BTreeSet<u32>> = BTreeMap::new();
        for row in part.tuned.won() {
            let tried = sizes.entry(row.shape.problem()).or_default();
            tried.extend([1, 2, 33, 128, row.shape.m]);
        }
        let mut tasks = Vec::new();
        for (problem, all) in sizes {
            for m in all {
                let task = MoeTask::of_aiter(&problem, m);
                tasks.push(task.map_err(|why| Error::new(ErrorKind::Bug, why))?);
            }
        }
        let won = |task: &MoeTask| part.tuned.won().any(|row| row.shape == *task);
        let times = (0..tasks.len()).filter(|at| won(&tasks[*at])).collect();
        let mut env = self.aiter.site.environment().clone();
        env.extend(part.env.clone());
        let answers = self.ask(
            &lookups,
            &Order {
                tasks: &tasks,
                env,
                is_shuffled: lookups.site.is_shuffled,
                times,
                // A check is of what is deployed now.
                kept: None,
                interrupt: part.interrupt,
            },
            &mut |_| (),
        )?;
        let (mut checks, mut other, mut longest) = (Vec::new(), None, BTreeMap::new());
        for (at, task) in tasks.into_iter().enumerate() {
            let Tried { answer, found } = answers.of(at);
            let Some(request) = lookups.request(&task.problem(), task.m) else {
                continue;
            };
            let meant = resolver.find(&request).served.row().map(rows::kernels);
            let asked = found.and_then(|found| found.kernels);
            let named = |names: &Option<[String; 2]>| {
                names.as_ref().map_or_else(
                    || "aiter's own choice".to_owned(),
                    |names| {
                        names
                            .iter()
                            .filter(|name| !name.is_empty())
                            .cloned()
                            .collect::<Vec<_>>()
                            .join(" and ")
                    },
                )
            };
            let won = part.tuned.won().find(|row| row.shape == task);
            let absent = meant
                .iter()
                .flatten()
                .find(|name| answers.not_found().contains(*name));
            if other.is_none() && answer.said.is_none() {
                if asked != meant {
                    other = Some(format!(
                        "{task} ran with {}, not with the deployed {}",
                        named(&asked),
                        named(&meant)
                    ));
                } else if let Some(name) = absent.filter(|_| won.is_some()) {
                    other = Some(format!(
                        "{task} did not run its row: the compiled module has no kernel `{name}`"
                    ));
                }
            }
            if let Some(kernel) = answer.kernel {
                longest.insert(task.to_string(), kernel);
            }
            checks.push(MoeCheck {
                kernel: answer.said.clone().unwrap_or_else(|| named(&asked)),
                relative_error: answer.error,
                limit: judge::LIMIT,
                us: median(&answer.us),
                tuned_us: won.map(|row| row.us),
                task,
            });
        }
        refuse_other("check of fused MoE", other)?;
        let timed: Vec<(String, f64, f64)> = checks
            .iter()
            .filter_map(|check| Some((check.task.to_string(), check.us?, check.tuned_us?)))
            .collect();
        let timed: Vec<(&str, f64, f64)> = timed
            .iter()
            .map(|(name, now, then)| (name.as_str(), *now, *then))
            .collect();
        let late = judge::other_time(&timed).map(|(name, now, then)| {
            let in_what = longest.get(name).map_or_else(String::new, |kernel| format!(", longest in {kernel}"));
            format!("{name} takes {now:.1} us{in_what}, and {then:.1} us when its row was judged: another kernel runs")
        });
        refuse_other("check of fused MoE", late)?;
        Ok(checks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::op::fused_moe_aiter::Request;

    fn call(change: impl Fn(&mut Call)) -> Call {
        let mut call = Call {
            request: Request {
                problem: of_model(
                    &MoeProblem {
                        experts: 33,
                        n: 2048,
                        hidden: Some(7168),
                        topk: Some(9),
                        dtype: "fp8_w8a8".to_owned(),
                        scales: Scales::Block(128, 128),
                        experts_of_all: None,
                    },
                    "gfx942",
                )
                .unwrap(),
                tokens: 5,
                ep: false,
            },
            experts_of_all: None,
            is_shuffled: false,
        };
        change(&mut call);
        call
    }

    #[test]
    fn a_call_as_sglang_makes_it_has_its_problem_and_others_say_why_they_have_none() {
        let masked = |call: &mut Call| {
            call.request.ep = true;
            call.experts_of_all = Some(257);
        };
        let problem = problem_of(&call(masked), "gfx942").unwrap();
        assert_eq!(problem.sizes(), "E=33 N=2048 K=7168 topk=9 of 257 experts");
        assert!(MoeTask::of_aiter(&problem, 8).is_ok());
        let unknown = |call: &mut Call| call.request.ep = true;
        insta::assert_snapshot!(problem_of(&call(unknown), "gfx942").unwrap_err(), @"the length of its expert mask was not seen");
        let gelu = |call: &mut Call| call.request.problem.activation = "Gelu".to_owned();
        insta::assert_snapshot!(problem_of(&call(gelu), "gfx942").unwrap_err(), @"`run` tunes FP8 experts with Silu on bf16 tokens, gate and up in one weight");
        // e4m3fnuz on a card that has e4m3fn.
        assert!(problem_of(&call(|_| ()), "gfx950").is_err());
        let channel = |call: &mut Call| call.request.problem.q_type = "per_Token".to_owned();
        let fp4 = |call: &mut Call| {
            call.request.problem.q_type = "per_1x32".to_owned();
            call.request.problem.q_dtype_w = "torch.float4_e2m1fn_x2".to_owned();
        };
        for (call, named) in [(call(channel), "one scale per token"), (call(fp4), "FP4")] {
            let why = problem_of(&call, "gfx942").unwrap_err();
            assert!(
                why.contains(named) && why.contains("--op fused_moe"),
                "{why}"
            );
        }
    }
}
