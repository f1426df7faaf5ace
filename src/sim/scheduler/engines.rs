//! Settings of the schedulers that mirror today's engines, with the engines' own defaults.

use crate::sim::host::HostTime;
use crate::spec::device::DeviceSku;
use serde::{Deserialize, Serialize};

/// How an engine is used; vLLM's defaults depend on it (`UsageContext`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Usage {
    /// An OpenAI-compatible server.
    #[default]
    Server,
    /// The `LLM` class in a program.
    Offline,
}

/// Settings of `vllm_v1`. Names follow vLLM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VllmV1Config {
    /// Requests that run at the same time; by device and usage where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_num_seqs: Option<u32>,
    /// Tokens of one step, prompts and decodes together; by device and usage where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_num_batched_tokens: Option<u32>,
    /// What the defaults of the two above are for.
    pub usage: Usage,
    /// Most tokens of one prompt in a step; 0 for no such limit.
    pub long_prefill_token_threshold: u32,
    /// Admit a request only when blocks for all of its prompt are free, not only for its first
    /// piece: `scheduler_reserve_full_isl`, on since 0.19.
    pub reserve_full_prompt: bool,
    /// Prepare a step while the one before runs: on by default since 0.14.
    pub async_scheduling: bool,
    /// Find blocks of prompts again that were computed before. Needs a workload that says which
    /// prompts begin alike; a preempted request finds its own.
    pub enable_prefix_caching: bool,
    /// Batches of up to so many tokens are padded to the next size of a captured CUDA graph; 0 for
    /// none (`enforce_eager`); by `max_num_seqs` where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cudagraph_capture_size: Option<u32>,
    /// Only batches without prompts are padded: `cudagraph_mode: FULL_DECODE_ONLY`.
    pub cudagraphs_for_decodes_only: bool,
    /// The engine's time on the host.
    pub host: HostTime,
}

impl Default for VllmV1Config {
    fn default() -> Self {
        VllmV1Config {
            max_num_seqs: None,
            max_num_batched_tokens: None,
            usage: Usage::Server,
            long_prefill_token_threshold: 0,
            reserve_full_prompt: true,
            async_scheduling: true,
            enable_prefix_caching: true,
            max_cudagraph_capture_size: None,
            cudagraphs_for_decodes_only: false,
            host: HostTime::default(),
        }
    }
}

/// `EngineArgs.get_batch_defaults` of vLLM 0.11 to 0.24: (max_num_batched_tokens, max_num_seqs).
/// Devices with 70 GiB and more that are no A100 get larger ones.
fn vllm_defaults(large: bool, usage: Usage) -> (u32, u32) {
    match (large, usage) {
        (true, Usage::Server) => (8192, 1024),
        (true, Usage::Offline) => (16384, 1024),
        (false, Usage::Server) => (2048, 256),
        (false, Usage::Offline) => (8192, 256),
    }
}

impl VllmV1Config {
    /// Requests that run at the same time; vLLM's default for a small device where not given.
    pub fn max_num_seqs(&self) -> u32 {
        self.max_num_seqs.unwrap_or(vllm_defaults(false, self.usage).1)
    }

    /// Tokens of one step; vLLM's default for a small device where not given.
    pub fn max_num_batched_tokens(&self) -> u32 {
        self.max_num_batched_tokens.unwrap_or(vllm_defaults(false, self.usage).0)
    }

    /// The largest captured CUDA graph. vLLM: twice `max_num_seqs`, at most 512.
    pub fn max_cudagraph_capture_size(&self) -> u32 {
        self.max_cudagraph_capture_size.unwrap_or(self.max_num_seqs().saturating_mul(2).min(512))
    }

    /// What is not given, by the engine's rules for `device`.
    pub fn on(mut self, device: &DeviceSku) -> Self {
        let large = device.memory_bytes >= 70 << 30 && !device.name.contains("a100");
        let (tokens, seqs) = vllm_defaults(large, self.usage);
        self.max_num_batched_tokens.get_or_insert(tokens);
        // As vLLM: no more requests than tokens.
        self.max_num_seqs.get_or_insert(seqs.min(self.max_num_batched_tokens()));
        self
    }
}

/// Settings of `sglang`. Names follow SGLang's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SglangConfig {
    /// Requests that run at the same time. SGLang takes 2048 to 4096, by cache and context.
    pub max_running_requests: u32,
    /// Prompt tokens of one step; by device where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunked_prefill_size: Option<u32>,
    /// Prompt tokens after which no further prompt is added to a step.
    pub max_prefill_tokens: u32,
    /// Running requests decode beside prompts, out of the same budget: off by default.
    pub enable_mixed_chunk: bool,
    /// Prepare a step while the one before runs: on by default since 0.4.
    pub overlap_schedule: bool,
    /// Find blocks of prompts again that were computed before (radix cache).
    pub radix_cache: bool,
    /// Decode batches of up to so many requests are padded to the next size of a captured CUDA
    /// graph; 0 for none.
    pub cuda_graph_max_bs: u32,
    /// The engine's time on the host.
    pub host: HostTime,
}

impl Default for SglangConfig {
    fn default() -> Self {
        SglangConfig {
            max_running_requests: 2048,
            chunked_prefill_size: None,
            max_prefill_tokens: 16384,
            enable_mixed_chunk: false,
            overlap_schedule: true,
            radix_cache: true,
            cuda_graph_max_bs: 256,
            host: HostTime::default(),
        }
    }
}

impl SglangConfig {
    /// Prompt tokens of one step; SGLang's default for 35 to 60 GB where not given.
    pub fn chunked_prefill_size(&self) -> u32 {
        self.chunked_prefill_size.unwrap_or(4096)
    }

    /// What is not given, by the engine's rules for `device` (`server_args.py`, 0.5).
    pub fn on(mut self, device: &DeviceSku) -> Self {
        self.chunked_prefill_size.get_or_insert(match device.memory_bytes >> 20 {
            0..35_840 => 2048,
            35_840..61_440 => 4096,
            61_440..163_840 => 8192,
            _ => 16384,
        });
        self
    }
}

/// Settings of `trtllm`. Names follow TensorRT-LLM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrtllmConfig {
    /// Requests that run at the same time.
    pub max_batch_size: u32,
    /// Tokens of one step, prompts and decodes together.
    pub max_num_tokens: u32,
    /// Cut prompts that do not fit into a step; otherwise none may be longer than a step.
    pub enable_chunked_prefill: bool,
    /// Prepare a step while the one before runs: on unless `disable_overlap_scheduler`.
    pub overlap: bool,
    /// Find blocks of prompts again that were computed before.
    pub enable_block_reuse: bool,
    /// Steps for which prompts wait beside decodes until they fill
    /// `batch_wait_max_tokens_percent` of a step; 0 for not at all.
    pub batch_wait_timeout_iters: u32,
    /// `batch_wait_max_tokens_ratio`, in per cent of `max_num_tokens`.
    pub batch_wait_max_tokens_percent: u32,
    /// Pad decode batches to the next size of a captured CUDA graph: `enable_padding`.
    pub cuda_graph_padding: bool,
    /// The largest captured CUDA graph: `cuda_graph_config.max_batch_size`.
    pub cuda_graph_max_batch_size: u32,
    /// The engine's time on the host.
    pub host: HostTime,
}

impl Default for TrtllmConfig {
    /// `BuildConfig` and `TorchLlmArgs` of 1.0 to 1.3.
    fn default() -> Self {
        TrtllmConfig {
            max_batch_size: 2048,
            max_num_tokens: 8192,
            enable_chunked_prefill: false,
            overlap: true,
            enable_block_reuse: true,
            batch_wait_timeout_iters: 0,
            batch_wait_max_tokens_percent: 0,
            cuda_graph_padding: false,
            cuda_graph_max_batch_size: 128,
            host: HostTime::default(),
        }
    }
}

/// Settings of `vllm_neuron`. Names follow vLLM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VllmNeuronConfig {
    /// Requests that run at the same time: the batch size that token generation is compiled for.
    pub max_num_seqs: u32,
    /// Tokens of the longest request, prompt and output together. Cache for so many is reserved for
    /// every seat.
    pub max_model_len: u32,
    /// The engine's time on the host.
    pub host: HostTime,
}

impl Default for VllmNeuronConfig {
    /// `max_num_seqs` as vllm-neuron 0.2. vLLM takes `max_model_len` from the model; graphs are
    /// rarely compiled for that much, so that the largest bucket of `vidur profile graph` stands here.
    fn default() -> Self {
        VllmNeuronConfig { max_num_seqs: 32, max_model_len: 2048, host: HostTime::default() }
    }
}

/// Rows of the captured graph that a batch of `tokens` tokens runs in; vLLM's sizes: 1, 2, 4, then
/// every 8 up to 256 and every 16 above. As it is when larger than `largest`.
pub(super) fn captured_size(tokens: u64, largest: u32) -> u64 {
    let size = match tokens {
        0..=2 => tokens,
        3..=4 => 4,
        5..=256 => tokens.next_multiple_of(8),
        _ => tokens.next_multiple_of(16),
    };
    if tokens <= u64::from(largest) { size } else { tokens }
}

/// As [`captured_size`], of TensorRT-LLM's sizes with padding: 1, 2, 4, every 8 up to 128, then powers
/// of two (`CudaGraphConfig`).
pub(super) fn trtllm_size(requests: u64, largest: u32) -> u64 {
    let size = match requests {
        129.. => requests.next_power_of_two(),
        _ => captured_size(requests, 128),
    };
    if size <= u64::from(largest) { size } else { requests }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphs_have_the_sizes_that_vllm_captures() {
        let sizes: Vec<u64> =
            [1, 2, 3, 5, 8, 9, 250, 257, 500, 512, 513, 600].map(|n| captured_size(n, 512)).into();
        assert_eq!(sizes, [1, 2, 4, 8, 8, 16, 256, 272, 512, 512, 513, 600]);
        assert_eq!(captured_size(3, 0), 3);
        let sizes = [3, 17, 129, 600].map(|n| trtllm_size(n, 512));
        assert_eq!(sizes, [4, 24, 256, 600]);
    }

    #[test]
    fn defaults_follow_the_device() {
        let catalog = crate::spec::catalog::Catalog::open(None);
        let on = |sku: &str, usage| {
            let config = VllmV1Config { usage, ..VllmV1Config::default() };
            let config = config.on(&catalog.device(sku).unwrap());
            (config.max_num_batched_tokens(), config.max_num_seqs())
        };
        assert_eq!(on("h100_sxm", Usage::Server), (8192, 1024));
        assert_eq!(on("h200_sxm", Usage::Offline), (16384, 1024));
        assert_eq!(on("a100_sxm", Usage::Server), (2048, 256));
        assert_eq!(on("l4", Usage::Offline), (8192, 256));
        let given = VllmV1Config { max_num_batched_tokens: Some(512), ..VllmV1Config::default() };
        assert_eq!(given.on(&catalog.device("b200_sxm").unwrap()).max_num_seqs(), 512);
        let chunk = |sku: &str| {
            SglangConfig::default().on(&catalog.device(sku).unwrap()).chunked_prefill_size()
        };
        assert_eq!((chunk("l4"), chunk("h100_sxm"), chunk("b200_sxm")), (2048, 8192, 16384));
    }
}
