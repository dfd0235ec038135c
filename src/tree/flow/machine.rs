//! The kernels and machines that dispatch distinguishes.

/// A GEMM operation of aiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernel {
    /// `aiter.gemm_a8w8_blockscale`
    Ck,
    /// `gemm_a8w8_blockscale` of `aiter.ops.triton`
    Triton,
    /// `aiter.gemm_a8w8_blockscale_bpreshuffle`
    Bpreshuffle,
}

impl Kernel {
    /// The name used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ck => "ck",
            Self::Triton => "triton",
            Self::Bpreshuffle => "bpreshuffle",
        }
    }

    /// The kernel that `name` of the module `module` is; `None` if it is not one of them.
    pub fn imported(module: &str, name: &str) -> Option<Self> {
        // aiter's top level re-exports the CK entry points of `aiter.ops.gemm_op_a8w8`.
        let entry = matches!(module, "aiter" | "aiter.ops.gemm_op_a8w8");
        match name {
            "gemm_a8w8_blockscale" if entry => Some(Self::Ck),
            "gemm_a8w8_blockscale_bpreshuffle" if entry => Some(Self::Bpreshuffle),
            "gemm_a8w8_blockscale" if is_triton(module) => Some(Self::Triton),
            _ => None,
        }
    }
}

/// Whether a module contains aiter's Triton kernels: they were moved within the folder.
fn is_triton(module: &str) -> bool {
    let rest = module.strip_prefix("aiter.ops.triton");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// A GPU architecture that dispatch distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// CDNA3: MI300X, MI325X
    Gfx942,
    /// CDNA4: MI350X, MI355X
    Gfx950,
}

impl Arch {
    /// The name used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gfx942 => "gfx942",
            Self::Gfx950 => "gfx950",
        }
    }
}

/// The ROCm versions that dispatch distinguishes: every release compares with (7, 2, 0) or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rocm {
    /// Below 7.2.
    Below72,
    /// 7.2 or later.
    From72,
}

impl Rocm {
    /// The class of a version such as `7.1` or torch's `7.2.26015-…`; `None` where it does not start with two
    /// numbers.
    pub fn of_version(text: &str) -> Option<Self> {
        let mut parts = text.split(['.', '-']).map(str::parse::<u64>);
        let version = (parts.next()?.ok()?, parts.next()?.ok()?);
        Some(if version >= (7, 2) {
            Self::From72
        } else {
            Self::Below72
        })
    }
}
