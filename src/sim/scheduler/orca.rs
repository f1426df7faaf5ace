//! `orca`: iteration-level scheduling. Mirrors Orca (OSDI 2022) as Vidur models it: a request keeps
//! its seat from admission to its last token, and cache for the longest request is reserved at
//! admission; whole prompts run beside decodes.

use super::{OrcaConfig, Queues, Replica, Scheduler};
use crate::ids::RequestId;
use crate::sim::batch::Batch;

pub(super) struct Orca {
    config: OrcaConfig,
    micro_batch_cap: usize,
    queues: Queues,
}

impl Orca {
    pub(super) fn new(config: OrcaConfig, micro_batch_cap: usize) -> Self {
        Orca { config, micro_batch_cap, queues: Queues::new(true) }
    }
}

impl Scheduler for Orca {
    fn enqueue(&mut self, id: RequestId) {
        self.queues.waiting.push_back(id);
    }

    fn next_batch(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        let taken = self.queues.paused.len().min(self.micro_batch_cap);
        for id in self.queues.paused.drain(..taken) {
            batch.push(id, &replica.requests[id.index()], 1);
        }
        while let Some(&id) = self.queues.waiting.front() {
            if batch.len() >= self.micro_batch_cap
                || replica.kv.residents() >= self.config.max_num_seqs
                || !replica.kv.has_room(self.config.max_request_tokens)
            {
                break;
            }
            self.queues.waiting.pop_front();
            let request = &mut replica.requests[id.index()];
            replica.kv.admit(request, self.config.max_request_tokens);
            batch.push(id, request, request.prefill_target);
        }
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
