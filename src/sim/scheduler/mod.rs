//! Replica schedulers: which requests run in the next step. One file per policy, each states the
//! engine that it mirrors.

mod door;
mod engines;
mod faster_transformer;
mod lightllm;
mod orca;
mod promises;
mod sarathi;
mod seats;
mod sglang;
mod trtllm;
mod vllm;
mod vllm_neuron;
mod vllm_v1;

pub use engines::{SglangConfig, TrtllmConfig, Usage, VllmNeuronConfig, VllmV1Config};

use super::batch::Batch;
use super::host::{Host, HostTime};
use super::kv_blocks::KvBlocks;
use super::request::Request;
use crate::ids::RequestId;
use crate::spec::device::DeviceSku;
use crate::spec::memory::MemoryRule;
use crate::workload::Prefixes;
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
    /// Seats from admission to the last token, cache reserved for the longest request (Orca).
    Orca(OrcaConfig),
    /// Static batches that run until all their requests have ended (FasterTransformer).
    FasterTransformer(OrcaConfig),
    /// Prompts in turns with decode, admitted by the fullest moment to come (LightLLM).
    Lightllm(LightllmConfig),
    /// One token budget for prompts and decodes (vLLM's V1 engine, 0.11 to 0.24).
    VllmV1(VllmV1Config),
    /// Prompts first, in pieces (SGLang 0.5).
    Sglang(SglangConfig),
    /// Nobody is ever evicted (TensorRT-LLM 1.0 to 1.3, PyTorch backend).
    Trtllm(TrtllmConfig),
    /// One whole prompt a step, else decodes (vllm-neuron 0.2).
    VllmNeuron(VllmNeuronConfig),
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

/// Settings of `orca` and `faster_transformer`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OrcaConfig {
    /// Requests that may hold KV blocks at the same time.
    pub max_num_seqs: u32,
    /// Cache for so many tokens is reserved for every request: none may be longer.
    pub max_request_tokens: u32,
}

impl Default for OrcaConfig {
    fn default() -> Self {
        OrcaConfig { max_num_seqs: 128, max_request_tokens: 4096 }
    }
}

/// Settings of `lightllm`, which needs `kv_cache.block_size: 1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LightllmConfig {
    /// Requests that may hold cache at the same time.
    pub max_num_seqs: u32,
    /// Prompt tokens of one step.
    pub max_num_batched_tokens: u32,
    /// Decode steps after which waiting prompts get a turn.
    pub max_waiting_iters: u32,
}

impl Default for LightllmConfig {
    fn default() -> Self {
        LightllmConfig { max_num_seqs: 128, max_num_batched_tokens: 4096, max_waiting_iters: 10 }
    }
}

/// Defects of Vidur that runs equal to its need; all off by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defects {
    /// A restart forgets prompt tokens that were not computed yet.
    pub forgetful_restart: bool,
    /// Static batches never free what requests hold that ended before the last one.
    pub leaky_static_batches: bool,
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
            SchedulerConfig::Orca(_) => "orca",
            SchedulerConfig::FasterTransformer(_) => "faster_transformer",
            SchedulerConfig::Lightllm(_) => "lightllm",
            SchedulerConfig::VllmV1(_) => "vllm_v1",
            SchedulerConfig::Sglang(_) => "sglang",
            SchedulerConfig::Trtllm(_) => "trtllm",
            SchedulerConfig::VllmNeuron(_) => "vllm_neuron",
        }
    }

    /// Requests that may hold KV blocks at the same time.
    pub fn max_num_seqs(&self) -> u32 {
        match self {
            SchedulerConfig::Sarathi(c) => c.max_num_seqs,
            SchedulerConfig::Vllm(c) => c.max_num_seqs,
            SchedulerConfig::Orca(c) | SchedulerConfig::FasterTransformer(c) => c.max_num_seqs,
            SchedulerConfig::Lightllm(c) => c.max_num_seqs,
            SchedulerConfig::VllmV1(c) => c.max_num_seqs(),
            SchedulerConfig::Sglang(c) => c.max_running_requests,
            SchedulerConfig::Trtllm(c) => c.max_batch_size,
            SchedulerConfig::VllmNeuron(c) => c.max_num_seqs,
        }
    }

    /// What is not given, by the engine's own rules for `device`.
    pub fn on(self, device: &DeviceSku) -> Self {
        match self {
            SchedulerConfig::VllmV1(c) => SchedulerConfig::VllmV1(c.on(device)),
            SchedulerConfig::Sglang(c) => SchedulerConfig::Sglang(c.on(device)),
            other => other,
        }
    }

    /// What the engine keeps beside weights and cache.
    pub fn memory_rule(&self) -> MemoryRule {
        match self {
            SchedulerConfig::VllmV1(_) => MemoryRule::VllmV1,
            SchedulerConfig::Sglang(_) => MemoryRule::Sglang,
            SchedulerConfig::Trtllm(_) => MemoryRule::Trtllm,
            _ => MemoryRule::Plain,
        }
    }

    /// The engine's time on the host.
    pub(super) fn host(&self) -> Host {
        let (time, ahead) = match self {
            SchedulerConfig::VllmV1(c) => (c.host, c.async_scheduling),
            SchedulerConfig::Sglang(c) => (c.host, c.overlap_schedule),
            SchedulerConfig::Trtllm(c) => (c.host, c.overlap),
            SchedulerConfig::VllmNeuron(c) => (c.host, false),
            _ => (HostTime::default(), false),
        };
        Host { time, ahead }
    }

    /// Rows that fill `batch` up to a captured graph.
    pub(super) fn padding(&self, batch: &Batch) -> u32 {
        let tokens = batch.shape.num_tokens();
        let decodes = batch.shape.prefills.is_empty();
        let size = match self {
            SchedulerConfig::VllmV1(c) if decodes || !c.cudagraphs_for_decodes_only => {
                engines::captured_size(tokens, c.max_cudagraph_capture_size())
            }
            SchedulerConfig::Sglang(c) if decodes => {
                engines::captured_size(tokens, c.cuda_graph_max_bs)
            }
            SchedulerConfig::Trtllm(c) if decodes && c.cuda_graph_padding => {
                engines::trtllm_size(tokens, c.cuda_graph_max_batch_size)
            }
            _ => tokens,
        };
        (size - tokens) as u32
    }

    /// The KV cache of a replica, empty, as the engine keeps it.
    pub(super) fn cache(&self, blocks: u32, block_size: u32, watermark: u32) -> KvBlocks {
        let (blocks, remembers) = match self {
            // One block is the null block.
            SchedulerConfig::VllmV1(c) => (blocks.saturating_sub(1), c.enable_prefix_caching),
            SchedulerConfig::Sglang(c) => (blocks, c.radix_cache),
            SchedulerConfig::Trtllm(c) => (blocks, c.enable_block_reuse),
            _ => (blocks, false),
        };
        let cache = KvBlocks::new(blocks, block_size, watermark);
        if remembers { cache.with_contents() } else { cache }
    }

    /// The setting that bounds the tokens of a step or of a request, and its value.
    fn token_setting(&self) -> (&'static str, u32) {
        match self {
            SchedulerConfig::Sarathi(c) => ("chunk_size", c.chunk_size),
            SchedulerConfig::Vllm(c) => ("max_num_batched_tokens", c.max_num_batched_tokens),
            SchedulerConfig::Orca(c) | SchedulerConfig::FasterTransformer(c) => {
                ("max_request_tokens", c.max_request_tokens)
            }
            SchedulerConfig::Lightllm(c) => ("max_num_batched_tokens", c.max_num_batched_tokens),
            SchedulerConfig::VllmV1(c) => ("max_num_batched_tokens", c.max_num_batched_tokens()),
            SchedulerConfig::Sglang(c) => ("chunked_prefill_size", c.chunked_prefill_size()),
            SchedulerConfig::Trtllm(c) => ("max_num_tokens", c.max_num_tokens),
            SchedulerConfig::VllmNeuron(c) => ("max_model_len", c.max_model_len),
        }
    }

    /// The longest request, prompt and output together, that can be served, and the setting that
    /// says so; `None` where only the cache bounds it. A request that restarts prefills everything
    /// that existed, which is why a prompt budget bounds the whole.
    pub fn longest_request(&self) -> Option<(String, u32)> {
        let (setting, tokens) = self.token_setting();
        match self {
            SchedulerConfig::Sarathi(_)
            | SchedulerConfig::VllmV1(_)
            | SchedulerConfig::Sglang(_)
            | SchedulerConfig::Trtllm(_) => None,
            _ => Some((format!("scheduler.{}.{setting}", self.name()), tokens)),
        }
    }

    /// The longest prompt that can be served, and the setting that says so, where prompts are not
    /// cut.
    pub fn longest_prompt(&self) -> Option<(String, u32)> {
        match self {
            SchedulerConfig::Trtllm(c) if !c.enable_chunked_prefill => {
                Some(("scheduler.trtllm.max_num_tokens".into(), c.max_num_tokens))
            }
            _ => None,
        }
    }

    /// The bounds that every batch keeps with `num_stages` pipeline stages.
    pub fn limits(&self, num_stages: u32) -> BatchLimits {
        let max_seqs = match self {
            // Their limits are those of all stages together.
            SchedulerConfig::VllmV1(_)
            | SchedulerConfig::Sglang(_)
            | SchedulerConfig::Trtllm(_) => self.max_num_seqs(),
            _ => micro_batch_cap(self.max_num_seqs(), num_stages),
        };
        let (_, tokens) = self.token_setting();
        let max_tokens = match self {
            // Every request may bring a whole prompt.
            SchedulerConfig::Orca(_) | SchedulerConfig::FasterTransformer(_) => {
                max_seqs.saturating_mul(tokens)
            }
            // Decodes are not limited by the token budget.
            SchedulerConfig::Sglang(c) if c.enable_mixed_chunk => tokens.saturating_add(max_seqs),
            _ => tokens.max(max_seqs),
        };
        BatchLimits { max_seqs, max_tokens }
    }

    /// Checks the settings for a replica of `num_stages` pipeline stages.
    ///
    /// # Errors
    /// The path of the field, and what was expected.
    pub fn check(&self, num_stages: u32, block_size: u32) -> Result<(), String> {
        let name = self.name();
        // Before the seats, whose default follows from it.
        let (setting, tokens) = self.token_setting();
        if tokens == 0 {
            return Err(format!("scheduler.{name}.{setting}: 0; expected at least 1 token"));
        }
        if self.max_num_seqs() < num_stages.max(1) {
            return Err(format!(
                "{}: {}; expected at least the number of pipeline stages, {num_stages}",
                self.seats_setting(),
                self.max_num_seqs()
            ));
        }
        if let SchedulerConfig::Trtllm(c) = self
            && c.enable_chunked_prefill
            && tokens < block_size
        {
            return Err(format!(
                "scheduler.trtllm.max_num_tokens: {tokens}; expected at least one block, \
                 {block_size} tokens: pieces of prompts are cut to whole blocks"
            ));
        }
        if matches!(self, SchedulerConfig::Lightllm(_)) && (block_size != 1 || num_stages != 1) {
            return Err(format!(
                "scheduler.lightllm manages its cache token by token on one stage; expected \
                 kv_cache.block_size 1 and cluster.pipeline_parallel 1, not {block_size} and \
                 {num_stages}"
            ));
        }
        Ok(())
    }

    /// Builds the scheduler of one replica.
    pub(super) fn build(&self, num_stages: u32, defects: Defects) -> Box<dyn Scheduler> {
        let cap = micro_batch_cap(self.max_num_seqs(), num_stages) as usize;
        let keep_target = !defects.forgetful_restart;
        match self.clone() {
            SchedulerConfig::Sarathi(c) => Box::new(sarathi::Sarathi::new(c, cap, keep_target)),
            SchedulerConfig::Vllm(c) => Box::new(vllm::Vllm::new(c, cap, keep_target)),
            SchedulerConfig::Orca(c) => Box::new(orca::Orca::new(c, cap)),
            SchedulerConfig::FasterTransformer(c) => Box::new(
                faster_transformer::FasterTransformer::new(c, cap, defects.leaky_static_batches),
            ),
            SchedulerConfig::Lightllm(c) => Box::new(lightllm::Lightllm::new(c)),
            SchedulerConfig::VllmV1(c) => Box::new(vllm_v1::VllmV1::new(&c)),
            SchedulerConfig::Sglang(c) => Box::new(sglang::Sglang::new(&c)),
            SchedulerConfig::Trtllm(c) => Box::new(trtllm::Trtllm::new(&c)),
            SchedulerConfig::VllmNeuron(c) => Box::new(vllm_neuron::VllmNeuron::new(c, cap)),
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
    /// Which prompts begin alike.
    pub prefixes: &'a Prefixes,
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

    /// Takes back the requests of a batch that ran: releases what is complete and keeps the rest.
    fn batch_ended(&mut self, batch: &Batch, replica: &mut Replica<'_>);

    /// Requests that wait for admission.
    fn num_waiting(&self) -> usize;

    /// Whether the batch that has just been formed, if all of it decodes, would be formed again and
    /// again as long as nothing arrives, nothing completes and a block is free for every request.
    fn repeats(&self) -> bool;

    /// The batch that decodes has repeated `steps` times without being asked for again.
    fn repeated(&mut self, _steps: u64) {}
}

/// The queues that most schedulers have in common.
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

    /// Everyone who holds blocks is in the batch. Whoever waits was refused when it was formed, for
    /// want of seats, blocks or budget, which more decoding does not free.
    fn repeats(&self) -> bool {
        self.paused.is_empty()
    }

    /// Makes room for one more token of `id`, which decodes, at the expense of the youngest paused
    /// request at or behind `from`, if need be of `id` itself. Says whether `id` may run.
    #[inline]
    fn make_room(&mut self, id: RequestId, from: usize, replica: &mut Replica<'_>) -> bool {
        // As in Vidur, a free block is asked for even when none has to be added.
        if replica.kv.free() == 0 && !self.evict_for(id, from, replica) {
            return false;
        }
        replica.kv.grow(&mut replica.requests[id.index()]);
        true
    }

    /// The rare part of [`Queues::make_room`].
    #[cold]
    fn evict_for(&mut self, id: RequestId, from: usize, replica: &mut Replica<'_>) -> bool {
        while replica.kv.free() == 0 {
            if self.paused.len() > from {
                let victim = self.paused.pop().unwrap_or(id);
                self.restart(victim, replica);
            } else {
                self.restart(id, replica);
                return false;
            }
        }
        true
    }

    /// Releases the requests of a batch that are complete, and keeps the others paused.
    fn take_back(&mut self, batch: &Batch, replica: &mut Replica<'_>) {
        for entry in &batch.entries {
            let request = &mut replica.requests[entry.request.index()];
            if request.is_complete() {
                replica.kv.release(request);
            } else {
                self.paused.push(entry.request);
            }
        }
    }
}
