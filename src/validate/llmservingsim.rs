//! LLMServingSim's run of vLLM on one RTX 4090 (300 requests, arrivals as recorded) against a simulation of
//! it from the operator timings beside it.

use super::client::{ClientTimes, ClientView};
use crate::predictor::{self, Limits, OperatorSettings, PredictorConfig, System, TableCache};
use crate::profiling::import::llmservingsim;
use crate::sim::{self, Defects, HostTime, RouterConfig, SchedulerConfig, SimConfig, VllmV1Config};
use crate::spec::catalog::Catalog;
use crate::spec::device::DeviceSku;
use crate::spec::memory;
use crate::spec::model::ModelSpec;
use crate::spec::parallel::Parallelism;
use crate::stats;
use crate::units::SimTime;
use crate::workload::{RequestSpec, Workload};
use serde::Deserialize;
use std::path::Path;

/// vLLM's own work between two steps, microseconds. Not calibrated: the timings were taken layer by
/// layer inside the running engine, and asynchronous scheduling hides the rest.
const HOST: HostTime = HostTime { gap_us: 0, step_us: 0, sequence_ns: 0 };

/// One request of `bench/requests.jsonl`. Clock readings are seconds of one clock.
#[derive(Clone, Debug, Deserialize)]
struct Measured {
    input_toks: u32,
    output_toks: u32,
    arrival_time: f64,
    queued_ts: f64,
    first_token_ts: f64,
    last_token_ts: f64,
}

/// What `bench/meta.json` says of the engine.
#[derive(Debug, Deserialize)]
struct Meta {
    model: String,
    vllm_version: String,
    engine_kwargs: EngineArgs,
    kv_cache: KvCache,
    hardware: Hardware,
}

#[derive(Debug, Deserialize)]
struct EngineArgs {
    max_num_seqs: u32,
    max_num_batched_tokens: u32,
}

#[derive(Debug, Deserialize)]
struct KvCache {
    num_gpu_blocks: u32,
    block_size: u32,
    gpu_memory_utilization: f64,
    enable_prefix_caching: bool,
}

#[derive(Debug, Deserialize)]
struct Hardware {
    device_name: String,
    device_total_memory_bytes: u64,
}

/// A figure, measured and simulated.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What.
    pub name: &'static str,
    /// Measured.
    pub measured: f64,
    /// Simulated.
    pub simulated: f64,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Model, device and engine, for people.
    pub description: String,
    /// Means in milliseconds, and blocks.
    pub figures: Vec<Figure>,
    /// Median over requests of the absolute error of the time to first token, as a share.
    pub ttft_median: f64,
    /// The same of the time to the last token.
    pub e2e_median: f64,
}

/// Simulates the run in `dir`. `sku` is the catalogue's device that the run's is.
///
/// # Errors
/// When a file is missing or not what it should be, or the run cannot be simulated.
pub fn compare(dir: &Path, catalog: &Catalog, sku: &str) -> Result<Comparison, String> {
    let text = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path)
            .map_err(|e| format!("{}: {e}; expected a run folder of LLMServingSim", path.display()))
    };
    let name = |file: &str| dir.join(file).display().to_string();
    let meta: Meta = serde_json::from_str(&text("bench/meta.json")?)
        .map_err(|e| format!("{}: {e}", name("bench/meta.json")))?;
    let mut measured = Vec::new();
    for (i, line) in text("bench/requests.jsonl")?.lines().enumerate() {
        let request: Measured = serde_json::from_str(line)
            .map_err(|e| format!("{}:{}: {e}", name("bench/requests.jsonl"), i + 1))?;
        measured.push(request);
    }
    measured.sort_by(|a, b| a.arrival_time.total_cmp(&b.arrival_time));
    let model = catalog.model(&meta.model).map_err(|e| e.to_string())?;
    let device = catalog.device(sku).map_err(|e| e.to_string())?;
    let device = DeviceSku { memory_bytes: meta.hardware.device_total_memory_bytes, ..device };
    let (blocks, view) = simulate(dir, &meta, &model, &device, &measured)?;
    Ok(comparison(&meta, blocks, &measured, &view))
}

fn simulate(
    dir: &Path,
    meta: &Meta,
    model: &ModelSpec,
    device: &DeviceSku,
    measured: &[Measured],
) -> Result<(u32, ClientView), String> {
    let scheduler = SchedulerConfig::VllmV1(VllmV1Config {
        max_num_seqs: Some(meta.engine_kwargs.max_num_seqs),
        max_num_batched_tokens: Some(meta.engine_kwargs.max_num_batched_tokens),
        enable_prefix_caching: meta.kv_cache.enable_prefix_caching,
        host: HOST,
        ..VllmV1Config::default()
    });
    let limits = scheduler.limits(1);
    let bounds = (limits.max_tokens, limits.max_seqs);
    let plan = memory::plan(
        model,
        device,
        Parallelism::SINGLE,
        model.dtype,
        bounds,
        meta.kv_cache.block_size,
        meta.kv_cache.gpu_memory_utilization,
        scheduler.memory_rule(),
    )?;
    let root = llmservingsim::profiles(dir, model, &device.name)
        .map_err(|e| e.to_string())?
        .into_root("LLMServingSim");
    let system =
        System { root: &root, model, device, network_device: None, parallel: Parallelism::SINGLE };
    let (cost, _) = predictor::build(
        &PredictorConfig::Interpolate(OperatorSettings::default()),
        &system,
        Limits { max_batch_tokens: limits.max_tokens, max_batch_size: limits.max_seqs },
        &TableCache::off(),
    )
    .map_err(|e| e.to_string())?;
    let start = measured.first().map_or(0.0, |r| r.arrival_time);
    let requests = measured
        .iter()
        .map(|r| {
            Some(RequestSpec {
                arrived_at: SimTime::from_seconds(r.arrival_time - start)?,
                prefill_tokens: r.input_toks.max(1),
                decode_tokens: r.output_toks.max(1),
            })
        })
        .collect::<Option<Vec<_>>>()
        .ok_or("a request of bench/requests.jsonl arrives before the first")?;
    let config = SimConfig {
        num_replicas: 1,
        router: RouterConfig::RoundRobin,
        scheduler,
        kv_blocks: plan.num_blocks,
        block_size: meta.kv_cache.block_size,
        watermark_blocks: 0,
        defects: Defects::default(),
        seed: 42,
    };
    let workload = Workload { requests, ..Workload::default() };
    let mut view = ClientView::default();
    sim::run(&config, &*cost, &workload, &mut view).map_err(|e| e.to_string())?;
    Ok((plan.num_blocks, view))
}

fn comparison(meta: &Meta, blocks: u32, measured: &[Measured], view: &ClientView) -> Comparison {
    let ms = |from: f64, to: f64| (to - from) * 1e3;
    let mean = |values: Vec<f64>| stats::mean(&values).unwrap_or(f64::NAN);
    let real = |f: &dyn Fn(&Measured) -> Option<f64>| mean(measured.iter().filter_map(f).collect());
    let ours =
        |f: fn(&ClientTimes) -> Option<f64>| mean(view.requests.iter().filter_map(f).collect());
    let tpot = |r: &Measured| {
        let further = r.output_toks.checked_sub(1).filter(|n| *n > 0)?;
        Some(ms(r.first_token_ts, r.last_token_ts) / f64::from(further))
    };
    let figures = vec![
        Figure {
            name: "mean TTFT ms",
            measured: real(&|r| Some(ms(r.queued_ts, r.first_token_ts))),
            simulated: ours(|r| Some(r.ttft_ms())),
        },
        Figure {
            name: "mean TPOT ms",
            measured: real(&tpot),
            simulated: ours(ClientTimes::tpot_ms),
        },
        Figure {
            name: "mean E2E ms",
            measured: real(&|r| Some(ms(r.queued_ts, r.last_token_ts))),
            simulated: ours(|r| Some(r.e2e_ms())),
        },
        Figure {
            name: "KV blocks",
            measured: f64::from(meta.kv_cache.num_gpu_blocks),
            simulated: f64::from(blocks),
        },
    ];
    let pairs = || measured.iter().zip(&view.requests);
    let median = |errors: Vec<f64>| stats::median(&errors).unwrap_or(f64::NAN);
    Comparison {
        description: format!(
            "{} on {}, vLLM {}, {} requests as they arrived",
            meta.model,
            meta.hardware.device_name,
            meta.vllm_version,
            measured.len()
        ),
        figures,
        ttft_median: median(
            pairs()
                .map(|(m, s)| stats::ape(ms(m.queued_ts, m.first_token_ts), s.ttft_ms()))
                .collect(),
        ),
        e2e_median: median(
            pairs()
                .map(|(m, s)| stats::ape(ms(m.queued_ts, m.last_token_ts), s.e2e_ms()))
                .collect(),
        ),
    }
}
