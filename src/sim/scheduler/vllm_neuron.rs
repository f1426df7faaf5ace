//! `vllm_neuron`: one prompt a step, whole, and nothing beside it. Mirrors vllm-neuron 0.2
//! (`ContinuousBatchingNeuronScheduler` over neuronx-distributed-inference): a waiting request starts
//! as soon as there is a seat, in a step of its own that hides the running ones; without one, all
//! running requests decode. Each seat has cache for the longest request (there a block is
//! `max_model_len` tokens long), so that nobody ever loses it. Prompts are never cut, and prefixes
//! not reused: its defaults.
//!
//! Left out: vLLM-Neuron's newer scheduler of its own, which cuts prompts into segments; asynchronous
//! scheduling, which 0.2 does not support.

use super::{Queues, Replica, Scheduler, VllmNeuronConfig};
use crate::ids::RequestId;
use crate::sim::batch::Batch;

pub(super) struct VllmNeuron {
    config: VllmNeuronConfig,
    micro_batch_cap: usize,
    queues: Queues,
}

impl VllmNeuron {
    pub(super) fn new(config: VllmNeuronConfig, micro_batch_cap: usize) -> Self {
        VllmNeuron { config, micro_batch_cap, queues: Queues::new(true) }
    }

    /// The first waiting request, if there is a seat for it.
    fn prompt(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        let Some(&id) = self.queues.waiting.front() else { return };
        let room = self.config.max_model_len;
        if replica.kv.residents() >= self.config.max_num_seqs || !replica.kv.has_room(room) {
            return;
        }
        self.queues.waiting.pop_front();
        let request = &mut replica.requests[id.index()];
        replica.kv.admit(request, room);
        batch.push(id, request, request.prefill_target);
    }
}

impl Scheduler for VllmNeuron {
    fn enqueue(&mut self, id: RequestId) {
        self.queues.waiting.push_back(id);
    }

    fn next_batch(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        self.prompt(replica, batch);
        if batch.is_empty() {
            self.queues.sort_paused_by_arrival(replica.requests);
            let taken = self.queues.paused.len().min(self.micro_batch_cap);
            for id in self.queues.paused.drain(..taken) {
                batch.push(id, &replica.requests[id.index()], 1);
            }
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
