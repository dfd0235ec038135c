//! `report`: everything the run found, as one page, one JSON and one summary.

use std::collections::BTreeMap;

use super::plan as planned;
use super::{Done, fused_moe, operations, stays};
use crate::compare::Comparison;
use crate::engine::trial::Started;
use crate::engine::{Engine, read_document, read_events, read_json};
use crate::plan::Plan;
use crate::proc::paste::{line, quoted};
use crate::report::model::{
    Arm, Command, Engagement, Fact, HitRate, LayoutCheck, PlanSummary, Report, ShapeRow, Skipped,
    StageTime, Timing,
};
use crate::run::documents::{
    Captured, Deployment, Engagement as ServerEngagement, HitCount, Tuned, Verified,
};
use crate::run::error::{Error, ErrorKind};
use crate::run::event::{Arm as Side, Role};
use crate::run::stage::{Stage, StageStatus, TrialEnd, spent};
use crate::table::shapes;

pub(super) fn report(engine: &mut Engine<'_>) -> Result<Done, Error> {
    let document = Report {
        name: engine.config.workload.name.clone(),
        made: jiff::Timestamp::now().to_string(),
        ended_early: engine
            .state
            .nothing_to_gain()
            .map(|why| format!("Nothing to gain: {why}")),
        machine: facts(engine.state.identity()),
        facts: machine_and_model(engine),
        stages: stage_times(engine)?,
        commands: commands(engine),
        ..Report::default()
    };
    let document = with_arms(engine, with_findings(engine, document)?)?;
    crate::report::write(&document, engine.run.path())
        .map_err(|error| Error::caused(ErrorKind::Environment, &error))?;
    Ok(Done::new(engine.run.path().join("report.html")))
}

/// Reads what `stage` wrote, if it has finished.
fn found<T: serde::de::DeserializeOwned>(
    engine: &Engine<'_>,
    stage: Stage,
) -> Result<Option<T>, Error> {
    if engine.state.has_finished(stage) {
        read_json(&engine.run.stage(stage.name())).map(Some)
    } else {
        Ok(None)
    }
}

fn with_findings(engine: &Engine<'_>, mut report: Report) -> Result<Report, Error> {
    let inspection = engine
        .state
        .has_finished(Stage::Inspect)
        .then(|| super::inspection(&engine.run))
        .transpose()?;
    let captured: Option<Captured> = found(engine, Stage::Capture)?;
    let tuned: Option<Tuned> = found(engine, Stage::Tune)?;
    let deployment: Option<Deployment> = found(engine, Stage::Deploy)?;
    let verified: Option<Verified> = found(engine, Stage::Verify)?;
    let comparison: Option<Comparison> = found(engine, Stage::Compare)?;
    if engine.config.compare.only_noise {
        report
            .notes
            .push("Both arms are the untuned server: this is the noise of the set-up".to_owned());
    }
    report.comparison = comparison;
    let profiled = super::profile::read(engine)?;
    report.profile = profiled.loads;
    report.notes.extend(profiled.remarks);
    if let Some(inspection) = &inspection {
        report
            .machine
            .push(Fact::new("served before by", &inspection.path));
        let also = inspection.also.iter();
        report.machine.extend(
            also.map(|also| Fact::new(format!("{} served before by", also.op), &also.path)),
        );
        report.notes.extend(inspection.remarks.iter().cloned());
    }
    if let Some(captured) = &captured {
        report
            .machine
            .push(Fact::new("dispatch", captured.dispatch.join(", ")));
        if captured.malformed > 0 {
            report.notes.push(format!(
                "{} torn or impossible log records were left out of the capture",
                captured.malformed
            ));
        }
        report.shapes = shape_rows(engine, captured, tuned.as_ref())?;
        let plan: Plan = read_document(&engine.run)?;
        report.fused_moe = fused_moe::reported(engine, captured, &plan, tuned.as_ref());
        if let Some(inspection) = &inspection {
            report.operations = operations::operations(
                inspection,
                &report.shapes,
                &plan,
                tuned.as_ref(),
                deployment.as_ref(),
                verified.as_ref(),
            );
        }
        report.hit_rates = planned::hit_rates(&plan);
        report
            .notes
            .extend(plan.difference.iter().chain(&plan.notes).cloned());
        let is_dense = inspection
            .as_ref()
            .is_some_and(|inspection| super::dense_kernels(engine, inspection).is_some());
        report.plan = is_dense.then(|| PlanSummary {
            captured: captured.distinct,
            deployed: deployment
                .as_ref()
                .filter(|deployment| deployment.dense)
                .map(Deployment::dense_rows),
            used_s: tuned.as_ref().map(|tuned| tuned.busy_seconds),
            candidates: tuned
                .as_ref()
                .map(|tuned| tuned.rows.iter().map(|row| u64::from(row.timed)).sum()),
            ..planned::summary(&plan)
        });
    }
    if let Some(tuned) = tuned {
        report.notes.extend(tuned.clocks.remark());
        report.notes.extend(tuned.remarks.iter().cloned());
        if let Some(raced) = &tuned.fused_moe {
            report.notes.extend(raced.clocks.remark());
            let skipped = skipped(&raced.failed, &raced.not_reached, &raced.quarantined);
            report.skipped.extend(skipped);
        }
        report.stays = stays::stays(&tuned.contests);
        if !report.stays.is_empty() {
            report.notes.push(
                "The predicted shares are the plan's: shapes that stay as they are were planned too"
                    .to_owned(),
            );
        }
        let skipped = skipped(&tuned.failed, &tuned.not_reached, &tuned.quarantined);
        report.skipped.extend(skipped);
    }
    if let Some(deployment) = deployment {
        report.notes.extend(deployment.notes.iter().cloned());
        if deployment.dense {
            report
                .digests
                .push(Fact::new("deployed table", &deployment.digest));
            report.digests.extend(
                deployment
                    .also
                    .iter()
                    .map(|also| Fact::new(format!("deployed table of {}", also.op), &also.digest)),
            );
        }
        if let Some(experts) = &deployment.fused_moe {
            report
                .digests
                .push(Fact::new("deployed tables of fused MoE", &experts.digest));
        }
        let keep = in_shell(&deployment);
        report.commands.push(Command {
            what: "keep the tuned table".to_owned(),
            command: keep.clone(),
        });
        report.keep = Some(keep);
        report.undo = Some(undo(engine));
        report.facts.push(Fact::new(
            "changed",
            changed(&deployment, super::in_ledger(&engine.run)?.len()),
        ));
    }
    if let Some(verified) = verified {
        report.layout = verified
            .layout
            .iter()
            .map(|check| LayoutCheck {
                what: format!("N={} K={}, {}", check.n, check.k, check.kernel),
                m: check.m,
                error_ratio: check.relative_error,
                limit: check.limit,
            })
            .collect();
        let dense = &verified.engagement;
        let is_dense = dense.looked_up() > 0 || verified.fused_moe.is_none();
        let experts = verified.fused_moe.as_ref();
        report
            .layout
            .extend(experts.into_iter().flat_map(fused_moe::checks));
        let parts = [
            is_dense.then_some(dense),
            experts.map(|experts| &experts.engagement),
        ];
        let parts = || parts.into_iter().flatten();
        let missing: Vec<String> = parts().flat_map(ServerEngagement::not_served).collect();
        report.engagement = Some(Engagement {
            passed: !(is_dense && dense.refusal().is_some())
                && experts.is_none_or(|experts| experts.refusal().is_none()),
            hits: Some(parts().map(|part| part.hit as u64).sum()),
            misses: Some(missing.len() as u64),
            missing,
            because: because(&dense.families),
        });
        if let Some(rate) = verified.hit_rate {
            report.hit_rates.push(HitRate {
                of: "shapes looked up, measured".to_owned(),
                before: None,
                after: rate,
            });
        }
        report.parity = Some(verified.parity);
    }
    Ok(report)
}

/// What the engagement is based on; for a route, the result of each family.
fn because(families: &BTreeMap<String, HitCount>) -> String {
    const READ: &str = "Read from what the tuned server logged while it served the workload.";
    let each: Vec<String> = families
        .iter()
        .map(|(family, asked)| {
            format!(
                "{family} computed {} of {}",
                asked.hit,
                asked.hit + asked.missed
            )
        })
        .collect();
    if each.is_empty() {
        READ.to_owned()
    } else {
        format!(
            "{READ} Of the shapes that the route names, {}.",
            each.join(", ")
        )
    }
}

/// The facts a reader wants first; what was changed is added once it is known.
fn machine_and_model(engine: &Engine<'_>) -> Vec<Fact> {
    let identity = engine.state.identity();
    let device = ["device", "gfx"]
        .iter()
        .find_map(|name| identity.get(*name));
    let workload = &engine.config.workload;
    let model = workload.model.as_ref().map(|model| {
        let model = model.trim_end_matches('/');
        let name = model.rsplit('/').next().unwrap_or(model);
        match workload.tp {
            1 => name.to_owned(),
            tp => format!("{name}, TP {tp}"),
        }
    });
    [("machine", device.cloned()), ("model", model)]
        .into_iter()
        .filter_map(|(name, value)| Some(Fact::new(name, value?)))
        .collect()
}

/// A short description of the deployment.
fn changed(deployment: &Deployment, edited: usize) -> String {
    let variables: Vec<&str> = deployment
        .env
        .keys()
        .chain(&deployment.unset)
        .map(String::as_str)
        .collect();
    let files = match edited {
        0 => String::new(),
        1 => ", 1 file of the installation".to_owned(),
        edited => format!(", {edited} files of the installation"),
    };
    format!(
        "{} table rows through {}{files}",
        deployment.all_rows(),
        variables.join(" and ")
    )
}

/// The environment of the tuned server as one line for a shell.
fn in_shell(deployment: &Deployment) -> String {
    let unset = deployment.unset.iter().map(|name| format!("unset {name}"));
    let exports = deployment
        .env
        .iter()
        .map(|(name, value)| format!("export {name}={}", quoted(value)));
    unset.chain(exports).collect::<Vec<_>>().join("; ")
}

fn undo(engine: &Engine<'_>) -> String {
    format!("gemmtune undo {}", quoted(engine.run.path().as_str()))
}

fn facts(identity: &BTreeMap<String, String>) -> Vec<Fact> {
    identity
        .iter()
        .map(|(name, value)| Fact::new(name, value))
        .collect()
}

fn shape_rows(
    engine: &Engine<'_>,
    captured: &Captured,
    tuned: Option<&Tuned>,
) -> Result<Vec<ShapeRow>, Error> {
    let bytes =
        crate::store::file::read(&engine.run.shapes()).map_err(|error| Error::file(&error))?;
    let seen = shapes::read(&bytes, None)
        .map_err(|error| Error::caused(ErrorKind::NotResumable, &error))?;
    let is_left = engine.backend.kernels.is_none();
    let is_taken = tuned.is_some_and(|tuned| tuned.taken_from.is_some());
    Ok(seen
        .into_iter()
        .map(|counted| {
            let shape = counted.shape;
            let row = tuned.and_then(|tuned| tuned.row(&shape));
            let named = |candidate: &serde_json::Value| match &engine.backend.kernels {
                Some(kernels) => kernels.kernel_name(candidate),
                None => candidate.to_string(),
            };
            let contest = tuned.and_then(|tuned| tuned.contest(&shape));
            ShapeRow {
                op: shape.op,
                m: shape.m,
                n: shape.n,
                k: shape.k,
                phase: captured.phase(shape.m),
                calls: Some(counted.records as f64),
                before: row.and_then(|row| {
                    Some(Timing {
                        us: match contest {
                            Some(contest) => contest.today_us?,
                            None => row.incumbent_us?,
                        },
                        kernel: named(row.incumbent.as_ref()?),
                    })
                }),
                after: row.and_then(|row| {
                    Some(Timing {
                        us: match contest {
                            Some(contest) => contest.tuned_us?,
                            None => row.us,
                        },
                        kernel: named(&row.candidate),
                    })
                }),
                status: Some(match (row, contest) {
                    (_, Some(contest)) if !contest.takes_over => {
                        format!("stays on {}: {}", contest.today, contest.outcome())
                    }
                    (Some(row), _) if row.incumbent_kept => {
                        "already served by the fastest".to_owned()
                    }
                    (Some(_), _) => "tuned".to_owned(),
                    (None, _) if is_left => "left to what serves it".to_owned(),
                    (None, _) if is_taken => "not tuned".to_owned(),
                    (None, _) => "served by another row".to_owned(),
                }),
            }
        })
        .collect())
}

/// What was not raced to its end, and why: problems that failed, those not reached, and candidates in quarantine.
fn skipped(
    failed: &[String],
    not_reached: &[impl ToString],
    quarantined: &[String],
) -> Vec<Skipped> {
    let failed = failed.iter().map(|failed| {
        let (what, why) = failed
            .split_once(": ")
            .unwrap_or((failed, "no candidate served it"));
        (what.to_owned(), why.to_owned())
    });
    let left = not_reached.iter().map(|problem| {
        let why = "the tuning budget ended before its turn";
        (problem.to_string(), why.to_owned())
    });
    let bad = quarantined.iter();
    let bad = bad.map(|bad| ("a candidate".to_owned(), bad.clone()));
    let all = failed.chain(left).chain(bad);
    all.map(|(what, why)| Skipped { what, why }).collect()
}

fn stage_times(engine: &Engine<'_>) -> Result<Vec<StageTime>, Error> {
    let records = read_events(&engine.run)?;
    let spent = spent(records.iter().map(|record| (record.at, &record.event)));
    let times = Stage::ALL.into_iter().filter_map(|stage| {
        let (attempts, StageStatus::Finished { summary }) = engine.state.status(stage) else {
            return None;
        };
        Some(StageTime {
            stage: stage.name().to_owned(),
            seconds: *spent.get(&stage)?,
            attempts,
            outcome: summary.clone(),
        })
    });
    Ok(times.collect())
}

fn commands(engine: &Engine<'_>) -> Vec<Command> {
    let run = quoted(engine.run.path().as_str());
    [
        (
            "measure again with this configuration",
            format!(
                "gemmtune run --new {}",
                quoted(engine.run.config().as_str())
            ),
        ),
        ("see where the run stands", format!("gemmtune status {run}")),
        ("take the deployment back", undo(engine)),
    ]
    .into_iter()
    .map(|(what, command)| Command {
        what: what.to_owned(),
        command,
    })
    .collect()
}

fn with_arms(engine: &Engine<'_>, mut report: Report) -> Result<Report, Error> {
    for (side, description) in [
        (Side::Baseline, "the server as it runs today"),
        (Side::Tuned, "the same server with the deployed table"),
    ] {
        let trials: Vec<_> = engine
            .state
            .trials()
            .iter()
            .filter(|trial| matches!(trial.role, Role::Pair { arm, .. } if arm == side))
            .filter(|trial| matches!(trial.end, TrialEnd::Finished { .. }))
            .collect();
        let Some(first) = trials.first() else {
            continue;
        };
        let folder = engine.run.trial(first.number, first.role.name());
        let started: Started = read_json(&folder.join("command.json"))?;
        report.arms.push(Arm {
            name: side.name().to_owned(),
            description: description.to_owned(),
            trials: trials.len(),
            command: Some(line(&started.argv)),
            environment: started
                .env
                .iter()
                .map(|(name, value)| Fact::new(name, value.as_deref().unwrap_or("(removed)")))
                .collect(),
        });
    }
    let alone = engine.state.trials().iter().filter(|trial| {
        matches!(trial.role, Role::Pair { .. }) && !matches!(trial.end, TrialEnd::Finished { .. })
    });
    let alone = alone.count();
    if alone > 0 {
        report.notes.push(format!(
            "{alone} trials of the comparison were cut off and run again"
        ));
    }
    Ok(report)
}
