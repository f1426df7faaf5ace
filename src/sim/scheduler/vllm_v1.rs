//! `vllm_v1`: one token budget for everything. Mirrors vLLM's V1 engine
//! (`v1/core/sched/scheduler.py`, versions 0.11 to 0.24):
//!
//! 1. Running requests first, in order of admission: one token for each that decodes, the next piece
//!    of the prompt for the others, no more than `long_prefill_token_threshold`, until
//!    `max_num_batched_tokens` are given out.
//! 2. Blocks are taken for the tokens of this step only. When none is left, the request that was
//!    admitted last loses its cache and waits again at the head of the queue, if need be the one
//!    that asked.
//! 3. If nobody lost its cache, waiting requests are admitted first come first served, while budget
//!    and seats last and blocks for all that they have to prefill are free
//!    (`scheduler_reserve_full_isl`, 0.19 and later; before, for the first piece). What the prefix
//!    cache still has of them is not computed again.
//!
//! Not modelled: the seat and the blocks of a request that ends are free for the next step, where
//! asynchronous scheduling frees them a step later; several pieces of one prompt in a pipeline
//! at the same time; priorities; speculative decoding.

use super::door::Door;
use super::seats::Seats;
use super::{Replica, Scheduler, VllmV1Config};
use crate::ids::RequestId;
use crate::sim::batch::Batch;

pub(super) struct VllmV1 {
    max_num_seqs: usize,
    max_num_batched_tokens: u32,
    /// Most tokens of one prompt in a step.
    piece: u32,
    reserve_full_prompt: bool,
    running: Seats,
    door: Door,
    /// The first who waits had no room in the last step, and some of the free blocks hold the
    /// beginning of its prompt.
    held_off: bool,
}

impl VllmV1 {
    pub(super) fn new(config: &VllmV1Config) -> Self {
        VllmV1 {
            max_num_seqs: config.max_num_seqs() as usize,
            max_num_batched_tokens: config.max_num_batched_tokens(),
            piece: match config.long_prefill_token_threshold {
                0 => u32::MAX,
                n => n,
            },
            reserve_full_prompt: config.reserve_full_prompt,
            running: Seats::default(),
            door: Door::new(config.async_scheduling),
            held_off: false,
        }
    }

    /// Step 1. Says whether somebody lost its cache.
    fn run_running(
        &mut self,
        replica: &mut Replica<'_>,
        batch: &mut Batch,
        budget: &mut u32,
    ) -> bool {
        let mut preempted = false;
        let mut at = 0;
        while let Some(seat) = self.running.get(at).filter(|_| *budget > 0) {
            if seat.in_batch {
                at += 1;
                continue;
            }
            let request = &replica.requests[seat.id.index()];
            let (tokens, upto) = if request.is_prefill_complete() {
                (1, request.processed)
            } else {
                let tokens = request.prefill_left().min(self.piece).min(*budget);
                (tokens, request.processed + tokens)
            };
            while !replica.kv.can_hold(&replica.requests[seat.id.index()], upto) {
                let Some(last) = self.last_resting(at) else {
                    // Who should give way is still in the pipeline.
                    return preempted;
                };
                preempted = true;
                if let Some(id) = self.running.remove(last) {
                    give_up(id, replica);
                    self.door.put_first(id);
                }
                if last == at {
                    return true;
                }
            }
            let request = &mut replica.requests[seat.id.index()];
            replica.kv.hold(request, upto);
            replica.kv.publish(seat.id, request, upto, replica.prefixes);
            batch.push(seat.id, request, tokens);
            self.running.board(at);
            *budget -= tokens;
            at += 1;
        }
        preempted
    }

    /// The last seat from `from` on whose request is in no batch; none if that is `from` itself and
    /// later ones are in a batch.
    fn last_resting(&self, from: usize) -> Option<usize> {
        let last = self.running.iter().rposition(|s| !s.in_batch)?;
        (last > from || from + 1 == self.running.len()).then_some(last)
    }

    /// Step 3, for the first `seen` requests that wait.
    fn admit(
        &mut self,
        replica: &mut Replica<'_>,
        batch: &mut Batch,
        budget: &mut u32,
        mut seen: usize,
    ) {
        while let Some(id) = self.door.front() {
            if seen == 0 || *budget == 0 || self.running.len() >= self.max_num_seqs {
                return;
            }
            let request = &mut replica.requests[id.index()];
            let found = replica.kv.find(id, request, replica.prefixes);
            let computed = found.blocks * replica.kv.block_size();
            let left = request.prefill_target - computed;
            let tokens = left.min(self.piece).min(*budget);
            let reserved = if self.reserve_full_prompt { left } else { tokens };
            let blocks = replica.kv.blocks_for(computed + reserved) - found.blocks;
            if replica.kv.free() < blocks + found.free {
                self.held_off = found.free > 0;
                return;
            }
            self.door.pop();
            seen -= 1;
            replica.kv.admit_found(id, request, found, computed + tokens, replica.prefixes);
            replica.kv.publish(id, request, computed + tokens, replica.prefixes);
            batch.push(id, request, tokens);
            self.running.admit(id);
            *budget -= tokens;
        }
    }
}

/// `id`, which runs, loses its cache; what it computed can be found again for a while.
pub(super) fn give_up(id: RequestId, replica: &mut Replica<'_>) {
    let request = &mut replica.requests[id.index()];
    replica.kv.release_found(id, request, true, replica.prefixes);
    request.restart(true);
    replica.restarted.push(id);
}

impl Scheduler for VllmV1 {
    fn enqueue(&mut self, id: RequestId) {
        self.door.enqueue(id);
    }

    fn next_batch(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        let seen = self.door.open();
        self.held_off = false;
        let mut budget = self.max_num_batched_tokens;
        if self.run_running(replica, batch, &mut budget) {
            return;
        }
        self.admit(replica, batch, &mut budget, seen);
        if batch.is_empty() && self.running.is_empty() {
            let seen = self.door.look_again();
            self.admit(replica, batch, &mut budget, seen);
        }
    }

    fn batch_ended(&mut self, batch: &Batch, replica: &mut Replica<'_>) {
        self.running.take_back(batch, replica);
        self.door.step_ended();
    }

    fn repeats(&self) -> bool {
        // Whoever was seen and waits was refused for want of seats, blocks or budget, which more
        // decoding does not free: unless it gives away what was found, and less has to be held.
        !self.held_off && !self.door.has_unseen() && self.running.all_in_batch()
    }

    fn num_waiting(&self) -> usize {
        self.door.len()
    }
}
