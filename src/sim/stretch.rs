//! Stretches of decoding: the same batch, step after step, told in one go.
//!
//! A batch in which every request decodes repeats until a request arrives, one of its own completes,
//! or the cache runs short. Up to there nothing is decided: its steps differ only in the context
//! that attention reads, which grows by a token per request. So a replica runs ahead of the clock:
//! the times of its steps are asked one by one and added up, and requests and cache are brought up
//! to date when the stretch ends. A request that arrives meanwhile takes back the steps that have
//! not begun. The result is that of taking every step by itself, to the nanosecond;
//! `tests/it/sim_properties.rs` compares the two.

use super::batch::Batch;
use super::host::Host;
use super::kv_blocks::KvBlocks;
use super::observer::Repeat;
use super::request::Request;
use crate::cost::{CostModel, StepCost};
use crate::ids::StageId;
use crate::units::{SimDuration, SimTime};

/// Adds the parts of a nanosecond that earlier steps left over to `cost`, and keeps what it leaves.
pub(super) fn carry(fraction: &mut u32, mut cost: StepCost) -> StepCost {
    let (sum, full) = fraction.overflowing_add(cost.fraction);
    *fraction = sum;
    cost.duration += SimDuration::from_ns(u64::from(full));
    cost
}

/// What times a step.
pub(super) struct Pace<'a> {
    pub(super) cost: &'a dyn CostModel,
    pub(super) host: Host,
}

/// Repeats that a replica keeps at most, so that memory does not grow with the length of outputs.
const LONGEST: u32 = 1024;

/// How far a replica may run ahead.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    /// Surely nothing arrives before.
    pub(super) sure_until: SimTime,
    /// Steps that may begin later, in the hope that what arrives goes to another replica.
    pub(super) beyond: usize,
}

/// How often `batch`, which has just started, can surely repeat before one of its requests
/// completes or the cache runs short, as far as repeats are kept. A step takes at most one block per request, and asks for a
/// free one even when it takes none.
pub(super) fn most_repeats(batch: &Batch, requests: &[Request], kv: &KvBlocks) -> u32 {
    let left = batch.entries.iter().map(|e| {
        let request = &requests[e.request.index()];
        request.total_tokens() - request.processed
    });
    let steps = left.min().unwrap_or(0).saturating_sub(1);
    let blocks = kv.free().saturating_sub(1) / batch.len().max(1) as u32;
    steps.min(blocks).min(LONGEST)
}

/// The repeats of a replica's batch that are known and not yet told: batch, requests and cache do
/// not know of them.
#[derive(Default)]
pub(super) struct Ahead {
    repeats: Vec<Repeat>,
    /// Of these, the first so many have been told.
    told: usize,
}

impl Ahead {
    /// Repeats `batch`, whose first step ends at `end`, as far as `bound` allows. Gives the time at
    /// which its last repeat ends.
    pub(super) fn run(
        &mut self,
        batch: &Batch,
        most: u32,
        pace: &Pace<'_>,
        fraction: &mut u32,
        mut end: SimTime,
        bound: Bound,
    ) -> SimTime {
        let mut shape = batch.shape.clone();
        let mut beyond = bound.beyond;
        while self.repeats.len() < most as usize {
            if end >= bound.sure_until {
                let Some(left) = beyond.checked_sub(1) else { break };
                beyond = left;
            }
            shape.decode_on(1);
            let cost = carry(fraction, pace.cost.stage_cost(StageId(0), &shape));
            let cost = pace.host.charge(cost, batch.len());
            self.repeats.push(Repeat { at: end, cost, kv_used: 0 });
            end = end + cost.duration;
        }
        end
    }

    /// Takes back the repeats that begin at `now` or later. Gives the time at which the first of
    /// them would have begun: then ends the step that is under way.
    pub(super) fn take_back(&mut self, now: SimTime, fraction: &mut u32) -> Option<SimTime> {
        let begun = self.repeats.partition_point(|r| r.at < now);
        let end = self.repeats.get(begun)?.at;
        for repeat in self.repeats.drain(begun..) {
            *fraction = fraction.wrapping_sub(repeat.cost.fraction);
        }
        Some(end)
    }

    /// Brings `batch`, its requests and the cache to where the last repeat stands that begins
    /// before `now`. Gives the repeats that this adds.
    pub(super) fn catch_up(
        &mut self,
        now: SimTime,
        batch: &mut Batch,
        requests: &mut [Request],
        kv: &mut KvBlocks,
    ) -> &[Repeat] {
        let news = &mut self.repeats[self.told..];
        let begun = news.partition_point(|r| r.at < now);
        let news = &mut news[..begun];
        if news.is_empty() {
            return news;
        }
        self.told += begun;
        let steps = begun as u32;
        batch.shape.decode_on(steps);
        let mut sum = kv.used();
        let size = kv.block_size();
        for entry in &batch.entries {
            let request = &mut requests[entry.request.index()];
            // The first token past its blocks takes one more, and every `size`-th after that.
            let mut at = (request.blocks * size).saturating_sub(request.processed);
            while (at as usize) < news.len() {
                news[at as usize].kv_used += 1;
                at += size;
            }
            request.processed += steps;
            kv.grow_to_fit(request);
        }
        for repeat in &mut *news {
            sum += repeat.kv_used;
            repeat.kv_used = sum;
        }
        debug_assert_eq!(sum, kv.used(), "blocks are counted twice the same way");
        news
    }

    /// Whether the step that is under way is the last one known.
    pub(super) fn is_empty(&self) -> bool {
        self.repeats.is_empty()
    }

    /// Forgets everything, once it has been told.
    pub(super) fn clear(&mut self) {
        self.repeats.clear();
        self.told = 0;
    }
}
