//! How long SGLang's own linear takes for a GEMM, on the path that serves it today and on the tuned one.
//!
//! The program is the same as the probe's, in a process of its own. Its answers are lines of a file, each on disk
//! before the next GEMM begins, so a killed process resumes where it was. A GEMM that ends or hangs the process is
//! recorded and not tried again, and a fresh process continues with the rest.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::{LOOKUPS_TOLD, PROGRAM, ProbeError, answerable, last_words};
use crate::problem::{Op, Shape};
use crate::proc::interrupt::Urgency;
use crate::proc::{Interrupt, Keeper, RunError, Spawn, WaitOutcome};

/// How many processes may end without an answer before the remaining GEMMs count as not timed: then the cause is not
/// an individual GEMM.
const DEATHS: usize = 3;

/// The key of today's path in the answers.
pub const TODAY: &str = "today";

/// The key of the tuned path in the answers.
pub const TUNED: &str = "tuned";

/// Which paths are timed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ways {
    /// Today's path.
    Today,
    /// The tuned path, which the environment selects.
    Tuned,
    /// Both alternately: the process takes the tuned path while this switch is on.
    InTurn { switch: Utf8PathBuf },
}

impl Ways {
    fn names(&self) -> &'static [&'static str] {
        match self {
            Self::Today => &[TODAY],
            Self::Tuned => &[TUNED],
            Self::InTurn { .. } => &[TODAY, TUNED],
        }
    }
}

/// The shapes to time, and the process to time them in.
#[derive(Debug)]
pub struct Order<'a> {
    pub python: &'a str,
    pub folder: Option<Utf8PathBuf>,
    /// The server's environment, relative to our own.
    pub env: BTreeMap<String, Option<String>>,
    pub op: Op,
    /// SGLang's function that calls it, where there are several.
    pub linear: Option<&'a str>,
    pub shapes: &'a [Shape],
    /// The paths to time.
    pub ways: Ways,
    /// Where answers are written; existing ones with the same `identity` are reused.
    pub answers: &'a Utf8Path,
    /// What the answers depend on: everything that determines which kernels run.
    pub identity: &'a str,
    /// Longest time without an answer; a first call may compile a module.
    pub silence: Duration,
    pub keeper: &'a Keeper,
    /// Ends it early; existing answers are kept.
    pub interrupt: &'a Interrupt,
}

/// The times of one GEMM through SGLang's linear: quantiser, kernel and overhead, with weights read from memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Served {
    #[serde(rename = "M")]
    pub m: u32,
    /// Output features.
    #[serde(rename = "N")]
    pub n: u32,
    /// Input features.
    #[serde(rename = "K")]
    pub k: u32,
    /// Device time of a call by path, µs, one entry for each round.
    #[serde(default)]
    pub us: BTreeMap<String, Vec<f64>>,
    /// The kernel that took most of it by path, by the profiler's name.
    #[serde(default)]
    pub kernels: BTreeMap<String, String>,
    /// `device`, or `wall` where there is no GPU.
    #[serde(default)]
    pub clock: String,
    /// Why there are no times.
    #[serde(default)]
    pub said: Option<String>,
}

impl Served {
    fn problem(&self) -> Problem {
        (self.m, self.n, self.k)
    }
}

type Problem = (u32, u32, u32);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The file's first line.
    Of(String),
    Doing {
        #[serde(rename = "M")]
        m: u32,
        #[serde(rename = "N")]
        n: u32,
        #[serde(rename = "K")]
        k: u32,
    },
    Served(Served),
    About(BTreeMap<String, Option<String>>),
}

/// The contents of an answer file.
#[derive(Debug, Default)]
struct Answers {
    of: Option<String>,
    served: BTreeMap<Problem, Served>,
    /// Started but not answered.
    doing: Option<Problem>,
}

impl Answers {
    /// Lines that do not parse were cut by a kill: those answers are requested again.
    fn read(path: &Utf8Path) -> std::io::Result<Self> {
        let bytes = match fs_err::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut answers = Self::default();
        for line in bytes.split(|&byte| byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(Line::Of(identity)) => answers.of = Some(identity),
                Ok(Line::Doing { m, n, k }) => answers.doing = Some((m, n, k)),
                Ok(Line::Served(served)) => {
                    if answers.doing == Some(served.problem()) {
                        answers.doing = None;
                    }
                    answers.served.insert(served.problem(), served);
                }
                Ok(Line::About(_)) | Err(_) => {}
            }
        }
        Ok(answers)
    }
}

/// Times every shape of the order, and calls `observer` with the number done. The answers are in the order of the
/// shapes.
pub fn serving(
    order: &Order<'_>,
    observer: &mut dyn FnMut(usize),
) -> Result<Vec<Served>, ProbeError> {
    answerable(order.op)?;
    begin(order)?;
    let mut deaths = 0;
    loop {
        let answers = Answers::read(order.answers).map_err(ProbeError::Write)?;
        let left: Vec<&Shape> = order
            .shapes
            .iter()
            .filter(|shape| !answers.served.contains_key(&(shape.m, shape.n, shape.k)))
            .collect();
        observer(order.shapes.len() - left.len());
        if left.is_empty() {
            let each = order.shapes.iter();
            return Ok(each
                .filter_map(|shape| answers.served.get(&(shape.m, shape.n, shape.k)).cloned())
                .collect());
        }
        let ended = process(order, &left, observer)?;
        let answers = Answers::read(order.answers).map_err(ProbeError::Write)?;
        let Some(at) = answers.doing else {
            let any = left
                .iter()
                .any(|shape| answers.served.contains_key(&(shape.m, shape.n, shape.k)));
            if any {
                continue;
            }
            return Err(ProbeError::Nothing {
                python: order.python.to_owned(),
                said: ended,
            });
        };
        deaths += 1;
        let lost: Vec<Problem> = if deaths < DEATHS {
            vec![at]
        } else {
            let each = left.iter().map(|shape| (shape.m, shape.n, shape.k));
            each.filter(|problem| !answers.served.contains_key(problem))
                .collect()
        };
        for (m, n, k) in lost {
            let served = Served {
                m,
                n,
                k,
                us: BTreeMap::new(),
                kernels: BTreeMap::new(),
                clock: String::new(),
                said: Some(ended.clone()),
            };
            append(order.answers, &Line::Served(served))?;
        }
    }
}

/// Ensures that the file's contents have the order's identity, and that a line can be appended.
fn begin(order: &Order<'_>) -> Result<(), ProbeError> {
    let there = Answers::read(order.answers).map_err(ProbeError::Write)?;
    if there.of.as_deref() == Some(order.identity) {
        // After a line that a kill cut short.
        return write(order.answers, b"\n");
    }
    let mut text =
        serde_json::to_vec(&Line::Of(order.identity.to_owned())).expect("a string as JSON");
    text.push(b'\n');
    crate::store::file::write_atomic(order.answers, &text).map_err(ProbeError::Write)
}

fn append(path: &Utf8Path, line: &Line) -> Result<(), ProbeError> {
    let mut text = serde_json::to_vec(line).expect("plain data with string keys");
    text.push(b'\n');
    write(path, &text)
}

fn write(path: &Utf8Path, bytes: &[u8]) -> Result<(), ProbeError> {
    use std::io::Write as _;
    let file = fs_err::OpenOptions::new().append(true).open(path);
    file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(ProbeError::Write)
}

/// Runs one process for what is left; returns how it ended.
fn process(
    order: &Order<'_>,
    left: &[&Shape],
    observer: &mut dyn FnMut(usize),
) -> Result<String, ProbeError> {
    let keep = tempfile::tempdir().map_err(ProbeError::Write)?;
    let folder = Utf8Path::from_path(keep.path())
        .ok_or_else(|| ProbeError::Write(std::io::Error::other("the temporary folder's name")))?;
    let asked = folder.join("order.json");
    let text = serde_json::json!({
        "op": order.op.name(),
        "linear": order.linear,
        "serve": left.iter().map(|shape| (shape.m, shape.n, shape.k)).collect::<Vec<_>>(),
        "ways": order.ways.names(),
        "switch": match &order.ways {
            Ways::InTurn { switch } => Some(switch),
            Ways::Today | Ways::Tuned => None,
        },
        "answers": order.answers,
    });
    fs_err::write(&asked, text.to_string()).map_err(ProbeError::Write)?;
    let mut env = order.env.clone();
    for (name, value) in LOOKUPS_TOLD {
        env.insert(name.to_owned(), Some(value.to_owned()));
    }
    let argv = [order.python, "-c", PROGRAM, asked.as_str()];
    let spawn = Spawn {
        argv: argv.map(str::to_owned).to_vec(),
        folder: order.folder.clone(),
        env,
        stdout: folder.join("stdout"),
        stderr: folder.join("stderr"),
        grace: Duration::from_secs(2),
        linger: false,
    };
    let mut kept = spawn.start(order.keeper).map_err(RunError::Spawn)?;
    let done_before = order.shapes.len() - left.len();
    let size = || fs_err::metadata(order.answers).map_or(0, |data| data.len());
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
                return Err(RunError::Interrupted(order.python.to_owned()).into());
            }
            WaitOutcome::DeadlinePassed => {}
        }
        if size() != seen {
            (seen, since) = (size(), Instant::now());
            if let Ok(answers) = Answers::read(order.answers) {
                let answered = left
                    .iter()
                    .filter(|shape| answers.served.contains_key(&(shape.m, shape.n, shape.k)));
                observer(done_before + answered.count());
            }
        } else if since.elapsed() >= order.silence {
            kept.stop(Urgency::Stop, order.interrupt);
            break format!("no answer within {:.0} s", order.silence.as_secs_f64());
        }
    };
    let words = fs_err::read(folder.join("stderr")).ok();
    Ok(match words.as_deref().and_then(last_words) {
        Some(words) => format!("{ended}; its last words: {words}"),
        None => ended,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(m: u32, us: f64) -> String {
        format!(
            "{{\"served\": {{\"M\": {m}, \"N\": 512, \"K\": 7168, \"us\": {{\"today\": [{us}]}}, \"clock\": \"device\", \"said\": null}}}}\n"
        )
    }

    fn file(text: &str) -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(folder.path().join("answers.jsonl")).unwrap();
        fs_err::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn a_line_that_a_kill_cut_short_is_asked_again_and_the_others_stand() {
        let doing = "{\"doing\": {\"M\": 2, \"N\": 512, \"K\": 7168}}\n";
        let cut = served(2, 9.0);
        let text = format!("{{\"of\": \"x\"}}\n{}{doing}{}", served(1, 8.0), &cut[..30]);
        let (_keep, path) = file(&text);
        let answers = Answers::read(&path).unwrap();
        assert_eq!(answers.of.as_deref(), Some("x"));
        assert_eq!(answers.doing, Some((2, 512, 7168)));
        assert_eq!(answers.served.len(), 1);
        // What is written after it is a line of its own.
        write(&path, b"\n").unwrap();
        write(&path, served(2, 7.0).as_bytes()).unwrap();
        let answers = Answers::read(&path).unwrap();
        assert_eq!(answers.doing, None);
        assert_eq!(answers.served[&(2, 512, 7168)].us["today"], [7.0]);
    }
}
