//! Whole traces: those under testdata/profile, with sums computed by hand, and malformed ones.

use camino::{Utf8Path, Utf8PathBuf};
use proptest::prelude::*;

use super::class::Operation;
use super::steps::Step;
use super::trace::Kernel;
use super::*;

fn of(name: &str) -> Vec<Profile> {
    let path = Utf8Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata/profile")
        .join(name);
    profiles(&read(&path).unwrap(), name)
}

fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
}

fn us(phase: &PhaseProfile, class: Class) -> f64 {
    let parts = phase.operations.iter();
    parts
        .filter(|part| part.operation == class)
        .map(|part| part.us)
        .sum()
}

#[test]
fn steps_of_a_rank_are_told_apart_and_their_operations_add_up() {
    let profiles = of("1762000000.1-TP-0.trace.json");
    let [profile] = &profiles[..] else {
        panic!("one device: {profiles:?}");
    };
    assert_eq!(profile.rank, "TP-0");
    assert_eq!(profile.device.as_deref(), Some("NVIDIA H200"));
    let [decode, prefill] = &profile.phases[..] else {
        panic!("decode and prefill: {profile:?}");
    };
    // Six decode steps: the last has no end, one lasts 250 µs.
    assert_eq!((decode.steps, decode.left_out), (Some(4), 1));
    assert_eq!(decode.told_by, StepSource::StepSpans);
    assert_eq!(decode.requests, Some((8, 8)));
    close(decode.step_us, 100.0);
    close(decode.busy_us, 90.0);
    for (class, expected) in [
        (Class::MoeGemm, 50.0),
        (Class::MoeOther, 5.0),
        (Class::DenseFp8, 10.0),
        (Class::Quantisation, 5.0),
        (Class::OtherGemm, 0.0),
        // 5 µs of the two run at once: half of them each.
        (Class::Attention, 7.5),
        (Class::Communication, 7.5),
        (Class::Rest, 5.0),
    ] {
        close(us(decode, class), expected);
    }
    let sum: f64 = decode.operations.iter().map(|part| part.us).sum();
    close(sum + decode.idle_us, decode.step_us);
    assert_eq!(decode.unknown.len(), 1);
    assert_eq!(decode.unknown[0].name, "mystery_kernel");
    close(decode.unknown[0].us, 2.0);
    close(decode.bound.at_most.unwrap(), 2.5);
    close(decode.bound.operations[0].at_most.unwrap(), 2.0);
    assert_eq!(
        decode.sentence("at concurrency 8"),
        "fused MoE 50 % and dense FP8 GEMMs 10 % of a decode step at concurrency 8; tuning both can bring at most 2.50x"
    );
    assert_eq!((prefill.steps, prefill.tokens), (Some(2), Some(512.0)));
    close(prefill.step_us, 500.0);
    close(us(prefill, Class::MoeGemm), 200.0);
    close(prefill.idle_us, 150.0);
}

#[test]
fn the_rank_that_computes_longest_is_the_slowest() {
    let mut ranks = of("1762000000.1-TP-0.trace.json");
    ranks.extend(of("1762000000.1-TP-1.trace.json"));
    assert_eq!(slowest(&ranks, Phase::Decode).unwrap().rank, "TP-1");
    assert_eq!(slowest(&ranks, Phase::All), None);
    let load = LoadProfile::new("few".to_owned(), 8, ranks.clone(), &Operation::ALL);
    assert!(
        load.says.starts_with("few: fused MoE 50 %"),
        "{}",
        load.says
    );
    assert_eq!(load.phases().len(), 2);
    // What this run does not tune is not part of its bound.
    let load = LoadProfile::new(String::new(), 8, ranks, &[Operation::DenseFp8]);
    assert_eq!(
        load.says,
        "dense FP8 GEMMs 10 % of a decode step at concurrency 8; tuning them can bring at most 1.11x"
    );
    let (_, decode) = load.phases()[0];
    close(decode.share(Class::MoeGemm), 0.5);
    assert!(decode.tunes(Class::DenseFp8) && !decode.tunes(Class::MoeGemm));
}

#[test]
fn without_spans_decode_steps_are_told_by_their_graphs() {
    let profiles = of("graphs.trace.json");
    let [decode] = &profiles[0].phases[..] else {
        panic!("only decode: {profiles:?}");
    };
    // From a graph to the next: 100, 500 with the prefill (left out), 100.
    assert_eq!((decode.steps, decode.left_out), (Some(2), 1));
    assert_eq!(decode.told_by, StepSource::GraphLaunches);
    close(decode.step_us, 100.0);
    close(us(decode, Class::DenseFp8), 40.0);
    close(us(decode, Class::Rest), 10.0);
}

#[test]
fn a_prefill_with_a_name_does_not_swallow_graphs_without() {
    let event = |cat: &str, name: &str, ts: u32, dur: u32, correlation: u32| {
        format!(
            r#"{{"ph":"X","cat":"{cat}","name":"{name}","pid":0,"tid":7,"ts":{ts},"dur":{dur},"args":{{"correlation":{correlation}}}}}"#
        )
    };
    let prefill = |ts: u32| {
        [
            event("gpu_user_annotation", "step[EXTEND bs=1 toks=9]", ts, 80, 0),
            // Pieces of a prefill may be graphs too.
            event("cuda_runtime", "hipGraphLaunch", ts, 1, ts),
            event("kernel", "fused_moe_kernel", ts, 80, ts),
        ]
    };
    let decode = |ts: u32| {
        [
            event("cuda_runtime", "hipGraphLaunch", ts - 9, 1, ts),
            event("kernel", "fused_moe_kernel", ts, 10, ts),
            event("kernel", "_fwd_kernel", ts + 10, 10, ts),
        ]
    };
    let events: Vec<String> = [
        &prefill(1000)[..],
        &decode(1100),
        &decode(1130),
        &decode(1160),
        &prefill(1190),
        &decode(1290),
    ]
    .concat();
    let trace = reading(format!("[{}]", events.join(",")).as_bytes()).unwrap();
    let found = profiles(&trace, "x");
    let [decode, prefill] = &found[0].phases[..] else {
        panic!("{found:?}");
    };
    assert_eq!((decode.steps, prefill.steps), (Some(3), Some(2)));
    close(decode.step_us, 30.0);
    close(decode.busy_us, 20.0);
    close(prefill.step_us, 100.0);
}

#[test]
fn a_stage_by_itself_is_one_phase_of_unknown_steps() {
    let profiles = of("1762000000.2-TP-0-DECODE.trace.json");
    let [decode] = &profiles[0].phases[..] else {
        panic!("only decode: {profiles:?}");
    };
    assert_eq!((decode.phase, decode.steps), (Phase::Decode, None));
    assert_eq!(decode.told_by, StepSource::FileName);
    close(us(decode, Class::MoeGemm), 60.0);
    close(us(decode, Class::DenseFp8), 20.0);
    close(us(decode, Class::Attention), 10.0);
    assert!(decode.unknown.is_empty(), "{decode:?}");
    close(decode.bound.at_most.unwrap(), 5.0);
}

#[test]
fn a_known_step_time_bounds_what_the_profiler_stretched() {
    let mut profiles = of("1762000000.1-TP-0.trace.json");
    let decode = &mut profiles[0].phases[0];
    decode.set_unprofiled(95.0);
    close(decode.step_us, 95.0);
    close(decode.idle_us, 5.0);
    close(decode.bound.at_most.unwrap(), 95.0 / 35.0);
    close(decode.share(Class::MoeGemm), 50.0 / 95.0);
    // Never below what ran, never above what was recorded.
    decode.set_unprofiled(40.0);
    close(decode.step_us, 90.0);
    decode.set_unprofiled(1e6);
    close(decode.step_us, 100.0);
    decode.set_unprofiled(f64::NAN);
    close(decode.step_us, 100.0);
}

/// Reads `bytes` as a trace.
fn reading(bytes: &[u8]) -> Result<Trace, ProfileError> {
    let keep = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::try_from(keep.path().join("1-TP-0.trace.json")).unwrap();
    fs_err::write(&path, bytes).unwrap();
    read(&path)
}

#[test]
fn what_is_no_trace_is_an_error() {
    let whole = include_bytes!("../../testdata/profile/1762000000.1-TP-0.trace.json");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, whole).unwrap();
    let packed = packed.finish().unwrap();
    assert_eq!(reading(&packed).unwrap(), reading(whole).unwrap());
    for torn in [&whole[..], &packed[..]] {
        for length in [40, torn.len() / 2, torn.len() - 9] {
            let error = reading(&torn[..length]).unwrap_err();
            assert!(
                matches!(error, ProfileError::Torn { .. }),
                "{length}: {error}"
            );
        }
    }
    assert!(matches!(
        reading(b"").unwrap_err(),
        ProfileError::Torn { .. }
    ));
    let deep = "[".repeat(100_000);
    for text in [
        "nonsense",
        "7",
        "{}",
        "{\"traceEvents\": 7}",
        "{\"traceEvents\": [7]}",
        "{\"traceEvents\": [{\"ph\": \"X\", \"dur\": NaN}]}",
        &format!("{{\"traceEvents\": [{{\"args\": {deep}"),
        "{\"traceEvents\": [{\"name\": \"\u{0}\"}]}",
    ] {
        let error = reading(text.as_bytes()).unwrap_err();
        assert!(
            matches!(error, ProfileError::Form { .. } | ProfileError::Torn { .. }),
            "{text:.60}: {error}"
        );
    }
    for text in ["[]", "{\"traceEvents\": []}"] {
        let error = reading(text.as_bytes()).unwrap_err();
        assert!(
            matches!(error, ProfileError::NoKernels(_)),
            "{text}: {error}"
        );
    }
}

#[test]
fn values_of_other_types_are_as_good_as_none() {
    let good = r#"{"ph":"X","cat":"kernel","name":"k","pid":0,"tid":7,"ts":"10","dur":5,"args":{"correlation":"3"}}"#;
    let bad = [
        r#"{"ph":"X","cat":"kernel","name":7,"pid":0,"ts":1,"dur":1}"#,
        r#"{"ph":"X","cat":"kernel","name":"k","pid":[],"ts":1,"dur":-1}"#,
        r#"{"ph":"X","cat":"kernel","name":"k","pid":{},"ts":1e308,"dur":1e308}"#,
        r#"{"ph":"X","cat":"kernel","name":"k","ts":null,"dur":true}"#,
        r#"{"ph":"B","cat":"kernel","name":"k","ts":1,"dur":1}"#,
        r#"{"ph":["X"],"cat":{"a":1},"args":"text"}"#,
        r#"{"cat":"gpu_user_annotation","ph":"X","name":"step[","ts":0,"dur":1,"args":[1,[2]]}"#,
        r#"{"cat":"cuda_runtime","name":"cudaGraphLaunch","args":{"correlation":-1}}"#,
        "{}",
    ];
    // Neither the form (a bare array) nor the order of events matters.
    let text = format!("[{},{good}]", bad.join(","));
    let trace = reading(text.as_bytes()).unwrap();
    let found = profiles(&trace, "x");
    assert_eq!(found.len(), 1);
    let [phase] = &found[0].phases[..] else {
        panic!("{found:?}");
    };
    assert_eq!((phase.phase, phase.steps), (Phase::All, None));
    close(phase.step_us, 5.0);
    assert_eq!(phase.unknown.len(), 1);
}

#[test]
fn devices_of_one_trace_are_profiled_apart() {
    let event = |pid: u32, dur: u32| {
        format!(r#"{{"ph":"X","cat":"kernel","name":"k","pid":{pid},"ts":0,"dur":{dur}}}"#)
    };
    let text = format!("[{},{}]", event(0, 10), event(1, 20));
    let found = profiles(&reading(text.as_bytes()).unwrap(), "1-TP-0-EP-2.trace.json");
    let lengths: Vec<(&str, f64)> = found
        .iter()
        .map(|profile| (profile.rank.as_str(), profile.phases[0].step_us))
        .collect();
    assert_eq!(
        lengths,
        [("TP-0-EP-2, device 0", 10.0), ("TP-0-EP-2, device 1", 20.0)]
    );
}

/// The account computed one microsecond at a time.
fn slowly(kernels: &[Kernel], steps: &[Step], names: usize) -> (f64, f64, Vec<f64>, f64) {
    let (mut total, mut busy, mut parts, mut tunable) = (0.0, 0.0, vec![0.0; names], 0.0);
    for moment in 0..400 {
        let moment = f64::from(moment) + 0.5;
        let within = |start: f64, end: f64| start < moment && moment < end;
        if !steps.iter().any(|step| within(step.start, step.end)) {
            continue;
        }
        total += 1.0;
        let running: Vec<&Kernel> = kernels
            .iter()
            .filter(|kernel| within(kernel.start, kernel.end))
            .collect();
        busy += f64::from(u8::from(!running.is_empty()));
        tunable += f64::from(u8::from(running.iter().any(|kernel| kernel.name < 2)));
        for kernel in &running {
            parts[kernel.name as usize] += 1.0 / running.len() as f64;
        }
    }
    (total, busy, parts, tunable)
}

proptest! {
    #[test]
    fn a_trace_that_was_tampered_with_is_an_error_or_adds_up(
        changes in prop::collection::vec((0_usize..30_000, any::<u8>()), 1..8),
        swap in (0_usize..30_000, 0_usize..30_000),
    ) {
        let mut bytes =
            include_bytes!("../../testdata/profile/1762000000.1-TP-0.trace.json").to_vec();
        for (place, byte) in changes {
            let length = bytes.len();
            // Digits give other times; other bytes give different or invalid JSON.
            bytes[place % length] = if place % 3 == 0 { byte } else { b'0' + byte % 10 };
        }
        let length = bytes.len();
        bytes.swap(swap.0 % length, swap.1 % length);
        if let Ok(trace) = reading(&bytes) {
            for phase in profiles(&trace, "1-TP-0").iter().flat_map(|profile| &profile.phases) {
                let sum: f64 = phase.operations.iter().map(|part| part.us).sum();
                let slack = 1e-6 * phase.step_us.max(1.0);
                assert!((sum + phase.idle_us - phase.step_us).abs() < slack, "{phase:?}");
                assert!(phase.busy_us <= phase.step_us + slack, "{phase:?}");
            }
        }
    }

    #[test]
    fn however_kernels_overlap_each_moment_is_given_away_once(
        kernels in prop::collection::vec((0_u32..300, 0_u32..60, 0_u32..4), 0..40),
        gaps in prop::collection::vec((0_u32..30, 1_u32..60), 1..6),
    ) {
        let mut kernels: Vec<Kernel> = kernels
            .into_iter()
            .map(|(start, length, name)| Kernel {
                start: f64::from(start),
                end: f64::from(start + length),
                name,
                correlation: 0,
            })
            .collect();
        kernels.sort_by(|one, other| one.start.total_cmp(&other.start));
        let mut at = 0;
        let steps: Vec<Step> = gaps
            .into_iter()
            .map(|(gap, length)| {
                let start = at + gap;
                at = start + length;
                Step {
                    start: f64::from(start),
                    end: f64::from(at),
                    phase: Phase::Decode,
                    requests: None,
                    tokens: None,
                }
            })
            .collect();
        let operation = |name| match name {
            0 => Some(Operation::FusedMoe),
            1 => Some(Operation::DenseFp8),
            _ => None,
        };
        let [account, ..] = account::accounts(&kernels, &steps, 4, &operation);
        let (total, busy, parts, tunable) = slowly(&kernels, &steps, 4);
        close(account.total, total);
        close(account.busy, busy);
        close(account.any_ran, tunable);
        for ((part, _), expected) in account.kernels.iter().zip(&parts) {
            close(*part, *expected);
        }
        close(account.kernels.iter().map(|(part, _)| part).sum(), busy);
    }
}
