//! From profiles to the time of a step: one [`PredictorConfig`] and a set of profiles become a
//! [`StageCost`], which the simulator asks through [`crate::cost::CostModel`].

pub mod config;
pub mod curve;
pub mod cv;
pub mod features;
pub mod interpolate;
pub mod linear;
mod plausible;
pub mod provenance;
#[cfg(test)]
mod real_data_tests;
pub mod roofline;
pub mod stage;
#[cfg(test)]
mod stage_tests;
#[cfg(test)]
pub(crate) mod test_support;
pub mod window;

pub use config::{AttentionBatchingOverhead, Limits, OperatorSettings, PredictorConfig};
pub use provenance::Provenance;
pub use stage::StageCost;

use crate::dataset::location::ProfileRoot;
use crate::dataset::read::{LoadError, OpSamples, ProfileSet, Request};
use crate::spec::device::DeviceSku;
use crate::spec::model::ModelSpec;
use crate::spec::ops::{LayerSum, Op, OpInput, stage_ops};
use crate::spec::parallel::Parallelism;
use interpolate::Interpolation;
use linear::Polynomial;
use roofline::{Roofline, RooflineContext};
use stage::StageSettings;

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
    /// An operator has too few measurements.
    #[error(
        "{file}: too few measurements of {op} to fit a polynomial; use the interpolate predictor, or measure more points"
    )]
    NoFit {
        /// The operator.
        op: Op,
        /// Where its samples come from.
        file: String,
    },
}

/// Builds the predictor that `config` describes from the profiles in `root`.
///
/// # Errors
/// When a profile is missing or cannot be used, or the model cannot be split as asked.
pub fn build(
    config: &PredictorConfig,
    root: &ProfileRoot,
    model: &ModelSpec,
    device: &DeviceSku,
    network_device: Option<&str>,
    parallel: Parallelism,
    limits: Limits,
) -> Result<(StageCost, Provenance), PredictorError> {
    let settings = config.settings();
    settings.check().map_err(PredictorError::Setting)?;
    let profiles = load(config, root, model, device, network_device, parallel)?;
    let context = RooflineContext::new(model, parallel, device);
    let mut models = Vec::with_capacity(profiles.ops.len());
    for samples in &profiles.ops {
        models.push((samples.op, fit(config, samples, &Roofline::new(samples.op, &context))?));
    }
    let stage_settings = StageSettings {
        layer_sum: settings.layer_sum,
        attention_batching_overhead: settings.attention_batching_overhead,
        all_reduce_launch_ms: settings.all_reduce_launch_ms,
        limits,
    };
    let cost = StageCost::new(models, model, parallel, &stage_settings);
    Ok((cost, Provenance::of(config, &profiles)))
}

/// Loads the samples of every operator that the model runs when it is split like this.
///
/// # Errors
/// When a profile is missing or cannot be used, or the model cannot be split as asked.
pub fn load(
    config: &PredictorConfig,
    root: &ProfileRoot,
    model: &ModelSpec,
    device: &DeviceSku,
    network_device: Option<&str>,
    parallel: Parallelism,
) -> Result<ProfileSet, PredictorError> {
    parallel.check(model).map_err(PredictorError::Setting)?;
    let settings = config.settings();
    let ops = ops_of(model, parallel, settings.layer_sum);
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
    plausible::check(&mut profiles, &context, settings.missing_values)?;
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
    }
}
