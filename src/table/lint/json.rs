//! Rules about the content of SGLang's configuration files.

use std::collections::HashMap;

use serde_json::Value;

use super::super::sglang_json::{
    Config, ConfigError, Entry, FileName, OPTIONAL_KEYS, Params, REQUIRED_KEYS,
};
use super::{Sink, json_name, rules};

/// The M values SGLang's own tuner sweeps (`benchmark/kernels/quantization/
/// tuning_block_wise_kernel.py`); with several GPUs it distributes them in runs of neighbours.
const TUNER_M: [i64; 18] = [
    1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096,
];
/// A file whose last key is below this serves every prefill with its last decode configuration.
const SHORT_BELOW: i64 = 512;
/// With neighbouring keys further apart than this factor, M values in between use a configuration tuned for another
/// size; no complete shipped file has more than 2.
const GAP: i64 = 4;

/// Checks one file; returns how many entries it has.
pub(super) fn check(name: &str, bytes: &[u8], sink: &mut Sink<'_>) -> usize {
    let file_name = json_name::check(name, sink);
    let config = match Config::read(name, bytes) {
        Ok(config) => config,
        Err(error) => {
            let ConfigError::Json { source, .. } = &error;
            let line = u64::try_from(source.line()).ok().filter(|line| *line > 0);
            sink.add(&rules::FILE_UNREADABLE, line, format!("{error}: {source}"));
            return 0;
        }
    };
    if config.entries.is_empty() {
        sink.add(&rules::CONFIG_EMPTY, Some(1), "an object without entries");
    }
    for entry in &config.entries {
        key(entry, sink);
        params(entry, file_name.as_ref(), sink);
    }
    duplicates(&config, sink);
    if let Some(by_m) = config.by_m() {
        let keys: Vec<i64> = by_m.iter().map(|(m, _)| *m).collect();
        unreachable(&config, &keys, sink);
        coverage(keys, sink);
    }
    config.entries.len()
}

pub(super) fn key(entry: &Entry, sink: &mut Sink<'_>) {
    if entry.m.is_none() {
        sink.add(
            &rules::KEY_NOT_INTEGER,
            Some(entry.line),
            format!("key `{}` is no integer", entry.key),
        );
    }
}

pub(super) fn duplicates(config: &Config, sink: &mut Sink<'_>) {
    let mut seen: HashMap<i64, &Entry> = HashMap::new();
    for entry in &config.entries {
        let Some(m) = entry.m else { continue };
        let Some(first) = seen.insert(m, entry) else {
            continue;
        };
        let (rule, how) = if first.params == entry.params {
            (&rules::DUPLICATE_EQUAL, "the same configuration")
        } else {
            (&rules::DUPLICATE_CONFLICTING, "another configuration")
        };
        sink.add(
            rule,
            Some(entry.line),
            format!(
                "key `{}` is on line {} too, with {how}",
                entry.key, first.line
            ),
        );
    }
}

/// A key is reachable if it is the nearest to some M of 1 or more; every key from 1 on is nearest to itself, so only
/// smaller ones can be unreachable.
pub(super) fn unreachable(config: &Config, keys: &[i64], sink: &mut Sink<'_>) {
    for entry in &config.entries {
        let Some(m) = entry.m.filter(|m| *m < 1) else {
            continue;
        };
        let nearest_to_one = keys.iter().min_by_key(|key| (**key).abs_diff(1));
        if nearest_to_one != Some(&m) {
            sink.add(
                &rules::ROW_UNREACHABLE,
                Some(entry.line),
                format!("key `{}` is nearest to no M of 1 or more", entry.key),
            );
        }
    }
}

fn coverage(mut keys: Vec<i64>, sink: &mut Sink<'_>) {
    keys.sort_unstable();
    let (Some(&first), Some(&last)) = (keys.first(), keys.last()) else {
        return;
    };
    let listed = || {
        keys.iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let slice = TUNER_M
        .windows(keys.len())
        .any(|window| window == keys.as_slice());
    if keys.len() < TUNER_M.len() && first > TUNER_M[0] && (slice || first >= 16) {
        sink.add(
            &rules::M_SET_TRUNCATED,
            Some(1),
            format!(
                "the keys are {}: every M below {first} runs the configuration of {first}",
                listed()
            ),
        );
        return;
    }
    let cut = keys.len() < TUNER_M.len() && TUNER_M.starts_with(&keys);
    if last < SHORT_BELOW || cut {
        sink.add(
            &rules::M_SET_SHORT,
            Some(1),
            format!(
                "the keys are {}: every larger M runs the configuration of {last}",
                listed()
            ),
        );
    }
    gaps(&keys, sink);
}

/// Sorted keys whose neighbours are too far apart.
pub(super) fn gaps(keys: &[i64], sink: &mut Sink<'_>) {
    for pair in keys.windows(2) {
        let (low, high) = (pair[0].max(1), pair[1]);
        if high > low.saturating_mul(GAP) {
            sink.add(
                &rules::M_SET_GAP,
                Some(1),
                format!("no key between {} and {high}", pair[0]),
            );
        }
    }
}

/// A parameter that occurs twice: Python's parser keeps the last.
pub(super) fn repeated(entry: &Entry, pairs: &[(String, Value)], sink: &mut Sink<'_>) {
    let mut seen: HashMap<&str, &Value> = HashMap::new();
    for (param, value) in pairs {
        let Some(first) = seen.insert(param, value) else {
            continue;
        };
        let rule = if first == value {
            &rules::DUPLICATE_EQUAL
        } else {
            &rules::DUPLICATE_CONFLICTING
        };
        sink.add(
            rule,
            Some(entry.line),
            format!(
                "key `{}` has `{param}` twice, {first} and {value}: the last one counts",
                entry.key
            ),
        );
    }
}

/// The parameters of the key's value; a value that is not an object is a finding.
pub(super) fn object<'entry>(
    entry: &'entry Entry,
    sink: &mut Sink<'_>,
) -> Option<&'entry [(String, Value)]> {
    match &entry.params {
        Params::Object(pairs) => Some(pairs),
        Params::Other(value) => {
            sink.add(
                &rules::CONFIG_VALUE_INVALID,
                Some(entry.line),
                format!(
                    "the value of key `{}` is `{value}`, not an object",
                    entry.key
                ),
            );
            None
        }
    }
}

fn params(entry: &Entry, name: Option<&FileName>, sink: &mut Sink<'_>) {
    let line = Some(entry.line);
    let channelwise = name.is_some_and(|name| name.block_shape.is_none());
    // Channel-wise files may have `null`, which means "run the default".
    if channelwise && entry.params == Params::Other(Value::Null) {
        return;
    }
    let Some(pairs) = object(entry, sink) else {
        return;
    };
    repeated(entry, pairs, sink);
    for required in REQUIRED_KEYS {
        let optional = channelwise && required == "GROUP_SIZE_M";
        if entry.params.get(required).is_none() && !optional {
            sink.add(
                &rules::CONFIG_KEY_MISSING,
                line,
                format!("key `{}` has no `{required}`", entry.key),
            );
        }
    }
    for (param, value) in pairs {
        if !REQUIRED_KEYS.contains(&param.as_str()) && !taken(param, name) {
            sink.add(
                &rules::CONFIG_KEY_UNKNOWN,
                line,
                format!(
                    "key `{}` has `{param}`, which the kernel does not take",
                    entry.key
                ),
            );
        } else if let Some(expected) = rejected(param, value) {
            sink.add(
                &rules::CONFIG_VALUE_INVALID,
                line,
                format!(
                    "key `{}` has `{param}` = {value}; it has to be {expected}",
                    entry.key
                ),
            );
        }
    }
    clamped(entry, name, sink);
}

/// Whether a launch accepts `param` besides the required ones: those of the kernels, and the options of Triton's
/// backend for the device (`HIPOptions`, `CUDAOptions`); for an option of the other backend `runtime/jit.py` raises a
/// KeyError.
fn taken(param: &str, name: Option<&FileName>) -> bool {
    let device = name.map_or("", |name| &name.device_name);
    of_device(param, device).unwrap_or(OPTIONAL_KEYS.contains(&param))
}

/// Whether `device` accepts an option that only some of Triton's backends have; `None` for other parameters.
pub(super) fn of_device(param: &str, device: &str) -> Option<bool> {
    match param {
        "waves_per_eu" | "matrix_instr_nonkdim" | "kpack" => Some(!device.starts_with("NVIDIA")),
        "maxnreg" => Some(!device.starts_with("AMD")),
        "num_ctas" => Some(true),
        _ => None,
    }
}

/// What `param` must be, if `value` is not valid.
pub(super) fn rejected(param: &str, value: &Value) -> Option<&'static str> {
    let number = value.as_u64();
    let power_of_two = |least: u64, most: u64| {
        number.is_some_and(|number| number.is_power_of_two() && (least..=most).contains(&number))
    };
    let (valid, expected) = match param {
        // Triton requires powers of two for a tile's sides, and at least 16 for a matrix instruction.
        "BLOCK_SIZE_M" | "BLOCK_SIZE_N" | "BLOCK_SIZE_K" => {
            (power_of_two(16, 4096), "a power of two from 16 to 4096")
        }
        "num_warps" => (power_of_two(1, 32), "a power of two from 1 to 32"),
        "GROUP_SIZE_M" | "SPLIT_K" => (
            number.is_some_and(|number| number >= 1),
            "a whole number from 1",
        ),
        "num_stages" => (
            number.is_some_and(|number| number <= 16),
            "a whole number from 0 to 16",
        ),
        "waves_per_eu" => (
            number.is_some_and(|number| number <= 16),
            "a whole number from 0 to 16",
        ),
        "USE_TMA" => (value.is_boolean(), "true or false"),
        "SWAP_AB" => (
            value.is_boolean() || matches!(number, Some(0 | 1)),
            "true or false",
        ),
        _ => (true, ""),
    };
    (!valid).then_some(expected)
}

/// SGLang 0.5.12.post1 and later raise a BLOCK_SIZE_K below the scale block; on CUDA only if it does not divide it.
fn clamped(entry: &Entry, name: Option<&FileName>, sink: &mut Sink<'_>) {
    let Some(name) = name.filter(|_| !json_name::is_of_vllm(sink.file)) else {
        return;
    };
    let (Some((_, block_k)), Some(size)) = (
        name.block_shape,
        entry.params.get("BLOCK_SIZE_K").and_then(Value::as_u64),
    ) else {
        return;
    };
    let block_k = u64::from(block_k);
    let kept = name.device_name.starts_with("NVIDIA") && size > 0 && block_k % size == 0;
    if name.dtype == "fp8_w8a8" && size < block_k && !kept {
        sink.add(
            &rules::BLOCK_K_CLAMPED,
            Some(entry.line),
            format!(
                "key `{}` has BLOCK_SIZE_K = {size}, raised to {block_k} when it is loaded",
                entry.key
            ),
        );
    }
}
