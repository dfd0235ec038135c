//! `compare`: both arms in interleaved trials, and the verdict.

use camino::{Utf8Path, Utf8PathBuf};

use super::{Done, foresee};
use crate::bench::result;
use crate::compare::{
    self, Band, Comparison, LoadComparison, Metric, Question, Trial, Unit, metric,
};
use crate::engine::server::RunningServer;
use crate::engine::trial::{RESULTS, TrialOrder};
use crate::engine::{Engine, in_place, read_document, write_json};
use crate::run::documents::Deployment;
use crate::run::error::{Error, ErrorKind};
use crate::run::event::{Arm, Event, Role};
use crate::run::stage::{self, Stage, TrialEnd, next_half, pair_trials};
use crate::workload::env::Environment;

pub(super) fn compare(engine: &mut Engine<'_>) -> Result<Done, Error> {
    let pairs = engine.config.compare.pairs;
    let tuned_env = if engine.config.compare.only_noise {
        [].into()
    } else {
        read_document::<Deployment>(&engine.run)?.environment()
    };
    forget_lost(engine)?;
    while let Some((pair, arm)) = next_half(engine.state.trials(), pairs, &engine.host) {
        let env = match arm {
            Arm::Baseline => [].into(),
            Arm::Tuned => {
                in_place::check(&engine.run)?;
                tuned_env.clone()
            }
        };
        let order = TrialOrder {
            stage: Stage::Compare,
            role: Role::Pair { pair, arm },
            env,
            may_build: false,
        };
        let run = engine.run.path().to_owned();
        engine.trial(&order, &mut |server, _| match arm {
            Arm::Tuned => Ok(()),
            Arm::Baseline => refuse_deployed(server, &tuned_env, &run),
        })?;
        // More pairs cannot make incomparable arms comparable, and each of them costs two server starts.
        if pair_trials(engine.state.trials(), pair).is_some() && !judged(engine)?.unfair.is_empty()
        {
            break;
        }
    }
    let comparison = judged(engine)?;
    write_json(&engine.run.stage(Stage::Compare.name()), &comparison)?;
    for note in &comparison.notes {
        engine.remark(note.clone());
    }
    let whole = crate::report::verdict::sentence(&comparison);
    let loads = comparison.loads.iter().map(one_load);
    let parts: Vec<String> = std::iter::once(whole).chain(loads).collect();
    Ok(Done::new(parts.join("; ")))
}

/// A trial whose results are missing or torn does not count as measured, whatever the journal says.
fn forget_lost(engine: &mut Engine<'_>) -> Result<(), Error> {
    let is_lost = |trial: &&stage::Trial| {
        let file = engine
            .run
            .trial(trial.number, trial.role.name())
            .join(RESULTS);
        matches!(trial.role, Role::Pair { .. })
            && matches!(trial.end, TrialEnd::Finished { .. })
            && result::read(&file).is_err()
    };
    let trials = engine.state.trials().iter();
    let lost: Vec<u32> = trials.filter(is_lost).map(|trial| trial.number).collect();
    for trial in lost {
        engine.remark(format!(
            "the results of trial {trial} are gone or damaged: it is measured again"
        ));
        engine.record(Event::TrialFailed {
            trial,
            reason: "its results are gone or damaged".to_owned(),
        })?;
    }
    Ok(())
}

/// A launch script that names the deployed files itself serves them in both arms, which would then be the same.
fn refuse_deployed(
    server: &RunningServer,
    tuned_env: &Environment,
    run: &Utf8Path,
) -> Result<(), Error> {
    let of_this_run = tuned_env
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)))
        .filter(|(_, value)| value.contains(run.as_str()));
    match server.carrying(of_this_run) {
        None => Ok(()),
        Some((pid, name)) => Err(Error::new(
            ErrorKind::Environment,
            format!(
                "the untuned server (process {pid}) was started with the `{name}` of the tuned one: both arms would be the same"
            ),
        )
        .hint(format!("take `{name}` out of the launch script"))),
    }
}

/// A line such as `decode-1: better, median_tpot_ms 1.712x [1.690, 1.731]`.
fn one_load(load: &LoadComparison) -> String {
    let ratio = &load.comparison.ratio;
    let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |x| format!("{x:.3}"));
    format!(
        "{}: {}, {} {}x [{}, {}]",
        load.load,
        load.comparison.verdict.word(),
        load.comparison.metric,
        number(ratio.median),
        number(ratio.low),
        number(ratio.high)
    )
}

/// The comparison of all finished pairs.
fn judged(engine: &Engine<'_>) -> Result<Comparison, Error> {
    let failed = |error: &dyn std::error::Error| Error::caused(ErrorKind::WorkloadFailed, error);
    let metric = deciding(&engine.config.compare.metric)?;
    let mut arms: [Vec<Utf8PathBuf>; 2] = Default::default();
    for pair in 0..engine.config.compare.pairs {
        let Some(halves) = pair_trials(engine.state.trials(), pair) else {
            continue;
        };
        for (arm, trial) in arms.iter_mut().zip(halves) {
            arm.push(
                engine
                    .run
                    .trial(trial.number, trial.role.name())
                    .join(RESULTS),
            );
        }
    }
    let read = |files: &[Utf8PathBuf]| -> Result<Vec<Trial>, Error> {
        let runs = files
            .iter()
            .map(|file| result::read(file))
            .collect::<Result<Vec<_>, _>>();
        Ok(compare::trials(
            runs.map_err(|error| failed(&error))?,
            Unit::File,
        ))
    };
    let expected: Vec<String> = engine
        .backend
        .server
        .expected_differences()
        .iter()
        .map(ToString::to_string)
        .collect();
    let arms = [read(&arms[0])?, read(&arms[1])?];
    let judge = |arms: &[Vec<Trial>; 2], metric: &Metric| {
        compare::compare(&Question {
            baseline: &arms[0],
            tuned: &arms[1],
            metric,
            band: Band::default(),
            expected: &expected,
            requests: engine
                .config
                .benchmark
                .builtin
                .as_ref()
                .map(|load| u64::from(load.prompts)),
            allow_unfair: false,
        })
        .map_err(|error| failed(&error))
    };
    let mut whole = judge(&arms, metric)?;
    let foreseen = foresee::read(engine)?;
    for load in &engine.config.benchmark.loads {
        // A configuration whose loads have no names is rejected when it is parsed.
        let load_name = load.name.as_deref().unwrap_or_default();
        let of_load = |trials: &Vec<Trial>| -> Vec<Trial> {
            let of_load = trials.iter().filter_map(|trial| trial.of_load(load_name));
            of_load.collect()
        };
        let metric = match &load.metric {
            Some(name) => deciding(name)?,
            None => metric,
        };
        whole.loads.push(LoadComparison {
            load: load_name.to_owned(),
            predicted: foreseen
                .iter()
                .find(|foreseen| foreseen.load == load_name)
                .map(|foreseen| foreseen.ratio),
            comparison: judge(&[of_load(&arms[0]), of_load(&arms[1])], metric)?,
        });
    }
    Ok(whole)
}

fn deciding(name: &str) -> Result<&'static Metric, Error> {
    metric::named(name).ok_or_else(|| {
        Error::new(
            ErrorKind::Usage,
            format!("`{name}` is no metric with a known direction"),
        )
        .hint("see `gemmtune compare --help` for the metrics")
    })
}
