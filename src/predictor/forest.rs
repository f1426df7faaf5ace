//! Random forests as microsoft/vidur fits them: scikit-learn's settings, by smartcore, on every row
//! (no medians). For comparison with Vidur: a forest is a staircase between the points, and knows
//! nothing outside them, where time is taken to grow with the work.
//!
//! Every tree is fitted on its own, with a seed of its own, so that trees are fitted and asked in
//! parallel; sums run in a fixed order. The same profiles and seed give the same bits.

use super::config::{AttentionBatchingOverhead, HostStages, OperatorSettings};
use super::features::axes;
use super::linear::Range;
use super::plausible::Implausible;
use super::roofline::Roofline;
use super::{OpModel, Prediction, PredictorError};
use crate::dataset::read::{MissingValues, OpSamples, Sample};
use crate::spec::ops::{Feature, LayerSum, Op, OpInput};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use smartcore::ensemble::random_forest_regressor::{
    RandomForestRegressor, RandomForestRegressorParameters,
};
use smartcore::linalg::basic::matrix::DenseMatrix;

/// Settings of the `forest` predictor. The defaults are those of Vidur's reference runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ForestSettings {
    /// Trees.
    pub num_trees: u32,
    /// Most decisions between the root and a leaf.
    pub max_depth: u16,
    /// Fewest rows that are split any further.
    pub min_samples_split: u32,
    /// Fixes the rows that each tree sees.
    pub seed: u64,
    /// What to do with rows whose time is empty or NaN.
    pub missing_values: MissingValues,
    /// What to do with rows that are faster than the device can calculate.
    pub implausible: Implausible,
    /// Extra attention time over several sequences, grouped-query models only.
    pub attention_batching_overhead: AttentionBatchingOverhead,
    /// Milliseconds that launching one all-reduce adds to its profile.
    pub all_reduce_launch_ms: f64,
    /// Use attention rows of this KV block size only; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Add the engine's time on the host (cpu_overheads.csv).
    pub cpu_overhead: bool,
    /// Which pipeline stages pay it.
    pub cpu_overhead_stages: HostStages,
}

impl Default for ForestSettings {
    fn default() -> Self {
        ForestSettings {
            num_trees: 250,
            max_depth: 16,
            min_samples_split: 2,
            seed: 0,
            missing_values: MissingValues::Refuse,
            implausible: Implausible::Keep,
            attention_batching_overhead: AttentionBatchingOverhead::vidur(),
            all_reduce_launch_ms: 0.02,
            block_size: None,
            cpu_overhead: false,
            cpu_overhead_stages: HostStages::Every,
        }
    }
}

impl ForestSettings {
    /// How profiles are read and added up. A forest is looked up as Vidur looks it up, and so sums
    /// a layer as Vidur does.
    pub fn operators(&self) -> OperatorSettings {
        OperatorSettings {
            missing_values: self.missing_values,
            implausible: Some(self.implausible),
            layer_sum: LayerSum::Vidur,
            attention_batching_overhead: self.attention_batching_overhead,
            all_reduce_launch_ms: Some(self.all_reduce_launch_ms),
            block_size: self.block_size,
            cpu_overhead: self.cpu_overhead,
            cpu_overhead_stages: self.cpu_overhead_stages,
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// One line that names the field, its value and what was expected.
    pub fn check(&self) -> Result<(), String> {
        for (name, value, least, most) in [
            ("num_trees", self.num_trees, 1, 100_000),
            ("max_depth", u32::from(self.max_depth), 1, 1000),
            ("min_samples_split", self.min_samples_split, 2, u32::MAX),
        ] {
            if !(least..=most).contains(&value) {
                return Err(format!(
                    "predictor: forest.{name} is {value}; expected {least} to {most}"
                ));
            }
        }
        Ok(())
    }
}

type Tree = RandomForestRegressor<f64, f64, DenseMatrix<f64>, Vec<f64>>;

/// Trees that are added up in one go: sums do not depend on the number of threads.
const TREES_A_SUM: u32 = 16;

/// What the trees of one operator are fitted to.
struct Training {
    inputs: DenseMatrix<f64>,
    ms: Vec<f64>,
    features: usize,
    settings: ForestSettings,
}

/// The features of Vidur's models: tokens; sequences and mean context; context and squared chunk.
fn features(op: Op, input: OpInput) -> Vec<f64> {
    let (row, x) = axes(input);
    match op.feature() {
        Feature::Tokens | Feature::SampledTokens => vec![x],
        Feature::Decode => vec![row, x],
        Feature::Prefill => vec![x, row * row],
    }
}

/// Rows of features; `None` of no rows.
fn matrix(op: Op, inputs: impl Iterator<Item = OpInput>) -> Option<DenseMatrix<f64>> {
    let rows: Vec<Vec<f64>> = inputs.map(|input| features(op, input)).collect();
    DenseMatrix::from_2d_vec(&rows).ok()
}

impl Training {
    fn of(op: Op, samples: &[Sample], settings: &ForestSettings) -> Option<Training> {
        Some(Training {
            inputs: matrix(op, samples.iter().map(|s| s.input))?,
            ms: samples.iter().map(|s| s.ms).collect(),
            features: features(op, samples.first()?.input).len(),
            settings: *settings,
        })
    }

    /// Tree number `index`, as scikit-learn grows it: on rows drawn with replacement, every split
    /// the best over all features.
    fn tree(&self, index: u32) -> Option<Tree> {
        let s = &self.settings;
        let parameters = RandomForestRegressorParameters {
            // smartcore counts the root.
            max_depth: Some(s.max_depth.saturating_add(1)),
            min_samples_leaf: 1,
            min_samples_split: s.min_samples_split as usize,
            n_trees: 1,
            m: Some(self.features),
            keep_samples: false,
            seed: s.seed.wrapping_add(u64::from(index)),
        };
        RandomForestRegressor::fit(&self.inputs, &self.ms, parameters).ok()
    }
}

/// Fits a forest to `samples` and asks it at all `inputs`. The forest itself is not kept: one of
/// 250 trees on ten thousand rows would take hundreds of megabytes.
///
/// # Errors
/// When there are no samples.
pub(super) fn fit_and_ask(
    samples: &OpSamples,
    settings: &ForestSettings,
    inputs: &[OpInput],
) -> Result<Vec<f64>, PredictorError> {
    let no_fit = || PredictorError::NoFit { op: samples.op, file: samples.file.clone() };
    let Some(asked) = matrix(samples.op, inputs.iter().copied()) else { return Ok(Vec::new()) };
    let training = Training::of(samples.op, &samples.points, settings).ok_or_else(no_fit)?;
    let sum_of = |first: u32| -> Option<Vec<f64>> {
        let mut sum = vec![0.0; inputs.len()];
        for index in first..(first + TREES_A_SUM).min(settings.num_trees) {
            let answers = training.tree(index)?.predict(&asked).ok()?;
            sum.iter_mut().zip(answers).for_each(|(sum, ms)| *sum += ms);
        }
        Some(sum)
    };
    let starts: Vec<u32> = (0..settings.num_trees).step_by(TREES_A_SUM as usize).collect();
    let sums: Option<Vec<Vec<f64>>> = starts.into_par_iter().map(sum_of).collect();
    let mut mean = vec![0.0; inputs.len()];
    for sum in sums.ok_or_else(no_fit)? {
        mean.iter_mut().zip(sum).for_each(|(mean, sum)| *mean += sum);
    }
    let trees = f64::from(settings.num_trees);
    mean.iter_mut().for_each(|ms| *ms = (*ms / trees).max(0.0));
    Ok(mean)
}

/// A fitted forest that is asked point by point: for the held-out error.
pub struct Forest {
    trees: Vec<Tree>,
    rows: Range,
    xs: Range,
    roofline: Roofline,
}

impl Forest {
    /// The forest of `samples`.
    ///
    /// # Errors
    /// When there are no samples.
    pub fn fit(
        samples: &OpSamples,
        settings: &ForestSettings,
        roofline: &Roofline,
    ) -> Result<Forest, PredictorError> {
        let no_fit = || PredictorError::NoFit { op: samples.op, file: samples.file.clone() };
        let training = Training::of(samples.op, &samples.points, settings).ok_or_else(no_fit)?;
        let trees: Option<Vec<Tree>> =
            (0..settings.num_trees).into_par_iter().map(|index| training.tree(index)).collect();
        Ok(Forest {
            trees: trees.ok_or_else(no_fit)?,
            rows: Range::of(samples.points.iter().map(|s| axes(s.input).0)),
            xs: Range::of(samples.points.iter().map(|s| axes(s.input).1)),
            roofline: roofline.clone(),
        })
    }
}

impl OpModel for Forest {
    /// Inside the box of measured points the forest's mean; outside the value at the nearest point
    /// of the box, scaled by the roofline.
    fn predict(&self, input: OpInput) -> Prediction {
        let op = self.roofline.op();
        let at = axes(input);
        let nearest = (self.rows.nearest(at.0), self.xs.nearest(at.1));
        let answers = matrix(op, std::iter::once(input)).map(|asked| {
            let each = self.trees.iter().filter_map(|t| t.predict(&asked).ok());
            each.flatten().sum::<f64>()
        });
        let ms = (answers.unwrap_or(0.0) / self.trees.len().max(1) as f64).max(0.0);
        if nearest == at {
            return Prediction { ms, extrapolated: false };
        }
        let ms = (ms * self.roofline.growth(nearest, at)).min(f64::MAX);
        Prediction { ms, extrapolated: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predictor::roofline::RooflineContext;
    use crate::predictor::test_support::{device, model};
    use crate::spec::parallel::Parallelism;

    fn samples(op: Op, points: impl Iterator<Item = (OpInput, f64)>) -> OpSamples {
        let points = points.map(|(input, ms)| Sample { input, ms, line: 2 }).collect();
        OpSamples { op, file: "f.csv".into(), points }
    }

    fn few() -> ForestSettings {
        ForestSettings { num_trees: 40, ..ForestSettings::default() }
    }

    fn decodes() -> OpSamples {
        let grid = (1..20).flat_map(|n| (1..20).map(move |kv| (n, f64::from(kv) * 64.0)));
        let ms = |batch: u64, kv: f64| 0.1 + 1e-5 * batch as f64 * kv;
        samples(
            Op::AttnDecode,
            grid.map(|(batch, kv)| (OpInput::Decode { batch, kv }, ms(batch, kv))),
        )
    }

    #[test]
    fn a_forest_follows_its_points_and_stays_within_their_values() {
        let s = decodes();
        let inputs: Vec<OpInput> = s.points.iter().map(|p| p.input).collect();
        let answers = fit_and_ask(&s, &few(), &inputs).unwrap();
        for (p, ms) in s.points.iter().zip(answers) {
            assert!((ms / p.ms - 1.0).abs() < 0.1, "{:?}: {} became {ms}", p.input, p.ms);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
        let s = decodes();
        let inputs =
            [OpInput::Decode { batch: 7, kv: 333.0 }, OpInput::Decode { batch: 9, kv: 1.0 }];
        let on = |threads: usize, settings: &ForestSettings| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| fit_and_ask(&s, settings, &inputs).unwrap())
        };
        let one = on(1, &few());
        assert_eq!(one, on(3, &few()));
        assert_ne!(one, on(3, &ForestSettings { seed: 1000, ..few() }));
    }

    #[test]
    fn asked_point_by_point_it_is_the_same_forest() {
        let s = decodes();
        let context = RooflineContext::new(&model(), Parallelism::SINGLE, &device());
        let forest = Forest::fit(&s, &few(), &Roofline::new(s.op, &context)).unwrap();
        let inside = OpInput::Decode { batch: 7, kv: 333.0 };
        let p = forest.predict(inside);
        let together = fit_and_ask(&s, &few(), &[inside]).unwrap()[0];
        assert!(!p.extrapolated && (p.ms / together - 1.0).abs() < 1e-12);
        let far = forest.predict(OpInput::Decode { batch: 38, kv: 333.0 });
        let edge = forest.predict(OpInput::Decode { batch: 19, kv: 333.0 });
        assert!(far.extrapolated && (far.ms / edge.ms - 2.0).abs() < 1e-9);
    }

    #[test]
    fn nothing_measured_is_an_error_and_settings_out_of_range_are_named() {
        let none = samples(Op::Add, std::iter::empty());
        assert!(fit_and_ask(&none, &few(), &[OpInput::Tokens(1)]).is_err());
        let s = ForestSettings { num_trees: 0, ..ForestSettings::default() };
        assert_eq!(
            s.check().unwrap_err(),
            "predictor: forest.num_trees is 0; expected 1 to 100000"
        );
    }
}
