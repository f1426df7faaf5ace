//! Stretches of decoding: the same batch, step after step, told in one go.
//!
//! A batch in which every request decodes repeats until a request arrives, one of its own completes,
//! or the cache runs short. Up to there nothing is decided: its steps differ only in the context
//! that attention reads, which grows by a token per request. So their times are asked one by one and
//! added up, and requests and cache are brought up to date once, at the end. The result is that of
//! taking every step by itself, to the nanosecond; `tests/it/sim_properties.rs` compares the two.

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

/// How often `batch`, which has just started, can surely repeat before one of its requests
/// completes or the cache runs short. A step takes at most one block per request, and asks for a
/// free one even when it takes none.
fn most_repeats(batch: &Batch, requests: &[Request], kv: &KvBlocks) -> u32 {
    let left = batch.entries.iter().map(|e| {
        let request = &requests[e.request.index()];
        request.total_tokens() - request.processed
    });
    let steps = left.min().unwrap_or(0).saturating_sub(1);
    let blocks = kv.free().saturating_sub(1) / batch.len().max(1) as u32;
    steps.min(blocks)
}

/// Repeats `batch`, whose first step ends at `end`, while each step ends before `next_arrival`.
/// Appends the repeats to `out`, brings batch, requests and cache to where the last one begins, and
/// gives the time at which that one ends.
#[allow(clippy::too_many_arguments)]
pub(super) fn run(
    batch: &mut Batch,
    requests: &mut [Request],
    kv: &mut KvBlocks,
    cost: &dyn CostModel,
    host: Host,
    fraction: &mut u32,
    mut end: SimTime,
    next_arrival: SimTime,
    out: &mut Vec<Repeat>,
) -> SimTime {
    if end >= next_arrival {
        return end;
    }
    let most = most_repeats(batch, requests, kv);
    let context_per_step = u64::from(batch.shape.num_decodes);
    while out.len() < most as usize && end < next_arrival {
        batch.shape.decode_kv_tokens += context_per_step;
        let cost = carry(fraction, cost.stage_cost(StageId(0), &batch.shape));
        let cost = host.charge(cost, batch.len());
        out.push(Repeat { at: end, cost, kv_used: 0 });
        end = end + cost.duration;
    }
    let repeats = out.len() as u32;
    if repeats == 0 {
        return end;
    }
    let used = kv.used();
    let size = kv.block_size();
    for entry in &batch.entries {
        let request = &mut requests[entry.request.index()];
        // The first token past its blocks takes one more, and every `size`-th after that.
        let mut at = (request.blocks * size).saturating_sub(request.processed);
        while (at as usize) < out.len() {
            out[at as usize].kv_used += 1;
            at += size;
        }
        request.processed += repeats;
        kv.grow_to_fit(request);
    }
    let mut sum = used;
    for repeat in out {
        sum += repeat.kv_used;
        repeat.kv_used = sum;
    }
    debug_assert_eq!(sum, kv.used(), "blocks are counted twice the same way");
    end
}
