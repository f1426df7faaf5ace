//! One decoder layer, once: the operator timings and the whole-layer timings run this function,
//! with a timer that measures and with one that does nothing.

use super::attention;
use super::gemm;
use super::kv_cache::{KvCache, Sequence};
use super::threads::Threads;
use super::vector::{self, NormWeights, Rotary};
use super::weights::{Dims, LayerWeights};
use crate::spec::model::LayerLayout;
use crate::spec::ops::Op;
use std::collections::BTreeMap;
use std::time::Instant;

/// Stands around every operator.
pub trait Timer {
    /// Runs `f`, which is one execution of `op`.
    fn time(&mut self, op: Op, f: impl FnOnce());
}

/// Measures nothing.
pub struct NoTimer;

impl Timer for NoTimer {
    #[inline(always)]
    fn time(&mut self, _op: Op, f: impl FnOnce()) {
        f();
    }
}

/// Keeps the milliseconds of every execution.
#[derive(Default)]
pub struct OpTimer {
    /// By operator, in the order of execution.
    pub ms: BTreeMap<Op, Vec<f64>>,
}

impl OpTimer {
    /// Samples of `op` so far.
    pub fn count(&self, op: Op) -> usize {
        self.ms.get(&op).map_or(0, Vec::len)
    }
}

impl Timer for OpTimer {
    fn time(&mut self, op: Op, f: impl FnOnce()) {
        let start = Instant::now();
        f();
        let ms = start.elapsed().as_secs_f64() * 1e3;
        self.ms.entry(op).or_default().push(ms);
    }
}

/// Activations of one batch, row-major, reused from batch to batch.
#[derive(Default)]
pub struct Activations {
    /// The residual stream, `[rows, hidden]`.
    pub x: Vec<f32>,
    normed: Vec<f32>,
    /// `[rows, queries | keys | values]`
    pub qkv: Vec<f32>,
    /// `[rows, q_heads * head_dim]`
    pub attended: Vec<f32>,
    projected: Vec<f32>,
    up: Vec<f32>,
    act: Vec<f32>,
    logits: Vec<f32>,
}

impl Activations {
    /// Makes room for exactly `rows` rows, `head_rows` of them through the LM head.
    pub fn resize(&mut self, dims: &Dims, rows: usize, head_rows: usize) {
        self.x.resize(rows * dims.hidden, 0.0);
        self.normed.resize(rows * dims.hidden, 0.0);
        self.qkv.resize(rows * dims.heads.columns(), 0.0);
        self.attended.resize(rows * dims.q_columns(), 0.0);
        self.projected.resize(rows * dims.hidden, 0.0);
        self.up.resize(rows * dims.up_columns(), 0.0);
        self.act.resize(rows * dims.ffn, 0.0);
        self.logits.resize(head_rows * dims.vocab, 0.0);
    }
}

/// Attention of a batch: its sequences (prompt chunks first) and the cache that holds them.
pub struct Attend<'a> {
    /// The cache of this layer.
    pub cache: &'a mut KvCache,
    /// Sequences in the order of the rows.
    pub batch: &'a [Sequence],
    /// How many of them, at the start, are prompt chunks.
    pub prefills: usize,
}

/// What layers share.
pub struct Context<'a> {
    /// Where kernels run.
    pub threads: &'a Threads,
    /// Widths.
    pub dims: Dims,
    /// Tables of the rotary embedding.
    pub rotary: &'a Rotary,
    /// Position of each row's token in its sequence.
    pub positions: &'a [u32],
}

impl Context<'_> {
    fn rows(&self) -> usize {
        self.positions.len()
    }

    /// Looks up `tokens` in the embedding `table`, into the residual stream.
    pub fn embed(
        &self,
        timer: &mut impl Timer,
        table: &[f32],
        tokens: &[u32],
        a: &mut Activations,
    ) {
        use rayon::prelude::*;
        let hidden = self.dims.hidden;
        timer.time(Op::Emb, || {
            let task = self.threads.rows_per_task(tokens.len(), hidden);
            a.x.par_chunks_mut(task * hidden).zip(tokens.par_chunks(task)).for_each(
                |(x, tokens)| {
                    for (row, &token) in x.chunks_exact_mut(hidden).zip(tokens) {
                        row.copy_from_slice(&table[token as usize * hidden..][..hidden]);
                    }
                },
            );
        });
    }

    /// The final norm, not timed (it has the shape of the norm before attention), and the LM head.
    pub fn head(
        &self,
        timer: &mut impl Timer,
        table: &[f32],
        norm: &NormWeights,
        a: &mut Activations,
    ) {
        vector::norm(self.threads, &a.x, norm, &mut a.normed);
        let (rows, width) = (self.rows(), self.dims.hidden);
        timer.time(Op::LmHead, || {
            gemm::project_to_table(self.threads, &a.normed, table, &mut a.logits, rows, width);
        });
    }

    /// Rotary embedding of queries and keys.
    pub fn rotate(&self, timer: &mut impl Timer, a: &mut Activations) {
        timer.time(Op::AttnRope, || {
            vector::rotate(self.threads, &mut a.qkv, self.positions, self.dims.heads, self.rotary);
        });
    }

    /// Saves keys and values, then attends: prompt chunks, then decoding sequences.
    pub fn attend(&self, timer: &mut impl Timer, a: &mut Activations, attend: &mut Attend<'_>) {
        let heads = self.dims.heads;
        timer.time(Op::AttnKvCacheSave, || {
            attend.cache.save(self.threads, &a.qkv, attend.batch);
        });
        let (prefills, decodes) = attend.batch.split_at(attend.prefills);
        let rows: usize = prefills.iter().map(|s| s.new).sum();
        let (chunk_qkv, decode_qkv) = a.qkv.split_at(rows * heads.columns());
        let (chunk_out, decode_out) = a.attended.split_at_mut(rows * self.dims.q_columns());
        let cache = &*attend.cache;
        if !prefills.is_empty() {
            timer.time(Op::AttnPrefill, || {
                attention::prefill(self.threads, chunk_qkv, heads, cache, prefills, chunk_out);
            });
        }
        if !decodes.is_empty() {
            timer.time(Op::AttnDecode, || {
                attention::decode(decode_qkv, heads, cache, decodes, decode_out);
            });
        }
    }

    /// Runs one layer over the residual stream. Without `attend`, the attention proper is left out
    /// (its result keeps the values it had): the per-token operators do not depend on it.
    pub fn layer(
        &self,
        timer: &mut impl Timer,
        w: &LayerWeights,
        a: &mut Activations,
        attend: Option<&mut Attend<'_>>,
    ) {
        let (threads, rows) = (self.threads, self.rows());
        timer.time(Op::InputLayernorm, || {
            vector::norm(threads, &a.x, &w.input_norm, &mut a.normed);
        });
        timer.time(Op::AttnPreProj, || w.qkv.apply(threads, &a.normed, &mut a.qkv, rows));
        if let Some((q, k)) = &w.qk_norm {
            timer.time(Op::AttnQkNorm, || {
                vector::norm_heads(threads, &mut a.qkv, self.dims.heads, q, k);
            });
        }
        self.rotate(timer, a);
        if let Some(attend) = attend {
            self.attend(timer, a, attend);
        }
        timer.time(Op::AttnPostProj, || w.post.apply(threads, &a.attended, &mut a.projected, rows));
        match self.dims.layout {
            LayerLayout::Parallel => {
                // The feed-forward layer reads the same norm as attention did.
                timer.time(Op::Add, || vector::add(threads, &mut a.x, &a.projected));
                self.feed_forward(timer, w, a);
                timer.time(Op::Add, || vector::add(threads, &mut a.x, &a.projected));
            }
            LayerLayout::PreNorm => {
                timer.time(Op::Add, || vector::add(threads, &mut a.x, &a.projected));
                self.mlp_norm(timer, w, a);
                self.feed_forward(timer, w, a);
                timer.time(Op::Add, || vector::add(threads, &mut a.x, &a.projected));
            }
            LayerLayout::Sandwich => {
                self.norm_projected(timer, w, a);
                timer.time(Op::Add, || vector::add(threads, &mut a.x, &a.normed));
                self.mlp_norm(timer, w, a);
                self.feed_forward(timer, w, a);
                self.norm_projected(timer, w, a);
                timer.time(Op::Add, || vector::add(threads, &mut a.x, &a.normed));
            }
        }
    }

    fn mlp_norm(&self, timer: &mut impl Timer, w: &LayerWeights, a: &mut Activations) {
        timer.time(Op::PostAttentionLayernorm, || {
            vector::norm(self.threads, &a.x, &w.mlp_norm, &mut a.normed);
        });
    }

    fn norm_projected(&self, timer: &mut impl Timer, w: &LayerWeights, a: &mut Activations) {
        timer.time(Op::PostAttentionLayernorm, || {
            vector::norm(self.threads, &a.projected, &w.mlp_norm, &mut a.normed);
        });
    }

    fn feed_forward(&self, timer: &mut impl Timer, w: &LayerWeights, a: &mut Activations) {
        let (threads, rows) = (self.threads, self.rows());
        timer.time(Op::MlpUpProj, || w.up.apply(threads, &a.normed, &mut a.up, rows));
        timer.time(Op::MlpAct, || {
            vector::activate(threads, self.dims.act, &a.up, &mut a.act, self.dims.ffn);
        });
        timer.time(Op::MlpDownProj, || w.down.apply(threads, &a.act, &mut a.projected, rows));
    }
}
