//! What runs after a look-up: a hit does not always mean the row's kernel, and a miss has a default.
//!
//! Each operation's file defines this for its own operation; here is what they share. The texts are shown to people
//! and appear in `--json`.

use super::super::revision::Revision;

/// What a runtime does with the result of a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// The row's kernel, passed by name or looked up again in the compiled module.
    RowKernel(&'static str),
    /// The operation's default kernel, because there is no row or whatever the row contains.
    Default(&'static str),
    /// The operation's default although a row was found: the row's library is never called.
    Ignored(&'static str),
    /// An exception at the first such GEMM.
    Raises(&'static str),
}

impl Runs {
    /// The sentence shown to people and in `--json`.
    pub fn text(self) -> &'static str {
        match self {
            Self::RowKernel(text)
            | Self::Default(text)
            | Self::Ignored(text)
            | Self::Raises(text) => text,
        }
    }
}

/// A call of an operation, as far as it decides what runs.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The aiter that serves it.
    pub revision: Revision,
    /// The architecture.
    pub gfx: &'a str,
    /// Rows of activation; 0 where it does not matter.
    pub m: u32,
}

impl Call<'_> {
    /// `_BLOCKSCALE_HIP_PREBUILT_ARCHES` of e4048607 and later.
    pub(super) fn is_prebuilt(&self) -> bool {
        matches!(
            self.gfx,
            "gfx940" | "gfx941" | "gfx942" | "gfx950" | "gfx1250"
        )
    }

    /// What e4048607 and later do on an architecture for which nothing is built.
    pub(super) fn triton_unless_prebuilt(&self) -> Option<Runs> {
        (self.revision >= Revision::H && !self.is_prebuilt()).then_some(Runs::Default(NO_TABLE))
    }
}

/// The row that a look-up found, as far as it decides what runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct FoundRow<'a> {
    /// The cell `libtype`; empty where the table has none.
    pub libtype: &'a str,
    /// The cell `splitK`.
    pub split_k: Option<i64>,
    /// Whether the table has that column.
    pub has_split_k: bool,
    /// The cell `kernelName`.
    pub kernel_name: Option<&'a str>,
}

impl FoundRow<'_> {
    /// Whether `int(config["splitK"])` raises, because an empty cell is NaN.
    pub(super) fn splits_by_nan(&self) -> bool {
        self.has_split_k && self.split_k.is_none()
    }
}

/// For operations that no architecture serves without a table: the table decides.
pub(super) const fn by_table(_: Call<'_>) -> Option<Runs> {
    None
}

/// The kernel of a row at revisions that compile the table into the module.
pub const COMPILED: &str = "the kernel compiled for this row; a table newer than the module does nothing until it is rebuilt";
/// The kernel of a row at revisions that pass its `kernelName` on.
pub const BY_NAME: &str = "the kernel of this name; the module must have been built with it";
/// The kernel of a row that names aiter's Triton kernel.
pub const TRITON: &str = "aiter's Triton kernel, configured by its own tables";
pub(super) const NO_NAME: &str =
    "a RuntimeError: the row names no kernel, and the module has none called `nan`";
pub(super) const NO_NUMBER: &str = "a ValueError: splitK is no number";
pub(super) const NO_TABLE: &str = "aiter's Triton kernel: this architecture takes no table";
pub(super) const CK_DEFAULT: &str = "the CK default kernel: this libtype is not known here";
