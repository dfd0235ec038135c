//! SGLang's lines about the tables of its fused MoE (0.5.5 to 0.5.23, `fused_moe_triton_config.py`).
//!
//! A line names E and N but no M: each process logs it once for each table. A hit means that the file was read, not
//! which row ran. Where there is no table of the down projection the line calls the performance sub-optimal although
//! the up projection's row serves both, so the exact wording decides, not that claim.

use super::cursor::{find, lossy, rfind};
use super::plausible;
use crate::table::moe::name::TableName;

/// What a line reports about a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableStatus {
    Read,
    /// The table of another Triton version was read.
    OtherTriton,
    /// The up projection has no table: the default serves.
    Missing,
    /// The down projection has no table.
    DownMissing,
}

/// A line of SGLang's about a table of its fused MoE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableLine {
    pub(super) status: TableStatus,
    pub(super) name: TableName,
    pub(super) path: String,
}

/// Longest path kept, in bytes.
const PATH_MAX: usize = 1024;
/// The reason given for an incomplete line.
const TORN: &str = "torn: no complete `E=…,N=…,device_name=…` file name";

/// The line around `MoE kernel config`; `None` for other words around it.
pub(super) fn config(before: &[u8], text: &[u8]) -> Option<Result<TableLine, &'static str>> {
    let not_found = |status| {
        let at = find(text, b"not found at ")?;
        Some(line(status, &text[at + b"not found at ".len()..]))
    };
    if let Some(path) = text.strip_prefix(b" from ") {
        return if before.ends_with(b"Using ") {
            Some(line(TableStatus::Read, path))
        } else if before.ends_with(b" use ") {
            Some(line(TableStatus::OtherTriton, path))
        } else {
            None
        };
    }
    // Deterministic inference runs the default as well, but logs it in other words and names no table.
    if before.ends_with(b"Using default ") {
        not_found(TableStatus::Missing)
    } else if text.starts_with(b" with down_moe=False") {
        not_found(TableStatus::DownMissing)
    } else {
        None
    }
}

/// The rest of `Down MoE config file not found at …`.
pub(super) fn down_missing(text: &[u8]) -> Result<TableLine, &'static str> {
    line(TableStatus::DownMissing, text)
}

fn line(status: TableStatus, text: &[u8]) -> Result<TableLine, &'static str> {
    let end = find(text, b".json").ok_or(TORN)? + b".json".len();
    let path = &text[..end.min(PATH_MAX)];
    let start = rfind(path, b"/").map_or(0, |slash| slash + 1);
    let name: TableName = lossy(&path[start..], PATH_MAX).parse().map_err(|_| TORN)?;
    plausible::experts(name.experts, name.n)?;
    let status = match status {
        TableStatus::Missing if name.down => TableStatus::DownMissing,
        status => status,
    };
    Ok(TableLine {
        status,
        path: lossy(path, PATH_MAX),
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "E=128,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128]";

    // The lines as SGLang 0.5.16 wrote them, with `{}` for the file.
    #[test]
    fn each_line_says_what_serves_and_not_whether_it_sounds_bad() {
        let parsed = |line: &str| {
            let line = line.replace("{}", &format!("/opt/c/triton_3_6_0/{NAME}"));
            let tag = "MoE kernel config";
            let at = line.find(tag).unwrap();
            let (before, text) = (&line[..at], &line[at + tag.len()..]);
            config(before.as_bytes(), text.as_bytes())
                .map(|line| line.map(|line| (line.status, line.path)))
        };
        let of = |kind, down: &str| {
            let path = format!("/opt/c/triton_3_6_0/{NAME}{down}.json");
            Some(Ok((kind, path)))
        };
        assert_eq!(
            parsed("[x] Using MoE kernel config from {}.json."),
            of(TableStatus::Read, "")
        );
        let other = "Config file not found at /a/b.json. Fallback to triton version 3.5.1 and use MoE kernel config from {}.json. \
                     Performance might be sub-optimal!";
        assert_eq!(parsed(other), of(TableStatus::OtherTriton, ""));
        let missing = "Using default MoE kernel config. Performance might be sub-optimal! Config file not found at {}.json, you can \
                       create them with https://github.com/sgl-project/sglang/tree/main/benchmark/kernels/fused_moe_triton";
        assert_eq!(parsed(missing), of(TableStatus::Missing, ""));
        let no_down = missing.replace("{}", "{}_down");
        assert_eq!(parsed(&no_down), of(TableStatus::DownMissing, "_down"));
        let old = "Using MoE kernel config with down_moe=False. Performance might be sub-optimal! Config file not found at {}_down.json, x";
        assert_eq!(parsed(old), of(TableStatus::DownMissing, "_down"));
        assert_eq!(
            parsed("Deterministic inference is enabled, using default MoE kernel config."),
            None
        );
        assert_eq!(
            parsed("Using MoE kernel config from /opt/c/E=128,N=7"),
            Some(Err(TORN))
        );
        let down = down_missing(
            format!("/c/{NAME}_down.json; reusing the tuned up-projection").as_bytes(),
        );
        assert_eq!(down.unwrap().status, TableStatus::DownMissing);
    }

    #[test]
    fn a_table_that_no_model_has_is_no_line() {
        for name in ["E=0,N=768", "E=70000,N=768", "E=128,N=0", "E=128,N=9999999"] {
            let text = format!("/c/{name},device_name=NVIDIA_H200.json");
            assert!(down_missing(text.as_bytes()).is_err(), "{name}");
        }
    }
}
