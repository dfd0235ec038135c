//! `compare`: both arms in interleaved trials, and the verdict.

use camino::Utf8PathBuf;

use super::Done;
use crate::bench::result;
use crate::compare::{self, Band, Comparison, Question, Trial, Unit, metric};
use crate::engine::trial::{RESULTS, TrialOrder};
use crate::engine::trouble::{Class, Trouble};
use crate::engine::{Engine, read_json, write_json};
use crate::event::{Arm, Role};
use crate::platform::Deployment;
use crate::stage::{Stage, next_half, pair_trials};

pub(super) fn compare(engine: &mut Engine<'_>) -> Result<Done, Trouble> {
    let pairs = engine.config.compare.pairs;
    let tuned_env = if engine.config.compare.only_noise {
        [].into()
    } else {
        read_json::<Deployment>(&engine.run.stage(Stage::Deploy.name()))?.env
    };
    while let Some((pair, arm)) = next_half(engine.state.trials(), pairs, &engine.host) {
        let env = match arm {
            Arm::Baseline => [].into(),
            Arm::Tuned => tuned_env
                .iter()
                .map(|(name, value)| (name.clone(), Some(value.clone())))
                .collect(),
        };
        let order = TrialOrder {
            stage: Stage::Compare,
            role: Role::Pair { pair, arm },
            env,
            may_build: false,
        };
        engine.trial(&order, &mut |_, _| Ok(()))?;
    }
    let comparison = judged(engine)?;
    write_json(&engine.run.stage(Stage::Compare.name()), &comparison)?;
    let interval = match comparison.ratio {
        compare::Ratio {
            median: Some(median),
            low: Some(low),
            high: Some(high),
            ..
        } => {
            format!(", {} {median:.3}x [{low:.3}, {high:.3}]", comparison.metric)
        }
        _ => String::new(),
    };
    Ok(Done::new(format!(
        "{}{interval}: {}",
        comparison.verdict.word(),
        comparison.because
    )))
}

/// The comparison of all finished pairs.
fn judged(engine: &Engine<'_>) -> Result<Comparison, Trouble> {
    let failed = |error: &dyn std::error::Error| Trouble::caused(Class::WorkloadFailed, error);
    let name = &engine.config.compare.metric;
    let metric = metric::named(name).ok_or_else(|| {
        Trouble::new(
            Class::Usage,
            format!("`{name}` is no metric with a known direction"),
        )
        .hint("see `gemmtune compare --help` for the metrics")
    })?;
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
    let read = |files: &[Utf8PathBuf]| -> Result<Vec<Trial>, Trouble> {
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
        .platform
        .expected_differences()
        .iter()
        .map(ToString::to_string)
        .collect();
    compare::compare(&Question {
        baseline: &read(&arms[0])?,
        tuned: &read(&arms[1])?,
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
}
