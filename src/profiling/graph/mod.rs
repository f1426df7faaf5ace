//! Whole graphs, for devices that run compiled programs rather than kernels one by one: which
//! buckets to trace ([`buckets`]), and how long each takes on the device by the most exact route
//! there is ([`neuron_profiler`], [`nrt_benchmark`], else the wall clock around a call).

pub mod buckets;
pub mod inspect;
pub mod neuron_profiler;
pub mod nrt_benchmark;

use super::backend::torch::TorchBackend;
use super::backend::{BackendError, Effort, Shard};
use super::tool::Tools;
use crate::dataset::graph::{GraphKey, GraphRow, Phase};
use crate::dataset::network::Times;
use crate::spec::model::ModelSpec;
use nrt_benchmark::Nrtpy;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// What to trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphPlan {
    /// Buckets of context encoding.
    pub context: Vec<u64>,
    /// Buckets of token generation.
    pub token: Vec<u64>,
    /// Sequences of a context-encoding graph.
    pub context_batch: u32,
    /// Sequences of the token-generation graphs.
    pub batches: Vec<u32>,
    /// One decoder layer and the head on their own, instead of the whole model: deep models need
    /// not compile whole.
    pub per_layer: bool,
}

impl GraphPlan {
    /// The graphs of one degree, the smallest first: a run that ends early has whole phases of
    /// small buckets.
    pub fn keys(&self, model: &ModelSpec, tensor_parallel: u32) -> Vec<GraphKey> {
        let parts: &[(u32, bool)] =
            if self.per_layer { &[(1, false), (0, true)] } else { &[(model.num_layers, true)] };
        let mut keys = Vec::new();
        let mut add = |phase, batch, bucket| {
            for &(layers, head) in parts {
                keys.push(GraphKey { tensor_parallel, phase, batch, bucket, layers, head });
            }
        };
        for &bucket in &self.context {
            add(Phase::Context, self.context_batch, bucket);
        }
        for &batch in &self.batches {
            for &bucket in &self.token {
                add(Phase::Token, batch, bucket);
            }
        }
        keys.sort_by_key(|key| (key.bucket * u64::from(key.batch), *key));
        keys
    }
}

/// Traces and times one graph, within `limit` beside the time that sampling takes. `folder` holds what
/// the compiler leaves; `neuron` are the tools to time a NEFF with, on a Neuron device.
///
/// # Errors
/// [`BackendError`]: the graph's failure, or the device's.
pub fn measure(
    backend: &mut TorchBackend,
    shard: &Shard,
    key: GraphKey,
    effort: Effort,
    folder: &Path,
    limit: Duration,
    neuron: Option<&Tools>,
) -> Result<GraphRow, BackendError> {
    let warm = neuron_profiler::find_neff(folder).is_some();
    let traced = backend.graph(shard, key, effort, folder, limit)?;
    let odd = |what: &str| BackendError::Shape(format!("the worker's answer for a graph: {what}"));
    let times = Times::of(&traced.ms).ok_or_else(|| odd("no samples"))?;
    let mut row = GraphRow {
        times,
        compile_s: traced.compile_s,
        cache: if warm { "warm" } else { "cold" }.into(),
        timing: traced.route,
        // The worker traces one share of the group by itself.
        with_collectives: false,
        counters: BTreeMap::new(),
    };
    if let (Some(tools), Some(neff)) = (neuron, &traced.neff) {
        backend.rest();
        let nrtpy = Nrtpy {
            python: backend.python()?,
            lnc: backend.lnc(),
            runs: effort.repeats,
            deadline: tools.deadline,
        };
        match neuron_profiler::device_time(tools, &nrtpy, neff, folder) {
            Ok(profile) => {
                row.times = profile.times;
                row.timing = profile.route;
                row.counters = profile.counters;
            }
            // The wall clock stays, and the row says so.
            Err(why) => row.timing = format!("{} ({why})", row.timing),
        }
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_models_are_one_graph_a_bucket_and_layers_are_two() {
        let model = crate::profiling::runner::testing::model();
        let mut plan = GraphPlan {
            context: vec![128, 256],
            token: vec![128],
            context_batch: 1,
            batches: vec![1, 4],
            per_layer: false,
        };
        let keys = plan.keys(&model, 2);
        assert_eq!(keys.len(), 4);
        assert!(
            keys.iter().all(|k| k.layers == model.num_layers && k.head && k.tensor_parallel == 2)
        );
        assert_eq!(keys[0].to_string(), "context graph of 2 layers and head, 1 x 128 tokens");
        plan.per_layer = true;
        let keys = plan.keys(&model, 1);
        assert_eq!(keys.len(), 8);
        assert_eq!(keys.iter().filter(|k| k.layers == 1 && !k.head).count(), 4);
        assert_eq!(keys.iter().filter(|k| k.layers == 0 && k.head).count(), 4);
    }
}
