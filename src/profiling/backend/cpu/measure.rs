//! A prepared shard: its stack of layers and its KV caches, and the measuring loops over them.

use super::super::{BackendError, Effort, LayerBatch, OpSamples, Purpose, Shard};
use super::check_memory;
use super::kv_cache::{BLOCK_TOKENS, KvCache, Sequence};
use super::layer::{Activations, Attend, Context, NoTimer, OpTimer};
use super::threads::Threads;
use super::vector::Rotary;
use super::weights::{self, Dims, LayerWeights};
use crate::profiling::compute::LM_HEAD_MAX_ROWS;
use crate::spec::ops::Op;
use std::time::Instant;

/// Copies of a layer or of a batch's KV cache that rotate, at most.
const MAX_COPIES: u64 = 64;

/// See the module.
pub struct Prepared {
    dims: Dims,
    theta: f64,
    seed: u64,
    /// Distinct layers; empty when only attention is measured.
    layers: Vec<LayerWeights>,
    /// Embedding and LM head, `[vocabulary, hidden]`.
    table: Vec<f32>,
    cache: Option<KvCache>,
    /// Bytes of KV cache that rotate.
    cache_bytes: u64,
    activations: Activations,
    rotary: Rotary,
    /// The layer or cache whose turn it is: no copy is used twice in a row.
    turn: usize,
}

impl Prepared {
    /// Lays out weights of `working_set` bytes, at least one layer.
    pub fn new(
        threads: &Threads,
        shard: &Shard,
        purpose: Purpose,
        working_set: u64,
        seed: u64,
    ) -> Result<Prepared, BackendError> {
        let dims = Dims::of(shard);
        let mut layers = Vec::new();
        let mut table = Vec::new();
        if purpose != Purpose::Attention {
            let copies = working_set.div_ceil(dims.layer_bytes()).clamp(1, MAX_COPIES);
            let fits = (working_set / dims.layer_bytes()).max(1);
            // Rounding up is free on a small model and costs a large model a layer too many.
            let copies = if copies <= 8 { fits } else { copies };
            let table_bytes = if purpose == Purpose::Mlp { dims.table_bytes() } else { 0 };
            check_memory(copies * dims.layer_bytes() + table_bytes, "the model's shard")?;
            threads.install(|| {
                layers = (0..copies).map(|i| LayerWeights::new(shard, seed + i)).collect();
                if purpose == Purpose::Mlp {
                    table = vec![0.0; dims.vocab * dims.hidden];
                    weights::fill(&mut table, seed, 1.0);
                }
            });
        }
        Ok(Prepared {
            dims,
            theta: shard.model.rope_theta,
            seed,
            layers,
            table,
            cache: None,
            cache_bytes: working_set,
            activations: Activations::default(),
            rotary: Rotary::new(1, dims.rotated, shard.model.rope_theta),
            turn: 0,
        })
    }

    fn ensure_positions(&mut self, positions: usize) {
        if self.rotary.positions() < positions {
            let room = positions.next_power_of_two();
            self.rotary = Rotary::new(room, self.dims.rotated, self.theta);
        }
    }

    /// The per-token operators of `tokens` rows.
    pub fn per_token(
        &mut self,
        threads: &Threads,
        tokens: u64,
        effort: Effort,
    ) -> Result<Vec<OpSamples>, BackendError> {
        if self.layers.is_empty() || self.table.is_empty() {
            return Err(BackendError::Shape("the shard is not prepared for these".into()));
        }
        let rows = tokens.max(1) as usize;
        let head_rows = if tokens <= LM_HEAD_MAX_ROWS { rows } else { 0 };
        check_memory(self.dims.activation_bytes(rows, head_rows), "the activations")?;
        self.ensure_positions(rows);
        let Prepared { dims, layers, table, activations, rotary, turn, seed, .. } = self;
        activations.resize(dims, rows, head_rows);
        weights::fill(&mut activations.attended, *seed, 1.0);
        let positions: Vec<u32> = (0..rows as u32).collect();
        let context = Context { threads, dims: *dims, rotary, positions: &positions };
        let mut random = *seed;
        let mut ids = || -> Vec<u32> {
            let mut id = || {
                random = weights::mix(random);
                (random % dims.vocab as u64) as u32
            };
            (0..rows).map(|_| id()).collect()
        };
        let warm_up = ids();
        let mut tokens_of = ids();
        let ms = threads.install(|| {
            let mut step = |timer: &mut OpTimer, tokens: &[u32], head: bool| {
                let layer = &layers[*turn % layers.len()];
                *turn += 1;
                context.embed(timer, table, tokens, activations);
                context.layer(timer, layer, activations, None);
                if head {
                    context.head(timer, table, &layer.input_norm, activations);
                }
            };
            step(&mut OpTimer::default(), &warm_up, head_rows > 0);
            let mut timer = OpTimer::default();
            let mut clock = Stopwatch::new(effort);
            while clock.goes_on() {
                // The LM head is slow: it runs until it has its samples, not longer.
                let head = head_rows > 0 && timer.count(Op::LmHead) < effort.repeats as usize;
                step(&mut timer, &tokens_of, head);
                tokens_of = ids();
            }
            timer.ms
        });
        Ok(samples(ms))
    }

    /// The attention operators of `batch`.
    pub fn attention(
        &mut self,
        threads: &Threads,
        batch: &LayerBatch,
        effort: Effort,
    ) -> Result<Vec<OpSamples>, BackendError> {
        let batches = self.place(threads, batch)?;
        let rows = batch.num_tokens() as usize;
        self.room_for(batch)?;
        let Prepared { dims, activations, rotary, turn, seed, cache, .. } = self;
        let Some(cache) = cache else {
            return Err(BackendError::Shape("there is no KV cache".into()));
        };
        activations.resize(dims, rows, 0);
        weights::fill(&mut activations.qkv, *seed, 1.0);
        let positions = positions_of(batch);
        let context = Context { threads, dims: *dims, rotary, positions: &positions };
        let ms = threads.install(|| {
            let mut step = |timer: &mut OpTimer| {
                let sequences = &batches[*turn % batches.len()];
                *turn += 1;
                // What runs before attention in a layer, so that its inputs are as warm as there.
                context.rotate(&mut NoTimer, activations);
                let prefills = batch.prefills.len();
                let attend = &mut Attend { cache, batch: sequences, prefills };
                context.attend(timer, activations, attend);
            };
            step(&mut OpTimer::default());
            let mut timer = OpTimer::default();
            let mut clock = Stopwatch::new(effort);
            while clock.goes_on() {
                step(&mut timer);
            }
            timer.ms
        });
        Ok(samples(ms))
    }

    /// Milliseconds of one whole layer for `batch`: each sample is a pass over the stack, divided
    /// by its layers.
    pub fn whole_layers(
        &mut self,
        threads: &Threads,
        batch: &LayerBatch,
        effort: Effort,
    ) -> Result<Vec<f64>, BackendError> {
        if self.layers.is_empty() {
            return Err(BackendError::Shape("the shard is not prepared for whole layers".into()));
        }
        let rows = batch.num_tokens() as usize;
        let batches = self.place(threads, batch)?;
        self.room_for(batch)?;
        let Prepared { dims, layers, activations, rotary, turn, seed, cache, .. } = self;
        let Some(cache) = cache else {
            return Err(BackendError::Shape("there is no KV cache".into()));
        };
        activations.resize(dims, rows, 0);
        let positions = positions_of(batch);
        let context = Context { threads, dims: *dims, rotary, positions: &positions };
        threads.install(|| {
            let mut pass = |timer: &mut NoTimer| {
                weights::fill(&mut activations.x, *seed, 1.0);
                let start = Instant::now();
                for layer in layers.iter() {
                    let sequences = &batches[*turn % batches.len()];
                    *turn += 1;
                    let prefills = batch.prefills.len();
                    let mut attend = Attend { cache, batch: sequences, prefills };
                    context.layer(timer, layer, activations, Some(&mut attend));
                }
                start.elapsed().as_secs_f64() * 1e3 / layers.len() as f64
            };
            pass(&mut NoTimer);
            let mut ms = Vec::new();
            let mut clock = Stopwatch::new(effort);
            while clock.goes_on() {
                ms.push(pass(&mut NoTimer));
            }
            Ok(ms)
        })
    }

    fn room_for(&mut self, batch: &LayerBatch) -> Result<(), BackendError> {
        let rows = batch.num_tokens() as usize;
        check_memory(self.dims.activation_bytes(rows, 0), "the activations")?;
        let prefills = batch.prefills.iter().map(|&(chunk, kv)| chunk + kv);
        let longest = prefills.chain(batch.decodes.iter().map(|&kv| kv + 1)).max();
        self.ensure_positions(longest.unwrap_or(1) as usize);
        Ok(())
    }

    /// Distinct places for `batch` in the KV cache, as many as its size allows; the cache grows
    /// when even one does not fit.
    fn place(
        &mut self,
        threads: &Threads,
        batch: &LayerBatch,
    ) -> Result<Vec<Vec<Sequence>>, BackendError> {
        let prefills = batch.prefills.iter().map(|&(chunk, kv)| (kv as usize, chunk as usize));
        let decodes = batch.decodes.iter().map(|&kv| (kv as usize, 1));
        let sizes: Vec<(usize, usize)> = prefills.chain(decodes).collect();
        let needed: usize = sizes.iter().map(|&(kv, new)| Sequence::blocks_for(kv + new)).sum();
        if needed == 0 {
            return Err(BackendError::Shape("the batch is empty".into()));
        }
        let block_bytes = KvCache::block_bytes(self.dims.heads);
        let rotating = (self.cache_bytes / block_bytes) as usize;
        if self.cache.as_ref().is_none_or(|c| c.blocks() < needed) {
            self.cache = None;
            let blocks = rotating.max(needed);
            let tokens = needed * BLOCK_TOKENS;
            check_memory(blocks as u64 * block_bytes, &format!("a KV cache of {tokens} tokens"))?;
            self.cache = Some(KvCache::new(threads, blocks, self.dims.heads, self.seed));
        }
        let Some(cache) = &self.cache else {
            return Err(BackendError::Shape("there is no KV cache".into()));
        };
        let copies = (cache.blocks() / needed).clamp(1, MAX_COPIES as usize);
        let mut at = 0;
        let mut sequence = |&(kv, new): &(usize, usize)| {
            let blocks = cache.take(at, Sequence::blocks_for(kv + new));
            at += blocks.len();
            Sequence { blocks, kv, new }
        };
        Ok((0..copies).map(|_| sizes.iter().map(&mut sequence).collect()).collect())
    }
}

/// Position of each row's token in its sequence.
fn positions_of(batch: &LayerBatch) -> Vec<u32> {
    let chunks = batch.prefills.iter().flat_map(|&(chunk, kv)| kv..kv + chunk);
    chunks.chain(batch.decodes.iter().copied()).map(|p| p as u32).collect()
}

fn samples(ms: std::collections::BTreeMap<Op, Vec<f64>>) -> Vec<OpSamples> {
    ms.into_iter().map(|(op, ms)| OpSamples { op, ms }).collect()
}

/// Decides when there are enough samples. The first is always taken.
struct Stopwatch {
    effort: Effort,
    start: Instant,
    taken: u32,
}

impl Stopwatch {
    fn new(effort: Effort) -> Stopwatch {
        Stopwatch { effort, start: Instant::now(), taken: 0 }
    }

    /// Whether to take another sample; counts it.
    fn goes_on(&mut self) -> bool {
        let spent = self.start.elapsed();
        let enough = self.taken >= self.effort.repeats.max(1) && spent >= self.effort.min_time;
        let late = self.taken > 0 && spent >= self.effort.max_time;
        self.taken += 1;
        !enough && !late
    }
}

#[cfg(test)]
#[path = "measure_tests.rs"]
mod tests;
