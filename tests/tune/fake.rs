//! A backend whose candidates say themselves how they behave, and the worker that obeys them.
//!
//! A candidate is `{"us": 12.0, "does": "…"}`; see [`behave`]. `{"at": {"64": {…}}}` says what it is at M = 64 instead. The worker is this test program, started
//! again on [`fake_worker`] by a line of shell that turns the arguments of a worker into a variable.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, Write as _};
use std::time::Duration;

use camino::Utf8Path;
use gemmtune::problem::{Op, Shape};
use gemmtune::tune::Effort;
use gemmtune::tune::backends::{Backend, Deadlines, Field, Pace, Written};
use gemmtune::tune::points::Refine;
use gemmtune::tune::protocol::{
    Answer, Candidate, Device, Numerics, Outcome, Preparation, Refusal, Reply, Request,
    RequestKind, STDOUT_MARKER, Samples, VERSION,
};
use gemmtune::tune::race::Rules;
use gemmtune::tune::results::Row;
use gemmtune::tune::rules::gpu_rules;
use gemmtune::tune::worker::WorkerCommand;

/// Races the candidates it was made with on every shape.
pub(crate) struct Fake {
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) pace: Pace,
    /// A device of this index that says it is another one than the others.
    pub(crate) odd: Option<u32>,
}

impl Fake {
    pub(crate) fn new(candidates: &[Candidate]) -> Self {
        Self {
            candidates: candidates.to_vec(),
            odd: None,
            pace: Pace {
                batch: 3,
                side_by_side: 2,
                under_way: 2,
                one_at_a_time: false,
                deadlines: Deadlines {
                    hello: Duration::from_secs(20),
                    prepare: Duration::from_secs(20),
                    floor: Duration::from_secs(2),
                    slowest_flops: 1e12,
                    check_flops: 1e12,
                },
            },
        }
    }
}

impl Backend for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn options(&self) -> serde_json::Value {
        serde_json::json!({ "odd": self.odd })
    }

    fn op(&self) -> Op {
        Op::Blockscale
    }

    fn refine(&self, _: Effort) -> Refine {
        Refine::Every
    }

    fn rules(&self, effort: Effort) -> Rules {
        gpu_rules(effort)
    }

    fn pace(&self) -> Pace {
        self.pace
    }

    fn incumbent(&self, _: &Device, _: &Shape) -> Option<Candidate> {
        self.candidates.first().cloned()
    }

    fn field(&self, device: &Device, shape: &Shape, near: &[Candidate], _: Effort) -> Field {
        let others = near.iter().chain(&self.candidates).cloned();
        Field::new(self.incumbent(device, shape), others, usize::MAX)
    }

    fn relatives(&self, _: &Device, _: &Shape, _: &Candidate) -> Vec<Candidate> {
        Vec::new()
    }

    fn write(&self, folder: &Utf8Path, _: &Device, rows: &[Row]) -> std::io::Result<Written> {
        use std::fmt::Write as _;
        let path = folder.join("table.txt");
        let mut text = String::new();
        for row in rows {
            writeln!(text, "{} {}", row.shape.m, row.candidate["us"]).unwrap();
        }
        gemmtune::store::file::write_atomic(&path, text.as_bytes())?;
        Ok(Written {
            files: vec![path],
            tables: Vec::new(),
        })
    }
}

/// How to start [`fake_worker`].
pub(crate) fn command() -> WorkerCommand {
    let program = std::env::current_exe().unwrap();
    let script = "FAKE_WORKER=\"$*\" exec \"$0\" --ignored --exact fake::fake_worker --nocapture";
    WorkerCommand {
        argv: ["sh", "-c", script, program.to_str().unwrap()]
            .map(str::to_owned)
            .into(),
        launcher: Vec::new(),
        env: BTreeMap::new(),
    }
}

#[test]
#[ignore = "the worker process of the other tests"]
#[expect(
    clippy::disallowed_methods,
    reason = "its arguments come in a variable"
)]
fn fake_worker() {
    let arguments = std::env::var("FAKE_WORKER").unwrap();
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let [.., "--device", device, "--reply-fd", reply_fd] = arguments[..] else {
        panic!("{arguments:?}")
    };
    let (path, marker) = match reply_fd {
        "stdout" => ("/proc/self/fd/1".to_owned(), STDOUT_MARKER),
        number => (format!("/proc/self/fd/{number}"), ""),
    };
    let mut replies = fs_err::OpenOptions::new().append(true).open(path).unwrap();
    // Replies must survive it.
    writeln!(
        std::io::stdout(),
        "a library prints this to standard output"
    )
    .unwrap();
    let mut lines = std::io::stdin().lock().lines();
    let mut read = || -> Option<Request> {
        let line = lines.next()?.unwrap();
        Some(serde_json::from_str(&line).unwrap())
    };
    let mut reply = |request: Request| {
        let reply = Reply {
            id: request.id,
            attempt: request.attempt,
            answer: answer(&request, device.parse().unwrap(), &mut replies),
        };
        writeln!(
            replies,
            "{marker}{}",
            serde_json::to_string(&reply).unwrap()
        )
        .unwrap();
    };
    let mut later = VecDeque::new();
    while let Some(request) = later.pop_front().or_else(&mut read) {
        if waits_for_another(&request.ask) {
            // Compiling goes on meanwhile.
            while later.is_empty() {
                match read().unwrap() {
                    prepare if matches!(prepare.ask, RequestKind::Prepare { .. }) => reply(prepare),
                    other => later.push_back(other),
                }
            }
        }
        let last = request.ask == RequestKind::Quit;
        reply(request);
        if last {
            return;
        }
    }
}

/// Whether this request is only answered once the next one is there; at most once for a candidate's mark.
fn waits_for_another(ask: &RequestKind) -> bool {
    let RequestKind::Time { candidates, .. } = ask else {
        return false;
    };
    let waits = |candidate: &Candidate| candidate["does"] == "wait for another request";
    candidates
        .iter()
        .find(|candidate| waits(candidate))
        .is_some_and(|candidate| leave_mark(candidate["mark"].as_str().unwrap()))
}

fn answer(request: &Request, index: u32, replies: &mut impl std::io::Write) -> Answer {
    match &request.ask {
        RequestKind::Hello { options } => Answer::Hello {
            device: Device {
                protocol: VERSION,
                backend: "fake".to_owned(),
                name: if options["odd"] == index {
                    "another device"
                } else {
                    "fake device"
                }
                .to_owned(),
                arch: "none".to_owned(),
                cu_num: 1,
                index,
                visible: 2,
                l2_bytes: 0,
                smem_bytes: 0,
                versions: BTreeMap::new(),
                kernel_hash: String::new(),
                capabilities: Vec::new(),
                prepare_slots: 2,
                candidates: Vec::new(),
                shipped: String::new(),
                taken_bytes: None,
            },
        },
        RequestKind::Prepare { candidate, .. } => {
            if candidate["does"] == "dies compiling" {
                std::process::abort();
            }
            Answer::Prepared {
                outcome: Outcome::Done {
                    result: Preparation {
                        seconds: 0.0,
                        cached: true,
                    },
                },
            }
        }
        RequestKind::Time {
            candidates,
            timing,
            shape,
        } => Answer::Timed {
            outcomes: candidates
                .iter()
                .map(|candidate| at(candidate, shape))
                .map(|candidate| {
                    if candidate["does"] == "fault in company" && candidates.len() > 1 {
                        std::process::abort();
                    }
                    behave(candidate, request, timing.samples, replies)
                })
                .collect(),
            busy_s: 0.001,
            clocks_mhz: Vec::new(),
            throttle_reasons: None,
        },
        RequestKind::Check { candidates, shape } => Answer::Checked {
            outcomes: candidates
                .iter()
                .map(|candidate| at(candidate, shape))
                .map(|candidate| Outcome::Done {
                    result: Numerics {
                        err_ratio: 0.0,
                        not_finite: u64::from(candidate["does"] == "nan"),
                        repeatable: true,
                    },
                })
                .collect(),
            busy_s: 0.001,
        },
        RequestKind::Quit => Answer::Bye,
    }
}

/// What a candidate is at the M of a shape.
fn at<'a>(candidate: &'a Candidate, shape: &Shape) -> &'a Candidate {
    candidate["at"]
        .get(shape.m.to_string())
        .unwrap_or(candidate)
}

/// Whether the file `path` was not there yet.
fn leave_mark(path: &str) -> bool {
    fs_err::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .is_ok()
}

/// Does what the candidate says while it is timed.
fn behave(
    candidate: &Candidate,
    request: &Request,
    samples: u32,
    replies: &mut impl std::io::Write,
) -> Outcome<Samples> {
    let us = candidate["us"].as_f64().unwrap();
    match candidate["does"].as_str().unwrap_or("run") {
        "fault" => std::process::abort(),
        "fault once" if leave_mark(candidate["mark"].as_str().unwrap()) => std::process::abort(),
        "hang" => loop {
            std::thread::sleep(Duration::from_secs(60));
        },
        "garbage" => writeln!(replies, "{{'not': 'json'}}").unwrap(),
        "slow" => std::thread::sleep(Duration::from_millis(150)),
        "refuse" => {
            return Outcome::Refused {
                reason: Refusal::OutOfResources,
                detail: "shared memory 300000 > 232448".to_owned(),
            };
        }
        _ => {}
    }
    // A fixed ripple of a tenth of a percent: equal candidates are equal, others are told apart.
    let ripple = |sample: u32| 1.0 + 1e-3 * f64::from((request.id as u32 + sample) % 3);
    Outcome::Done {
        result: Samples {
            us: (0..samples).map(|sample| us * ripple(sample)).collect(),
        },
    }
}
