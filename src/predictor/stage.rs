//! The time of a step: the operators of a pipeline stage, priced and added up.
//!
//! Operators that depend on nothing but the number of tokens are added up beforehand, for every
//! number of tokens that a batch may have; a query then costs one look-up and the attention.
//!
//! Each operator's time is rounded to 2⁻³² ms (0.2 picoseconds) first. Sums of such numbers below
//! 2²¹ ms are exact in 64-bit floats in any order, so that the table and
//! [`CostModel::stage_breakdown`] agree to the nanosecond.

use super::beside::BesidePrompts;
use super::config::{AttentionBatchingOverhead, HostStages, Limits};
use super::prompts::PromptGain;
use super::window::equivalent_chunk;
use super::{OpModel, OpModels, Prediction};
use crate::cost::{BatchShape, CostModel, OpTime, StepCost};
use crate::ids::StageId;
use crate::spec::model::ModelSpec;
use crate::spec::ops::{Feature, LayerSum, Op, OpInput, StageOp, stage_ops};
use crate::spec::parallel::Parallelism;
use crate::units::SimDuration;

/// Batches up to this many tokens are priced beforehand, however large the scheduler lets them get.
const MOST_ROWS: u32 = 1 << 20;

/// A [`CostModel`] made of one model per operator.
pub struct StageCost {
    /// By `Op as usize`; `None` for operators that are not modelled.
    models: Vec<Option<Box<dyn OpModel>>>,
    stages: Vec<Stage>,
    message_bytes_per_token: f64,
    all_reduce_launch_ms: f64,
    host_stages: HostStages,
    prompt_gain: Option<PromptGain>,
    beside_prompts: Option<BesidePrompts>,
    /// Factors on attention over several sequences; 1 for models without grouped queries.
    prefill_factor: f64,
    decode_factor: f64,
}

#[derive(Debug)]
struct Stage {
    /// Operators that are modelled, in running order.
    ops: Vec<StageOp>,
    /// Those of `ops` that the tables leave out.
    attention: Vec<StageOp>,
    /// All per-token operators together, by number of tokens.
    per_token: Vec<Prediction>,
    /// The LM head, by number of sampled tokens; empty where the stage has none.
    lm_head: Vec<Prediction>,
}

/// What [`StageCost::new`] needs beside the operators.
#[derive(Clone, Debug)]
pub struct StageSettings {
    /// Which operators a layer is taken to run.
    pub layer_sum: LayerSum,
    /// Slow-down of attention over several sequences.
    pub attention_batching_overhead: AttentionBatchingOverhead,
    /// Added to the profile of every all-reduce, milliseconds.
    pub all_reduce_launch_ms: f64,
    /// Which stages pay the host's time, when it is modelled.
    pub host_stages: HostStages,
    /// What several prompts at a time save, where that was measured.
    pub prompt_gain: Option<PromptGain>,
    /// Decoding sequences in one kernel with prompts, where that was measured.
    pub beside_prompts: Option<BesidePrompts>,
    /// Largest batch for which times are worked out beforehand.
    pub limits: Limits,
}

impl StageSettings {
    /// What an engine runs, nothing added.
    pub fn plain(limits: Limits) -> StageSettings {
        StageSettings {
            layer_sum: LayerSum::Engine,
            attention_batching_overhead: AttentionBatchingOverhead::default(),
            all_reduce_launch_ms: 0.0,
            host_stages: HostStages::First,
            prompt_gain: None,
            beside_prompts: None,
            limits,
        }
    }
}

/// Rounds to a multiple of 2⁻³² ms, and keeps sums far inside the range of [`SimDuration`].
pub(super) fn rounded(ms: f64) -> f64 {
    const MOST_MS: f64 = 5e11;
    // Floats from 2²⁰ to 2²¹ are 2⁻³² apart: the addition rounds, the subtraction is exact.
    const SHIFT: f64 = 1_572_864.0;
    (ms.min(MOST_MS) + SHIFT) - SHIFT
}

impl StageCost {
    /// Puts the stages of `model` together from operator models. Collectives are asked for bytes.
    pub fn new(
        op_models: OpModels,
        model: &ModelSpec,
        parallel: Parallelism,
        settings: StageSettings,
    ) -> StageCost {
        let mut models: Vec<Option<Box<dyn OpModel>>> = Op::ALL.iter().map(|_| None).collect();
        for (op, op_model) in op_models {
            models[op as usize] = Some(op_model);
        }
        let grouped = model.num_attention_heads > model.num_key_value_heads;
        let factor = |share: f64| if grouped { 1.0 + share } else { 1.0 };
        let mut cost = StageCost {
            models,
            stages: Vec::new(),
            message_bytes_per_token: f64::from(model.hidden_size) * model.dtype.bytes(),
            all_reduce_launch_ms: settings.all_reduce_launch_ms,
            host_stages: settings.host_stages,
            prompt_gain: settings.prompt_gain,
            beside_prompts: settings.beside_prompts,
            prefill_factor: factor(settings.attention_batching_overhead.prefill),
            decode_factor: factor(settings.attention_batching_overhead.decode),
        };
        cost.stages = (0..parallel.pipeline_parallel)
            .map(|stage| {
                let ops = stage_ops(model, parallel, stage, settings.layer_sum);
                cost.compile(ops, settings.limits)
            })
            .collect();
        cost
    }

    fn compile(&self, mut ops: Vec<StageOp>, limits: Limits) -> Stage {
        ops.retain(|o| self.models[o.op as usize].is_some());
        let of = |features: &[Feature]| -> Vec<StageOp> {
            ops.iter().filter(|o| features.contains(&o.op.feature())).copied().collect()
        };
        let table = |chosen: &[StageOp], most: u32| -> Vec<Prediction> {
            if chosen.is_empty() {
                return Vec::new();
            }
            let sum = |n: u64| self.sum(chosen.iter().map(|o| self.over_rows(*o, n)));
            (0..=u64::from(most.min(MOST_ROWS))).map(sum).collect()
        };
        Stage {
            attention: of(&[Feature::Prefill, Feature::Decode]),
            per_token: table(&of(&[Feature::Tokens]), limits.max_batch_tokens),
            lm_head: table(&of(&[Feature::SampledTokens]), limits.max_batch_size),
            ops,
        }
    }

    fn sum(&self, parts: impl Iterator<Item = Prediction>) -> Prediction {
        parts.fold(Prediction::default(), |a, b| Prediction {
            ms: a.ms + b.ms,
            extrapolated: a.extrapolated || b.extrapolated,
        })
    }

    fn predict(&self, op: Op, input: OpInput) -> Prediction {
        self.models[op as usize].as_ref().map_or_else(Prediction::default, |m| m.predict(input))
    }

    /// All repetitions of an operator that depends on a number of rows only. No rows, no time.
    fn over_rows(&self, o: StageOp, rows: u64) -> Prediction {
        if rows == 0 {
            return Prediction::default();
        }
        let x = if o.op.is_collective() {
            (rows as f64 * self.message_bytes_per_token) as u64
        } else {
            rows
        };
        let p = self.predict(o.op, OpInput::Tokens(x));
        let launch = if o.op == Op::AllReduce { self.all_reduce_launch_ms } else { 0.0 };
        Prediction { ms: rounded((p.ms + launch) * f64::from(o.repeats)), ..p }
    }

    /// All repetitions of an attention operator; `None` when the batch does not need it.
    ///
    /// Decoding sequences count by their number and mean cache. Several prompt chunks run as one
    /// kernel: where several prompts were measured together, each counts with what they save, see
    /// [`PromptGain`]; else they are priced as one chunk of the same work, see [`equivalent_chunk`].
    fn attention(&self, o: StageOp, batch: &BatchShape) -> Option<Prediction> {
        let (p, factor) = if o.op == Op::AttnDecode {
            let n = u64::from(batch.num_decodes);
            if n == 0 {
                return None;
            }
            let kv = batch.decode_kv_tokens as f64 / n as f64;
            let kv = o.window.map_or(kv, |w| kv.min(f64::from(w)));
            let factor = if n > 1 { self.decode_factor } else { 1.0 };
            let input = OpInput::Decode { batch: n, kv };
            let p = match &self.beside_prompts {
                Some(beside) if !batch.prefills.is_empty() => beside.predict(input),
                _ => self.predict(o.op, input),
            };
            (p, factor)
        } else {
            let several = batch.prefills.len() > 1;
            let factor = if several { self.prefill_factor } else { 1.0 };
            let p = match &self.prompt_gain {
                Some(gain) if several => {
                    let count = batch.prefills.len() as f64;
                    let chunks = batch.prefills.iter().filter_map(|prefill| {
                        let (kv, chunk) = equivalent_chunk(&[*prefill], o.window)?;
                        let alone = self.predict(o.op, OpInput::Prefill { kv, chunk });
                        Some(Prediction { ms: alone.ms * gain.share(count, chunk), ..alone })
                    });
                    self.sum(chunks)
                }
                _ => {
                    let (kv, chunk) = equivalent_chunk(&batch.prefills, o.window)?;
                    self.predict(o.op, OpInput::Prefill { kv, chunk })
                }
            };
            (p, factor)
        };
        Some(Prediction { ms: rounded(p.ms * f64::from(o.repeats) * factor), ..p })
    }

    /// The engine's work on the host before the batch starts; `None` where the stage has none.
    fn host(&self, stage: StageId, batch: &BatchShape) -> Option<Prediction> {
        let model = self.models[Op::Host as usize].as_ref()?;
        let sequences = batch.prefills.len() as u64 + u64::from(batch.num_decodes);
        let p =
            self.host_stages.pays(stage.0).then(|| model.predict(OpInput::Tokens(sequences)))?;
        Some(Prediction { ms: rounded(p.ms), ..p })
    }

    /// All repetitions of one operator; `None` when the batch does not need it.
    fn op_time(&self, o: StageOp, batch: &BatchShape) -> Option<Prediction> {
        match o.op.feature() {
            Feature::Prefill | Feature::Decode => self.attention(o, batch),
            Feature::Tokens => Some(self.over_rows(o, batch.num_rows())),
            Feature::SampledTokens => match batch.num_sampled() {
                0 => None,
                rows => Some(self.over_rows(o, rows)),
            },
        }
    }
}

impl CostModel for StageCost {
    fn num_stages(&self) -> u32 {
        self.stages.len() as u32
    }

    fn stage_cost(&self, stage: StageId, batch: &BatchShape) -> StepCost {
        let host = self.host(stage, batch).unwrap_or_default();
        let stage = &self.stages[stage.index()];
        let look_up = |table: &[Prediction], n: u64| match table {
            [] => Some(Prediction::default()),
            _ => table.get(n as usize).copied(),
        };
        let total = match (
            look_up(&stage.per_token, batch.num_rows()),
            look_up(&stage.lm_head, if stage.lm_head.is_empty() { 0 } else { batch.num_sampled() }),
        ) {
            (Some(per_token), Some(lm_head)) => {
                let attention = stage.attention.iter().filter_map(|o| self.attention(*o, batch));
                self.sum([per_token, lm_head].into_iter().chain(attention))
            }
            // Larger than the tables were made for.
            _ => self.sum(stage.ops.iter().filter_map(|o| self.op_time(*o, batch))),
        };
        let total = self.sum([host, total].into_iter());
        let (duration, fraction) = SimDuration::split_ms(total.ms);
        StepCost {
            duration,
            fraction,
            host: SimDuration::from_ms(host.ms),
            extrapolated: total.extrapolated,
        }
    }

    fn stage_breakdown(&self, stage: StageId, batch: &BatchShape) -> Vec<OpTime> {
        let host = self.host(stage, batch);
        let mut times: Vec<OpTime> = host
            .map(|p| OpTime { op: Op::Host, ms: p.ms, extrapolated: p.extrapolated })
            .into_iter()
            .collect();
        for o in &self.stages[stage.index()].ops {
            let Some(p) = self.op_time(*o, batch) else { continue };
            match times.last_mut() {
                // The same operator with and without a window.
                Some(last) if last.op == o.op => {
                    last.ms += p.ms;
                    last.extrapolated |= p.extrapolated;
                }
                _ => times.push(OpTime { op: o.op, ms: p.ms, extrapolated: p.extrapolated }),
            }
        }
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rounding_is_to_the_nearest_multiple(ms in 0.0..5e5f64) {
            const UNIT: f64 = 4_294_967_296.0;
            let r = rounded(ms);
            prop_assert_eq!((r * UNIT).fract(), 0.0);
            prop_assert!((r - ms).abs() <= 0.5 / UNIT && r >= 0.0);
        }
    }
}
