//! The steps of a trace: where each forward pass begins.
//!
//! SGLang 0.5.11 and later name every forward pass (`step[DECODE bs=8]`, `step[EXTEND bs=2 toks=1024]`) if the CPU is
//! recorded too; on the device the name starts with a pass's first kernel. Before that a decode pass is recognised by
//! the launch of its graph. A step lasts until the next one begins, so that it includes sampling and idle time; the
//! last one has no end and is left out.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::trace::{Device, Span, Trace};

/// The phase of serving that a step belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// One token for each running request.
    Decode,
    Prefill,
    /// Both in one pass (SGLang's mixed chunks).
    Mixed,
    /// Unknown: the trace does not tell.
    All,
}

impl Phase {
    /// All phases, in display order.
    pub(super) const ALL: [Self; 4] = [Self::Decode, Self::Prefill, Self::Mixed, Self::All];

    /// Its name, as documents spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
            Self::Mixed => "prefill and decode mixed",
            Self::All => "decode and prefill, not distinguished",
        }
    }

    /// The phrase for one of its steps in a sentence.
    pub fn step(self) -> &'static str {
        match self {
            Self::Decode => "a decode step",
            Self::Prefill => "a prefill step",
            Self::Mixed => "a step of prefill and decode",
            Self::All => "the traced time",
        }
    }
}

/// How steps were distinguished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepSource {
    /// Spans that name forward passes.
    StepSpans,
    /// Launches of decode graphs.
    GraphLaunches,
    /// The phase is in the file's name; steps cannot be distinguished.
    FileName,
    /// Not at all: the whole trace is one.
    Nothing,
}

/// One forward pass on a device; times on the trace's clock, µs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) start: f64,
    pub(super) end: f64,
    pub(super) phase: Phase,
    pub(super) requests: Option<u32>,
    /// Prompt tokens in it.
    pub(super) tokens: Option<u32>,
}

impl Step {
    fn length(&self) -> f64 {
        self.end - self.start
    }
}

/// The steps of a device, disjoint and in order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Steps {
    pub(super) all: Vec<Step>,
    pub(super) told_by: StepSource,
    /// Decode steps that were left out, because something ran between two of them.
    pub(super) left_out: u64,
}

/// A decode step this many times longer than the median includes something else: a pause between requests, or, where
/// only graphs are visible, a prefill.
const PAUSE: f64 = 2.0;

/// Whether a span's name is that of a step.
pub(super) fn is_step(label: &str) -> bool {
    label.starts_with("step[") || label.starts_with("ProfilerStep#")
}

/// The steps of `device`; `file` is the trace's name.
pub(super) fn steps(trace: &Trace, device: &Device, file: &str) -> Steps {
    let by_file = phase_of_file(file);
    let mut starts = spans(device, by_file);
    let told_by = if starts.is_empty() {
        StepSource::GraphLaunches
    } else {
        StepSource::StepSpans
    };
    // A device's profiler may record no span for graphs. Without these a prefill would last until the next one.
    let is_named = inside(&device.spans);
    starts.extend(
        graphs(trace, device)
            .into_iter()
            .filter(|graph| !is_named(graph.start)),
    );
    starts.sort_by(|one, other| one.start.total_cmp(&other.start));
    if !starts.is_empty() {
        let (steps, left_out) = without_pauses(until_the_next(&starts));
        return Steps {
            all: steps,
            told_by,
            left_out,
        };
    }
    let start = device.kernels.first().map_or(0.0, |kernel| kernel.start);
    let ends = device.kernels.iter().map(|kernel| kernel.end);
    let whole = Step {
        start,
        end: ends.fold(start, f64::max),
        phase: by_file.unwrap_or(Phase::All),
        requests: None,
        tokens: None,
    };
    Steps {
        all: vec![whole],
        told_by: if by_file.is_some() {
            StepSource::FileName
        } else {
            StepSource::Nothing
        },
        left_out: 0,
    }
}

/// The phase that SGLang appends to the name where it records stages separately (`…-TP-0-DECODE.trace.json.gz`).
fn phase_of_file(file: &str) -> Option<Phase> {
    let stem = file.split(".trace").next().unwrap_or(file);
    let stem = stem.split(".json").next().unwrap_or(stem);
    match stem.rsplit('-').next()? {
        "DECODE" | "decode" => Some(Phase::Decode),
        "EXTEND" | "prefill" => Some(Phase::Prefill),
        _ => None,
    }
}

/// Steps by named spans, each until its span's end.
fn spans(device: &Device, by_file: Option<Phase>) -> Vec<Step> {
    let passes = one_a_pass(&device.spans);
    let (named, numbered): (Vec<&Span>, Vec<&Span>) = passes
        .iter()
        .partition(|span| span.label.starts_with("step["));
    let of = |span: &&Span| {
        let (phase, requests, tokens) = read_label(&span.label)?;
        Some(Step {
            start: span.start,
            end: span.end,
            phase: if phase == Phase::All {
                by_file.unwrap_or(Phase::All)
            } else {
                phase
            },
            requests,
            tokens,
        })
    };
    let spans = if named.is_empty() { &numbered } else { &named };
    spans.iter().filter_map(of).collect()
}

/// A span has a copy on each stream that it launched on. Copies share the number of their record; where they have
/// none, the stream with the most spans is taken for the one on which passes begin.
fn one_a_pass(spans: &[Span]) -> Vec<Span> {
    let records: BTreeSet<u64> = spans.iter().filter_map(|span| span.record).collect();
    if records.len() > 1 && spans.iter().all(|span| span.record.is_some()) {
        let mut passes: Vec<Span> = Vec::with_capacity(records.len());
        let mut place: BTreeMap<u64, usize> = BTreeMap::new();
        for span in spans {
            if let Some(&known) = span.record.and_then(|record| place.get(&record)) {
                passes[known].end = passes[known].end.max(span.end);
            } else {
                place.extend(span.record.map(|record| (record, passes.len())));
                passes.push(span.clone());
            }
        }
        return passes;
    }
    let mut streams: BTreeMap<&str, usize> = BTreeMap::new();
    for span in spans {
        *streams.entry(&span.stream).or_default() += 1;
    }
    let main = streams.into_iter().max_by_key(|(_, count)| *count);
    let on_main = |span: &&Span| main.is_some_and(|(stream, _)| stream == span.stream);
    spans.iter().filter(on_main).cloned().collect()
}

/// Whether a moment is within one of `spans`, which are sorted by start.
fn inside(spans: &[Span]) -> impl Fn(f64) -> bool {
    let mut latest = f64::NEG_INFINITY;
    let ends: Vec<(f64, f64)> = spans
        .iter()
        .map(|span| {
            latest = latest.max(span.end);
            (span.start, latest)
        })
        .collect();
    move |moment| {
        let begun = ends.partition_point(|(start, _)| *start <= moment);
        begun > 0 && ends[begun - 1].1 > moment
    }
}

/// Parses a span's name; `None` for a draft model's pass, which belongs to the step of its target, and for passes
/// without requests.
fn read_label(label: &str) -> Option<(Phase, Option<u32>, Option<u32>)> {
    let Some(inside) = label.strip_prefix("step[") else {
        return Some((Phase::All, None, None));
    };
    let mut words = inside.trim_end_matches(']').split(' ');
    let phase = match words.next()? {
        "EXTEND" | "SPLIT_PREFILL" => Phase::Prefill,
        "DECODE" | "VERIFY" | "TARGET_VERIFY" => Phase::Decode,
        "MIXED" => Phase::Mixed,
        _ => return None,
    };
    let mut numbers = words.filter_map(|word| word.split_once('='));
    let mut number = |name: &str| {
        let (_, value) = numbers.by_ref().find(|(key, _)| *key == name)?;
        value.parse().ok()
    };
    let requests = number("bs");
    Some((phase, requests, number("toks")))
}

/// Decode steps by the graphs that were launched, each from the graph's first kernel to its last.
fn graphs(trace: &Trace, device: &Device) -> Vec<Step> {
    let mut steps: Vec<(u64, Step)> = Vec::new();
    let of_graphs = device
        .kernels
        .iter()
        .filter(|kernel| trace.graphs.contains(&kernel.correlation));
    for kernel in of_graphs {
        match steps.last_mut() {
            Some((graph, step)) if *graph == kernel.correlation => {
                step.end = step.end.max(kernel.end);
            }
            _ => steps.push((
                kernel.correlation,
                Step {
                    start: kernel.start,
                    end: kernel.end,
                    phase: Phase::Decode,
                    requests: None,
                    tokens: None,
                },
            )),
        }
    }
    steps.into_iter().map(|(_, step)| step).collect()
}

/// Extends each step until the next one begins. The last one is left out, unless it is the only one.
fn until_the_next(starts: &[Step]) -> Vec<Step> {
    if let [only] = starts {
        return vec![only.clone()];
    }
    let pairs = starts.iter().zip(starts.iter().skip(1));
    pairs
        .filter(|(step, next)| next.start > step.start)
        .map(|(step, next)| Step {
            end: next.start,
            ..step.clone()
        })
        .collect()
}

fn without_pauses(mut steps: Vec<Step>) -> (Vec<Step>, u64) {
    let is_decode = |step: &Step| step.phase == Phase::Decode;
    let mut lengths: Vec<f64> = steps
        .iter()
        .filter(|step| is_decode(step))
        .map(Step::length)
        .collect();
    lengths.sort_by(f64::total_cmp);
    let Some(&median) = lengths.get(lengths.len() / 2) else {
        return (steps, 0);
    };
    let before = steps.len();
    steps.retain(|step| !is_decode(step) || step.length() <= PAUSE * median);
    let left_out = before - steps.len();
    (steps, left_out as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_step_is_read_as_every_release_writes_it() {
        for (label, expected) in [
            ("step[DECODE bs=8]", Some((Phase::Decode, Some(8), None))),
            (
                "step[EXTEND bs=2 toks=1024]",
                Some((Phase::Prefill, Some(2), Some(1024))),
            ),
            (
                "step[DECODE bs=4 g_sq4 forward_id=7]",
                Some((Phase::Decode, Some(4), None)),
            ),
            (
                "step[TARGET_VERIFY bs=3]",
                Some((Phase::Decode, Some(3), None)),
            ),
            ("step[DRAFT bs=3]", None),
            ("step[IDLE bs=0]", None),
            ("step[", None),
            (
                "step[DECODE bs=99999999999]",
                Some((Phase::Decode, None, None)),
            ),
            ("ProfilerStep#4", Some((Phase::All, None, None))),
        ] {
            assert_eq!(read_label(label), expected, "{label}");
        }
    }

    #[test]
    fn the_copies_of_a_span_are_one_pass() {
        let span = |start: f64, end: f64, stream: &str, record| Span {
            start,
            end,
            label: "step[DECODE bs=1]".to_owned(),
            stream: stream.to_owned(),
            record,
        };
        let numbered = [
            span(0.0, 4.0, "7", Some(1)),
            span(1.0, 9.0, "20", Some(1)),
            span(5.0, 6.0, "7", Some(1)),
            span(10.0, 14.0, "7", Some(2)),
        ];
        let places = |spans: &[Span]| -> Vec<(f64, f64)> {
            let passes = one_a_pass(spans);
            passes.iter().map(|span| (span.start, span.end)).collect()
        };
        assert_eq!(places(&numbered), [(0.0, 9.0), (10.0, 14.0)]);
        let without = numbered.map(|span| Span {
            record: None,
            ..span
        });
        assert_eq!(places(&without), [(0.0, 4.0), (5.0, 6.0), (10.0, 14.0)]);
        assert!(one_a_pass(&[]).is_empty());
    }

    #[test]
    fn a_file_says_its_stage_at_its_end() {
        for (file, expected) in [
            ("1762-TP-0-DECODE.trace.json.gz", Some(Phase::Decode)),
            ("1762-TP-0-EXTEND.trace.json.gz", Some(Phase::Prefill)),
            ("1762-TP-0.trace.json.gz", None),
            ("DECODE", Some(Phase::Decode)),
            ("", None),
        ] {
            assert_eq!(phase_of_file(file), expected, "{file}");
        }
    }
}
