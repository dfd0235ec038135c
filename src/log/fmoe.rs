//! What aiter's fused MoE logs once for each key in each process: hit or miss and the whole key, in one line.
//!
//! `[fused_moe] using 1stage xbf16 (kernelName1='…', kernelName2=nan) for ('gfx950', 256, 64, …) ` at e4048607;
//! `xbf16` from v0.1.13 and `gfx` from v0.1.16 on, the activation quoted or as `<ActivationType.Silu: 0>` by release
//! (`aiter/fused_moe.py`, `get_2stage_cfgs`). The look-up is cached, so lines count processes and never calls.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::cursor::{find, lossy};
use super::summary::Logger;
use crate::problem::op::fused_moe_aiter::{Problem, member};
use crate::table::fmoe::requests::{Card, untuned_cells};
use crate::table::fmoe::table::UNTUNED;

/// Most keys kept; a server has some tens.
const CALLS_MAX: usize = 40_000;

/// Longest kernel name kept.
const NAME_MAX: usize = 512;

/// Cells of a key without the architecture.
const CELLS: usize = 13;

/// A key that was looked up, as the line prints it: tokens are rounded, and under expert parallelism the expert count
/// is one lower from v0.1.16 on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LookedUp {
    /// Weights and how they are used.
    pub problem: Problem,
    /// The rounded number of tokens.
    pub token: u32,
    /// The card, without its architecture where the release does not print it.
    pub card: Card,
}

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Whether one kernel does both stages.
    pub one_stage: bool,
    /// The kernels of a row; `None` on a miss, two empty names where rows are bypassed.
    pub kernels: Option<[String; 2]>,
}

impl Found {
    /// Whether a row was found and used.
    pub fn is_hit(&self) -> bool {
        self.kernels
            .as_ref()
            .is_some_and(|names| !names.iter().all(String::is_empty))
    }
}

/// Processes that looked a key up, and what the last of them found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Processes that found a row and used it.
    pub hits: u64,
    /// Processes that found none or could not use it.
    pub misses: u64,
    /// What the last of them found.
    pub found: Found,
}

/// Lines of one log by logger: a server's logger repeats what aiter's wrote.
#[derive(Debug, Default)]
struct LineCounts {
    hits: [u64; 2],
    misses: [u64; 2],
    found: Option<Found>,
}

/// What logs report about the fused MoE.
#[derive(Debug, Default)]
pub struct FusedMoe {
    current: BTreeMap<LookedUp, LineCounts>,
    calls: BTreeMap<LookedUp, Served>,
    /// Kernels that a row names but the compiled module does not have: the module's own choice ran, whatever the line
    /// reported.
    pub not_found: BTreeSet<String>,
}

/// One row of the `shapes` document.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Listed<'a> {
    gfx: Option<&'a str>,
    cu_num: Option<u32>,
    token: u32,
    model_dim: u32,
    inter_dim: u32,
    expert: u32,
    topk: u32,
    act_type: String,
    dtype: &'a str,
    q_dtype_a: &'a str,
    q_dtype_w: &'a str,
    q_type: String,
    use_g1u1: bool,
    doweight_stage1: bool,
    hits: u64,
    misses: u64,
    stages: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_names: Option<&'a [String; 2]>,
}

impl FusedMoe {
    /// Every key and how it was served.
    pub fn calls(&self) -> impl Iterator<Item = (&LookedUp, &Served)> {
        self.calls.iter()
    }

    /// Whether no key was looked up.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty() && self.current.is_empty()
    }

    pub(super) fn add(&mut self, call: LookedUp, found: Found, logger: Logger) {
        if self.current.len() >= CALLS_MAX && !self.current.contains_key(&call) {
            return;
        }
        let counts = self.current.entry(call).or_default();
        let ends = if found.is_hit() {
            &mut counts.hits
        } else {
            &mut counts.misses
        };
        ends[logger as usize] += 1;
        counts.found = Some(found);
    }

    pub(super) fn add_not_found(&mut self, name: &[u8]) {
        let name = lossy(name, NAME_MAX);
        let name = name.split_whitespace().next().unwrap_or("");
        if !name.is_empty() && self.not_found.len() < CALLS_MAX {
            self.not_found.insert(name.to_owned());
        }
    }

    pub(super) fn append(&mut self, later: Self) {
        for (call, counts) in later.current {
            if self.current.len() >= CALLS_MAX && !self.current.contains_key(&call) {
                continue;
            }
            let known = self.current.entry(call).or_default();
            for logger in [0, 1] {
                known.hits[logger] += counts.hits[logger];
                known.misses[logger] += counts.misses[logger];
            }
            known.found = counts.found.or(known.found.take());
        }
        self.not_found.extend(later.not_found);
    }

    /// Ends a log: its lines count once each, however many loggers wrote them.
    pub(super) fn end_log(&mut self) {
        for (call, counts) in std::mem::take(&mut self.current) {
            let Some(found) = counts.found else { continue };
            let once = |counts: [u64; 2]| counts[0].max(counts[1]);
            let (hits, misses) = (once(counts.hits), once(counts.misses));
            if let Some(served) = self.calls.get_mut(&call) {
                served.hits += hits;
                served.misses += misses;
                served.found = found;
            } else if self.calls.len() < CALLS_MAX {
                self.calls.insert(
                    call,
                    Served {
                        hits,
                        misses,
                        found,
                    },
                );
            }
        }
    }

    /// The first `most` keys for a document.
    pub fn listed(&self, most: usize) -> Vec<Listed<'_>> {
        let listed = |(call, served)| {
            let LookedUp {
                problem,
                token,
                card,
            }: &LookedUp = call;
            let Served {
                hits,
                misses,
                found,
            }: &Served = served;
            Listed {
                gfx: card.gfx.as_deref(),
                cu_num: card.cu_num,
                token: *token,
                model_dim: problem.model_dim,
                inter_dim: problem.inter_dim,
                expert: problem.expert,
                topk: problem.topk,
                act_type: format!("ActivationType.{}", problem.activation),
                dtype: &problem.dtype,
                q_dtype_a: &problem.q_dtype_a,
                q_dtype_w: &problem.q_dtype_w,
                q_type: format!("QuantType.{}", problem.q_type),
                use_g1u1: problem.use_g1u1,
                doweight_stage1: problem.doweight_stage1,
                hits: *hits,
                misses: *misses,
                stages: if found.one_stage { 1 } else { 2 },
                kernel_names: found.kernels.as_ref(),
            }
        };
        self.calls.iter().take(most).map(listed).collect()
    }

    /// The keys as CSV: the card, a tuner's input, and how the look-ups ended.
    pub fn to_csv(&self) -> String {
        let mut text = format!(
            "gfx,cu_num,{},hits,misses,stages,kernelName1,kernelName2\n",
            UNTUNED.join(",")
        );
        for (call, served) in &self.calls {
            let units = call.card.cu_num.map(|units| units.to_string());
            let [first, second] = served.found.kernels.clone().unwrap_or_default();
            let _ = writeln!(
                text,
                "{},{},{},{},{},{},{first},{second}",
                call.card.gfx.as_deref().unwrap_or(""),
                units.as_deref().unwrap_or(""),
                untuned_cells(&call.problem, call.token, call.problem.topk),
                served.hits,
                served.misses,
                if served.found.one_stage { 1 } else { 2 },
            );
        }
        text
    }
}

/// What follows `[fused_moe] using `; `None` where the line is torn or reports something else.
pub(super) fn parse(text: &[u8]) -> Option<(LookedUp, Found)> {
    let start = find(text, b" for (")?;
    let (head, key) = (&text[..start], &text[start + b" for (".len()..]);
    let key = std::str::from_utf8(&key[..memchr::memchr(b')', key)?]).ok()?;
    let head = std::str::from_utf8(head).ok()?;
    let (one_stage, head) = match head.strip_prefix("1stage ") {
        Some(rest) => (true, rest),
        None => (false, head.strip_prefix("2stage ")?),
    };
    let head = head.strip_prefix("xbf16 ").unwrap_or(head);
    let kernels = match head {
        "default" => None,
        names => {
            let names = names.strip_prefix("(kernelName1=")?.strip_suffix(')')?;
            let (first, second) = names.split_once(", kernelName2=")?;
            Some([name(first), name(second)])
        }
    };
    let cells: Vec<&str> = key.split(", ").collect();
    let (gfx, cells) = match cells.len().checked_sub(CELLS)? {
        0 => (None, &cells[..]),
        1 => (Some(unquoted(cells[0])), &cells[1..]),
        _ => return None,
    };
    let number = |at: usize| cells[at].parse::<u32>().ok();
    let flag = |at: usize| match cells[at] {
        "True" | "1" => Some(true),
        "False" | "0" => Some(false),
        _ => None,
    };
    // `'ActivationType.Silu'` or `<ActivationType.Silu: 0>`.
    let activation = cells[6].trim_start_matches('<').split(':').next()?;
    let call = LookedUp {
        card: Card {
            gfx: gfx.map(str::to_owned),
            cu_num: number(0),
        },
        token: number(1)?,
        problem: Problem {
            model_dim: number(2)?,
            inter_dim: number(3)?,
            expert: number(4)?,
            topk: number(5)?,
            activation: member(unquoted(activation)).to_owned(),
            dtype: unquoted(cells[7]).to_owned(),
            q_dtype_a: unquoted(cells[8]).to_owned(),
            q_dtype_w: unquoted(cells[9]).to_owned(),
            q_type: member(unquoted(cells[10])).to_owned(),
            use_g1u1: flag(11)?,
            doweight_stage1: flag(12)?,
        },
    };
    call.card.cu_num?;
    Some((call, Found { one_stage, kernels }))
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('\'')
        .and_then(|text| text.strip_suffix('\''))
        .unwrap_or(text)
}

/// A kernel's name; pandas prints an empty cell as `nan`, and an older tuner wrote `Null`.
fn name(text: &str) -> String {
    match unquoted(text) {
        "nan" | "Null" | "None" => String::new(),
        name => name.chars().take(NAME_MAX).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = include_str!("../../testdata/lookup/aiter-fmoe-lines.log");

    #[test]
    fn every_line_that_eight_releases_printed_is_read() {
        let (mut lines, mut hits, mut by_release) = (0, 0, BTreeSet::new());
        for line in LINES.lines() {
            let (release, said) = line.split_once('\t').unwrap();
            let Some(text) = said.strip_prefix("[fused_moe] using ") else {
                continue;
            };
            let (call, found) = parse(text.as_bytes()).unwrap_or_else(|| panic!("{line}"));
            lines += 1;
            hits += usize::from(found.is_hit());
            by_release.insert(release.to_owned());
            // From v0.1.16 on the key includes the architecture.
            let (tag, gfx) = release.split_once(' ').unwrap();
            let keyed = matches!(tag, "v0.1.16" | "v0.1.18" | "HEAD");
            assert_eq!(call.card.gfx.as_deref(), keyed.then_some(gfx), "{line}");
            assert!(
                ["Silu", "Gelu", "Swiglu", "Situv2"].contains(&call.problem.activation.as_str()),
                "{line}"
            );
            assert!(
                call.problem.q_type.starts_with("per_") || call.problem.q_type == "No",
                "{line}"
            );
            assert_eq!(said.contains("1stage"), found.one_stage, "{line}");
            // Writing it out gives back what was read.
            let row = untuned_cells(&call.problem, call.token, call.problem.topk);
            let read = crate::table::fmoe::requests::read(
                format!("{}\n{row}\n", UNTUNED.join(",")).as_bytes(),
            )
            .unwrap();
            assert_eq!(read[0].request.problem, call.problem);
        }
        assert!(
            lines > 40 && hits > 10 && lines - hits > 10,
            "{lines} lines, {hits} hits"
        );
        assert_eq!(by_release.len(), 16, "{by_release:?}");
    }

    #[test]
    fn lines_of_two_loggers_and_eight_ranks_are_eight_processes() {
        let line = "[fused_moe] using 2stage default for ('gfx950', 256, 64, 7168, 256, 257, 9, <ActivationType.Silu: 0>, 'torch.bfloat16', 'torch.float8_e4m3fn', 'torch.float8_e4m3fn', 'QuantType.per_1x128', True, False) \n";
        let mut log = String::new();
        for rank in 0..8 {
            let _ = write!(log, "[aiter] {line}[2026-08-22 10:00:00 TP{rank}] {line}");
        }
        log.push_str("[aiter] ck kernel not found: moe_ck2stages_gemm1_x\n");
        let mut summary = super::super::LogSummary::default();
        super::super::scan::scan(
            log.as_bytes(),
            "log",
            super::super::scan::Lines::Count,
            &mut summary,
        )
        .unwrap();
        let calls: Vec<_> = summary.fmoe.calls().collect();
        assert_eq!(calls.len(), 1);
        assert_eq!((calls[0].1.hits, calls[0].1.misses), (0, 8));
        assert_eq!(calls[0].0.problem.activation, "Silu");
        assert_eq!(
            summary.fmoe.not_found.iter().collect::<Vec<_>>(),
            ["moe_ck2stages_gemm1_x"]
        );
        assert!(
            summary
                .fmoe
                .to_csv()
                .lines()
                .nth(1)
                .unwrap()
                .starts_with("gfx950,256,64,7168,256,257,9,ActivationType.Silu,")
        );
    }

    #[test]
    fn a_torn_line_is_no_key() {
        for text in [
            "2stage default for (256, 64, 7168",
            "2stage default for (256, 64)",
            "3stage default for (256, 64, 7168, 256, 257, 9, 'ActivationType.Silu', 'a', 'b', 'c', 'QuantType.No', True, False)",
            "2stage (kernelName1='a' for (256, 64, 7168, 256, 257, 9, 'ActivationType.Silu', 'a', 'b', 'c', 'QuantType.No', True, False)",
            "",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
