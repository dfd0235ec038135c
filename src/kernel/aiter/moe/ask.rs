//! Runs aiter's fused MoE in a process of its own: its numbers, its times, and which kernels were requested.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::AiterMoe;
use super::kept::{Answered, Kept};
use super::lookups::Lookups;
use crate::log::LogSummary;
use crate::log::fmoe::Found;
use crate::log::scan::{Lines, scan};
use crate::probe::LOOKUPS_TOLD;
use crate::proc::interrupt::Urgency;
use crate::proc::{Interrupt, Spawn, WaitOutcome};
use crate::run::error::{Error, ErrorKind};
use crate::store::file::write_atomic;
use crate::tune::moe::MoeTask;
use crate::workload::env::Environment;

/// The program, and what it shares with the probe of dense operations.
pub(super) const PROGRAM: &str = include_str!("../../../../python/aiter_probe/fused_moe.py");
pub(super) const PROBE: &str = include_str!("../../../../python/aiter_probe/probe.py");

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
    /// A file in which answers are kept, and what they are of; without it they are asked for anew.
    pub(super) kept: Option<(&'a Utf8Path, &'a str)>,
    pub(super) interrupt: &'a Interrupt,
}

/// The results for one size.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Its number in what the process was asked.
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

/// What was found of one size, and which kernels it ran with by aiter's own line.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Tried {
    pub(super) answer: Answer,
    pub(super) found: Option<Found>,
}

/// The results of all processes.
#[derive(Default)]
pub(super) struct Answers {
    by_task: BTreeMap<usize, Tried>,
    not_found: BTreeSet<String>,
    kept: Option<Kept>,
}

impl Answers {
    /// Those that are kept of `order` already.
    fn of_before(order: &Order<'_>) -> Result<Self, Error> {
        let mut answers = Self::default();
        let Some((path, identity)) = order.kept else {
            return Ok(answers);
        };
        let (kept, before) = Kept::open(path, identity)?;
        for answered in before {
            let at = order.tasks.iter().position(|task| *task == answered.task);
            if let Some(at) = at {
                answers.by_task.insert(at, answered.tried);
            }
            answers.not_found.extend(answered.not_found);
        }
        answers.kept = Some(kept);
        Ok(answers)
    }

    /// What was found of the task number `task` of the order.
    pub(super) fn of(&self, task: usize) -> Tried {
        self.by_task.get(&task).cloned().unwrap_or_else(|| Tried {
            answer: Answer {
                said: Some("it was not tried".to_owned()),
                ..Answer::default()
            },
            found: None,
        })
    }

    /// Keeps what was found of a task, and what its process had said of absent kernels until then.
    fn add(
        &mut self,
        order: &Order<'_>,
        at: usize,
        tried: Tried,
        log: &LogSummary,
    ) -> Result<(), Error> {
        let not_found = &log.fmoe.not_found;
        self.not_found.extend(not_found.iter().cloned());
        if let Some(kept) = &mut self.kept {
            kept.add(Answered {
                task: order.tasks[at].clone(),
                tried: tried.clone(),
                not_found: not_found.clone(),
            })?;
        }
        self.by_task.insert(at, tried);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn say(&mut self, text: &str) {
        let mut log = LogSummary::default();
        scan(text.as_bytes(), "said", Lines::Count, &mut log).unwrap();
        self.not_found.extend(log.fmoe.not_found);
    }

    /// Kernels that were requested by name but are not in the compiled modules.
    pub(super) fn not_found(&self) -> &BTreeSet<String> {
        &self.not_found
    }
}

/// What the look-up of `task` found, by aiter's own line in `log`.
fn found(lookups: &Lookups, task: &MoeTask, log: &LogSummary) -> Option<Found> {
    let request = lookups.request(&task.problem(), task.m)?;
    let token = lookups.rules.rounding.token(request.tokens);
    let mut problem = request.problem;
    problem.topk = lookups.rules.topk(problem.topk, request.ep);
    let mut calls = log.fmoe.calls();
    let call = calls.find(|(call, _)| call.token == token && call.problem == problem);
    call.map(|(_, served)| served.found.clone())
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
        lookups: &Lookups,
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
        let (mut answers, mut deaths) = (Answers::of_before(order)?, 0);
        loop {
            let left: Vec<usize> = (0..order.tasks.len())
                .filter(|task| !answers.by_task.contains_key(task))
                .collect();
            observer(order.tasks.len() - left.len());
            if left.is_empty() {
                return Ok(answers);
            }
            let (ended, doing) = self.process(lookups, order, &left, folder, &mut answers)?;
            deaths += 1;
            let at = doing.and_then(|at| left.get(at).copied());
            for task in left {
                let lost = at == Some(task) || at.is_none() || deaths >= DEATHS;
                if lost && !answers.by_task.contains_key(&task) {
                    let answer = Answer {
                        said: Some(ended.clone()),
                        ..Answer::default()
                    };
                    let tried = Tried {
                        answer,
                        found: None,
                    };
                    answers.add(order, task, tried, &LogSummary::default())?;
                }
            }
        }
    }

    /// Runs one process for the remaining tasks; returns how it ended, and which task it was working on.
    fn process(
        &self,
        lookups: &Lookups,
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
        let mut said = Said::of(folder);
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
                said.take(lookups, order, left, answers)?;
            } else if since.elapsed() >= self.aiter.ready_limit {
                kept.stop(Urgency::Stop, order.interrupt);
                let limit = self.aiter.ready_limit.as_secs_f64();
                break format!("it said nothing for {limit:.0} s");
            }
        };
        said.take(lookups, order, left, answers)?;
        let stderr = fs_err::read(path("stderr")).map_err(|error| Error::file(&error))?;
        let words = String::from_utf8_lossy(&stderr);
        let last = words.lines().rfind(|line| !line.trim().is_empty());
        let last = last.map_or_else(String::new, |last| {
            format!(
                "; its last words: {}",
                last.chars().take(300).collect::<String>()
            )
        });
        Ok((ended + &last, said.doing))
    }
}

/// What one process has said so far.
struct Said<'a> {
    folder: &'a Utf8Path,
    /// Bytes of its answers that were read: whole lines.
    read: usize,
    /// The task it is at, by its number in what it was asked.
    doing: Option<usize>,
}

impl<'a> Said<'a> {
    fn of(folder: &'a Utf8Path) -> Self {
        Self {
            folder,
            read: 0,
            doing: None,
        }
    }

    /// Takes the answers that have come since, each of one of `left`.
    fn take(
        &mut self,
        lookups: &Lookups,
        order: &Order<'_>,
        left: &[usize],
        answers: &mut Answers,
    ) -> Result<(), Error> {
        let output =
            |name| fs_err::read(self.folder.join(name)).map_err(|error| Error::file(&error));
        let stdout = output("stdout")?;
        let new = &stdout[self.read.min(stdout.len())..];
        let whole = memchr::memrchr(b'\n', new).map_or(0, |end| end + 1);
        self.read += whole;
        let mut done = Vec::new();
        for line in String::from_utf8_lossy(&new[..whole]).lines() {
            // What a library prints may stand before it.
            let Some((_, said)) = line.split_once(TAG) else {
                continue;
            };
            match serde_json::from_str(said) {
                Ok(Line::Doing(task)) => self.doing = Some(task),
                Ok(Line::Done(answer)) => {
                    self.doing = self.doing.filter(|task| *task != answer.task);
                    done.push(answer);
                }
                Err(_) => {}
            }
        }
        if done.is_empty() {
            return Ok(());
        }
        // What the look-up said stands before the answer that it is of.
        let mut log = LogSummary::default();
        for (name, bytes) in [
            ("stdout", stdout.as_slice()),
            ("stderr", &output("stderr")?),
        ] {
            // A read from memory cannot fail.
            let _ = scan(bytes, name, Lines::Count, &mut log);
        }
        for answer in done {
            if let Some(&at) = left.get(answer.task) {
                let found = found(lookups, &order.tasks[at], &log);
                answers.add(order, at, Tried { answer, found }, &log)?;
            }
        }
        Ok(())
    }
}
