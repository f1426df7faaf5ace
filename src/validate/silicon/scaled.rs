//! Step times of a running engine from those of its operators.

use super::setups::Beyond;
use crate::cost::{BatchShape, CostModel, OpTime, StepCost};
use crate::ids::StageId;
use crate::units::SimDuration;

/// Another cost model's times and what a running engine takes [`Beyond`] them.
pub struct Scaled<'a> {
    inner: &'a dyn CostModel,
    beyond: Beyond,
    /// Nanoseconds of all-reduces in a step, beyond their timing.
    all_reduces_ns: u64,
}

impl<'a> Scaled<'a> {
    /// Of a model with `all_reduces` in a step.
    pub fn new(inner: &'a dyn CostModel, beyond: Beyond, all_reduces: u32) -> Self {
        let all_reduces_ns = u64::from(beyond.all_reduce_ns) * u64::from(all_reduces);
        Scaled { inner, beyond, all_reduces_ns }
    }
}

impl CostModel for Scaled<'_> {
    fn num_stages(&self) -> u32 {
        self.inner.num_stages()
    }

    fn stage_cost(&self, stage: StageId, batch: &BatchShape) -> StepCost {
        let mut cost = self.inner.stage_cost(stage, batch);
        let percent = match batch.prefills.is_empty() {
            true => self.beyond.decode_step_percent,
            false => self.beyond.prompt_step_percent,
        };
        let ns = cost.duration.as_ns() * u64::from(percent) / 100 + self.all_reduces_ns;
        cost.duration = SimDuration::from_ns(ns);
        cost
    }

    /// Not scaled: nobody asks a validation for operators.
    fn stage_breakdown(&self, stage: StageId, batch: &BatchShape) -> Vec<OpTime> {
        self.inner.stage_breakdown(stage, batch)
    }
}
