//! Rules about the tables of aiter's fused MoE. Examples are copied from aiter e4048607a5 (MIT licence), shortened to a row or
//! two, or made up after such rows.

use super::super::Severity::{Error, Warning};
use super::{Example, Rule};

pub const MOE_KEY_MISSPELT: Rule = Rule {
    id: "moe-key-misspelt",
    severity: Error,
    title: "A cell of a fused-MoE key has a spelling that no look-up uses",
    why: "The look-up compares text: `torch.float8_e4m3fnuz`, `ActivationType.Silu`, `QuantType.per_1x128`. The short forms (`dtypes.fp8`) are for the tuner's input only, so the row serves nothing.",
    fix: "Write the cell as torch prints it, and tune again if the tuner wrote it so.",
    example: Example {
        file: "tuned_fmoe.csv",
        text: include_str!("examples/moe-key-misspelt.csv"),
        found: "",
    },
};

pub const MOE_TOKEN_UNREACHABLE: Rule = Rule {
    id: "moe-token-unreachable",
    severity: Error,
    title: "No fused-MoE look-up asks for this number of tokens",
    why: "Tokens are rounded up before the look-up: to powers of two up to 32768 from v0.1.12 on (also to 131072 from v0.1.14), in coarser steps before that. A row for any other number is never used.",
    fix: "Tune at the power of two above, or remove the row.",
    example: Example {
        file: "tuned_fmoe.csv",
        text: include_str!("examples/moe-token-unreachable.csv"),
        found: "11 rows in six tables of aiter e4048607a5, for example token 40 in `a8w8_blockscale_tuned_fmoe_ds_v3.csv`.",
    },
};

pub const MOE_KEY_TWICE: Rule = Rule {
    id: "moe-key-twice",
    severity: Error,
    title: "One fused-MoE key has two rows",
    why: "Up to v0.1.13 the first call raises `ValueError: DataFrame index must be unique`, even if the rows are equal; later the first row serves and this one does not.",
    fix: "Keep the row that is correct and fast.",
    example: Example {
        file: "tuned_fmoe.csv",
        text: include_str!("examples/moe-key-twice.csv"),
        found: "",
    },
};

pub const MOE_ACTIVATION_SHADOWED: Rule = Rule {
    id: "moe-activation-shadowed",
    severity: Error,
    title: "A row of another activation serves in place of this one",
    why: "v0.1.14 to v0.1.17 and v0.1.19.post1 to e4048607 do not match the activation: of rows that differ only in activation, the first in the file serves, whatever it was tuned for. This row serves nothing, and a call with its activation gets the other row's kernel names.",
    fix: "Deploy a table with only the activation that the model uses.",
    example: Example {
        file: "tuned_fmoe.csv",
        text: include_str!("examples/moe-activation-shadowed.csv"),
        found: "440 rows of aiter e4048607a5, 283 of them in `tuned_fmoe.csv`.",
    },
};

pub const MOE_CELL_EMPTY: Rule = Rule {
    id: "moe-cell-empty",
    severity: Error,
    title: "A cell is empty that the fused-MoE look-up converts to a number",
    why: "From v0.1.13 on `int(nan)` raises `ValueError` in the call that the row would serve. aiter fills such cells when it merges its own tables, but not in the single file that AITER_CONFIG_FMOE names.",
    fix: "Write 0.",
    example: Example {
        file: "tuned_fmoe.csv",
        text: include_str!("examples/moe-cell-empty.csv"),
        found: "",
    },
};

pub const MOE_GFX_EMPTY: Rule = Rule {
    id: "moe-gfx-empty",
    severity: Error,
    title: "The column gfx of a fused-MoE table is empty throughout",
    why: "From v0.1.16 on aiter fills it in from the compute units. pandas reads an empty column as numeric and, from version 3 on, raises `TypeError` when text is written into it: the first call fails.",
    fix: "Fill the column in, or remove it.",
    example: Example {
        file: "tuned_fmoe.csv",
        text: include_str!("examples/moe-gfx-empty.csv"),
        found: "",
    },
};

pub const MOE_TIME_COPIED: Rule = Rule {
    id: "moe-time-copied",
    severity: Warning,
    title: "Twice the tokens take the same time, digit for digit",
    why: "Two measurements are never equal to four decimals: the row was copied from the smaller one, and its kernels were not measured at this size.",
    fix: "Tune the row, or remove it if the default is faster at this size.",
    example: Example {
        file: "tuned_fmoe.csv",
        text: include_str!("examples/moe-time-copied.csv"),
        found: "476 rows of aiter e4048607a5, 252 of them in `a8w8_blockscale_tuned_fmoe_ds_v3.csv`.",
    },
};

pub const MOE_ERR_RATIO_HIGH: Rule = Rule {
    id: "moe-err-ratio-high",
    severity: Warning,
    title: "Many elements of a fused-MoE stage differ from the reference",
    why: "The tuner of e4048607 rejects kernels with more than 10 % differing elements; that of 303a583c accepts up to half. Its reference does not quantise between the stages, so a correct stage 2 kernel differs too; the column does not tell which case this is.",
    fix: "Before you rely on the row, check the kernel against a reference that quantises as the kernel does.",
    example: Example {
        file: "tuned_fmoe.csv",
        text: include_str!("examples/moe-err-ratio-high.csv"),
        found: "276 cells of aiter e4048607a5; tuned rows once took a model's accuracy to 0 without an error (ROCm/aiter#4788).",
    },
};

pub const MOE_EP_UNREACHABLE: Rule = Rule {
    id: "moe-ep-unreachable",
    severity: Warning,
    title: "Under expert parallelism another topk is looked up",
    why: "From v0.1.16 on a call with an expert mask is looked up with one expert less than topk_ids has columns, for a column of masked experts that SGLang and vLLM do not add (ROCm/aiter#3999). A row with the model's topk then serves nothing.",
    fix: "Add the row with topk minus one, or keep both: the key in a log line is what is looked up.",
    example: Example {
        file: "tuned_fmoe.csv",
        text: include_str!("examples/moe-ep-unreachable.csv"),
        found: "",
    },
};

pub const MOE_FALLBACK_ROW: Rule = Rule {
    id: "moe-fallback-row",
    severity: Warning,
    title: "A row for machines without FlyDSL that newer aiter drops",
    why: "v0.1.11 to v0.1.17 serve rows tagged `flydsl_fallback` where the package is missing; v0.1.16.post4, v0.1.18 and later ignore them.",
    fix: "Remove the row if no older aiter will read the table.",
    example: Example {
        file: "tuned_fmoe.csv",
        text: include_str!("examples/moe-fallback-row.csv"),
        found: "14 rows of `gptoss_fp8fp4_tuned_fmoe.csv` of aiter e4048607a5.",
    },
};
