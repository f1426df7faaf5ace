//! What a scheduler promises about prompts and caches, for cost models that cannot price everything.

use super::SchedulerConfig;

impl SchedulerConfig {
    /// Why a step may hold a piece of a prompt only, and how to avoid it; `None` where every prompt
    /// is read whole in one step.
    pub fn pieces(&self) -> Option<String> {
        let name = self.name();
        let cuts =
            |setting: &str| Some(format!("scheduler.{name} cuts prompts into pieces{setting}"));
        match self {
            SchedulerConfig::Sarathi(_)
            | SchedulerConfig::VllmV1(_)
            | SchedulerConfig::Sglang(_) => cuts(""),
            SchedulerConfig::Trtllm(c) if c.enable_chunked_prefill => {
                cuts(" (scheduler.trtllm.enable_chunked_prefill)")
            }
            SchedulerConfig::Trtllm(c) if c.enable_block_reuse => Some(
                "scheduler.trtllm reuses the cache of earlier prompts \
                 (scheduler.trtllm.enable_block_reuse)"
                    .into(),
            ),
            _ => None,
        }
    }

    /// Where the number of requests that run at the same time is set.
    pub fn seats_setting(&self) -> String {
        let field = match self {
            SchedulerConfig::Sglang(_) => "max_running_requests",
            SchedulerConfig::Trtllm(_) => "max_batch_size",
            _ => "max_num_seqs",
        };
        format!("scheduler.{}.{field}", self.name())
    }

    /// Whether a request may lose its cache when blocks run out, and compute everything again.
    pub fn may_restart(&self) -> bool {
        matches!(
            self,
            SchedulerConfig::Sarathi(_)
                | SchedulerConfig::Vllm(_)
                | SchedulerConfig::Lightllm(_)
                | SchedulerConfig::VllmV1(_)
                | SchedulerConfig::Sglang(_)
        )
    }

    /// Tokens that cache is reserved for when a request is admitted, whatever its own length; 0 where
    /// none is.
    pub fn reserved_tokens(&self) -> u32 {
        match self {
            SchedulerConfig::Orca(c) | SchedulerConfig::FasterTransformer(c) => {
                c.max_request_tokens
            }
            SchedulerConfig::VllmNeuron(c) => c.max_model_len,
            _ => 0,
        }
    }
    /// Whether a request is admitted only while `kv_cache.watermark` of the blocks stays free.
    pub fn keeps_watermark(&self) -> bool {
        matches!(self, SchedulerConfig::Sarathi(_) | SchedulerConfig::Vllm(_))
    }

    /// The settings that bound a batch.
    pub fn batch_settings(&self) -> String {
        format!("{} or {}", self.seats_setting(), self.token_setting().0)
    }
}
