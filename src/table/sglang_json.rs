//! SGLang's tuned configurations of its Triton block-FP8 kernel: one JSON file per (N, K) and device.
//!
//! The runtime reads `{int(key): value}` and uses the key nearest to M; of two equally near keys the first in the
//! file wins, so the order of keys is significant and is kept. Source: SGLang 0.5.23,
//! `kernels/ops/gemm/fp8_kernel.py`, `get_w8a8_block_fp8_configs`.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// Parameters that the kernel has no default for.
pub const REQUIRED_KEYS: [&str; 4] = [
    "BLOCK_SIZE_M",
    "BLOCK_SIZE_N",
    "BLOCK_SIZE_K",
    "GROUP_SIZE_M",
];

/// Further parameters that a configuration may have: Triton's launch options, which have defaults (72 of vLLM
/// 0.20.2's files for AMD omit `num_stages`), AMD's `waves_per_eu`, and `SPLIT_K`, `SWAP_AB` from 0.5.21.
pub const OPTIONAL_KEYS: [&str; 5] = [
    "num_warps",
    "num_stages",
    "waves_per_eu",
    "SPLIT_K",
    "SWAP_AB",
];

/// The name under which the runtime looks for a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileName {
    /// Output features.
    pub n: u32,
    /// Input features.
    pub k: u32,
    /// `torch.cuda.get_device_name()` of device 0, blanks turned into underscores.
    pub device_name: String,
    /// `fp8_w8a8` for block FP8; `int8_w8a8` and `fp8_w8a8_channelwise` belong to other kernels.
    pub dtype: String,
    /// Scale block of the weight: N side, K side. Channel-wise files have none.
    pub block_shape: Option<(u32, u32)>,
}

/// A file name that does not have the form that the runtime builds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "read `{0}` as a configuration file name `N=<int>,K=<int>,device_name=<name>,dtype=fp8_w8a8,block_shape=[<int>, <int>].json`"
)]
pub struct BadFileName(pub String);

impl FileName {
    /// The name of the block-FP8 file for (`n`, `k`) on `device_name` with 128 by 128 scale blocks.
    pub fn block_fp8(n: u32, k: u32, device_name: &str) -> Self {
        Self {
            n,
            k,
            device_name: device_name.replace(' ', "_"),
            dtype: "fp8_w8a8".to_owned(),
            block_shape: Some((128, 128)),
        }
    }

    /// The name vLLM looks for (0.20.2, `fp8_utils.py`, `get_w8a8_block_fp8_configs`): without the blank in the block shape.
    pub fn of_vllm(&self) -> String {
        self.to_string().replace(", ", ",")
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            n,
            k,
            device_name,
            dtype,
            block_shape,
        } = self;
        write!(
            formatter,
            "N={n},K={k},device_name={device_name},dtype={dtype}"
        )?;
        if let Some((rows, columns)) = block_shape {
            // The blank is Python's own list formatting; a file without it is never opened.
            write!(formatter, ",block_shape=[{rows}, {columns}]")?;
        }
        formatter.write_str(".json")
    }
}

impl FromStr for FileName {
    type Err = BadFileName;

    /// Parses a name liberally (with or without blanks after the comma); the runtime would only open it if
    /// `to_string` gives the same text.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadFileName(text.to_owned());
        let stem = text.strip_suffix(".json").ok_or_else(bad)?;
        let rest = stem.strip_prefix("N=").ok_or_else(bad)?;
        let (n, rest) = rest.split_once(',').ok_or_else(bad)?;
        let rest = rest.trim_start().strip_prefix("K=").ok_or_else(bad)?;
        let (k, rest) = rest.split_once(',').ok_or_else(bad)?;
        let rest = rest
            .trim_start()
            .strip_prefix("device_name=")
            .ok_or_else(bad)?;
        // A device name may contain commas; `dtype=` ends it.
        let at = rest
            .find(",dtype=")
            .or_else(|| rest.find(", dtype="))
            .ok_or_else(bad)?;
        let device_name = &rest[..at];
        let rest = rest[at + 1..]
            .trim_start()
            .strip_prefix("dtype=")
            .ok_or_else(bad)?;
        let (dtype, block_shape) = match rest.split_once(',') {
            None => (rest, None),
            Some((dtype, rest)) => {
                let list = rest
                    .trim_start()
                    .strip_prefix("block_shape=[")
                    .and_then(|rest| rest.strip_suffix(']'))
                    .ok_or_else(bad)?;
                let (rows, columns) = list.split_once(',').ok_or_else(bad)?;
                let number = |text: &str| text.trim().parse::<u32>().map_err(|_| bad());
                (dtype, Some((number(rows)?, number(columns)?)))
            }
        };
        if device_name.is_empty() || dtype.is_empty() {
            return Err(bad());
        }
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| bad());
        Ok(Self {
            n: number(n)?,
            k: number(k)?,
            device_name: device_name.to_owned(),
            dtype: dtype.to_owned(),
            block_shape,
        })
    }
}

/// One top-level entry of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    /// 1-based line of the key; 0 when the entry comes from no file.
    pub line: u64,
    /// The value of Python's `int(key)`; `None` where it would raise.
    pub m: Option<i64>,
    /// The configuration, in file order; repeated keys are kept.
    pub params: Params,
}

/// The value of an entry.
#[derive(Clone, Debug, PartialEq)]
pub enum Params {
    /// An object: names and values in file order.
    Object(Vec<(String, Value)>),
    /// Anything else, which the runtime cannot use.
    Other(Value),
}

impl Params {
    /// The value of `name`: the last one, as in Python's parser.
    pub fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Self::Object(pairs) => pairs
                .iter()
                .rev()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value),
            Self::Other(_) => None,
        }
    }
}

/// A file's entries, in file order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// The entries, repeated keys included.
    pub entries: Vec<Entry>,
}

/// A file that Python's JSON parser, or the runtime, would reject.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not an object.
    #[error("read `{name}` as a JSON object")]
    Json {
        /// Name of the file.
        name: String,
        /// The parser's error, with line and column.
        #[source]
        source: serde_json::Error,
    },
}

impl Config {
    /// Parses a file's bytes.
    pub fn read(name: &str, bytes: &[u8]) -> Result<Self, ConfigError> {
        let named = |source| ConfigError::Json {
            name: name.to_owned(),
            source,
        };
        let pairs: Pairs<Pairs<Value>> = match serde_json::from_slice(bytes) {
            Ok(pairs) => pairs,
            Err(first) => {
                // Some value is not an object: parse again without requiring that.
                let outer: Pairs<Value> =
                    serde_json::from_slice(bytes).map_err(|_| named(first))?;
                return Ok(Self {
                    entries: entries(bytes, outer.0, |value| match value {
                        Value::Object(map) => Params::Object(map.into_iter().collect()),
                        other => Params::Other(other),
                    }),
                });
            }
        };
        Ok(Self {
            entries: entries(bytes, pairs.0, |inner| Params::Object(inner.0)),
        })
    }

    /// The keys as the runtime sees them, in order: integers, a repeated one at its first position with its last
    /// value, as in a Python dictionary. `None` if any key is not an integer, because then the file does not load.
    pub fn by_m(&self) -> Option<Vec<(i64, &Params)>> {
        let mut keys: Vec<(i64, &Params)> = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let m = entry.m?;
            match keys.iter_mut().find(|(seen, _)| *seen == m) {
                Some(slot) => slot.1 = &entry.params,
                None => keys.push((m, &entry.params)),
            }
        }
        Some(keys)
    }

    /// Adds or replaces the configuration for `m`, keeping the order of what is there.
    pub fn set(&mut self, m: u32, params: Vec<(String, Value)>) {
        let params = Params::Object(params);
        let key = i64::from(m);
        match self.entries.iter_mut().find(|entry| entry.m == Some(key)) {
            Some(entry) => entry.params = params,
            None => self.entries.push(Entry {
                key: m.to_string(),
                line: 0,
                m: Some(key),
                params,
            }),
        }
    }

    /// The file's text in the format of SGLang's tuner: four blanks of indent, a final newline.
    pub fn to_json(&self) -> String {
        let mut text = String::from("{");
        for (index, entry) in self.entries.iter().enumerate() {
            text.push_str(if index == 0 { "\n    " } else { ",\n    " });
            text.push_str(&Value::from(entry.key.as_str()).to_string());
            text.push_str(": ");
            match &entry.params {
                Params::Other(value) => text.push_str(&value.to_string()),
                Params::Object(pairs) if pairs.is_empty() => text.push_str("{}"),
                Params::Object(pairs) => {
                    text.push('{');
                    for (index, (name, value)) in pairs.iter().enumerate() {
                        text.push_str(if index == 0 {
                            "\n        "
                        } else {
                            ",\n        "
                        });
                        text.push_str(&Value::from(name.as_str()).to_string());
                        text.push_str(": ");
                        text.push_str(&value.to_string());
                    }
                    text.push_str("\n    }");
                }
            }
        }
        text.push_str(if self.entries.is_empty() {
            "}\n"
        } else {
            "\n}\n"
        });
        text
    }
}

fn entries<T>(bytes: &[u8], pairs: Vec<(String, T)>, params: impl Fn(T) -> Params) -> Vec<Entry> {
    let lines = key_lines(bytes);
    pairs
        .into_iter()
        .enumerate()
        .map(|(index, (key, value))| Entry {
            line: lines.get(index).copied().unwrap_or(0),
            m: python_int(&key),
            key,
            params: params(value),
        })
        .collect()
}

/// The value of Python's `int(text)` for ASCII text: surrounding blanks, a sign, single underscores between digits.
/// `None` where it would raise.
pub(super) fn python_int(text: &str) -> Option<i64> {
    let text = text.trim();
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let valid = !digits.is_empty()
        && !digits.starts_with('_')
        && !digits.ends_with('_')
        && !digits.contains("__")
        && digits
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'_');
    if !valid {
        return None;
    }
    digits
        .replace('_', "")
        .parse::<i64>()
        .ok()
        .map(|number| sign * number)
}

/// 1-based lines of the keys of the outermost object of a valid JSON text.
fn key_lines(bytes: &[u8]) -> Vec<u64> {
    let mut lines = Vec::new();
    let (mut line, mut depth, mut index) = (1u64, 0u32, 0usize);
    let mut expects_key = false;
    while let Some(byte) = bytes.get(index) {
        index += 1;
        match byte {
            b'\n' => line += 1,
            b'{' | b'[' => {
                depth += 1;
                expects_key = depth == 1;
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => expects_key = depth == 1,
            b'"' => {
                if expects_key {
                    lines.push(line);
                    expects_key = false;
                }
                while let Some(byte) = bytes.get(index) {
                    index += 1;
                    match byte {
                        b'\\' => index += 1,
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    lines
}

/// An object's pairs in file order, repeated names included.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: serde::Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
            type Value = Pairs<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_reads_and_the_runtime_form_is_the_only_one_that_survives() {
        let name =
            "N=2112,K=7168,device_name=NVIDIA_B200,dtype=fp8_w8a8,block_shape=[128, 128].json";
        let parsed: FileName = name.parse().unwrap();
        assert_eq!(
            (parsed.n, parsed.k, parsed.block_shape),
            (2112, 7168, Some((128, 128)))
        );
        assert_eq!(parsed.to_string(), name);
        assert_eq!(parsed, FileName::block_fp8(2112, 7168, "NVIDIA B200"));
        let tight: FileName = name.replace(", 128", ",128").parse().unwrap();
        assert_eq!(tight, parsed, "readable, though the runtime never opens it");
        let channel = "N=4096,K=12288,device_name=NVIDIA_L40S,dtype=fp8_w8a8_channelwise.json";
        assert_eq!(channel.parse::<FileName>().unwrap().to_string(), channel);
        for bad in [
            "",
            "N=1.json",
            "E=1,N=2,device_name=X.json",
            "N=a,K=1,device_name=X,dtype=y.json",
        ] {
            assert!(bad.parse::<FileName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn key_order_lines_and_repeats_are_kept() {
        let text = "{\n  \"64\": {\"BLOCK_SIZE_M\": 16},\n  \"1\": {\"x\": [\"{\", 1]},\n  \"64\": {\"BLOCK_SIZE_M\": 32}\n}";
        let config = Config::read("c.json", text.as_bytes()).unwrap();
        let shown: Vec<_> = config
            .entries
            .iter()
            .map(|entry| (entry.m, entry.line))
            .collect();
        assert_eq!(shown, [(Some(64), 2), (Some(1), 3), (Some(64), 4)]);
        let by_m = config.by_m().unwrap();
        assert_eq!(by_m.iter().map(|(m, _)| *m).collect::<Vec<_>>(), [64, 1]);
        assert_eq!(by_m[0].1.get("BLOCK_SIZE_M"), Some(&Value::from(32)));
    }

    #[test]
    fn a_file_written_by_sglang_writes_back_to_the_byte() {
        let text = "{\n    \"1\": {\n        \"BLOCK_SIZE_M\": 64,\n        \"num_stages\": 3\n    },\n    \"2\": {\n        \"BLOCK_SIZE_M\": 16,\n        \"num_stages\": 4\n    }\n}\n";
        let mut config = Config::read("c.json", text.as_bytes()).unwrap();
        assert_eq!(config.to_json(), text);
        config.set(2, vec![("num_stages".into(), Value::from(5))]);
        config.set(8, vec![]);
        assert_eq!(config.by_m().unwrap().len(), 3);
        assert_eq!(Config::default().to_json(), "{}\n");
    }

    #[test]
    fn keys_that_python_cannot_turn_into_integers_stop_the_whole_file() {
        for (key, m) in [
            ("16", Some(16)),
            (" +1_0 ", Some(10)),
            ("-3", Some(-3)),
            ("0x1", None),
            ("1.0", None),
            ("", None),
            ("_1", None),
        ] {
            let text = format!("{{{}: {{}}}}", Value::from(key));
            let config = Config::read("c.json", text.as_bytes()).unwrap();
            assert_eq!(config.entries[0].m, m, "{key:?}");
            assert_eq!(config.by_m().is_some(), m.is_some());
        }
    }

    #[test]
    fn a_value_that_is_no_object_is_kept_and_no_json_is_an_error_with_its_place() {
        let config = Config::read("c.json", b"{\"1\": {\"a\": 1}, \"2\": 7}").unwrap();
        assert_eq!(config.entries[1].params, Params::Other(Value::from(7)));
        let error = Config::read("c.json", b"{\"1\": {\n]").unwrap_err();
        assert_eq!(error.to_string(), "read `c.json` as a JSON object");
        assert!(Config::read("c.json", b"[1]").is_err());
    }
}
