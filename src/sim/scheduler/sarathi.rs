//! `sarathi`: chunked prefill. Mirrors Sarathi-Serve as Vidur models it: every step decodes all
//! running sequences and fills up to `chunk_size` tokens with pieces of prompts, running ones
//! first, so that a long prompt does not stall the others. KV blocks for the whole prompt are taken
//! at admission.

use super::{Queues, Replica, SarathiConfig, Scheduler};
use crate::ids::RequestId;
use crate::sim::batch::Batch;

pub(super) struct Sarathi {
    config: SarathiConfig,
    micro_batch_cap: usize,
    queues: Queues,
    /// Scratch: running requests whose prompt is not finished, and those that got no tokens.
    prefilling: Vec<RequestId>,
    skipped: Vec<RequestId>,
}

impl Sarathi {
    pub(super) fn new(config: SarathiConfig, micro_batch_cap: usize, keep_target: bool) -> Self {
        Sarathi {
            config,
            micro_batch_cap,
            queues: Queues::new(keep_target),
            prefilling: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// One token for every paused request that decodes; those still prefilling are set aside.
    fn decode(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        let mut taken = 0;
        while taken < self.queues.paused.len() && batch.len() < self.micro_batch_cap {
            let id = self.queues.paused[taken];
            taken += 1;
            if !replica.requests[id.index()].is_prefill_complete() {
                self.prefilling.push(id);
            } else if self.queues.make_room(id, taken, replica) {
                batch.push(id, &replica.requests[id.index()], 1);
            }
        }
        self.queues.paused.drain(..taken);
    }

    /// The next chunk of every running prompt, as far as the budget goes.
    fn continue_prompts(&mut self, replica: &Replica<'_>, batch: &mut Batch, budget: &mut u32) {
        for &id in &self.prefilling {
            let request = &replica.requests[id.index()];
            let chunk = request.prefill_left().min(*budget);
            if chunk == 0 || batch.len() >= self.micro_batch_cap {
                self.skipped.push(id);
            } else {
                *budget -= chunk;
                batch.push(id, request, chunk);
            }
        }
        self.prefilling.clear();
    }

    /// New requests, first come first served, while budget, blocks and seats last.
    fn admit(&mut self, replica: &mut Replica<'_>, batch: &mut Batch, budget: &mut u32) {
        while let Some(&id) = self.queues.waiting.front() {
            let request = &mut replica.requests[id.index()];
            let prompt = request.prefill_target;
            let chunk = prompt.min(*budget);
            if replica.kv.residents() >= self.config.max_num_seqs
                || batch.len() >= self.micro_batch_cap
                || !replica.kv.can_admit(prompt)
                || chunk == 0
            {
                break;
            }
            self.queues.waiting.pop_front();
            replica.kv.admit(request, prompt);
            *budget -= chunk;
            batch.push(id, request, chunk);
        }
    }
}

impl Scheduler for Sarathi {
    fn enqueue(&mut self, id: RequestId) {
        self.queues.waiting.push_back(id);
    }

    fn next_batch(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        self.decode(replica, batch);
        let mut budget = self.config.chunk_size.saturating_sub(batch.shape.num_decodes);
        self.continue_prompts(replica, batch, &mut budget);
        if !self.skipped.is_empty() {
            self.queues.paused.splice(0..0, self.skipped.drain(..));
        }
        self.queues.sort_paused_by_arrival(replica.requests);
        self.admit(replica, batch, &mut budget);
    }

    fn batch_ended(&mut self, batch: &Batch, replica: &mut Replica<'_>) {
        self.queues.take_back(batch, replica);
    }

    fn repeats(&self) -> bool {
        self.queues.repeats()
    }

    fn num_waiting(&self) -> usize {
        self.queues.waiting.len()
    }
}
