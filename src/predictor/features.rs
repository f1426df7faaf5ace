//! The two numbers that an operator's time is a function of: `row` chooses a curve, `x` a point
//! on it.
//!
//! | operator | row | x |
//! |---|---|---|
//! | per token, LM head | 0 | rows processed |
//! | collectives | 0 | bytes of the message |
//! | host | 0 | sequences in the batch |
//! | attn_prefill | tokens of the chunk | tokens in the cache before it |
//! | attn_decode | sequences | mean tokens in the cache of a sequence |

use crate::spec::ops::{Feature, Op, OpInput};

/// `(row, x)` of an input. What is not a number counts as 0, so that predictions stay finite.
pub fn axes(input: OpInput) -> (f64, f64) {
    let real = |v: f64| if v.is_finite() { v.max(0.0) } else { 0.0 };
    match input {
        OpInput::Tokens(n) => (0.0, n as f64),
        OpInput::Prefill { kv, chunk } => (real(chunk), real(kv)),
        OpInput::Decode { batch, kv } => (batch as f64, real(kv)),
    }
}

/// The input of `op` at `(row, x)`: the inverse of [`axes`].
pub fn point_of(op: Op, row: f64, x: f64) -> OpInput {
    match op.feature() {
        Feature::Tokens | Feature::SampledTokens => OpInput::Tokens(x as u64),
        Feature::Prefill => OpInput::Prefill { kv: x, chunk: row },
        Feature::Decode => OpInput::Decode { batch: row as u64, kv: x },
    }
}
