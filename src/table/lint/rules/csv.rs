//! Rules about aiter's CSV tables. Examples carry real kernel names and times; those that say where
//! they were found are copied from aiter e4048607a5 (MIT licence), shortened to a row or two.

use super::super::Severity::{Error, Warning};
use super::{Example, Rule};

/// The file is no table at all.
pub const FILE_UNREADABLE: Rule = Rule {
    id: "file-unreadable",
    severity: Error,
    title: "The file is no table at all",
    why: "pandas or Python's JSON reader raises on it at the first GEMM, or reads something else than was meant.",
    fix: "Write the file again with its tuner, or take the copy before the last edit.",
    example: Example {
        file: "N=1536,K=7168,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
        text: include_str!("examples/file-unreadable.json"),
        found: "",
    },
};

/// A line cannot be read as a row.
pub const LINE_UNREADABLE: Rule = Rule {
    id: "line-unreadable",
    severity: Error,
    title: "A line cannot be read as a row",
    why: "A line with too many cells makes pandas raise for the whole file; a key that is no number makes the column text, so that no look-up matches any more. Two rows glued together come from appending to a file without a final newline.",
    fix: "Split or remove the line.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/line-unreadable.csv"),
        found: "",
    },
};

/// A number is missing or is not a number.
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

/// A column is missing that rows cannot do without.
pub const COLUMN_MISSING: Rule = Rule {
    id: "column-missing",
    severity: Error,
    title: "A column is missing that rows cannot do without",
    why: "The look-up raises a KeyError at the first GEMM, or the generator cannot tell which kernel to build.",
    fix: "Tune again with the aiter that is to run, or restore the column.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/column-missing.csv"),
        found: "",
    },
};

/// The table has the form of an older aiter.
pub const COLUMN_OLDER_FORM: Rule = Rule {
    id: "column-older-form",
    severity: Warning,
    title: "The table has the form of an older aiter",
    why: "aiter warns and falls back at look-up, but its kernel generator raises, so the module is built without these kernels or not at all.",
    fix: "`gemmtune merge` into a table of the newer form, or tune again with the aiter that is to run.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/column-older-form.csv"),
        found: "",
    },
};

/// A measured column is missing.
pub const COLUMN_EVIDENCE: Rule = Rule {
    id: "column-evidence",
    severity: Warning,
    title: "A measured column is missing, or 0",
    why: "The runtime does not read it, but without it no one can say whether the row was right or fast.",
    fix: "Tune again if the rows matter.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/column-evidence.csv"),
        found: "",
    },
};

/// A column belongs to no revision.
pub const COLUMN_UNKNOWN: Rule = Rule {
    id: "column-unknown",
    severity: Warning,
    title: "A column belongs to no revision",
    why: "A strict merge (aiter before v0.1.13) raises `Column mismatch`; a mistyped name means that the real column is missing.",
    fix: "Rename or remove the column.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/column-unknown.csv"),
        found: "",
    },
};

/// A measured column is in another unit.
pub const COLUMN_UNIT: Rule = Rule {
    id: "column-unit",
    severity: Warning,
    title: "A measured column is in another unit",
    why: "aiter's tuners write tflops in 10^12 operations and bw in 10^9 bytes per second. The runtime reads neither, but who compares rows of several files is misled.",
    fix: "Multiply the column, or leave it: no look-up depends on it.",
    example: Example {
        file: "a8w8_blockscale_bpreshuffle_tuned_gemm.csv",
        text: include_str!("examples/column-unit.csv"),
        found: "That row is shipped with aiter e4048607a5, in a file whose 1,410 rows all claim less than 5 GB/s.",
    },
};

/// A column name has blanks around it.
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

/// The last line has no end.
pub const NO_FINAL_NEWLINE: Rule = Rule {
    id: "no-final-newline",
    severity: Warning,
    title: "The last line has no end",
    why: "Appending to the file glues two rows into one that cannot be read.",
    fix: "End the file with a newline.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/no-final-newline.csv"),
        found: "18 tables of aiter e4048607a5 end so, for example `a8w8_blockscale_untuned_gemm_ds_v3.csv`.",
    },
};

/// A table without rows.
pub const TABLE_EMPTY: Rule = Rule {
    id: "table-empty",
    severity: Warning,
    title: "A table without rows",
    why: "Every look-up misses and runs the default kernel; an emptied table once cost a serving engine a third of its throughput (ROCm/aiter#3109).",
    fix: "Remove the file from the configuration, or tune.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/table-empty.csv"),
        found: "`bf16_tuned_gemm.csv` of aiter 303a583c has no row.",
    },
};

/// The same row, key or shape stands twice.
pub const DUPLICATE_EQUAL: Rule = Rule {
    id: "duplicate-equal",
    severity: Warning,
    title: "The same row, key or shape stands twice",
    why: "The copy does nothing; a tuner measures the shape twice.",
    fix: "Remove one.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/duplicate-equal.csv"),
        found: "23 rows of `a8w8_blockscale_tuned_gemm_ds_v3.csv` of aiter v0.1.9.",
    },
};

/// One key has two different rows.
pub const DUPLICATE_CONFLICTING: Rule = Rule {
    id: "duplicate-conflicting",
    severity: Error,
    title: "One key has two different rows",
    why: "pandas raises `DataFrame index must be unique` at the first GEMM; a merge keeps the lowest time, be it a failed measurement.",
    fix: "Keep the row that was measured right: `gemmtune merge` does it and says why.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/duplicate-conflicting.csv"),
        found: "",
    },
};

/// Two tables of one operation have the same key.
pub const DUPLICATE_ACROSS_FILES: Rule = Rule {
    id: "duplicate-across-files",
    severity: Error,
    title: "Two tables of one operation have the same key",
    why: "aiter (v0.1.12 and later) merges the tables whose names hold its stem; there an equal key makes it rewrite both files and raise, and in a container the server then never starts (ROCm/aiter#5184). A warning where the two lie apart or under other names: then only naming both in the variable stops the server.",
    fix: "Merge them yourself with `gemmtune merge` and name the one result.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/duplicate-across-files.csv"),
        found: "",
    },
};

/// No library is named.
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

/// The operation has no kernels of this library.
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

/// Only some aiter calls this library.
pub const LIBTYPE_BY_REVISION: Rule = Rule {
    id: "libtype-by-revision",
    severity: Warning,
    title: "Only some aiter calls this library",
    why: "The same row is a kernel for one aiter and an exception, or another kernel, for the next; nothing says which of them runs it.",
    fix: "Say the aiter with --revision; `gemmtune merge` leaves such a row out unless it is said.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/libtype-by-revision.csv"),
        found: "",
    },
};

/// No kernel is named.
pub const KERNEL_NAME_UNSET: Rule = Rule {
    id: "kernel-name-unset",
    severity: Error,
    title: "No kernel is named",
    why: "From v0.1.14 the name is what is run: pandas reads it as `nan`, which no library has.",
    fix: "Fill in the name that the id stands for, or tune again.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/kernel-name-unset.csv"),
        found: "",
    },
};

/// The kernel is one of another library.
pub const KERNEL_CONTRADICTS_LIBTYPE: Rule = Rule {
    id: "kernel-contradicts-libtype",
    severity: Error,
    title: "The kernel is one of another library",
    why: "The library that is asked does not have the kernel: a hard error at the first GEMM, or its default kernel.",
    fix: "Correct whichever of the two is wrong; tune again when in doubt.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/kernel-contradicts-libtype.csv"),
        found: "",
    },
};

/// The kernel is one of another operation.
pub const KERNEL_OF_OTHER_OP: Rule = Rule {
    id: "kernel-of-other-op",
    severity: Error,
    title: "The kernel is one of another operation",
    why: "Plain and pre-shuffled kernels read the weight in different layouts: the name is unknown to the module, or the result is wrong.",
    fix: "Move the row to the table of its operation.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/kernel-of-other-op.csv"),
        found: "",
    },
};

/// Id and name are two kernels.
pub const KERNEL_CONTRADICTS_ID: Rule = Rule {
    id: "kernel-contradicts-id",
    severity: Error,
    title: "Id and name are two kernels",
    why: "Up to 303a583c the id is run, from v0.1.14 the name: which kernel the row means depends on the aiter at hand, and it was tuned for one of them.",
    fix: "Correct whichever of the two is wrong; tune again when in doubt.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/kernel-contradicts-id.csv"),
        found: "",
    },
};

/// One id has several names in a file.
pub const KERNEL_ID_DRIFT: Rule = Rule {
    id: "kernel-id-drift",
    severity: Warning,
    title: "One id has several names in a file",
    why: "Ids of this library move between revisions, so the rows come from different ones. The name decides, and one of them may be gone from the aiter at hand.",
    fix: "Check that the aiter at hand has both names; tune again the rows it has not.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/kernel-id-drift.csv"),
        found: "`a8w8_blockscale_tuned_gemm_ds_v3.csv` of aiter e4048607a5 has two names for CKTile ids 26, 27 and 28.",
    },
};

/// The name is spelled as before v0.1.10.
pub const KERNEL_NAME_OLD: Rule = Rule {
    id: "kernel-name-old",
    severity: Warning,
    title: "The name is spelled as before v0.1.10",
    why: "The wave-map field was added to the names: a later aiter does not know this one and, from v0.1.14, stops at it.",
    fix: "Write today's name; the id says which it is.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/kernel-name-old.csv"),
        found: "Every row of the blockscale tables of aiter v0.1.7 and v0.1.9.",
    },
};

/// The split is out of range.
pub const SPLIT_K_RANGE: Rule = Rule {
    id: "split-k-range",
    severity: Error,
    title: "The split is out of range",
    why: "aiter's CK entry points take 0 to 30 and raise on anything else.",
    fix: "Tune the shape again.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/split-k-range.csv"),
        found: "",
    },
};

/// The time is no measurement.
pub const US_INVALID: Rule = Rule {
    id: "us-invalid",
    severity: Error,
    title: "The time is no measurement",
    why: "-1 and inf are the tuner's marks for a candidate that failed. aiter's merge takes the lowest time, so -1 beats every real row.",
    fix: "Remove the row and tune the shape again.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/us-invalid.csv"),
        found: "",
    },
};

/// Too many output elements are wrong.
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

/// Faster than the device can be.
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

/// Faster than memory: timed from a cache.
pub const ABOVE_MEMORY: Rule = Rule {
    id: "above-memory",
    severity: Warning,
    title: "Faster than memory: timed from a cache",
    why: "The bytes move faster than memory can, which only a cache does; a server's weights come from memory, so another kernel may be the right one.",
    fix: "Tune again with buffers rotated past the last-level cache.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/above-memory.csv"),
        found: "",
    },
};

/// tflops is not 2*M*N*K / us.
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

/// bw is not the bytes / us.
pub const BW_CONTRADICTS_US: Rule = Rule {
    id: "bw-contradicts-us",
    severity: Error,
    title: "bw is not the bytes / us",
    why: "As with tflops: one of the two numbers is not of this measurement.",
    fix: "Tune the shape again, or correct the column that is wrong.",
    example: Example {
        file: "a8w8_blockscale_bpreshuffle_tuned_gemm.csv",
        text: include_str!("examples/bw-contradicts-us.csv"),
        found: "",
    },
};

/// No look-up can reach it.
pub const ROW_UNREACHABLE: Rule = Rule {
    id: "row-unreachable",
    severity: Error,
    title: "No look-up can reach it",
    why: "The key has a part that no GPU, no weight or no call has: the tuning is lost.",
    fix: "Correct the key, or remove the row.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/row-unreachable.csv"),
        found: "",
    },
};

/// No known part has so many compute units.
pub const CU_NUM_UNKNOWN: Rule = Rule {
    id: "cu-num-unknown",
    severity: Warning,
    title: "No known part has so many compute units",
    why: "cu_num is a part of the key; RDNA parts, and partitions, report other counts than people expect (ROCm/aiter#4322).",
    fix: "Compare with `rocminfo`; tune on the GPU that is to run it.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/cu-num-unknown.csv"),
        found: "",
    },
};

/// A size that no known weight has.
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

/// A finer row hides a faster kernel.
pub const SHADOWS_FASTER: Rule = Rule {
    id: "shadows-faster",
    severity: Warning,
    title: "A finer row hides a faster kernel",
    why: "The look-up takes the exact row, then the one of the rounded M: a row that is slower than the one behind it makes the table slower than without it.",
    fix: "Remove the row, or tune its shape again.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/shadows-faster.csv"),
        found: "308 rows of `a8w8_blockscale_tuned_gemm_ds_v3.csv` of aiter e4048607a5.",
    },
};

/// More rows of work take less time.
pub const TIME_NOT_MONOTONE: Rule = Rule {
    id: "time-not-monotone",
    severity: Warning,
    title: "More rows of work take less time",
    why: "A kernel for the larger M would do the smaller one in less time than the row claims, so one of the two was measured badly.",
    fix: "Tune both shapes again.",
    example: Example {
        file: "a8w8_blockscale_tuned_gemm.csv",
        text: include_str!("examples/time-not-monotone.csv"),
        found: "",
    },
};

/// A tuner's input has further columns.
pub const UNTUNED_EXTRA_COLUMN: Rule = Rule {
    id: "untuned-extra-column",
    severity: Warning,
    title: "A tuner's input has further columns",
    why: "aiter's tuners drop equal rows before they drop columns, so rows that differ only there are tuned twice.",
    fix: "Write only the columns the tuner reads.",
    example: Example {
        file: "a8w8_blockscale_untuned_gemm.csv",
        text: include_str!("examples/untuned-extra-column.csv"),
        found: "",
    },
};
