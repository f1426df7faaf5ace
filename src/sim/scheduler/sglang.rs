//! `sglang`: prompts first, in pieces. Mirrors SGLang 0.5 (`srt/managers/scheduler.py`,
//! `schedule_policy.py`):
//!
//! 1. While requests wait and fit, a step holds prompts only, as many as `chunked_prefill_size` and
//!    `max_prefill_tokens` take; the last one is cut, and its next piece opens the next step.
//!    Nobody decodes meanwhile.
//! 2. A request fits when, beside its prompt and its own output (at most 4096 tokens of it count),
//!    a share of what the running requests may still generate is free. The share (`new_token_ratio`)
//!    begins at 0.7, falls with every decode step to 0.098 in 600 steps, and rises when the estimate
//!    proved too bold.
//! 3. Otherwise everybody decodes. When the cache runs short, the request with the shortest output
//!    so far loses its cache and waits again, behind the others.
//!
//! With `enable_mixed_chunk`, step 1 holds a token of every running request too, which counts against
//! its budgets.
//!
//! Not modelled: the radix tree's own order of eviction (blocks are
//! given away as in vLLM), and the longest-prefix order of waiting requests (`fcfs` is the default).

use super::door::Door;
use super::seats::Seats;
use super::vllm_v1::give_up;
use super::{Replica, Scheduler, SglangConfig};
use crate::ids::RequestId;
use crate::sim::batch::Batch;
use crate::sim::request::Request;

/// Shares are counted in parts per billion. `global_config.py` and `SGLANG_INIT_NEW_TOKEN_RATIO`:
/// 0.7 at first, 0.14 of that at least, in 600 decode steps.
const PARTS: u64 = 1_000_000_000;
const RATIO_FIRST: u64 = 700_000_000;
const RATIO_LEAST: u64 = 98_000_000;
const RATIO_FALL: u64 = (RATIO_FIRST - RATIO_LEAST) / 600;
/// `CLIP_MAX_NEW_TOKENS`: more output than this counts as this much.
const CLIP_NEW_TOKENS: u32 = 4096;
/// `SGLANG_RETRACT_DECODE_STEPS`: steps that everybody should get through after a retraction.
const RETRACT_STEPS: u64 = 20;

pub(super) struct Sglang {
    max_running_requests: usize,
    chunk: u32,
    max_prefill_tokens: u32,
    mixed: bool,
    running: Seats,
    door: Door,
    /// The running request whose prompt is cut.
    cut: Option<RequestId>,
    /// Share of what running requests may still generate that is kept free for them.
    ratio: u64,
}

/// Output that a request may still generate, as far as the estimate looks.
fn output_left(request: &Request) -> u64 {
    let left = request.total_tokens() - request.processed.max(request.prefill_target);
    u64::from(left.min(CLIP_NEW_TOKENS))
}

impl Sglang {
    pub(super) fn new(config: &SglangConfig) -> Self {
        Sglang {
            max_running_requests: config.max_running_requests as usize,
            chunk: config.chunked_prefill_size(),
            max_prefill_tokens: config.max_prefill_tokens,
            mixed: config.enable_mixed_chunk,
            running: Seats::default(),
            door: Door::new(config.overlap_schedule),
            cut: None,
            ratio: RATIO_FIRST,
        }
    }

    /// Tokens of cache that are neither held nor kept for the output of those who run.
    fn room(&self, replica: &Replica<'_>) -> u64 {
        let free = u64::from(replica.kv.free()) * u64::from(replica.kv.block_size());
        let output: u64 =
            self.running.iter().map(|s| output_left(&replica.requests[s.id.index()])).sum();
        free.saturating_sub(output * self.ratio / PARTS)
    }

    fn seat_of(&self, id: RequestId) -> Option<usize> {
        self.running.iter().position(|s| s.id == id)
    }

    /// Step 1, for the first `seen` requests that wait.
    fn prefill(&mut self, replica: &mut Replica<'_>, batch: &mut Batch, mut seen: usize) {
        let mut chunk = self.chunk;
        let mut input = self.max_prefill_tokens;
        if self.mixed {
            let resting = self.running.iter().filter(|s| !s.in_batch && Some(s.id) != self.cut);
            let decodes = resting.count() as u32;
            chunk = chunk.saturating_sub(decodes).max(1);
            input = input.saturating_sub(decodes).max(1);
        }
        if let Some((id, at)) = self.cut.and_then(|id| Some((id, self.seat_of(id)?))) {
            if self.running.get(at).is_some_and(|s| s.in_batch) {
                // Its last piece is still in the pipeline.
                return;
            }
            let request = &replica.requests[id.index()];
            let tokens = request.prefill_left().min(chunk);
            if tokens == request.prefill_left() {
                self.cut = None;
            }
            batch.push(id, request, tokens);
            self.running.board(at);
            chunk -= tokens;
            input = input.saturating_sub(tokens);
        }
        let mut room = self.room(replica);
        while let Some(id) = self.door.front() {
            if seen == 0
                || chunk == 0
                || input == 0
                || self.running.len() >= self.max_running_requests
            {
                return;
            }
            let request = &mut replica.requests[id.index()];
            let found = replica.kv.find(id, request, replica.prefixes);
            let computed = found.blocks * replica.kv.block_size();
            let prompt = request.prefill_target;
            let left = prompt - computed;
            let needed = u64::from(left) + output_left(request);
            let blocks = replica.kv.blocks_for(prompt) - found.blocks;
            let fits = needed < room || (self.running.is_empty() && batch.is_empty());
            if !fits || replica.kv.free() < blocks + found.free {
                return;
            }
            self.door.pop();
            seen -= 1;
            let tokens = left.min(chunk);
            replica.kv.admit_found(id, request, found, prompt, replica.prefixes);
            replica.kv.publish(id, request, prompt, replica.prefixes);
            batch.push(id, request, tokens);
            self.running.admit(id);
            if tokens < left {
                self.cut = Some(id);
            }
            room = room.saturating_sub(needed);
            chunk -= tokens;
            input = input.saturating_sub(tokens);
        }
    }

    /// Step 3.
    fn decode(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        self.make_room(replica);
        for at in 0..self.running.len() {
            let Some(seat) = self.running.get(at).filter(|s| !s.in_batch) else { continue };
            let request = &mut replica.requests[seat.id.index()];
            if !replica.kv.can_hold(request, request.processed) {
                // Others hold the room whose batch is still in the pipeline.
                continue;
            }
            replica.kv.grow(request);
            batch.push(seat.id, request, 1);
            self.running.board(at);
        }
    }

    /// Retracts until the next token of everybody has room.
    fn make_room(&mut self, replica: &mut Replica<'_>) {
        let size = replica.kv.block_size();
        let mut retracted = false;
        loop {
            let resting = || self.running.iter().filter(|s| !s.in_batch).map(|s| s.id);
            let more = |id: &RequestId| {
                let request = &replica.requests[id.index()];
                request.processed > request.blocks * size
            };
            let needed = resting().filter(more).count() as u32;
            if needed <= replica.kv.free() || resting().count() <= 1 {
                break;
            }
            let least = |id: &RequestId| {
                let request = &replica.requests[id.index()];
                (request.emitted(), std::cmp::Reverse(request.prompt_tokens))
            };
            let Some(victim) = resting().min_by_key(least) else { break };
            let Some(at) = self.seat_of(victim) else { break };
            self.running.remove(at);
            give_up(victim, replica);
            self.door.put_last(victim);
            retracted = true;
        }
        if retracted {
            let of = |f: fn(&Request) -> u32| -> u64 {
                let all =
                    self.running.iter().map(|s| u64::from(f(&replica.requests[s.id.index()])));
                all.sum()
            };
            let got = of(Request::emitted) + RETRACT_STEPS * self.running.len() as u64;
            self.ratio = (got * PARTS / of(|r| r.output_tokens).max(1)).min(PARTS);
        } else {
            self.fall(1);
        }
    }

    fn fall(&mut self, steps: u64) {
        self.ratio = self.ratio.saturating_sub(RATIO_FALL.saturating_mul(steps)).max(RATIO_LEAST);
    }
}

impl Scheduler for Sglang {
    fn enqueue(&mut self, id: RequestId) {
        self.door.enqueue(id);
    }

    fn next_batch(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        let seen = self.door.open();
        self.prefill(replica, batch, seen);
        if !batch.is_empty() {
            if self.mixed {
                let prompts = batch.len();
                self.decode(replica, batch);
                // In the order of the seats: the prompts are those admitted last.
                batch.entries.rotate_left(prompts);
            }
            return;
        }
        if !self.running.is_empty() {
            self.decode(replica, batch);
        } else {
            let seen = self.door.look_again();
            self.prefill(replica, batch, seen);
        }
    }

    fn batch_ended(&mut self, batch: &Batch, replica: &mut Replica<'_>) {
        self.running.take_back(batch, replica);
        self.door.step_ended();
    }

    fn repeats(&self) -> bool {
        // Whoever waits may fit a step later, when the share has fallen; not when seats are taken.
        let refused = self.door.len() == 0 || self.running.len() >= self.max_running_requests;
        refused && !self.door.has_unseen() && self.running.all_in_batch()
    }

    fn repeated(&mut self, steps: u64) {
        self.fall(steps);
    }

    fn num_waiting(&self) -> usize {
        self.door.len()
    }
}
