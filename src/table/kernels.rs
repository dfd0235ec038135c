//! aiter's kernel names: which library and operation a name belongs to, and which id it has.
//!
//! Source: aiter (MIT licence), the instance lists below `csrc/ck_gemm_*` at e4048607a5: CK ids denote
//! the same instances from v0.1.7 on, and only the plain blockscale names changed (a wave-map field
//! after v0.1.9). Ids of the other libraries move between revisions and are pinned nowhere.

use std::sync::LazyLock;

use crate::shape::Op;

/// Where a kernel comes from: the meaning of the `libtype` column.
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
    /// Every library.
    pub const ALL: [Self; 6] = [
        Self::Ck,
        Self::CkTile,
        Self::Asm,
        Self::FlyDsl,
        Self::Triton,
        Self::Opus,
    ];

    /// The text of the `libtype` column.
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

    /// The library `libtype` names.
    pub fn of_libtype(libtype: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|library| library.name() == libtype)
    }

    /// The library a kernel of this name comes from, where aiter's naming says it.
    pub fn of_kernel(name: &str) -> Option<Self> {
        let digit_after = |prefix: &str| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        };
        if name.starts_with("_ZN") {
            Some(Self::Asm)
        } else if name.starts_with("flydsl") {
            Some(Self::FlyDsl)
        } else if name.starts_with("opus") {
            Some(Self::Opus)
        } else if name.starts_with("triton") || name.starts_with("gluon") {
            Some(Self::Triton)
        } else if name.starts_with("a8w8_blockscale_cktile_")
            || name.starts_with("a8w8_bpreshuffle_cktile_")
            || name.starts_with("a8w8_blockscale_bpreshuffle_cktile_")
        {
            Some(Self::CkTile)
        } else if [
            "a8w8_blockscale_",
            "a8w8_blockscale_bpreshuffle_",
            "a8w8_bpreshuffle_",
            "a8w8_rowwise_",
            "a4w4_blockscale_",
        ]
        .into_iter()
        .any(digit_after)
        {
            Some(Self::Ck)
        } else {
            None
        }
    }

    /// Whether aiter's dispatcher of `op` knows this library, at any revision.
    pub fn serves(self, op: Op) -> bool {
        match op {
            // Triton from aiter#5586 on.
            Op::Blockscale => matches!(self, Self::Ck | Self::CkTile | Self::Triton),
            Op::BlockscaleBpreshuffle => true,
            Op::Bpreshuffle => matches!(self, Self::Ck | Self::CkTile | Self::Asm | Self::FlyDsl),
            Op::A8w8 | Op::A4w4 => matches!(self, Self::Ck | Self::Asm),
            Op::TritonBlockFp8 => self == Self::Triton,
        }
    }
}

/// The name of `op`'s CK instance `id`, in today's spelling.
pub fn ck_name(op: Op, id: i64) -> Option<&'static str> {
    ck_names(op).get(usize::try_from(id).ok()?).copied()
}

/// How many CK instances `op` has; 0 for operations CK does not serve.
pub fn ck_count(op: Op) -> usize {
    ck_names(op).len()
}

/// The first id of the CK instance called `name`, in today's spelling or that before the wave-map
/// field. A few names stand for two instances.
pub fn ck_id(op: Op, name: &str) -> Option<i64> {
    let at = ck_names(op)
        .iter()
        .position(|known| is_spelling_of(op, name, known))?;
    i64::try_from(at).ok()
}

/// Whether `name` is how some revision spells the instance that is called `known` today.
pub fn is_spelling_of(op: Op, name: &str, known: &str) -> bool {
    name == known || (op == Op::Blockscale && name == before_wave_map(known))
}

/// Whether `name` is a known instance in the spelling of v0.1.9 and older, which HEAD does not know.
pub fn is_old_spelling(op: Op, name: &str) -> bool {
    op == Op::Blockscale
        && !ck_names(op).contains(&name)
        && ck_names(op)
            .iter()
            .any(|known| before_wave_map(known) == name)
}

/// A plain blockscale name as it was before its wave-map field (`2x2`, the seventh) was added.
fn before_wave_map(name: &str) -> String {
    let fields = name.split('_').enumerate().filter(|(index, _)| *index != 6);
    fields.map(|(_, field)| field).collect::<Vec<_>>().join("_")
}

/// Names by id. The files hold one name a line; the first is id 0.
fn ck_names(op: Op) -> &'static [&'static str] {
    type Names = LazyLock<Vec<&'static str>>;
    static BLOCKSCALE: Names = LazyLock::new(|| {
        include_str!("kernels/gemm_a8w8_blockscale.txt")
            .lines()
            .collect()
    });
    static BLOCKSCALE_BPRESHUFFLE: Names = LazyLock::new(|| {
        include_str!("kernels/gemm_a8w8_blockscale_bpreshuffle.txt")
            .lines()
            .collect()
    });
    static BPRESHUFFLE: Names = LazyLock::new(|| {
        include_str!("kernels/gemm_a8w8_bpreshuffle.txt")
            .lines()
            .collect()
    });
    static A8W8: Names = LazyLock::new(|| include_str!("kernels/gemm_a8w8.txt").lines().collect());
    static A4W4: Names = LazyLock::new(|| include_str!("kernels/gemm_a4w4.txt").lines().collect());
    match op {
        Op::Blockscale => &BLOCKSCALE,
        Op::BlockscaleBpreshuffle => &BLOCKSCALE_BPRESHUFFLE,
        Op::Bpreshuffle => &BPRESHUFFLE,
        Op::A8w8 => &A8W8,
        Op::A4w4 => &A4W4,
        Op::TritonBlockFp8 => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_agree_in_both_spellings() {
        let counts = Op::ALL.map(ck_count);
        assert_eq!(counts, [19, 18, 159, 86, 20, 0]);
        for op in Op::ALL {
            let count = i64::try_from(ck_count(op)).unwrap();
            for id in 0..count {
                let name = ck_name(op, id).unwrap();
                assert_eq!(ck_name(op, ck_id(op, name).unwrap()), Some(name));
                assert!(!is_old_spelling(op, name));
                assert_eq!(Library::of_kernel(name), Some(Library::Ck), "{name}");
            }
            assert_eq!(ck_name(op, count), None);
        }
        let old = "a8w8_blockscale_1x128x128_256x16x128x256_16x16_16x16_16x16x1_16x16x1_1x16x1x16_8_1x2_intrawave_v1";
        assert_eq!(ck_id(Op::Blockscale, old), Some(7));
        assert!(is_old_spelling(Op::Blockscale, old));
        assert_eq!(ck_id(Op::A8w8, old), None);
    }

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
