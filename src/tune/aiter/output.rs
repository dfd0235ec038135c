//! What the tuner prints, line by line, in every revision's wording.
//!
//! Pure parsing. Sources: `aiter/utility/mp_tuner.py`, `base_tuner.py`, `aiter/jit/core.py` at v0.1.7, v0.1.9,
//! 303a583c89 and e4048607a5. Its two streams are read separately, so nothing here relies on the relative order of
//! lines in different streams.

use std::collections::{BTreeMap, BTreeSet};

use super::flags::without_escapes;
use crate::table::kernels::Library;

/// M, N and K.
pub(super) type Size = (u32, u32, u32);

/// A line with a meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TunerLine {
    /// The tasks of a batch were submitted.
    Waiting { tasks: usize },
    /// A task is done (only with `-v`).
    TaskDone { done: usize, of: usize },
    /// A batch is written.
    BatchDone { done: usize },
    /// A batch had no task, or none with a result.
    BatchEmpty,
    /// All rows existed already.
    NothingToDo,
    /// No candidate served a shape.
    NoKernel(Size),
    /// A candidate does not support a shape, or its library could not be used at all.
    Warned {
        size: Option<Size>,
        /// The candidate's library, if its tuner distinguishes them.
        library: Option<String>,
        text: String,
    },
    /// The tuner gave up a task at its own limit.
    TimedOut { text: String },
    /// The GPU faulted during a task, or the task's worker is unknown or gone.
    Faulted { text: String },
    /// The pool was restarted.
    Restarted,
    /// A module is being compiled.
    BuildStarted(String),
    /// Compiling ended, with or without success.
    BuildEnded(String),
    /// The module could not be compiled.
    BuildFailed(String),
    /// Another process is compiling the module, or died doing so.
    WaitsForLock(String),
    /// A module was loaded.
    Imported(String),
    /// The tuner's loop raised an error.
    BatchError(String),
    /// The tuner's loop ended.
    Ended { well: bool },
}

/// Parses a line; `None` if it has no meaning here.
pub(super) fn read(line: &str) -> Option<TunerLine> {
    let plain = without_escapes(line);
    let text = plain.trim();
    let text = text.strip_prefix("[aiter] ").unwrap_or(text);
    // From v0.1.18 on some lines begin with `[pid=… pname=…] `.
    let text = match text.strip_prefix("[pid=") {
        Some(rest) => rest.split_once("] ").map_or(text, |(_, after)| after),
        None => text,
    };
    let number = |text: &str| -> Option<usize> {
        let end = text
            .find(|other: char| !other.is_ascii_digit())
            .unwrap_or(text.len());
        text[..end].parse().ok()
    };
    let bracketed = |rest: &str| rest.split(']').next().unwrap_or(rest).to_owned();
    if let Some(rest) = text.strip_prefix("Waiting for ") {
        return Some(TunerLine::Waiting {
            tasks: number(rest)?,
        });
    }
    if text.starts_with("[Done] Task ") {
        let (_, counts) = text.rsplit_once('(')?;
        let (done, of) = counts.split_once('/')?;
        return Some(TunerLine::TaskDone {
            done: number(done)?,
            of: number(of)?,
        });
    }
    if let Some(rest) = text.strip_prefix("processed ") {
        return Some(TunerLine::BatchDone {
            done: number(rest)?,
        });
    }
    if text.starts_with("tune result is none or all shape is tuned") {
        return Some(TunerLine::BatchEmpty);
    }
    if text.starts_with("no shapes to be tuned") {
        return Some(TunerLine::NothingToDo);
    }
    if let Some(rest) = text.strip_prefix("No kernel can be used for ") {
        return size(rest).map(TunerLine::NoKernel);
    }
    // Without `error:` for the fused MoE, whose sizes are tokens, model_dim and inter_dim.
    let unprefixed = text.strip_prefix("error: ").unwrap_or(text);
    if let Some(rest) = unprefixed.strip_prefix("no valid candidate found for ") {
        return size(rest).map(TunerLine::NoKernel);
    }
    if let Some(rest) = text.strip_prefix("run gpu func warning: info:(") {
        let (info, text) = rest.split_once('\t').unwrap_or((rest, rest));
        return Some(warned(info, text));
    }
    // `Unexpected Error in process:13627 info:((…), 0, 1, 'name', 'asm', True): Could not find hipcc in PATH …`
    if let Some(at) = FAILED.iter().find(|mark| text.starts_with(**mark)) {
        let (_, rest) = text[at.len()..].split_once(" info:(")?;
        let (info, text) = rest.split_once("): ").unwrap_or((rest, rest));
        // The comparison of results repeats the candidate: `info:((…), 16) res[0] catastrophic error: …`.
        let again = text.strip_prefix("info:(");
        let said = again.and_then(|text| text.split_once("] "));
        return Some(warned(info, said.map_or(text, |(_, said)| said)));
    }
    if text.starts_with("[!] Task ") && text.contains(" timed out after ") {
        return Some(TunerLine::TimedOut {
            text: text["[!] ".len()..].to_owned(),
        });
    }
    if ["[GPU Fault]", "[Mapping Error]", "[Failed] Task"]
        .iter()
        .any(|mark| text.starts_with(mark))
    {
        return Some(TunerLine::Faulted {
            text: text.to_owned(),
        });
    }
    if text.starts_with("Pool restarted.") {
        return Some(TunerLine::Restarted);
    }
    if let Some(rest) = text.strip_prefix("start build [") {
        return Some(TunerLine::BuildStarted(bracketed(rest)));
    }
    if let Some(rest) = text.strip_prefix("finish build [") {
        return Some(TunerLine::BuildEnded(bracketed(rest)));
    }
    if let Some(rest) = text.strip_prefix("failed jit build [") {
        return Some(TunerLine::BuildFailed(bracketed(rest)));
    }
    if let Some(rest) = text.strip_prefix("waiting for baton release at ") {
        return Some(TunerLine::WaitsForLock(rest.to_owned()));
    }
    if let Some(rest) = text.strip_prefix("import [") {
        return Some(TunerLine::Imported(bracketed(rest)));
    }
    if text.starts_with("error in batch ") {
        let said = text.split_once(": ").map_or(text, |(_, said)| said);
        return Some(TunerLine::BatchError(said.to_owned()));
    }
    if let Some(rest) = text.strip_prefix("Tuning ")
        && rest.contains(" total tuning time is ")
    {
        return Some(TunerLine::Ended {
            well: rest.starts_with("Finished"),
        });
    }
    None
}

/// A worker's messages about a candidate that raised (`mp_tuner.py`, `worker`).
const FAILED: [&str; 5] = [
    "Unexpected Error in process:",
    "Runtime Error in process:",
    "GPU Runtime Error in process:",
    "Timeout in process:",
    "Error in process:",
];

/// The message `text` about the candidate that `info` describes: key, kernel, split, kernel's name, library, and
/// more.
fn warned(info: &str, text: &str) -> TunerLine {
    let library = Library::ALL
        .into_iter()
        .find(|library| info.contains(&format!(", '{}'", library.name())));
    TunerLine::Warned {
        size: size(info),
        library: library.map(|library| library.name().to_owned()),
        text: text.trim().to_owned(),
    }
}

/// M, N, K of a key as Python prints it: `(304, 16, 1536, 7168)`, `('gfx942', 304, np.int64(16), …)`.
fn size(text: &str) -> Option<Size> {
    let inside = text.trim_start_matches('(');
    let mut numbers = inside.split(',').filter_map(|item| {
        let item = item.trim();
        let item = item
            .strip_prefix("np.int64(")
            .map_or(item, |rest| rest.trim_end_matches(')'));
        item.trim_end_matches(')').parse::<u32>().ok()
    });
    let _cu_num = numbers.next()?;
    Some((numbers.next()?, numbers.next()?, numbers.next()?))
}

/// The state of a tuner run, according to its output so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TunerStatus {
    /// Batches begun, if the tuner reports them.
    pub(super) begun: usize,
    /// Batches finished, written or empty.
    pub(super) passed: usize,
    /// Tasks of the current batch: done, total.
    pub(super) tasks: Option<(usize, usize)>,
    /// Sizes that no candidate served.
    pub(super) no_kernel: BTreeSet<Size>,
    /// The last refusal of a candidate, by size.
    pub(super) warnings: BTreeMap<Size, String>,
    pub(super) timed_out: usize,
    pub(super) faults: Vec<String>,
    /// Restarts of the pool.
    pub(super) restarts: usize,
    /// Modules being compiled.
    pub(super) building: BTreeSet<String>,
    /// Modules that could not be compiled.
    pub(super) broken_modules: BTreeSet<String>,
    /// A lock that it is waiting for.
    pub(super) lock: Option<String>,
    /// The error that ended the loop.
    pub(super) error: Option<String>,
    /// Whether the loop ran to its end.
    pub(super) ended_well: bool,
    /// Whether the loop ended, successfully or not, so that its files are complete.
    pub(super) ended: bool,
}

impl TunerStatus {
    /// Processes a line; returns its meaning, if it has one.
    pub(super) fn line(&mut self, line: &str) -> Option<TunerLine> {
        let said = read(line)?;
        match &said {
            TunerLine::Waiting { tasks } => {
                self.begun += 1;
                self.tasks = Some((0, *tasks));
            }
            TunerLine::TaskDone { done, of } => {
                // A restarted pool counts the remaining tasks from zero; the batch's total is kept.
                let of = self.tasks.map_or(*of, |(_, all)| all.max(*of));
                self.tasks = Some((*done, of));
                self.lock = None;
            }
            TunerLine::BatchDone { .. } | TunerLine::BatchEmpty => {
                self.passed += 1;
                self.tasks = None;
            }
            TunerLine::NothingToDo => self.ended_well = true,
            TunerLine::NoKernel(size) => {
                self.no_kernel.insert(*size);
            }
            TunerLine::Warned { size, text, .. } => {
                // The first one, because what follows from it (`'NoneType' object is not subscriptable`) is less
                // informative.
                if let Some(size) = size {
                    self.warnings.entry(*size).or_insert_with(|| text.clone());
                }
            }
            TunerLine::TimedOut { .. } => self.timed_out += 1,
            TunerLine::Faulted { text } => self.faults.push(text.clone()),
            TunerLine::Restarted => {
                self.restarts += 1;
                // The workers that were compiling are gone.
                self.building.clear();
                self.lock = None;
            }
            TunerLine::BuildStarted(module) => {
                self.building.insert(module.clone());
            }
            TunerLine::BuildEnded(module) => {
                self.building.remove(module);
            }
            TunerLine::BuildFailed(module) => {
                self.building.remove(module);
                self.broken_modules.insert(module.clone());
            }
            TunerLine::WaitsForLock(lock) => self.lock = Some(lock.clone()),
            TunerLine::Imported(_) => self.lock = None,
            TunerLine::BatchError(text) => self.error = Some(text.clone()),
            TunerLine::Ended { well } => (self.ended_well, self.ended) = (*well, true),
        }
        Some(said)
    }

    /// Whether the tuner got as far as its shapes.
    pub(super) fn got_going(&self) -> bool {
        self.begun + self.passed > 0 || self.ended_well
    }

    /// Why `size` has no row, if the tuner reported it.
    pub(super) fn reason(&self, size: Size) -> Option<String> {
        let warning = self
            .warnings
            .get(&size)
            .map_or_else(String::new, |text| format!(" (first said: {text})"));
        if let Some(module) = self.broken_modules.iter().next() {
            Some(format!("`{module}` could not be compiled"))
        } else if self.no_kernel.contains(&size) {
            let lost = match self.timed_out {
                0 => String::new(),
                count => format!(", {count} tasks timed out"),
            };
            Some(format!(
                "no candidate gave right numbers in time{warning}{lost}"
            ))
        } else {
            self.error
                .as_ref()
                .map(|error| format!("the tuner failed: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_revision_are_understood() {
        let cases = [
            (
                "Waiting for 38 tasks to complete (timeout=15s each)...",
                TunerLine::Waiting { tasks: 38 },
            ),
            (
                "[Done] Task 17/269 completed in 4.2s (18/270 done)",
                TunerLine::TaskDone { done: 18, of: 270 },
            ),
            (
                "[aiter] processed 1 batches of 3, Processing Status ====> 33.0% tuned in GemmA8W8BlockScaleTuner",
                TunerLine::BatchDone { done: 1 },
            ),
            (
                "[aiter] No kernel can be used for ('gfx942', 304, np.int64(32), np.int64(256), np.int64(512))",
                TunerLine::NoKernel((32, 256, 512)),
            ),
            (
                "[aiter] error: no valid candidate found for (304, 32, 1536, 7168), please check the result",
                TunerLine::NoKernel((32, 1536, 7168)),
            ),
            (
                "no valid candidate found for (304, 64, 7168, 256, 257, 9, <ActivationType.Silu: 0>, torch.bfloat16, torch.float8_e4m3fnuz, torch.float8_e4m3fnuz, <QuantType.per_1x128: 4>, 1, 0), please check the time or errRatio in all result file running with --profile_file",
                TunerLine::NoKernel((64, 7168, 256)),
            ),
            (
                "run gpu func warning: info:((304, np.int64(32), np.int64(256), np.int64(512)), 0, 0, '', 'cktile', False)\t This GEMM is not supported!",
                TunerLine::Warned {
                    size: Some((32, 256, 512)),
                    library: Some("cktile".to_owned()),
                    text: "This GEMM is not supported!".to_owned(),
                },
            ),
            (
                "Unexpected Error in process:13626 info:(('gfx942', 304, np.int64(16), np.int64(256), np.int64(512)), 0, 1, '_ZN5aiter42fp8gemm_bf16_blockscale_BpreShuffle_32x128E', 'asm', True): No module named 'module_x'",
                TunerLine::Warned {
                    size: Some((16, 256, 512)),
                    library: Some("asm".to_owned()),
                    text: "No module named 'module_x'".to_owned(),
                },
            ),
            (
                "Unexpected Error in process:4743 info:(('gfx942', 304, 8, 256, 128, 4, 2, <ActivationType.Silu: 0>, 1, 0), 'stage1', 'fmoe_stage1_16x128', 16): info:(('gfx942', 304, 8, 256, 128, 4, 2, <ActivationType.Silu: 0>, 1, 0), 'stage1', 'fmoe_stage1_16x128', 16) res[0] catastrophic error: max abs delta 222.0000, 2.6% (61 of 2304) elements mismatch",
                TunerLine::Warned {
                    size: Some((8, 256, 128)),
                    library: None,
                    text: "catastrophic error: max abs delta 222.0000, 2.6% (61 of 2304) elements mismatch".to_owned(),
                },
            ),
            (
                "Runtime Error in process:7 info:((304, 1, 512, 256, 'torch.int8'), 3, 0, '', 'ck'): broken",
                TunerLine::Warned {
                    size: Some((1, 512, 256)),
                    library: Some("ck".to_owned()),
                    text: "broken".to_owned(),
                },
            ),
            (
                "[!] Task 3 timed out after 15.0s (limit: 15s) - likely GPU hang or infinite loop",
                TunerLine::TimedOut {
                    text: "Task 3 timed out after 15.0s (limit: 15s) - likely GPU hang or infinite loop"
                        .to_owned(),
                },
            ),
            (
                "\u{1b}[1;31m[GPU Fault]\u{1b}[0m Task 4 failed with AcceleratorError: HIP error",
                TunerLine::Faulted {
                    text: "[GPU Fault] Task 4 failed with AcceleratorError: HIP error".to_owned(),
                },
            ),
            (
                "Pool restarted. Continuing with 33 remaining tasks...",
                TunerLine::Restarted,
            ),
            (
                "[aiter] [pid=12 pname=MainProcess] start build [module_x_tune] under /a/b",
                TunerLine::BuildStarted("module_x_tune".to_owned()),
            ),
            (
                "[aiter] \u{1b}[32mfinish build [module_x_tune], cost 123.4s \u{1b}[0m",
                TunerLine::BuildEnded("module_x_tune".to_owned()),
            ),
            (
                "[aiter] waiting for baton release at /a/lock",
                TunerLine::WaitsForLock("/a/lock".to_owned()),
            ),
            (
                "[aiter] error in batch 2 of 4 after 1 completed batches: no space left",
                TunerLine::BatchError("no space left".to_owned()),
            ),
            (
                "[aiter] Tuning Interrupted. tune 0 shapes, total tuning time is 56.5677 seconds",
                TunerLine::Ended { well: false },
            ),
        ];
        for (line, said) in cases {
            assert_eq!(read(line), Some(said), "{line}");
        }
        for line in [
            "",
            "   M    N",
            "choose 0 kernels",
            "[aiter] Failed shapes:",
            "Waiting for it",
        ] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn a_build_ends_with_the_pool_that_ran_it() {
        let mut status = TunerStatus::default();
        for line in [
            "Waiting for 8 tasks to complete (no timeout limit)...",
            "[aiter] start build [module_a] under /x",
            "Pool restarted. Continuing with 7 remaining tasks...",
        ] {
            status.line(line);
        }
        assert!(status.building.is_empty());
        assert!(status.got_going());
    }
}
