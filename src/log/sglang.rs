//! SGLang's own lines: configuration files, batches, captured sizes, limits, dispatch identity.
//!
//! Each reader takes the bytes around its tag and returns what they report, or `None` for a torn line. Wordings:
//! SGLang 0.5.5 to 0.5.23.

use serde::Serialize;

use super::cursor::{Cursor, find, lossy, rfind, trailing_number};
use super::plausible;

/// A configuration file of SGLang's Triton block-FP8 kernel that a server looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConfigFile {
    pub(super) n: u32,
    pub(super) k: u32,
    pub(super) device: String,
    pub(super) path: String,
}

/// Sizes a server captured graphs for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Capture {
    /// What was captured: `decode`, or the words between `Capture` and `CUDA graph`, such as `target decode`,
    /// `target prefill`, `draft decode`.
    pub role: String,
    /// What the sizes count.
    pub unit: CaptureUnit,
    /// The sizes, as listed.
    pub sizes: Vec<u32>,
    /// Tokens per request of a decode capture: M is this times the size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_request: Option<u32>,
}

/// What the sizes of a [`Capture`] count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureUnit {
    Bs,
    NumTokens,
}

/// The scheduler's resolved limits; `None` where the line does not have one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Limits {
    /// Tokens in the KV pool.
    pub max_total_num_tokens: Option<u32>,
    /// Tokens of one prefill chunk; `None` also when chunking is off.
    pub chunked_prefill_size: Option<u32>,
    /// Tokens of one prefill batch.
    pub max_prefill_tokens: Option<u32>,
    /// Most requests that run at the same time.
    pub max_running_requests: Option<u32>,
}

/// What the log line of a decode batch reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decode {
    pub(super) requests: u32,
    /// Whether the line reports that no graph was used.
    pub(super) eager: bool,
}

/// Most sizes a capture list may have: 1…4096 with padding off, and then some.
const SIZES_MAX: usize = 8192;

/// Longest path or identity kept.
const TEXT_MAX: usize = 1024;

/// `<path>/N=…,K=…,device_name=…,dtype=fp8_w8a8,block_shape=[…].json` after either configuration tag.
///
/// `text` starts after the tag. The tag of the hit line is used by other kernels too; only the block-FP8 one counts.
pub(super) fn config_file(text: &[u8], hit: bool) -> Option<Result<ConfigFile, &'static str>> {
    const TORN: &str = "torn: no complete `N=…,K=…,device_name=…` file name";
    if hit {
        let end = find(text, b".json for ");
        let Some(end) = end else {
            return Some(Err(TORN));
        };
        if !text[end..].starts_with(b".json for W8A8 Block FP8 kernel") {
            return None;
        }
    }
    let read = || {
        let end = find(text, b".json")?;
        let text = &text[..end + b".json".len()];
        let name = rfind(text, b"/N=").map_or(0, |slash| slash + 1);
        let mut cursor = Cursor::new(&text[name..]);
        if name == 0 {
            cursor.until(b"N=")?;
        } else {
            cursor.eat(b"N=")?;
        }
        let n = cursor.number()?;
        cursor.eat(b",K=")?;
        let k = cursor.number()?;
        cursor.eat(b",device_name=")?;
        let device = lossy(cursor.until(b",dtype=")?, TEXT_MAX);
        plausible::nk(n, k).ok()?;
        let path = find(text, b"not found at ").map_or(0, |at| at + 13);
        Some(ConfigFile {
            n,
            k,
            device,
            path: lossy(text[path..].trim_ascii(), TEXT_MAX),
        })
    };
    Some(read().ok_or(TORN))
}

/// `Decode batch, #running-req: 32, … cuda graph: True, …`: `before` ends where the tag starts.
pub(super) fn decode(before: &[u8], text: &[u8], numbered: bool) -> Option<Decode> {
    if numbered {
        let (before, _) = trailing_number(before)?;
        before.ends_with(b"Decode batch [").then_some(())?;
    } else {
        before.ends_with(b"Decode batc").then_some(())?;
    }
    let requests = Cursor::new(text).number()?;
    plausible::m(requests).ok()?;
    let graph = b"cuda graph: ";
    // `F` is rarer in these lines than `c`.
    let eager = memchr::memchr_iter(b'F', text)
        .any(|at| text[at..].starts_with(b"False") && text[..at].ends_with(graph));
    Some(Decode { requests, eager })
}

/// New tokens of `Prefill batch, #new-seq: 8, #new-token: 8192, #cached-token: 0, …`.
pub(super) fn prefill(before: &[u8]) -> Option<u32> {
    let (before, tokens) = trailing_number(before)?;
    before.ends_with(b"#new-token: ").then_some(())?;
    plausible::m(tokens).ok()?;
    let near = &before[before.len().saturating_sub(96)..];
    let start = rfind(near, b"Prefill batch")?;
    let in_one_line = memchr::memchr2(b'\n', b'\r', &near[start..]).is_none();
    in_one_line.then_some(tokens)
}

/// Parses `[1, 2, 4]`, starting after the bracket.
fn sizes(text: &[u8]) -> Option<Vec<u32>> {
    let mut cursor = Cursor::new(text);
    let mut sizes = Vec::new();
    loop {
        sizes.push(cursor.number()?);
        if cursor.eat(b"]").is_some() {
            return Some(sizes);
        }
        cursor.eat(b",")?;
        cursor.blanks();
        if sizes.len() >= SIZES_MAX {
            return None;
        }
    }
}

/// Parses `Capture cuda graph bs [1, 2, 4]`.
pub(super) fn capture_list(text: &[u8]) -> Option<Capture> {
    Some(Capture {
        role: "decode".to_owned(),
        unit: CaptureUnit::Bs,
        sizes: sizes(text)?,
        tokens_per_request: None,
    })
}

/// Parses `Capture target decode CUDA graph begin. backend=full, num_tokens_per_req=1, bs=[1, 2, 4], …`.
pub(super) fn capture(before: &[u8], text: &[u8]) -> Option<Capture> {
    let near = &before[before.len().saturating_sub(64)..];
    let start = rfind(near, b"Capture ")? + b"Capture ".len();
    let role = &near[start..];
    if memchr::memchr3(b'\n', b'\r', 0x1b, role).is_some() {
        return None;
    }
    let list = |name: &[u8]| {
        let at = find(text, name)?;
        sizes(&text[at + name.len()..])
    };
    let (unit, sizes) = list(b" bs=[")
        .map(|sizes| (CaptureUnit::Bs, sizes))
        .or_else(|| list(b" num_tokens=[").map(|sizes| (CaptureUnit::NumTokens, sizes)))?;
    Some(Capture {
        role: lossy(role, 64),
        unit,
        sizes,
        tokens_per_request: field(text, b"num_tokens_per_req="),
    })
}

/// Parses `max_total_num_tokens=…, chunked_prefill_size=…, max_prefill_tokens=…, max_running_requests=…`, starting
/// after the first `=`.
pub(super) fn limits(text: &[u8]) -> Option<Limits> {
    let max_running_requests = field(text, b"max_running_requests=");
    max_running_requests?;
    Some(Limits {
        max_total_num_tokens: Cursor::new(text).number(),
        chunked_prefill_size: field(text, b"chunked_prefill_size="),
        max_prefill_tokens: field(text, b"max_prefill_tokens="),
        max_running_requests,
    })
}

fn field(text: &[u8], name: &[u8]) -> Option<u32> {
    let at = find(text, name)?;
    Cursor::new(&text[at + name.len()..]).number()
}

/// The identity after `block_quant w8a8_block_fp8_linear=`: `qualified name (module)`, or the rest of the line.
pub(super) fn dispatch(text: &[u8]) -> Option<String> {
    let mut cursor = Cursor::new(text);
    let name = cursor.run(|byte| byte.is_ascii_graphic() && byte != b'(');
    let plain = !name.is_empty() && cursor.eat(b" (").is_some();
    let module =
        cursor.run(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'?'));
    let identity = if plain && !module.is_empty() && cursor.eat(b")").is_some() {
        &text[..text.len() - cursor.rest().len()]
    } else {
        // `repr` of a partial or of an object: colour codes end it.
        let end = memchr::memchr(0x1b, text).unwrap_or(text.len());
        text[..end].trim_ascii()
    };
    (!identity.is_empty()).then(|| lossy(identity, TEXT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_lines_give_n_k_and_device() {
        let text = b". Performance might be sub-optimal! Config file not found at /opt/N=1/configs/N=6144,K=4096,device_name=NVIDIA_H100_80GB_HBM3,dtype=fp8_w8a8,block_shape=[128, 128].json";
        let file = config_file(text, false).unwrap().unwrap();
        assert_eq!(
            (file.n, file.k, file.device.as_str()),
            (6144, 4096, "NVIDIA_H100_80GB_HBM3")
        );
        assert!(file.path.starts_with("/opt/N=1/configs/N=6144"));
        let hit = b"/c/N=512,K=7168,device_name=X,dtype=fp8_w8a8,block_shape=[128, 128].json for W8A8 Block FP8 kernel.";
        assert_eq!(config_file(hit, true).unwrap().unwrap().n, 512);
        let moe = b"/c/E=256,N=256,device_name=X.json for MoE layer.";
        assert_eq!(config_file(moe, true), None, "another kernel's file");
        assert!(config_file(b" at /c/N=6144,K=40", false).unwrap().is_err());
    }

    #[test]
    fn batch_lines_are_told_apart() {
        let rest = b"32, #full token: 53587, cuda graph: True, gen throughput";
        let batch = Decode {
            requests: 32,
            eager: false,
        };
        assert_eq!(decode(b"[x] Decode batc", rest, false), Some(batch));
        assert_eq!(decode(b"[x] Decode batch [17", rest, true), Some(batch));
        assert_eq!(decode(b"[x] Prefill batc", rest, false), None);
        assert_eq!(
            decode(b"Decode batc", b"7, cuda graph: False, x", false),
            Some(Decode {
                requests: 7,
                eager: true
            })
        );
        assert_eq!(
            prefill(b"Prefill batch [3], #new-seq: 8, #new-token: 8192"),
            Some(8192)
        );
        assert_eq!(prefill(b"#new-seq: 8, #new-token: 8192"), None);
        assert_eq!(prefill(b"Prefill batch, #new-seq: 8, #new-token: 0"), None);
    }

    #[test]
    fn captured_sizes_are_read_in_both_forms() {
        assert_eq!(capture_list(b"1, 2, 4] and more").unwrap().sizes, [1, 2, 4]);
        assert_eq!(capture_list(b"1, 2, 4"), None);
        let text = b". backend=full, num_tokens_per_req=2, bs=[1, 2, 4, 8], avail mem=13.55 GB";
        let decode = capture(b"[2026] Capture target decode", text).unwrap();
        assert_eq!(
            (decode.role.as_str(), decode.tokens_per_request),
            ("target decode", Some(2))
        );
        assert_eq!(
            (decode.unit, decode.sizes),
            (CaptureUnit::Bs, vec![1, 2, 4, 8])
        );
        let prefill = capture(b"Capture target prefill", b". num_tokens=[4, 8], x").unwrap();
        assert_eq!(prefill.unit, CaptureUnit::NumTokens);
        assert_eq!(capture(b"Capture draft", b" end. elapsed=1 s"), None);
    }

    #[test]
    fn limits_and_identities_are_read() {
        let text = b"393044, chunked_prefill_size=-1, max_prefill_tokens=16384, max_running_requests=4096, x";
        let limits = limits(text).unwrap();
        assert_eq!(limits.max_running_requests, Some(4096));
        assert_eq!(limits.chunked_prefill_size, None);
        assert_eq!(
            dispatch(b"aiter_w8a8_block_fp8_linear (sglang.srt.fp8_utils)\x1b[0m 3%|").as_deref(),
            Some("aiter_w8a8_block_fp8_linear (sglang.srt.fp8_utils)")
        );
        assert_eq!(
            dispatch(b"functools.partial(<function f at 0x7>, a=1) (functools)").as_deref(),
            Some("functools.partial(<function f at 0x7>, a=1) (functools)")
        );
        assert_eq!(dispatch(b"  "), None);
    }
}
