//! What the user can choose about graphs. Names follow neuronx-distributed-inference's.

use serde::{Deserialize, Serialize};

/// Which graphs of a profile are deployed, and how the runtime picks among them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GraphSettings {
    /// Whether there are several buckets; else every prompt and every decode runs in the largest
    /// one of its phase.
    pub enable_bucketing: bool,
    /// Buckets of both phases; all that are profiled when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buckets: Option<Vec<u64>>,
    /// Buckets of context encoding, instead of those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_encoding_buckets: Option<Vec<u64>>,
    /// Buckets of token generation, instead of those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_generation_buckets: Option<Vec<u64>>,
    /// Batch sizes of token generation; all that are profiled when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_generation_batches: Option<Vec<u32>>,
    /// Prompts that a context-encoding graph reads at a time; the smallest profiled number when
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ctx_batch_size: Option<u32>,
    /// How the runtime picks a bucket.
    pub selection: BucketSelection,
    /// Milliseconds that each all-reduce takes beside its profile, for graphs without collectives.
    /// Inside a compiled graph nothing is launched: 0 by default.
    pub all_reduce_launch_ms: f64,
    /// Add the engine's time on the host (cpu_overheads.csv), during which the device waits.
    pub cpu_overhead: bool,
}

/// How the runtime picks a bucket for so many tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BucketSelection {
    /// The first that is larger; the largest also for exactly as many tokens. What
    /// neuronx-distributed-inference does: 128 tokens run in the bucket of 256 where there is one.
    #[default]
    FirstFit,
    /// The smallest that holds them, as vLLM-Neuron's own runtime picks it.
    Smallest,
}

impl Default for GraphSettings {
    fn default() -> Self {
        GraphSettings {
            enable_bucketing: true,
            buckets: None,
            context_encoding_buckets: None,
            token_generation_buckets: None,
            token_generation_batches: None,
            ctx_batch_size: None,
            selection: BucketSelection::FirstFit,
            all_reduce_launch_ms: 0.0,
            cpu_overhead: false,
        }
    }
}

impl GraphSettings {
    /// Checks the numbers.
    ///
    /// # Errors
    /// One line that names the field, its value and what was expected.
    pub fn check(&self) -> Result<(), String> {
        let lists = [
            ("buckets", &self.buckets),
            ("context_encoding_buckets", &self.context_encoding_buckets),
            ("token_generation_buckets", &self.token_generation_buckets),
        ];
        let batches =
            self.token_generation_batches.as_ref().map(|b| b.iter().map(|&n| n.into()).collect());
        let lists = lists.into_iter().chain([("token_generation_batches", &batches)]);
        for (name, list) in lists {
            let Some(list) = list else { continue };
            if list.is_empty() || list.contains(&0) {
                return Err(format!(
                    "predictor.graph.{name}: {list:?}; expected one or more numbers above 0, or \
                     leave it out for all that are profiled"
                ));
            }
        }
        if self.ctx_batch_size == Some(0) {
            return Err("predictor.graph.ctx_batch_size: 0; expected at least 1".into());
        }
        let launch = self.all_reduce_launch_ms;
        if !(launch.is_finite() && launch >= 0.0) {
            return Err(format!(
                "predictor.graph.all_reduce_launch_ms: {launch}; expected 0 or more"
            ));
        }
        Ok(())
    }
}
