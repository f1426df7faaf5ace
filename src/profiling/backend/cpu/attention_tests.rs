//! Attention against a naive reference in double precision.

use super::super::testing::{close, noise, threads};
use super::*;

/// Softmax over every key that the token sees, in order of position, straight from the cache.
fn reference(qkv: &[f32], heads: HeadLayout, cache: &KvCache, batch: &[Sequence]) -> Vec<f64> {
    let dim = heads.head_dim;
    let group = heads.q_heads / heads.kv_heads;
    let mut output = Vec::new();
    let mut row = 0;
    for sequence in batch {
        for i in 0..sequence.new {
            for head in 0..heads.q_heads {
                let q = &qkv[row * heads.columns() + head * dim..][..dim];
                let page = |t: usize| {
                    let block = sequence.blocks[t / BLOCK_TOKENS];
                    let at = t % BLOCK_TOKENS * dim;
                    let (k, v) =
                        (cache.keys(block, head / group), cache.values(block, head / group));
                    (&k[at..at + dim], &v[at..at + dim])
                };
                let pair = |(a, b): (&f32, &f32)| f64::from(*a) * f64::from(*b);
                let weights: Vec<f64> = (0..=sequence.kv + i)
                    .map(|t| q.iter().zip(page(t).0).map(pair).sum::<f64>())
                    .map(|s| (s / (dim as f64).sqrt()).exp())
                    .collect();
                let sum: f64 = weights.iter().sum();
                output.extend((0..dim).map(|c| {
                    let terms = weights.iter().enumerate();
                    terms.map(|(t, w)| w * f64::from(page(t).1[c])).sum::<f64>() / sum
                }));
            }
            row += 1;
        }
    }
    output
}

/// A cache, and sequences `(kv, new)` with scattered blocks.
fn batch(heads: HeadLayout, sequences: &[(usize, usize)]) -> (KvCache, Vec<Sequence>, Vec<f32>) {
    let count: usize = sequences.iter().map(|&(kv, new)| Sequence::blocks_for(kv + new)).sum();
    let mut cache = KvCache::new(&threads(1), count + 3, heads, 7);
    let mut at = 0;
    let batch: Vec<Sequence> = sequences
        .iter()
        .map(|&(kv, new)| {
            let blocks = cache.take(at, Sequence::blocks_for(kv + new));
            at += blocks.len();
            Sequence { blocks, kv, new }
        })
        .collect();
    let rows: usize = batch.iter().map(|s| s.new).sum();
    let mut qkv = noise(rows * heads.columns(), 8);
    qkv.iter_mut().for_each(|x| *x *= 3.0);
    cache.save(&threads(1), &qkv, &batch);
    (cache, batch, qkv)
}

const LAYOUTS: [HeadLayout; 4] = [
    HeadLayout { q_heads: 4, kv_heads: 2, head_dim: 16 },
    HeadLayout { q_heads: 3, kv_heads: 3, head_dim: 20 },
    HeadLayout { q_heads: 8, kv_heads: 1, head_dim: 8 },
    HeadLayout { q_heads: 5, kv_heads: 1, head_dim: 40 },
];

#[test]
fn prefill_is_causal_over_chunk_and_cache() {
    for heads in LAYOUTS {
        let shapes: [&[(usize, usize)]; 6] =
            [&[(0, 1)], &[(0, 33)], &[(5, 7)], &[(130, 70)], &[(256, 16)], &[(3, 20), (40, 9)]];
        for sequences in shapes {
            for count in [1, 2] {
                let (cache, batch, qkv) = batch(heads, sequences);
                let expected = reference(&qkv, heads, &cache, &batch);
                let mut output = vec![f32::NAN; expected.len()];
                let threads = threads(count);
                threads.install(|| prefill(&threads, &qkv, heads, &cache, &batch, &mut output));
                close(&output, &expected, 2e-5);
            }
        }
    }
}

#[test]
fn decode_sees_the_cache_and_its_own_token() {
    for heads in LAYOUTS {
        let (cache, batch, qkv) = batch(heads, &[(0, 1), (15, 1), (16, 1), (77, 1)]);
        let expected = reference(&qkv, heads, &cache, &batch);
        let mut output = vec![f32::NAN; expected.len()];
        decode(&qkv, heads, &cache, &batch, &mut output);
        close(&output, &expected, 2e-5);
    }
}

#[test]
fn saved_rows_lie_where_the_block_table_says() {
    let heads = LAYOUTS[0];
    let (cache, batch, qkv) = batch(heads, &[(14, 5), (0, 2)]);
    let token = 17; // The fourth new token of the first sequence.
    let block = batch[0].blocks[token / BLOCK_TOKENS];
    let slot = token % BLOCK_TOKENS * heads.head_dim;
    let row = &qkv[3 * heads.columns()..4 * heads.columns()];
    let key = (heads.q_heads + 1) * heads.head_dim;
    let value = (heads.q_heads + heads.kv_heads + 1) * heads.head_dim;
    assert_eq!(cache.keys(block, 1)[slot..][..heads.head_dim], row[key..][..heads.head_dim]);
    assert_eq!(cache.values(block, 1)[slot..][..heads.head_dim], row[value..][..heads.head_dim]);
}
