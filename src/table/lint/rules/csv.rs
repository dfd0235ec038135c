//! Rules about aiter's CSV tables. Examples carry real kernel names and times; those that say where
//! they were found are copied from aiter e4048607a5 (MIT licence), shortened to a row or two.

use super::super::Severity::{Error, Warning};
use super::{Example, Rule};

pub const FILE_UNREADABLE: Rule = Rule {
    id: "file-unreadable",
    severity: Error,
    title: "The file is not a table",
    why: "pandas or Python's JSON reader raises on it at the first GEMM, or reads something other than what was meant.",
    fix: "Write the file again with its tuner, or restore the copy from before the last edit.",
    example: Example {
        file: "N=1536,K=7168,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/file-unreadable.json"),
        found: "",
    },
};

pub const LINE_UNREADABLE: Rule = Rule {
    id: "line-unreadable",
    severity: Error,
    title: "A line cannot be read as a row",
    why: "A line with too many cells makes pandas raise for the whole file; a key that is not a number turns the column into text, so that no look-up matches any more. Two rows joined into one come from appending to a file without a final newline.",
    fix: "Split or remove the line.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/line-unreadable.csv"),
        found: "",
    },
};

pub const CELL_NOT_A_NUMBER: Rule = Rule {
    id: "cell-not-a-number",
    severity: Error,
    title: "A number is missing or is not a number",
    why: "The kernel generator and the look-up convert the cell and raise, or run kernel 0 in its place.",
    fix: "Tune the shape again, or remove the row.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/cell-not-a-number.csv"),
        found: "",
    },
};

pub const COLUMN_MISSING: Rule = Rule {
    id: "column-missing",
    severity: Error,
    title: "A required column is missing",
    why: "The look-up raises a KeyError at the first GEMM, or the generator cannot tell which kernel to build.",
    fix: "Tune again with the aiter that will run, or restore the column.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/column-missing.csv"),
        found: "",
    },
};

pub const COLUMN_OLDER_FORM: Rule = Rule {
    id: "column-older-form",
    severity: Warning,
    title: "The table has the form of an older aiter",
    why: "aiter warns and falls back at look-up, but its kernel generator raises, so the module is built without these kernels or not at all.",
    fix: "`gemmtune merge` into a table of the newer form, or tune again with the aiter that will run.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/column-older-form.csv"),
        found: "",
    },
};

pub const COLUMN_EVIDENCE: Rule = Rule {
    id: "column-evidence",
    severity: Warning,
    title: "A measured column is missing, or 0",
    why: "The runtime does not read it, but without it nobody can tell whether the row was correct or fast.",
    fix: "Tune again if the rows matter.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/column-evidence.csv"),
        found: "",
    },
};

pub const COLUMN_UNKNOWN: Rule = Rule {
    id: "column-unknown",
    severity: Warning,
    title: "A column belongs to no revision",
    why: "A strict merge (aiter before v0.1.13) raises `Column mismatch`; a misspelt name means that the real column is missing.",
    fix: "Rename or remove the column.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/column-unknown.csv"),
        found: "",
    },
};

pub const COLUMN_UNIT: Rule = Rule {
    id: "column-unit",
    severity: Warning,
    title: "A measured column is in another unit",
    why: "aiter's tuners write tflops in 10^12 operations and bw in 10^9 bytes per second. The runtime reads neither, but comparing rows from several files is misleading.",
    fix: "Multiply the column, or leave it: no look-up depends on it.",
    example: Example {
        file: "a8w8_blockscale_bpreshuffle_tuned_gemm.csv",
        text: include_str!("examples/column-unit.csv"),
        found: "That row is shipped with aiter e4048607a5, in a file whose 1,410 rows all claim less than 5 GB/s.",
    },
};

pub const COLUMN_PADDED: Rule = Rule {
    id: "column-padded",
    severity: Error,
    title: "A column name has blanks around it",
    why: "pandas keeps the blanks, so the look-up does not find the column and raises a KeyError.",
    fix: "Remove the blanks from the header.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/column-padded.csv"),
        found: "",
    },
};

pub const NO_FINAL_NEWLINE: Rule = Rule {
    id: "no-final-newline",
    severity: Warning,
    title: "The last line has no newline",
    why: "Appending to the file joins two rows into one that cannot be read.",
    fix: "End the file with a newline.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/no-final-newline.csv"),
        found: "18 tables of aiter e4048607a5 end like this, for example `a8w8_blockscale_untuned_gemm_ds_v3.csv`.",
    },
};

pub const TABLE_EMPTY: Rule = Rule {
    id: "table-empty",
    severity: Warning,
    title: "A table without rows",
    why: "Every look-up misses and runs the default kernel; an emptied table once cost a serving engine a third of its throughput (ROCm/aiter#3109).",
    fix: "Remove the file from the configuration, or tune.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/table-empty.csv"),
        found: "`bf16_tuned_gemm.csv` of aiter 303a583c has no rows.",
    },
};

pub const DUPLICATE_EQUAL: Rule = Rule {
    id: "duplicate-equal",
    severity: Warning,
    title: "The same row, key or shape appears twice",
    why: "The copy has no effect; a tuner measures the shape twice.",
    fix: "Remove one.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/duplicate-equal.csv"),
        found: "23 rows of `a8w8_blockscale_tuned_gemm_ds_v3.csv` of aiter v0.1.9.",
    },
};

pub const DUPLICATE_CONFLICTING: Rule = Rule {
    id: "duplicate-conflicting",
    severity: Error,
    title: "One key has two different rows",
    why: "pandas raises `DataFrame index must be unique` at the first GEMM; a merge keeps the lowest time, even if it is a failed measurement.",
    fix: "Keep the row that was measured correctly: `gemmtune merge` does this and says why.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/duplicate-conflicting.csv"),
        found: "",
    },
};

pub const DUPLICATE_ACROSS_FILES: Rule = Rule {
    id: "duplicate-across-files",
    severity: Error,
    title: "Two tables of one operation have the same key",
    why: "aiter (v0.1.12 and later) merges the tables whose names contain its stem; an equal key then makes it rewrite both files and raise, and in a container the server never starts (ROCm/aiter#5184). This is a warning if the two are in different folders or under other names: then the server stops only if the variable names both.",
    fix: "Merge them yourself with `gemmtune merge` and name only the result.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/duplicate-across-files.csv"),
        found: "",
    },
};

pub const LIBTYPE_UNSET: Rule = Rule {
    id: "libtype-unset",
    severity: Error,
    title: "No library is named",
    why: "The look-up asserts on it: `Unsupported libtype`. aiter's merge of a table without the column writes the integer 0 there.",
    fix: "Fill in the library that the kernel's name shows; `gemmtune merge` does.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/libtype-unset.csv"),
        found: "",
    },
};

pub const LIBTYPE_UNSUPPORTED: Rule = Rule {
    id: "libtype-unsupported",
    severity: Error,
    title: "The operation has no kernels of this library",
    why: "The look-up asserts on it, or falls through and returns nothing.",
    fix: "Remove the row, or correct the library.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/libtype-unsupported.csv"),
        found: "",
    },
};

pub const LIBTYPE_BY_REVISION: Rule = Rule {
    id: "libtype-by-revision",
    severity: Warning,
    title: "Only some aiter revisions call this library",
    why: "The same row is a kernel for one aiter and an exception, or another kernel, for the next; nothing says which of them will run it.",
    fix: "Name the aiter revision with --revision; without it `gemmtune merge` leaves such a row out.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/libtype-by-revision.csv"),
        found: "",
    },
};

pub const KERNEL_NAME_UNSET: Rule = Rule {
    id: "kernel-name-unset",
    severity: Error,
    title: "No kernel is named",
    why: "From v0.1.14 the kernel is run by name: pandas reads an empty name as `nan`, which no library has.",
    fix: "Fill in the name that the id stands for, or tune again.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/kernel-name-unset.csv"),
        found: "",
    },
};

pub const KERNEL_CONTRADICTS_LIBTYPE: Rule = Rule {
    id: "kernel-contradicts-libtype",
    severity: Error,
    title: "The kernel belongs to another library",
    why: "The library named does not have the kernel: a hard error at the first GEMM, or its default kernel runs.",
    fix: "Correct whichever of the two is wrong; tune again when in doubt.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/kernel-contradicts-libtype.csv"),
        found: "",
    },
};

pub const KERNEL_OF_OTHER_OP: Rule = Rule {
    id: "kernel-of-other-op",
    severity: Error,
    title: "The kernel belongs to another operation",
    why: "Plain and pre-shuffled kernels read the weight in different layouts: either the module does not know the name, or the result is wrong.",
    fix: "Move the row to the table of its operation.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/kernel-of-other-op.csv"),
        found: "",
    },
};

pub const KERNEL_CONTRADICTS_ID: Rule = Rule {
    id: "kernel-contradicts-id",
    severity: Error,
    title: "Id and name are different kernels",
    why: "Up to 303a583c the id selects the kernel, from v0.1.14 the name: which kernel the row means depends on the aiter in use, and it was tuned for only one of them.",
    fix: "Correct whichever of the two is wrong; tune again when in doubt.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/kernel-contradicts-id.csv"),
        found: "",
    },
};

pub const KERNEL_ID_DRIFT: Rule = Rule {
    id: "kernel-id-drift",
    severity: Warning,
    title: "One id has several names in a file",
    why: "Ids of this library change between revisions, so the rows come from different ones. The name decides, and one of the names may be missing from the aiter in use.",
    fix: "Check that the aiter in use has both names; tune the rows again whose name it lacks.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/kernel-id-drift.csv"),
        found: "`a8w8_blockscale_tuned_gemm_ds_v3.csv` of aiter e4048607a5 has two names for CKTile ids 26, 27 and 28.",
    },
};

pub const KERNEL_NAME_OLD: Rule = Rule {
    id: "kernel-name-old",
    severity: Warning,
    title: "The name is spelled as before v0.1.10",
    why: "The wave-map field was added to the names: a later aiter does not know this one and, from v0.1.14, fails on it.",
    fix: "Write the current name; the id tells which it is.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/kernel-name-old.csv"),
        found: "Every row of the blockscale tables of aiter v0.1.7 and v0.1.9.",
    },
};

pub const SPLIT_K_RANGE: Rule = Rule {
    id: "split-k-range",
    severity: Error,
    title: "The split is out of range",
    why: "aiter's CK entry points accept 0 to 30 and raise on anything else.",
    fix: "Tune the shape again.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/split-k-range.csv"),
        found: "",
    },
};

pub const US_INVALID: Rule = Rule {
    id: "us-invalid",
    severity: Error,
    title: "The time is not a measurement",
    why: "-1 and inf are the tuner's marks for a candidate that failed. aiter's merge takes the lowest time, so -1 beats every real row.",
    fix: "Remove the row and tune the shape again.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/us-invalid.csv"),
        found: "",
    },
};

pub const ERR_RATIO_HIGH: Rule = Rule {
    id: "err-ratio-high",
    severity: Error,
    title: "Too many output elements are wrong",
    why: "The tuner's own limit is 0.05: above it the kernel is not the same function.",
    fix: "Remove the row and tune the shape again.",
    example: Example {
        file: "a8w8_bpreshuffle_tuned_gemm.csv",
        text: include_str!("examples/err-ratio-high.csv"),
        found: "That row is shipped with aiter e4048607a5.",
    },
};

pub const ABOVE_ROOFLINE: Rule = Rule {
    id: "above-roofline",
    severity: Error,
    title: "Faster than the device can be",
    why: "The time is below what the arithmetic or the bytes need at the maker's peak, so it was not measured, or not for this work; it wins every merge.",
    fix: "Remove the row and tune the shape again.",
    example: Example {
        file: "a8w8_blockscale_bpreshuffle_tuned_gemm.csv",
        text: include_str!("examples/above-roofline.csv"),
        found: "`a8w8_blockscale_bpreshuffle_tuned_gemm_qwen3.5_397b.csv` of aiter e4048607a5 claims 1,858 TFLOPS on 80 compute units of gfx942.",
    },
};

pub const ABOVE_MEMORY: Rule = Rule {
    id: "above-memory",
    severity: Warning,
    title: "Faster than memory: timed from a cache",
    why: "The bytes move faster than memory allows, which only a cache can do; a server's weights come from memory, so another kernel may be the best one.",
    fix: "Tune again with buffers rotated past the last-level cache.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/above-memory.csv"),
        found: "",
    },
};

pub const TFLOPS_CONTRADICTS_US: Rule = Rule {
    id: "tflops-contradicts-us",
    severity: Error,
    title: "tflops is not 2*M*N*K / us",
    why: "One of the two was written by hand or for another shape; if it is the time, every merge is decided wrongly.",
    fix: "Tune the shape again, or correct the column that is wrong.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/tflops-contradicts-us.csv"),
        found: "50 rows of `a8w8_blockscale_tuned_gemm_qwen3_5_397b_a13b.csv` of aiter e4048607a5.",
    },
};

pub const BW_CONTRADICTS_US: Rule = Rule {
    id: "bw-contradicts-us",
    severity: Error,
    title: "bw is not bytes / us",
    why: "As with tflops: one of the two numbers is not from this measurement.",
    fix: "Tune the shape again, or correct the column that is wrong.",
    example: Example {
        file: "a8w8_blockscale_bpreshuffle_tuned_gemm.csv",
        text: include_str!("examples/bw-contradicts-us.csv"),
        found: "",
    },
};

pub const ROW_UNREACHABLE: Rule = Rule {
    id: "row-unreachable",
    severity: Error,
    title: "No look-up can reach the row",
    why: "The key has a part that no GPU, no weight or no call has: the tuning is lost.",
    fix: "Correct the key, or remove the row.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/row-unreachable.csv"),
        found: "",
    },
};

pub const CU_NUM_UNKNOWN: Rule = Rule {
    id: "cu-num-unknown",
    severity: Warning,
    title: "No known GPU has this many compute units",
    why: "cu_num is a part of the key; RDNA parts, and partitions, report other counts than people expect (ROCm/aiter#4322).",
    fix: "Compare with `rocminfo`; tune on the GPU that will run it.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/cu-num-unknown.csv"),
        found: "",
    },
};

pub const SIZE_UNLIKELY: Rule = Rule {
    id: "size-unlikely",
    severity: Warning,
    title: "A size that no known weight has",
    why: "No look-up will ask for it, so all its rows are dead; swapped columns look like this.",
    fix: "Compare N and K with the weights of the model.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/size-unlikely.csv"),
        found: "",
    },
};

pub const SHADOWS_FASTER: Rule = Rule {
    id: "shadows-faster",
    severity: Warning,
    title: "A finer row hides a faster kernel",
    why: "The look-up uses the exact row, otherwise the row of the rounded M: an exact row that is slower than the rounded one makes the table slower than without it.",
    fix: "Remove the row, or tune its shape again.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/shadows-faster.csv"),
        found: "308 rows of `a8w8_blockscale_tuned_gemm_ds_v3.csv` of aiter e4048607a5.",
    },
};

pub const TIME_NOT_MONOTONE: Rule = Rule {
    id: "time-not-monotone",
    severity: Warning,
    title: "A larger M takes less time",
    why: "The kernel for the larger M would compute the smaller one in less time than its row claims, so one of the two was measured badly.",
    fix: "Tune both shapes again.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/time-not-monotone.csv"),
        found: "",
    },
};

pub const UNTUNED_EXTRA_COLUMN: Rule = Rule {
    id: "untuned-extra-column",
    severity: Warning,
    title: "A tuner's input has additional columns",
    why: "aiter's tuners drop equal rows before they drop columns, so rows that differ only there are tuned twice.",
    fix: "Write only the columns the tuner reads.",
    example: Example {
        file: "a8w8_blockscale_untuned_gemm.csv",
        text: include_str!("examples/untuned-extra-column.csv"),
        found: "",
    },
};
