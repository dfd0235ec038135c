//! How a kernel's inner loop is driven over a whole GEMM: packing, tasks, split-K, output.
//!
//! All safe code. Tasks are strips of weight rows, times the parts of split-K; each writes elements no
//! other task writes.

use std::ops::Range;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::raw::{DecodeFn, DotFn, DotJob, Pool, TileFn, TileJob, shared_f32, shared_u16};
use super::{Body, Kernel, family};
use crate::aligned::Aligned;
use crate::fp8::{BLOCK, Bf16, E4M3, QuantActivation, QuantWeight, padded_k};

/// Elements between the rows of a decoded strip beyond its columns: rows a power of two apart would
/// compete for the same few sets of L1.
const STRIP_PAD: usize = 16;

/// Scaled activations of a `stream` job: 16 KiB, half of the L1 of every CPU in question, so that the
/// weights passing through do not push them out.
const STREAM_ACTIVATIONS: usize = 4096;

/// Buffers that GEMMs reuse.
#[derive(Default)]
pub(crate) struct Workspace {
    activations: Aligned<f32>,
    partials: Aligned<f32>,
    scratch: Vec<Mutex<Scratch>>,
}

/// Buffers of one worker.
#[derive(Default)]
struct Scratch {
    strip: Aligned<f32>,
    sums: Aligned<f32>,
}

/// Where results go: bfloat16 outputs, or float32 partial sums per part of split-K.
#[derive(Clone, Copy)]
enum Target<'a> {
    Output(&'a [AtomicU16]),
    Partials(&'a [AtomicU32]),
}

#[derive(Clone, Copy)]
struct Problem<'a> {
    m: usize,
    weight: &'a QuantWeight,
    target: Target<'a>,
    parts: usize,
    decode: DecodeFn,
}

impl Problem<'_> {
    /// The columns of one part of split-K, on block borders. Parts differ by at most one block.
    fn columns(&self, part: usize) -> Range<usize> {
        let blocks = self.weight.k().div_ceil(BLOCK);
        let border = |part: usize| part * blocks / self.parts * BLOCK;
        border(part)..border(part + 1)
    }

    fn put(&self, part: usize, m: usize, n: usize, value: f32) {
        let width = self.weight.n();
        match self.target {
            Target::Output(output) => {
                output[m * width + n].store(Bf16::from_f32(value).0, Ordering::Relaxed);
            }
            Target::Partials(partials) => {
                partials[(part * self.m + m) * width + n].store(value.to_bits(), Ordering::Relaxed);
            }
        }
    }
}

/// Runs `kernel`. Sizes were checked by the caller: `out` is M x N, K is equal and not zero, there are
/// at least `parts` blocks of columns.
pub(crate) fn run(
    kernel: &Kernel,
    pool: &Pool,
    workspace: &mut Workspace,
    x: &QuantActivation,
    weight: &QuantWeight,
    parts: usize,
    out: &mut [Bf16],
) {
    let (m, n) = (x.m, weight.n());
    let Workspace {
        activations,
        partials,
        scratch,
    } = workspace;
    scratch.resize_with(scratch.len().max(pool.threads()), Mutex::default);
    let scratch = &scratch[..];
    let decode = family(kernel.isa).decode;
    let rows_of_tile = kernel.tile_m();
    let padded_m = m.div_ceil(rows_of_tile) * rows_of_tile;
    let activations = activations.at_least(padded_m * padded_k(x.k));
    match &kernel.body {
        Body::Stream { .. } => unpack(x, decode, activations),
        Body::Tile { tile, .. } => pack(x, tile.mt, pool, kernel.alone, activations),
    }
    let activations = &*activations;
    let sums = if parts > 1 {
        partials.at_least(parts * m * n)
    } else {
        &mut []
    };
    {
        let target = if parts > 1 {
            Target::Partials(shared_f32(sums))
        } else {
            Target::Output(shared_u16(out))
        };
        let problem = Problem {
            m,
            weight,
            target,
            parts,
            decode,
        };
        let rows = match kernel.body {
            Body::Stream { rows, .. } | Body::Tile { rows, .. } => rows,
        };
        let strips = n.div_ceil(rows);
        pool.run(strips * parts, kernel.alone, &|task, worker| {
            let (part, strip) = (task / strips, task % strips);
            let strip = strip * rows..((strip + 1) * rows).min(n);
            let mut scratch = scratch[worker]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match &kernel.body {
                Body::Stream { dot, .. } => {
                    stream(problem, *dot, activations, part, strip, &mut scratch);
                }
                Body::Tile { tile, kc, .. } => {
                    tiles(problem, *tile, *kc, activations, part, strip, &mut scratch);
                }
            }
        });
    }
    if parts > 1 {
        for (index, output) in out.iter_mut().enumerate() {
            let sum = (0..parts).map(|part| sums[part * m * n + index]).sum();
            *output = Bf16::from_f32(sum);
        }
    }
}

/// Decodes activations row by row, times their scales; rows and columns of padding are zero.
fn unpack(x: &QuantActivation, decode: DecodeFn, out: &mut [f32]) {
    let stride = padded_k(x.k);
    let blocks = stride / BLOCK;
    let whole = x.k / BLOCK;
    for (m, row) in out.chunks_exact_mut(stride).enumerate() {
        if m >= x.m {
            row.fill(0.0);
            continue;
        }
        let codes = &x.codes[m * x.k..(m + 1) * x.k];
        let scales = &x.scales[m * blocks..(m + 1) * blocks];
        decode.call(
            &codes[..whole * BLOCK],
            &scales[..whole],
            &mut row[..whole * BLOCK],
        );
        for (k, value) in row.iter_mut().enumerate().skip(whole * BLOCK) {
            *value = codes
                .get(k)
                .map_or(0.0, |&code| E4M3[code as usize] * scales[whole]);
        }
    }
}

/// Decodes activations into tiles of `mt` rows, for each column the rows side by side.
fn pack(x: &QuantActivation, mt: usize, pool: &Pool, alone: bool, out: &mut [f32]) {
    let stride = padded_k(x.k);
    let blocks = stride / BLOCK;
    let tiles = out.len() / (mt * stride);
    let shared = shared_f32(out);
    // One task per tile and block: a decode-sized M has one tile, and two threads still share it.
    pool.run(tiles * blocks, alone || x.m * x.k < 1 << 16, &|task, _| {
        let (tile, block) = (task / blocks, task % blocks);
        let columns = block * BLOCK..((block + 1) * BLOCK).min(x.k);
        let target = &shared[(tile * stride + block * BLOCK) * mt..][..BLOCK * mt];
        for row in 0..mt {
            let m = tile * mt + row;
            let codes = if m < x.m {
                &x.codes[m * x.k..][columns.clone()]
            } else {
                &[]
            };
            let scale = if m < x.m {
                x.scales[m * blocks + block]
            } else {
                0.0
            };
            for (at, code) in codes.iter().enumerate() {
                let value = E4M3[*code as usize] * scale;
                target[at * mt + row].store(value.to_bits(), Ordering::Relaxed);
            }
            for at in codes.len()..BLOCK {
                target[at * mt + row].store(0, Ordering::Relaxed);
            }
        }
    });
}

fn stream(
    problem: Problem<'_>,
    dot: DotFn,
    activations: &[f32],
    part: usize,
    strip: Range<usize>,
    scratch: &mut Scratch,
) {
    let weight = problem.weight;
    let stride = weight.stride();
    let columns = problem.columns(part);
    // Columns at a time, whole blocks: as many as keep the job's activations in half of L1.
    let kc = (STREAM_ACTIVATIONS / dot.mr / BLOCK).max(1) * BLOCK;
    let mut first = strip.start;
    while first < strip.end {
        // All rows of a job share their scales, so the scales can go into the activations: M·K
        // products for up to 128·M·K, and the inner loop needs none.
        let last = strip.end.min((first / BLOCK + 1) * BLOCK);
        let all_scales = weight.scale_row(first / BLOCK);
        let rows = last - first;
        let scaled = scratch.strip.at_least(dot.mr * kc);
        let results = scratch.sums.at_least(dot.mr * rows);
        for tile in 0..problem.m.div_ceil(dot.mr) {
            results.fill(0.0);
            for from in columns.clone().step_by(kc) {
                let width = kc.min(columns.end - from);
                let scales = &all_scales[from / BLOCK..(from + width) / BLOCK];
                for row in 0..dot.mr {
                    let values = &activations[(tile * dot.mr + row) * stride + from..][..width];
                    let to = &mut scaled[row * width..(row + 1) * width];
                    for ((to, values), scale) in to
                        .chunks_exact_mut(BLOCK)
                        .zip(values.chunks_exact(BLOCK))
                        .zip(scales)
                    {
                        to.iter_mut()
                            .zip(values)
                            .for_each(|(to, value)| *to = value * scale);
                    }
                }
                dot.call(DotJob {
                    x: scaled,
                    x_stride: width,
                    w: &weight.codes()[first * stride + from..],
                    w_stride: stride,
                    rows,
                    k: width,
                    out: results,
                });
            }
            for (row, values) in results.chunks_exact(rows).enumerate() {
                let m = tile * dot.mr + row;
                if m < problem.m {
                    for (n, value) in values.iter().enumerate() {
                        problem.put(part, m, first + n, *value);
                    }
                }
            }
        }
        first = last;
    }
}

fn tiles(
    problem: Problem<'_>,
    tile: TileFn,
    kc: usize,
    activations: &[f32],
    part: usize,
    strip: Range<usize>,
    scratch: &mut Scratch,
) {
    let weight = problem.weight;
    let stride = weight.stride();
    let columns = problem.columns(part);
    let tiles_m = problem.m.div_ceil(tile.mt);
    let padded_m = tiles_m * tile.mt;
    let rows = strip.len();
    let padded_rows = rows.div_ceil(tile.nr) * tile.nr;
    let strip_stride = kc + STRIP_PAD;
    let decoded = scratch.strip.at_least(padded_rows * strip_stride);
    let sums = scratch.sums.at_least(padded_rows * padded_m);
    sums.fill(0.0);
    decoded[rows * strip_stride..].fill(0.0);
    for from in columns.clone().step_by(kc) {
        let width = kc.min(columns.end - from);
        for (row, values) in decoded
            .chunks_exact_mut(strip_stride)
            .take(rows)
            .enumerate()
        {
            let n = strip.start + row;
            let codes = &weight.codes()[n * stride + from..][..width];
            let scales = &weight.scale_row(n / BLOCK)[from / BLOCK..(from + width) / BLOCK];
            problem.decode.call(codes, scales, &mut values[..width]);
        }
        for tile_m in 0..tiles_m {
            let x = &activations[(tile_m * stride + from) * tile.mt..][..width * tile.mt];
            for row in (0..padded_rows).step_by(tile.nr) {
                tile.call(TileJob {
                    x,
                    w: &decoded[row * strip_stride..],
                    w_stride: strip_stride,
                    k: width,
                    c: &mut sums[row * padded_m + tile_m * tile.mt..],
                    c_stride: padded_m,
                });
            }
        }
    }
    for (row, values) in sums.chunks_exact(padded_m).take(rows).enumerate() {
        for (m, value) in values.iter().take(problem.m).enumerate() {
            problem.put(part, m, strip.start + row, *value);
        }
    }
}
