//! aiter's Triton GEMM for block FP8: its JSON files, one for an architecture and one more for each (N, K), and the
//! look-up in them by M. They are in `aiter/ops/triton/configs/gemm` of a tree; e4048607 also looks for files without
//! the architecture in their names in `<gfx>/triton/gemm/gemm_a8w8_blockscale`, but ships none for this GEMM there,
//! and those are not read here.
//!
//! SGLang calls this kernel on AMD by default from 0.5.6 on, and it is the only one whose files take effect without a
//! switch. The rules are those of aiter (MIT): `_get_config` of `_triton_kernels/gemm_a8w8_blockscale.py` at v0.1.7,
//! `get_gemm_config` of `ops/triton/utils/gemm_config_utils.py` since.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::revision::Revision;
use super::shapes::CountedShape;

/// Bounds of the keys `M_LEQ_x` and `M_GEQ_x`, smallest first; 1 is one of them only since e4048607.
const BOUNDS: [u32; 13] = [1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];

/// Parameters that each configuration has in every file that aiter ships (744 of them at e4048607). The kernel has no
/// default for any.
const REQUIRED: [&str; 7] = [
    "BLOCK_SIZE_M",
    "BLOCK_SIZE_N",
    "BLOCK_SIZE_K",
    "GROUP_SIZE_M",
    "num_warps",
    "num_stages",
    "NUM_KSPLIT",
];

/// Scale blocks along K: the kernel asserts that its tile equals one.
const GROUP_K: u64 = 128;

/// The name of a file: `gfx942-GEMM-A8W8_BLOCKSCALE-N=2112-K=7168.json`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileName {
    /// Architecture.
    pub gfx: String,
    /// Whether it is for weights that are shuffled when they are loaded, which is another kernel.
    pub preshuffled: bool,
    /// N and K of the weight; `None` in the file for all other weights.
    pub weight: Option<(u32, u32)>,
}

/// The text is not the name of such a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read the name as gfx…-GEMM-A8W8_BLOCKSCALE[_PRESHUFFLED][-N=…-K=…].json")]
pub struct OtherName;

impl FileName {
    /// The file that serves every weight without its own.
    #[must_use]
    pub fn default_of(&self) -> Self {
        Self {
            weight: None,
            ..self.clone()
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shuffled = if self.preshuffled { "_PRESHUFFLED" } else { "" };
        write!(formatter, "{}-GEMM-A8W8_BLOCKSCALE{shuffled}", self.gfx)?;
        if let Some((n, k)) = self.weight {
            write!(formatter, "-N={n}-K={k}")?;
        }
        formatter.write_str(".json")
    }
}

impl FromStr for FileName {
    type Err = OtherName;

    fn from_str(text: &str) -> Result<Self, OtherName> {
        let stem = text.strip_suffix(".json").ok_or(OtherName)?;
        let (gfx, rest) = stem.split_once("-GEMM-A8W8_BLOCKSCALE").ok_or(OtherName)?;
        let is_gfx = gfx.strip_prefix("gfx").is_some_and(|number| {
            !number.is_empty() && number.chars().all(|c| c.is_ascii_alphanumeric())
        });
        let (preshuffled, rest) = match rest.strip_prefix("_PRESHUFFLED") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let weight = match rest.strip_prefix("-N=") {
            None if rest.is_empty() => None,
            None => return Err(OtherName),
            Some(sides) => {
                let (n, k) = sides.split_once("-K=").ok_or(OtherName)?;
                let side = |text: &str| text.parse().ok().filter(|side| *side > 0).ok_or(OtherName);
                Some((side(n)?, side(k)?))
            }
        };
        let name = Self {
            gfx: gfx.to_owned(),
            preshuffled,
            weight,
        };
        // A number with a sign or leading zeros is in no file name that is looked up.
        (is_gfx && name.to_string() == text)
            .then_some(name)
            .ok_or(OtherName)
    }
}

/// Why no row is tuned for the file of this name, if it belongs to another of aiter's Triton GEMMs.
///
/// Of those for FP8 weights, 19 releases of SGLang from 0.5.6 to 0.5.23 import two (`aiter.ops.triton`): the
/// block-scaled GEMM and the batched one of MLA; 0.5.5 imports none.
pub fn refusal(name: &str) -> Option<&'static str> {
    let stem = name
        .strip_suffix(".json")
        .filter(|stem| stem.starts_with("gfx"))?;
    if stem.contains("-BATCHED_GEMM-A8W8-A_PER_TOKEN_GROUP_PREQUANT") {
        return Some(
            "it is of the batched GEMM of MLA's absorbed projections, for which no row is tuned",
        );
    }
    let (_, kernel) = stem.split_once("-GEMM-")?;
    if kernel.starts_with("A8W8_BLOCKSCALE_PRESHUFFLED") {
        return Some(
            "it is of the GEMM for preshuffled weights, which SGLang never calls itself: rows of aiter's CSV tables whose libtype is triton do",
        );
    }
    if name.parse::<FileName>().is_ok() {
        return None;
    }
    Some(
        if kernel.starts_with("A8W8-")
            || kernel.starts_with("A8W8_PER_TOKEN_SCALE")
            || kernel == "A8W8"
        {
            "it is of a GEMM with a scale for each row, which SGLang never calls: such weights run `gemm_a8w8_bpreshuffle`"
        } else {
            "it is of another of aiter's Triton kernels, for which no row is tuned"
        },
    )
}

/// A range of M that one row serves, by its upper bound; the last bucket has none.
pub type Bucket = Option<u32>;

/// The shapes to race: for each weight and bucket the M with most calls (of equals the larger), in the order in which
/// they were given. `rules` may be those of the revision with the most bounds, because its buckets are subsets of any
/// other's.
pub fn representatives(shapes: &[CountedShape], rules: Rules) -> Vec<CountedShape> {
    let mut chosen: BTreeMap<_, &CountedShape> = BTreeMap::new();
    for one in shapes {
        let rank = |shape: &CountedShape| (shape.records, shape.shape.m);
        let there = chosen
            .entry((one.shape.weight(), rules.bucket(one.shape.m)))
            .or_insert(one);
        if rank(one) > rank(there) {
            *there = one;
        }
    }
    let kept: Vec<&CountedShape> = chosen.into_values().collect();
    shapes
        .iter()
        .filter(|one| kept.iter().any(|kept| std::ptr::eq(*kept, *one)))
        .cloned()
        .collect()
}

/// How a revision of aiter selects a configuration by M.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// By names of sizes (`small`, `medium_M64`, `xlarge`): v0.1.7.
    Names,
    /// The first `M_LEQ_x` that M satisfies, from the given bound on, then the last `M_GEQ_x`, then `any`: v0.1.9 on.
    Bounds {
        /// The smallest x.
        from: u32,
    },
}

impl From<Revision> for Rules {
    fn from(revision: Revision) -> Self {
        match revision {
            Revision::A => Self::Names,
            Revision::B | Revision::P => Self::Bounds { from: 4 },
            _ => Self::Bounds { from: 1 },
        }
    }
}

impl Rules {
    /// The bounds, ascending; empty where keys are names.
    pub fn bounds(self) -> Vec<u32> {
        match self {
            Self::Names => Vec::new(),
            Self::Bounds { from } => BOUNDS.into_iter().filter(|bound| *bound >= from).collect(),
        }
    }

    /// The bucket that contains `m`: the M above one bound up to the next.
    pub fn bucket(self, m: u32) -> Bucket {
        self.bounds().into_iter().find(|bound| m <= *bound)
    }

    /// The first and the last M of the bucket that contains `m`; the last bucket has no end, so its last M is `m`.
    pub fn ends(self, m: u32) -> (u32, u32) {
        let below = self.bounds().into_iter().rfind(|bound| *bound < m);
        (below.unwrap_or(0) + 1, self.bucket(m).unwrap_or(m))
    }

    /// The keys that are tried for `m`, in order.
    pub fn keys(self, m: u32) -> Vec<String> {
        let mut keys = match self {
            Self::Names => names(m),
            Self::Bounds { .. } => {
                let bounds = self.bounds();
                let at_most = bounds.iter().filter(|bound| m <= **bound);
                let at_least = bounds.iter().rev().filter(|bound| m >= **bound);
                at_most
                    .map(|bound| format!("M_LEQ_{bound}"))
                    .chain(at_least.map(|bound| format!("M_GEQ_{bound}")))
                    .collect()
            }
        };
        keys.push("any".to_owned());
        keys
    }

    /// Whether a key is looked up for some M.
    pub fn knows(self, key: &str) -> bool {
        let bound = |prefix: &str| key.strip_prefix(prefix)?.parse::<u32>().ok();
        key == "any"
            || match self {
                Self::Names => {
                    let sizes = [
                        1, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768,
                    ];
                    sizes
                        .iter()
                        .any(|&m| names(m).iter().any(|name| name == key))
                }
                Self::Bounds { from } => bound("M_LEQ_")
                    .or_else(|| bound("M_GEQ_"))
                    .is_some_and(|bound| bound >= from && BOUNDS.contains(&bound)),
            }
    }
}

/// The names of v0.1.7 for `m`, before `any`. If a file lacks the size, `any` follows immediately: the branches are
/// exclusive.
fn names(m: u32) -> Vec<String> {
    let rounded = m.next_power_of_two();
    // `small` is tried first; if a file lacks it, the branch for up to 128 rows is entered, which knows 32 to 128.
    let mut names = Vec::new();
    if m < 32 {
        names.push("small".to_owned());
    }
    match m {
        0..=128 if rounded >= 32 => names.push(format!("medium_M{rounded}")),
        0..=128 => {}
        129..=256 => names.extend([
            "large".to_owned(),
            format!("xlarge_M{rounded}"),
            "xlarge".to_owned(),
        ]),
        _ => names.extend([format!("xlarge_M{rounded}"), "xlarge".to_owned()]),
    }
    names
}

/// A file's configurations by key.
#[derive(Clone, Debug, PartialEq)]
pub struct Configs(BTreeMap<String, Map<String, Value>>);

/// Why aiter could not use a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigsError {
    #[error("read it as JSON: {0}")]
    Json(String),
    /// Not an object of objects.
    #[error("find a configuration behind each key: `{0}` holds none")]
    NoConfiguration(String),
}

impl Configs {
    /// Parses a file's JSON.
    pub fn read(bytes: &[u8]) -> Result<Self, ConfigsError> {
        let whole: Value =
            serde_json::from_slice(bytes).map_err(|error| ConfigsError::Json(error.to_string()))?;
        let Value::Object(whole) = whole else {
            return Err(ConfigsError::NoConfiguration("the file".to_owned()));
        };
        Self::of(whole)
    }

    /// The configurations in `whole`, which must be an object of objects.
    pub fn of(whole: Map<String, Value>) -> Result<Self, ConfigsError> {
        let mut configs = BTreeMap::new();
        for (key, value) in whole {
            match value {
                Value::Object(config) => {
                    configs.insert(key, config);
                }
                _ => return Err(ConfigsError::NoConfiguration(key)),
            }
        }
        Ok(Self(configs))
    }

    /// How many configurations the file has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The keys of the file.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The configuration that serves `m`, with its key; `None` where aiter raises.
    pub fn find(&self, rules: Rules, m: u32) -> Option<(&str, &Map<String, Value>)> {
        rules.keys(m).into_iter().find_map(|key| {
            let (key, config) = self.0.get_key_value(&key)?;
            Some((key.as_str(), config))
        })
    }

    /// What is wrong with the file, worst first.
    pub fn faults(&self, rules: Rules) -> Vec<Fault> {
        let mut faults = Vec::new();
        if let Some(m) = (0..15)
            .map(|power| 1 << power)
            .find(|&m| self.find(rules, m).is_none())
        {
            faults.push(Fault::Raises { m });
        }
        for (key, config) in &self.0 {
            let missing: Vec<&'static str> = REQUIRED
                .into_iter()
                .filter(|name| !config.contains_key(*name))
                .collect();
            if !missing.is_empty() {
                faults.push(Fault::Incomplete {
                    key: key.clone(),
                    missing,
                });
            }
            match config.get("BLOCK_SIZE_K").and_then(Value::as_u64) {
                Some(GROUP_K) | None => {}
                Some(block_k) => faults.push(Fault::Asserts {
                    key: key.clone(),
                    block_k,
                }),
            }
            if !rules.knows(key) {
                faults.push(Fault::NeverFound { key: key.clone() });
            }
        }
        faults.sort();
        faults
    }
}

impl From<Configs> for Map<String, Value> {
    fn from(configs: Configs) -> Self {
        let rows = configs.0.into_iter();
        rows.map(|(key, row)| (key, Value::Object(row))).collect()
    }
}

/// A problem with a file, by its effect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// For some M no key matches.
    Raises {
        /// The smallest power of two for which this is so.
        m: u32,
    },
    /// A tile along K that differs from the scale block.
    Asserts { key: String, block_k: u64 },
    /// Parameters that the kernel needs are missing.
    Incomplete {
        key: String,
        missing: Vec<&'static str>,
    },
    /// A key that is never looked up.
    NeverFound { key: String },
}

impl Fault {
    /// Whether it stops a server.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::NeverFound { .. })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raises { m } => write!(
                formatter,
                "no key holds for M = {m} and there is no `any`: aiter raises KeyError"
            ),
            Self::Asserts { key, block_k } => write!(
                formatter,
                "`{key}` has BLOCK_SIZE_K = {block_k}; the kernel asserts that it is the scale block, {GROUP_K}"
            ),
            Self::Incomplete { key, missing } => {
                write!(formatter, "`{key}` lacks {}", missing.join(", "))
            }
            Self::NeverFound { key } => write!(
                formatter,
                "`{key}` is never looked for: its bound is none that aiter tries"
            ),
        }
    }
}

#[cfg(test)]
#[path = "aiter_triton_tests.rs"]
mod tests;
