//! What can be told before anything runs: requests that could never finish.

use super::engine::SimConfig;
use crate::ids::RequestId;
use crate::workload::Workload;

/// Why a configuration cannot serve a workload.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimError {
    /// One request needs more KV cache than a replica has.
    #[error(
        "request {id} {} and needs {needed} KV blocks of {block_size} tokens, but a replica has \
         {capacity} with {watermark} kept free: it could never finish; {}",
        asks(*tokens, reserved.as_deref()),
        cure(*needed < *capacity, reserved.as_deref())
    )]
    RequestTooLong {
        /// Which.
        id: RequestId,
        /// Prompt and output, or what is reserved for them.
        tokens: u32,
        /// The setting that reserves more than the request has.
        reserved: Option<String>,
        /// Blocks that they fill.
        needed: u32,
        /// Tokens per block.
        block_size: u32,
        /// Blocks of a replica.
        capacity: u32,
        /// Blocks kept free at admission.
        watermark: u32,
    },
    /// One request is longer than the scheduler can ever run.
    #[error(
        "request {id} has {tokens} tokens, prompt and output together, more than {setting} {limit}: \
         it could never finish; raise the setting or shorten the requests"
    )]
    RequestOverLimit {
        /// Which.
        id: RequestId,
        /// Prompt and output.
        tokens: u32,
        /// The setting that bounds them.
        setting: String,
        /// Its value.
        limit: u32,
    },
    /// One prompt is longer than the scheduler can ever run.
    #[error(
        "request {id} has a prompt of {tokens} tokens, more than {setting} {limit}, and prompts are \
         not cut: it could never start; raise the setting, or turn chunked prefill on"
    )]
    PromptOverLimit {
        /// Which.
        id: RequestId,
        /// Tokens of its prompt.
        tokens: u32,
        /// The setting that bounds them.
        setting: String,
        /// Its value.
        limit: u32,
    },
    /// The simulated clock passes a hundred years.
    #[error(
        "after 100 years of simulated time {left} requests are not served: a step, a gap between \
         arrivals or a think time is far too long; look at the times of steps (vidur explain) and the \
         settings of arrivals"
    )]
    TooLong {
        /// Requests unfinished.
        left: usize,
    },
    /// Nothing can happen any more and requests are left. A defect of a scheduler.
    #[error("the simulation is stuck with {left} requests unfinished; please report this")]
    Stuck {
        /// Requests unfinished.
        left: usize,
    },
}

fn asks(tokens: u32, reserved: Option<&str>) -> String {
    match reserved {
        Some(setting) => format!("reserves {tokens} tokens by {setting}"),
        None => format!("has {tokens} tokens"),
    }
}

fn cure(fits_without_watermark: bool, reserved: Option<&str>) -> String {
    let shorter = match (fits_without_watermark, reserved) {
        (true, _) => "a lower kv_cache.watermark".into(),
        (false, Some(setting)) => format!("a lower {setting}"),
        (false, None) => "a shorter maximum length".to_owned(),
    };
    format!(
        "use {shorter}, more memory per replica (kv_cache.size, tensor_parallel, another device) or a \
         smaller model"
    )
}

/// Refuses requests that no replica could ever finish.
pub(super) fn check_lengths(config: &SimConfig, workload: &Workload) -> Result<(), SimError> {
    let longest = config.scheduler.longest_request();
    let longest_prompt = config.scheduler.longest_prompt();
    let reserved = config.scheduler.reserved_tokens();
    let reserved_by = || longest.as_ref().map(|(setting, _)| setting.clone());
    let watermark = if config.scheduler.keeps_watermark() { config.watermark_blocks } else { 0 };
    // As in Vidur, a free block is asked for even when none has to be added.
    let watermark = watermark.max(1);
    for (i, r) in workload.requests.iter().enumerate() {
        let id = RequestId(i as u32);
        let tokens = r.prefill_tokens.saturating_add(r.decode_tokens);
        if let Some((setting, limit)) = longest.as_ref().filter(|l| tokens > l.1) {
            let (setting, limit) = (setting.clone(), *limit);
            return Err(SimError::RequestOverLimit { id, tokens, setting, limit });
        }
        let prompt = r.prefill_tokens;
        if let Some((setting, limit)) = longest_prompt.as_ref().filter(|l| prompt > l.1) {
            let (setting, limit) = (setting.clone(), *limit);
            return Err(SimError::PromptOverLimit { id, tokens: prompt, setting, limit });
        }
        let held = tokens.max(reserved);
        let needed = held.div_ceil(config.block_size);
        if needed.saturating_add(watermark) > config.kv_blocks {
            return Err(SimError::RequestTooLong {
                id,
                tokens: held,
                reserved: reserved_by().filter(|_| held > tokens),
                needed,
                block_size: config.block_size,
                capacity: config.kv_blocks,
                watermark,
            });
        }
    }
    Ok(())
}
