//! `verify`: checks that the tuned server is right, and that the tuned kernels run.

use std::collections::BTreeSet;

use super::baseline::{ANSWERS, record_answers};
use super::{Done, fused_moe, records};
use crate::bench::parity::{self, Recording};
use crate::engine::ports::{Backend, Deployed};
use crate::engine::trial::{SERVER_LOG, TrialOrder};
use crate::engine::{Engine, in_place, read_document, read_json, write_document, write_json};
use crate::log::summary::LogSummary;
use crate::probe;
use crate::probe::found::{LayoutCheck, Probed};
use crate::probe::ran::Ran;
use crate::problem::Shape;
use crate::run::documents::{Deployment, Engagement, Tuned, Verified, VerifiedMoe};
use crate::run::error::{Error, ErrorKind};
use crate::run::event::Role;
use crate::run::stage::Stage;

pub(super) fn verify(engine: &mut Engine<'_>) -> Result<Done, Error> {
    let deployment: Deployment = read_document(&engine.run)?;
    let inspection = super::inspection(&engine.run)?;
    let tuned: Tuned = read_document(&engine.run)?;
    let planned: BTreeSet<Shape> = if tuned.taken_from.is_some() {
        let (served, _) = super::deploy::served_of_captured(engine, &inspection, &deployment)?;
        served.into_iter().collect()
    } else {
        tuned.rows.iter().map(|row| row.shape.clone()).collect()
    };
    let baseline = baseline_answers(engine)?;
    in_place::check(&engine.run)?;
    let folder = engine.run.engagement();
    records::clear(&folder)?;
    let mut env = deployment.environment();
    let Backend {
        server: serving,
        kernels,
        fused_moe: experts,
    } = engine.backend.clone();
    let kernels = kernels.filter(|_| deployment.dense);
    if let Some(kernels) = &kernels {
        env.extend(kernels.engagement_env(&engine.run, &deployment, &folder)?);
    }
    if let (Some(experts), Some(deployed)) = (&experts, &deployment.fused_moe) {
        env.extend(experts.engagement_env(&engine.run, deployed, &folder)?);
    }
    let order = TrialOrder {
        stage: Stage::Verify,
        role: Role::Verify,
        env,
        may_build: deployment.may_build,
    };
    let (limit, interrupt) = (engine.benchmark_limit(), engine.interrupt.clone());
    let probes = probe::sizes(&planned);
    let run = engine.run.clone();
    let deployed = Deployed {
        run: &run,
        inspection: &inspection,
        tuned: &tuned,
        deployment: &deployment,
        interrupt: &interrupt,
    };
    engine.stage_progress(Stage::Verify, "checking what was deployed");
    let Probed {
        mut layout,
        times,
        modules,
        ran,
    } = match &kernels {
        Some(kernels) => kernels.probe(&deployed, &probes)?,
        None => Probed::default(),
    };
    refuse_wrong_numbers(&layout)?;
    let checks = fused_moe::probe(engine, &inspection, &tuned, &deployment)?;
    if let Ran::Other(why) = &ran {
        return Err(Error::new(
            ErrorKind::NotBetter,
            format!("another kernel than the tuned one runs: {why}; the deployment was undone"),
        )
        .hint("`gemmtune probe` times it again; where the device runs at another clock now, tune again"));
    }
    let mut answers = None;
    let mut workload_log = 0;
    let done = engine.trial(&order, &mut |server, folder| {
        // Up to here the server has served nothing but the workload.
        workload_log = fs_err::metadata(server.log()).map_or(0, |data| data.len());
        let url = server.base_url().to_owned();
        layout.extend(server.ask(&interrupt, |_| serving.check_layout(&url, &probes))??);
        let recorded = record_answers(server, limit, &interrupt)?;
        write_json(&folder.join(ANSWERS), &recorded)?;
        answers = Some(recorded);
        server.check_alive()
    })?;
    let Some(answers) = answers else {
        return Err(Error::new(
            ErrorKind::Bug,
            "the verify trial recorded no answers",
        ));
    };
    let mut log_summary = LogSummary::default();
    records::add(
        &done.folder.join(SERVER_LOG),
        workload_log,
        &mut log_summary,
    )?;
    for file in records::files(&folder)? {
        records::add(&file, u64::MAX, &mut log_summary)?;
    }
    let engagement = match &kernels {
        Some(kernels) => kernels.engagement(&deployed, &log_summary)?,
        None => Engagement::default(),
    };
    let experts = fused_moe::verified(engine, &inspection, &deployment, checks, &log_summary)?;
    let verified = Verified {
        trial: done.number,
        hit_rate: hit_rate(&engagement, experts.as_ref()),
        parity: parity::compare(&baseline, &answers, parity::LEAST_AGREEMENT)
            .map_err(|error| Error::caused(ErrorKind::Bug, &error))?,
        engagement,
        layout,
        times,
        modules,
        ran,
        fused_moe: experts,
    };
    write_document(&engine.run, &verified)?;
    for shape in &verified.engagement.other_kernel {
        engine.remark(format!("the log contradicts the table: {shape}"));
    }
    if let Some(first) = verified.engagement.missed.first() {
        engine.remark(format!(
            "{} shapes were not served by the row that is deployed for them, first {first}",
            verified.engagement.missed.len()
        ));
    }
    if let Ran::Explained(because) = &verified.ran {
        engine.remark(format!(
            "the times of the tuned kernels tell nothing: {because}"
        ));
    }
    for time in verified.times.iter().filter(|time| !time.agrees()) {
        engine.remark(match time.us {
            Some(us) => format!(
                "{}: the deployed operation takes {us:.1} us of {} time, tuned at {:.1} us",
                time.shape, time.clock, time.tuned_us
            ),
            None => format!("{}: the deployed operation could not be timed", time.shape),
        });
    }
    judge(&verified, deployment.dense)
}

/// Share of all look-ups that the deployed tables served.
fn hit_rate(dense: &Engagement, experts: Option<&VerifiedMoe>) -> Option<f64> {
    let parts = [Some(dense), experts.map(|experts| &experts.engagement)];
    let parts = || parts.into_iter().flatten();
    let looked_up: usize = parts().map(Engagement::looked_up).sum();
    let hit: usize = parts().map(|part| part.hit).sum();
    (looked_up > 0).then(|| hit as f64 / looked_up as f64)
}

fn baseline_answers(engine: &Engine<'_>) -> Result<Recording, Error> {
    let trial = engine.state.finished_trial(Role::Baseline).ok_or_else(|| {
        Error::new(
            ErrorKind::Bug,
            "the baseline stage finished without a finished trial",
        )
    })?;
    read_json(
        &engine
            .run
            .trial(trial.number, Role::Baseline.name())
            .join(ANSWERS),
    )
}

fn refuse_wrong_numbers(layout: &[LayoutCheck]) -> Result<(), Error> {
    let wrong: Vec<&LayoutCheck> = layout.iter().filter(|check| !check.passes()).collect();
    if let Some(worst) = wrong.first() {
        let error = worst.relative_error.map_or_else(
            || "not finite".to_owned(),
            |error| format!("relative error {:.1} %", error * 100.0),
        );
        return Err(Error::new(
            ErrorKind::NotBetter,
            format!(
                "layout check: {} of {} shapes are wrong, first M={} N={} K={} with {} ({error}); the deployment was undone",
                wrong.len(),
                layout.len(),
                worst.m,
                worst.n,
                worst.k,
                worst.kernel
            ),
        ));
    }
    Ok(())
}

fn judge(verified: &Verified, is_dense: bool) -> Result<Done, Error> {
    refuse_wrong_numbers(&verified.layout)?;
    if !verified.parity.holds() {
        return Err(Error::new(
            ErrorKind::NotBetter,
            format!(
                "greedy parity: {}; the deployment was undone",
                verified.parity.because
            ),
        ));
    }
    let engagement = &verified.engagement;
    let dense = is_dense.then(|| engagement.refusal()).flatten();
    let experts = verified.fused_moe.as_ref();
    if let Some(why) = dense.or_else(|| experts.and_then(VerifiedMoe::refusal)) {
        return Err(Error::new(
            ErrorKind::NotBetter,
            format!("engagement: {why}; the deployment was undone"),
        ));
    }
    let timed = if verified.times.is_empty() {
        String::new()
    } else {
        let same = verified.times.iter().filter(|time| time.agrees()).count();
        format!(
            ", {same} of {} kernels take the time they were tuned at",
            verified.times.len()
        )
    };
    let mut said = vec![verified.parity.because.clone()];
    if is_dense {
        said.insert(0, format!("{} layout checks pass", verified.layout.len()));
        said.push(format!("{}{timed}", engagement.sentence()));
    }
    if let Some(experts) = experts {
        said.push(format!(
            "{} sizes of fused MoE compute right numbers, and {} of {} that the tuned server looked up took the rows deployed for them",
            experts.checks.len(),
            experts.engagement.hit,
            experts.engagement.looked_up()
        ));
    }
    Ok(Done::new(said.join(", ")))
}
