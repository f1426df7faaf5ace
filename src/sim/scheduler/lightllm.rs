//! `lightllm`: prompts by token budget. Mirrors LightLLM's router as Vidur models it: prompts run
//! when nothing decodes, or after every `max_waiting_iters` decode steps; a request is admitted if
//! the cache holds even the moment at which the running ones need most, their output lengths being
//! known. The cache is managed token by token.

use super::{LightllmConfig, Queues, Replica, Scheduler};
use crate::ids::RequestId;
use crate::sim::batch::Batch;
use crate::sim::request::Request;

pub(super) struct Lightllm {
    config: LightllmConfig,
    queues: Queues,
    decode_steps: u32,
    /// Tokens that each admitted request still needs, and those that it holds.
    demand: Vec<(u32, u32)>,
}

impl Lightllm {
    pub(super) fn new(config: LightllmConfig) -> Self {
        Lightllm { config, queues: Queues::new(true), decode_steps: 0, demand: Vec::new() }
    }

    /// Whether `request` fits beside those in `demand` at the fullest moment to come, which is when
    /// one of them ends: with the longest to go first, when the i-th ends the first i have all
    /// grown by what it had left. Adds it if so.
    fn fits(&mut self, request: &Request, capacity: u32) -> bool {
        let held = request.prefill_target;
        let left = request.total_tokens() - held;
        let at = self.demand.partition_point(|d| d.0 >= left);
        self.demand.insert(at, (left, held));
        let mut sum = 0;
        let peak = self.demand.iter().zip(1_u64..).map(|(&(left, held), count)| {
            sum += u64::from(held);
            u64::from(left) * count + sum
        });
        let fits = peak.max().unwrap_or(0) < u64::from(capacity);
        if !fits {
            self.demand.remove(at);
        }
        fits
    }

    fn admit_prompts(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        self.demand.clear();
        for id in &self.queues.paused {
            let request = &replica.requests[id.index()];
            self.demand.push((request.total_tokens() - request.processed, request.processed));
        }
        self.demand.sort_by_key(|d| std::cmp::Reverse(d.0));
        let mut tokens = 0;
        while let Some(&id) = self.queues.waiting.front() {
            let prompt = replica.requests[id.index()].prefill_target;
            tokens += prompt;
            if tokens > self.config.max_num_batched_tokens
                || replica.kv.residents() >= self.config.max_num_seqs
                || !self.fits(&replica.requests[id.index()], replica.kv.capacity())
                || !replica.kv.has_room(prompt)
            {
                break;
            }
            self.queues.waiting.pop_front();
            let request = &mut replica.requests[id.index()];
            replica.kv.admit(request, prompt);
            batch.push(id, request, prompt);
        }
    }

    fn decode(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        let mut taken = 0;
        while taken < self.queues.paused.len() {
            let id = self.queues.paused[taken];
            taken += 1;
            // The estimate keeps room for every token; should it be wrong, the youngest waits.
            if self.queues.make_room(id, taken, replica) {
                batch.push(id, &replica.requests[id.index()], 1);
            }
        }
        self.queues.paused.drain(..taken);
    }
}

impl Scheduler for Lightllm {
    fn enqueue(&mut self, id: RequestId) {
        self.queues.waiting.push_back(id);
    }

    fn next_batch(&mut self, replica: &mut Replica<'_>, batch: &mut Batch) {
        if self.queues.paused.is_empty() || self.decode_steps >= self.config.max_waiting_iters {
            self.decode_steps = 0;
            self.admit_prompts(replica, batch);
        }
        if batch.is_empty() && !self.queues.paused.is_empty() {
            self.decode_steps += 1;
            self.decode(replica, batch);
        }
    }

    fn batch_ended(&mut self, batch: &Batch, replica: &mut Replica<'_>) {
        self.queues.take_back(batch, replica);
    }

    fn repeats(&self) -> bool {
        // It counts its decode steps.
        false
    }

    fn num_waiting(&self) -> usize {
        self.queues.waiting.len()
    }
}
