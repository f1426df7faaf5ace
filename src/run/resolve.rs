//! From a config to everything that a simulation needs, all checked before anything runs.

use super::config::{KvSize, RunConfig};
use super::lookup::{self, ResolveError, at};
use super::overrides::expand;
use super::pool::Pool;
use crate::cost::{CostModel, Demand};
use crate::dataset::location::{ProfileKind, ProfileRoot};
use crate::metrics::{RecordOptions, Recorder, StageFlops};
use crate::predictor::{
    self, GraphSettings, Limits, PredictorConfig, Provenance, System, TableCache,
};
use crate::sim::{
    self, BatchLimits, Defects, Observer, Outcome, SchedulerConfig, SimConfig, SimError,
};
use crate::spec::catalog::Catalog;
use crate::spec::device::DeviceSku;
use crate::spec::memory::{self, MemoryPlan, VidurPlan};
use crate::spec::model::{Dtype, ModelSpec};
use crate::spec::parallel::Parallelism;
use crate::workload::{RequestSpec, Workload};
use serde::Serialize;
use std::sync::Arc;

impl RunConfig {
    /// The config that a run of this one keeps: paths expanded, and what is left to the device by
    /// the engine's rules. No profile is read.
    ///
    /// # Errors
    /// The first thing in it that does not hold.
    pub fn resolved(self, catalog: &Catalog) -> Result<RunConfig, ResolveError> {
        Ok(settle(self, catalog)?.config)
    }
}

/// A run that can start.
pub struct Run {
    /// The config that it came from, paths expanded.
    pub config: RunConfig,
    /// What is served.
    pub model: ModelSpec,
    /// On what.
    pub device: DeviceSku,
    /// Step times.
    pub cost: Arc<dyn CostModel>,
    /// Where they come from.
    pub provenance: Provenance,
    /// What is asked of the fleet.
    pub workload: Workload,
    /// What is simulated.
    pub sim: SimConfig,
    /// Bounds that every batch keeps.
    pub limits: BatchLimits,
    /// How the KV cache was sized.
    pub kv: KvReport,
}

/// How the KV cache was sized.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KvReport {
    /// From the memory of the device.
    Planned(MemoryPlan),
    /// As the config says.
    Given {
        /// Blocks of a replica.
        num_blocks: u32,
    },
    /// By Vidur's rule.
    Vidur(VidurPlan),
}

/// What ran, for the files of a run.
#[derive(Clone, Debug, Serialize)]
pub struct DeploymentReport<'a> {
    /// Model id.
    pub model: &'a str,
    /// Device name.
    pub device: &'a str,
    /// Devices in all replicas.
    pub num_devices: u32,
    /// Number format that memory and rooflines are computed in.
    pub dtype: Dtype,
    /// How the KV cache was sized.
    pub kv_cache: KvReport,
    /// The workload in words.
    pub workload: &'a str,
}

fn plain<E: std::fmt::Display>(e: E) -> ResolveError {
    ResolveError(e.to_string())
}

impl Run {
    /// Looks up, reads and checks everything that `config` names.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn resolve(config: RunConfig, catalog: &Catalog) -> Result<Self, ResolveError> {
        Run::resolve_with(config, catalog, &TableCache::off())
    }

    /// As [`Run::resolve`], with fitted tables kept in `cache`.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn resolve_with(
        config: RunConfig,
        catalog: &Catalog,
        cache: &TableCache,
    ) -> Result<Self, ResolveError> {
        Run::resolve_in(config, catalog, cache, None)
    }

    /// As [`Run::resolve_with`]; what several runs have in common is made once and kept in `pool`.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn resolve_in(
        config: RunConfig,
        catalog: &Catalog,
        cache: &TableCache,
        pool: Option<&Pool>,
    ) -> Result<Self, ResolveError> {
        let Setting { config, model, device, root } = settle(config, catalog)?;
        let cluster = &config.cluster;
        let parallel = parallelism(&config);
        let limits = config.scheduler.limits(parallel.pipeline_parallel);
        let dtype = device.compute_dtype(model.dtype);
        let (kv, num_blocks) = size_kv(&config, &model, &device, parallel, dtype, limits)?;

        let network = match &config.cluster.network_device {
            None if parallel.num_devices() > 1 => {
                lookup::wiring_of(parallel.num_devices(), &device, catalog, &root)?
            }
            stated => stated.clone(),
        };
        let workload = match pool {
            Some(pool) => {
                let shared = pool.workload(&config.workload, config.seed).map_err(plain)?;
                Workload::clone(&shared)
            }
            None => config.workload.build(config.seed).map_err(plain)?,
        };
        check_context(&workload, &model)?;
        let system = System {
            root: &root,
            model: &model,
            device: &device,
            network_device: network.as_deref(),
            parallel,
        };
        let bounds =
            Limits { max_batch_tokens: limits.max_tokens, max_batch_size: limits.max_seqs };
        let (cost, provenance) = match pool {
            Some(pool) => pool.cost(&config.predictor, &system, bounds, cache).map_err(plain)?,
            None => {
                let (cost, provenance) =
                    predictor::build(&config.predictor, &system, bounds, cache).map_err(plain)?;
                (Arc::from(cost), provenance)
            }
        };
        let demand = demand(&config.scheduler, &workload, num_blocks, config.kv_cache.block_size);
        cost.check(&demand).map_err(ResolveError)?;
        let sim = SimConfig {
            num_replicas: cluster.num_replicas,
            router: cluster.router,
            scheduler: config.scheduler.clone(),
            kv_blocks: num_blocks,
            block_size: config.kv_cache.block_size,
            // As Vidur and vLLM: cut to whole blocks.
            watermark_blocks: (config.kv_cache.watermark * f64::from(num_blocks)) as u32,
            defects: Defects {
                forgetful_restart: config.vidur_compat.forgetful_restart,
                leaky_static_batches: config.vidur_compat.leaky_static_batches,
            },
            seed: config.seed,
        };
        Ok(Run { config, model, device, cost, provenance, workload, sim, limits, kv })
    }

    /// Simulates, and tells `observer` beside a recorder that keeps what the config asks for, and
    /// every batch with `keep_spans`.
    ///
    /// # Errors
    /// When the workload cannot be served by this configuration.
    pub fn execute<O: Observer>(
        &self,
        keep_spans: bool,
        observer: O,
    ) -> Result<(Outcome, Recorder, O), SimError> {
        let max_spans = if keep_spans { usize::MAX } else { 0 };
        self.execute_with(RecordOptions { max_spans, ..self.record_options() }, observer)
    }

    /// What a recorder keeps by the config: no batches.
    pub fn record_options(&self) -> RecordOptions {
        let parallel = self.parallelism();
        let stages = 0..parallel.pipeline_parallel;
        RecordOptions {
            metrics: self.config.metrics.clone(),
            slo: self.config.slo,
            stage_flops: stages.map(|s| StageFlops::of(&self.model, parallel, s)).collect(),
            peak_flops_per_s: self.device.peak(self.dtype()).unwrap_or(0.0),
            ..RecordOptions::default()
        }
    }

    /// Simulates with a recorder that keeps what `options` say.
    ///
    /// # Errors
    /// When the workload cannot be served by this configuration.
    pub fn execute_with<O: Observer>(
        &self,
        options: RecordOptions,
        observer: O,
    ) -> Result<(Outcome, Recorder, O), SimError> {
        let mut both = (Recorder::with(self.sim.num_replicas, options), observer);
        let outcome = sim::run(&self.sim, &*self.cost, &self.workload, &mut both)?;
        Ok((outcome, both.0, both.1))
    }

    /// How each replica is spread over devices.
    pub fn parallelism(&self) -> Parallelism {
        parallelism(&self.config)
    }

    /// The number format that the model runs in.
    pub fn dtype(&self) -> Dtype {
        self.device.compute_dtype(self.model.dtype)
    }

    /// What ran.
    pub fn report(&self) -> DeploymentReport<'_> {
        let cluster = &self.config.cluster;
        DeploymentReport {
            model: &self.model.name,
            device: &self.device.name,
            num_devices: cluster.num_replicas * self.parallelism().num_devices(),
            dtype: self.dtype(),
            kv_cache: self.kv,
            workload: &self.workload.description,
        }
    }
}

fn parallelism(config: &RunConfig) -> Parallelism {
    Parallelism {
        tensor_parallel: config.cluster.tensor_parallel,
        pipeline_parallel: config.cluster.pipeline_parallel,
    }
}

/// A config with nothing left open, and what it names.
struct Setting {
    config: RunConfig,
    model: ModelSpec,
    device: DeviceSku,
    root: ProfileRoot,
}

/// Looks up model and device, and decides what the config leaves to them.
fn settle(mut config: RunConfig, catalog: &Catalog) -> Result<Setting, ResolveError> {
    expand_paths(&mut config)?;
    let model = catalog.model(&config.model).map_err(at("model"))?;
    let parallel = parallelism(&config);
    parallel.check(&model).map_err(at("cluster"))?;
    if !(1..=100_000).contains(&config.cluster.num_replicas) {
        let n = config.cluster.num_replicas;
        return Err(ResolveError(format!("cluster.num_replicas: {n}; expected 1 to 100000")));
    }
    check_kv(&config)?;
    config.slo.check().map_err(ResolveError)?;
    let sku = &config.cluster.sku;
    let root = lookup::profile_root(config.profiling_dir.as_deref(), sku, &model)?;
    let device = lookup::device(sku, catalog, &root)?;
    if config.predictor == PredictorConfig::default() && runs_graphs(&root, &device, &model) {
        config.predictor = PredictorConfig::Graph(GraphSettings::default());
    }
    config.scheduler = config.scheduler.on(&device);
    let (stages, block_size) = (parallel.pipeline_parallel, config.kv_cache.block_size);
    config.scheduler.check(stages, block_size).map_err(ResolveError)?;
    Ok(Setting { config, model, device, root })
}

fn expand_paths(config: &mut RunConfig) -> Result<(), ResolveError> {
    let variable = |name: &str| std::env::var(name).ok();
    if let Some(dir) = &mut config.profiling_dir {
        *dir = expand(&dir.to_string_lossy(), variable).map_err(at("profiling_dir"))?.into();
    }
    if let PredictorConfig::Table(table) = &mut config.predictor {
        table.dir = expand(&table.dir.to_string_lossy(), variable).map_err(at("predictor"))?.into();
    }
    for file in config.workload.files_mut() {
        *file = expand(&file.to_string_lossy(), variable).map_err(at("workload"))?.into();
    }
    Ok(())
}

/// Whether the device runs whole graphs: its profiles say so, or it is a Neuron chip, which runs
/// nothing else, and what is missing is a profile of graphs.
fn runs_graphs(root: &ProfileRoot, device: &DeviceSku, model: &ModelSpec) -> bool {
    let has = |kind| root.has(kind, &device.names(), &model.names());
    (device.vendor == "AWS" || has(ProfileKind::Graph)) && !has(ProfileKind::Mlp)
}

/// The most that `workload` asks of a replica with `num_blocks` KV blocks.
fn demand(
    scheduler: &SchedulerConfig,
    workload: &Workload,
    num_blocks: u32,
    block_size: u32,
) -> Demand {
    let requests = &workload.requests;
    // The last token is sampled, and nothing attends to it.
    let context =
        |r: &RequestSpec| r.prefill_tokens.saturating_add(r.decode_tokens).saturating_sub(1);
    let decoding = requests.iter().filter(|r| r.decode_tokens > 1);
    let longest_decode = decoding.map(context).max().unwrap_or(0);
    let seats = scheduler.max_num_seqs();
    let each = longest_decode.saturating_add(1).div_ceil(block_size);
    // Blocks for every seat, and one that is asked for even when none is taken.
    let room_for_all = u64::from(num_blocks) > u64::from(seats) * u64::from(each);
    Demand {
        longest_prompt: requests.iter().map(|r| r.prefill_tokens).max().unwrap_or(0),
        longest_restart: if scheduler.may_restart() && !room_for_all { longest_decode } else { 0 },
        longest_decode,
        max_seqs: (seats, scheduler.seats_setting()),
        pieces: scheduler.pieces(),
    }
}

fn check_kv(config: &RunConfig) -> Result<(), ResolveError> {
    let kv = &config.kv_cache;
    if !(1..=65536).contains(&kv.block_size) {
        let n = kv.block_size;
        return Err(ResolveError(format!("kv_cache.block_size: {n}; expected 1 to 65536 tokens")));
    }
    if !(0.0..1.0).contains(&kv.watermark) {
        let w = kv.watermark;
        return Err(ResolveError(format!("kv_cache.watermark: {w}; expected 0 or more, below 1")));
    }
    match kv.size {
        KvSize::MemoryUtilization(u) if !(u > 0.0 && u <= 1.0) => Err(ResolveError(format!(
            "kv_cache.size.memory_utilization: {u}; expected above 0, at most 1"
        ))),
        KvSize::Blocks(0) => {
            Err(ResolveError("kv_cache.size.blocks: 0; expected at least 1".into()))
        }
        _ => Ok(()),
    }
}

fn size_kv(
    config: &RunConfig,
    model: &ModelSpec,
    device: &DeviceSku,
    parallel: Parallelism,
    dtype: Dtype,
    limits: BatchLimits,
) -> Result<(KvReport, u32), ResolveError> {
    let block_size = config.kv_cache.block_size;
    if let Some(planner) = config.vidur_compat.memory_planner {
        let field = "vidur_compat.memory_planner";
        let margin = planner.memory_margin;
        if planner.max_tokens < block_size || !(0.0..1.0).contains(&margin) {
            return Err(ResolveError(format!(
                "{field}: max_tokens {} and memory_margin {margin}; expected at least one block of \
                 {block_size} tokens, and a margin of 0 or more, below 1",
                planner.max_tokens
            )));
        }
        let gb = planner.memory_gb.unwrap_or(device.memory_bytes as f64 / f64::from(1 << 30));
        let plan = memory::vidur_plan(model, gb, parallel, block_size, planner.max_tokens, margin)
            .map_err(at(field))?;
        return Ok((KvReport::Vidur(plan), plan.num_blocks));
    }
    match config.kv_cache.size {
        KvSize::Blocks(num_blocks) => Ok((KvReport::Given { num_blocks }, num_blocks)),
        KvSize::MemoryUtilization(utilization) => {
            let bounds = (limits.max_tokens, limits.max_seqs);
            let rule = config.scheduler.memory_rule();
            let plan =
                memory::plan(model, device, parallel, dtype, bounds, block_size, utilization, rule)
                    .map_err(|e| e.line(&config.scheduler.batch_settings()))
                    .map_err(at("kv_cache"))?;
            Ok((KvReport::Planned(plan), plan.num_blocks))
        }
    }
}

/// Refuses requests that are longer than the model's context.
fn check_context(workload: &Workload, model: &ModelSpec) -> Result<(), ResolveError> {
    let limit = model.max_position_embeddings;
    let total = |r: &RequestSpec| r.prefill_tokens.saturating_add(r.decode_tokens);
    let Some(at) = workload.requests.iter().position(|r| total(r) > limit) else { return Ok(()) };
    let longer = workload.requests.iter().filter(|r| total(r) > limit).count();
    Err(ResolveError(format!(
        "workload: request {at} has {} tokens, more than the {limit} of {}'s context ({longer} of {} \
         requests are too long); shorten them, or for a trace set workload.trace.max_tokens and \
         too_long",
        total(&workload.requests[at]),
        model.name,
        workload.requests.len()
    )))
}
