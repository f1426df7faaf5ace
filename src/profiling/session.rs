//! The measuring part of a run: shard after shard, round after round, within the budget.

use super::backend::{Backend, BackendError, OpSamples, Peaks, Purpose, Shape, Shard};
use super::budget::Budget;
use super::compute;
use super::plan;
use super::runner::{Fate, Job, Observer, Progress, RunError};
use crate::dataset::journal::Journal;
use crate::dataset::manifest::FailedShape;
use crate::dataset::write::TableKind;
use std::collections::VecDeque;
use std::time::Duration;

/// A run under way.
pub struct Session<'a> {
    backend: &'a mut dyn Backend,
    peaks: Peaks,
    desk: Desk<'a>,
}

/// All of a run but the device: where results go.
struct Desk<'a> {
    job: &'a Job,
    clock: &'a dyn Fn() -> Duration,
    observer: &'a mut dyn Observer,
    journal: Journal,
    budget: Budget,
    kernel: String,
    rounds: u32,
    position: usize,
    total: usize,
    failed: Vec<FailedShape>,
    skipped: usize,
}

/// Shapes handed to a backend of several devices at once, for each device: enough that none waits
/// long for the slowest, few enough that the budget is still kept.
const SHAPES_PER_LANE: usize = 3;

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
        let desk = Desk {
            job,
            clock,
            observer,
            journal,
            budget: Budget::new(job.budget.map(|budget| clock() + budget)),
            kernel: backend.attention_kernel().to_owned(),
            rounds: job.rounds.max(1),
            position: 0,
            total,
            failed: Vec::new(),
            skipped: 0,
        };
        Session { backend, peaks, desk }
    }

    /// The journal, the shapes that failed, and how many did not fit into the budget.
    pub fn into_parts(self) -> (Journal, Vec<FailedShape>, usize) {
        (self.desk.journal, self.desk.failed, self.desk.skipped)
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
        let desk = &mut self.desk;
        let now = (desk.clock)();
        let end = desk.budget.share(now, degrees_left);
        let mut turn = Turn { shard, end, rest: Duration::ZERO };
        // One shape at least, however small the budget: an empty profile helps nobody.
        let must = desk.position == 0;
        let time_left = !turn.time_left(now).is_zero();
        if (must || time_left) && !self.prepare(shard, shapes)? {
            return Ok(());
        }
        let effort = self.desk.job.effort_per_round();
        let slot = |&shape: &Shape| Slot {
            shape,
            estimate: plan::estimate(shard, shape, self.peaks, effort),
            pool: Vec::new(),
            goes_on: false,
        };
        let mut slots: Vec<Slot> = shapes.iter().map(slot).collect();
        let cost = slots.iter().fold(Duration::ZERO, |sum, s| sum.saturating_add(s.estimate));
        turn.rest = cost.saturating_mul(self.desk.rounds);
        self.first_round(&mut turn, &mut slots, must)?;
        for round in 2..=self.desk.rounds {
            self.further_round(&mut turn, &mut slots, round)?;
        }
        Ok(())
    }

    /// How many shapes go to the backend at once.
    fn at_once(&self) -> usize {
        match self.backend.lanes() {
            0 | 1 => 1,
            lanes => lanes * SHAPES_PER_LANE,
        }
    }

    /// Measures every shape once, if it fits; with `must`, at least one.
    fn first_round(
        &mut self,
        turn: &mut Turn,
        slots: &mut [Slot],
        mut must: bool,
    ) -> Result<(), RunError> {
        let at_once = self.at_once();
        // With a tiny budget the cheapest shape is the one to measure.
        let cheapest = (0..slots.len()).min_by_key(|&i| slots[i].estimate);
        let mut waiting: VecDeque<usize> = (0..slots.len()).collect();
        // Shapes that do not fit wait for another pass: estimates get better as more is measured. So
        // do, at first, those that would take a fifth of the budget or more for themselves: many
        // small shapes say more than one large one.
        let dear = turn.time_left((self.desk.clock)()) / 5;
        for pass in 0.. {
            let before = waiting.len();
            let mut queue = std::mem::take(&mut waiting);
            while !queue.is_empty() {
                let mut batch = Vec::new();
                let mut planned = Duration::ZERO;
                while batch.len() < at_once
                    && let Some(i) = queue.pop_front()
                {
                    let estimate = self.desk.budget.corrected(slots[i].estimate);
                    let wait = pass == 0 && estimate > dear;
                    let fits = self.desk.fits(turn, planned.saturating_add(estimate));
                    if (!wait && fits) || (must && Some(i) == cheapest) {
                        batch.push(i);
                        planned = planned.saturating_add(estimate);
                    } else {
                        waiting.push_back(i);
                    }
                }
                must &= !self.measure_slots(turn, slots, &batch, 1)?;
            }
            if waiting.is_empty() || (pass > 0 && waiting.len() == before) {
                break;
            }
        }
        for i in waiting {
            self.desk.skipped += 1;
            self.desk.tell(turn, &slots[i], Fate::Skipped, 1);
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
        let going: Vec<usize> = (0..slots.len()).filter(|&i| slots[i].goes_on).collect();
        for part in going.chunks(self.at_once()) {
            let mut batch = Vec::new();
            let mut planned = Duration::ZERO;
            for &i in part {
                planned = planned.saturating_add(self.desk.budget.corrected(slots[i].estimate));
                if self.desk.fits(turn, planned) {
                    batch.push(i);
                } else {
                    self.desk.tell(turn, &slots[i], Fate::Skipped, round);
                }
            }
            self.measure_slots(turn, slots, &batch, round)?;
        }
        Ok(())
    }

    /// Measures the shapes of `batch`, writes their rows as they come in and tells about them;
    /// whether one has a row now.
    fn measure_slots(
        &mut self,
        turn: &mut Turn,
        slots: &mut [Slot],
        batch: &[usize],
        round: u32,
    ) -> Result<bool, RunError> {
        let shapes: Vec<Shape> = batch.iter().map(|&i| slots[i].shape).collect();
        let (effort, desk) = (self.desk.job.effort_per_round(), &mut self.desk);
        let (mut measured, mut error) = (false, None);
        let mut begin = (desk.clock)();
        self.backend.measure_all(&shapes, effort, &mut |at, result| {
            // With several devices this is the time between results: what a shape costs the run.
            let spent = (desk.clock)().saturating_sub(begin);
            begin += spent;
            let Some(&i) = batch.get(at) else { return };
            match desk.record(turn, &mut slots[i], round, result, spent) {
                Ok(fate) => measured |= fate == Fate::Measured,
                Err(e) => error = error.take().or(Some(e)),
            }
        });
        self.backend.take_notes().iter().for_each(|note| desk.observer.note(note));
        error.map_or(Ok(measured), Err)
    }

    /// Lays out the shard; if that fails, none of its shapes can be measured, and it is `false`.
    fn prepare(&mut self, shard: &Shard, shapes: &[Shape]) -> Result<bool, RunError> {
        let desk = &mut self.desk;
        desk.observer.preparing(shard.tensor_parallel);
        let purpose = match desk.job.kind {
            TableKind::Mlp => Purpose::Mlp,
            TableKind::Attention => Purpose::Attention,
        };
        let prepared = self.backend.prepare(shard, purpose);
        self.backend.take_notes().iter().for_each(|note| desk.observer.note(note));
        match prepared {
            Ok(()) => Ok(true),
            Err(BackendError::Lost(reason)) => Err(desk.lost(reason)),
            Err(BackendError::Shape(reason)) => {
                for &shape in shapes {
                    desk.failed_shape(shard, shape, &reason);
                    let fate = Fate::Failed(reason.clone());
                    desk.advance(shard, shape, fate, 1, desk.rounds, Duration::ZERO);
                }
                Ok(false)
            }
        }
    }
}

impl Desk<'_> {
    fn fits(&self, turn: &Turn, estimate: Duration) -> bool {
        estimate <= turn.time_left((self.clock)())
    }

    /// Writes the row of a shape that took `spent`, and tells about it.
    fn record(
        &mut self,
        turn: &mut Turn,
        slot: &mut Slot,
        round: u32,
        result: Result<Vec<OpSamples>, BackendError>,
        spent: Duration,
    ) -> Result<Fate, RunError> {
        let fate = match result {
            Ok(samples) => {
                pool(&mut slot.pool, samples);
                let (shape, longest) = (slot.shape, self.job.max_model_len);
                let row = compute::row(turn.shard, shape, &slot.pool, longest, &self.kernel);
                self.journal.append(row)?;
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
        self.budget.learn(slot.estimate, spent);
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
