//! Results of compiling for the device, which determine the order of a race ([`crate::tune::compile_only`]).
//!
//! A candidate that cannot run there is left out, and those that spill registers come last, the fewest spills first:
//! rows that aiter ships spill a few. A file made from another kernel, or for another architecture, is ignored.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use super::{Backend, Field, Pace, Written};
use crate::tune::compile_only::{self, Answer, CompileError};
use crate::tune::points::Refine;
use crate::tune::protocol::{Candidate, Device};
use crate::tune::race::Rules;
use crate::tune::results::Row;
use crate::tune::rules::Effort;
use crate::tune::task::Task;

/// Settings that affect the compiled program. The order of tiles, load modifiers and parts of K are not among them:
/// they change next to nothing (`docs/evidence/compile-only`).
const DECIDING: [&str; 8] = [
    "BLOCK_SIZE_M",
    "BLOCK_SIZE_N",
    "BLOCK_SIZE_K",
    "num_warps",
    "num_stages",
    "waves_per_eu",
    "matrix_instr_nonkdim",
    "kpack",
];

/// The result for a program, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Fits,
    /// Number of registers that a thread spills.
    Spills(u64),
    CannotRun,
}

/// The contents of a result file.
#[derive(Clone, Debug)]
pub struct Compiled {
    arch: String,
    kernel_hash: String,
    found: BTreeMap<String, Found>,
}

/// The file was not written by `--compile-only`.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It has a different format.
    #[error("{0}")]
    Garbled(#[from] CompileError),
}

impl Compiled {
    /// Reads a result file.
    pub fn read(path: &Utf8Path) -> Result<Self, ReadError> {
        let (head, answers) = compile_only::read(&fs_err::read_to_string(path)?)?;
        let mut found: BTreeMap<String, Found> = BTreeMap::new();
        for answer in &answers {
            let Some(became) = became(answer) else {
                continue;
            };
            let key = key(&answer.shape, &answer.candidate);
            let worst = found.get(&key).map_or(became, |there| became.max(*there));
            found.insert(key, worst);
        }
        Ok(Self {
            arch: head.target,
            kernel_hash: head.kernel_hash,
            found,
        })
    }

    /// The result files in a folder.
    pub fn files_in(folder: &Utf8Path) -> Vec<Utf8PathBuf> {
        let files =
            compile_only::TARGETS.map(|target| folder.join(compile_only::file_name(target)));
        files.into_iter().filter(|file| file.is_file()).collect()
    }

    /// Whether it applies to the kernel on `device`.
    pub fn is_of(&self, device: &Device) -> bool {
        self.arch == device.arch && self.kernel_hash == device.kernel_hash
    }
}

/// The result for a program, if it is due to the candidate: an unsupported shape tells nothing about other shapes,
/// nor does a machine that was too busy.
fn became(answer: &Answer) -> Option<Found> {
    match (answer.refused.as_deref(), answer.spilled) {
        (Some("out_of_resources" | "compile_failed"), _) => Some(Found::CannotRun),
        (Some(_), _) => None,
        (None, Some(spilled @ 1..)) => Some(Found::Spills(spilled)),
        (None, _) => Some(Found::Fits),
    }
}

/// What distinguishes programs: the GEMM of a fused MoE, whether there is a single row (the compiler specialises on
/// that), the settings.
fn key(shape: &Value, candidate: &Candidate) -> String {
    let mut key = shape["part"].as_str().unwrap_or_default().to_owned();
    if shape["m"] == 1 {
        key.push_str(" one row");
    }
    for name in DECIDING {
        if let Some(value) = candidate.get(name).and_then(Value::as_u64) {
            // Writing into memory cannot fail.
            let _ = write!(key, " {name}={value}");
        }
    }
    key
}

/// A backend whose candidates are ordered by compile results.
#[derive(Clone, Copy)]
pub struct Known<'a, P: Task> {
    pub backend: &'a dyn Backend<P>,
    pub compiled: &'a [Compiled],
}

impl<P: Task> Known<'_, P> {
    fn found(&self, device: &Device, shape: &P, candidate: &Candidate) -> Found {
        let mut sizes = serde_json::to_value(shape).unwrap_or_default();
        let own = key(&sizes, candidate);
        // If nothing was compiled for one row, the results for more rows are the best guess.
        if let Some(m) = sizes.get_mut("m") {
            *m = Value::Null;
        }
        let any = key(&sizes, candidate);
        let files = self.compiled.iter().filter(|file| file.is_of(device));
        let found = files.filter_map(|file| file.found.get(&own).or(file.found.get(&any)).copied());
        found.max().unwrap_or(Found::Fits)
    }

    fn ordered(&self, device: &Device, shape: &P, candidates: Vec<Candidate>) -> Vec<Candidate> {
        let mut ranked: Vec<(Found, Candidate)> = candidates
            .into_iter()
            .map(|candidate| (self.found(device, shape, &candidate), candidate))
            .filter(|(found, _)| *found != Found::CannotRun)
            .collect();
        ranked.sort_by_key(|(found, _)| *found);
        ranked.into_iter().map(|(_, candidate)| candidate).collect()
    }
}

impl<P: Task> Backend<P> for Known<'_, P> {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn options(&self) -> serde_json::Value {
        self.backend.options()
    }

    fn op(&self) -> P::Op {
        self.backend.op()
    }

    fn refine(&self, effort: Effort) -> Refine {
        self.backend.refine(effort)
    }

    fn rules(&self, effort: Effort) -> Rules {
        self.backend.rules(effort)
    }

    fn pace(&self) -> Pace {
        self.backend.pace()
    }

    fn incumbent(&self, device: &Device, shape: &P) -> Option<Candidate> {
        self.backend.incumbent(device, shape)
    }

    /// The incumbent stays first whatever its result, because it has to be beaten.
    fn field(&self, device: &Device, shape: &P, neighbours: &[Candidate], effort: Effort) -> Field {
        let mut field = self.backend.field(device, shape, neighbours, effort);
        let first = usize::from(field.has_incumbent).min(field.candidates.len());
        let others = field.candidates.split_off(first);
        field.candidates.extend(self.ordered(device, shape, others));
        field
    }

    fn relatives(&self, device: &Device, shape: &P, candidate: &Candidate) -> Vec<Candidate> {
        let relatives = self.backend.relatives(device, shape, candidate);
        self.ordered(device, shape, relatives)
    }

    fn write(
        &self,
        folder: &Utf8Path,
        device: &Device,
        rows: &[Row<P>],
    ) -> std::io::Result<Written> {
        self.backend.write(folder, device, rows)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::aiter_triton::AiterTriton;
    use super::super::aiter_triton::tests::{gfx942, shape};
    use super::*;
    use crate::store::file::write_atomic;

    /// Results for the candidates of a field: the first cannot run, the second spills, the third tells nothing about
    /// others.
    fn answers(field: &[Candidate], kernel_hash: &str) -> String {
        let head = json!({"target": "gfx942", "kernel": "k.py", "kernel_hash": kernel_hash, "versions": {}, "shared_limit": 65536});
        let became = [
            json!({"refused": "out_of_resources", "detail": "", "shared": 70_000}),
            json!({"shared": 1, "registers": 256, "spilled": 9}),
            json!({"refused": "unsupported", "detail": ""}),
            json!({"shared": 1, "registers": 90, "spilled": 0}),
        ];
        let mut text = format!("{head}\n");
        for (candidate, became) in field.iter().zip(became) {
            // Settings that do not affect the program may differ.
            let mut answer = json!({"shape": {}, "candidate": candidate});
            answer["candidate"]["cache_modifier"] = json!(".cv");
            answer
                .as_object_mut()
                .unwrap()
                .extend(became.as_object().unwrap().clone());
            let _ = writeln!(text, "{answer}");
        }
        text
    }

    #[test]
    fn what_cannot_run_is_left_out_and_what_spills_comes_last() {
        let keep = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(keep.path())
            .unwrap()
            .join("compiled-gfx942.jsonl");
        let backend = AiterTriton::default();
        let device = Device {
            kernel_hash: "sha256:1".to_owned(),
            ..gfx942()
        };
        let shape = shape(16, 2112, 7168);
        let plain = backend
            .field(&device, &shape, &[], Effort::Quick)
            .candidates;
        // No two of the first are the same program.
        write_atomic(&file, answers(&distinct(&plain), "sha256:1").as_bytes()).unwrap();
        let compiled = [Compiled::read(&file).unwrap()];
        assert_eq!(
            Compiled::files_in(file.parent().unwrap()),
            std::slice::from_ref(&file)
        );
        let known = Known {
            backend: &backend,
            compiled: &compiled,
        };
        let ordered = known.field(&device, &shape, &[], Effort::Quick).candidates;
        let alike = |a: &Candidate, b: &Candidate| key(&Value::Null, a) == key(&Value::Null, b);
        let first = distinct(&plain);
        assert!(ordered.iter().all(|one| !alike(one, &first[0])));
        assert!(alike(ordered.last().unwrap(), &first[1]));
        assert!(ordered.iter().any(|one| alike(one, &first[2])));
        let left_out = plain.iter().filter(|one| alike(one, &first[0])).count();
        assert_eq!(ordered.len() + left_out, plain.len());
    }

    #[test]
    fn what_fails_for_one_row_says_nothing_of_more() {
        let candidate = json!({"BLOCK_SIZE_M": 16, "num_stages": 3});
        let [one, more] = [1, 16].map(|m| key(&json!(shape(m, 2112, 7168)), &candidate));
        assert_ne!(one, more);
        assert_eq!(more, key(&Value::Null, &candidate));
    }

    fn distinct(candidates: &[Candidate]) -> Vec<Candidate> {
        let mut found: Vec<Candidate> = Vec::new();
        for one in candidates {
            if found
                .iter()
                .all(|there| key(&Value::Null, there) != key(&Value::Null, one))
            {
                found.push(one.clone());
            }
        }
        found
    }

    #[test]
    fn another_kernels_answers_change_nothing() {
        let keep = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(keep.path()).unwrap().join("c.jsonl");
        let backend = AiterTriton::default();
        let device = gfx942();
        let shape = shape(16, 2112, 7168);
        let plain = backend.field(&device, &shape, &[], Effort::Quick);
        write_atomic(
            &file,
            answers(&distinct(&plain.candidates), "sha256:other").as_bytes(),
        )
        .unwrap();
        let compiled = [Compiled::read(&file).unwrap()];
        let known = Known {
            backend: &backend,
            compiled: &compiled,
        };
        assert_eq!(known.field(&device, &shape, &[], Effort::Quick), plain);
        assert!(!compiled[0].is_of(&device));
        write_atomic(&file, b"no answers").unwrap();
        assert!(Compiled::read(&file).is_err());
    }
}
