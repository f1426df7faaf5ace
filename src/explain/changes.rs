//! Single changes to a configuration, each tried by simulating it.

use crate::metrics::Summary;
use crate::predictor::{PredictorConfig, TableCache};
use crate::run::{Run, RunConfig};
use crate::sim::{RouterConfig, Silent};
use crate::spec::catalog::Catalog;
use rayon::prelude::*;
use serde::Serialize;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Fields and values as `--set` takes them: `path=value`.
    pub sets: Vec<String>,
    /// Whether it takes more devices.
    pub more_devices: bool,
}

/// What came of a change.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// The change.
    pub change: Change,
    /// Its figures, or why it cannot run.
    pub outcome: Result<Outcome, String>,
}

/// The figures that changes are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Devices of the fleet.
    pub num_devices: u32,
    /// Mean time to first token, milliseconds.
    pub ttft_ms: Option<f64>,
    /// Its 90th percentile.
    pub ttft_p90_ms: Option<f64>,
    /// Mean time per output token, milliseconds.
    pub tpot_ms: Option<f64>,
    /// Mean end-to-end latency, milliseconds.
    pub e2e_ms: Option<f64>,
    /// Requests per second.
    pub requests_per_s: f64,
    /// Requests that met every objective, percent of all; `None` without objectives.
    pub good_percent: Option<f64>,
}

impl Outcome {
    /// The figures of a run.
    pub fn of(run: &Run, summary: &Summary) -> Self {
        let latency = &summary.latency;
        Outcome {
            num_devices: run.report().num_devices,
            ttft_ms: latency.ttft_ms.map(|d| d.mean),
            ttft_p90_ms: latency.ttft_ms.map(|d| d.p90),
            tpot_ms: latency.tpot_ms.map(|d| d.mean),
            e2e_ms: latency.e2e_ms.map(|d| d.mean),
            requests_per_s: summary.throughput.requests_per_s,
            good_percent: summary.goodput.as_ref().map(|g| g.percent),
        }
    }

    /// Whether it serves noticeably better than `other`: by half a percent of all requests more that
    /// are good, where there are objectives, else by a mean end-to-end latency one percent shorter.
    pub fn clearly_better_than(&self, other: &Outcome) -> bool {
        match (self.good_percent, other.good_percent, self.e2e_ms, other.e2e_ms) {
            (Some(a), Some(b), ..) if (a - b).abs() >= 0.5 => a > b,
            (.., Some(a), Some(b)) => a < 0.99 * b,
            _ => false,
        }
    }

    /// Whether it serves better than `other` at all, by the same figures.
    pub fn better_than(&self, other: &Outcome) -> bool {
        match (self.good_percent, other.good_percent) {
            (Some(a), Some(b)) if a != b => a > b,
            _ => self.e2e_ms < other.e2e_ms,
        }
    }
}

/// The changes that are worth a try on `config`.
pub fn candidates(config: &RunConfig) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut add = |sets: Vec<String>, more_devices| changes.push(Change { sets, more_devices });
    let name = config.scheduler.name();
    let mut around = |field: &str, value: u32| {
        for changed in [value / 2, value.saturating_mul(2)] {
            if changed > 0 {
                add(vec![format!("scheduler.{name}.{field}={changed}")], false);
            }
        }
    };
    // Seats and the token budget of a step, under whatever name the engine has for them.
    let fields = [
        "max_num_seqs",
        "max_running_requests",
        "max_batch_size",
        "chunk_size",
        "max_num_batched_tokens",
        "chunked_prefill_size",
        "max_num_tokens",
    ];
    let settings = serde_json::to_value(&config.scheduler).unwrap_or_default();
    for field in fields {
        if let Some(value) = settings[name][field].as_u64() {
            around(field, value.try_into().unwrap_or(u32::MAX));
        }
    }
    // Graphs take no pieces of prompts.
    let others = match config.predictor {
        PredictorConfig::Graph(_) => [].as_slice(),
        _ => &["sarathi", "vllm_v1"],
    };
    for other in others.iter().filter(|other| **other != name) {
        add(vec![format!("scheduler={{{other}: {{}}}}")], false);
    }
    let cluster = &config.cluster;
    if cluster.num_replicas > 1 && cluster.router != RouterConfig::LeastOutstanding {
        add(vec!["cluster.router=least_outstanding".into()], false);
    }
    let tensor = |n: u32| format!("cluster.tensor_parallel={n}");
    let replicas = |n: u32| format!("cluster.num_replicas={n}");
    let (tp, n) = (cluster.tensor_parallel, cluster.num_replicas);
    // Given tables hold the times of one way to spread the model.
    let spread = !matches!(config.predictor, PredictorConfig::Table(_));
    if spread && tp.is_multiple_of(2) {
        // The same devices, as more and smaller replicas.
        add(vec![tensor(tp / 2), replicas(n.saturating_mul(2))], false);
    }
    if spread && n.is_multiple_of(2) {
        add(vec![tensor(tp.saturating_mul(2)), replicas(n / 2)], false);
    }
    add(vec![replicas(n.saturating_mul(2))], true);
    if spread {
        add(vec![tensor(tp.saturating_mul(2))], true);
    }
    changes
}

/// Simulates every candidate. In the order of `candidates`, whatever the number of threads.
pub fn try_changes(config: &RunConfig, catalog: &Catalog, cache: &TableCache) -> Vec<Tried> {
    let attempt = |change: Change| {
        let outcome = simulate(config, &change, catalog, cache);
        Tried { change, outcome }
    };
    candidates(config).into_par_iter().map(attempt).collect()
}

fn simulate(
    config: &RunConfig,
    change: &Change,
    catalog: &Catalog,
    cache: &TableCache,
) -> Result<Outcome, String> {
    let changed = change.sets.iter().try_fold(config.clone(), |config, set| config.with(set));
    let changed = changed.map_err(|e| e.to_string())?;
    let run = Run::resolve_with(changed, catalog, cache).map_err(|e| e.to_string())?;
    let (outcome, recorder, _) = run.execute(false, Silent).map_err(|e| e.to_string())?;
    let summary = Summary::of(&recorder, run.cost.num_stages(), outcome.end);
    Ok(Outcome::of(&run, &summary))
}
