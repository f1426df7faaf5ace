//! `faster_transformer`: static batches. Mirrors NVIDIA FasterTransformer as Vidur models it: a batch
//! is formed from what waits and runs until all of its requests have ended; cache for the longest
//! request is reserved for each of them and freed when the batch is through.

use super::{OrcaConfig, Replica, Scheduler};
use crate::ids::RequestId;
use crate::sim::batch::Batch;
use std::collections::VecDeque;

pub(super) struct FasterTransformer {
    config: OrcaConfig,
    micro_batch_cap: usize,
    waiting: VecDeque<RequestId>,
    /// Static batches that wait for their next step, and those in the pipeline, first in first out.
    paused: VecDeque<Vec<RequestId>>,
    running: VecDeque<Vec<RequestId>>,
    /// Vidur never frees what requests hold that ended before the last of their batch.
    leaky: bool,
}

impl FasterTransformer {
    pub(super) fn new(config: OrcaConfig, micro_batch_cap: usize, leaky: bool) -> Self {
        FasterTransformer {
            config,
            micro_batch_cap,
            waiting: VecDeque::new(),
            paused: VecDeque::new(),
            running: VecDeque::new(),
            leaky,
        }
    }

    /// A new static batch of what waits and fits.
    fn admit(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        let mut members = Vec::new();
        while let Some(&id) = self.waiting.front() {
            if batch.len() >= self.micro_batch_cap
                || (!self.leaky && replica.kv.residents() >= self.config.max_num_seqs)
                || !replica.kv.has_room(self.config.max_request_tokens)
            {
                break;
            }
            self.waiting.pop_front();
            let request = &mut replica.requests[id.index()];
            replica.kv.admit(request, self.config.max_request_tokens);
            batch.push(id, request, request.prefill_target);
            members.push(id);
        }
        if !members.is_empty() {
            self.running.push_back(members);
        }
    }
}

impl Scheduler for FasterTransformer {
    fn enqueue(&mut self, id: RequestId) {
        self.waiting.push_back(id);
    }

    fn next_batch(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        let Some(members) = self.paused.pop_front() else { return self.admit(replica, batch) };
        for &id in &members {
            let request = &replica.requests[id.index()];
            if !request.is_complete() {
                batch.push(id, request, 1);
            }
        }
        self.running.push_back(members);
    }

    fn batch_ended(&mut self, batch: &Batch, replica: &mut Replica<'_>) {
        // Batches pass the pipeline in order: the first that started is the one that ended.
        let Some(members) = self.running.pop_front() else { return };
        let done = |id: &RequestId| replica.requests[id.index()].is_complete();
        if !members.iter().all(done) {
            return self.paused.push_back(members);
        }
        let last_step: Vec<RequestId> = batch.entries.iter().map(|e| e.request).collect();
        for id in if self.leaky { last_step } else { members } {
            replica.kv.release(&mut replica.requests[id.index()]);
        }
    }

    fn repeats(&self) -> bool {
        self.paused.is_empty()
    }

    fn num_waiting(&self) -> usize {
        self.waiting.len()
    }
}
