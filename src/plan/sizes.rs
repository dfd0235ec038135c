//! Which M a server runs: captured decode sizes and prefill chunks.
//!
//! Source: SGLang 0.5.5 to 0.5.23, `server_args.py` and the graph runner's capture list.

use crate::table::lookup::padded_m;

/// The server's settings for capturing decode graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture {
    /// `--cuda-graph-max-bs`: the largest batch size to capture.
    pub max_bs: u32,
    /// `--max-running-requests`, where known.
    pub max_running: Option<u32>,
    /// Whether speculative decoding is on, which uses smaller steps.
    pub speculative: bool,
    /// Sizes must be multiples of this (attention ranks under DP attention).
    pub multiple_of: u32,
}

/// Most requests for which a graph is captured.
const MOST_REQUESTS: u32 = 65_536;

/// The batch sizes that graphs are captured for, ascending.
pub fn capture_list(capture: &Capture) -> Vec<u32> {
    let max = capture.max_bs.min(MOST_REQUESTS);
    let mut sizes: Vec<u32> = if capture.speculative {
        let steps = [(1..=8, 1), (10..=32, 2), (40..=64, 4), (72..=256, 8)];
        let mut sizes: Vec<u32> = steps
            .into_iter()
            .flat_map(|(range, step)| range.step_by(step))
            .collect();
        sizes.extend((272..=max.max(272)).step_by(16));
        sizes
    } else {
        let mut sizes = vec![1, 2, 4, 8, 12];
        sizes.extend((16..=256).step_by(8));
        sizes.extend((272..=496).step_by(16));
        sizes.extend((512..=max.max(512)).step_by(32));
        sizes
    };
    // 0.5.10.post1 and later also capture the largest size itself.
    sizes.push(max);
    if let Some(most) = capture.max_running {
        sizes.push(most.min(max));
        sizes.retain(|size| *size <= most);
    }
    let multiple = capture.multiple_of.max(1);
    sizes.retain(|size| *size >= 1 && *size <= max && size % multiple == 0);
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// SGLang's defaults on a device with this much memory: chunked prefill size, and the largest batch size that is
/// captured.
pub fn defaults(memory_gib: Option<u32>, tp: u32) -> (u32, u32) {
    let by_tp = |few: u32, many: u32| if tp < 4 { few } else { many };
    match memory_gib {
        None => (4096, 160),
        Some(gib) if gib >= 160 => (16384, 512),
        Some(gib) if gib >= 60 => (8192, by_tp(256, 512)),
        Some(gib) if gib >= 35 => (4096, by_tp(32, 160)),
        Some(gib) if gib >= 20 => (2048, by_tp(24, 80)),
        Some(_) => (2048, 8),
    }
}

/// Memory of a device in GiB, by architecture and compute units or by device name.
pub fn memory_gib(gfx: &str, cu_num: u32, device_name: Option<&str>) -> Option<u32> {
    if let Some(name) = device_name {
        let name = name.replace(' ', "_");
        let parts = [
            ("NVIDIA_H100", 80),
            ("NVIDIA_H800", 80),
            ("NVIDIA_H200", 141),
            ("NVIDIA_H20", 96),
            ("NVIDIA_B200", 180),
            ("NVIDIA_GB200", 186),
            ("NVIDIA_L40", 48),
            ("NVIDIA_L20", 48),
            ("AMD_Instinct_MI3", 192),
        ];
        return parts
            .into_iter()
            .find(|(part, _)| name.starts_with(part))
            .map(|(_, gib)| gib);
    }
    match (gfx, cu_num) {
        ("gfx942", 304 | 80) => Some(192),
        ("gfx942", 228) => Some(128),
        ("gfx950", 256) => Some(288),
        _ => None,
    }
}

/// The M whose rows ensure that every prefill of up to `chunk` tokens finds a row: the whole chunk, and the coarse
/// grid below it.
pub fn prefill_cover(chunk: u32, n: u32, k: u32) -> Vec<u32> {
    let mut cover: Vec<u32> = (0..32)
        .map(|power| 1u32 << power)
        .take_while(|m| *m < chunk)
        .chain([chunk])
        .map(|m| padded_m(1, m, n, k))
        .chain([chunk])
        .filter(|m| *m >= 16)
        .collect();
    cover.sort_unstable();
    cover.dedup();
    cover
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(max_bs: u32) -> Capture {
        Capture {
            max_bs,
            max_running: None,
            speculative: false,
            multiple_of: 1,
        }
    }

    #[test]
    fn lists_have_the_lengths_that_public_logs_show() {
        assert_eq!(capture_list(&capture(512)).len(), 52);
        let list = capture_list(&capture(256));
        assert_eq!(list.len(), 36);
        assert_eq!(list[..7], [1, 2, 4, 8, 12, 16, 24]);
        assert_eq!(capture_list(&capture(23)), [1, 2, 4, 8, 12, 16, 23]);
        assert_eq!(
            capture_list(&Capture {
                max_bs: u32::MAX,
                ..capture(0)
            })
            .last(),
            Some(&65_536)
        );
        assert!(capture_list(&capture(0)).is_empty());
    }

    #[test]
    fn the_request_pool_and_attention_ranks_cut_the_list() {
        let pooled = Capture {
            max_running: Some(20),
            ..capture(512)
        };
        assert_eq!(capture_list(&pooled), [1, 2, 4, 8, 12, 16, 20]);
        let shared = Capture {
            multiple_of: 8,
            ..capture(32)
        };
        assert_eq!(capture_list(&shared), [8, 16, 24, 32]);
        let draft = Capture {
            speculative: true,
            ..capture(16)
        };
        assert_eq!(
            capture_list(&draft),
            [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
        );
    }

    #[test]
    fn the_cover_makes_every_prefill_hit() {
        for (chunk, n) in [
            (8192, 512),
            (16384, 7168),
            (16384, 512),
            (5000, 7168),
            (1, 1),
        ] {
            let cover = prefill_cover(chunk, n, 7168);
            for m in 9..=chunk {
                let found = [m, padded_m(0, m, n, 7168), padded_m(1, m, n, 7168)];
                assert!(
                    found.iter().any(|m| cover.contains(m)),
                    "M={m} chunk={chunk} N={n}"
                );
            }
        }
    }
}
