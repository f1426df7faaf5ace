//! The seam between prediction and simulation: the simulator asks how long a step takes, and
//! nothing else. `sim` knows only this file; `predictor` implements it.

use crate::ids::StageId;
use crate::spec::ops::Op;
use crate::units::SimDuration;

/// One piece of a prompt that a batch processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefillChunk {
    /// Tokens of this request already in the KV cache.
    pub kv_tokens: u32,
    /// Prompt tokens processed in this step, at least 1.
    pub chunk_tokens: u32,
    /// Whether the prompt ends with this chunk, so that its first output token is sampled.
    pub completes: bool,
}

/// What one batch asks of the model: all that the time of a step depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchShape {
    /// The prompt chunks in the batch, in batch order.
    pub prefills: Vec<PrefillChunk>,
    /// Sequences that decode one token each.
    pub num_decodes: u32,
    /// Sum over the decoding sequences of the tokens each attends to, its own new token included.
    pub decode_kv_tokens: u64,
    /// The longest of those contexts, 0 when nobody decodes: what a graph compiled for a context
    /// length must hold.
    pub longest_decode: u32,
    /// Rows without a token that fill the batch up to the size of a captured graph.
    pub padding: u32,
}

impl BatchShape {
    /// `num_decodes` sequences that each attend to `context` tokens, and no prompt.
    pub fn decodes(num_decodes: u32, context: u32) -> BatchShape {
        BatchShape {
            num_decodes,
            decode_kv_tokens: u64::from(num_decodes) * u64::from(context),
            longest_decode: if num_decodes > 0 { context } else { 0 },
            ..BatchShape::default()
        }
    }

    /// Adds a sequence that decodes one token and attends to `context` tokens, the new one included.
    pub fn push_decode(&mut self, context: u32) {
        self.num_decodes += 1;
        self.decode_kv_tokens += u64::from(context);
        self.longest_decode = self.longest_decode.max(context);
    }

    /// Makes it the shape of the same decoding sequences `steps` steps on: each attends to so many
    /// tokens more.
    pub fn decode_on(&mut self, steps: u32) {
        self.decode_kv_tokens += u64::from(steps) * u64::from(self.num_decodes);
        self.longest_decode += steps;
    }

    /// The inverse of [`BatchShape::decode_on`].
    pub fn decode_back(&mut self, steps: u32) {
        self.decode_kv_tokens -= u64::from(steps) * u64::from(self.num_decodes);
        self.longest_decode -= steps;
    }

    /// Prompt tokens in the batch.
    pub fn num_prefill_tokens(&self) -> u64 {
        self.prefills.iter().map(|p| u64::from(p.chunk_tokens)).sum()
    }

    /// Tokens that pass through the layers: prompt tokens and one per decoding sequence.
    pub fn num_tokens(&self) -> u64 {
        self.num_prefill_tokens() + u64::from(self.num_decodes)
    }

    /// Rows that pass through the layers: tokens and padding.
    pub fn num_rows(&self) -> u64 {
        self.num_tokens() + u64::from(self.padding)
    }

    /// Sequences whose next token is sampled in this step: the rows of the LM head.
    pub fn num_sampled(&self) -> u64 {
        self.prefills.iter().filter(|p| p.completes).count() as u64 + u64::from(self.num_decodes)
    }

    /// Empties the shape and keeps its allocation.
    pub fn clear(&mut self) {
        self.prefills.clear();
        self.num_decodes = 0;
        self.decode_kv_tokens = 0;
        self.longest_decode = 0;
        self.padding = 0;
    }
}

/// The answer for one batch on one pipeline stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepCost {
    /// How long the stage is busy with the batch, in whole nanoseconds.
    pub duration: SimDuration,
    /// What that leaves out, in units of 2⁻³² ns: the simulator carries it over to the stage's next
    /// step, so that errors do not add up over the steps of a long run.
    pub fraction: u32,
    /// The part of it in which the host works and the device waits.
    pub host: SimDuration,
    /// Whether any operator was asked outside the range that was measured.
    pub extrapolated: bool,
}

/// The share of one operator in a step, all its repetitions summed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OpTime {
    /// The operator.
    pub op: Op,
    /// Milliseconds, all repetitions in the stage together.
    pub ms: f64,
    /// Whether it was asked outside the range that was measured.
    pub extrapolated: bool,
}

/// The most that a deployment may ask of a cost model, known before it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Tokens of the longest prompt.
    pub longest_prompt: u32,
    /// Tokens that a request may have to compute again in one go after it lost its cache; 0 where
    /// none loses it.
    pub longest_restart: u32,
    /// The longest context that a decode step attends to; 0 where every request has one output token.
    pub longest_decode: u32,
    /// Sequences that may run at the same time, and the setting that says so.
    pub max_seqs: (u32, String),
    /// Why a step may hold a piece of a prompt only; `None` where prompts run whole.
    pub pieces: Option<String>,
}

/// Predicts the time of a step.
///
/// Precondition: the batch holds at least one token. Postconditions: the same question always gets
/// the same answer; durations are finite; [`CostModel::stage_cost`] is the sum of
/// [`CostModel::stage_breakdown`] cut once to nanoseconds and fraction.
pub trait CostModel: Send + Sync {
    /// Pipeline stages that the model is split into, at least 1.
    fn num_stages(&self) -> u32;

    /// How long `stage` needs for `batch`.
    fn stage_cost(&self, stage: StageId, batch: &BatchShape) -> StepCost;

    /// The same time, operator by operator, in the order in which they run.
    fn stage_breakdown(&self, stage: StageId, batch: &BatchShape) -> Vec<OpTime>;

    /// Checks that it has an answer for everything that a deployment may ask. Most models answer
    /// every question; compiled graphs have hard limits.
    ///
    /// # Errors
    /// One line that names what is asked for, the limit and the cure.
    fn check(&self, _demand: &Demand) -> Result<(), String> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decode_step_on_lengthens_every_context_by_one_token() {
        let mut shape = BatchShape::default();
        for context in [7, 90, 12] {
            shape.push_decode(context);
        }
        let at_first = shape.clone();
        assert_eq!((shape.num_decodes, shape.decode_kv_tokens, shape.longest_decode), (3, 109, 90));
        shape.decode_on(2);
        assert_eq!((shape.decode_kv_tokens, shape.longest_decode), (115, 92));
        shape.decode_back(2);
        assert_eq!(shape, at_first);
        assert_eq!(BatchShape::decodes(0, 5), BatchShape::default());
    }
}
