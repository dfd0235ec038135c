//! A closed-loop load: a number of requests at a fixed concurrency, each timed individually.

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::client::{self, Answer, Completion, RequestError};
use super::prompt;

#[derive(Clone, Debug)]
pub struct Load {
    /// Base URL of the server: `http://host:port`.
    pub url: String,
    /// Model name as the server knows it.
    pub model: String,
    /// Requests in flight at once.
    pub concurrency: usize,
    pub requests: usize,
    /// Requests sent first, at the same concurrency, with prompts of their own; not measured.
    pub warmup: usize,
    /// Length of each prompt, in tokens or words.
    pub input_len: usize,
    /// Tokens generated for each.
    pub output_len: usize,
    pub seed: u64,
    /// What prompts are made of.
    pub prompt: prompt::Kind,
    /// When to give up on one request.
    pub deadline: Duration,
}

/// The load cannot be run as requested.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// No requests, or a concurrency of zero.
    #[error("run the load: {0} must be at least 1")]
    Zero(&'static str),
    /// The URL is not plain HTTP.
    #[error("run the load: `{0}` does not begin with http://")]
    Url(String),
    /// The range of token ids is empty.
    #[error("run the load: token ids from {first} to {last} are none")]
    TokenIds {
        /// Lowest token id.
        first: u32,
        /// Highest token id.
        last: u32,
    },
}

/// One measured request: when it was sent, and its answer or error.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// When it was sent, seconds after the first one.
    pub sent: f64,
    /// The answer, or why there is none.
    pub outcome: Result<Answer, RequestError>,
}

/// The measurements of a load.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// From sending the first request to the end of the last, seconds.
    pub duration: f64,
    /// Every measured request, in prompt order; fewer than requested only if stopped.
    pub requests: Vec<Request>,
    /// Warm-up requests that failed.
    pub warmup_failed: usize,
    /// Whether the caller stopped it.
    pub stopped: bool,
}

impl Outcome {
    /// Requests without an answer.
    pub fn failed(&self) -> usize {
        let failed = |request: &&Request| request.outcome.is_err();
        self.requests.iter().filter(failed).count()
    }
}

/// Progress of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// One more measured request has its first token.
    Answering,
    /// All warm-up requests have ended.
    WarmedUp {
        /// How many of them failed.
        failed: usize,
    },
    /// One more measured request ended.
    Answered {
        /// Measured requests that have ended so far.
        done: usize,
        of: usize,
        /// Those of them that failed.
        failed: usize,
    },
}

/// Warm-up prompts are items from this index on, so that none shares a prefix with a measured one.
const WARMUP_ITEMS: u64 = 1 << 40;

/// Runs the load. `progress` is called from worker threads; once `stop` returns true no request is started and those
/// in flight end at their next piece.
pub fn run(
    load: &Load,
    stop: &AtomicBool,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Outcome, LoadError> {
    check(load)?;
    let (_, warmup) = in_flight(load, load.warmup, WARMUP_ITEMS, stop, &|| {}, &|_, _| {});
    let warmup_failed = failures(&warmup);
    if load.warmup > 0 {
        progress(Progress::WarmedUp {
            failed: warmup_failed,
        });
    }
    let begun = || progress(Progress::Answering);
    let ended = |done, failed| {
        progress(Progress::Answered {
            done,
            of: load.requests,
            failed,
        });
    };
    let (duration, requests) = in_flight(load, load.requests, 0, stop, &begun, &ended);
    Ok(Outcome {
        duration,
        stopped: stop.load(Ordering::Relaxed),
        requests,
        warmup_failed,
    })
}

fn check(load: &Load) -> Result<(), LoadError> {
    for (count, name) in [
        (load.concurrency, "concurrency"),
        (load.requests, "requests"),
        (load.input_len, "input length"),
        (load.output_len, "output length"),
    ] {
        if count == 0 {
            return Err(LoadError::Zero(name));
        }
    }
    if !load.url.starts_with("http://") {
        return Err(LoadError::Url(load.url.clone()));
    }
    match load.prompt {
        prompt::Kind::TokenIds { first, last } if first > last => {
            Err(LoadError::TokenIds { first, last })
        }
        _ => Ok(()),
    }
}

fn failures(requests: &[Request]) -> usize {
    requests
        .iter()
        .filter(|request| request.outcome.is_err())
        .count()
}

/// Sends `count` requests, `load.concurrency` at once: each worker takes the next one as soon as its last one ended.
/// `begun` is called at each first piece.
fn in_flight(
    load: &Load,
    count: usize,
    first_item: u64,
    stop: &AtomicBool,
    begun: &(dyn Fn() + Sync),
    ended: &(dyn Fn(usize, usize) + Sync),
) -> (f64, Vec<Request>) {
    let next = AtomicUsize::new(0);
    let slots: Vec<Mutex<Option<Request>>> = (0..count).map(|_| Mutex::new(None)).collect();
    let (done, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let asked_to_stop = || stop.load(Ordering::Relaxed);
    let started = Instant::now();
    let worker = || {
        while !asked_to_stop() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(slot) = slots.get(index) else {
                return;
            };
            let completion = Completion {
                url: &load.url,
                model: &load.model,
                prompt: prompt::prompt(
                    load.prompt,
                    load.seed,
                    first_item + index as u64,
                    load.input_len,
                ),
                output_len: load.output_len,
                deadline: load.deadline,
            };
            let sent = started.elapsed().as_secs_f64();
            // It is called before the first piece, and again after each.
            let asked = Cell::new(0_u32);
            let after_a_piece = || {
                asked.set(asked.get().saturating_add(1));
                if asked.get() == 2 {
                    begun();
                }
                asked_to_stop()
            };
            let outcome = client::complete(&completion, &after_a_piece);
            let failed = failed.fetch_add(usize::from(outcome.is_err()), Ordering::Relaxed)
                + usize::from(outcome.is_err());
            if let Ok(mut slot) = slot.lock() {
                *slot = Some(Request { sent, outcome });
            }
            ended(done.fetch_add(1, Ordering::Relaxed) + 1, failed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..load.concurrency.min(count) {
            scope.spawn(worker);
        }
    });
    let duration = started.elapsed().as_secs_f64();
    let requests = slots
        .into_iter()
        .filter_map(|slot| slot.into_inner().ok().flatten())
        .collect();
    (duration, requests)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeServer, Fault};
    use super::*;

    fn load(url: &str) -> Load {
        Load {
            url: url.to_owned(),
            model: "fake".to_owned(),
            concurrency: 3,
            requests: 7,
            warmup: 2,
            input_len: 5,
            output_len: 4,
            seed: 1,
            prompt: prompt::Kind::default(),
            deadline: Duration::from_secs(5),
        }
    }

    fn outcome(load: &Load) -> Outcome {
        run(load, &AtomicBool::new(false), &|_| {}).unwrap()
    }

    #[test]
    fn every_request_is_timed_and_no_more_than_asked_are_in_flight() {
        let server = FakeServer::start(Fault::None);
        let seen = Mutex::new(Vec::new());
        let found = run(&load(server.url()), &AtomicBool::new(false), &|step| {
            seen.lock().unwrap().push(step);
        })
        .unwrap();
        assert_eq!(found.requests.len(), 7);
        assert_eq!(found.failed(), 0);
        for request in &found.requests {
            let answer = request.outcome.as_ref().unwrap();
            assert_eq!(answer.pieces.len(), 4);
            assert_eq!((answer.prompt_tokens, answer.tokens()), (Some(5), 4));
            assert_eq!(answer.itls.len(), 3);
            let sum = answer.ttft + answer.itls.iter().sum::<f64>();
            assert!((sum - answer.e2e).abs() < 1e-6, "{answer:?}");
            // The fake sleeps 4 ms before each piece.
            assert!(answer.ttft >= 0.004 && answer.itls.iter().all(|gap| *gap < 1.0));
            assert!(request.sent + answer.e2e <= found.duration + 1e-6);
        }
        assert_eq!(server.most_at_once(), 3);
        let seen = seen.into_inner().unwrap();
        assert_eq!(seen[0], Progress::WarmedUp { failed: 0 });
        assert_eq!(seen.len(), 15);
        let answering = |step: &&Progress| **step == Progress::Answering;
        assert_eq!(seen.iter().filter(answering).count(), 7);
        let prompts = server.prompts();
        assert_eq!(prompts.len(), 9, "two to warm up, seven measured");
        let distinct: std::collections::BTreeSet<&String> = prompts.iter().collect();
        assert_eq!(distinct.len(), 9, "no prompt is sent twice");
    }

    #[test]
    fn answers_that_fail_are_counted_and_named() {
        for (fault, expected) in [
            (Fault::Reset, "disconnected"),
            (Fault::HalfAnswer, "ended early, after 2 pieces"),
            (Fault::Status500, "HTTP 500: no memory left"),
            (Fault::ErrorEvent, "the server reported: out of pages"),
            (Fault::NoJson, "an event is no completion: <html>"),
        ] {
            let server = FakeServer::start(fault);
            let found = outcome(&load(server.url()));
            assert_eq!(found.failed(), 7, "{fault:?}");
            assert_eq!(found.warmup_failed, 2);
            let error = found.requests[0].outcome.as_ref().unwrap_err().to_string();
            assert!(
                error.to_lowercase().contains(&expected.to_lowercase()),
                "{fault:?}: {error}"
            );
        }
    }

    #[test]
    fn a_server_that_hangs_in_an_answer_meets_the_deadline() {
        let server = FakeServer::start(Fault::Hang);
        let started = Instant::now();
        let found = outcome(&Load {
            deadline: Duration::from_millis(300),
            requests: 2,
            warmup: 0,
            ..load(server.url())
        });
        assert!(started.elapsed() < Duration::from_secs(4));
        assert_eq!(found.failed(), 2);
        assert_eq!(
            found.requests[0].outcome,
            Err(RequestError::Deadline(Duration::from_millis(300)))
        );
    }

    #[test]
    fn a_stopped_load_begins_nothing_new() {
        let server = FakeServer::start(Fault::None);
        let stop = AtomicBool::new(false);
        let found = run(
            &Load {
                requests: 400,
                warmup: 0,
                ..load(server.url())
            },
            &stop,
            &|step| {
                if matches!(step, Progress::Answered { done: 5.., .. }) {
                    stop.store(true, Ordering::Relaxed);
                }
            },
        )
        .unwrap();
        assert!(found.stopped);
        assert!(
            (5..20).contains(&found.requests.len()),
            "{}",
            found.requests.len()
        );
    }

    #[test]
    fn a_server_that_is_not_there_fails_each_request() {
        let gone = {
            let server = FakeServer::start(Fault::None);
            server.url().to_owned()
        };
        let found = outcome(&load(&gone));
        assert_eq!(found.failed(), 7);
    }

    #[test]
    fn impossible_loads_are_refused() {
        let refused = |load: Load| run(&load, &AtomicBool::new(false), &|_| {}).unwrap_err();
        let good = load("http://127.0.0.1:9");
        assert_eq!(
            refused(Load {
                concurrency: 0,
                ..good.clone()
            }),
            LoadError::Zero("concurrency")
        );
        assert!(matches!(
            refused(Load {
                url: "https://x".to_owned(),
                ..good.clone()
            }),
            LoadError::Url(_)
        ));
        let prompt = prompt::Kind::TokenIds { first: 9, last: 8 };
        assert!(matches!(
            refused(Load { prompt, ..good }),
            LoadError::TokenIds { .. }
        ));
    }
}
