//! Attention over a paged KV cache, with grouped queries.
//!
//! Prefill is tiled: a tile of query rows meets tiles of keys, scores are turned into weights with
//! a running maximum and sum, so that no full row of scores is ever stored. Decode reads each block
//! of the cache once for all query heads that share it.

use super::kv_cache::{BLOCK_TOKENS, KvCache, Sequence};
use super::threads::Threads;
use super::vector::{HeadLayout, exp, exp_and_sum, lane_max};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Query rows of a prefill tile, at most.
const QUERY_TILE: usize = 64;
/// Keys of a prefill tile.
const KEY_TILE: usize = 8 * BLOCK_TOKENS;

/// Rows of one output matrix that tasks write piecewise: each task owns a rectangle.
struct Output {
    data: *mut f32,
    len: usize,
}

// SAFETY: tasks write disjoint rectangles (distinct rows or distinct heads), see the callers.
unsafe impl Sync for Output {}

impl Output {
    fn new(output: &mut [f32]) -> Output {
        Output { data: output.as_mut_ptr(), len: output.len() }
    }

    fn write(&self, at: usize, values: &[f32]) {
        assert!(at + values.len() <= self.len, "outside the output");
        // SAFETY: in range by the assertion; no other task writes these elements.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr(), self.data.add(at), values.len());
        }
    }
}

/// Causal attention of prompt chunks: token `i` of a chunk sees the `kv` cached tokens and the
/// chunk's tokens up to itself. Keys and values of the chunk are in the cache already. `qkv` holds
/// the rows of all chunks, one after the other; `output` is `[rows, q_heads * head_dim]`.
pub fn prefill(
    threads: &Threads,
    qkv: &[f32],
    heads: HeadLayout,
    cache: &KvCache,
    batch: &[Sequence],
    output: &mut [f32],
) {
    let rows: usize = batch.iter().map(|s| s.new).sum();
    // Smaller tiles for small chunks, so that every thread has some.
    let wanted = (rows * heads.kv_heads).div_ceil(2 * threads.count());
    let tile = wanted.next_multiple_of(BLOCK_TOKENS).clamp(BLOCK_TOKENS, QUERY_TILE);
    let mut tasks = Vec::new();
    let mut first_row = 0;
    for sequence in batch {
        for from in (0..sequence.new).step_by(tile) {
            let to = (from + tile).min(sequence.new);
            for kv_head in 0..heads.kv_heads {
                tasks.push(Tile { sequence, first_row, from, to, kv_head });
            }
        }
        first_row += sequence.new;
    }
    // The last tiles see the most keys: start with them, and threads finish together.
    tasks.reverse();
    let output = Output::new(output);
    tasks.par_iter().with_max_len(1).for_each_init(
        || Scratch::new(heads),
        |scratch, task| task.run(scratch, qkv, heads, cache, &output),
    );
}

/// Query rows `from..to` of one sequence, for the query heads of one key head.
struct Tile<'a> {
    sequence: &'a Sequence,
    first_row: usize,
    from: usize,
    to: usize,
    kv_head: usize,
}

/// Memory of one thread: a tile of keys, values and scores, and the running results.
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
    maxima: Vec<f32>,
    accumulated: Vec<f32>,
}

impl Scratch {
    fn new(heads: HeadLayout) -> Scratch {
        let dim = heads.head_dim;
        let rows = QUERY_TILE * (heads.q_heads / heads.kv_heads);
        Scratch {
            keys: vec![0.0; KEY_TILE * dim],
            values: vec![0.0; KEY_TILE * dim],
            scores: vec![0.0; QUERY_TILE * KEY_TILE],
            sums: vec![0.0; rows],
            maxima: vec![0.0; rows],
            accumulated: vec![0.0; rows * dim],
        }
    }
}

impl Tile<'_> {
    fn run(
        &self,
        scratch: &mut Scratch,
        qkv: &[f32],
        heads: HeadLayout,
        cache: &KvCache,
        output: &Output,
    ) {
        let dim = heads.head_dim;
        let group = heads.q_heads / heads.kv_heads;
        let rows = self.to - self.from;
        let columns = heads.columns();
        let scale = 1.0 / (dim as f32).sqrt();
        let seen = self.sequence.kv + self.to;
        scratch.sums[..group * rows].fill(0.0);
        scratch.maxima[..group * rows].fill(f32::NEG_INFINITY);
        scratch.accumulated[..group * rows * dim].fill(0.0);
        for key_from in (0..seen).step_by(KEY_TILE) {
            let keys = KEY_TILE.min(seen - key_from);
            gather(cache, self.sequence, self.kv_head, key_from, keys, dim, scratch);
            let k = MatRef::from_column_major_slice(&scratch.keys[..keys * dim], dim, keys);
            let v = MatRef::from_row_major_slice(&scratch.values[..keys * dim], keys, dim);
            for member in 0..group {
                let head = self.kv_head * group + member;
                let first = (self.first_row + self.from) * columns + head * dim;
                let last = first + (rows - 1) * columns + dim;
                let q =
                    MatRef::from_row_major_slice_with_stride(&qkv[first..last], rows, dim, columns);
                let scores = &mut scratch.scores[..rows * keys];
                let s = MatMut::from_row_major_slice_mut(&mut *scores, rows, keys);
                matmul(s, Accum::Replace, q, k, scale, Par::Seq);
                let at = member * rows;
                let accumulated = &mut scratch.accumulated[at * dim..][..rows * dim];
                Arch::new().dispatch(Reweigh {
                    scores,
                    keys,
                    // Row `r` sees keys up to and including its own position.
                    visible: (self.sequence.kv + self.from + 1).saturating_sub(key_from),
                    sums: &mut scratch.sums[at..at + rows],
                    maxima: &mut scratch.maxima[at..at + rows],
                    accumulated: &mut *accumulated,
                    dim,
                });
                let p = MatRef::from_row_major_slice(&*scores, rows, keys);
                let o = MatMut::from_row_major_slice_mut(accumulated, rows, dim);
                matmul(o, Accum::Add, p, v, 1.0, Par::Seq);
            }
        }
        for member in 0..group {
            let head = self.kv_head * group + member;
            for r in 0..rows {
                let at = member * rows + r;
                let row = &mut scratch.accumulated[at * dim..][..dim];
                let factor = 1.0 / scratch.sums[at];
                row.iter_mut().for_each(|x| *x *= factor);
                let to = (self.first_row + self.from + r) * heads.q_heads * dim + head * dim;
                output.write(to, row);
            }
        }
    }
}

/// Copies keys and values of `keys` tokens from `from` (a multiple of the block) out of the pages.
fn gather(
    cache: &KvCache,
    sequence: &Sequence,
    head: usize,
    from: usize,
    keys: usize,
    dim: usize,
    scratch: &mut Scratch,
) {
    for at in (0..keys).step_by(BLOCK_TOKENS) {
        let block = sequence.blocks[(from + at) / BLOCK_TOKENS];
        let len = BLOCK_TOKENS.min(keys - at) * dim;
        scratch.keys[at * dim..][..len].copy_from_slice(&cache.keys(block, head)[..len]);
        scratch.values[at * dim..][..len].copy_from_slice(&cache.values(block, head)[..len]);
    }
}

/// Turns a tile of scores into weights relative to the running maximum of each row, and scales
/// what the row accumulated so far when the maximum rises.
struct Reweigh<'a> {
    scores: &'a mut [f32],
    keys: usize,
    /// Keys of the tile that the first row sees; each further row sees one more.
    visible: usize,
    sums: &'a mut [f32],
    maxima: &'a mut [f32],
    accumulated: &'a mut [f32],
    dim: usize,
}

impl WithSimd for Reweigh<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        for (r, row) in self.scores.chunks_exact_mut(self.keys).enumerate() {
            let visible = (self.visible + r).min(self.keys);
            let (seen, hidden) = row.split_at_mut(visible);
            hidden.fill(0.0);
            if seen.is_empty() {
                continue;
            }
            let before = self.maxima[r];
            let tile_max = lane_max(seen);
            let max = if tile_max > before { tile_max } else { before };
            let sum = exp_and_sum(seen, max);
            if max > before {
                // The first tile meets an empty row: e^-inf is 0, and so is what it accumulated.
                let shrink = if before.is_finite() { exp(before - max) } else { 0.0 };
                self.sums[r] *= shrink;
                for x in &mut self.accumulated[r * self.dim..(r + 1) * self.dim] {
                    *x *= shrink;
                }
                self.maxima[r] = max;
            }
            self.sums[r] += sum;
        }
    }
}

/// Attention of one new token per sequence over its cache, the new token included (its key and
/// value are in the cache already). `qkv` holds one row per sequence; `output` is
/// `[sequences, q_heads * head_dim]`.
pub fn decode(
    qkv: &[f32],
    heads: HeadLayout,
    cache: &KvCache,
    batch: &[Sequence],
    output: &mut [f32],
) {
    let dim = heads.head_dim;
    let group = heads.q_heads / heads.kv_heads;
    let output = Output::new(output);
    (0..batch.len() * heads.kv_heads).into_par_iter().for_each_init(
        || (Vec::new(), vec![0.0_f32; group * dim]),
        |(scores, sums), task| {
            let (s, kv_head) = (task / heads.kv_heads, task % heads.kv_heads);
            let sequence = &batch[s];
            let tokens = sequence.kv + 1;
            scores.resize(group * tokens, 0.0);
            let q = &qkv[s * heads.columns() + kv_head * group * dim..][..group * dim];
            Arch::new().dispatch(DecodeHead {
                q,
                cache,
                blocks: &sequence.blocks,
                kv_head,
                tokens,
                dim,
                scores: &mut scores[..group * tokens],
                sums,
            });
            output.write((s * heads.q_heads + kv_head * group) * dim, sums);
        },
    );
}

/// The query heads that share one key head, for one sequence.
struct DecodeHead<'a> {
    /// `[group, dim]`
    q: &'a [f32],
    cache: &'a KvCache,
    blocks: &'a [u32],
    kv_head: usize,
    tokens: usize,
    dim: usize,
    /// `[group, tokens]`
    scores: &'a mut [f32],
    /// `[group, dim]`, the result.
    sums: &'a mut [f32],
}

impl WithSimd for DecodeHead<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let DecodeHead { q, cache, blocks, kv_head, tokens, dim, scores, sums } = self;
        let scale = 1.0 / (dim as f32).sqrt();
        for (b, &block) in blocks.iter().enumerate().take(Sequence::blocks_for(tokens)) {
            let from = b * BLOCK_TOKENS;
            let keys = cache.keys(block, kv_head);
            for (t, key) in keys.chunks_exact(dim).take(tokens - from).enumerate() {
                for (q, scores) in q.chunks_exact(dim).zip(scores.chunks_exact_mut(tokens)) {
                    scores[from + t] = scale * dot(simd, q, key);
                }
            }
        }
        sums.fill(0.0);
        for scores in scores.chunks_exact_mut(tokens) {
            let max = lane_max(scores);
            let factor = 1.0 / exp_and_sum(scores, max);
            scores.iter_mut().for_each(|p| *p *= factor);
        }
        for (b, &block) in blocks.iter().enumerate().take(Sequence::blocks_for(tokens)) {
            let from = b * BLOCK_TOKENS;
            let count = BLOCK_TOKENS.min(tokens - from);
            let values = &cache.values(block, kv_head)[..count * dim];
            for (weights, sums) in scores.chunks_exact(tokens).zip(sums.chunks_exact_mut(dim)) {
                accumulate(values, &weights[from..from + count], sums, dim);
            }
        }
    }
}

/// Scalar product of two rows of the same length.
#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a_vectors, a_tail) = S::as_simd_f32s(a);
    let (b_vectors, b_tail) = S::as_simd_f32s(b);
    let (a_pairs, a_odd) = pulp::as_arrays::<2, _>(a_vectors);
    let (b_pairs, b_odd) = pulp::as_arrays::<2, _>(b_vectors);
    let mut sums = [simd.splat_f32s(0.0); 2];
    for (a, b) in a_pairs.iter().zip(b_pairs) {
        sums[0] = simd.mul_add_e_f32s(a[0], b[0], sums[0]);
        sums[1] = simd.mul_add_e_f32s(a[1], b[1], sums[1]);
    }
    for (&a, &b) in a_odd.iter().zip(b_odd) {
        sums[0] = simd.mul_add_e_f32s(a, b, sums[0]);
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1])) + tail
}

/// `sums += weights * values`, values `[weights.len(), dim]`.
#[inline(always)]
fn accumulate(values: &[f32], weights: &[f32], sums: &mut [f32], dim: usize) {
    let fours = weights.chunks_exact(4);
    let tail = fours.remainder();
    let done = weights.len() - tail.len();
    for (w, rows) in fours.zip(values.chunks_exact(4 * dim)) {
        let (a, rest) = rows.split_at(dim);
        let (b, rest) = rest.split_at(dim);
        let (c, d) = rest.split_at(dim);
        for j in 0..dim {
            let first = w[0].mul_add(a[j], sums[j]);
            let second = w[1].mul_add(b[j], first);
            let third = w[2].mul_add(c[j], second);
            sums[j] = w[3].mul_add(d[j], third);
        }
    }
    for (&w, row) in tail.iter().zip(values[done * dim..].chunks_exact(dim)) {
        for (sum, &v) in sums.iter_mut().zip(row) {
            *sum = w.mul_add(v, *sum);
        }
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
