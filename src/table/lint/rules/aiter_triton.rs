//! Rules about the JSON files of aiter's Triton GEMM. Examples are in the form of the files of aiter e4048607 (MIT).

use super::super::Severity::{Error, Warning};
use super::{Example, Rule};

pub const KEYS_INCOMPLETE: Rule = Rule {
    id: "keys-incomplete",
    severity: Error,
    title: "For some M no key applies",
    why: "aiter uses the first `M_LEQ_x` that applies, then the last `M_GEQ_x`, then `any`; if there is none, it raises KeyError, and the server fails at the first batch of that size.",
    fix: "Add `any`, which serves every M that no other key covers.",
    example: Example {
        file: "gfx942-GEMM-A8W8_BLOCKSCALE-N=512-K=7168.json",
        text: include_str!("examples/keys-incomplete.json"),
        found: "",
    },
};

pub const KEY_NEVER_ASKED: Rule = Rule {
    id: "key-never-asked",
    severity: Warning,
    title: "A key is never looked up",
    why: "Bounds are tried from a fixed list (4, 8, 16 to 8192; also 1 since e4048607), and v0.1.7 uses size names instead, so another key serves the M that this one was made for.",
    fix: "Rename it to a bound from the list, or remove it.",
    example: Example {
        file: "gfx942-GEMM-A8W8_BLOCKSCALE-N=512-K=7168.json",
        text: include_str!("examples/key-never-asked.json"),
        found: "",
    },
};

pub const TILE_NOT_SCALE_BLOCK: Rule = Rule {
    id: "tile-not-scale-block",
    severity: Error,
    title: "The tile along K is not the scale block",
    why: "The kernel asserts that BLOCK_SIZE_K equals the scale block, 128: the server fails at the first GEMM that the key serves.",
    fix: "Set BLOCK_SIZE_K to 128.",
    example: Example {
        file: "gfx942-GEMM-A8W8_BLOCKSCALE-N=512-K=7168.json",
        text: include_str!("examples/tile-not-scale-block.json"),
        found: "",
    },
};
