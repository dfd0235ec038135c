//! One trial: one server start with its benchmark runs, in its own folder.

use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::server::{RunningServer, ServerOrder};
use super::{Engine, RUN_VARIABLE, deadline};
use crate::bench::{client, line, load, prompt, result};
use crate::proc::interrupt::Urgency;
use crate::proc::{Spawn, WaitOutcome};
use crate::run::error::{Error, ErrorKind};
use crate::run::event::{Event, Progress, Role};
use crate::run::stage::{Stage, TrialEnd};
use crate::store::file::write_atomic;
use crate::workload::config::{Launch, Measure};
use crate::workload::env::Environment;
use crate::workload::loopback::take_no_proxy;
use crate::workload::secret::Secrets;

/// The result lines of a trial, one JSON object per benchmark run, in its folder.
pub(crate) const RESULTS: &str = "bench.jsonl";

/// The server's output in a trial's folder.
pub(crate) const SERVER_LOG: &str = "server.log";

/// The server's resolved arguments in a trial's folder.
pub(crate) const SERVER_INFO: &str = "server_info.json";

/// Token ids below 200 exist in every vocabulary, and those below 16 are often special.
pub(crate) const PROMPTS: prompt::Kind = prompt::Kind::TokenIds {
    first: 16,
    last: 199,
};

/// The purpose and settings of a trial.
pub(crate) struct TrialOrder {
    /// The stage it belongs to.
    pub(crate) stage: Stage,
    pub(crate) role: Role,
    /// Environment of the server, relative to the configured one.
    pub(crate) env: Environment,
    /// Whether the server may build code, as at the first start after a deployment, so that only the configured limit
    /// applies.
    pub(crate) may_build: bool,
}

/// The result of a successful trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrialDone {
    pub(crate) number: u32,
    pub(crate) folder: Utf8PathBuf,
}

/// What was started in a trial, so that it can be reproduced.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Started {
    pub(crate) argv: Vec<String>,
    pub(crate) folder: Utf8PathBuf,
    /// Variables set or removed.
    pub(crate) env: Environment,
}

impl Engine<'_> {
    /// Runs a trial; `while_up` may use the server after the benchmark. Whether the server survives that is up to
    /// `while_up`.
    pub(crate) fn trial(
        &mut self,
        order: &TrialOrder,
        while_up: &mut dyn FnMut(&mut RunningServer, &Utf8Path) -> Result<(), Error>,
    ) -> Result<TrialDone, Error> {
        let number = self.state.next_trial_number();
        let folder = self.run.trial(number, order.role.name());
        let host = self.host.clone();
        self.record(Event::TrialStarted {
            trial: number,
            role: order.role,
            host,
        })?;
        fs_err::create_dir_all(&folder).map_err(|error| Error::file(&error))?;
        let started = Instant::now();
        match self.serve(order, number, &folder, while_up) {
            Ok((ready_seconds, benchmark_seconds)) => {
                self.record(Event::TrialFinished {
                    trial: number,
                    seconds: started.elapsed().as_secs_f64(),
                    ready_seconds,
                    benchmark_seconds,
                })?;
                Ok(TrialDone { number, folder })
            }
            Err(error) => {
                let error = self.masked(error);
                let reason = error.to_string();
                self.record(Event::TrialFailed {
                    trial: number,
                    reason,
                })?;
                Err(error)
            }
        }
    }

    fn serve(
        &mut self,
        order: &TrialOrder,
        number: u32,
        folder: &Utf8Path,
        while_up: &mut dyn FnMut(&mut RunningServer, &Utf8Path) -> Result<(), Error>,
    ) -> Result<(f64, f64), Error> {
        let server_order = self.server_order(order);
        self.write_masked(
            &folder.join("command.json"),
            &Started {
                argv: server_order.argv.clone(),
                folder: server_order.folder.clone(),
                env: server_order.env.clone(),
            },
        )?;
        self.trial_progress(order, "starting the server");
        let log = folder.join(SERVER_LOG);
        let mut server = RunningServer::start(&server_order, &log, &self.keeper, &self.interrupt)?;
        if let Some(info) = server.info() {
            self.write_masked(&folder.join(SERVER_INFO), &info)?;
        }
        let mut slowest = 0.0_f64;
        for _ in 0..self.config.benchmark.repeats {
            self.trial_progress(order, "running the benchmark");
            let began = Instant::now();
            let measured = self.measure(&mut server, number, folder);
            // A dead server explains failed requests better than the requests do.
            server.check_alive()?;
            measured?;
            slowest = slowest.max(began.elapsed().as_secs_f64());
        }
        while_up(&mut server, folder)?;
        let ready_seconds = server.ready_seconds();
        // Everything requested has been measured: from here on an interruption takes effect after this trial.
        server.stop(&self.interrupt);
        Ok((ready_seconds, slowest))
    }

    fn server_order(&self, order: &TrialOrder) -> ServerOrder {
        let server = &self.config.server;
        let mut env: Environment = server
            .unset
            .iter()
            .map(|name| (name.clone(), None))
            .collect();
        env.extend(
            server
                .env
                .iter()
                .map(|(name, value)| (name.clone(), Some(value.clone()))),
        );
        env.extend(order.env.clone());
        env.insert(
            RUN_VARIABLE.to_owned(),
            Some(self.run.path().as_str().to_owned()),
        );
        let argv = match self.config.launch() {
            Ok(Launch::Command(command)) => command.to_vec(),
            Ok(Launch::Script(script)) => vec!["bash".to_owned(), script.to_string()],
            // A configuration with neither is rejected when it is parsed.
            Err(_) => Vec::new(),
        };
        let configured = Duration::from_secs(server.ready_timeout_s);
        let seen = match self
            .state
            .finished_trial(Role::Baseline)
            .map(|trial| &trial.end)
        {
            Some(TrialEnd::Finished { ready_seconds, .. }) if !order.may_build => {
                Some(*ready_seconds)
            }
            _ => None,
        };
        ServerOrder {
            argv,
            folder: server
                .cwd
                .clone()
                .unwrap_or_else(|| self.run.path().to_owned()),
            env,
            port: server.port,
            ready_url: self.config.ready_url(),
            ready_log: server.ready_log.clone(),
            ready_limit: deadline::learned(seen, configured),
            grace: Duration::from_secs(server.stop_timeout_s),
        }
    }

    pub(crate) fn benchmark_limit(&self) -> Duration {
        let configured = Duration::from_secs(self.config.benchmark.timeout_s);
        let seen = match self
            .state
            .finished_trial(Role::Baseline)
            .map(|trial| &trial.end)
        {
            Some(TrialEnd::Finished {
                benchmark_seconds, ..
            }) => Some(*benchmark_seconds),
            _ => None,
        };
        deadline::learned(seen, configured)
    }

    fn measure(
        &mut self,
        server: &mut RunningServer,
        number: u32,
        folder: &Utf8Path,
    ) -> Result<(), Error> {
        let limit = self.benchmark_limit();
        match self.config.measure() {
            Ok(Measure::Builtin(loads)) => {
                for load in loads {
                    self.measure_by_load(load, server, number, folder, limit)?;
                }
                Ok(())
            }
            Ok(Measure::Command { command, results }) => {
                let command = command.to_vec();
                let results = folder.join(results);
                self.measure_by_command(command, &results, folder, limit)
            }
            Err(error) => Err(Error::caused(ErrorKind::Usage, &error)),
        }
    }

    fn measure_by_load(
        &self,
        asked: &crate::workload::config::Load,
        server: &mut RunningServer,
        number: u32,
        folder: &Utf8Path,
        limit: Duration,
    ) -> Result<(), Error> {
        let failed = |reason: String| {
            Error::new(ErrorKind::WorkloadFailed, reason).hint(format!(
                "read the server's log: {}",
                folder.join(SERVER_LOG)
            ))
        };
        let url = server.base_url().to_owned();
        let started = jiff::Timestamp::now().to_string();
        let (load, outcome) = server.ask(&self.interrupt, |stop| {
            let load = load::Load {
                model: client::first_model(&url).unwrap_or_default(),
                url,
                concurrency: asked.concurrency as usize,
                requests: asked.prompts as usize,
                warmup: asked.warmup as usize,
                input_len: asked.input_len as usize,
                output_len: asked.output_len as usize,
                seed: asked.seed,
                prompt: PROMPTS,
                deadline: limit,
            };
            let outcome = load::run(&load, stop, &|_| {});
            (load, outcome)
        })?;
        let outcome = outcome.map_err(|error| Error::caused(ErrorKind::Usage, &error))?;
        if let Some(error) = outcome
            .requests
            .iter()
            .find_map(|request| request.outcome.as_ref().err())
        {
            return Err(failed(format!(
                "{} of {} benchmark requests failed; the first: {error}",
                outcome.failed(),
                load.requests
            )));
        }
        if outcome.requests.len() < load.requests {
            return Err(failed(
                "the benchmark stopped before all its requests were sent".to_owned(),
            ));
        }
        let extra = line::Extra {
            tag: asked.name.clone(),
            server_info: server.info().map(|mut info| {
                self.secrets.mask_json(&mut info);
                info
            }),
            sequence: Some(u64::from(number)),
            started: Some(started),
            details: false,
        };
        line::append(
            &folder.join(RESULTS),
            &line::document(&load, &outcome, &extra),
        )
        .map_err(|error| Error::file(&error))
    }

    fn measure_by_command(
        &self,
        command: Vec<String>,
        results: &Utf8Path,
        folder: &Utf8Path,
        limit: Duration,
    ) -> Result<(), Error> {
        let log = folder.join("bench.log");
        let mut spawn = Spawn::new(command, &log);
        spawn.folder = Some(folder.to_owned());
        spawn.env = self
            .config
            .server
            .env
            .iter()
            .map(|(name, value)| (name.clone(), Some(value.clone())))
            .collect();
        spawn.env.insert(
            RUN_VARIABLE.to_owned(),
            Some(self.run.path().as_str().to_owned()),
        );
        take_no_proxy(&mut spawn.env);
        let mut kept = spawn
            .start(&self.keeper)
            .map_err(|error| Error::caused(ErrorKind::Usage, &error))?;
        let failed = |reason: String| {
            Error::new(ErrorKind::WorkloadFailed, reason).hint(format!("read its output: {log}"))
        };
        match kept.wait(limit, &self.interrupt) {
            WaitOutcome::Exited(0) => {}
            WaitOutcome::Exited(code) => {
                return Err(failed(format!("the benchmark exited with code {code}")));
            }
            WaitOutcome::DeadlinePassed => {
                kept.stop(Urgency::Stop, &self.interrupt);
                return Err(failed(format!(
                    "the benchmark did not end within {:.0} s",
                    limit.as_secs_f64()
                )));
            }
            WaitOutcome::Interrupted(urgency) => {
                kept.stop(urgency, &self.interrupt);
                return Err(Error::interrupted());
            }
        }
        let own = folder.join(RESULTS);
        let text = crate::store::file::read_text(results)
            .map_err(|error| failed(format!("the benchmark left no result: {error}")))?;
        let masked = without_secrets(&text, &self.secrets);
        if results != own || masked != text {
            write_atomic(&own, masked.as_bytes()).map_err(|error| Error::file(&error))?;
        }
        let runs = result::read(&own).map_err(|error| {
            Error::caused(ErrorKind::WorkloadFailed, &error).hint(format!("read its output: {log}"))
        })?;
        match runs
            .iter()
            .find_map(|run| run.failed().filter(|&failed| failed > 0))
        {
            Some(count) => Err(failed(format!("{count} benchmark requests failed"))),
            None => Ok(()),
        }
    }

    fn trial_progress(&mut self, order: &TrialOrder, doing: &str) {
        let (steps, eta_seconds) = match order.role {
            Role::Pair { .. } => self.compare_progress(),
            _ => (None, None),
        };
        let doing = format!("{}: {doing}", order.role.name());
        self.progress(Progress {
            stage: order.stage,
            doing,
            steps,
            eta_seconds,
            passing: false,
        });
    }

    /// Trials of the compare stage done and wanted, and the seconds the rest will take.
    fn compare_progress(&self) -> (Option<(u64, u64)>, Option<f64>) {
        let wanted = u64::from(self.config.compare.pairs) * 2;
        let seconds: Vec<f64> = self
            .state
            .trials()
            .iter()
            .filter(|trial| matches!(trial.role, Role::Pair { .. }))
            .filter_map(|trial| match trial.end {
                TrialEnd::Finished { seconds, .. } => Some(seconds),
                _ => None,
            })
            .collect();
        let done = (seconds.len() as u64).min(wanted);
        let mean = seconds.iter().sum::<f64>() / seconds.len().max(1) as f64;
        let eta = (!seconds.is_empty()).then(|| mean * (wanted - done) as f64);
        (Some((done, wanted)), eta)
    }
}

/// Result lines without secrets: `bench_serving` may write the server's arguments beside its results. Lines without
/// secrets stay byte for byte as they are.
fn without_secrets(text: &str, secrets: &Secrets) -> String {
    let masked = |line: &str| {
        let read: serde_json::Value = serde_json::from_str(&result::strict_json(line)).ok()?;
        let mut masked = read.clone();
        secrets.mask_json(&mut masked);
        (masked != read).then(|| format!("{masked}\n"))
    };
    text.split_inclusive('\n')
        .map(|line| masked(line).unwrap_or_else(|| line.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_lose_the_servers_key_and_nothing_else() {
        let plain = "{\"request_rate\": Infinity, \"generated\": \"taken=\\\"a\\\"\"}\n";
        let keyed = "{\"a\": NaN, \"server_info\": {\"api_key\": \"sk-1\", \"tp\": 1}}\n";
        let text = without_secrets(&format!("{plain}{keyed}torn"), &Secrets::default());
        let expected = "{\"a\":\"NaN\",\"server_info\":{\"api_key\":\"***\",\"tp\":1}}\n";
        assert_eq!(text, format!("{plain}{expected}torn"));
        // A string that contains one stays a string.
        let quoted = "{\"text\": \"token=\\\"abcdef\\\"\"}\n";
        let text = without_secrets(quoted, &Secrets::default());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["text"], "token=\"***\"");
    }
}
