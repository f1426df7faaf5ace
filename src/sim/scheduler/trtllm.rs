//! `trtllm`: nobody is ever evicted. Mirrors TensorRT-LLM's PyTorch backend, 1.0 to 1.3
//! (`_torch/pyexecutor/scheduler.py`; capacity policy GUARANTEED_NO_EVICT, the default):
//!
//! 1. A request is admitted, first come first served, when a seat (`max_batch_size`) is free and the
//!    blocks for its whole prompt and its longest output can be set aside beside those of all
//!    others. So no request ever loses its cache.
//! 2. A step holds one token of every request that decodes and then prompts, as far as
//!    `max_num_tokens` goes: whole ones, or with `enable_chunked_prefill` pieces cut to whole blocks
//!    (context chunking FIRST_COME_FIRST_SERVED). Decodes count against the same budget.
//!
//! 3. With `batch_wait_timeout_iters`, new prompts wait beside decodes until they fill the given share of
//!    a step, or so many steps (`_waiting_requests` in `py_executor.py`).
//!
//! Outputs are taken to be as long as the request says, as in a benchmark that ignores end of
//! sequence and states `max_tokens`. Not modelled: the one wasted token that the overlapping
//! executor computes of a request that has just ended.

use super::door::Door;
use super::seats::Seats;
use super::{Replica, Scheduler, TrtllmConfig};
use crate::ids::RequestId;
use crate::sim::batch::Batch;

pub(super) struct Trtllm {
    config: TrtllmConfig,
    running: Seats,
    door: Door,
    /// Blocks set aside for the requests that run.
    reserved: u32,
    /// Steps for which prompts have waited for more of their kind.
    waited: u32,
}

impl Trtllm {
    pub(super) fn new(config: &TrtllmConfig) -> Self {
        Trtllm {
            config: *config,
            running: Seats::default(),
            door: Door::new(config.overlap),
            reserved: 0,
            waited: 0,
        }
    }

    /// Tokens of a prompt of which `left` are to be computed that go into a step with `budget`.
    fn piece(&self, left: u32, budget: u32, block_size: u32) -> u32 {
        if left <= budget {
            left
        } else if self.config.enable_chunked_prefill {
            budget / block_size * block_size
        } else {
            0
        }
    }

    /// The running requests: those that decode, then those in the middle of their prompt. Entries
    /// stand in the order of the seats.
    fn run_running(&mut self, replica: &mut Replica<'_>, batch: &mut Batch, budget: &mut u32) {
        let decodes = |id: RequestId, replica: &Replica<'_>| {
            replica.requests[id.index()].is_prefill_complete()
        };
        let free = self.running.iter().filter(|s| !s.in_batch);
        let num_decodes = free.filter(|s| decodes(s.id, replica)).count() as u32;
        *budget = budget.saturating_sub(num_decodes);
        let mut decodes_left = self.config.max_num_tokens;
        for at in 0..self.running.len() {
            let Some(seat) = self.running.get(at).filter(|s| !s.in_batch) else { continue };
            let request = &mut replica.requests[seat.id.index()];
            let tokens = if request.is_prefill_complete() {
                let tokens = decodes_left.min(1);
                decodes_left -= tokens;
                tokens
            } else {
                let piece = self.piece(request.prefill_left(), *budget, replica.kv.block_size());
                *budget -= piece;
                piece
            };
            if tokens > 0 {
                replica.kv.grow(request);
                batch.push(seat.id, request, tokens);
                self.running.board(at);
            }
        }
    }

    /// Step 3: whether the first `seen` requests that wait are to wait longer.
    fn holds_back(&mut self, replica: &Replica<'_>, batch: &Batch, seen: usize) -> bool {
        let c = self.config;
        if c.batch_wait_timeout_iters == 0 || seen == 0 || batch.shape.num_decodes == 0 {
            return false;
        }
        let enough = u64::from(c.max_num_tokens) * u64::from(c.batch_wait_max_tokens_percent) / 100;
        let mut tokens = batch.shape.num_tokens();
        for id in self.door.iter().take(seen) {
            let prompt = u64::from(replica.requests[id.index()].prefill_target);
            if tokens >= enough || tokens + prompt > u64::from(c.max_num_tokens) {
                break;
            }
            tokens += prompt;
        }
        if self.waited < c.batch_wait_timeout_iters && tokens < enough {
            self.waited += 1;
            return true;
        }
        self.waited = 0;
        false
    }

    fn admit(
        &mut self,
        replica: &mut Replica<'_>,
        batch: &mut Batch,
        budget: &mut u32,
        mut seen: usize,
    ) {
        while let Some(id) = self.door.front() {
            let request = &mut replica.requests[id.index()];
            let found = replica.kv.find(id, request, replica.prefixes);
            let computed = found.blocks * replica.kv.block_size();
            let left = request.prefill_target - computed;
            let tokens = self.piece(left, *budget, replica.kv.block_size());
            let blocks = replica.kv.blocks_for(request.total_tokens());
            if seen == 0
                || tokens == 0
                || self.running.len() >= self.config.max_batch_size as usize
                || self.reserved + blocks > replica.kv.capacity()
            {
                return;
            }
            self.door.pop();
            seen -= 1;
            self.reserved += blocks;
            let prompt = request.prefill_target;
            replica.kv.admit_found(id, request, found, prompt, replica.prefixes);
            replica.kv.publish(id, request, prompt, replica.prefixes);
            batch.push(id, request, tokens);
            self.running.admit(id);
            *budget -= tokens;
        }
    }
}

impl Scheduler for Trtllm {
    fn enqueue(&mut self, id: RequestId) {
        self.door.enqueue(id);
    }

    fn next_batch(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        let seen = self.door.open();
        let mut budget = self.config.max_num_tokens;
        self.run_running(replica, batch, &mut budget);
        if self.holds_back(replica, batch, seen) {
            return;
        }
        self.admit(replica, batch, &mut budget, seen);
        if batch.is_empty() && self.running.is_empty() {
            let seen = self.door.look_again();
            self.admit(replica, batch, &mut budget, seen);
        }
    }

    fn batch_ended(&mut self, batch: &Batch, replica: &mut Replica<'_>) {
        for entry in &batch.entries {
            let request = &replica.requests[entry.request.index()];
            if request.is_complete() {
                self.reserved -= replica.kv.blocks_for(request.total_tokens());
            }
        }
        self.running.take_back(batch, replica);
        self.door.step_ended();
    }

    fn repeats(&self) -> bool {
        let holding_back = self.config.batch_wait_timeout_iters > 0 && self.door.len() > 0;
        !holding_back && !self.door.has_unseen() && self.running.all_in_batch()
    }

    fn num_waiting(&self) -> usize {
        self.door.len()
    }
}
