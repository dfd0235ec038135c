//! Rules about the names and contents of the JSON configurations that SGLang and vLLM read. Examples are in the form of the
//! files of SGLang 0.5.23 (Apache-2.0); those that say where they were found have such a file's keys.

use super::super::Severity::{Error, Warning};
use super::{Example, Rule};

pub const FILE_NAME_UNREAD: Rule = Rule {
    id: "file-name-unread",
    severity: Error,
    title: "The runtime never opens a file with this name",
    why: "The name is built from N, K, the device and the block shape and compared byte by byte; one extra or missing blank is enough to run the default configuration, silently on most ranks. SGLang writes a blank after the comma of the block shape, vLLM none. Below a folder `vllm` its spelling applies, elsewhere SGLang's.",
    fix: "Rename the file as the message says.",
    example: Example {
        file: "N=1536,K=7168,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json",
        text: include_str!("examples/file-name-unread.json"),
        found: "The form that vLLM writes (vllm-project/vllm#15322).",
    },
};

pub const DEVICE_NAME_UNKNOWN: Rule = Rule {
    id: "device-name-unknown",
    severity: Warning,
    title: "The device is unknown to gemmtune",
    why: "If no device reports this name the file is never opened.",
    fix: "Compare with `torch.cuda.get_device_name()`, with blanks replaced by underscores.",
    example: Example {
        file: "N=1536,K=7168,device_name=NVIDIA_X900,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/device-name-unknown.json"),
        found: "",
    },
};

pub const KEY_NOT_INTEGER: Rule = Rule {
    id: "key-not-integer",
    severity: Error,
    title: "A key is not an integer",
    why: "The loader converts every key to an integer and raises on the first that is not one, so the whole file is unusable.",
    fix: "Correct or remove the key.",
    example: Example {
        file: "N=1536,K=7168,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/key-not-integer.json"),
        found: "",
    },
};

pub const CONFIG_EMPTY: Rule = Rule {
    id: "config-empty",
    severity: Error,
    title: "A configuration file without entries",
    why: "With no keys there is no nearest one, which is an error at the first GEMM.",
    fix: "Remove the file, or tune.",
    example: Example {
        file: "N=1536,K=7168,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/config-empty.json"),
        found: "",
    },
};

pub const CONFIG_KEY_UNKNOWN: Rule = Rule {
    id: "config-key-unknown",
    severity: Error,
    title: "The kernel does not take this parameter",
    why: "All values are passed on to the Triton launch, which raises on a name it does not know.",
    fix: "Remove it, or correct its spelling.",
    example: Example {
        file: "N=1536,K=7168,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/config-key-unknown.json"),
        found: "",
    },
};

pub const CONFIG_KEY_MISSING: Rule = Rule {
    id: "config-key-missing",
    severity: Error,
    title: "A parameter is missing",
    why: "The launch raises at the first GEMM that uses the entry.",
    fix: "Tune the entry again.",
    example: Example {
        file: "N=1536,K=7168,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/config-key-missing.json"),
        found: "",
    },
};

pub const CONFIG_VALUE_INVALID: Rule = Rule {
    id: "config-value-invalid",
    severity: Error,
    title: "A parameter has a value that the kernel cannot be built with",
    why: "Compilation fails at the first GEMM that uses the entry.",
    fix: "Tune the entry again.",
    example: Example {
        file: "N=1536,K=7168,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/config-value-invalid.json"),
        found: "",
    },
};

pub const BLOCK_K_CLAMPED: Rule = Rule {
    id: "block-k-clamped",
    severity: Warning,
    title: "BLOCK_SIZE_K is changed on loading",
    why: "From 0.5.12.post1 a BLOCK_SIZE_K below the scale block is raised to it (on CUDA only if it does not divide it), so the kernel that runs is not the one that was tuned.",
    fix: "Tune the entry again.",
    example: Example {
        file: "N=1536,K=7168,device_name=AMD_Instinct_MI300X,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/block-k-clamped.json"),
        found: "",
    },
};

pub const M_SET_TRUNCATED: Rule = Rule {
    id: "m-set-truncated",
    severity: Error,
    title: "The small M are missing, as after the multi-GPU overwrite",
    why: "The tuner distributes M values over GPUs, and each GPU overwrote the file, so only one GPU's share is left. By the nearest key every decode runs a configuration made for prefill, up to a third slower (sgl-project/sglang#20366).",
    fix: "Tune the file again with a tuner that merges, such as `gemmtune tune`; until then, removing the file may be faster, because the default then runs.",
    example: Example {
        file: "N=1536,K=7168,device_name=NVIDIA_L20Y,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/m-set-truncated.json"),
        found: "All 13 `NVIDIA_L20Y` files and four `NVIDIA_B200` files of SGLang 0.5.23.",
    },
};

pub const M_SET_SHORT: Rule = Rule {
    id: "m-set-short",
    severity: Warning,
    title: "The large M are missing",
    why: "Every larger M runs the last entry's configuration, including all of prefill.",
    fix: "Tune the larger M too.",
    example: Example {
        file: "N=8192,K=1280,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[32, 32].json",
        text: include_str!("examples/m-set-short.json"),
        found: "Ten `NVIDIA_H200` files with 32 by 32 blocks of SGLang 0.5.23 stop at M = 2 or 65.",
    },
};

pub const M_SET_GAP: Rule = Rule {
    id: "m-set-gap",
    severity: Warning,
    title: "Neighbouring keys are far apart",
    why: "M values between them run a configuration made for another size.",
    fix: "Tune some M in between.",
    example: Example {
        file: "N=1536,K=7168,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/m-set-gap.json"),
        found: "",
    },
};
