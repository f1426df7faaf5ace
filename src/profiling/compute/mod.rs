//! Which operators belong to a shape, and the row of mlp.csv or attention.csv that its samples make.

use super::backend::{OpSamples, Shape, Shard};
use crate::dataset::schema::{self, STATISTICS};
use crate::dataset::write::TableKind;
use crate::spec::model::{LayerLayout, ModelSpec};
use crate::spec::ops::{Op, OpInput};
use crate::stats;

/// Rows up to which the LM head is timed. It runs on sampled tokens only, one per sequence, so more
/// would be time spent on batches that no engine runs.
pub const LM_HEAD_MAX_ROWS: u64 = 512;

/// Tokens in a block of the KV cache, stored with every attention row.
pub const BLOCK_SIZE: u64 = 16;

/// The profile that a shape's row belongs to.
pub fn kind_of(shape: Shape) -> TableKind {
    match shape {
        Shape::Tokens(_) => TableKind::Mlp,
        Shape::Prefill { .. } | Shape::Decode { .. } => TableKind::Attention,
    }
}

/// The operators that a backend times for `shape`, each with the input it is asked at.
pub fn ops_of(model: &ModelSpec, shape: Shape) -> Vec<(Op, OpInput)> {
    match shape {
        Shape::Tokens(n) => schema::MLP_OPS
            .into_iter()
            .filter(|&op| op != Op::LmHead || n <= LM_HEAD_MAX_ROWS)
            .filter(|&op| op == Op::Emb || op == Op::LmHead || repeats_in_layer(model, op) > 0)
            .map(|op| (op, OpInput::Tokens(n)))
            .collect(),
        Shape::Prefill { chunk, kv } => vec![
            (Op::AttnKvCacheSave, OpInput::Tokens(chunk)),
            (Op::AttnPrefill, OpInput::Prefill { kv: kv as f64, chunk: chunk as f64 }),
        ],
        Shape::Decode { batch, kv } => vec![
            (Op::AttnKvCacheSave, OpInput::Tokens(batch)),
            (Op::AttnDecode, OpInput::Decode { batch, kv: kv as f64 }),
        ],
    }
}

/// The per-token operators of one layer, each with how often the layer runs it.
pub fn layer_ops(model: &ModelSpec) -> Vec<(Op, u32)> {
    let mut ops: Vec<(Op, u32)> =
        schema::MLP_OPS.into_iter().map(|op| (op, repeats_in_layer(model, op))).collect();
    ops.push((Op::AttnKvCacheSave, 1));
    ops.retain(|&(_, repeats)| repeats > 0);
    ops
}

fn repeats_in_layer(model: &ModelSpec, op: Op) -> u32 {
    match op {
        Op::Emb | Op::LmHead => 0,
        Op::AttnQkNorm => u32::from(model.qk_norm),
        Op::PostAttentionLayernorm => match model.layer_layout {
            LayerLayout::Parallel => 0,
            LayerLayout::PreNorm => 1,
            LayerLayout::Sandwich => 3,
        },
        Op::Add => 2,
        _ => 1,
    }
}

/// One row of the profile that `shape` belongs to, cells in the order of [`TableKind::columns`].
/// Operators without samples leave their cells empty.
pub fn row(
    shard: &Shard,
    shape: Shape,
    samples: &[OpSamples],
    max_model_len: u64,
    attention_kernel: &str,
) -> Vec<String> {
    let kind = kind_of(shape);
    let mut cells = Vec::new();
    for &op in kind.ops() {
        let ms = samples.iter().find(|s| s.op == op).map_or(&[][..], |s| &s.ms);
        cells.extend(statistics(ms));
    }
    cells.extend(keys(shard, shape, max_model_len, attention_kernel));
    cells
}

/// The five figures of [`STATISTICS`], in their order; empty cells for no samples.
fn statistics(ms: &[f64]) -> Vec<String> {
    let figures = || {
        Some([
            ms.iter().copied().reduce(f64::min)?,
            ms.iter().copied().reduce(f64::max)?,
            stats::mean(ms)?,
            stats::median(ms)?,
            stats::std_dev(ms)?,
        ])
    };
    match figures() {
        Some(figures) => figures.iter().map(f64::to_string).collect(),
        None => vec![String::new(); STATISTICS.len()],
    }
}

/// The cells that say what `shape`'s row is, in the order of the kind's key columns.
pub fn keys(
    shard: &Shard,
    shape: Shape,
    max_model_len: u64,
    attention_kernel: &str,
) -> Vec<String> {
    let model = &shard.model;
    let tp = shard.tensor_parallel.to_string();
    let truth = |b: bool| String::from(if b { "True" } else { "False" });
    let attention = |batch: u64, chunk: u64, kv: u64, is_prefill: bool| {
        vec![
            model.hidden_size.to_string(),
            model.num_attention_heads.to_string(),
            model.num_key_value_heads.to_string(),
            BLOCK_SIZE.to_string(),
            tp.clone(),
            max_model_len.to_string(),
            batch.to_string(),
            chunk.to_string(),
            kv.to_string(),
            truth(is_prefill),
            attention_kernel.to_owned(),
        ]
    };
    match shape {
        Shape::Tokens(tokens) => vec![
            model.num_attention_heads.to_string(),
            model.num_key_value_heads.to_string(),
            model.hidden_size.to_string(),
            model.intermediate_size.to_string(),
            model.vocab_size.to_string(),
            truth(model.gated_mlp),
            tokens.to_string(),
            tp,
        ],
        Shape::Prefill { chunk, kv } => attention(1, chunk, kv, true),
        Shape::Decode { batch, kv } => attention(batch, 0, kv, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profiling::runner::testing::model;

    #[test]
    fn rows_have_a_cell_for_every_column() {
        let shard = Shard { model: model(), tensor_parallel: 2 };
        for shape in [
            Shape::Tokens(3),
            Shape::Prefill { chunk: 64, kv: 16 },
            Shape::Decode { batch: 4, kv: 128 },
        ] {
            let samples: Vec<OpSamples> = ops_of(&shard.model, shape)
                .into_iter()
                .map(|(op, _)| OpSamples { op, ms: vec![1.0, 3.0, 2.0] })
                .collect();
            let cells = row(&shard, shape, &samples, 2048, "cpu");
            let columns = kind_of(shape).columns();
            assert_eq!(cells.len(), columns.len());
            for (column, cell) in columns.iter().zip(&cells) {
                let other = match shape {
                    Shape::Prefill { .. } => "attn_decode",
                    Shape::Decode { .. } => "attn_prefill",
                    Shape::Tokens(_) => "-",
                };
                assert_eq!(cell.is_empty(), column.contains(other), "{column}");
            }
            assert_eq!(cells[..5], ["1", "3", "2", "2", "0.816496580927726"]);
        }
    }

    #[test]
    fn the_lm_head_stops_at_its_cap_and_qk_norm_needs_a_model_that_has_it() {
        let mut model = model();
        let names = |model: &ModelSpec, n| -> Vec<Op> {
            ops_of(model, Shape::Tokens(n)).into_iter().map(|(op, _)| op).collect()
        };
        assert!(names(&model, 512).contains(&Op::LmHead));
        assert!(!names(&model, 513).contains(&Op::LmHead));
        model.qk_norm = false;
        assert!(!names(&model, 1).contains(&Op::AttnQkNorm));
        assert_eq!(layer_ops(&model).iter().find(|o| o.0 == Op::Add), Some(&(Op::Add, 2)));
    }
}
