//! The libraries that aiter takes kernels from.

use super::Op;

/// Where a kernel comes from: the values of the `libtype` column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Library {
    /// Composable Kernel instances.
    Ck,
    /// CK Tile instances.
    CkTile,
    /// Hand-written assembly, loaded from `hsa/`.
    Asm,
    /// FlyDSL kernels.
    FlyDsl,
    /// aiter's Triton (or Gluon) kernels.
    Triton,
    /// Opus kernels.
    Opus,
}

impl Library {
    /// Every library, in the order of [`Self`]'s variants.
    pub const ALL: [Self; 6] = [
        Self::Ck,
        Self::CkTile,
        Self::Asm,
        Self::FlyDsl,
        Self::Triton,
        Self::Opus,
    ];

    /// The value of the `libtype` column that means this library.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ck => "ck",
            Self::CkTile => "cktile",
            Self::Asm => "asm",
            Self::FlyDsl => "flydsl",
            Self::Triton => "triton",
            Self::Opus => "opus",
        }
    }

    /// The library that `libtype` names; `None` for a value that is unknown or names several.
    pub fn of_libtype(libtype: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|library| library.name() == libtype)
    }

    /// The library of a kernel, judged by its name; `None` where aiter's naming scheme does not tell.
    pub fn of_kernel(name: &str) -> Option<Self> {
        let of_aiter = || Op::ALL.into_iter().filter_map(Op::aiter);
        if name.starts_with("_ZN") {
            Some(Self::Asm)
        } else if name.starts_with("flydsl") {
            Some(Self::FlyDsl)
        } else if name.starts_with("opus") {
            Some(Self::Opus)
        } else if name.starts_with("triton") || name.starts_with("gluon") {
            Some(Self::Triton)
        } else if of_aiter().any(|aiter| aiter.library_of_compiled(name) == Some(Self::CkTile)) {
            Some(Self::CkTile)
        } else if of_aiter().any(|aiter| aiter.library_of_compiled(name) == Some(Self::Ck)) {
            Some(Self::Ck)
        } else {
            None
        }
    }

    /// Whether the runtime of `op` calls kernels of this library, at any revision.
    pub fn serves(self, op: Op) -> bool {
        op.facts().libraries.contains(&self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_its_library() {
        let library = Library::of_kernel;
        assert_eq!(
            library("_ZN5aiter42fp8gemm_bf16_blockscale_BpreShuffle_32x128E"),
            Some(Library::Asm)
        );
        assert_eq!(
            library("a8w8_blockscale_cktile_192x256x128_4x2x1"),
            Some(Library::CkTile)
        );
        assert_eq!(
            library("a8w8_bpreshuffle_256x128x128x128_16x16"),
            Some(Library::Ck)
        );
        assert_eq!(
            library("flydsl_bpreshuflle_16x64x512"),
            Some(Library::FlyDsl)
        );
        assert_eq!(library("fixture_ck_k3"), None);
        for name in ["ck", "cktile", "asm", "flydsl", "triton", "opus"] {
            assert_eq!(Library::of_libtype(name).map(Library::name), Some(name));
        }
    }
}
