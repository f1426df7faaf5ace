//! `vllm`: prompts first. Mirrors vLLM before chunked prefill (version 0.2 to 0.5) as Vidur models
//! it: a step holds whole prompts or decodes, never both; KV blocks are taken for the prompt at
//! admission and one by one while decoding; when none is left the youngest request starts again.

use super::{Queues, Replica, Scheduler, VllmConfig};
use crate::ids::RequestId;
use crate::sim::batch::Batch;

pub(super) struct Vllm {
    config: VllmConfig,
    micro_batch_cap: usize,
    queues: Queues,
}

impl Vllm {
    pub(super) fn new(config: VllmConfig, micro_batch_cap: usize, keep_target: bool) -> Self {
        Vllm { config, micro_batch_cap, queues: Queues::new(keep_target) }
    }

    /// Admits whole prompts from the head of the queue. The batch is padded to its longest prompt.
    fn admit_prompts(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        let mut longest = 0;
        while let Some(&id) = self.queues.waiting.front() {
            let request = &mut replica.requests[id.index()];
            let prompt = request.prefill_target;
            longest = longest.max(prompt);
            let padded = (batch.len() as u64 + 1) * u64::from(longest);
            if !replica.kv.can_admit(prompt)
                || padded > u64::from(self.config.max_num_batched_tokens)
                || replica.kv.residents() >= self.config.max_num_seqs
                || batch.len() >= self.micro_batch_cap
            {
                break;
            }
            self.queues.waiting.pop_front();
            replica.kv.admit(request, prompt);
            batch.push(id, request, prompt);
        }
    }

    /// One token for every paused request, oldest first.
    fn decode(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        self.queues.sort_paused_by_arrival(replica.requests);
        let mut taken = 0;
        while taken < self.queues.paused.len() && batch.len() < self.micro_batch_cap {
            let id = self.queues.paused[taken];
            taken += 1;
            if self.queues.make_room(id, taken, replica) {
                batch.push(id, &replica.requests[id.index()], 1);
            }
        }
        self.queues.paused.drain(..taken);
    }
}

impl Scheduler for Vllm {
    fn enqueue(&mut self, id: RequestId) {
        self.queues.waiting.push_back(id);
    }

    fn next_batch(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        self.admit_prompts(replica, batch);
        if batch.is_empty() {
            self.decode(replica, batch);
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
