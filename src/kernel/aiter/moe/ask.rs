//! Runs aiter's fused MoE in a process of its own: its numbers, its times, and which kernels were requested.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use serde_json::json;

use super::AiterMoe;
use crate::log::LogSummary;
use crate::log::fmoe::Found;
use crate::log::scan::{Lines, scan};
use crate::probe::LOOKUPS_TOLD;
use crate::problem::op::fused_moe_aiter::Request;
use crate::proc::interrupt::Urgency;
use crate::proc::{Interrupt, Spawn, WaitOutcome};
use crate::run::error::{Error, ErrorKind};
use crate::store::file::write_atomic;
use crate::table::fmoe::rules::Rules;
use crate::tune::moe::MoeTask;
use crate::workload::env::Environment;

/// The program, and what it shares with the probe of dense operations.
const PROGRAM: &str = include_str!("../../../../python/aiter_probe/fused_moe.py");
const PROBE: &str = include_str!("../../../../python/aiter_probe/probe.py");

/// The prefix of every answer line (`python/aiter_probe/probe.py`).
const TAG: &str = "gemmtune-aiter-probe: ";

/// How many processes may end without an answer before the remaining sizes are given up: then the cause is not an
/// individual size.
const DEATHS: usize = 3;

/// The sizes to try, and the process to try them in.
pub(super) struct Order<'a> {
    pub(super) tasks: &'a [MoeTask],
    /// The server's environment, relative to our own.
    pub(super) env: Environment,
    /// Whether weights are marked as shuffled.
    pub(super) is_shuffled: bool,
    /// Which tasks to time as well, by index.
    pub(super) times: BTreeSet<usize>,
    pub(super) interrupt: &'a Interrupt,
}

/// The results for one size.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Answer {
    pub(super) task: usize,
    /// ‖y − ref‖ / ‖ref‖; `None` if an output is not finite.
    pub(super) error: Option<f64>,
    /// Times of a call, µs, one for each round; empty without a GPU.
    pub(super) us: Vec<f64>,
    /// The kernel that took longest, by the profiler's name.
    pub(super) kernel: Option<String>,
    /// Why there is no result.
    pub(super) said: Option<String>,
}

/// The results of all processes.
#[derive(Default)]
pub(super) struct Answers {
    by_task: BTreeMap<usize, Answer>,
    log: LogSummary,
}

impl Answers {
    /// The result for the task with index `task`.
    pub(super) fn of(&self, task: usize) -> Answer {
        self.by_task.get(&task).cloned().unwrap_or_else(|| Answer {
            said: Some("it was not tried".to_owned()),
            ..Answer::default()
        })
    }

    /// What the look-up of `request` found, according to aiter's own log line.
    pub(super) fn found(&self, rules: Rules, request: &Request) -> Option<&Found> {
        let token = rules.rounding.token(request.tokens);
        let mut problem = request.problem.clone();
        problem.topk = rules.topk(problem.topk, request.ep);
        let mut calls = self.log.fmoe.calls();
        let call = calls.find(|(call, _)| call.token == token && call.problem == problem);
        call.map(|(_, served)| &served.found)
    }

    #[cfg(test)]
    pub(super) fn say(&mut self, text: &str) {
        scan(text.as_bytes(), "said", Lines::Count, &mut self.log).unwrap();
    }

    /// Kernels that were requested by name but are not in the compiled modules.
    pub(super) fn not_found(&self) -> &BTreeSet<String> {
        &self.log.fmoe.not_found
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Doing(usize),
    Done(Answer),
}

impl AiterMoe {
    /// Tries every task of `order`; one that ends or hangs its process is recorded, and a fresh process does the
    /// rest.
    pub(super) fn ask(
        &self,
        order: &Order<'_>,
        observer: &mut dyn FnMut(usize),
    ) -> Result<Answers, Error> {
        let keep = tempfile::tempdir().map_err(|error| Error::file(&error))?;
        let folder = Utf8Path::from_path(keep.path()).ok_or_else(|| {
            Error::new(
                ErrorKind::Environment,
                "the temporary folder has no UTF-8 name",
            )
        })?;
        for (name, text) in [("fused_moe.py", PROGRAM), ("gemmtune_probe.py", PROBE)] {
            write_atomic(&folder.join(name), text.as_bytes())
                .map_err(|error| Error::file(&error))?;
        }
        let (mut answers, mut deaths) = (Answers::default(), 0);
        loop {
            let left: Vec<usize> = (0..order.tasks.len())
                .filter(|task| !answers.by_task.contains_key(task))
                .collect();
            observer(order.tasks.len() - left.len());
            if left.is_empty() {
                return Ok(answers);
            }
            let (ended, doing) = self.process(order, &left, folder, &mut answers)?;
            deaths += 1;
            let at = doing.and_then(|at| left.get(at).copied());
            for task in left {
                let lost = at == Some(task) || at.is_none() || deaths >= DEATHS;
                if lost && !answers.by_task.contains_key(&task) {
                    let said = Some(ended.clone());
                    let answer = Answer {
                        task,
                        said,
                        ..Answer::default()
                    };
                    answers.by_task.insert(task, answer);
                }
            }
        }
    }

    /// Runs one process for the remaining tasks; returns how it ended, and which task it was working on.
    fn process(
        &self,
        order: &Order<'_>,
        left: &[usize],
        folder: &Utf8Path,
        answers: &mut Answers,
    ) -> Result<(String, Option<usize>), Error> {
        let tasks: Vec<&MoeTask> = left.iter().map(|task| &order.tasks[*task]).collect();
        let timed = |(_, task): &(usize, &usize)| order.times.contains(*task);
        let times: Vec<usize> = left
            .iter()
            .enumerate()
            .filter(timed)
            .map(|(at, _)| at)
            .collect();
        let asked = json!({"tasks": tasks, "is_shuffled": order.is_shuffled, "times": times});
        let path = |name: &str| -> Utf8PathBuf { folder.join(name) };
        write_atomic(&path("order.json"), asked.to_string().as_bytes())
            .map_err(|error| Error::file(&error))?;
        let mut env = order.env.clone();
        for (name, value) in LOOKUPS_TOLD {
            env.insert(name.to_owned(), Some(value.to_owned()));
        }
        let (program, file) = (path("fused_moe.py"), path("order.json"));
        let argv = [
            self.aiter.site.python.as_str(),
            program.as_str(),
            file.as_str(),
        ];
        let spawn = Spawn {
            argv: argv.map(str::to_owned).to_vec(),
            folder: self.aiter.folder.clone(),
            env,
            stdout: path("stdout"),
            stderr: path("stderr"),
            grace: Duration::from_secs(2),
            linger: false,
        };
        let failed = |error: &dyn std::error::Error| Error::caused(ErrorKind::Environment, error);
        let mut kept = spawn
            .start(&self.aiter.site.keeper)
            .map_err(|error| failed(&error))?;
        let size = || {
            let length = |name| fs_err::metadata(path(name)).map_or(0, |data| data.len());
            length("stdout") + length("stderr")
        };
        let (mut seen, mut since) = (size(), Instant::now());
        let ended = loop {
            match kept.wait(Duration::from_secs(1), order.interrupt) {
                WaitOutcome::Exited(0) => break "the process ended without an answer".to_owned(),
                WaitOutcome::Exited(code @ 129..) => {
                    break format!("signal {} ended the process", code - 128);
                }
                WaitOutcome::Exited(code) => break format!("the process exited with code {code}"),
                WaitOutcome::Interrupted(urgency) => {
                    kept.stop(urgency, order.interrupt);
                    return Err(Error::interrupted());
                }
                WaitOutcome::DeadlinePassed => {}
            }
            if size() != seen {
                (seen, since) = (size(), Instant::now());
            } else if since.elapsed() >= self.aiter.ready_limit {
                kept.stop(Urgency::Stop, order.interrupt);
                let limit = self.aiter.ready_limit.as_secs_f64();
                break format!("it said nothing for {limit:.0} s");
            }
        };
        let output = |name| fs_err::read(path(name)).map_err(|error| Error::file(&error));
        let (stdout, stderr) = (output("stdout")?, output("stderr")?);
        for (name, bytes) in [("stdout", &stdout), ("stderr", &stderr)] {
            // Reading from memory cannot fail.
            let _ = scan(bytes.as_slice(), name, Lines::Count, &mut answers.log);
        }
        let mut doing = None;
        for line in String::from_utf8_lossy(&stdout).lines() {
            // A library's own output may precede it.
            let Some((_, said)) = line.split_once(TAG) else {
                continue;
            };
            match serde_json::from_str(said) {
                Ok(Line::Doing(task)) => doing = Some(task),
                Ok(Line::Done(answer)) => {
                    doing = doing.filter(|task| *task != answer.task);
                    if let Some(task) = left.get(answer.task) {
                        let answer = Answer {
                            task: *task,
                            ..answer
                        };
                        answers.by_task.insert(*task, answer);
                    }
                }
                Err(_) => {}
            }
        }
        let words = String::from_utf8_lossy(&stderr);
        let last = words.lines().rfind(|line| !line.trim().is_empty());
        let last = last.map_or_else(String::new, |last| {
            format!(
                "; its last words: {}",
                last.chars().take(300).collect::<String>()
            )
        });
        Ok((ended + &last, doing))
    }
}
