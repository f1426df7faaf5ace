//! How many KV blocks fit beside the weights.

use super::device::DeviceSku;
use super::model::{Dtype, ModelSpec};
use super::parallel::Parallelism;
use serde::Serialize;

/// Where the memory of the fullest device goes, in bytes, and what that leaves for the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MemoryPlan {
    /// Weights of the stage.
    pub weight_bytes: u64,
    /// Activations at the largest batch, logits included.
    pub activation_bytes: u64,
    /// What is left for the KV cache.
    pub kv_cache_bytes: u64,
    /// One block of keys and values, all layers of the stage.
    pub kv_block_bytes: u64,
    /// Blocks of a replica.
    pub num_blocks: u32,
}

/// Bytes of keys and values that one token occupies on one device of a stage with `layers` layers.
///
/// `2 (K and V) · layers · kv_heads_per_device · head_dim · bytes_per_element`  [bytes / token]
/// Source: vLLM 0.11, kv_cache_utils. The cache is in the format that the checkpoint asks for, else in
/// `dtype`, that of the activations.
pub fn kv_bytes_per_token(
    model: &ModelSpec,
    parallel: Parallelism,
    layers: u32,
    dtype: Dtype,
) -> f64 {
    let heads = f64::from(parallel.kv_heads_per_device(model));
    2.0 * f64::from(layers)
        * heads
        * f64::from(model.head_dim)
        * model.kv_cache_dtype(dtype).bytes()
}

/// Weight bytes on one device of `stage`: its share of the layers, the embedding on the first stage
/// and the final norm and LM head on the last. Norms and biases are not split.
fn weight_bytes(model: &ModelSpec, parallel: Parallelism, stage: u32, dtype: Dtype) -> f64 {
    let tp = f64::from(parallel.tensor_parallel);
    let layers = f64::from(parallel.layers_in_stage(model.num_layers, stage));
    let embedding = f64::from(model.vocab_size) * f64::from(model.hidden_size);
    let first = stage == 0;
    let last = stage + 1 == parallel.pipeline_parallel;
    let mut projections = layers * model.projection_params_per_layer() as f64;
    let mut params = layers * model.params_per_layer() as f64 - projections;
    // A tied LM head shares the embedding where both are on one device.
    if first {
        params += embedding;
    }
    if last && !(first && model.tie_word_embeddings) {
        params += embedding;
    }
    // Key-value heads that the tensor-parallel degree does not divide are held in several copies.
    let copied =
        f64::from(parallel.kv_heads_per_device(model)) * tp - f64::from(model.num_key_value_heads);
    projections += layers * 2.0 * copied * f64::from(model.head_dim) * f64::from(model.hidden_size);
    (params * dtype.bytes() + projections * model.projection_bytes(dtype)) / tp
}

/// Activation bytes at a batch of `tokens` tokens of which `sampled` are sampled: residual stream
/// and its copy, the widest intermediate (gate, up and their product), and logits in f32 with their
/// probabilities. An engine's own allocator and CUDA graphs come on top; that is what
/// `memory_utilization` below 1 leaves room for.
fn activation_bytes(
    model: &ModelSpec,
    parallel: Parallelism,
    tokens: u32,
    sampled: u32,
    dtype: Dtype,
) -> f64 {
    let tp = f64::from(parallel.tensor_parallel);
    let ffn = 3.0 * f64::from(model.intermediate_size) / tp;
    let qkv = (model.q_size() + 2 * model.kv_size()) as f64 / tp;
    let per_token = 2.0 * f64::from(model.hidden_size) + ffn.max(qkv);
    let logits = 2.0 * f64::from(sampled) * f64::from(model.vocab_size) / tp * 4.0;
    f64::from(tokens) * per_token * dtype.bytes() + logits
}

/// What an engine keeps beside weights and KV cache, and what its share of the memory is a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryRule {
    /// Activations of the largest batch out of the share.
    #[default]
    Plain,
    /// vLLM V1 (`v1/worker/gpu_worker.py`, `determine_available_memory`, 0.11 to 0.24): out of the
    /// share come weights, the peak of a profiling run at the largest batch, which is that of the
    /// layers or that of sampling with top-k and top-p for every sequence, and what CUDA graphs and
    /// libraries take.
    VllmV1,
    /// SGLang 0.5: `mem_fraction_static` is weights and cache; activations and graphs live in the
    /// rest.
    Sglang,
    /// TensorRT-LLM 1.x: `free_gpu_memory_fraction` is a share of what weights and the activations of
    /// the largest batch leave.
    Trtllm,
}

/// Bytes for each logit of the largest batch while vLLM samples with top-k and top-p: the logits
/// (bfloat16), as float32, sorted (float32) with their places (int64), their probabilities and the
/// sums of these (float32). `v1/sample/ops/topk_topp_sampler.py`, PyTorch path.
const SAMPLER_BYTES_PER_LOGIT: f64 = 2.0 + 4.0 + 4.0 + 8.0 + 4.0 + 4.0;

/// CUDA graphs, NCCL and library workspaces, which the engine finds by looking at the free memory:
/// 384 MB, what remains of the 1.24 GB that vLLM 0.19 kept beside weights and cache of
/// Llama-3.1-8B on an RTX 4090 (LLMServingSim's run: 25,250,627,584 bytes in all, 0.9 of them, 2,588
/// blocks of 2 MiB, 16.06 GB of weights) when sampling's peak is taken off. One run: an estimate.
const VLLM_GRAPHS_BYTES: f64 = 384e6;

/// Why there is no room for a KV cache, and which settings would make some.
#[derive(Clone, Debug, PartialEq)]
pub struct NoRoom {
    /// What is there and what is needed.
    what: String,
    /// The share of the memory that would do.
    utilization: Option<f64>,
    /// Tokens and sequences of a batch too large for what the weights leave.
    batch: Option<(u32, u32)>,
    /// Whether a smaller part of the model per device, or a larger device, helps.
    devices: bool,
}

impl NoRoom {
    /// One line with the cures; `batch_settings` bound a batch.
    pub fn line(&self, batch_settings: &str) -> String {
        let utilization = self
            .utilization
            .map(|share| format!("raise kv_cache.size.memory_utilization to {share:.2} or more"));
        let batch = self.batch.map(|(tokens, seqs)| {
            format!("lower {batch_settings} (a batch may have {tokens} tokens of {seqs} sequences)")
        });
        let devices = self.devices.then(|| {
            "use a larger tensor_parallel or pipeline_parallel, or a device with more memory".into()
        });
        let cures: Vec<String> = [utilization, batch, devices].into_iter().flatten().collect();
        format!("{}; {}", self.what, cures.join(", or "))
    }
}

impl From<NoRoom> for String {
    fn from(error: NoRoom) -> String {
        error.line("the largest batch")
    }
}

/// Plans a replica whose engine may use `utilization` of each device's memory for batches of at
/// most `max_tokens` tokens and `max_seqs` sequences.
///
/// # Errors
/// What does not fit, by how much, and the cure.
#[allow(clippy::too_many_arguments)]
pub fn plan(
    model: &ModelSpec,
    device: &DeviceSku,
    parallel: Parallelism,
    dtype: Dtype,
    limits: (u32, u32),
    block_size: u32,
    utilization: f64,
    rule: MemoryRule,
) -> Result<MemoryPlan, NoRoom> {
    let (max_tokens, max_seqs) = limits;
    let memory = device.memory_bytes as f64;
    let layers_peak = |seqs| activation_bytes(model, parallel, max_tokens, seqs, dtype);
    let activations = match rule {
        MemoryRule::Plain => layers_peak(max_seqs),
        MemoryRule::VllmV1 => {
            // The logits of all shards are gathered before sampling.
            let logits = f64::from(max_seqs) * f64::from(model.vocab_size);
            layers_peak(0).max(logits * SAMPLER_BYTES_PER_LOGIT) + VLLM_GRAPHS_BYTES
        }
        MemoryRule::Sglang => 0.0,
        // One row of logits for each sequence of the largest batch; few: the rest is reserve.
        MemoryRule::Trtllm => layers_peak(max_seqs.min(max_tokens)),
    };
    let budget = memory * utilization;
    let stage_plan = |stage: u32| {
        let layers = parallel.layers_in_stage(model.num_layers, stage);
        let weights = weight_bytes(model, parallel, stage, dtype);
        let block = kv_bytes_per_token(model, parallel, layers, dtype) * f64::from(block_size);
        let kv = match rule {
            MemoryRule::Trtllm => (memory - weights - activations) * utilization,
            _ => budget - weights - activations,
        };
        (weights, block, kv, (kv / block).floor())
    };
    let tightest = (0..parallel.pipeline_parallel.max(1)).map(stage_plan);
    let tightest = tightest.min_by(|a, b| a.3.total_cmp(&b.3));
    let (weights, block, kv, blocks) = tightest.unwrap_or_default();
    if blocks < 1.0 {
        let gib = |bytes: f64| bytes / f64::from(1 << 30);
        // The share that one block would need.
        let share = match rule {
            MemoryRule::Trtllm => block / (memory - weights - activations),
            _ => (weights + activations + block) / memory,
        };
        return Err(NoRoom {
            what: format!(
                "{} does not fit on {}: {:.1} GiB of weights and {:.1} GiB of activations per \
                 device, {:.1} GiB of {:.1} GiB usable",
                model.name,
                device.name,
                gib(weights),
                gib(activations),
                gib(budget),
                gib(memory)
            ),
            utilization: Some((share * 100.0).ceil() / 100.0)
                .filter(|share| *share > utilization && *share <= 1.0),
            batch: Some(limits).filter(|_| weights + block <= budget || activations >= memory),
            devices: activations < memory,
        });
    }
    Ok(MemoryPlan {
        weight_bytes: weights as u64,
        activation_bytes: activations as u64,
        kv_cache_bytes: kv as u64,
        kv_block_bytes: block as u64,
        num_blocks: blocks.min(f64::from(u32::MAX / 2)) as u32,
    })
}

/// Vidur's rule: whole requests of `max_tokens` tokens, keys and values of all layers counted on
/// every stage, weights without embeddings, no activations; then as many requests again per stage.
///
/// # Errors
/// When not one such request fits.
pub fn vidur_plan(
    model: &ModelSpec,
    memory_gb: f64,
    parallel: Parallelism,
    block_size: u32,
    max_tokens: u32,
    margin: f64,
) -> Result<VidurPlan, String> {
    let tp = u64::from(parallel.tensor_parallel);
    let (h, hd) = (u64::from(model.hidden_size), u64::from(model.head_dim));
    let kv_heads = u64::from(parallel.kv_heads_per_device(model));
    let q_heads = u64::from(model.num_attention_heads) / tp;
    let ffn = u64::from(model.intermediate_size);
    let matrices = if model.gated_mlp { 3 } else { 2 };
    let per_layer = h * hd * (q_heads + 2 * kv_heads) + h * hd * q_heads + matrices * h * ffn / tp;
    let layers = u64::from(model.num_layers / parallel.pipeline_parallel);
    let params_bytes = 2 * layers * per_layer;
    let available = memory_gb * f64::from(1 << 30) * (1.0 - margin) - params_bytes as f64;
    let per_request = 4 * hd * kv_heads * u64::from(max_tokens) * u64::from(model.num_layers);
    let requests = (available / per_request as f64).floor();
    if requests < 1.0 {
        return Err(format!(
            "by Vidur's memory rule not one request of {max_tokens} tokens fits beside {} on {} \
             devices of {memory_gb} GB",
            model.name,
            parallel.num_devices()
        ));
    }
    let max_requests = requests as u32 * parallel.pipeline_parallel;
    Ok(VidurPlan { max_requests, num_blocks: (max_tokens / block_size) * max_requests })
}

/// What [`vidur_plan`] comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct VidurPlan {
    /// Whole requests that fit: the most that orca and faster_transformer run at a time.
    pub max_requests: u32,
    /// Blocks of a replica.
    pub num_blocks: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::catalog::Catalog;

    fn blocks(rule: MemoryRule, utilization: f64) -> u32 {
        let catalog = Catalog::open(None);
        let model = catalog.model("meta-llama/Llama-3.1-8B").unwrap();
        let device = DeviceSku { memory_bytes: 25_250_627_584, ..catalog.device("l4").unwrap() };
        let limits = (2048, 256);
        plan(&model, &device, Parallelism::SINGLE, Dtype::Bf16, limits, 16, utilization, rule)
            .unwrap()
            .num_blocks
    }

    /// LLMServingSim's run of vLLM 0.19.0 on an RTX 4090 had 2,588 blocks.
    #[test]
    fn vllm_has_the_blocks_that_it_reported() {
        let ours = f64::from(blocks(MemoryRule::VllmV1, 0.9));
        assert!((ours / 2588.0 - 1.0).abs() < 0.03, "{ours}");
    }

    #[test]
    fn what_does_not_fit_names_the_setting_at_fault() {
        let catalog = Catalog::open(None);
        let device = catalog.device("h100_sxm").unwrap();
        let cures = |size: &str, limits, utilization| {
            let model = catalog.model(&format!("meta-llama/Llama-3.1-{size}")).unwrap();
            let rule = MemoryRule::Plain;
            let p = Parallelism::SINGLE;
            let error = plan(&model, &device, p, Dtype::Bf16, limits, 16, utilization, rule);
            error.unwrap_err().line("a or b").split_once("; ").unwrap().1.to_owned()
        };
        let devices =
            "use a larger tensor_parallel or pipeline_parallel, or a device with more memory";
        let share = "raise kv_cache.size.memory_utilization to 0.19 or more";
        assert_eq!(cures("8B", (512, 128), 0.15), format!("{share}, or {devices}"));
        assert_eq!(cures("70B", (512, 128), 0.9), devices);
        assert_eq!(
            cures("8B", (u32::MAX, 128), 0.9),
            "lower a or b (a batch may have 4294967295 tokens of 128 sequences)"
        );
    }

    #[test]
    fn rules_differ_in_what_the_share_is_of() {
        let plain = blocks(MemoryRule::Plain, 0.9);
        assert!(blocks(MemoryRule::VllmV1, 0.9) < plain);
        assert!(blocks(MemoryRule::Sglang, 0.9) > plain);
        // Nine tenths of what is left is more than what is left of nine tenths.
        assert!(blocks(MemoryRule::Trtllm, 0.9) > plain);
    }
}
