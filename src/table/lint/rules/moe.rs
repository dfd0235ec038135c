//! Rules about SGLang's fused-MoE tables. Sources: SGLang 0.5.5 to 0.5.23, `fused_moe_triton_config.py` and `fused_moe.py`; examples
//! are in the form of its files (Apache-2.0).

use super::super::Severity::{Error, Warning};
use super::{Example, Rule};

pub const BLOCK_K_ABOVE_SCALE: Rule = Rule {
    id: "block-k-above-scale",
    severity: Error,
    title: "BLOCK_SIZE_K spans several scale blocks",
    why: "`fused_moe_kernel` loads one vector of scales per step along K (`offs_ks = k_start // group_k`) and applies it to the whole tile: wrong numbers at full speed, without an error. No release up to 0.5.23 checks it; vLLM lowers the value when it loads the file. Run on an H200, such a row was 38 % off.",
    fix: "Tune the entry again with a BLOCK_SIZE_K that divides the scale block.",
    example: Example {
        file: "E=512,N=256,device_name=NVIDIA_H100_80GB_HBM3,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/block-k-above-scale.json"),
        found: "That table of SGLang 0.5.9 to 0.5.23, `triton_3_5_1`, at M = 64, 128, 256 and 512.",
    },
};

pub const UP_DOWN_BLOCK_M: Rule = Rule {
    id: "up-down-block-m",
    severity: Error,
    title: "The up and down rows differ in BLOCK_SIZE_M",
    why: "Both GEMMs of a fused MoE share one sort of the tokens, made for the up row's BLOCK_SIZE_M. Up to 0.5.12.post1 a different value is an AssertionError at the first such M; from 0.5.13 on (then a warning) the down row silently gets the up row's value, so the kernel that runs is not the one that was tuned.",
    fix: "Give both tables the same keys, and each key one BLOCK_SIZE_M.",
    example: Example {
        file: "E=256,N=512,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128]_down.json",
        text: include_str!("examples/up-down-block-m.json"),
        found: "",
    },
};

pub const DOWN_OF_OTHER_TRITON: Rule = Rule {
    id: "down-of-other-triton",
    severity: Warning,
    title: "The down rows come from another Triton version's folder",
    why: "The tables of the up and of the down projection are searched for separately, each in the running Triton's folder first and then in others: a new up table without a `_down` is paired with an old one, and a `_down` without an up table with another version's or with the default. Their BLOCK_SIZE_M may differ.",
    fix: "Put both tables into one folder; a copy of the up table named `…_down.json` prevents an old one from being used.",
    example: Example {
        file: "E=256,N=512,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128]_down.json",
        text: include_str!("examples/up-down-block-m.json"),
        found: "Seven up tables of SGLang 0.5.23 in `triton_3_2_0` to `triton_3_4_0`, whose `_down` exists only for a newer Triton.",
    },
};

pub const TRITON_FOLDER_UNREAD: Rule = Rule {
    id: "triton-folder-unread",
    severity: Error,
    title: "The runtime never opens this folder",
    why: "Fused-MoE tables lie in `configs/triton_X_Y_Z`, with the version from `triton.__version__`. If the running version's folder has no table, releases up to 0.5.11 try 3.4.0, 3.3.1, 3.2.0 and 3.1.0 only (a warning for other folders, which an exact match still opens); from 0.5.12 on every folder is tried, and a folder whose name is not a plain numeric version raises ValueError.",
    fix: "Name the folder after `triton.__version__` of the serving interpreter.",
    example: Example {
        file: "sglang/srt/layers/moe/moe_runner/triton_utils/configs/E=128,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/triton-folder-unread.json"),
        found: "`triton_3_3_0` of SGLang 0.5.5 to 0.5.11, and `triton_3_5_1` of 0.5.11, which requires Triton 3.6.0.",
    },
};

pub const SMALL_M_MISSING: Rule = Rule {
    id: "small-m-missing",
    severity: Warning,
    title: "The table has no rows for decode",
    why: "The nearest row serves every M, so a table that starts at 256 serves a single token with tiles made for 256.",
    fix: "Tune the small M too.",
    example: Example {
        file: "E=256,N=512,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/small-m-missing.json"),
        found: "That table of SGLang 0.5.23, `triton_3_6_0`, has the keys 256, 512 and 1024.",
    },
};

pub const UP_ROW_TMA: Rule = Rule {
    id: "up-row-tma",
    severity: Error,
    title: "USE_TMA appears in a row of the up projection",
    why: "From 0.5.18 on it is removed from an up row before the launch; earlier releases pass it to the kernel, which has no such parameter. This is a warning if the release is not known.",
    fix: "Name the release with --sglang, or remove the key from the up table.",
    example: Example {
        file: "E=512,N=128,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/up-row-tma.json"),
        found: "",
    },
};
