//! The config file of a run. Every field has a default, so that a file holds only what it changes;
//! unknown keys are errors. The defaults are the embedded example.

use crate::metrics::{MetricsConfig, Slo};
use crate::predictor::PredictorConfig;
use crate::sim::{RouterConfig, SchedulerConfig, VllmV1Config};
use crate::workload::{ArrivalConfig, LengthConfig, SyntheticConfig, TokenRange, WorkloadConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything that a run depends on, beside the catalogue and the profiles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Hugging Face id of the model, an alias, or the path of a model file.
    pub model: String,
    /// Devices and how the model is spread over them.
    pub cluster: ClusterConfig,
    /// The KV cache of each replica.
    pub kv_cache: KvCacheConfig,
    /// How each replica forms batches.
    pub scheduler: SchedulerConfig,
    /// Folder of the profiles; without it `data/profiling` if that has what is asked for, else the
    /// profiles compiled into the program. Several folders, separated as in PATH, are searched in
    /// this order, file by file. May name environment variables: `${NAME}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profiling_dir: Option<PathBuf>,
    /// How profiles become step times.
    pub predictor: PredictorConfig,
    /// What is asked of the fleet.
    pub workload: WorkloadConfig,
    /// Fixes every random number.
    pub seed: u64,
    /// What is measured.
    pub metrics: MetricsConfig,
    /// Service-level objectives; with any, goodput is reported.
    #[serde(skip_serializing_if = "Slo::is_empty")]
    pub slo: Slo,
    /// Where to do as microsoft/vidur does although it is wrong; for comparisons with it.
    pub vidur_compat: VidurCompat,
}

/// Devices and how the model is spread over them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// Device SKU (`vidur devices` lists them), the folder of the compute profiles.
    pub sku: String,
    /// How the devices of a node are wired, the folder of the network profiles. When absent and the
    /// model is spread over devices: as in the largest node of the catalogue that has the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_device: Option<String>,
    /// Devices that share each layer.
    pub tensor_parallel: u32,
    /// Stages that the layers are split into.
    pub pipeline_parallel: u32,
    /// Copies of the model.
    pub num_replicas: u32,
    /// How requests are spread over the replicas.
    pub router: RouterConfig,
}

/// The KV cache of each replica.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KvCacheConfig {
    /// Tokens that a block holds.
    pub block_size: u32,
    /// How many blocks there are.
    pub size: KvSize,
    /// Share of the blocks that stays free when a new request is admitted.
    pub watermark: f64,
}

/// How many KV blocks a replica has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KvSize {
    /// What is left of this share of the device memory beside weights and activations.
    MemoryUtilization(f64),
    /// So many.
    Blocks(u32),
}

/// Where to do as Vidur does. Everything is off by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VidurCompat {
    /// Size the KV cache in whole requests of the longest length, keys and values of all layers
    /// counted on every stage, without embeddings and activations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_planner: Option<VidurMemoryPlanner>,
    /// A request that is preempted while it prefills turns the rest of its prompt into output.
    pub forgetful_restart: bool,
    /// faster_transformer never frees the cache of requests that ended before the last of their
    /// batch.
    pub leaky_static_batches: bool,
}

/// Settings of Vidur's memory rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VidurMemoryPlanner {
    /// Length that every request is taken to reach.
    pub max_tokens: u32,
    /// Share of the memory that is left unused.
    pub memory_margin: f64,
    /// Device memory in GiB as Vidur's device table has it; the catalogue's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_gb: Option<f64>,
}

impl Default for RunConfig {
    fn default() -> Self {
        RunConfig {
            model: "meta-llama/Llama-3.1-8B".into(),
            cluster: ClusterConfig::default(),
            kv_cache: KvCacheConfig::default(),
            scheduler: SchedulerConfig::VllmV1(VllmV1Config::default()),
            profiling_dir: None,
            predictor: PredictorConfig::default(),
            workload: WorkloadConfig::Synthetic(SyntheticConfig {
                num_requests: 500,
                arrivals: ArrivalConfig::Poisson { requests_per_s: 10.0, cap_gaps: false },
                lengths: LengthConfig::Uniform {
                    prefill_tokens: TokenRange { min: 128, max: 2048 },
                    decode_tokens: TokenRange { min: 64, max: 512 },
                },
            }),
            seed: 42,
            metrics: MetricsConfig::default(),
            slo: Slo::default(),
            vidur_compat: VidurCompat::default(),
        }
    }
}

impl Default for ClusterConfig {
    fn default() -> Self {
        ClusterConfig {
            sku: "h100_sxm".into(),
            network_device: None,
            tensor_parallel: 1,
            pipeline_parallel: 1,
            num_replicas: 1,
            router: RouterConfig::default(),
        }
    }
}

impl Default for KvCacheConfig {
    fn default() -> Self {
        KvCacheConfig { block_size: 16, size: KvSize::MemoryUtilization(0.9), watermark: 0.01 }
    }
}
