//! How SGLang's Triton block-FP8 kernel finds a configuration: the file of its (N, K), then the nearest M.
//!
//! Source: SGLang 0.5.5 to 0.5.23, `fp8_kernel.py`, `get_w8a8_block_fp8_configs` and `w8a8_block_fp8_matmul`.

use serde_json::{Map, Value};

use super::sglang_json::{Config, Params};

/// What a release does with a tuned `BLOCK_SIZE_K` smaller than the scale block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clamp {
    /// Nothing: before 0.5.12.
    Never,
    /// Raises it to the scale block: 0.5.12 and 0.5.13.
    Always,
    /// Raises it, except on CUDA where it divides the scale block: from 0.5.14 on.
    UnlessDividesOnCuda,
}

impl Clamp {
    /// The rule of an SGLang release, by the first three numbers of its version; an unreadable one counts as the newest.
    pub fn of_release(version: &str) -> Self {
        let mut numbers = version
            .split(|letter: char| !letter.is_ascii_digit())
            .map(|digits| digits.parse::<u32>().ok());
        let mut next = || numbers.next().flatten();
        match (next(), next(), next()) {
            (Some(major), Some(minor), Some(patch)) if (major, minor, patch) < (0, 5, 12) => {
                Self::Never
            }
            (Some(major), Some(minor), Some(patch)) if (major, minor, patch) < (0, 5, 14) => {
                Self::Always
            }
            _ => Self::UnlessDividesOnCuda,
        }
    }

    /// `block_size_k` as passed to the kernel.
    pub fn apply(self, block_size_k: i64, block_k: i64, is_cuda: bool) -> i64 {
        let small = block_size_k < block_k;
        let divides = block_size_k > 0 && block_k % block_size_k == 0;
        match self {
            Self::Always if small => block_k,
            Self::UnlessDividesOnCuda if small && !(is_cuda && divides) => block_k,
            _ => block_size_k,
        }
    }
}

/// The properties of server and device that change the look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Scale block of the weight: N side, K side.
    pub block_shape: (u32, u32),
    /// Whether the device is NVIDIA's.
    pub is_cuda: bool,
    /// The release's clamp rule.
    pub clamp: Clamp,
}

/// The configuration that a file gives for `m`.
#[derive(Clone, Debug, PartialEq)]
pub struct Nearest {
    /// The key nearest to M; of two equally near the first in the file.
    pub key: i64,
    /// The parameters that the kernel is launched with.
    pub config: Map<String, Value>,
    /// Whether `BLOCK_SIZE_K` was raised to the scale block.
    pub clamped: bool,
}

/// Why a file gives no configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Python's `int(key)` raises when the file is loaded.
    #[error("a key of the file is no integer: loading it raises ValueError")]
    KeyNoInteger,
    /// The entry is not an object.
    #[error("the entry of key {0} is no object of parameters")]
    NoObject(i64),
}

/// The key nearest to `m` and its value; of two equally near the first in the file. `None` for a file without
/// entries. Fused MoE selects its rows in the same way.
pub fn row(config: &Config, m: u32) -> Result<Option<(i64, &Params)>, Unusable> {
    let by_m = config.by_m().ok_or(Unusable::KeyNoInteger)?;
    // The first of several least elements.
    let nearest = by_m
        .into_iter()
        .min_by_key(|(key, _)| key.abs_diff(i64::from(m)));
    Ok(nearest)
}

/// The kernel's parameters for `m` if the file of its (N, K) contains `config`; `None` for a file without entries,
/// which counts as no file.
pub fn nearest(config: &Config, m: u32, site: Site) -> Result<Option<Nearest>, Unusable> {
    let Some((key, params)) = row(config, m)? else {
        return Ok(None);
    };
    let Params::Object(pairs) = params else {
        return Err(Unusable::NoObject(key));
    };
    let mut config: Map<String, Value> = pairs.iter().cloned().collect();
    let mut clamped = false;
    let block_k = i64::from(site.block_shape.1);
    if let Some(block_size_k) = config.get_mut("BLOCK_SIZE_K")
        && let Some(size) = block_size_k.as_i64()
    {
        let launched = site.clamp.apply(size, block_k, site.is_cuda);
        clamped = launched != size;
        *block_size_k = launched.into();
    }
    Ok(Some(Nearest {
        key,
        config,
        clamped,
    }))
}

/// The kernel's parameters if there is no file, whatever M is.
pub fn default_config(block_shape: (u32, u32)) -> Map<String, Value> {
    let pairs = [
        ("BLOCK_SIZE_M", 64),
        ("BLOCK_SIZE_N", block_shape.0),
        ("BLOCK_SIZE_K", block_shape.1),
        ("GROUP_SIZE_M", 32),
        ("num_warps", 4),
        ("num_stages", 3),
    ];
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: Site = Site {
        block_shape: (128, 128),
        is_cuda: true,
        clamp: Clamp::UnlessDividesOnCuda,
    };

    fn file(text: &str) -> Config {
        Config::read("t.json", text.as_bytes()).unwrap()
    }

    #[test]
    fn of_two_equally_near_keys_the_first_in_the_file_wins() {
        let up = file(r#"{"16": {"BLOCK_SIZE_M": 1}, "32": {"BLOCK_SIZE_M": 2}}"#);
        let down = file(r#"{"32": {"BLOCK_SIZE_M": 2}, "16": {"BLOCK_SIZE_M": 1}}"#);
        let key = |config: &Config, m| nearest(config, m, SITE).unwrap().unwrap().key;
        assert_eq!([key(&up, 24), key(&down, 24)], [16, 32]);
        assert_eq!([key(&up, 1), key(&up, 25), key(&up, 90_000)], [16, 32, 32]);
        assert_eq!(nearest(&file("{}"), 1, SITE), Ok(None));
        assert_eq!(
            nearest(&file(r#"{"x": {}}"#), 1, SITE),
            Err(Unusable::KeyNoInteger)
        );
        assert_eq!(
            nearest(&file(r#"{"1": 7}"#), 1, SITE),
            Err(Unusable::NoObject(1))
        );
    }

    #[test]
    fn a_small_block_is_clamped_as_the_release_does() {
        let config = file(r#"{"16": {"BLOCK_SIZE_K": 64}}"#);
        let run = |version: &str, is_cuda| {
            let clamp = Clamp::of_release(version);
            let found = nearest(
                &config,
                1,
                Site {
                    is_cuda,
                    clamp,
                    ..SITE
                },
            )
            .unwrap()
            .unwrap();
            (
                found.config["BLOCK_SIZE_K"].as_i64().unwrap(),
                found.clamped,
            )
        };
        assert_eq!(run("0.5.11", true), (64, false));
        assert_eq!(run("0.5.12.post1", true), (128, true));
        assert_eq!(run("0.5.14", true), (64, false));
        assert_eq!(run("0.5.14", false), (128, true));
        assert_eq!(
            Clamp::UnlessDividesOnCuda.apply(96, 128, true),
            128,
            "96 does not divide 128"
        );
        assert_eq!(Clamp::of_release("main"), Clamp::UnlessDividesOnCuda);
    }

    #[test]
    fn the_default_follows_the_scale_block() {
        let config = default_config((128, 32));
        assert_eq!(config["BLOCK_SIZE_N"], 128);
        assert_eq!(config["BLOCK_SIZE_K"], 32);
        assert_eq!(config["num_stages"], 3);
    }
}
