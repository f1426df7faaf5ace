//! Simulating the measured runs.

use super::rows::Row;
use super::scaled::Scaled;
use super::setups::{Beyond, Protocol, Setup, Setups, Statistic};
use crate::cost::{BatchShape, CostModel, PrefillChunk};
use crate::dataset::location::ProfileRoot;
use crate::ids::StageId;
use crate::predictor::data_sheet::DataSheetSettings;
use crate::predictor::{self, Limits, OperatorSettings, PredictorConfig, System, TableCache};
use crate::profiling::import::aiconfigurator::{Engine, Package, Tables};
use crate::rng;
use crate::sim::{self, Defects, RouterConfig, SimConfig};
use crate::spec::catalog::Catalog;
use crate::spec::device::DeviceSku;
use crate::spec::memory;
use crate::spec::model::{Dtype, ModelSpec};
use crate::spec::parallel::Parallelism;
use crate::spec::precision::WeightFormat;
use crate::stats;
use crate::units::SimTime;
use crate::validate::client::ClientView;
use crate::workload::{RequestSpec, Workload};
use rand::RngExt as _;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Times of a run, as its client states them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Times {
    /// Time to first token, milliseconds.
    pub ttft_ms: f64,
    /// Time per further token, milliseconds.
    pub tpot_ms: f64,
}

/// What the simulator and the two baselines say of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Simulated, from measured operators.
    pub simulated: Result<Times, String>,
    /// Simulated in the same way, from data sheets.
    pub roofline_simulated: Result<Times, String>,
    /// Formulas on data sheets: the prefill of one prompt; a decode step of all clients, and their share
    /// of the others' prefills.
    pub roofline: Result<Times, String>,
}

/// Operators from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Measured,
    DataSheet,
}

/// All that the cost of a step depends on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    system: String,
    engine: Engine,
    model: String,
    weights: WeightFormat,
    kv_cache: Option<Dtype>,
    tensor_parallel: u32,
    source: Source,
}

/// Step times for one [`Key`], and what they are of.
struct Served {
    model: ModelSpec,
    device: DeviceSku,
    parallel: Parallelism,
    cost: Result<Box<dyn CostModel>, String>,
}

/// Step times for all rows, made once; a prediction then takes milliseconds.
pub struct Bench<'a> {
    rows: &'a [Row],
    served: BTreeMap<Key, Served>,
}

fn key(row: &Row, setup: &Setup, source: Source) -> Key {
    Key {
        system: row.system.clone(),
        engine: row.engine,
        model: row.model.clone(),
        weights: row.weights,
        kv_cache: setup.kv_cache,
        tensor_parallel: row.tensor_parallel,
        source,
    }
}

impl<'a> Bench<'a> {
    /// Reads the operator timings that `rows` need from `package`, and fits them.
    ///
    /// # Errors
    /// When a row has no setup, model or device.
    pub fn new(
        rows: &'a [Row],
        setups: &Setups,
        package: &Package,
        catalog: &Catalog,
    ) -> Result<Bench<'a>, String> {
        let mut wanted: BTreeMap<Key, Limits> = BTreeMap::new();
        let mut tables: BTreeMap<(String, Engine), Option<Result<Tables, String>>> =
            BTreeMap::new();
        for row in rows {
            let setup = setup_of(setups, row)?;
            let limits = setup.scheduler(row).limits(1);
            for source in [Source::Measured, Source::DataSheet] {
                let most = wanted
                    .entry(key(row, setup, source))
                    .or_insert(Limits { max_batch_tokens: 0, max_batch_size: 0 });
                most.max_batch_tokens = most.max_batch_tokens.max(limits.max_tokens.min(20_000));
                most.max_batch_size = most.max_batch_size.max(row.concurrency);
            }
            tables.entry((row.system.clone(), row.engine)).or_default();
        }
        tables.par_iter_mut().for_each(|((system, engine), table)| {
            *table = Some(Tables::load(package, system, *engine, None).map_err(|e| e.to_string()));
        });
        let served: Result<BTreeMap<Key, Served>, String> = wanted
            .into_par_iter()
            .map(|(key, limits)| {
                let tables = tables.get(&(key.system.clone(), key.engine)).and_then(Option::as_ref);
                let served = Served::new(&key, limits, tables, catalog)?;
                Ok((key, served))
            })
            .collect();
        Ok(Bench { rows, served: served? })
    }

    /// Predictions for all rows, in their order.
    ///
    /// # Errors
    /// When a row has no setup.
    pub fn predict(&self, setups: &Setups) -> Result<Vec<Prediction>, String> {
        let indices: Vec<usize> = (0..self.rows.len()).collect();
        indices
            .par_iter()
            .map(|&i| {
                let row = &self.rows[i];
                let setup = setup_of(setups, row)?;
                let served = |source| {
                    let found = self.served.get(&key(row, setup, source));
                    found.ok_or_else(|| "this format of the KV cache was not prepared".to_owned())
                };
                let plain = Setup { beyond: Beyond::default(), ..setup.clone() };
                let run = |source, setup| served(source).and_then(|s| s.simulate(row, setup));
                Ok(Prediction {
                    simulated: run(Source::Measured, setup),
                    roofline_simulated: run(Source::DataSheet, &plain),
                    roofline: served(Source::DataSheet).and_then(|s| s.formula(row)),
                })
            })
            .collect()
    }

    /// Simulations from measured operators of the rows at `indices` under another `setup`.
    pub fn simulate(&self, indices: &[usize], setup: &Setup) -> Vec<Result<Times, String>> {
        let one = |&i: &usize| {
            let row = &self.rows[i];
            let served = self.served.get(&key(row, setup, Source::Measured));
            let served = served.ok_or("this format of the KV cache was not prepared")?;
            served.simulate(row, setup)
        };
        indices.par_iter().map(one).collect()
    }

    /// The rows.
    pub fn rows(&self) -> &'a [Row] {
        self.rows
    }
}

fn setup_of<'s>(setups: &'s Setups, row: &Row) -> Result<&'s Setup, String> {
    let found = setups.of(row).map(|i| &setups.setups[i]);
    found.ok_or_else(|| format!("no setup fits the run {}; add one to the file of setups", row.id))
}

impl Served {
    fn new(
        key: &Key,
        limits: Limits,
        tables: Option<&Result<Tables, String>>,
        catalog: &Catalog,
    ) -> Result<Served, String> {
        let model = catalog.model(&key.model).map_err(|e| e.to_string())?;
        let device = catalog.device(&key.system).map_err(|e| e.to_string())?;
        let model = super::rows::quantized(&model, key.weights, key.kv_cache);
        let parallel = Parallelism { tensor_parallel: key.tensor_parallel, pipeline_parallel: 1 };
        let build = |root: &ProfileRoot, config: &PredictorConfig| {
            let network_device = Some(key.system.as_str());
            let system = System { root, model: &model, device: &device, network_device, parallel };
            predictor::build(config, &system, limits, &TableCache::off())
                .map(|built| built.0)
                .map_err(|e| e.to_string())
        };
        let cost = match (key.source, tables) {
            (Source::DataSheet, _) => build(
                &ProfileRoot::BuiltIn,
                &PredictorConfig::Roofline(DataSheetSettings::default()),
            ),
            (Source::Measured, Some(Ok(tables))) => tables
                .profiles(&model, &key.system, &key.system, &[key.tensor_parallel])
                .map_err(|e| e.to_string())
                .and_then(|imported| {
                    let root = imported.into_root(format!("{}/{}", key.system, key.engine.name()));
                    build(&root, &PredictorConfig::Interpolate(OperatorSettings::default()))
                }),
            (Source::Measured, Some(Err(why))) => Err(why.clone()),
            (Source::Measured, None) => Err("no tables".into()),
        };
        Ok(Served { model, device, parallel, cost })
    }

    fn cost(&self) -> Result<&dyn CostModel, String> {
        self.cost.as_ref().map(|c| &**c).map_err(Clone::clone)
    }

    /// The run of `row`, as its client states it.
    fn simulate(&self, row: &Row, setup: &Setup) -> Result<Times, String> {
        let reduces = match self.parallel.tensor_parallel {
            1 => 0,
            _ => 2 * self.model.num_layers,
        };
        let cost = &Scaled::new(self.cost()?, setup.beyond, reduces);
        let reserved = u64::from(setup.beyond.reserved_mb) * 1_000_000;
        let device = DeviceSku {
            memory_bytes: self.device.memory_bytes.saturating_sub(reserved),
            ..self.device.clone()
        };
        let scheduler = setup.scheduler(row).on(&self.device);
        let limits = scheduler.limits(1);
        let plan = memory::plan(
            &self.model,
            &device,
            self.parallel,
            self.model.dtype,
            (limits.max_tokens, limits.max_seqs),
            setup.block_size,
            setup.memory_utilization,
            scheduler.memory_rule(),
        )?;
        let config = SimConfig {
            num_replicas: 1,
            router: RouterConfig::RoundRobin,
            scheduler,
            kv_blocks: plan.num_blocks,
            block_size: setup.block_size,
            watermark_blocks: 0,
            defects: Defects::default(),
            seed: SEED,
        };
        let workload = workload(row, &setup.protocol);
        let mut view = ClientView::default();
        sim::run(&config, cost, &workload, &mut view).map_err(|e| e.to_string())?;
        times(&view, &setup.protocol).ok_or_else(|| "no request has a second token".into())
    }

    /// Formulas, no scheduler: a first token takes the prefill of its own prompt; a further one takes
    /// a decode step of all clients at their mean context, and its share of the prefills of the others,
    /// of which each client has one in the time of its output.
    fn formula(&self, row: &Row) -> Result<Times, String> {
        let cost = self.cost()?;
        let ms = |shape: &BatchShape| cost.stage_cost(StageId(0), shape).duration.as_ms();
        let prompt = PrefillChunk { kv_tokens: 0, chunk_tokens: row.isl, completes: true };
        let prefill = ms(&BatchShape { prefills: vec![prompt], ..BatchShape::default() });
        let context = row.isl + row.osl / 2;
        let decode = ms(&BatchShape::decodes(row.concurrency, context));
        let others = f64::from(row.concurrency - 1) * prefill / f64::from(row.osl.max(1));
        Ok(Times { ttft_ms: prefill, tpot_ms: decode + others })
    }
}

const SEED: u64 = 42;

/// The requests of a run and the clients that send them.
fn workload(row: &Row, protocol: &Protocol) -> Workload {
    let mut rng = rng::stream(SEED, "lengths");
    let mut draw = |nominal| {
        let (low, high) = protocol.range(nominal);
        rng.random_range(low..=high)
    };
    let requests = (0..u64::from(row.concurrency) * u64::from(protocol.prompts_per_client))
        .map(|_| RequestSpec {
            arrived_at: SimTime::ZERO,
            prefill_tokens: draw(row.isl),
            decode_tokens: draw(row.osl),
        })
        .collect();
    Workload {
        requests,
        clients: Some(protocol.clients(row.concurrency)),
        front_end: protocol.front_end(),
        ..Workload::default()
    }
}

fn times(view: &ClientView, protocol: &Protocol) -> Option<Times> {
    let ttft: Vec<f64> = view.requests.iter().map(|r| r.ttft_ms()).collect();
    let tpot: Vec<f64> = view.requests.iter().filter_map(|r| r.tpot_ms()).collect();
    let of = |values: &[f64]| match protocol.statistic {
        Statistic::Mean => stats::mean(values),
        Statistic::Median => stats::median(values),
    };
    Some(Times { ttft_ms: of(&ttft)?, tpot_ms: of(&tpot)? })
}
