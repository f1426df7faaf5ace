//! Column names of the profiles, once. Readers look columns up by name: their order differs
//! between files. All times are milliseconds.

use crate::spec::ops::Op;

/// The five figures stored per operator, in the order in which we write them.
pub const STATISTICS: [&str; 5] = ["min", "max", "mean", "median", "std"];

/// `time_stats.<op>.<statistic>`, for example `time_stats.mlp_up_proj.median`.
pub fn time_column(op: Op, statistic: &str) -> String {
    format!("time_stats.{op}.{statistic}")
}

/// Operators that mlp.csv times, in column order.
pub const MLP_OPS: [Op; 12] = [
    Op::Emb,
    Op::InputLayernorm,
    Op::AttnPreProj,
    Op::AttnQkNorm,
    Op::AttnRope,
    Op::AttnPostProj,
    Op::PostAttentionLayernorm,
    Op::MlpUpProj,
    Op::MlpAct,
    Op::MlpDownProj,
    Op::Add,
    Op::LmHead,
];

/// Operators that attention.csv times, in column order.
pub const ATTENTION_OPS: [Op; 3] = [Op::AttnKvCacheSave, Op::AttnPrefill, Op::AttnDecode];

/// Time of a prompt chunk and decoding sequences in one attention kernel: rows of attention.csv with
/// `decode_batch_size` above 0 beside the chunk, `decode_kv_cache_size` tokens in the cache of each.
pub const ATTENTION_MIXED: &str = "time_stats.attn_mixed.median";

/// Columns of mlp.csv that say what was measured, after the times. `num_tokens` is the number of
/// rows that every operator processed, the LM head included.
pub const MLP_KEYS: [&str; 8] = [
    "n_head",
    "n_kv_head",
    "n_embd",
    "n_expanded_embd",
    "vocab_size",
    "use_gated_mlp",
    "num_tokens",
    "num_tensor_parallel_workers",
];

/// Columns of attention.csv that say what was measured, after the times.
pub const ATTENTION_KEYS: [&str; 11] = [
    "n_embd",
    "n_q_head",
    "n_kv_head",
    "block_size",
    "num_tensor_parallel_workers",
    "max_model_len",
    "batch_size",
    "prefill_chunk_size",
    "kv_cache_size",
    "is_prefill",
    "attention_backend",
];
