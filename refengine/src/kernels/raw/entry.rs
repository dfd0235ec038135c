//! Instruction sets found at run time, and the functions compiled for each.

use super::micro::{self, DotJob, TileJob};
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Portable, Simd as _};

/// An instruction set that the running CPU has. Only [`Isa::available`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// Every instruction set of the running CPU, best first; the portable one is always last.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                found.push(Self(Kind::Avx512));
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                found.push(Self(Kind::Avx2));
            }
        }
        found.push(Self(Kind::Portable));
        found
    }

    /// The best instruction set of the running CPU.
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// The name used as `gfx` in tables: `avx512`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
        }
    }
}

/// A `stream` inner loop for one register tile. Its `isa` exists on this CPU.
#[derive(Clone, Copy)]
pub(crate) struct DotFn {
    call: unsafe fn(DotJob<'_>),
    /// Activation rows.
    pub(crate) mr: usize,
    /// Weight rows.
    pub(crate) nr: usize,
}

impl DotFn {
    /// Runs it; lengths are asserted inside.
    pub(crate) fn call(&self, job: DotJob<'_>) {
        // SAFETY: a DotFn comes only from `tables`, for an Isa that the running CPU has.
        unsafe { (self.call)(job) }
    }
}

/// A `tile` inner loop for one register tile. Its `isa` exists on this CPU.
#[derive(Clone, Copy)]
pub(crate) struct TileFn {
    call: unsafe fn(TileJob<'_>),
    /// Activation rows: registers times lanes.
    pub(crate) mt: usize,
    /// Weight rows.
    pub(crate) nr: usize,
}

impl TileFn {
    /// Runs it; lengths are asserted inside.
    pub(crate) fn call(&self, job: TileJob<'_>) {
        // SAFETY: a TileFn comes only from `tables`, for an Isa that the running CPU has.
        unsafe { (self.call)(job) }
    }
}

/// The decoder of one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct DecodeFn(unsafe fn(&[u8], &[f32], &mut [f32]));

impl DecodeFn {
    /// Decodes whole blocks of 128 codes; lengths are asserted inside.
    pub(crate) fn call(self, codes: &[u8], scales: &[f32], out: &mut [f32]) {
        // SAFETY: a DecodeFn comes only from `tables`, for an Isa that the running CPU has.
        unsafe { (self.0)(codes, scales, out) }
    }
}

/// Multiply-adds in registers, for one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct BurnFn(unsafe fn(usize) -> (f64, f32));

impl BurnFn {
    /// Runs it; see `micro::burn`.
    pub(crate) fn call(self, rounds: usize) -> (f64, f32) {
        // SAFETY: a BurnFn comes only from `tables`, for an Isa that the running CPU has.
        unsafe { (self.0)(rounds) }
    }
}

/// Everything compiled for one instruction set.
pub(crate) struct Tables {
    pub(crate) dots: Vec<DotFn>,
    pub(crate) tiles: Vec<TileFn>,
    pub(crate) decode: DecodeFn,
    pub(crate) burn: BurnFn,
}

/// Compiles the inner loops for an instruction set: `dot MRxNR` and `tile MVxNR` lists.
macro_rules! compiled {
    ($module:ident, $simd:ty, $(#[$feature:meta])?, dot $($dm:literal x $dn:literal)*, tile $($tm:literal x $tn:literal)*) => {
        mod $module {
            use super::*;

            // SAFETY (each function): the caller runs on a CPU with the instruction set.
            $(#[$feature])?
            unsafe fn dot<const MR: usize, const NR: usize>(job: DotJob<'_>) {
                // SAFETY: as the function's own.
                unsafe { micro::dot::<$simd, MR, NR>(job) }
            }

            $(#[$feature])?
            unsafe fn tile<const MV: usize, const NR: usize>(job: TileJob<'_>) {
                // SAFETY: as the function's own.
                unsafe { micro::tile::<$simd, MV, NR>(job) }
            }

            $(#[$feature])?
            unsafe fn decode(codes: &[u8], scales: &[f32], out: &mut [f32]) {
                // SAFETY: as the function's own.
                unsafe { micro::decode::<$simd>(codes, scales, out) }
            }

            $(#[$feature])?
            unsafe fn burn(rounds: usize) -> (f64, f32) {
                // SAFETY: as the function's own.
                unsafe { micro::burn::<$simd>(rounds) }
            }

            pub(super) fn tables() -> Tables {
                Tables {
                    dots: vec![$(DotFn { call: dot::<$dm, $dn>, mr: $dm, nr: $dn }),*],
                    tiles: vec![$(TileFn { call: tile::<$tm, $tn>, mt: $tm * <$simd>::LANES, nr: $tn }),*],
                    decode: DecodeFn(decode),
                    burn: BurnFn(burn),
                }
            }
        }
    };
}

// Accumulators are MR*NR or MV*NR registers. Portable code has sixteen 128-bit ones on x86-64, half
// a lane group each; AVX2 sixteen, AVX-512 thirty-two, of which three or more must stay free.
compiled!(portable, Portable, , dot 1 x 1 1 x 2 1 x 4 2 x 2 4 x 1, tile 1 x 2 1 x 4 1 x 6);

#[cfg(target_arch = "x86_64")]
compiled!(avx2, Avx2, #[target_feature(enable = "avx2,fma,f16c")],
    dot 1 x 1 1 x 2 1 x 4 1 x 8 2 x 2 2 x 4 3 x 2 3 x 4 4 x 1 4 x 2 4 x 3 5 x 2 6 x 1 6 x 2 8 x 1,
    tile 1 x 8 1 x 12 2 x 4 2 x 6 3 x 4 4 x 3);

#[cfg(target_arch = "x86_64")]
compiled!(avx512, Avx512, #[target_feature(enable = "avx512f,avx512bw")],
    dot 1 x 1 1 x 2 1 x 4 1 x 8 2 x 2 2 x 4 2 x 8 3 x 4 4 x 2 4 x 4 6 x 2 6 x 4 8 x 1 8 x 3,
    tile 1 x 12 1 x 24 2 x 8 2 x 12 3 x 8 4 x 6);

/// The inner loops compiled for `isa`.
pub(crate) fn tables(isa: Isa) -> Tables {
    match isa.0 {
        Kind::Portable => portable::tables(),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => avx2::tables(),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => avx512::tables(),
    }
}
