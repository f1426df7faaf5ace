//! The operators of a decoder layer, each once: its name, its column in the CSV files, what its
//! time depends on, and the work it does. A layer is data: [`stage_ops`] lists what a pipeline
//! stage runs; nothing else in the program knows the sum.

use super::model::{Dtype, LayerLayout, ModelSpec};
use super::parallel::Parallelism;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One operator. The names are the columns of microsoft/vidur's profiles
/// (`time_stats.<name>.median`); `attn_qk_norm` and `lm_head` are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Looks up the embedding of each token.
    Emb,
    /// Norm before attention; the final norm before the LM head has the same shape.
    InputLayernorm,
    /// Query, key and value projections, as one matrix product.
    AttnPreProj,
    /// Per-head norm of queries and keys (Qwen3).
    AttnQkNorm,
    /// Rotary embedding of queries and keys.
    AttnRope,
    /// Writes the new keys and values into the KV cache.
    AttnKvCacheSave,
    /// Attention of prompt chunks over their own tokens and the KV cache.
    AttnPrefill,
    /// Attention of one new token per sequence over its KV cache.
    AttnDecode,
    /// Output projection of attention.
    AttnPostProj,
    /// Norm before the feed-forward layer.
    PostAttentionLayernorm,
    /// Up projection of the feed-forward layer, with the gate beside it when there is one.
    MlpUpProj,
    /// Non-linearity, times up when gated.
    MlpAct,
    /// Down projection of the feed-forward layer.
    MlpDownProj,
    /// One residual addition.
    Add,
    /// Projection to the vocabulary, of the tokens that are sampled.
    LmHead,
    /// A whole compiled graph that reads prompts, as far as its tokens go.
    ContextGraph,
    /// A whole compiled graph that decodes one token for each of its sequences.
    TokenGraph,
    /// What context graphs spend on the part of their bucket that no prompt token fills.
    GraphPadding,
    /// Sum over tensor-parallel devices.
    AllReduce,
    /// Hand-over of activations to the next pipeline stage.
    SendRecv,
    /// The engine's own work on the host while the device waits.
    Host,
}

/// What an operator's time is a function of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    /// Tokens in the batch.
    Tokens,
    /// Rows of the LM head: sequences whose next token is sampled.
    SampledTokens,
    /// Tokens of the chunk, and tokens already in the KV cache.
    Prefill,
    /// Sequences in the batch, and tokens in the KV cache of each.
    Decode,
}

/// One point at which an operator's time is measured or asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OpInput {
    /// Rows that a per-token operator processes.
    Tokens(u64),
    /// A prompt chunk of `chunk` tokens after `kv` tokens in the cache.
    Prefill {
        /// Tokens already in the KV cache.
        kv: f64,
        /// Tokens of the chunk.
        chunk: f64,
    },
    /// `batch` sequences that decode one token each, with `kv` tokens in the cache of each on average.
    Decode {
        /// Sequences.
        batch: u64,
        /// Mean tokens in the KV cache of a sequence.
        kv: f64,
    },
}

/// Arithmetic and memory traffic of one execution on one device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Floating-point operations; a multiply-add counts as two.
    pub flops: f64,
    /// Bytes read and written, every operand once.
    pub bytes: f64,
}

/// An operator and how often a pipeline stage runs it in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageOp {
    /// The operator.
    pub op: Op,
    /// Executions per step.
    pub repeats: u32,
    /// Attention looks back at most this many tokens in these executions.
    pub window: Option<u32>,
}

/// What a stage is taken to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerSum {
    /// What the engine runs: two residual additions, embedding, final norm and LM head.
    #[default]
    Engine,
    /// What microsoft/vidur adds up: layers only, one addition each.
    Vidur,
}

impl Op {
    /// Every operator, in the order in which a layer runs them.
    pub const ALL: [Op; 21] = [
        Op::Emb,
        Op::InputLayernorm,
        Op::AttnPreProj,
        Op::AttnQkNorm,
        Op::AttnRope,
        Op::AttnKvCacheSave,
        Op::AttnPrefill,
        Op::AttnDecode,
        Op::AttnPostProj,
        Op::PostAttentionLayernorm,
        Op::MlpUpProj,
        Op::MlpAct,
        Op::MlpDownProj,
        Op::Add,
        Op::LmHead,
        Op::ContextGraph,
        Op::TokenGraph,
        Op::GraphPadding,
        Op::AllReduce,
        Op::SendRecv,
        Op::Host,
    ];

    /// The operator's name in CSV columns: `time_stats.<name>.median`.
    pub const fn name(self) -> &'static str {
        match self {
            Op::Emb => "emb",
            Op::InputLayernorm => "input_layernorm",
            Op::AttnPreProj => "attn_pre_proj",
            Op::AttnQkNorm => "attn_qk_norm",
            Op::AttnRope => "attn_rope",
            Op::AttnKvCacheSave => "attn_kv_cache_save",
            Op::AttnPrefill => "attn_prefill",
            Op::AttnDecode => "attn_decode",
            Op::AttnPostProj => "attn_post_proj",
            Op::PostAttentionLayernorm => "post_attention_layernorm",
            Op::MlpUpProj => "mlp_up_proj",
            Op::MlpAct => "mlp_act",
            Op::MlpDownProj => "mlp_down_proj",
            Op::Add => "add",
            Op::LmHead => "lm_head",
            Op::ContextGraph => "context_graph",
            Op::TokenGraph => "token_graph",
            Op::GraphPadding => "graph_padding",
            Op::AllReduce => "all_reduce",
            Op::SendRecv => "send_recv",
            Op::Host => "host",
        }
    }

    /// What the operator's time depends on.
    pub const fn feature(self) -> Feature {
        match self {
            Op::AttnPrefill => Feature::Prefill,
            Op::AttnDecode => Feature::Decode,
            Op::LmHead => Feature::SampledTokens,
            _ => Feature::Tokens,
        }
    }

    /// Whether the time goes into a network rather than into a device.
    pub const fn is_collective(self) -> bool {
        matches!(self, Op::AllReduce | Op::SendRecv)
    }

    /// Whether it is a whole compiled graph or a part of one: its time is looked up, not added up
    /// from the operators inside.
    pub const fn is_graph(self) -> bool {
        matches!(self, Op::ContextGraph | Op::TokenGraph | Op::GraphPadding)
    }

    /// Whether it is a matrix product of a decoder layer: the operators that a quantised checkpoint
    /// stores in fewer bits.
    pub const fn is_layer_projection(self) -> bool {
        matches!(self, Op::AttnPreProj | Op::AttnPostProj | Op::MlpUpProj | Op::MlpDownProj)
    }

    /// Rows and columns `(k, n)` of the weight that one device multiplies by, for operators that
    /// are matrix products.
    pub fn weight_shape(self, model: &ModelSpec, parallel: Parallelism) -> Option<(u64, u64)> {
        let tp = u64::from(parallel.tensor_parallel);
        let h = u64::from(model.hidden_size);
        let ffn = u64::from(model.intermediate_size) / tp;
        let q = model.q_size() / tp;
        let kv = u64::from(parallel.kv_heads_per_device(model)) * u64::from(model.head_dim);
        match self {
            Op::AttnPreProj => Some((h, q + 2 * kv)),
            Op::AttnPostProj => Some((q, h)),
            Op::MlpUpProj => Some((h, if model.gated_mlp { 2 * ffn } else { ffn })),
            Op::MlpDownProj => Some((ffn, h)),
            Op::LmHead => Some((h, u64::from(model.vocab_size).div_ceil(tp))),
            _ => None,
        }
    }

    /// Arithmetic and traffic of one execution on one device of a `parallel` replica, operands
    /// stored as `dtype`, save what the model's checkpoint quantises. Traffic counts each operand once, as if caches were perfect; for
    /// collectives it is the size of the message.
    pub fn work(
        self,
        model: &ModelSpec,
        parallel: Parallelism,
        dtype: Dtype,
        input: OpInput,
    ) -> Work {
        let tp = f64::from(parallel.tensor_parallel);
        let h = f64::from(model.hidden_size);
        let ffn = f64::from(model.intermediate_size) / tp;
        let q = model.q_size() as f64 / tp;
        let kv_width = f64::from(parallel.kv_heads_per_device(model)) * f64::from(model.head_dim);
        let b = dtype.bytes();
        let kv_b = model.kv_cache_dtype(dtype).bytes();
        match input {
            OpInput::Tokens(tokens) => {
                let m = tokens as f64;
                if let Some((k, n)) = self.weight_shape(model, parallel) {
                    let (k, n) = (k as f64, n as f64);
                    // A quantised projection reads its input in the format of its weights.
                    let w =
                        if self.is_layer_projection() { model.projection_bytes(dtype) } else { b };
                    let bytes = if w == b {
                        b * (k * n + m * (k + n))
                    } else {
                        w * (k * n + m * k) + b * m * n
                    };
                    return Work { flops: 2.0 * m * k * n, bytes };
                }
                // Elements moved and operations per token of the operators that only stream.
                let (elements, flops) = match self {
                    Op::InputLayernorm | Op::PostAttentionLayernorm => (2.0 * h, 4.0 * h),
                    Op::AttnQkNorm => (2.0 * (q + kv_width), 4.0 * (q + kv_width)),
                    Op::AttnRope => (2.0 * (q + kv_width), 3.0 * (q + kv_width)),
                    Op::AttnKvCacheSave => (2.0 * kv_width * (1.0 + kv_b / b), 0.0),
                    Op::MlpAct if model.gated_mlp => (3.0 * ffn, 5.0 * ffn),
                    Op::MlpAct => (2.0 * ffn, 4.0 * ffn),
                    Op::Add => (3.0 * h, h),
                    Op::Emb => (2.0 * h, 0.0),
                    _ => (h, 0.0),
                };
                Work { flops: m * flops, bytes: b * m * elements }
            }
            OpInput::Prefill { kv, chunk } => Work {
                // Two products (scores, values) of a causal chunk: token i sees kv + i tokens.
                flops: 4.0 * q * chunk * (kv + (chunk + 1.0) / 2.0),
                bytes: b * (2.0 * chunk * q) + kv_b * (2.0 * kv_width * (kv + chunk)),
            },
            OpInput::Decode { batch, kv } => {
                let n = batch as f64;
                Work {
                    flops: 4.0 * q * n * (kv + 1.0),
                    bytes: b * n * 2.0 * q + kv_b * n * 2.0 * kv_width * (kv + 1.0),
                }
            }
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The operators that pipeline stage `stage` of `model` runs in one step, in order.
pub fn stage_ops(
    model: &ModelSpec,
    parallel: Parallelism,
    stage: u32,
    sum: LayerSum,
) -> Vec<StageOp> {
    let layers = parallel.layers_in_stage(model.num_layers, stage);
    let first = stage == 0;
    let last = stage + 1 == parallel.pipeline_parallel;
    let engine = sum == LayerSum::Engine;
    let windowed = match model.sliding_window {
        Some(w) if engine => layers / w.every,
        _ => 0,
    };
    let mut ops = Vec::with_capacity(20);
    let mut push = |op, repeats, window| {
        if repeats > 0 {
            ops.push(StageOp { op, repeats, window });
        }
    };
    if engine && first {
        push(Op::Emb, 1, None);
    }
    // The second pair of a sandwich has the shape of the norm before the feed-forward layer.
    let (norms_before_mlp, adds) = match (model.layer_layout, engine) {
        (LayerLayout::Parallel, _) => (0, 2),
        (LayerLayout::PreNorm, _) | (_, false) => (1, 2),
        (LayerLayout::Sandwich, true) => (3, 2),
    };
    push(Op::InputLayernorm, layers + u32::from(engine && last), None);
    push(Op::AttnPreProj, layers, None);
    if model.qk_norm && engine {
        push(Op::AttnQkNorm, layers, None);
    }
    push(Op::AttnRope, layers, None);
    push(Op::AttnKvCacheSave, layers, None);
    for op in [Op::AttnPrefill, Op::AttnDecode] {
        push(op, layers - windowed, None);
        push(op, windowed, model.sliding_window.map(|w| w.tokens));
    }
    push(Op::AttnPostProj, layers, None);
    let reduces = if parallel.tensor_parallel > 1 { 2 * layers } else { 0 };
    push(Op::PostAttentionLayernorm, layers * norms_before_mlp, None);
    push(Op::MlpUpProj, layers, None);
    push(Op::MlpAct, layers, None);
    push(Op::MlpDownProj, layers, None);
    push(Op::Add, if engine { layers * adds } else { layers }, None);
    push(Op::AllReduce, reduces, None);
    if engine && last {
        push(Op::LmHead, 1, None);
    }
    if !last {
        push(Op::SendRecv, 1, None);
    }
    ops
}
