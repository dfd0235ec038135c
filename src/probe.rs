//! Tries aiter's deployed operation in a process of its own, with the server's environment.
//!
//! The program is `python/aiter_probe/probe.py`, embedded and documented in its header. It runs in a process of its
//! own because a table is read and a module loaded only once in a process, and because a kernel may end the process:
//! what it had answered by then counts, and the shape it was working on is reported.

pub mod contest;
pub mod found;
pub mod ran;
pub mod serving;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use crate::log::scan::{Lines, scan};
use crate::log::summary::LogSummary;
use crate::problem::{Op, Shape};
use crate::proc::{Interrupt, Keeper, RunError, run};

/// Source of the program that runs in the server's interpreter.
const PROGRAM: &str = include_str!("../python/aiter_probe/probe.py");

/// The prefix of each answer line.
const TAG: &str = "gemmtune-aiter-probe: ";

/// Largest accepted relative error against the float64 product of the same quantised operands: rounding to bf16 costs 0.0016
/// to 0.0018, a scale read in the wrong layout about 0.2, a weight in the wrong layout about 1.4.
pub const LIMIT: f64 = 0.005;

/// Most rows that are timed: the profiler is started for each, which takes about half a second.
pub const TIMED: usize = 64;

/// Every weight of `shapes` at M of 1, 2, 33, 128 and the largest among them. M = 1 alone is not enough: a transposed
/// scale of one row equals the scale itself.
pub fn sizes(shapes: &BTreeSet<Shape>) -> Vec<Shape> {
    let largest = shapes.iter().map(|shape| shape.m).max().unwrap_or(1);
    let mut sized = BTreeSet::new();
    for shape in shapes {
        for m in [1, 2, 33, 128, largest] {
            sized.insert(Shape { m, ..shape.clone() });
        }
    }
    sized.into_iter().collect()
}

/// What to try, and in which process.
#[derive(Debug)]
pub struct Order<'a> {
    pub python: &'a str,
    pub folder: Option<Utf8PathBuf>,
    /// The server's environment, relative to our own.
    pub env: BTreeMap<String, Option<String>>,
    pub op: Op,
    /// SGLang's function that calls a per-channel operation, where it is known.
    pub linear: Option<&'a str>,
    /// Shapes whose numbers are compared.
    pub checks: &'a [Shape],
    /// Shapes that are timed.
    pub times: &'a [Shape],
    /// Time limit for everything; the first call may compile a module.
    pub limit: Duration,
    pub keeper: &'a Keeper,
    pub interrupt: &'a Interrupt,
}

/// The numerical check of one shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    pub shape: Shape,
    /// Relative error in the Frobenius norm; absent where it could not be computed.
    pub error: Option<f64>,
    /// Why it is absent.
    pub said: Option<String>,
    /// The kernel that the look-up named, or what was logged instead.
    pub kernel: String,
}

impl Check {
    /// Whether the numbers are right.
    pub fn passes(&self) -> bool {
        self.error.is_some_and(|error| error <= LIMIT)
    }
}

/// The time of one shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Time {
    pub shape: Shape,
    /// Time of one call, µs.
    pub us: Option<f64>,
    /// `device`, or `wall` where there is no GPU.
    pub clock: String,
    /// The device's name of the kernel that ran longest; absent without a GPU.
    pub kernel: Option<String>,
    /// Why there is no time.
    pub said: Option<String>,
}

/// The answers of the process.
#[derive(Debug, Default, Serialize)]
pub struct Found {
    /// What the process imported.
    pub about: BTreeMap<String, Option<String>>,
    /// Numerical checks, in the requested order.
    pub checks: Vec<Check>,
    /// Times, in the requested order.
    pub times: Vec<Time>,
    /// Compiled modules of aiter's GEMMs that the process loaded, and their files.
    pub modules: BTreeMap<String, Utf8PathBuf>,
    /// How the process ended, if it did not answer everything.
    pub broke_off: Option<String>,
}

/// Failed to try the operation.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The probe does not know the operation's operands.
    #[error("try {0}: only aiter's FP8 operations can be tried")]
    Operation(Op),
    /// The process could not be started, or the user stopped it.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The order could not be written.
    #[error("write the probe's order")]
    Write(#[source] std::io::Error),
    /// It ended before it tried anything.
    #[error("try the deployed operation with `{python}`: {said}")]
    Nothing { python: String, said: String },
}

/// Refuses an operation whose operands the program does not support.
fn answerable(op: Op) -> Result<(), ProbeError> {
    if !op.facts().can_be_probed {
        return Err(ProbeError::Operation(op));
    }
    Ok(())
}

/// Checks the numbers of `order.checks` and times `order.times` in a fresh process. A process that breaks off gives
/// the answers it had; it is an error only where there are none.
pub fn probe(order: &Order<'_>) -> Result<Found, ProbeError> {
    answerable(order.op)?;
    let keep = tempfile::tempdir().map_err(ProbeError::Write)?;
    let path = keep.path().join("order.json");
    let problem = |shape: &Shape| (shape.m, shape.n, shape.k);
    let text = serde_json::json!({
        "op": order.op.name(),
        "linear": order.linear,
        "check": order.checks.iter().map(problem).collect::<Vec<_>>(),
        "time": order.times.iter().map(problem).collect::<Vec<_>>(),
    });
    fs_err::write(&path, text.to_string()).map_err(ProbeError::Write)?;
    let argv = [
        order.python.to_owned(),
        "-c".to_owned(),
        PROGRAM.to_owned(),
        path.to_string_lossy().into_owned(),
    ];
    let mut env = order.env.clone();
    // Look-ups must be logged in the format that is parsed here, whatever the user set.
    for (name, value) in LOOKUPS_TOLD {
        env.insert(name.to_owned(), Some(value.to_owned()));
    }
    let ran = run(
        order.keeper,
        &argv,
        order.folder.clone(),
        env,
        order.limit,
        order.interrupt,
    );
    let (stdout, stderr, ended) = match ran {
        Ok(ran) => {
            let ended = match ran.code {
                0 => None,
                code @ 129.. => Some(format!("signal {} ended the process", code - 128)),
                code => Some(format!("the process exited with code {code}")),
            };
            (ran.stdout, ran.stderr, ended)
        }
        Err(error) => return Err(error.into()),
    };
    let found = read(order, &stdout, &stderr, ended);
    if found.checks.is_empty() && found.times.is_empty() {
        return Err(ProbeError::Nothing {
            python: order.python.to_owned(),
            said: found
                .broke_off
                .unwrap_or_else(|| "it answered nothing".to_owned()),
        });
    }
    Ok(found)
}

/// Variables that make aiter log every look-up (`aiter/__init__.py`, `aiter/jit/core.py`), hits included, one line
/// each.
pub const LOOKUPS_TOLD: [(&str, &str); 3] = [
    ("AITER_LOG_TUNED_CONFIG", "1"),
    ("AITER_LOG_MORE", "0"),
    ("AITER_LOG_LEVEL", "INFO"),
];

#[derive(Debug, Deserialize)]
struct Problem {
    #[serde(rename = "M")]
    m: u32,
    #[serde(rename = "N")]
    n: u32,
    #[serde(rename = "K")]
    k: u32,
    #[serde(default)]
    error: Option<f64>,
    #[serde(default)]
    us: Option<f64>,
    #[serde(default)]
    clock: String,
    #[serde(default)]
    kernel: Option<String>,
    #[serde(default)]
    said: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Answer {
    #[serde(default)]
    about: Option<BTreeMap<String, Option<String>>>,
    #[serde(default)]
    check: Option<Problem>,
    #[serde(default)]
    time: Option<Problem>,
    #[serde(default)]
    modules: Option<BTreeMap<String, Utf8PathBuf>>,
    #[serde(default)]
    failed: Option<String>,
}

/// Parses both streams of the process.
fn read(order: &Order<'_>, stdout: &[u8], stderr: &[u8], ended: Option<String>) -> Found {
    let mut log_summary = LogSummary::default();
    // Reading from memory does not fail.
    let _ = scan(stderr, "the probe", Lines::Count, &mut log_summary);
    let mut found = Found::default();
    let mut failed = None;
    let shape = |problem: &Problem| Shape {
        op: order.op,
        m: problem.m,
        n: problem.n,
        k: problem.k,
        dtype: String::new(),
    };
    for answer in answers(stdout) {
        if let Some(about) = answer.about {
            found.about = about;
        } else if let Some(problem) = answer.check {
            let shape = shape(&problem);
            found.checks.push(Check {
                kernel: kernel(&log_summary, &shape),
                shape,
                error: problem.error,
                said: problem.said,
            });
        } else if let Some(problem) = answer.time {
            found.times.push(Time {
                shape: shape(&problem),
                us: problem.us,
                clock: problem.clock,
                kernel: problem.kernel,
                said: problem.said,
            });
        } else if let Some(modules) = answer.modules {
            found.modules = modules;
        } else if let Some(said) = answer.failed {
            failed = Some(said);
        }
    }
    // The first shape without an answer is the one the process was working on.
    let cut = found.checks.len() < order.checks.len() || found.times.len() < order.times.len();
    if !cut {
        return found;
    }
    let ended = failed
        .or(ended)
        .unwrap_or_else(|| "the process ended without an answer".to_owned());
    let why = match last_words(stderr) {
        Some(words) => format!("{ended}; its last words: {words}"),
        None => ended,
    };
    if found.about.is_empty() {
        found.broke_off = Some(why);
        return found;
    }
    if let Some(at) = order.checks.get(found.checks.len()) {
        found.checks.push(Check {
            kernel: kernel(&log_summary, at),
            shape: at.clone(),
            error: None,
            said: Some(why.clone()),
        });
    }
    found.broke_off = Some(why);
    found
}

fn answers(stdout: &[u8]) -> impl Iterator<Item = Answer> {
    memchr::memmem::find_iter(stdout, TAG.as_bytes())
        .map(|at| {
            let line = &stdout[at + TAG.len()..];
            &line[..memchr::memchr(b'\n', line).unwrap_or(line.len())]
        })
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect::<Vec<_>>()
        .into_iter()
}

fn kernel(log_summary: &LogSummary, shape: &Shape) -> String {
    let at = (shape.op, shape.m, shape.n, shape.k);
    let served = log_summary
        .served()
        .find(|(seen, _)| (seen.op, seen.m, seen.n, seen.k) == at);
    match served {
        None => "a kernel without a look-up (Triton)".to_owned(),
        Some((_, served)) => match &served.hit {
            None => "the default kernel, for want of a row".to_owned(),
            Some(hit) => hit
                .kernel_name
                .clone()
                .or_else(|| hit.libtype.clone())
                .unwrap_or_else(|| "an unnamed kernel".to_owned()),
        },
    }
}

fn last_words(stderr: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().rfind(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().take(300).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(m: &[u32]) -> Vec<Shape> {
        m.iter()
            .map(|&m| Shape {
                op: Op::Blockscale,
                m,
                n: 512,
                k: 7168,
                dtype: String::new(),
            })
            .collect()
    }

    fn found(checks: &[Shape], times: &[Shape], stdout: &str, stderr: &str) -> Found {
        let keeper = Keeper::new("/bin/true".into());
        let interrupt = Interrupt::new();
        let order = Order {
            python: "python3",
            folder: None,
            env: BTreeMap::new(),
            op: Op::Blockscale,
            linear: None,
            checks,
            times,
            limit: Duration::from_secs(1),
            keeper: &keeper,
            interrupt: &interrupt,
        };
        let ended = (!stderr.is_empty()).then(|| "signal 11 ended the process".to_owned());
        read(&order, stdout.as_bytes(), stderr.as_bytes(), ended)
    }

    #[test]
    fn answers_are_read_among_other_output_and_kernels_from_the_look_ups() {
        let asked = shapes(&[1, 33]);
        let stdout = "hello\ngemmtune-aiter-probe: {\"about\": {\"torch\": \"2.9\"}}\n\
            gemmtune-aiter-probe: {\"doing\": \"check\", \"M\": 1, \"N\": 512, \"K\": 7168}\n\
            gemmtune-aiter-probe: {\"check\": {\"M\": 1, \"N\": 512, \"K\": 7168, \"error\": 0.0017, \"said\": null}}\n\
            gemmtune-aiter-probe: {\"check\": {\"M\": 33, \"N\": 512, \"K\": 7168, \"error\": 0.2, \"said\": null}}\n\
            x gemmtune-aiter-probe: {\"time\": {\"M\": 1, \"N\": 512, \"K\": 7168, \"us\": 6.25, \"clock\": \"device\", \"said\": null}}\n";
        let stderr = "[aiter] shape is M:1, N:512, K:7168, found padded_M: 16, N:512, K:7168 is tuned on cu_num = 304 in \
            /r/a8w8_blockscale_tuned_gemm-1.csv , kernel name is k1!\n\
            [aiter] shape is M:33, N:512, K:7168, not found tuned config in /r/a8w8_blockscale_tuned_gemm-1.csv, will use default config!\n";
        let found = found(&asked, &asked[..1], stdout, stderr);
        assert_eq!(found.checks[0].kernel, "k1");
        assert!(found.checks[0].passes());
        assert!(found.checks[1].kernel.starts_with("the default kernel"));
        assert!(!found.checks[1].passes());
        assert_eq!(found.times[0].us, Some(6.25));
        assert_eq!(found.broke_off, None);
    }

    #[test]
    fn a_process_that_dies_leaves_its_answers_and_the_shape_it_was_at() {
        let asked = shapes(&[1, 2, 33]);
        let stdout = "gemmtune-aiter-probe: {\"about\": {\"torch\": \"2.9\"}}\n\
            gemmtune-aiter-probe: {\"check\": {\"M\": 1, \"N\": 512, \"K\": 7168, \"error\": 0.0017, \"said\": null}}\n";
        let found = found(&asked, &[], stdout, "Segmentation fault\n");
        assert_eq!(found.checks.len(), 2, "those after it were not tried");
        assert_eq!(found.checks[1].shape.m, 2);
        insta::assert_snapshot!(found.checks[1].said.as_ref().unwrap(), @"signal 11 ended the process; its last words: Segmentation fault");
    }

    #[test]
    fn a_process_that_cannot_import_has_found_nothing() {
        let asked = shapes(&[1]);
        let stdout = "gemmtune-aiter-probe: {\"failed\": \"ModuleNotFoundError: No module named 'torch'\"}\n";
        let found = found(&asked, &[], stdout, "Traceback\n");
        assert!(found.checks.is_empty());
        insta::assert_snapshot!(found.broke_off.unwrap(), @"ModuleNotFoundError: No module named 'torch'; its last words: Traceback");
    }
}
