//! Weights of one layer and of the embedding, filled with reproducible noise: times do not depend
//! on the values as long as they stay finite and normal.

use super::gemm::Linear;
use super::vector::{Act, HeadLayout, NormWeights};
use crate::profiling::backend::Shard;
use crate::spec::model::{Activation, LayerLayout, Norm};
use crate::spec::ops::Op;
use rayon::prelude::*;

/// The next state of a small generator (splitmix64's output function).
pub fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills `values` with noise in `[-scale, scale)`, the same for the same seed and length whatever
/// the number of threads. The threads that fill also touch the pages first.
pub fn fill(values: &mut [f32], seed: u64, scale: f32) {
    const PIECE: usize = 1 << 16;
    values.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| {
        let mut state = mix(seed.wrapping_mul(0x1_0001).wrapping_add(i as u64)) as u32 | 1;
        for value in piece {
            // xorshift32, then 23 random bits under the exponent of 2.0 give [2, 4).
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            *value = (f32::from_bits((state >> 9) | 0x4000_0000) - 3.0) * scale;
        }
    });
}

/// Widths of one shard: all that the layer function needs to know of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dims {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of this device's share of the feed-forward layer.
    pub ffn: usize,
    /// Heads of this device.
    pub heads: HeadLayout,
    /// Channels of a head that the rotary embedding turns.
    pub rotated: usize,
    /// Rows of this device's share of the embedding.
    pub vocab: usize,
    /// Non-linearity, and whether it is gated.
    pub act: Act,
    /// Where the norms sit.
    pub layout: LayerLayout,
}

impl Dims {
    /// Precondition: `Parallelism::check` accepts the shard.
    pub fn of(shard: &Shard) -> Dims {
        let (model, tp) = (&shard.model, shard.tensor_parallel);
        let kv_heads = shard.parallelism().kv_heads_per_device(model) as usize;
        let q_heads = (model.num_attention_heads / tp) as usize;
        let rotated = (f64::from(model.head_dim) * model.partial_rotary_factor) as usize;
        Dims {
            hidden: model.hidden_size as usize,
            ffn: (model.intermediate_size / tp) as usize,
            heads: HeadLayout { q_heads, kv_heads, head_dim: model.head_dim as usize },
            rotated: (rotated & !1).max(2).min(model.head_dim as usize & !1),
            vocab: model.vocab_size.div_ceil(tp) as usize,
            act: match (model.activation, model.gated_mlp) {
                (Activation::Silu, true) => Act::SiluGated,
                (Activation::Silu, false) => Act::Silu,
                (Activation::Gelu, true) => Act::GeluGated,
                (Activation::Gelu, false) => Act::Gelu,
            },
            layout: model.layer_layout,
        }
    }

    /// Columns of queries.
    pub fn q_columns(&self) -> usize {
        self.heads.q_heads * self.heads.head_dim
    }

    /// Columns that the up projection writes.
    pub fn up_columns(&self) -> usize {
        if self.act.is_gated() { 2 * self.ffn } else { self.ffn }
    }

    /// Bytes of one layer's matrices.
    pub fn layer_bytes(&self) -> u64 {
        let matrices = self.hidden * self.heads.columns()
            + self.q_columns() * self.hidden
            + self.hidden * self.up_columns()
            + self.ffn * self.hidden;
        4 * matrices as u64
    }

    /// Bytes of the embedding table, which the LM head shares.
    pub fn table_bytes(&self) -> u64 {
        4 * (self.vocab * self.hidden) as u64
    }

    /// Bytes of activations for `rows` rows, `head_rows` of them through the LM head.
    pub fn activation_bytes(&self, rows: usize, head_rows: usize) -> u64 {
        let columns = 3 * self.hidden
            + self.heads.columns()
            + self.q_columns()
            + self.up_columns()
            + self.ffn;
        4 * (rows * columns + head_rows * self.vocab) as u64
    }
}

/// Weights of one decoder layer.
pub struct LayerWeights {
    /// Before attention.
    pub input_norm: NormWeights,
    /// Query, key and value projections.
    pub qkv: Linear,
    /// Per-head norms of queries and keys.
    pub qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    /// Output projection of attention.
    pub post: Linear,
    /// Before (and, in a sandwich, after) the feed-forward layer; all have one shape.
    pub mlp_norm: NormWeights,
    /// Up and gate projections.
    pub up: Linear,
    /// Down projection.
    pub down: Linear,
}

impl LayerWeights {
    /// Noise in the shapes of `shard`.
    pub fn new(shard: &Shard, seed: u64) -> LayerWeights {
        let model = &shard.model;
        let linear = |op: Op, bias: bool, salt: u64| {
            // Every one of these operators is a matrix product, so the shape is there.
            let (k, n) = op.weight_shape(model, shard.parallelism()).unwrap_or((1, 1));
            let (k, n) = (k as usize, n as usize);
            let mut weight = vec![0.0; k * n];
            // Variance 1/k keeps the scale of what passes through.
            fill(&mut weight, seed * 8 + salt, (3.0 / k as f32).sqrt());
            Linear { weight, bias: bias.then(|| vec![0.01; n]), inputs: k, outputs: n }
        };
        let norm = || NormWeights {
            weight: vec![1.0; model.hidden_size as usize],
            bias: (model.norm == Norm::LayerNorm).then(|| vec![0.01; model.hidden_size as usize]),
        };
        let head = || vec![1.0; model.head_dim as usize];
        LayerWeights {
            input_norm: norm(),
            qkv: linear(Op::AttnPreProj, model.qkv_bias, 1),
            qk_norm: model.qk_norm.then(|| (head(), head())),
            post: linear(Op::AttnPostProj, model.linear_bias, 2),
            mlp_norm: norm(),
            up: linear(Op::MlpUpProj, model.linear_bias, 3),
            down: linear(Op::MlpDownProj, model.linear_bias, 4),
        }
    }
}
