//! A decoder-only model with seeded random weights: RMSNorm, rotary embedding, grouped-query attention,
//! gated MLP. Every linear layer is a block-FP8 GEMM; embedding and output head are plain bfloat16.

use crate::attention::{self, Rotary};
use crate::config::ModelConfig;
use crate::dispatch::DispatchError;
use crate::fp8::{Bf16, QuantActivation, WeightError};
use crate::kernels::Pool;
use crate::linear::{Linear, LinearPath};
use crate::measure::random_weight;
use crate::rng::SplitMix64;

/// A forward pass failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ForwardError {
    /// A GEMM could not be run.
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
    /// A logit is NaN or infinite.
    #[error("sample a token: the logits are not finite")]
    NotFinite,
}

struct Layer {
    attention_norm: Vec<f32>,
    mlp_norm: Vec<f32>,
    query_norm: Vec<f32>,
    key_norm: Vec<f32>,
    qkv: Linear,
    output: Linear,
    gate_up: Linear,
    down: Linear,
}

/// A model in memory.
pub struct Model {
    config: ModelConfig,
    layers: Vec<Layer>,
    embedding: Vec<Bf16>,
    final_norm: Vec<f32>,
    /// Output head row of a token: the embedding row of the token this points to.
    head_row: Vec<u32>,
    rotary: Rotary,
}

/// Keys and values of one layer, position-major.
#[derive(Clone, Debug, Default)]
pub struct LayerCache {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

/// What a sequence leaves behind in the model.
#[derive(Clone, Debug)]
pub struct Cache {
    pub(crate) layers: Vec<LayerCache>,
    positions: usize,
}

impl Cache {
    /// Positions in the cache.
    pub fn positions(&self) -> usize {
        self.positions
    }
}

/// New tokens of one sequence in a batch.
pub struct Segment<'a> {
    /// The sequence's cache; grows by the tokens.
    pub cache: &'a mut Cache,
    /// The tokens, below the vocabulary size.
    pub tokens: &'a [u32],
}

/// Share of the residual stream's final variance that comes from the layers, per unit of embedding
/// variance. At 16 a next-token margin is several times what rounding differences between kernels
/// move, so greedy answers of two correct kernels agree, while log-probabilities still feel every layer.
const LAYER_VARIANCE: f32 = 16.0;

/// Root mean square of silu(g)·u for two standard normals, by which the MLP's output is scaled up.
const GATED_RMS: f32 = 0.6;

impl Model {
    /// Makes the weights from a seed, several linear layers at once. `progress(done, total)` is told
    /// after each decoder layer and ends the work early by returning false.
    pub fn seeded(
        config: ModelConfig,
        seed: u64,
        pool: &Pool,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<Self>, WeightError> {
        let mut layers = Vec::with_capacity(config.layers);
        let per_layer = (LAYER_VARIANCE / config.layers as f32).sqrt();
        for index in 0..config.layers {
            let mut weights: [Option<Result<_, WeightError>>; 4] = [const { None }; 4];
            pool.run_pieces(&mut weights, 1, &|part, slot| {
                let (_, n, k) = config.linears()[part];
                // Three quarters of the variance from the MLP, whose output does not shrink as the
                // context grows; attention averages values over it.
                let gain = match part {
                    1 => 0.5 * per_layer,
                    3 => 0.866 * per_layer / GATED_RMS,
                    _ => 1.0,
                };
                let part_seed = seed
                    .wrapping_mul(0x1_0001)
                    .wrapping_add((index * 4 + part) as u64);
                slot[0] = Some(random_weight(n, k, gain / (k as f32).sqrt(), part_seed));
            });
            let mut linears = Vec::with_capacity(4);
            for (weight, (name, ..)) in weights.into_iter().zip(config.linears()) {
                let weight = weight.expect("run_pieces visits every piece")?;
                linears.push(Linear {
                    prefix: format!("model.layers.{index}.{name}"),
                    weight,
                });
            }
            let [qkv, output, gate_up, down] =
                <[Linear; 4]>::try_from(linears).expect("four were pushed");
            let mut rng = SplitMix64::for_part(seed, 1_000_000 + index as u64);
            let mut norm = |len: usize| {
                (0..len)
                    .map(|_| 1.0 + 0.05 * rng.normal())
                    .collect::<Vec<f32>>()
            };
            layers.push(Layer {
                attention_norm: norm(config.hidden),
                mlp_norm: norm(config.hidden),
                query_norm: norm(config.head_dim),
                key_norm: norm(config.head_dim),
                qkv,
                output,
                gate_up,
                down,
            });
            if !progress(index + 1, config.layers) {
                return Ok(None);
            }
        }
        let mut embedding = vec![Bf16::default(); config.vocab * config.hidden];
        pool.run_pieces(&mut embedding, config.hidden, &|token, row| {
            let mut rng = SplitMix64::for_part(seed, 2_000_000 + token as u64);
            for value in row {
                *value = Bf16::from_f32(rng.normal());
            }
        });
        let rotary = Rotary::new(config.head_dim, config.context, config.rope_theta);
        Ok(Some(Self {
            head_row: permutation(config.vocab, seed),
            final_norm: vec![1.0; config.hidden],
            layers,
            embedding,
            rotary,
            config,
        }))
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// An empty cache.
    pub fn cache(&self) -> Cache {
        Cache {
            layers: vec![LayerCache::default(); self.config.layers],
            positions: 0,
        }
    }

    /// Runs the new tokens of several sequences through the model in one batch (M of every GEMM is
    /// their number) and returns the logits after the last token of each segment.
    ///
    /// The result for a sequence depends on its batch: M decides which kernels run, and kernels round
    /// differently. For the same batch and table it is the same to the bit.
    pub fn forward(
        &self,
        path: &LinearPath,
        segments: &mut [Segment<'_>],
    ) -> Result<Vec<Vec<f32>>, ForwardError> {
        let config = &self.config;
        let pool = path.dispatcher().device().pool();
        let m: usize = segments.iter().map(|segment| segment.tokens.len()).sum();
        if m == 0 {
            return Ok(segments.iter().map(|_| Vec::new()).collect());
        }
        let mut hidden = Vec::with_capacity(m * config.hidden);
        for token in segments.iter().flat_map(|segment| segment.tokens) {
            let row = &self.embedding[*token as usize * config.hidden..][..config.hidden];
            hidden.extend(row.iter().map(|value| value.to_f32()));
        }
        let mut scratch = Scratch::default();
        for (index, layer) in self.layers.iter().enumerate() {
            self.normalise(&hidden, &layer.attention_norm, &mut scratch.normed);
            path.forward(
                &layer.qkv,
                &scratch.normed,
                m,
                &mut scratch.x,
                &mut scratch.y,
            )?;
            let norms = config
                .qk_norm
                .then_some((&layer.query_norm[..], &layer.key_norm[..]));
            let attended = attention::attend(
                config,
                &self.rotary,
                norms,
                index,
                &scratch.y,
                segments,
                pool,
            );
            path.forward(&layer.output, &attended, m, &mut scratch.x, &mut scratch.y)?;
            add(&mut hidden, &scratch.y);
            self.normalise(&hidden, &layer.mlp_norm, &mut scratch.normed);
            path.forward(
                &layer.gate_up,
                &scratch.normed,
                m,
                &mut scratch.x,
                &mut scratch.y,
            )?;
            gate(&scratch.y, config.intermediate, &mut scratch.gated);
            path.forward(
                &layer.down,
                &scratch.gated,
                m,
                &mut scratch.x,
                &mut scratch.y,
            )?;
            add(&mut hidden, &scratch.y);
        }
        let mut last = Vec::with_capacity(segments.len() * config.hidden);
        let mut row = 0;
        for segment in segments.iter_mut() {
            segment.cache.positions += segment.tokens.len();
            row += segment.tokens.len();
            let from = row.saturating_sub(1) * config.hidden;
            last.extend_from_slice(&hidden[from..from + config.hidden]);
        }
        let mut normed = Vec::new();
        self.normalise(&last, &self.final_norm, &mut normed);
        Ok(self.logits(&normed, pool))
    }

    /// Logits of several rows, each output head row read once for all of them.
    fn logits(&self, rows: &[f32], pool: &Pool) -> Vec<Vec<f32>> {
        let hidden = self.config.hidden;
        let count = rows.len() / hidden;
        let scale = 1.0 / (hidden as f32).sqrt();
        let mut by_token = vec![0.0; self.config.vocab * count];
        // 64 tokens a task: some thousand multiply-adds each, well above the cost of claiming one.
        pool.run_pieces(&mut by_token, 64 * count, &|piece, values| {
            let mut head = vec![0.0; hidden];
            for (at, logits) in values.chunks_exact_mut(count).enumerate() {
                let token = self.head_row[piece * 64 + at] as usize;
                let row = &self.embedding[token * hidden..][..hidden];
                head.iter_mut()
                    .zip(row)
                    .for_each(|(value, code)| *value = code.to_f32());
                for (logit, row) in logits.iter_mut().zip(rows.chunks_exact(hidden)) {
                    *logit = attention::dot(&head, row) * scale;
                }
            }
        });
        (0..count)
            .map(|row| by_token.iter().skip(row).step_by(count).copied().collect())
            .collect()
    }

    fn normalise(&self, rows: &[f32], weight: &[f32], out: &mut Vec<f32>) {
        out.clear();
        out.extend_from_slice(rows);
        for row in out.chunks_exact_mut(weight.len()) {
            rms_norm(row, weight, self.config.rms_norm_eps);
        }
    }
}

#[derive(Default)]
struct Scratch {
    normed: Vec<f32>,
    gated: Vec<f32>,
    x: QuantActivation,
    y: Vec<Bf16>,
}

/// Divides by the root mean square and multiplies with the weight, in place.
pub(crate) fn rms_norm(row: &mut [f32], weight: &[f32], eps: f32) {
    let mean_square = attention::dot(row, row) / row.len() as f32;
    let factor = 1.0 / (mean_square + eps).sqrt();
    row.iter_mut()
        .zip(weight)
        .for_each(|(value, weight)| *value *= factor * weight);
}

fn add(hidden: &mut [f32], values: &[Bf16]) {
    hidden
        .iter_mut()
        .zip(values)
        .for_each(|(sum, value)| *sum += value.to_f32());
}

/// silu(gate) * up, from rows of both halves side by side.
fn gate(gate_up: &[Bf16], width: usize, out: &mut Vec<f32>) {
    out.clear();
    for row in gate_up.chunks_exact(2 * width) {
        let (gate, up) = row.split_at(width);
        out.extend(gate.iter().zip(up).map(|(gate, up)| {
            let gate = gate.to_f32();
            gate / (1.0 + (-gate).exp()) * up.to_f32()
        }));
    }
}

/// A seeded permutation (Fisher-Yates).
fn permutation(len: usize, seed: u64) -> Vec<u32> {
    let mut rng = SplitMix64::for_part(seed, 3_000_000);
    let mut order: Vec<u32> = (0..len as u32).collect();
    for end in (1..len).rev() {
        let other = (rng.next_u64() % (end as u64 + 1)) as usize;
        order.swap(end, other);
    }
    order
}
