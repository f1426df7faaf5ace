//! Where the time of a run goes, operator by operator.

use crate::cost::{BatchShape, CostModel, StepCost};
use crate::ids::{ReplicaId, StageId};
use crate::sim::{Batch, Observer, Repeat, Request};
use crate::spec::ops::Op;
use crate::stats::Sketch;
use crate::units::{SimDuration, SimTime};
use serde::Serialize;

/// An observer that asks the cost model for the breakdown of every batch and adds it up.
pub struct OperatorTimes<'a> {
    cost: &'a dyn CostModel,
    /// By `Op as usize`: milliseconds, and those outside the measured range.
    totals: [(f64, f64); Op::ALL.len()],
    /// By `Op as usize`, where asked for: nanoseconds of a batch on a stage.
    sketches: Option<Vec<Sketch>>,
}

/// The share of one operator in a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OperatorShare {
    /// The operator; `docs/metrics.md` gives Vidur's name for it.
    pub operator: Op,
    /// Time on all stages and replicas, milliseconds.
    pub total_ms: f64,
    /// Of the time of all operators, percent.
    pub percent: f64,
    /// Of its own time, what was predicted outside the measured range, percent.
    pub extrapolated_percent: f64,
}

impl<'a> OperatorTimes<'a> {
    /// One that asks `cost`, and keeps how times are distributed where `distributions` says so.
    pub fn new(cost: &'a dyn CostModel, distributions: bool) -> Self {
        let sketches = distributions.then(|| vec![Sketch::default(); Op::ALL.len()]);
        OperatorTimes { cost, totals: [(0.0, 0.0); Op::ALL.len()], sketches }
    }

    fn add(&mut self, stage: StageId, batch: &BatchShape) {
        let mut here = [0.0; Op::ALL.len()];
        for time in self.cost.stage_breakdown(stage, batch) {
            let (ms, extrapolated) = &mut self.totals[time.op as usize];
            *ms += time.ms;
            here[time.op as usize] += time.ms;
            if time.extrapolated {
                *extrapolated += time.ms;
            }
        }
        for (sketch, ms) in self.sketches.iter_mut().flatten().zip(here) {
            if ms > 0.0 {
                sketch.add(SimDuration::from_ms(ms).as_ns());
            }
        }
    }

    /// Operators that took time and the distribution of their time in a batch on a stage, all its
    /// layers together, in nanoseconds; none unless asked for.
    pub fn distributions(&self) -> impl Iterator<Item = (Op, &Sketch)> {
        let all = Op::ALL.into_iter().zip(self.sketches.iter().flatten());
        all.filter(|(_, sketch)| sketch.count() > 0)
    }

    /// The operators that took time, longest first.
    pub fn shares(&self) -> Vec<OperatorShare> {
        let whole: f64 = self.totals.iter().map(|t| t.0).sum();
        let mut shares: Vec<OperatorShare> = Op::ALL
            .into_iter()
            .zip(self.totals)
            .filter(|(_, (ms, _))| *ms > 0.0)
            .map(|(operator, (total_ms, extrapolated_ms))| OperatorShare {
                operator,
                total_ms,
                percent: 100.0 * total_ms / whole,
                extrapolated_percent: 100.0 * extrapolated_ms / total_ms,
            })
            .collect();
        shares.sort_by(|a, b| b.total_ms.total_cmp(&a.total_ms));
        shares
    }
}

impl Observer for OperatorTimes<'_> {
    fn stage_started(
        &mut self,
        _: SimTime,
        _: ReplicaId,
        stage: StageId,
        batch: &Batch,
        _: StepCost,
    ) {
        self.add(stage, &batch.shape);
    }

    fn takes_repeats(&self) -> bool {
        true
    }

    fn repeated(&mut self, _: ReplicaId, batch: &Batch, _: &[Request], repeats: &[Repeat]) {
        let mut shape = batch.shape.clone();
        shape.decode_back(repeats.len() as u32);
        for _ in repeats {
            shape.decode_on(1);
            self.add(StageId(0), &shape);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::{BatchShape, OpTime};

    struct Fixed;

    impl CostModel for Fixed {
        fn num_stages(&self) -> u32 {
            1
        }
        fn stage_cost(&self, _: StageId, _: &BatchShape) -> StepCost {
            StepCost::default()
        }
        fn stage_breakdown(&self, _: StageId, batch: &BatchShape) -> Vec<OpTime> {
            let time = |op, ms, extrapolated| OpTime { op, ms, extrapolated };
            let far = batch.num_decodes > 1;
            vec![
                time(Op::Add, 1.0, false),
                time(Op::MlpUpProj, 4.0, far),
                time(Op::Add, 1.0, false),
            ]
        }
    }

    #[test]
    fn times_are_added_up_and_sorted() {
        let mut times = OperatorTimes::new(&Fixed, true);
        let mut batch = Batch::default();
        for decodes in [1, 2] {
            batch.shape.num_decodes = decodes;
            let cost = StepCost::default();
            times.stage_started(SimTime::ZERO, ReplicaId(0), StageId(0), &batch, cost);
        }
        let share = |operator, total_ms, percent, extrapolated_percent| OperatorShare {
            operator,
            total_ms,
            percent,
            extrapolated_percent,
        };
        let third = 100.0 * 4.0 / 12.0;
        assert_eq!(
            times.shares(),
            [share(Op::MlpUpProj, 8.0, 100.0 * 8.0 / 12.0, 50.0), share(Op::Add, 4.0, third, 0.0)]
        );
        // Both additions of a batch together.
        for (op, sketch) in times.distributions() {
            let ms = if op == Op::Add { 2.0 } else { 4.0 };
            assert_eq!(sketch.count(), 2, "{op:?}");
            assert!((sketch.quantiles(3)[1] / (ms * 1e6) - 1.0).abs() < 1e-3, "{op:?}");
        }
        assert_eq!(times.distributions().count(), 2);
    }
}
