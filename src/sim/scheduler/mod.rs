//! Replica schedulers: which requests run in the next step. One file per policy, each states the
//! engine that it mirrors.

mod sarathi;
mod vllm;

use super::batch::Batch;
use super::kv_blocks::KvBlocks;
use super::request::Request;
use crate::ids::RequestId;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// A replica scheduler and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SchedulerConfig {
    /// Chunked prefill beside decode (Sarathi-Serve, as Vidur models it).
    Sarathi(SarathiConfig),
    /// Whole prompts first, then decode (vLLM before version 0.6, as Vidur models it).
    Vllm(VllmConfig),
}

/// Settings of `sarathi`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SarathiConfig {
    /// Tokens that prompt chunks may fill a step up to; decoding sequences always run.
    pub chunk_size: u32,
    /// Requests that may hold KV blocks at the same time.
    pub max_num_seqs: u32,
}

impl Default for SarathiConfig {
    fn default() -> Self {
        SarathiConfig { chunk_size: 512, max_num_seqs: 128 }
    }
}

/// Settings of `vllm`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VllmConfig {
    /// Requests that may hold KV blocks at the same time.
    pub max_num_seqs: u32,
    /// Prompt tokens of one step, each prompt counted as long as the longest.
    pub max_num_batched_tokens: u32,
}

impl Default for VllmConfig {
    fn default() -> Self {
        VllmConfig { max_num_seqs: 128, max_num_batched_tokens: 4096 }
    }
}

/// Bounds that a scheduler promises to keep, for the predictor's tables and for the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Requests in a batch.
    pub max_seqs: u32,
    /// Tokens in a batch.
    pub max_tokens: u32,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        SchedulerConfig::Sarathi(SarathiConfig::default())
    }
}

impl SchedulerConfig {
    /// The scheduler's name in a config file.
    pub fn name(&self) -> &'static str {
        match self {
            SchedulerConfig::Sarathi(_) => "sarathi",
            SchedulerConfig::Vllm(_) => "vllm",
        }
    }

    /// Requests that may hold KV blocks at the same time.
    pub fn max_num_seqs(&self) -> u32 {
        match self {
            SchedulerConfig::Sarathi(c) => c.max_num_seqs,
            SchedulerConfig::Vllm(c) => c.max_num_seqs,
        }
    }

    /// The bounds that every batch keeps with `num_stages` pipeline stages.
    pub fn limits(&self, num_stages: u32) -> BatchLimits {
        let max_seqs = micro_batch_cap(self.max_num_seqs(), num_stages);
        match self {
            // Decodes are not limited by the chunk budget.
            SchedulerConfig::Sarathi(c) => {
                BatchLimits { max_seqs, max_tokens: c.chunk_size.max(max_seqs) }
            }
            SchedulerConfig::Vllm(c) => {
                BatchLimits { max_seqs, max_tokens: c.max_num_batched_tokens.max(max_seqs) }
            }
        }
    }

    /// Checks the settings for a replica of `num_stages` pipeline stages.
    ///
    /// # Errors
    /// The path of the field below `scheduler`, and what was expected.
    pub fn check(&self, num_stages: u32) -> Result<(), (String, String)> {
        let name = self.name();
        if self.max_num_seqs() < num_stages {
            return Err((
                format!("{name}.max_num_seqs"),
                format!(
                    "{}; expected at least the number of pipeline stages, {num_stages}",
                    self.max_num_seqs()
                ),
            ));
        }
        let (field, tokens) = match self {
            SchedulerConfig::Sarathi(c) => ("chunk_size", c.chunk_size),
            SchedulerConfig::Vllm(c) => ("max_num_batched_tokens", c.max_num_batched_tokens),
        };
        if tokens == 0 {
            return Err((format!("{name}.{field}"), "0; expected at least 1 token".into()));
        }
        Ok(())
    }

    /// Builds the scheduler of one replica.
    pub(super) fn build(&self, num_stages: u32, keep_target: bool) -> Box<dyn Scheduler> {
        let cap = micro_batch_cap(self.max_num_seqs(), num_stages) as usize;
        match self {
            SchedulerConfig::Sarathi(c) => {
                Box::new(sarathi::Sarathi::new(c.clone(), cap, keep_target))
            }
            SchedulerConfig::Vllm(c) => Box::new(vllm::Vllm::new(c.clone(), cap, keep_target)),
        }
    }
}

/// Requests in one of the `num_stages` batches that a pipeline keeps in flight.
fn micro_batch_cap(max_num_seqs: u32, num_stages: u32) -> u32 {
    max_num_seqs / num_stages.max(1)
}

/// What a scheduler may look at and change.
pub(super) struct Replica<'a> {
    /// Every request of the run, by id.
    pub requests: &'a mut [Request],
    /// The replica's KV cache.
    pub kv: &'a mut KvBlocks,
    /// Requests that lost their cache in this call, in order; the engine reports them.
    pub restarted: &'a mut Vec<RequestId>,
}

/// Decides which requests run in the next step of one replica.
///
/// A request is in exactly one of three places: waiting here, paused here (it has blocks and is in
/// no batch), or in a batch that runs. Postconditions of `next_batch`: every entry has blocks for
/// its tokens; the batch keeps the limits that the config promises.
pub(super) trait Scheduler {
    /// A request arrived at this replica.
    fn enqueue(&mut self, id: RequestId);

    /// Forms the next batch into `batch` (empty on entry); leaves it empty if nothing can run.
    fn next_batch(&mut self, replica: &mut Replica<'_>, batch: &mut Batch);

    /// Takes back the requests of a batch that ran. Completed ones have already been released.
    fn batch_ended(&mut self, batch: &Batch, requests: &[Request]);

    /// Requests that wait for admission.
    fn num_waiting(&self) -> usize;
}

/// The queues that vllm and sarathi have in common.
struct Queues {
    waiting: VecDeque<RequestId>,
    paused: Vec<RequestId>,
    keep_target: bool,
}

impl Queues {
    fn new(keep_target: bool) -> Self {
        Queues { waiting: VecDeque::new(), paused: Vec::new(), keep_target }
    }

    /// Oldest first; requests that arrived together keep their order.
    fn sort_paused_by_arrival(&mut self, requests: &[Request]) {
        let arrival = |id: &RequestId| requests[id.index()].arrived_at;
        if !self.paused.is_sorted_by_key(arrival) {
            self.paused.sort_by_key(arrival);
        }
    }

    /// `id` loses its cache and goes to the head of the queue.
    fn restart(&mut self, id: RequestId, replica: &mut Replica<'_>) {
        let request = &mut replica.requests[id.index()];
        replica.kv.release(request);
        request.restart(self.keep_target);
        self.waiting.push_front(id);
        replica.restarted.push(id);
    }

    /// Makes room for one more token of `id`, which decodes, at the expense of the youngest paused
    /// request at or behind `from`, if need be of `id` itself. Says whether `id` may run.
    fn make_room(&mut self, id: RequestId, from: usize, replica: &mut Replica<'_>) -> bool {
        // As in Vidur, a free block is asked for even when none has to be added.
        while replica.kv.free() == 0 {
            if self.paused.len() > from {
                let victim = self.paused.pop().unwrap_or(id);
                self.restart(victim, replica);
            } else {
                self.restart(id, replica);
                return false;
            }
        }
        replica.kv.grow(&mut replica.requests[id.index()]);
        true
    }

    /// Puts the unfinished requests of a batch back.
    fn pause_unfinished(&mut self, batch: &Batch, requests: &[Request]) {
        let ids = batch.entries.iter().map(|e| e.request);
        self.paused.extend(ids.filter(|id| !requests[id.index()].is_complete()));
    }
}
