//! What a moment of a request's life is spent on, and one step cut into such parts.

use crate::cost::{BatchShape, CostModel, StepCost};
use crate::ids::StageId;
use crate::spec::ops::Op;
use rustc_hash::FxHashMap;
use serde::Serialize;
use std::ops::{AddAssign, Index, IndexMut};

/// What time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// From sending to the scheduler: the engine's front end, which reads and tokenises prompts.
    FrontEnd,
    /// From the scheduler's queue to the first batch.
    Queueing,
    /// Everything that works token by token (projections, norms, feed-forward), as far as prompt
    /// tokens make it longer than the decoding sequences alone would.
    PrefillCompute,
    /// The same for decoding sequences: mostly reading the weights. A token-generation graph whole.
    DecodeWeights,
    /// Rows without a token that fill a batch up to the size of a captured graph, or a prompt up to
    /// its bucket.
    Padding,
    /// Attention of prompts and of decoding sequences, and writing keys and values.
    Attention,
    /// All-reduce, and sending activations to the next stage.
    Collectives,
    /// The engine's work on the host while the device waits.
    Host,
    /// Between stages of the pipeline, behind other batches.
    PipelineBubble,
    /// Holding cache and in no batch: others go first.
    WaitingForTurn,
    /// After a preemption: waiting, and computing again what was lost.
    Preemption,
}

impl Part {
    /// Every part, in the order in which a request meets them.
    pub const ALL: [Part; 11] = [
        Part::FrontEnd,
        Part::Queueing,
        Part::PrefillCompute,
        Part::DecodeWeights,
        Part::Padding,
        Part::Attention,
        Part::Collectives,
        Part::Host,
        Part::PipelineBubble,
        Part::WaitingForTurn,
        Part::Preemption,
    ];

    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Part::FrontEnd => "front end",
            Part::Queueing => "queueing",
            Part::PrefillCompute => "prefill compute",
            Part::DecodeWeights => "decode weights",
            Part::Padding => "padding",
            Part::Attention => "attention",
            Part::Collectives => "collectives",
            Part::Host => "host",
            Part::PipelineBubble => "pipeline bubble",
            Part::WaitingForTurn => "waiting for a turn",
            Part::Preemption => "preemption",
        }
    }
}

/// Nanoseconds by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts([u64; Part::ALL.len()]);

impl Parts {
    /// All parts together, nanoseconds.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// What `self` has more than `earlier`.
    pub fn since(&self, earlier: &Parts) -> Parts {
        Parts(std::array::from_fn(|i| self.0[i].saturating_sub(earlier.0[i])))
    }
}

impl Index<Part> for Parts {
    type Output = u64;

    fn index(&self, part: Part) -> &u64 {
        &self.0[part as usize]
    }
}

impl IndexMut<Part> for Parts {
    fn index_mut(&mut self, part: Part) -> &mut u64 {
        &mut self.0[part as usize]
    }
}

impl AddAssign<&Parts> for Parts {
    fn add_assign(&mut self, other: &Parts) {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a += b);
    }
}

/// Cuts steps into parts.
pub struct Cutter<'a> {
    cost: &'a dyn CostModel,
    /// Token-wise milliseconds of so many decoding sequences without a prompt beside them.
    decodes_alone: FxHashMap<(StageId, u32), f64>,
}

impl<'a> Cutter<'a> {
    /// One that asks `cost` for the operators of a step.
    pub fn new(cost: &'a dyn CostModel) -> Self {
        Cutter { cost, decodes_alone: FxHashMap::default() }
    }

    /// The parts of a step that costs `cost`; they add up to its duration.
    pub fn cut(&mut self, stage: StageId, shape: &BatchShape, cost: StepCost) -> Parts {
        let (mut token_wise, mut attention, mut collectives) = (0.0, 0.0, 0.0);
        let (mut padded, mut decoded) = (0.0, 0.0);
        for time in self.cost.stage_breakdown(stage, shape) {
            match time.op {
                Op::AttnPrefill | Op::AttnDecode | Op::AttnKvCacheSave => attention += time.ms,
                Op::AllReduce | Op::SendRecv => collectives += time.ms,
                Op::Host => {}
                Op::GraphPadding => padded += time.ms,
                Op::TokenGraph => decoded += time.ms,
                _ => token_wise += time.ms,
            }
        }
        let filled = match shape.padding {
            0 => token_wise,
            _ => self.token_wise(stage, &BatchShape { padding: 0, ..shape.clone() }),
        };
        let padding = (token_wise - filled).max(0.0);
        let tokens = token_wise - padding;
        let decodes = match (shape.prefills.is_empty(), shape.num_decodes) {
            (true, _) => tokens,
            (_, 0) => 0.0,
            (_, n) => self.decodes_alone(stage, n).min(tokens),
        };
        let weights = [
            (Part::PrefillCompute, tokens - decodes),
            (Part::DecodeWeights, decodes + decoded),
            (Part::Padding, padding + padded),
            (Part::Attention, attention),
            (Part::Collectives, collectives),
        ];
        let host = cost.host.as_ns().min(cost.duration.as_ns());
        let mut parts = share(cost.duration.as_ns() - host, weights);
        parts[Part::Host] += host;
        parts
    }

    fn decodes_alone(&mut self, stage: StageId, num_decodes: u32) -> f64 {
        if let Some(ms) = self.decodes_alone.get(&(stage, num_decodes)) {
            return *ms;
        }
        // Context is attention's concern, which is left out.
        let shape = BatchShape::decodes(num_decodes, 1);
        let ms = self.token_wise(stage, &shape);
        self.decodes_alone.insert((stage, num_decodes), ms);
        ms
    }

    /// Milliseconds of everything that works token by token, but for graphs that decode. A graph
    /// counts whole: what is attention inside cannot be told.
    fn token_wise(&self, stage: StageId, shape: &BatchShape) -> f64 {
        let other = |op: Op| {
            let attention = matches!(op, Op::AttnPrefill | Op::AttnDecode | Op::AttnKvCacheSave);
            attention
                || op.is_collective()
                || matches!(op, Op::Host | Op::GraphPadding | Op::TokenGraph)
        };
        let times = self.cost.stage_breakdown(stage, shape);
        times.iter().filter(|t| !other(t.op)).map(|t| t.ms).sum()
    }
}

/// Cuts `ns` in proportion to `weights`, to the last nanosecond. Without any weight all of it is
/// decoding's.
fn share<const N: usize>(ns: u64, weights: [(Part, f64); N]) -> Parts {
    let mut parts = Parts::default();
    let whole: f64 = weights.iter().map(|w| w.1).sum();
    if whole <= 0.0 {
        parts[Part::DecodeWeights] = ns;
        return parts;
    }
    // Ends of the shares are rounded, not shares: so that they add up.
    let (mut sum, mut given) = (0.0, 0);
    for (part, weight) in weights {
        sum += weight;
        let end = ((ns as f64 * (sum / whole)).round() as u64).clamp(given, ns);
        parts[part] += end - given;
        given = end;
    }
    // The last end is `ns` but for the last bits of the sum.
    parts[Part::DecodeWeights] += ns - given;
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_add_up(ns in any::<u32>(), weights in prop::array::uniform4(0.0..9.0f64)) {
            let parts = [
                Part::PrefillCompute, Part::DecodeWeights, Part::Attention, Part::Collectives,
            ];
            let weights: [(Part, f64); 4] = std::array::from_fn(|i| (parts[i], weights[i]));
            let cut = share(u64::from(ns), weights);
            prop_assert_eq!(cut.total(), u64::from(ns));
            let whole: f64 = weights.iter().map(|w| w.1).sum();
            for (part, weight) in weights {
                let exact = f64::from(ns) * weight / whole;
                prop_assert!(whole == 0.0 || (cut[part] as f64 - exact).abs() < 2.0);
            }
        }
    }
}
