//! Rotary embedding and grouped-query attention over the cache, in float32.

use crate::config::ModelConfig;
use crate::fp8::Bf16;
use crate::kernels::Pool;
use crate::model::{Segment, rms_norm};

/// Cosines and sines of every position, half a head each.
pub(crate) struct Rotary {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    pub(crate) fn new(head_dim: usize, positions: usize, theta: f32) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|index| f64::from(theta).powf(-(index as f64) / half as f64))
            .collect();
        let angles = (0..positions).flat_map(|position| {
            frequencies
                .iter()
                .map(move |frequency| position as f64 * frequency)
        });
        let (sin, cos) = angles
            .map(|angle| (angle.sin() as f32, angle.cos() as f32))
            .unzip();
        Self { half, cos, sin }
    }

    /// Turns one head in place, first half against second as Llama and Qwen do.
    fn turn(&self, head: &mut [f32], position: usize) {
        let cos = &self.cos[position * self.half..][..self.half];
        let sin = &self.sin[position * self.half..][..self.half];
        let (first, second) = head.split_at_mut(self.half);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// Appends keys and values of the new tokens to the caches and returns the attention output, M rows of
/// all query heads. `qkv` is the fused projection, M rows; `norms` are the weights of the per-head
/// normalisation of queries and keys, where the model has it.
pub(crate) fn attend(
    config: &ModelConfig,
    rotary: &Rotary,
    norms: Option<(&[f32], &[f32])>,
    layer: usize,
    qkv: &[Bf16],
    segments: &mut [Segment<'_>],
    pool: &Pool,
) -> Vec<f32> {
    let dim = config.head_dim;
    let width = config.heads * dim;
    let kv_width = config.kv_heads * dim;
    let mut queries: Vec<f32> = Vec::with_capacity(qkv.len());
    // For each row its segment and how many positions it sees.
    let mut seen = Vec::new();
    let mut rows = qkv.chunks_exact(width + 2 * kv_width);
    for (index, segment) in segments.iter_mut().enumerate() {
        let start = segment.cache.positions();
        let cache = &mut segment.cache.layers[layer];
        for (position, row) in (start..).zip(rows.by_ref().take(segment.tokens.len())) {
            let from = queries.len();
            queries.extend(row[..width].iter().map(|value| value.to_f32()));
            for head in queries[from..].chunks_exact_mut(dim) {
                if let Some((query_norm, _)) = norms {
                    rms_norm(head, query_norm, config.rms_norm_eps);
                }
                rotary.turn(head, position);
            }
            let from = cache.keys.len();
            cache.keys.extend(
                row[width..width + kv_width]
                    .iter()
                    .map(|value| value.to_f32()),
            );
            for head in cache.keys[from..].chunks_exact_mut(dim) {
                if let Some((_, key_norm)) = norms {
                    rms_norm(head, key_norm, config.rms_norm_eps);
                }
                rotary.turn(head, position);
            }
            cache
                .values
                .extend(row[width + kv_width..].iter().map(|value| value.to_f32()));
            seen.push((index, position + 1));
        }
    }
    let group = config.heads / config.kv_heads;
    let scale = 1.0 / (dim as f32).sqrt();
    let mut out = vec![0.0; queries.len()];
    let segments = &*segments;
    // A task is the query heads of one row that share a key head.
    pool.run_pieces(&mut out, group * dim, &|task, heads| {
        let (row, kv_head) = (task / config.kv_heads, task % config.kv_heads);
        let (segment, positions) = seen[row];
        let cache = &segments[segment].cache.layers[layer];
        let keys = cache.keys[kv_head * dim..].chunks(kv_width).take(positions);
        let values = cache.values[kv_head * dim..].chunks(kv_width);
        let mut weights = Vec::with_capacity(positions);
        for (index, out) in heads.chunks_exact_mut(dim).enumerate() {
            let query = &queries[row * width + (kv_head * group + index) * dim..][..dim];
            weights.clear();
            weights.extend(keys.clone().map(|key| dot(query, &key[..dim]) * scale));
            softmax(&mut weights);
            for (weight, value) in weights.iter().zip(values.clone()) {
                out.iter_mut()
                    .zip(value)
                    .for_each(|(sum, value)| *sum += weight * value);
            }
        }
    });
    out
}

fn softmax(values: &mut [f32]) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in values.iter_mut() {
        *value = (*value - max).exp();
        sum += *value;
    }
    for value in values {
        *value /= sum;
    }
}

/// Sum of products in eight interleaved sums, an order compilers can vectorise.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a_whole, a_rest) = a.as_chunks::<8>();
    let (b_whole, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_keeps_length_and_depends_on_distance_only() {
        let rotary = Rotary::new(8, 100, 10_000.0);
        let head =
            |seed: usize| -> Vec<f32> { (0..8).map(|i| ((i * 7 + seed) as f32).sin()).collect() };
        let score = |at: usize, other: usize| {
            let (mut a, mut b) = (head(1), head(2));
            rotary.turn(&mut a, at);
            rotary.turn(&mut b, other);
            assert!((dot(&a, &a) - dot(&head(1), &head(1))).abs() < 1e-4);
            dot(&a, &b)
        };
        assert!((score(3, 10) - score(60, 67)).abs() < 1e-4);
        assert!((score(3, 10) - score(3, 11)).abs() > 1e-4);
    }

    #[test]
    fn softmax_sums_to_one_also_for_large_scores() {
        let mut values = [1000.0, 1001.0, 999.0];
        softmax(&mut values);
        assert!((values.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(values[1] > values[0] && values[0] > values[2]);
    }
}
