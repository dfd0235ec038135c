//! Where a step's time goes: once the baseline's loads are timed and its answers recorded, the same server serves
//! each load for a few more steps while its own profiler records what the devices run.
//!
//! It is the last thing this server does, so it cannot affect timing. Failures are only remarked on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use super::weights::{least_us, weights};
use crate::bench::load::Progress;
use crate::bench::{client, load, result};
use crate::engine::ports::{Profiler, Server};
use crate::engine::server::RunningServer;
use crate::engine::trial::{PROMPTS, RESULTS};
use crate::engine::{Engine, read_document, write_document};
use crate::plan::Plan;
use crate::proc::Interrupt;
use crate::profile::{self, AtPeak, LoadProfile, Operation, Phase, Profile};
use crate::run::documents::{Captured, Document as _, Profiled};
use crate::run::error::{Error, ErrorKind};
use crate::run::event::Role;
use crate::store::file::entries;
use crate::table::roofline::Device;
use crate::workload::config::{Load, Measure};

/// Forward passes recorded from the first request on. A load with many requests prefills in several passes before it
/// decodes.
const PREFILL_STEPS: u32 = 8;

/// Forward passes recorded while every request decodes: enough to average, few enough for a trace of some megabytes.
const DECODE_STEPS: u32 = 24;

/// Time limit of a recording; exporting a trace takes a loaded server seconds.
const PATIENCE: Duration = Duration::from_secs(180);

/// Time limit for the export of a recording that was stopped, since no further step has to be waited for.
const EXPORT: Duration = Duration::from_secs(30);

/// A file that has not grown for this long is complete: ranks write theirs in one go.
const SETTLED: Duration = Duration::from_millis(700);

const POLL: Duration = Duration::from_millis(100);

/// A seed other than that of the timed prompts, so that no prefill is served from the prefix cache.
const SEED: u64 = 0x9e37_79b9;

/// The loads to profile, and where their traces go.
pub(super) struct ProfileRequest {
    server: Arc<dyn Server>,
    loads: Vec<Load>,
    folder: Utf8PathBuf,
    /// Traces expected of each recording.
    ranks: usize,
    patience: Duration,
    interrupt: Interrupt,
}

/// The recordings of one load.
pub(super) struct Recorded {
    load: Load,
    /// Traces from the first request on.
    prefill: Vec<Utf8PathBuf>,
    /// Traces taken while every request decodes.
    decode: Vec<Utf8PathBuf>,
    trouble: Option<String>,
    /// Ranks that wrote nothing.
    missing: Vec<String>,
}

/// The profile to take of `engine`'s loads; `None` if it is disabled or the server has no profiler.
pub(super) fn asked(engine: &mut Engine<'_>) -> Option<ProfileRequest> {
    let server = engine.backend.server.clone();
    server.profiler()?;
    if !engine.config.benchmark.profile || engine.config.compare.only_noise {
        return None;
    }
    let Ok(Measure::Builtin(loads)) = engine.config.measure() else {
        engine.remark(
            "no breakdown of the step time: only loads of `benchmark.builtin` or `benchmark.loads` are profiled",
        );
        return None;
    };
    Some(ProfileRequest {
        server,
        loads: loads.to_vec(),
        folder: engine.run.profile(),
        ranks: engine.config.workload.tp.max(1) as usize,
        patience: PATIENCE.min(Duration::from_secs(engine.config.benchmark.timeout_s)),
        interrupt: engine.interrupt.clone(),
    })
}

/// Profiles each load on `server`. The only error is an interruption.
pub(super) fn record(
    asked: &ProfileRequest,
    server: &mut RunningServer,
) -> Result<Vec<Recorded>, Error> {
    // What a killed attempt left does not belong to this one.
    let _ = fs_err::remove_dir_all(&asked.folder);
    let url = server.base_url().to_owned();
    server.ask(&asked.interrupt, |stop| {
        let mut recorded = Vec::new();
        for (index, load) in asked.loads.iter().enumerate() {
            let found = one_load(asked, &url, index, load, stop);
            // A server that refuses, hangs or is gone does so for the next load too.
            let goes_on = found.trouble.is_none();
            recorded.push(found);
            if !goes_on {
                break;
            }
        }
        recorded
    })
}

fn one_load(
    asked: &ProfileRequest,
    url: &str,
    index: usize,
    load: &Load,
    stop: &AtomicBool,
) -> Recorded {
    let mut recorded = Recorded {
        load: load.clone(),
        prefill: Vec::new(),
        decode: Vec::new(),
        trouble: None,
        missing: Vec::new(),
    };
    let Some(profiler) = asked.server.profiler() else {
        return recorded;
    };
    let concurrency = load.concurrency as usize;
    let order = load::Load {
        model: client::first_model(url).unwrap_or_default(),
        url: url.to_owned(),
        concurrency,
        // Enough to last until the recordings are done.
        requests: (load.prompts as usize).max(64 * concurrency),
        warmup: 0,
        input_len: load.input_len as usize,
        output_len: load.output_len as usize,
        seed: load.seed ^ SEED,
        prompt: PROMPTS,
        deadline: asked.patience,
    };
    let over = AtomicBool::new(false);
    let answering = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let recorder = Recorder {
            profiler,
            url,
            ranks: asked.ranks,
            patience: asked.patience,
            stop,
        };
        let folder = |what: &str| asked.folder.join(format!("{}-{what}", index + 1));
        let result = (|| {
            let folders = (folder("prefill"), folder("decode"));
            recorder.start(&folders.0, PREFILL_STEPS)?;
            let serving = scope.spawn(|| {
                load::run(&order, &over, &|step| {
                    if step == Progress::Answering {
                        answering.fetch_add(1, Ordering::Relaxed);
                    }
                })
            });
            recorded.prefill = recorder.wait(&folders.0, &|| serving.is_finished())?;
            recorded
                .missing
                .extend(missing("prefill", recorded.prefill.len(), asked.ranks));
            let since = Instant::now();
            while answering.load(Ordering::Relaxed) < concurrency && !serving.is_finished() {
                if stop.load(Ordering::Relaxed) {
                    return Err("the server ended meanwhile".to_owned());
                }
                if since.elapsed() > asked.patience {
                    return Err(format!("{concurrency} requests never decoded at once"));
                }
                std::thread::sleep(POLL);
            }
            if serving.is_finished() {
                return Err("the load ended before its decode steps were recorded".to_owned());
            }
            recorder.start(&folders.1, DECODE_STEPS)?;
            recorded.decode = recorder.wait(&folders.1, &|| serving.is_finished())?;
            recorded
                .missing
                .extend(missing("decode", recorded.decode.len(), asked.ranks));
            Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        recorded.trouble = result.err();
    });
    recorded
}

/// A remark if fewer ranks wrote a trace than there are.
fn missing(phase: &str, traces: usize, ranks: usize) -> Option<String> {
    (traces < ranks).then(|| {
        format!("{} of {ranks} ranks wrote no trace of their {phase} steps: what is said is of the others", ranks - traces)
    })
}

/// Starts recordings and waits for their traces.
struct Recorder<'a> {
    profiler: &'a dyn Profiler,
    url: &'a str,
    ranks: usize,
    patience: Duration,
    /// Set when the server has ended or the user has interrupted.
    stop: &'a AtomicBool,
}

impl Recorder<'_> {
    fn start(&self, folder: &Utf8Path, steps: u32) -> Result<(), String> {
        fs_err::create_dir_all(folder).map_err(|error| error.to_string())?;
        self.profiler.start(self.url, folder, steps)
    }

    /// The traces in `folder` once every rank has written its own. A load that has ended runs no more steps, so the
    /// recording is then stopped, as it is when time runs out.
    fn wait(
        &self,
        folder: &Utf8Path,
        load_has_ended: &dyn Fn() -> bool,
    ) -> Result<Vec<Utf8PathBuf>, String> {
        let since = Instant::now();
        let (mut seen, mut still_since) = (Vec::new(), Instant::now());
        let mut stopped: Option<Instant> = None;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err("the server ended meanwhile".to_owned());
            }
            let now = traces(folder);
            if now != seen {
                (seen, still_since) = (now, Instant::now());
            }
            let complete = seen.len() >= self.ranks && still_since.elapsed() > SETTLED;
            let late = since.elapsed() > self.patience
                || stopped.is_some_and(|since| since.elapsed() > EXPORT);
            if complete || (late && !seen.is_empty()) {
                return Ok(seen.into_iter().map(|(path, _)| path).collect());
            }
            if late {
                self.profiler.stop(self.url);
                return Err(format!(
                    "no trace lay in `{folder}` after {:.0} s (a server in a container writes to its own folders)",
                    since.elapsed().as_secs_f64()
                ));
            }
            if stopped.is_none() && load_has_ended() {
                self.profiler.stop(self.url);
                stopped = Some(Instant::now());
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Traces in `folder` with their sizes, by name.
fn traces(folder: &Utf8Path) -> Vec<(Utf8PathBuf, u64)> {
    let mut found: Vec<(Utf8PathBuf, u64)> = entries(folder)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|entry| {
            let size = entry
                .metadata()
                .ok()
                .filter(std::fs::Metadata::is_file)?
                .len();
            Some((entry.into_path(), size))
        })
        .filter(|(path, size)| path.as_str().contains(".json") && *size > 0)
        .collect();
    found.sort();
    found
}

/// Reads the recordings and writes the document. Traces are deleted unless they should be kept.
pub(super) fn conclude(
    engine: &mut Engine<'_>,
    trial: &Utf8Path,
    recorded: Vec<Recorded>,
) -> Result<(), Error> {
    let runs = result::read(&trial.join(RESULTS))
        .map_err(|error| Error::caused(ErrorKind::WorkloadFailed, &error))?;
    let mut found = Profiled::default();
    for recorded in recorded {
        let name = recorded.load.name.clone().unwrap_or_default();
        let named = |tag: Option<&serde_json::Value>| {
            tag.and_then(|tag| tag.as_str()).unwrap_or_default() == name
        };
        let tpot_ms = runs
            .iter()
            .find(|run| named(run.fields.get("tag")))
            .and_then(|run| run.number("median_tpot_ms"));
        let mut trouble: Vec<String> = recorded
            .trouble
            .iter()
            .chain(&recorded.missing)
            .cloned()
            .collect();
        let prefill = read_all(&recorded.prefill, &mut trouble);
        let decode = read_all(&recorded.decode, &mut trouble);
        let mut profiles = by_rank(prefill, decode);
        for phase in profiles.iter_mut().flat_map(|profile| &mut profile.phases) {
            if let (Phase::Decode, Some(tpot_ms)) = (phase.phase, tpot_ms) {
                phase.set_unprofiled(tpot_ms * 1e3);
            }
        }
        let of = if name.is_empty() {
            String::new()
        } else {
            format!(" of {name}")
        };
        for trouble in trouble {
            let remark = format!("the breakdown of the step time{of} is incomplete: {trouble}");
            engine.remark(engine.secrets.mask(&remark).into_owned());
            found
                .remarks
                .push(engine.secrets.mask(&remark).into_owned());
        }
        if !profiles.is_empty() {
            let tuned = tuned(engine)?;
            let load = LoadProfile::new(name, recorded.load.concurrency, profiles, &tuned);
            engine.remark(load.says.clone());
            found.loads.push(load);
        }
    }
    if !engine.config.benchmark.keep_traces {
        let _ = fs_err::remove_dir_all(engine.run.profile());
    }
    write_document(&engine.run, &found)
}

/// The operations that the run tunes.
fn tuned(engine: &Engine<'_>) -> Result<Vec<Operation>, Error> {
    let dense = super::dense_kernels(engine, &super::inspection(&engine.run)?).is_some();
    let experts = engine.backend.fused_moe.is_some();
    let both = [(Operation::DenseFp8, dense), (Operation::FusedMoe, experts)];
    let both = both.into_iter();
    Ok(both
        .filter_map(|(operation, is_tuned)| is_tuned.then_some(operation))
        .collect())
}

/// Adds to the profile how long each load's step takes at the device's peak rates, once it is known how often a
/// forward pass calls what. For a device without published rates nothing is added.
pub(super) fn add_peaks(
    engine: &Engine<'_>,
    plan: &Plan,
    captured: &Captured,
) -> Result<(), Error> {
    let mut profiled = read(engine)?;
    let inspection = super::inspection(&engine.run)?;
    let name = inspection.identity.get("device").map_or("", String::as_str);
    let device = Device::of_name(name)
        .or_else(|| Device::of_key(&inspection.gfx, inspection.cu_num))
        .filter(|_| !profiled.loads.is_empty());
    let (Some(device), Ok(Measure::Builtin(loads))) = (device, engine.config.measure()) else {
        return Ok(());
    };
    let weights = weights(engine, plan, inspection.op)?;
    for (load, configured) in profiled.loads.iter_mut().zip(loads) {
        let Some(m) = super::foresee::rows_of(configured, "tpot", captured) else {
            continue;
        };
        let mut least = Vec::new();
        if let Some(weights) = &weights {
            least.push((Operation::DenseFp8, least_us(weights, m, &device)));
        }
        if let Some(us) = super::fused_moe::least_us(plan, captured, m, &device) {
            least.push((Operation::FusedMoe, us));
        }
        let assumed = format!(
            "{}; each call by itself at M = {m}, weights from memory, a token's experts all different",
            device.source
        );
        let phase = load.phases().into_iter().next();
        load.at_peak = phase
            .filter(|(_, phase)| phase.phase == Phase::Decode)
            .and_then(|(_, phase)| AtPeak::new(phase.step_us, &phase.bound, &least, assumed));
    }
    write_document(&engine.run, &profiled)
}

fn read_all(files: &[Utf8PathBuf], trouble: &mut Vec<String>) -> Vec<Profile> {
    let mut profiles = Vec::new();
    for file in files {
        match profile::read(file) {
            Ok(trace) => profiles.extend(profile::profiles(
                &trace,
                file.file_name().unwrap_or_default(),
            )),
            Err(error) => {
                trouble.push(Error::caused(ErrorKind::WorkloadFailed, &error).to_string());
            }
        }
    }
    profiles
}

/// Each rank's profile: its decode steps from the recording in which every request decodes, its prefill from the
/// first one, and what one of them lacks from the other.
fn by_rank(prefill: Vec<Profile>, decode: Vec<Profile>) -> Vec<Profile> {
    let mut ranks: Vec<Profile> = Vec::new();
    let (early, late) = (0, 1);
    let all = decode.into_iter().map(|profile| (late, profile));
    for (recording, mut profile) in all.chain(prefill.into_iter().map(|profile| (early, profile))) {
        let Some(known) = ranks.iter_mut().find(|known| known.rank == profile.rank) else {
            ranks.push(profile);
            continue;
        };
        for phase in profile.phases.drain(..) {
            let place = known
                .phases
                .iter()
                .position(|known| known.phase == phase.phase);
            match place {
                None => known.phases.push(phase),
                Some(place) if recording == early && phase.phase == Phase::Prefill => {
                    known.phases[place] = phase;
                }
                Some(_) => {}
            }
        }
        known.phases.sort_by_key(|phase| phase.phase);
    }
    ranks
}

/// The profile; empty if there is none.
pub(super) fn read(engine: &Engine<'_>) -> Result<Profiled, Error> {
    if engine.state.finished_trial(Role::Baseline).is_some()
        && Profiled::path(&engine.run).is_file()
    {
        read_document(&engine.run)
    } else {
        Ok(Profiled::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_wrote_no_trace_is_remarked_and_a_trace_more_is_not() {
        let said = missing("decode", 1, 2).unwrap();
        assert!(
            said.starts_with("1 of 2 ranks wrote no trace of their decode"),
            "{said}"
        );
        assert_eq!(missing("decode", 2, 2), None);
        assert_eq!(missing("prefill", 3, 2), None);
    }
}
