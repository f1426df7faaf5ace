//! Distributions over batches, in fixed memory.

use super::distribution::Distribution;
use crate::stats::Sketch;
use crate::units::SimDuration;
use serde::Serialize;

/// Sketches of what batches hold and how long they take.
#[derive(Clone, Debug, Default)]
pub struct BatchSketches {
    /// Requests.
    pub size: Sketch,
    /// Tokens.
    pub tokens: Sketch,
    /// Prompt tokens.
    pub prefill_tokens: Sketch,
    /// Sequences that decode.
    pub decode_tokens: Sketch,
    /// Forming to the end on the last stage, nanoseconds.
    pub execution: Sketch,
}

/// Distributions over all batches of all replicas, by Vidur's names.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BatchDistributions {
    /// Requests in a batch.
    pub batch_size: Option<Distribution>,
    /// Tokens in a batch: prompt tokens, and one per decoding sequence.
    pub batch_num_tokens: Option<Distribution>,
    /// Prompt tokens in a batch.
    pub batch_num_prefill_tokens: Option<Distribution>,
    /// Decoding sequences in a batch.
    pub batch_num_decode_tokens: Option<Distribution>,
    /// From the forming of a batch to its end on the last stage, milliseconds.
    pub batch_execution_time_ms: Option<Distribution>,
}

impl BatchSketches {
    /// `times` batches of `size` requests were formed, with `tokens` tokens each, `decodes` of them
    /// decoding.
    pub fn formed(&mut self, size: u64, tokens: u64, decodes: u64, times: u64) {
        self.size.add_times(size, times);
        self.tokens.add_times(tokens, times);
        self.prefill_tokens.add_times(tokens.saturating_sub(decodes), times);
        self.decode_tokens.add_times(decodes, times);
    }

    /// A batch ended on the last stage.
    pub fn ended(&mut self, execution: SimDuration) {
        self.execution.add(execution.as_ns());
    }

    /// The distributions.
    pub fn distributions(&self) -> BatchDistributions {
        BatchDistributions {
            batch_size: Distribution::of_sketch(&self.size, 1.0),
            batch_num_tokens: Distribution::of_sketch(&self.tokens, 1.0),
            batch_num_prefill_tokens: Distribution::of_sketch(&self.prefill_tokens, 1.0),
            batch_num_decode_tokens: Distribution::of_sketch(&self.decode_tokens, 1.0),
            batch_execution_time_ms: Distribution::of_sketch(&self.execution, 1e-6),
        }
    }
}
