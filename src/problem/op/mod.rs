//! Operations: what their runtimes call them and what distinguishes one from another, one file for each.
//!
//! A new operation is a file here and three entries below: `mod`, the variant, and its arms in [`Op::ALL`] and
//! [`Op::facts`]. `toy.rs` is an operation that exists in tests only, so that no other room can match exhaustively on
//! operations.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::library::Library;
use super::revision::Revision;

mod a4w4;
mod a8w8;
mod blockscale;
mod blockscale_bpreshuffle;
mod bpreshuffle;
pub mod fused_moe_aiter;
pub mod fused_moe_triton;
pub mod runs;
#[cfg(test)]
mod toy;
mod triton_block_fp8;
mod unsaid;

use runs::{Call, FoundRow, Runs};

/// A GEMM operation as its runtime names it. Each has its own tuned table and look-up rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Op {
    /// aiter `gemm_a8w8_blockscale`: plain CK / CKTile, row-major activation scales. The reference
    /// engine implements the same operation on the CPU.
    #[serde(rename = "gemm_a8w8_blockscale")]
    Blockscale,
    /// aiter `gemm_a8w8_blockscale_bpreshuffle`: weights shuffled to (16, 16) tiles, transposed scales.
    #[serde(rename = "gemm_a8w8_blockscale_bpreshuffle")]
    BlockscaleBpreshuffle,
    /// aiter `gemm_a8w8_bpreshuffle`: per-token, per-channel scales, shuffled weights.
    #[serde(rename = "gemm_a8w8_bpreshuffle")]
    Bpreshuffle,
    /// aiter `gemm_a8w8`: per-token, per-channel scales.
    #[serde(rename = "gemm_a8w8")]
    A8w8,
    /// aiter `gemm_a4w4`: MXFP4. K is the logical K, twice the packed bytes.
    #[serde(rename = "gemm_a4w4")]
    A4w4,
    /// SGLang's own Triton kernel `w8a8_block_fp8_matmul`, configured by its JSON files.
    #[serde(rename = "w8a8_block_fp8_matmul")]
    TritonBlockFp8,
    /// No operation of any runtime: an example of what a new operation needs.
    #[cfg(test)]
    #[serde(rename = "gemm_a9w9_toy")]
    #[schemars(skip)]
    Toy,
}

impl Op {
    /// Every operation, in table order.
    pub const ALL: [Self; 6 + cfg!(test) as usize] = [
        Self::Blockscale,
        Self::BlockscaleBpreshuffle,
        Self::Bpreshuffle,
        Self::A8w8,
        Self::A4w4,
        Self::TritonBlockFp8,
        #[cfg(test)]
        Self::Toy,
    ];

    /// Everything that is known of the operation.
    pub const fn facts(self) -> &'static Facts {
        match self {
            Self::Blockscale => &blockscale::FACTS,
            Self::BlockscaleBpreshuffle => &blockscale_bpreshuffle::FACTS,
            Self::Bpreshuffle => &bpreshuffle::FACTS,
            Self::A8w8 => &a8w8::FACTS,
            Self::A4w4 => &a4w4::FACTS,
            Self::TritonBlockFp8 => &triton_block_fp8::FACTS,
            #[cfg(test)]
            Self::Toy => &toy::FACTS,
        }
    }

    /// The runtime's own name for the operation, as CSV files and logs spell it.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// What is known of it as one of aiter's operations; `None` for an operation that aiter does not have.
    pub const fn aiter(self) -> Option<&'static AiterFacts> {
        self.facts().aiter.as_ref()
    }
}

/// Everything that distinguishes an operation from another.
#[derive(Debug)]
pub struct Facts {
    /// The runtime's own name for it.
    pub name: &'static str,
    /// dtypes its weight can have, as torch prints them.
    pub dtypes: &'static [&'static str],
    /// Bytes of an element of activation and weight.
    pub element_bytes: f64,
    /// Side of the square blocks of its weight that share a scale; `None` where scales are per channel or finer.
    pub scale_block: Option<u32>,
    /// SGLang's functions that call it (0.5.5 to 0.5.23); of several, the last always does.
    pub linears: &'static [&'static str],
    /// Libraries that its runtime takes kernels from, at any revision.
    pub libraries: &'static [Library],
    /// The first revision whose tables say which library a kernel comes from.
    pub libtype_from: Option<Revision>,
    /// The first revision whose tables are keyed by the weight's dtype too.
    pub weight_dtype_from: Option<Revision>,
    /// Whether the probe can make its operands and run it in a process of its own (`python/aiter_probe`).
    pub can_be_probed: bool,
    /// What an architecture does with a call regardless of the table.
    pub without_table: fn(Call<'_>) -> Option<Runs>,
    /// What runs for a row that was found.
    pub hit: fn(Call<'_>, FoundRow<'_>) -> Runs,
    /// What runs when no row was found, on `call.m` rows of activation.
    pub miss: fn(Call<'_>) -> Runs,
    /// What aiter has of it; `None` for an operation of SGLang's own, whose tables are its JSON files.
    pub aiter: Option<AiterFacts>,
}

/// What aiter (MIT licence) has of an operation. Sources: `aiter/ops/gemm_op_a8w8.py`, `gemm_op_a4w4.py`,
/// `aiter/jit/core.py`, `aiter/jit/optCompilerConfig.json` and the scripts below `csrc/ck_gemm_*` at v0.1.7, v0.1.9,
/// 303a583c89, e4048607a5 and main after ROCm/aiter#5586.
#[derive(Debug)]
pub struct AiterFacts {
    /// The variable that names its table (`aiter/jit/core.py`).
    pub variable: &'static str,
    /// What aiter globs for in the names of its tables, `tuned_gemm` included.
    pub stem: &'static str,
    /// Shorter beginnings of such a name that nothing else has.
    pub short_stems: &'static [&'static str],
    /// The Python file with the function that serves it.
    pub source: &'static str,
    /// Forms in which that function logs a look-up; the first is today's.
    pub lines: &'static [LookupLine],
    /// What the names of its compiled kernels begin with; a digit follows for CK, `cktile_` for CK Tile.
    pub compiled_names: &'static str,
    /// The prefix of kernel names that belong to this operation alone.
    pub own_names: &'static str,
    /// Names of its CK instances at e4048607a5 by id, one a line. Ids denote the same instances from v0.1.7 on.
    pub ck_names: &'static str,
    /// A CK instance's name as it was up to v0.1.9, where that differs.
    pub older_spelling: Option<fn(&str) -> String>,
    /// Python names of the compiled functions that serve it, by library.
    pub functions: &'static [(Library, &'static str)],
    /// The first revision whose look-up pads M after the exact probe.
    pub pads_m_from: Revision,
    /// The first revision in which the largest row of a weight serves every M above it
    /// (`reuse_largest_bpreshuffle_config`).
    pub reuses_largest_from: Option<Revision>,
    /// Whether its compiled module rounds M by rules of its own and chooses the kernel itself.
    pub module_looks_up: bool,
    /// The first revision that looks for a row before it considers what the architecture does without a table.
    pub row_first_from: Option<Revision>,
    /// Whether the runtime applies a row's split of K.
    pub split_k: SplitK,
    /// The exponent of a split of K from which on results are not reproducible.
    pub unordered_split: Option<i64>,
    /// Kernels that aiter's tuner tries for a shape.
    pub candidates: Candidates,
    /// Scripts that tune it, newest first: the first one found in a tree is used.
    pub scripts: &'static [TunerScript],
    /// Values of the tuner's `--libtype`, best first: the widest one whose kernels the dispatcher can call.
    pub libtypes: &'static [&'static str],
    /// The only dtype that its assembly kernels take, where they do not take all.
    pub assembly_dtype: Option<&'static str>,
}

impl AiterFacts {
    /// The library of a kernel compiled for this operation, judged by its name.
    pub(super) fn library_of_compiled(&self, name: &str) -> Option<Library> {
        let rest = name.strip_prefix(self.compiled_names)?;
        if rest.starts_with("cktile_") {
            Some(Library::CkTile)
        } else {
            let digit = rest.starts_with(|first: char| first.is_ascii_digit());
            digit.then_some(Library::Ck)
        }
    }

    /// The function that serves it from `library`, where there is one.
    pub fn function(&self, library: Library) -> Option<&'static str> {
        let mut functions = self.functions.iter();
        functions
            .find(|(of, _)| *of == library)
            .map(|(_, name)| *name)
    }
}

/// A format in which aiter logs a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupLine {
    /// M, N and K, the file and the kernel's name.
    Plain,
    /// The same, and the weight's dtype.
    Quantised,
    /// `CKGEMM or asmGEMM` for a miss, and the split of K with each hit.
    CkOrAsm,
}

/// Whether the runtime passes a row's `splitK` to the kernels that the tuner multiplies by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitK {
    /// At every revision.
    Obeyed,
    /// At none.
    Dropped,
    /// Where the source of the serving function reads the column.
    AsTheTreeSays,
}

/// Kernels that aiter's tuner tries for a shape, split-K not counted (instance lists of e4048607a5: CK, CKTile,
/// assembly and FlyDSL).
#[derive(Clone, Copy, Debug)]
pub struct Candidates {
    /// On gfx950.
    pub gfx950: u32,
    /// On older architectures.
    pub older: u32,
}

impl Candidates {
    /// How many there are on `gfx`.
    pub fn on(self, gfx: &str) -> u32 {
        if gfx == "gfx950" {
            self.gfx950
        } else {
            self.older
        }
    }

    /// The larger of both counts.
    pub fn most(self) -> u32 {
        self.gfx950.max(self.older)
    }
}

/// A script of aiter that tunes an operation. Paths, modes and modules are those of v0.1.7, v0.1.9, 303a583c89 and
/// e4048607a5.
#[derive(Debug)]
pub struct TunerScript {
    pub path: &'static str,
    /// The flag that selects this operation; the script tunes it only where it has that flag.
    pub mode: Option<&'static str>,
    /// Modules with the candidates, compiled at first use (`aiter/jit/optCompilerConfig.json`).
    pub modules: &'static [&'static str],
}

/// The largest share of wrong elements that a kernel may produce: aiter's tuner rejects candidates with `errRatio`
/// above it (`--errRatio`, default 0.05, `aiter/utility/base_tuner.py`). A kernel that rounds as the reference does
/// is far below.
pub const ERR_RATIO_LIMIT: f64 = 0.05;

impl fmt::Display for Op {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// The text is not the name of an operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("name the operation: `{0}` is not one of {names}", names = Op::ALL.map(Op::name).join(", "))]
pub struct UnknownOp(pub String);

impl FromStr for Op {
    type Err = UnknownOp;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|op| op.name() == text)
            .ok_or_else(|| UnknownOp(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_listed_once_under_the_name_that_is_written() {
        for op in Op::ALL {
            assert_eq!(op.name().parse::<Op>(), Ok(op));
            assert_eq!(serde_json::to_string(&op).unwrap(), format!("\"{op}\""));
        }
        let error = serde_json::from_str::<Op>("\"?\"").unwrap_err().to_string();
        assert_eq!(error.matches('`').count() / 2 - 1, Op::ALL.len(), "{error}");
        assert!("gemm_a8w8_block".parse::<Op>().is_err());
    }

    #[test]
    fn names_that_tell_operations_apart_are_nobody_elses() {
        let all: Vec<_> = Op::ALL.into_iter().filter_map(Op::aiter).collect();
        for (index, one) in all.iter().enumerate() {
            for other in &all[index + 1..] {
                assert_ne!(one.variable, other.variable);
                assert_ne!(one.stem, other.stem);
                assert_ne!(one.compiled_names, other.compiled_names);
                assert!(!one.own_names.starts_with(other.own_names));
                assert!(!other.own_names.starts_with(one.own_names));
            }
        }
    }
}
