//! A paged KV cache: blocks of 16 tokens, handed out in random order as a busy server's would be.

use super::threads::Threads;
use super::vector::HeadLayout;
use super::weights;
use rayon::prelude::*;

/// Tokens in a block.
pub const BLOCK_TOKENS: usize = 16;

/// One sequence of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Blocks of the cache that hold its tokens, in order; no block belongs to two sequences.
    pub blocks: Vec<u32>,
    /// Tokens in the cache before this step.
    pub kv: usize,
    /// Tokens of this step, at least 1; they follow those in the cache.
    pub new: usize,
}

impl Sequence {
    /// Blocks that `tokens` tokens need.
    pub fn blocks_for(tokens: usize) -> usize {
        tokens.div_ceil(BLOCK_TOKENS)
    }
}

/// Keys and values of many sequences: `[block, kv head, token of the block, channel]` each.
pub struct KvCache {
    keys: Vec<f32>,
    values: Vec<f32>,
    heads: HeadLayout,
    /// Every block, in the random order in which they are handed out.
    order: Vec<u32>,
}

impl KvCache {
    /// A cache of `blocks` blocks, filled with noise, so that reading it is reading real numbers.
    pub fn new(threads: &Threads, blocks: usize, heads: HeadLayout, seed: u64) -> KvCache {
        let len = blocks * Self::block_elements(heads);
        let (mut keys, mut values) = (vec![0.0; len], vec![0.0; len]);
        threads.install(|| {
            weights::fill(&mut keys, seed, 1.0);
            weights::fill(&mut values, seed + 1, 1.0);
        });
        let mut order: Vec<u32> = (0..blocks as u32).collect();
        // Fisher-Yates over a small generator: the order is the same in every run.
        let mut state = seed;
        for i in (1..order.len()).rev() {
            state = weights::mix(state);
            order.swap(i, (state % (i as u64 + 1)) as usize);
        }
        KvCache { keys, values, heads, order }
    }

    /// Bytes of keys and values in one block.
    pub fn block_bytes(heads: HeadLayout) -> u64 {
        2 * 4 * Self::block_elements(heads) as u64
    }

    fn block_elements(heads: HeadLayout) -> usize {
        heads.kv_heads * BLOCK_TOKENS * heads.head_dim
    }

    /// Blocks in all.
    pub fn blocks(&self) -> usize {
        self.order.len()
    }

    /// Hands out `count` blocks from position `at` of the random order. Precondition: in range.
    pub fn take(&self, at: usize, count: usize) -> Vec<u32> {
        self.order[at..at + count].to_vec()
    }

    fn offset(&self, block: u32, head: usize) -> usize {
        (block as usize * self.heads.kv_heads + head) * BLOCK_TOKENS * self.heads.head_dim
    }

    /// Keys of one head in one block, `[token of the block, channel]`.
    pub fn keys(&self, block: u32, head: usize) -> &[f32] {
        &self.keys[self.offset(block, head)..][..BLOCK_TOKENS * self.heads.head_dim]
    }

    /// Values of one head in one block, `[token of the block, channel]`.
    pub fn values(&self, block: u32, head: usize) -> &[f32] {
        &self.values[self.offset(block, head)..][..BLOCK_TOKENS * self.heads.head_dim]
    }

    /// Writes the keys and values of every new token of the batch, the rows of `qkv`.
    pub fn save(&mut self, threads: &Threads, qkv: &[f32], batch: &[Sequence]) {
        let heads = self.heads;
        let (dim, columns) = (heads.head_dim, heads.columns());
        let width = heads.kv_heads * dim;
        let slots: Vec<(u32, usize)> = batch
            .iter()
            .flat_map(|s| {
                (s.kv..s.kv + s.new).map(|t| (s.blocks[t / BLOCK_TOKENS], t % BLOCK_TOKENS))
            })
            .collect();
        let task = threads.rows_per_task(slots.len(), 2 * width);
        let cache = SharedCache {
            keys: self.keys.as_mut_ptr(),
            values: self.values.as_mut_ptr(),
            len: self.keys.len(),
        };
        let rows = slots.par_chunks(task).zip(qkv.par_chunks(task * columns));
        rows.for_each(|(slots, qkv)| {
            for (&(block, slot), row) in slots.iter().zip(qkv.chunks_exact(columns)) {
                let keys = &row[heads.q_heads * dim..][..width];
                let values = &row[heads.q_heads * dim + width..][..width];
                for head in 0..heads.kv_heads {
                    let block_head = block as usize * heads.kv_heads + head;
                    let at = (block_head * BLOCK_TOKENS + slot) * dim;
                    let from = head * dim;
                    cache.write(at, &keys[from..from + dim], &values[from..from + dim]);
                }
            }
        });
    }
}

/// The two arrays of a cache that several threads write at once.
struct SharedCache {
    keys: *mut f32,
    values: *mut f32,
    len: usize,
}

// SAFETY: `KvCache::save` holds the cache exclusively, and every token of a batch has a slot of its
// own (no block belongs to two sequences), so no two threads write the same element.
unsafe impl Sync for SharedCache {}

impl SharedCache {
    fn write(&self, at: usize, key: &[f32], value: &[f32]) {
        assert!(at + key.len() <= self.len && key.len() == value.len(), "slot outside the cache");
        // SAFETY: in range by the assertion; sources are other allocations; exclusive as said above.
        unsafe {
            std::ptr::copy_nonoverlapping(key.as_ptr(), self.keys.add(at), key.len());
            std::ptr::copy_nonoverlapping(value.as_ptr(), self.values.add(at), value.len());
        }
    }
}
