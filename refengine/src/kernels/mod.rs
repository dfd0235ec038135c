//! The family of block-scaled FP8 GEMM kernels: which there are, and how one is run.
//!
//! Two ideas, many tile sizes:
//! - `stream` decodes weight codes in registers as they arrive from memory and uses them at once, for
//!   MR activation rows. It reads each weight byte once per MR rows: right while memory is the limit.
//! - `tile` decodes a strip of weights to float32 in cache and multiplies it with packed activations in
//!   register tiles of MT rows, M rounded up to MT as GPU kernels do: right once arithmetic is the limit.
//!
//! A kernel name spells its parameters: `stream_m4n2r64` is MR = 4, NR = 2, 64 weight rows a task;
//! `tile_m16n6k256r48` is MT = 16, NR = 6, 256 columns of a 48-row strip at a time; `_t1` runs on the calling
//! thread only. Ids and names never change meaning: tables on disk hold them.
//!
//! The AVX-512 kernels share all code but some forty intrinsics with the others. They have been compiled
//! but not run by their authors, who had no such CPU; the tests check them wherever there is one.
//!
//! For one kernel and split-K the order of additions is fixed, whatever thread runs which task, so
//! results are the same to the bit on every run.

mod drive;
mod raw;

use std::sync::OnceLock;

pub(crate) use drive::Workspace;
use raw::{BurnFn, DecodeFn, DotFn, TileFn};
pub use raw::{Isa, Pool};

use crate::fp8::{Bf16, QuantActivation, QuantWeight};

/// Largest split-K exponent: 2^3 = 8 parts. More parts than that never won on 2 to 64 cores, since
/// N is already cut into strips.
pub const MAX_SPLIT_K: u32 = 3;

/// One kernel of the family.
pub struct Kernel {
    id: u32,
    name: String,
    isa: Isa,
    alone: bool,
    body: Body,
}

enum Body {
    Stream {
        dot: DotFn,
        rows: usize,
    },
    Tile {
        tile: TileFn,
        kc: usize,
        rows: usize,
    },
}

impl Kernel {
    /// The kernel's number, stable, unique over all instruction sets.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The kernel's name, stable, unique within an instruction set.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The instruction set it is compiled for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Rows that M is rounded up to.
    pub fn tile_m(&self) -> usize {
        match &self.body {
            Body::Stream { dot, .. } => dot.mr,
            Body::Tile { tile, .. } => tile.mt,
        }
    }

    /// Whether it runs on the calling thread only.
    pub fn is_single_thread(&self) -> bool {
        self.alone
    }

    /// Runs it over a GEMM whose sizes the caller has checked.
    pub(crate) fn run(
        &self,
        pool: &Pool,
        workspace: &mut Workspace,
        x: &QuantActivation,
        weight: &QuantWeight,
        parts: usize,
        out: &mut [Bf16],
    ) {
        drive::run(self, pool, workspace, x, weight, parts, out);
    }

    /// What it does, in a sentence.
    pub fn description(&self) -> String {
        let threads = if self.alone {
            "one thread"
        } else {
            "all threads"
        };
        match &self.body {
            Body::Stream { dot, rows } => format!(
                "decodes weights in registers for {} activation rows and {} weight rows at once, {rows} weight rows a task, {threads}",
                dot.mr, dot.nr
            ),
            Body::Tile { tile, kc, rows } => format!(
                "decodes strips of {rows} weight rows by {kc} columns, register tile of {} activation rows by {} weight rows, {threads}",
                tile.mt, tile.nr
            ),
        }
    }
}

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{} ({}, {})",
            self.name,
            self.id,
            self.isa.name()
        )
    }
}

/// Parameters of one kernel; the id is its place in the family's list plus the family's base.
#[derive(Clone, Copy)]
enum Spec {
    /// MR, NR, weight rows a task.
    Stream(usize, usize, usize),
    /// MT, NR, columns of a strip, weight rows of a strip.
    Tile(usize, usize, usize, usize),
    /// As the first, on the calling thread.
    StreamAlone(usize, usize, usize),
    /// As the second, on the calling thread.
    TileAlone(usize, usize, usize, usize),
}

use Spec::{Stream, StreamAlone, Tile, TileAlone};

/// Lists are appended to, never reordered: ids are places.
const PORTABLE: (u32, &[Spec]) = (
    0,
    &[
        Stream(1, 1, 64),
        Stream(1, 2, 64),
        Stream(1, 4, 64),
        Stream(2, 2, 64),
        Stream(4, 1, 64),
        Tile(8, 2, 256, 48),
        Tile(8, 4, 256, 48),
        Tile(8, 6, 256, 48),
        Tile(8, 4, 512, 96),
        StreamAlone(1, 2, 128),
        StreamAlone(2, 2, 128),
        TileAlone(8, 4, 256, 48),
    ],
);

const AVX2: (u32, &[Spec]) = (
    100,
    &[
        Stream(1, 1, 64),
        Stream(1, 2, 64),
        Stream(1, 4, 32),
        Stream(1, 4, 64),
        Stream(1, 4, 128),
        Stream(1, 8, 64),
        Stream(2, 2, 64),
        Stream(2, 4, 64),
        Stream(3, 2, 64),
        Stream(3, 4, 64),
        Stream(4, 1, 64),
        Stream(4, 2, 64),
        Stream(4, 3, 128),
        Stream(5, 2, 64),
        Stream(6, 1, 64),
        Stream(6, 2, 64),
        Stream(8, 1, 64),
        Tile(8, 8, 256, 48),
        Tile(8, 12, 256, 48),
        Tile(8, 12, 512, 24),
        Tile(16, 4, 256, 48),
        Tile(16, 6, 128, 48),
        Tile(16, 6, 256, 24),
        Tile(16, 6, 256, 48),
        Tile(16, 6, 256, 96),
        Tile(16, 6, 512, 48),
        Tile(24, 4, 128, 48),
        Tile(24, 4, 256, 48),
        Tile(24, 4, 256, 96),
        Tile(32, 3, 128, 48),
        Tile(32, 3, 256, 48),
        StreamAlone(1, 4, 128),
        StreamAlone(2, 4, 128),
        StreamAlone(4, 2, 128),
        TileAlone(8, 12, 256, 48),
        TileAlone(16, 6, 256, 48),
    ],
);

const AVX512: (u32, &[Spec]) = (
    200,
    &[
        Stream(1, 1, 64),
        Stream(1, 2, 64),
        Stream(1, 4, 32),
        Stream(1, 4, 64),
        Stream(1, 4, 128),
        Stream(1, 8, 64),
        Stream(2, 2, 64),
        Stream(2, 4, 64),
        Stream(2, 8, 64),
        Stream(3, 4, 64),
        Stream(4, 2, 64),
        Stream(4, 4, 64),
        Stream(6, 2, 64),
        Stream(6, 4, 64),
        Stream(8, 1, 64),
        Stream(8, 3, 128),
        Tile(16, 12, 256, 48),
        Tile(16, 24, 256, 48),
        Tile(32, 8, 256, 48),
        Tile(32, 12, 128, 48),
        Tile(32, 12, 256, 24),
        Tile(32, 12, 256, 48),
        Tile(32, 12, 256, 96),
        Tile(48, 8, 128, 48),
        Tile(48, 8, 256, 48),
        Tile(64, 6, 128, 48),
        StreamAlone(1, 4, 128),
        StreamAlone(2, 4, 128),
        StreamAlone(4, 2, 128),
        TileAlone(16, 12, 256, 48),
        TileAlone(32, 12, 256, 48),
    ],
);

/// The kernel that serves every shape no table row covers, per instruction set.
///
/// For AVX2 it is the best single one at M = 256 over the linear layers of the demo model: least CPU
/// time on an EPYC of the Zen 3 generation, 3 to 5 % before the other 16-row tiles, 9 % before the
/// 8-row ones and 40 % before streaming. `cargo bench -p gemmtune-refengine -- --default` repeats
/// that. For AVX-512 the tiles of 16 to 64 rows are equal within 3 % there (an EPYC of the Zen 4
/// generation); of equals it is the one with the fewest rows, because small M is rounded up to its
/// tile. The portable one is their counterpart, not measured. Nothing about a default is slowed down:
/// like a GPU's, its tile is made for large M.
fn default_name(isa: Isa) -> &'static str {
    match isa.name() {
        "avx512" => "tile_m16n12k256r48",
        "avx2" => "tile_m16n6k512r48",
        _ => "tile_m8n4k256r48",
    }
}

struct Family {
    kernels: Vec<Kernel>,
    decode: DecodeFn,
    burn: BurnFn,
}

fn family(isa: Isa) -> &'static Family {
    static FAMILIES: [OnceLock<Family>; 3] = [const { OnceLock::new() }; 3];
    let (place, (base, specs)) = match isa.name() {
        "avx512" => (2, AVX512),
        "avx2" => (1, AVX2),
        _ => (0, PORTABLE),
    };
    FAMILIES[place].get_or_init(|| {
        let tables = raw::tables(isa);
        let kernels = specs
            .iter()
            .enumerate()
            .map(|(index, &spec)| build(&tables, isa, base + index as u32, spec))
            .collect();
        Family {
            kernels,
            decode: tables.decode,
            burn: tables.burn,
        }
    })
}

fn build(tables: &raw::Tables, isa: Isa, id: u32, spec: Spec) -> Kernel {
    let (alone, suffix) = match spec {
        Stream(..) | Tile(..) => (false, ""),
        StreamAlone(..) | TileAlone(..) => (true, "_t1"),
    };
    let (name, body) = match spec {
        Stream(mr, nr, rows) | StreamAlone(mr, nr, rows) => {
            let dot = *tables
                .dots
                .iter()
                .find(|dot| (dot.mr, dot.nr) == (mr, nr))
                .expect("every stream of the list is compiled: a test builds all families");
            (
                format!("stream_m{mr}n{nr}r{rows}{suffix}"),
                Body::Stream { dot, rows },
            )
        }
        Tile(mt, nr, kc, rows) | TileAlone(mt, nr, kc, rows) => {
            let tile = *tables
                .tiles
                .iter()
                .find(|tile| (tile.mt, tile.nr) == (mt, nr))
                .expect("every tile of the list is compiled: a test builds all families");
            (
                format!("tile_m{mt}n{nr}k{kc}r{rows}{suffix}"),
                Body::Tile { tile, kc, rows },
            )
        }
    };
    Kernel {
        id,
        name,
        isa,
        alone,
        body,
    }
}

/// Multiply-adds in registers only, `rounds` of them: the floating-point operations done, and a value
/// to keep. What a roofline's flat part is measured with.
pub(crate) fn burn(isa: Isa, rounds: usize) -> (f64, f32) {
    family(isa).burn.call(rounds)
}

/// The kernels for `isa`, by id.
pub fn of(isa: Isa) -> &'static [Kernel] {
    &family(isa).kernels
}

/// The kernels of the best instruction set of this CPU, by id.
pub fn all() -> &'static [Kernel] {
    of(Isa::best())
}

/// The kernel that serves every shape without a table row.
pub fn default_kernel(isa: Isa) -> &'static Kernel {
    by_name(isa, default_name(isa)).expect("the default is in the list: a test looks it up")
}

/// The kernel of that name for `isa`.
pub fn by_name(isa: Isa, name: &str) -> Option<&'static Kernel> {
    of(isa).iter().find(|kernel| kernel.name == name)
}

/// The kernel of that id for `isa`.
pub fn by_id(isa: Isa, id: u32) -> Option<&'static Kernel> {
    of(isa).iter().find(|kernel| kernel.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_family_has_its_default_and_unique_names_and_ids() {
        let mut ids = BTreeSet::new();
        for isa in Isa::available() {
            let kernels = of(isa);
            assert!(kernels.contains(default_kernel(isa)));
            let names: BTreeSet<&str> = kernels.iter().map(Kernel::name).collect();
            assert_eq!(names.len(), kernels.len());
            for kernel in kernels {
                assert!(ids.insert(kernel.id()), "{kernel:?}");
                assert_eq!(by_id(isa, kernel.id()).unwrap().name(), kernel.name());
            }
        }
    }
}
