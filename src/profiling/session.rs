//! The measuring part of a run: shard after shard, round after round, within the budget.

use super::backend::{Backend, BackendError, OpSamples, Peaks, Purpose, Shape, Shard};
use super::budget::Budget;
use super::compute;
use super::plan;
use super::runner::{Fate, Job, Observer, Progress, RunError};
use crate::dataset::journal::Journal;
use crate::dataset::manifest::FailedShape;
use crate::dataset::write::TableKind;
use std::time::Duration;

/// A run under way.
pub struct Session<'a> {
    job: &'a Job,
    backend: &'a mut dyn Backend,
    peaks: Peaks,
    clock: &'a dyn Fn() -> Duration,
    observer: &'a mut dyn Observer,
    journal: Journal,
    budget: Budget,
    rounds: u32,
    position: usize,
    total: usize,
    failed: Vec<FailedShape>,
    skipped: usize,
}

/// One shape of a shard.
struct Slot {
    shape: Shape,
    /// What one round takes.
    estimate: Duration,
    /// Samples of all rounds so far, kept while more may follow.
    pool: Vec<OpSamples>,
    /// Whether it has a row and did not fail since.
    goes_on: bool,
}

/// A shard and the time that it may take.
struct Turn<'a> {
    shard: &'a Shard,
    end: Option<Duration>,
    /// Estimates of all that is still to be measured, every round counted.
    rest: Duration,
}

impl Turn<'_> {
    fn time_left(&self, now: Duration) -> Duration {
        self.end.map_or(Duration::MAX, |end| end.saturating_sub(now))
    }
}

impl<'a> Session<'a> {
    /// Starts the clock of `job`, which makes `total` measurements at most.
    pub fn new(
        job: &'a Job,
        backend: &'a mut dyn Backend,
        peaks: Peaks,
        clock: &'a dyn Fn() -> Duration,
        observer: &'a mut dyn Observer,
        journal: Journal,
        total: usize,
    ) -> Session<'a> {
        Session {
            job,
            backend,
            peaks,
            clock,
            observer,
            journal,
            budget: Budget::new(job.budget.map(|budget| clock() + budget)),
            rounds: job.rounds.max(1),
            position: 0,
            total,
            failed: Vec::new(),
            skipped: 0,
        }
    }

    /// The journal, the shapes that failed, and how many did not fit into the budget.
    pub fn into_parts(self) -> (Journal, Vec<FailedShape>, usize) {
        (self.journal, self.failed, self.skipped)
    }

    /// Measures `shapes` in every round that an even share of the budget allows: what is left of
    /// it is shared by `degrees_left` shards, this one included.
    ///
    /// # Errors
    /// [`RunError::Lost`], or a journal that cannot be written.
    pub fn measure_shard(
        &mut self,
        shard: &Shard,
        shapes: &[Shape],
        degrees_left: u32,
    ) -> Result<(), RunError> {
        if shapes.is_empty() {
            return Ok(());
        }
        let now = (self.clock)();
        let end = self.budget.share(now, degrees_left);
        let mut turn = Turn { shard, end, rest: Duration::ZERO };
        // One shape at least, however small the budget: an empty profile helps nobody.
        let must = self.position == 0;
        if (must || !turn.time_left(now).is_zero()) && !self.prepare(shard, shapes)? {
            return Ok(());
        }
        let effort = self.job.effort_per_round();
        let slot = |&shape: &Shape| Slot {
            shape,
            estimate: plan::estimate(shard, shape, self.peaks, effort),
            pool: Vec::new(),
            goes_on: false,
        };
        let mut slots: Vec<Slot> = shapes.iter().map(slot).collect();
        let cost = slots.iter().fold(Duration::ZERO, |sum, s| sum.saturating_add(s.estimate));
        turn.rest = cost.saturating_mul(self.rounds);
        self.first_round(&mut turn, &mut slots, must)?;
        for round in 2..=self.rounds {
            self.further_round(&mut turn, &mut slots, round)?;
        }
        Ok(())
    }

    /// Measures every shape once, if it fits; with `must`, at least one.
    fn first_round(
        &mut self,
        turn: &mut Turn,
        slots: &mut [Slot],
        mut must: bool,
    ) -> Result<(), RunError> {
        // With a tiny budget the cheapest shape is the one to measure.
        let cheapest = (0..slots.len()).min_by_key(|&i| slots[i].estimate);
        let mut waiting: Vec<usize> = (0..slots.len()).collect();
        // Shapes that do not fit wait for another pass: estimates get better as more is measured. So
        // do, at first, those that would take a fifth of the budget or more for themselves: many
        // small shapes say more than one large one.
        let dear = turn.time_left((self.clock)()) / 5;
        for pass in 0.. {
            let before = waiting.len();
            for i in std::mem::take(&mut waiting) {
                let wait = pass == 0 && self.budget.corrected(slots[i].estimate) > dear;
                if (!wait && self.fits(turn, &slots[i])) || (must && Some(i) == cheapest) {
                    let fate = self.measure_slot(turn, &mut slots[i], 1)?;
                    must &= fate != Fate::Measured;
                } else {
                    waiting.push(i);
                }
            }
            if waiting.is_empty() || (pass > 0 && waiting.len() == before) {
                break;
            }
        }
        for i in waiting {
            self.skipped += 1;
            self.tell(turn, &slots[i], Fate::Skipped, 1);
        }
        Ok(())
    }

    /// Measures those shapes once more that this process has measured, if they fit.
    fn further_round(
        &mut self,
        turn: &mut Turn,
        slots: &mut [Slot],
        round: u32,
    ) -> Result<(), RunError> {
        for slot in slots.iter_mut().filter(|slot| slot.goes_on) {
            if self.fits(turn, slot) {
                self.measure_slot(turn, slot, round)?;
            } else {
                self.tell(turn, slot, Fate::Skipped, round);
            }
        }
        Ok(())
    }

    fn fits(&self, turn: &Turn, slot: &Slot) -> bool {
        self.budget.corrected(slot.estimate) <= turn.time_left((self.clock)())
    }

    /// Lays out the shard; if that fails, none of its shapes can be measured, and it is `false`.
    fn prepare(&mut self, shard: &Shard, shapes: &[Shape]) -> Result<bool, RunError> {
        self.observer.preparing(shard.tensor_parallel);
        let purpose = match self.job.kind {
            TableKind::Mlp => Purpose::Mlp,
            TableKind::Attention => Purpose::Attention,
        };
        match self.backend.prepare(shard, purpose) {
            Ok(()) => Ok(true),
            Err(BackendError::Lost(reason)) => Err(self.lost(reason)),
            Err(BackendError::Shape(reason)) => {
                for &shape in shapes {
                    self.failed_shape(shard, shape, &reason);
                    let fate = Fate::Failed(reason.clone());
                    self.advance(shard, shape, fate, 1, self.rounds, Duration::ZERO);
                }
                Ok(false)
            }
        }
    }

    /// Measures a shape, writes its row and tells about it.
    fn measure_slot(
        &mut self,
        turn: &mut Turn,
        slot: &mut Slot,
        round: u32,
    ) -> Result<Fate, RunError> {
        let begin = (self.clock)();
        let fate = match self.backend.measure(slot.shape, self.job.effort_per_round()) {
            Ok(samples) => {
                pool(&mut slot.pool, samples);
                let (shape, longest) = (slot.shape, self.job.max_model_len);
                self.journal.append(compute::row(turn.shard, shape, &slot.pool, longest))?;
                slot.goes_on = true;
                Fate::Measured
            }
            Err(BackendError::Lost(reason)) => return Err(self.lost(reason)),
            Err(BackendError::Shape(reason)) => {
                // A shape that has a row from an earlier round did not fail.
                if round == 1 {
                    self.failed_shape(turn.shard, slot.shape, &reason);
                }
                slot.goes_on = false;
                Fate::Failed(reason)
            }
        };
        self.budget.learn(slot.estimate, (self.clock)().saturating_sub(begin));
        self.tell(turn, slot, fate.clone(), round);
        if round == self.rounds || !slot.goes_on {
            slot.pool = Vec::new();
        }
        Ok(fate)
    }

    fn failed_shape(&mut self, shard: &Shard, shape: Shape, reason: &str) {
        self.failed.push(FailedShape {
            tensor_parallel: shard.tensor_parallel,
            shape: shape.to_string(),
            reason: reason.to_owned(),
        });
    }

    fn lost(&self, reason: String) -> RunError {
        RunError::Lost { reason, rows: self.journal.rows().len() }
    }

    /// Counts what became of a shape in `round`, and the rounds that it will not see.
    fn tell(&mut self, turn: &mut Turn, slot: &Slot, fate: Fate, round: u32) {
        let steps = if slot.goes_on { 1 } else { self.rounds - round + 1 };
        turn.rest = turn.rest.saturating_sub(slot.estimate.saturating_mul(steps));
        let left = self.budget.corrected(turn.rest).min(turn.time_left((self.clock)()));
        self.advance(turn.shard, slot.shape, fate, round, steps, left);
    }

    fn advance(
        &mut self,
        shard: &Shard,
        shape: Shape,
        fate: Fate,
        round: u32,
        steps: u32,
        left: Duration,
    ) {
        self.position += steps as usize;
        let (position, total) = (self.position, self.total);
        let tensor_parallel = shard.tensor_parallel;
        let progress = Progress { tensor_parallel, shape, fate, round, position, total, left };
        self.observer.progress(&progress);
    }
}

/// Adds the samples of one more round.
fn pool(pool: &mut Vec<OpSamples>, samples: Vec<OpSamples>) {
    for new in samples {
        match pool.iter_mut().find(|old| old.op == new.op) {
            Some(old) => old.ms.extend(new.ms),
            None => pool.push(new),
        }
    }
}
