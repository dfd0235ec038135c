//! Runs aiter's own tuner, and compares each of its rows with what serves today, end to end.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use super::ask::{Answers, Order, PROBE, PROGRAM, Tried};
use super::deploy::Merging;
use super::lookups::Lookups;
use super::{AiterMoe, FOLDER, judge, rows};
use crate::engine::ports::MoeOrder;
use crate::probe::contest::Finding;
use crate::problem::op::fused_moe_aiter::ERR_LIMIT;
use crate::problem::op::fused_moe_aiter::VARIABLE;
use crate::run::documents::TunedMoe;
use crate::run::error::Error;
use crate::stats::sample::median;
use crate::store::digest::short as digest;
use crate::store::file::write_atomic;
use crate::table::fmoe::requests::{Card, Counted};
use crate::table::fmoe::table::Row as TableRow;
use crate::tune::aiter::Limits;
use crate::tune::aiter::fmoe::{self, FmoeOrder, FmoeOutcome};
use crate::tune::clocks::Clocks;
use crate::tune::moe::MoeTask;
use crate::tune::protocol::Candidate;
use crate::tune::results::Row;
use crate::tune::{Effort, TuneEvent};
use crate::workload::env::Environment;

/// The name of what was timed, in documents.
const WHOLE: &str = "fused_moe";

/// The rows to try and everything in use, in the folder of the tuning.
const TRIED: &str = "tried.csv";

/// What was answered of the way of today and of the tuned one, in the folder of the tuning.
const JUDGED: [&str; 2] = ["judged-today.jsonl", "judged-tuned.jsonl"];

/// The tuner's row for a task.
struct Tuned {
    task: MoeTask,
    row: TableRow,
    candidate: Candidate,
}

impl AiterMoe {
    pub(super) fn tune_and_judge(
        &self,
        order: &MoeOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent<MoeTask>),
    ) -> Result<TunedMoe, Error> {
        let trees = self.aiter.trees()?;
        let inspection = order.inspection;
        let lookups = Lookups::of(self, &trees, &inspection.gfx, inspection.cu_num)?;
        let folder = order.run.tune().join(FOLDER);
        let calls: Vec<Counted> = order
            .tasks
            .iter()
            .filter_map(|task| {
                Some(Counted {
                    request: lookups.request(&task.problem(), task.m)?,
                    card: Card::default(),
                    records: 1,
                })
            })
            .collect();
        let site = &self.aiter.site;
        let outcome = fmoe::tune(
            &FmoeOrder {
                tree: &trees.package,
                python: &site.python,
                env: site.environment(),
                calls: &calls,
                folder: &folder,
                budget: Some(order.budget),
                limits: Limits::with(self.aiter.err_ratio, ERR_LIMIT),
                batch: None,
                devices: None,
                retry_failed: false,
                keeper: &site.keeper,
                interrupt: order.interrupt,
            },
            &mut |event| {
                if let Some(event) = told(event) {
                    observer(&event);
                }
            },
        )
        .map_err(|error| super::super::tune_error(&error))?;
        if outcome.interrupted {
            return Err(Error::interrupted());
        }
        let tuned = of_tasks(&lookups, order.tasks, &outcome)?;
        let mut result = begun(order, &lookups, &tuned, outcome);
        if !tuned.is_empty() {
            self.judge(order, &lookups, &folder, tuned, &mut result, observer)?;
        }
        Ok(result)
    }

    /// Times every row against what serves today, each in a fresh process, and keeps the results.
    fn judge(
        &self,
        order: &MoeOrder<'_>,
        lookups: &Lookups,
        folder: &Utf8Path,
        tuned: Vec<Tuned>,
        result: &mut TunedMoe,
        observer: &mut dyn FnMut(&TuneEvent<MoeTask>),
    ) -> Result<(), Error> {
        let ours = rows::csv(tuned.iter().map(|tuned| &tuned.candidate));
        let merging = Merging::of(lookups, &ours)?;
        // If the look-up does not find a row, today's would be timed against itself.
        let mut tried = Vec::new();
        for tuned in tuned {
            match merging.miss(lookups, &tuned.task, &tuned.row)? {
                None => tried.push(tuned),
                Some(why) => result.failed.push(format!(
                    "{}: its row is not what a look-up finds: {why}",
                    tuned.task
                )),
            }
        }
        if tried.is_empty() {
            return Ok(());
        }
        let table = super::super::tables::plain(folder.join(TRIED))?;
        write_atomic(&table, merging.csv.as_bytes()).map_err(|error| Error::file(&error))?;
        let tasks: Vec<MoeTask> = tried.iter().map(|tuned| tuned.task.clone()).collect();
        let mut both = Vec::new();
        for (what, named, file) in [
            ("what serves today", None, JUDGED[0]),
            ("the tuned rows", Some(&table), JUDGED[1]),
        ] {
            let mut env = self.aiter.site.environment().clone();
            env.extend(named.map(|table| (VARIABLE.to_owned(), Some(table.to_string()))));
            let identity = identity(order, lookups, &env)?;
            let asked = Order {
                tasks: &tasks,
                env,
                kept: Some((&folder.join(file), &identity)),
                is_shuffled: lookups.site.is_shuffled,
                times: (0..tasks.len()).collect(),
                interrupt: order.interrupt,
            };
            let all = tasks.len();
            both.push(self.ask(lookups, &asked, &mut |done| {
                observer(&TuneEvent::Remark {
                    text: format!("timing {what} through aiter's fused_moe: {done} of {all} sizes"),
                });
            })?);
        }
        let [today, ours] = &both[..] else {
            return Ok(());
        };
        for (at, tuned) in tried.into_iter().enumerate() {
            settle(tuned, &today.of(at), &ours.of(at), ours, result);
        }
        Ok(())
    }
}

/// Everything that decides which kernels a judge's process runs and how it is timed: trees and device, its environment,
/// the tables that it reads, the program.
fn identity(order: &MoeOrder<'_>, lookups: &Lookups, env: &Environment) -> Result<String, Error> {
    let shuffled = lookups.site.is_shuffled;
    let mut text = format!(
        "{:?}{env:?}{shuffled}{PROGRAM}{PROBE}",
        order.inspection.identity
    );
    let named = env.values().flatten().map(Utf8PathBuf::from);
    let files = named.chain(lookups.files.iter().cloned());
    for path in files.filter(|path| path.is_file()) {
        text += &digest(&super::super::facts::read(&path)?);
    }
    Ok(digest(text.as_bytes()))
}

impl Tried {
    /// What its look-up found, as a candidate.
    fn candidate(&self) -> Candidate {
        match self.found.as_ref().and_then(|found| found.kernels.clone()) {
            Some([first, second]) => json!({ "kernelName1": first, "kernelName2": second }),
            None => json!({ "kernelName1": "", "kernelName2": "" }),
        }
    }

    fn us(&self) -> Option<f64> {
        median(&self.answer.us)
    }
}

/// Classifies a row as kept, lost or impossible.
fn settle(tuned: Tuned, today: &Tried, then: &Tried, ours: &Answers, result: &mut TunedMoe) {
    let Tuned {
        task,
        row,
        candidate,
    } = tuned;
    let names = rows::kernels(&row);
    let bad = |what: String| format!("{task} {}: {what}", rows::name(&candidate));
    if let Some(absent) = names.iter().find(|name| ours.not_found().contains(*name)) {
        let what = format!(
            "the compiled module has no kernel `{absent}`, and its own choice ran although the log names the row's"
        );
        result.quarantined.push(bad(what));
        return;
    }
    if let Some(said) = &then.answer.said {
        result.quarantined.push(bad(said.clone()));
        return;
    }
    if then.answer.error.is_none_or(|error| error > judge::LIMIT) {
        let percent = then.answer.error.unwrap_or(f64::NAN) * 100.0;
        result
            .quarantined
            .push(bad(format!("wrong numbers, relative error {percent:.1} %")));
        return;
    }
    let asked = then.found.as_ref().and_then(|found| found.kernels.as_ref());
    if asked != Some(&names) {
        let found = asked.map_or_else(
            || "aiter's own choice".to_owned(),
            |names| names.join(" and "),
        );
        result.failed.push(format!(
            "{task}: the process was served {found} in place of the row"
        ));
        return;
    }
    let Some((before, after)) = today.us().zip(then.us()) else {
        let said = today.answer.said.as_deref();
        let why = match said {
            Some(said) => format!("what serves today could not be timed: {said}"),
            None => "there is no GPU to time on, so it was not compared with what serves today"
                .to_owned(),
        };
        result.failed.push(format!("{task}: {why}"));
        return;
    };
    if today.answer.error.is_some_and(|error| error > judge::LIMIT) {
        let percent = today.answer.error.unwrap_or(f64::NAN) * 100.0;
        result.lost.push(format!(
            "what serves {task} today computes wrong numbers (relative error {percent:.1} %)"
        ));
    }
    let judged = judge::judge(&today.answer.us, &then.answer.us);
    let kept = judged.finding != Finding::Faster;
    if kept {
        result.lost.push(format!(
            "{task}: the tuned row is {}",
            judge::why_not(judged)
        ));
    }
    let errors = row.err.iter().flatten().copied();
    result.rows.push(Row {
        shape: task,
        incumbent_kept: kept,
        us: after,
        incumbent: Some(today.candidate()),
        incumbent_us: Some(before),
        noise: judge::noise(judged),
        err_ratio: errors.fold(0.0, f64::max),
        timed: 1,
        busy_s: 0.0,
        effort: Effort::Quick,
        candidate,
    });
}

/// The tuner's rows by their tasks.
fn of_tasks(
    lookups: &Lookups,
    tasks: &[MoeTask],
    outcome: &FmoeOutcome,
) -> Result<Vec<Tuned>, Error> {
    let mut found = Vec::new();
    for file in &outcome.files {
        found.extend(rows::candidates(&super::super::facts::read(file)?));
    }
    let of = |task: &MoeTask| {
        let request = lookups.request(&task.problem(), task.m)?;
        let mut problem = request.problem;
        problem.topk = lookups.rules.topk(problem.topk, request.ep);
        let is_it = |row: &TableRow| row.token == task.m && row.problem() == problem;
        let (row, candidate) = found.iter().find(|(row, _)| is_it(row))?;
        Some(Tuned {
            task: task.clone(),
            row: row.clone(),
            candidate: candidate.clone(),
        })
    };
    Ok(tasks.iter().filter_map(of).collect())
}

/// The tuner's result, before any row is judged.
fn begun(
    order: &MoeOrder<'_>,
    lookups: &Lookups,
    tuned: &[Tuned],
    outcome: FmoeOutcome,
) -> TunedMoe {
    let key = |task: &MoeTask| {
        let request = lookups.request(&task.problem(), task.m)?;
        let (token, topk) = (task.m, lookups.rules.topk(request.problem.topk, request.ep));
        Some(fmoe::Call::of(&request, token, topk))
    };
    let mut refused: BTreeMap<&fmoe::Call, &str> = BTreeMap::new();
    for one in &outcome.refused {
        refused.insert(&one.shape, &one.reason);
    }
    let (mut failed, mut not_reached) = (Vec::new(), Vec::new());
    for task in order.tasks {
        if tuned.iter().any(|tuned| tuned.task == *task) {
            continue;
        }
        let call = key(task);
        let reason = |call: &fmoe::Call| {
            let unserved = outcome.failed.iter().find(|failed| failed.shape == *call);
            unserved
                .map(|failed| failed.reason.as_str())
                .or_else(|| refused.get(call).copied())
        };
        match call.as_ref().and_then(reason) {
            Some(why) => failed.push(format!("{task}: {why}")),
            None => not_reached.push(task.clone()),
        }
    }
    TunedMoe {
        device: outcome.device.name,
        whole: WHOLE.to_owned(),
        rows: Vec::new(),
        failed,
        not_reached,
        quarantined: Vec::new(),
        lost: Vec::new(),
        files: outcome.files,
        // Rows are deployed from the candidates that won.
        tables: Vec::new(),
        clocks: Clocks::default(),
        candidates: tuned.len() as u64,
        remarks: Vec::new(),
        devices: Vec::new(),
        busy_seconds: outcome.busy_s,
        seconds: outcome.seconds,
    }
}

/// The tuner's event in terms of the tasks; `None` for events that are not passed on.
fn told(event: &TuneEvent<fmoe::Call>) -> Option<TuneEvent<MoeTask>> {
    let remark = |text: String| Some(TuneEvent::Remark { text });
    match event.clone() {
        TuneEvent::Batch {
            done,
            of,
            left_at_most,
            eta_s,
        } => Some(TuneEvent::Batch {
            done,
            of,
            left_at_most,
            eta_s,
        }),
        TuneEvent::WorkerRestarted { worker, reason } => {
            Some(TuneEvent::WorkerRestarted { worker, reason })
        }
        TuneEvent::Remark { text } => remark(text),
        TuneEvent::Failed(failed) => remark(format!("{}: {}", failed.shape, failed.reason)),
        TuneEvent::Started {
            device,
            workers,
            shapes,
            resumed,
            races_at_most,
        } => Some(TuneEvent::Started {
            device,
            workers,
            shapes,
            resumed,
            races_at_most,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::ask::Answer;
    use super::super::rows::tests::TABLE;
    use super::*;
    use crate::log::fmoe::Found;
    use crate::tune::moe::Sizes;

    fn tuned() -> Tuned {
        let (row, candidate) = rows::candidates(TABLE.as_bytes()).swap_remove(0);
        let sizes = Sizes {
            experts: 257,
            inter: 256,
            hidden: 7168,
            topk: 9,
        };
        Tuned {
            task: MoeTask::whole(sizes, 64),
            row,
            candidate,
        }
    }

    fn way(us: f64, error: f64, kernels: Option<[&str; 2]>) -> Tried {
        Tried {
            answer: Answer {
                error: Some(error),
                us: vec![us; 6],
                ..Answer::default()
            },
            found: Some(Found {
                one_stage: false,
                kernels: kernels.map(|names| names.map(str::to_owned)),
            }),
        }
    }

    fn nothing() -> TunedMoe {
        serde_json::from_value(json!({
            "device": "", "whole": WHOLE, "rows": [], "failed": [], "not_reached": [], "quarantined": [], "lost": [],
            "files": [], "clocks": {"requests": 0, "throttled": 0, "reasons": {}, "lowest_mhz": null, "highest_mhz": null},
            "candidates": 0, "busy_seconds": 0.0, "seconds": 0.0
        }))
        .unwrap()
    }

    fn settled(today: &Tried, then: &Tried, said: &str) -> TunedMoe {
        let mut answers = Answers::default();
        answers.say(said);
        let mut result = nothing();
        settle(tuned(), today, then, &answers, &mut result);
        result
    }

    const OURS: Option<[&str; 2]> = Some(["a", "b"]);

    #[test]
    fn a_row_is_kept_when_it_is_faster_as_a_whole_and_right() {
        let today = way(100.0, 0.004, None);
        let result = settled(&today, &way(80.0, 0.005, OURS), "");
        let row = &result.rows[0];
        assert_eq!(
            (row.us, row.incumbent_us, row.incumbent_kept),
            (80.0, Some(100.0), false)
        );
        assert_eq!(
            rows::name(row.incumbent.as_ref().unwrap()),
            "aiter's own choice"
        );
        // The tuner's own time is 72.75 us, but the whole operation is what counts.
        let result = settled(&today, &way(99.0, 0.005, OURS), "");
        assert!(result.rows[0].incumbent_kept);
        insta::assert_snapshot!(result.lost[0], @"fused_moe_triton E=257 N=256 K=7168 topk=9 M=64: the tuned row is no faster beyond the noise end to end (1.010x)");
    }

    #[test]
    fn a_row_that_is_wrong_absent_or_not_what_ran_is_not_kept_however_fast() {
        let today = way(100.0, 0.004, None);
        let wrong = settled(&today, &way(50.0, 0.3, OURS), "");
        let absent = settled(
            &today,
            &way(50.0, 0.004, OURS),
            "[aiter WARNING] ck kernel not found: b\n",
        );
        let other = settled(&today, &way(50.0, 0.004, Some(["c", "d"])), "");
        let missed = settled(&today, &way(50.0, 0.004, None), "");
        let mut untimed = way(50.0, 0.004, OURS);
        untimed.answer.us.clear();
        let untimed = settled(&today, &untimed, "");
        let said = [
            &wrong.quarantined[0],
            &absent.quarantined[0],
            &other.failed[0],
            &missed.failed[0],
            &untimed.failed[0],
        ];
        insta::assert_snapshot!(said.map(String::as_str).join("\n"), @"
        fused_moe_triton E=257 N=256 K=7168 topk=9 M=64 a and b, block_m 32: wrong numbers, relative error 30.0 %
        fused_moe_triton E=257 N=256 K=7168 topk=9 M=64 a and b, block_m 32: the compiled module has no kernel `b`, and its own choice ran although the log names the row's
        fused_moe_triton E=257 N=256 K=7168 topk=9 M=64: the process was served c and d in place of the row
        fused_moe_triton E=257 N=256 K=7168 topk=9 M=64: the process was served aiter's own choice in place of the row
        fused_moe_triton E=257 N=256 K=7168 topk=9 M=64: there is no GPU to time on, so it was not compared with what serves today
        ");
        for result in [wrong, absent, other, missed, untimed] {
            assert!(result.rows.is_empty());
        }
    }
}
