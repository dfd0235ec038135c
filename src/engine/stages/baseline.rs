//! `baseline`: the default path, served and measured as the user does today.

use std::time::Duration;

use super::{Done, profile};
use crate::bench::parity::{self, Parity, Recording};
use crate::bench::{client, result};
use crate::engine::server::RunningServer;
use crate::engine::trial::{PROMPTS, RESULTS, TrialOrder};
use crate::engine::{Engine, write_json};
use crate::proc::Interrupt;
use crate::run::error::{Error, ErrorKind};
use crate::run::event::Role;
use crate::run::stage::Stage;
use crate::workload::config::{Load, Measure};

/// The server's greedy answers, in its trial's folder.
pub(super) const ANSWERS: &str = "parity.json";

pub(super) fn baseline(engine: &mut Engine<'_>) -> Result<Done, Error> {
    let order = TrialOrder {
        stage: Stage::Baseline,
        role: Role::Baseline,
        env: [].into(),
        may_build: true,
    };
    let (limit, interrupt) = (engine.benchmark_limit(), engine.interrupt.clone());
    if let Ok(Measure::Builtin(loads)) = engine.config.measure() {
        let few: Vec<String> = loads.iter().filter_map(Load::remark).collect();
        for remark in few {
            engine.remark(remark);
        }
    }
    let asked = profile::asked(engine);
    let (mut recorded, mut broken_off) = (Vec::new(), false);
    let done = engine.trial(&order, &mut |server, folder| {
        let answers = record_answers(server, limit, &interrupt)?;
        write_json(&folder.join(ANSWERS), &answers)?;
        server.check_alive()?;
        // From here on the server has served its purpose, so the profiler may end it.
        if let Some(asked) = &asked {
            // An interruption costs the profile, not the timed trial.
            match profile::record(asked, server) {
                Ok(found) => recorded = found,
                Err(error) if error.kind() == ErrorKind::Interrupted => broken_off = true,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    })?;
    if asked.is_some() {
        profile::conclude(engine, &done.folder, recorded)?;
    }
    if broken_off {
        engine.remark(
            "no breakdown of the step time: the profile was interrupted; `gemmtune run --new` makes another",
        );
    }
    let runs = result::read(&done.folder.join(RESULTS))
        .map_err(|error| Error::caused(ErrorKind::WorkloadFailed, &error))?;
    let numbers: Vec<String> = [
        ("output_throughput", "tok/s"),
        ("median_ttft_ms", "ms TTFT"),
        ("median_tpot_ms", "ms TPOT"),
    ]
    .iter()
    .filter_map(|(key, unit)| {
        let value = runs.last()?.number(key)?;
        Some(format!("{value:.1} {unit}"))
    })
    .collect();
    Ok(Done::new(numbers.join(", ")))
}

/// The server's greedy answers at one, two and four concurrent requests, so that prefill and decode run at several M:
/// at M = 1 a transposed scale equals the scale itself.
pub(super) fn record_answers(
    server: &mut RunningServer,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<Recording, Error> {
    let url = server.base_url().to_owned();
    server
        .ask(interrupt, |stop| {
            let order = Parity {
                model: client::first_model(&url).unwrap_or_default(),
                url,
                concurrencies: vec![1, 2, 4],
                prompts: 4,
                input_len: 24,
                output_len: 8,
                seed: 7,
                prompt: PROMPTS,
                deadline: limit,
            };
            parity::record(&order, stop, &|_| {})
        })?
        .map_err(|error| Error::caused(ErrorKind::WorkloadFailed, &error))
}
