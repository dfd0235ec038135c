//! Rules about the JSON files of aiter's Triton GEMM. Examples are in the form of the files of aiter e4048607 (MIT).

use super::super::Severity::{Error, Warning};
use super::{Example, Rule};

/// For some M no key holds.
pub const KEYS_INCOMPLETE: Rule = Rule {
    id: "keys-incomplete",
    severity: Error,
    title: "For some M no key holds",
    why: "aiter takes the first `M_LEQ_x` that holds, then the last `M_GEQ_x`, then `any`; where there is none of them it raises KeyError, and the server ends at the first batch of that size.",
    fix: "Add `any`, which serves every M that no other key takes.",
    example: Example {
        file: "gfx942-GEMM-A8W8_BLOCKSCALE-N=512-K=7168.json",
        text: include_str!("examples/keys-incomplete.json"),
        found: "",
    },
};

/// A key is never looked for.
pub const KEY_NEVER_ASKED: Rule = Rule {
    id: "key-never-asked",
    severity: Warning,
    title: "A key is never looked for",
    why: "Bounds are tried from a fixed list (4, 8, 16 to 8192; 1 as well since e4048607), and v0.1.7 knows names of sizes instead, so another key serves the M that this one was made for.",
    fix: "Name it by a bound of the list, or leave it out.",
    example: Example {
        file: "gfx942-GEMM-A8W8_BLOCKSCALE-N=512-K=7168.json",
        text: include_str!("examples/key-never-asked.json"),
        found: "",
    },
};

/// The tile along K is no scale block.
pub const TILE_NOT_SCALE_BLOCK: Rule = Rule {
    id: "tile-not-scale-block",
    severity: Error,
    title: "The tile along K is no scale block",
    why: "The kernel asserts that BLOCK_SIZE_K is the scale block, 128: the server ends at the first GEMM that the key serves.",
    fix: "Set BLOCK_SIZE_K to 128.",
    example: Example {
        file: "gfx942-GEMM-A8W8_BLOCKSCALE-N=512-K=7168.json",
        text: include_str!("examples/tile-not-scale-block.json"),
        found: "",
    },
};
