//! From profiles to the time of a step: one [`PredictorConfig`] and a set of profiles become a
//! [`StageCost`], which the simulator asks through [`crate::cost::CostModel`].

pub mod beside;
pub mod cache;
#[cfg(test)]
mod cache_tests;
pub mod config;
pub mod curve;
pub mod cv;
pub mod data_sheet;
pub mod features;
pub mod forest;
mod forest_tables;
pub mod graph;
pub mod interpolate;
pub mod linear;
pub mod plausible;
pub mod prompts;
pub mod provenance;
#[cfg(test)]
mod real_data_tests;
pub mod roofline;
pub mod stage;
#[cfg(test)]
mod stage_tests;
pub mod table;
mod table_read;
#[cfg(test)]
pub(crate) mod test_support;
pub mod window;

pub use cache::{TableCache, user_cache};
pub use config::{AttentionBatchingOverhead, Limits, OperatorSettings, PredictorConfig};
pub use graph::GraphSettings;
pub use provenance::Provenance;
pub use stage::StageCost;
pub use table::{TableCost, TableSettings};

use crate::cost::CostModel;
use crate::dataset::location::ProfileRoot;
use crate::dataset::read::{LoadError, OpSamples, ProfileSet, Request};
use crate::spec::device::DeviceSku;
use crate::spec::model::ModelSpec;
use crate::spec::ops::{LayerSum, Op, OpInput, stage_ops};
use crate::spec::parallel::Parallelism;
use beside::BesidePrompts;
use cache::Key;
use data_sheet::DataSheet;
use forest::Forest;
use interpolate::Interpolation;
use linear::Polynomial;
use prompts::PromptGain;
use roofline::{Roofline, RooflineContext};
use stage::StageSettings;
use table::{TableRules, Tables};

/// The predicted time of one execution of an operator.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// Milliseconds.
    pub ms: f64,
    /// Whether the input lies outside the range that was measured.
    pub extrapolated: bool,
}

/// Predicts the time of one operator.
///
/// Postconditions: `ms` is finite and not negative; the same input always gets the same answer.
/// Collectives take the message's bytes as [`OpInput::Tokens`].
pub trait OpModel: Send + Sync {
    /// The time of one execution at `input`.
    fn predict(&self, input: OpInput) -> Prediction;
}

/// One model per operator.
pub type OpModels = Vec<(Op, Box<dyn OpModel>)>;

/// Why there is no predictor.
#[derive(Debug, thiserror::Error)]
pub enum PredictorError {
    /// Profiles are missing or cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// A time that the device cannot reach.
    #[error(
        "{file}: line {line}: column {column} is {ms} ms, and the device at its peak needs {least_ms:.3} ms ({rows} such rows); measure them again, check the peak of the device, or leave these rows out with `missing_values: skip` in the predictor config (`--missing-values skip` for `vidur fit`)"
    )]
    Implausible {
        /// Path.
        file: String,
        /// First such line.
        line: u64,
        /// Column.
        column: String,
        /// Its time, milliseconds.
        ms: f64,
        /// Time of the arithmetic at peak, milliseconds.
        least_ms: f64,
        /// Such rows in all.
        rows: usize,
    },
    /// A given table is missing or malformed.
    #[error("{at}: {message}")]
    Table {
        /// File and line.
        at: String,
        /// What was found and expected.
        message: String,
    },
    /// An operator has too few measurements.
    #[error(
        "{file}: too few measurements of {op} to fit; use the interpolate predictor, or measure more points"
    )]
    NoFit {
        /// The operator.
        op: Op,
        /// Where its samples come from.
        file: String,
    },
}

/// What a predictor answers for, and where its profiles lie.
#[derive(Clone, Copy, Debug)]
pub struct System<'a> {
    /// The profiles.
    pub root: &'a ProfileRoot,
    /// The model.
    pub model: &'a ModelSpec,
    /// The device.
    pub device: &'a DeviceSku,
    /// How the devices of a replica are wired: the folder of the network profiles.
    pub network_device: Option<&'a str>,
    /// How the model is split.
    pub parallel: Parallelism,
}

/// Builds the predictor that `config` describes for `system`. Fitted tables are kept in `cache`.
///
/// # Errors
/// When a setting makes no sense, a profile is missing or cannot be used, the data sheet lacks a
/// figure, or the model cannot be split as asked.
pub fn build(
    config: &PredictorConfig,
    system: &System<'_>,
    limits: Limits,
    cache: &TableCache,
) -> Result<(Box<dyn CostModel>, Provenance), PredictorError> {
    config.check().map_err(PredictorError::Setting)?;
    system.parallel.check(system.model).map_err(PredictorError::Setting)?;
    match config {
        PredictorConfig::Interpolate(settings) | PredictorConfig::Linear(settings) => {
            let profiles = load(config, system)?;
            let cost = per_operator(config, settings, system, limits, &profiles)?;
            Ok((Box::new(cost), Provenance::of(config, &profiles)))
        }
        PredictorConfig::Forest(settings) => {
            let profiles = load(config, system)?;
            let key = Key::of(config, system, limits, &profiles);
            let tables = match cache.read(&key) {
                Some(sheets) => Tables::from_sheets(sheets),
                None => {
                    let fitted = Tables::of_forests(&profiles, settings, system.model, limits)?;
                    cache.write(&key, &fitted.to_sheets());
                    fitted
                }
            };
            let cost = TableCost::new(
                tables.in_order(system.model, system.parallel),
                system.model,
                system.parallel,
                TableRules {
                    overhead: settings.attention_batching_overhead,
                    all_reduce_launch_ms: settings.all_reduce_launch_ms,
                    host_stages: settings.cpu_overhead_stages,
                },
            );
            Ok((Box::new(cost), Provenance::of(config, &profiles)))
        }
        PredictorConfig::Roofline(settings) => {
            let ops = ops_of(system.model, system.parallel, LayerSum::Engine);
            let models = DataSheet::all(&ops, system, settings)?;
            let sum = StageSettings::plain(limits);
            let cost = StageCost::new(models, system.model, system.parallel, sum);
            Ok((Box::new(cost), Provenance::of_data_sheet(config, settings, system.device)))
        }
        PredictorConfig::Graph(settings) => {
            let (cost, provenance) = graph::build(settings, system, config.description())?;
            Ok((Box::new(cost), provenance))
        }
        PredictorConfig::Table(settings) => {
            let cost = TableCost::read(settings, system.model, system.parallel)?;
            Ok((Box::new(cost), Provenance::of_tables(settings)))
        }
    }
}

/// One fitted model per operator.
fn per_operator(
    config: &PredictorConfig,
    settings: &OperatorSettings,
    system: &System<'_>,
    limits: Limits,
    profiles: &ProfileSet,
) -> Result<StageCost, PredictorError> {
    let context = RooflineContext::new(system.model, system.parallel, system.device);
    let mut models = Vec::with_capacity(profiles.ops.len());
    for samples in &profiles.ops {
        models.push((samples.op, fit(config, samples, &Roofline::new(samples.op, &context))?));
    }
    let stage_settings = StageSettings {
        layer_sum: settings.layer_sum,
        attention_batching_overhead: settings.attention_batching_overhead,
        all_reduce_launch_ms: settings.all_reduce_launch(profiles.all_reduce_launch_included),
        host_stages: settings.cpu_overhead_stages,
        prompt_gain: PromptGain::new(&profiles.prompt_batches, &models),
        beside_prompts: BesidePrompts::new(
            &profiles.mixed_attention,
            &models,
            Roofline::new(Op::AttnDecode, &context),
        ),
        limits,
    };
    Ok(StageCost::new(models, system.model, system.parallel, stage_settings))
}

/// Loads the samples of every operator that the model runs when it is split like this.
///
/// # Errors
/// When a profile is missing or cannot be used, or the model cannot be split as asked.
pub fn load(config: &PredictorConfig, system: &System<'_>) -> Result<ProfileSet, PredictorError> {
    let System { root, model, device, network_device, parallel } = *system;
    parallel.check(model).map_err(PredictorError::Setting)?;
    let settings = config.settings().unwrap_or_default();
    let mut ops = ops_of(model, parallel, settings.layer_sum);
    if settings.cpu_overhead {
        ops.push(Op::Host);
    }
    let request = Request {
        model,
        device,
        network_device,
        parallel,
        ops: &ops,
        missing_values: settings.missing_values,
        block_size: settings.block_size,
    };
    let mut profiles = request.load(root)?;
    let context = RooflineContext::new(model, parallel, device);
    plausible::check(&mut profiles, &context, settings.implausible())?;
    Ok(profiles)
}

/// Every operator that some stage runs, once, in running order.
pub fn ops_of(model: &ModelSpec, parallel: Parallelism, sum: LayerSum) -> Vec<Op> {
    let stages = 0..parallel.pipeline_parallel;
    let mut ops: Vec<Op> =
        stages.flat_map(|s| stage_ops(model, parallel, s, sum)).map(|o| o.op).collect();
    ops.sort();
    ops.dedup();
    ops
}

/// Fits one operator by the configured method.
///
/// # Errors
/// When there are too few samples.
pub fn fit(
    config: &PredictorConfig,
    samples: &OpSamples,
    roofline: &Roofline,
) -> Result<Box<dyn OpModel>, PredictorError> {
    match config {
        PredictorConfig::Interpolate(_) => Interpolation::fit(&samples.points, roofline.clone())
            .map(|m| Box::new(m) as Box<dyn OpModel>)
            .ok_or_else(|| PredictorError::NoFit { op: samples.op, file: samples.file.clone() }),
        PredictorConfig::Linear(_) => Ok(Box::new(Polynomial::fit(samples, roofline)?)),
        PredictorConfig::Forest(settings) => {
            Ok(Box::new(Forest::fit(samples, settings, roofline)?))
        }
        PredictorConfig::Roofline(_) | PredictorConfig::Table(_) | PredictorConfig::Graph(_) => {
            Err(PredictorError::Setting(format!(
                "predictor: {} is not fitted to profiles, there is nothing to fit",
                config.name()
            )))
        }
    }
}
