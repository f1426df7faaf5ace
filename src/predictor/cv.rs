//! Held-out error: how far a predictor is off at points that it was not fitted to.
//!
//! All rows of one point go to the same fold, else a repeated measurement would predict itself.
//! Points are dealt round-robin in ascending order, so that every fold covers the whole range.
//! The first and last point of every curve are never held out: what is measured is interpolation,
//! and what lies beyond is flagged as extrapolated wherever it is used. Nothing is random.

use super::OpModel;
use super::features::{axes, point_of};
use super::interpolate::medians;
use crate::dataset::read::{OpSamples, Sample};
use crate::spec::ops::OpInput;
use crate::stats::{ape, mean, median};

/// One point and its prediction by a model that has not seen it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The point.
    pub input: OpInput,
    /// Median of its measurements, milliseconds.
    pub measured_ms: f64,
    /// Prediction, milliseconds.
    pub predicted_ms: f64,
    /// First line of the file that measures it.
    pub line: u64,
}

/// Predictions of all points that were held out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeldOut {
    /// Every point that was held out, ascending.
    pub pairs: Vec<Pair>,
}

impl Pair {
    /// Absolute error as a share of the measurement.
    pub fn ape(&self) -> f64 {
        ape(self.measured_ms, self.predicted_ms)
    }
}

impl HeldOut {
    fn apes(&self) -> Vec<f64> {
        self.pairs.iter().map(Pair::ape).collect()
    }

    /// Mean absolute error in percent of the measurement; `None` when nothing could be held out.
    pub fn mape_percent(&self) -> Option<f64> {
        mean(&self.apes()).map(|e| 100.0 * e)
    }

    /// Median absolute error in percent of the measurement.
    pub fn median_ape_percent(&self) -> Option<f64> {
        median(&self.apes()).map(|e| 100.0 * e)
    }

    /// The point with the largest error; the first of equals.
    pub fn worst(&self) -> Option<&Pair> {
        self.pairs.iter().rev().max_by(|a, b| a.ape().total_cmp(&b.ape()))
    }
}

/// The fold of every sample: `None` for those that are always trained on.
pub fn folds_of(samples: &[Sample], folds: usize) -> Vec<Option<usize>> {
    let points = medians(samples);
    let mut held = Vec::new();
    for row in points.chunk_by(|a, b| a.0 == b.0) {
        if let [_, interior @ .., _] = row {
            held.extend(interior.iter().map(|p| (p.0, p.1)));
        }
    }
    // `held` is sorted as `medians` sorts, so a sample finds its place by bisection.
    let order = |a: &(f64, f64), b: (f64, f64)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1));
    samples
        .iter()
        .map(|s| {
            let place = held.binary_search_by(|p| order(p, axes(s.input))).ok()?;
            Some(place % folds.max(2))
        })
        .collect()
}

/// Fits on all folds but one, predicts that one, and so on around. `folds` is at least 2.
///
/// # Errors
/// When a fit fails.
pub fn held_out<E>(
    samples: &OpSamples,
    folds: usize,
    fit: impl Fn(&[Sample]) -> Result<Box<dyn OpModel>, E>,
) -> Result<HeldOut, E> {
    let fold_of = folds_of(&samples.points, folds);
    let mut result = HeldOut::default();
    for fold in 0..folds.max(2) {
        let part = |held: bool| -> Vec<Sample> {
            let chosen = samples.points.iter().zip(&fold_of);
            chosen.filter(|(_, f)| (**f == Some(fold)) == held).map(|(s, _)| *s).collect()
        };
        let test = medians(&part(true));
        if test.is_empty() {
            continue;
        }
        let model = fit(&part(false))?;
        result.pairs.extend(test.into_iter().map(|(row, x, measured_ms, line)| {
            let input = point_of(samples.op, row, x);
            Pair { input, measured_ms, predicted_ms: model.predict(input).ms, line }
        }));
    }
    result.pairs.sort_by(|a, b| {
        let (a, b) = (axes(a.input), axes(b.input));
        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predictor::Prediction;
    use crate::spec::ops::Op;
    use std::convert::Infallible;

    struct Constant(f64);

    impl OpModel for Constant {
        fn predict(&self, _: OpInput) -> Prediction {
            Prediction { ms: self.0, extrapolated: false }
        }
    }

    fn samples(points: &[(u64, f64)]) -> OpSamples {
        let points = points.iter().enumerate().map(|(i, (n, ms))| Sample {
            input: OpInput::Tokens(*n),
            ms: *ms,
            line: i as u64 + 2,
        });
        OpSamples { op: Op::Add, file: "mlp.csv".into(), points: points.collect() }
    }

    #[test]
    fn a_point_is_never_split_between_folds_and_ends_are_never_held_out() {
        let s = samples(&[(4, 1.0), (1, 1.0), (2, 1.0), (4, 2.0), (3, 1.0), (2, 3.0), (5, 1.0)]);
        assert_eq!(
            folds_of(&s.points, 2),
            [Some(0), None, Some(0), Some(0), Some(1), Some(0), None]
        );
    }

    #[test]
    fn every_interior_point_is_predicted_once_by_a_model_that_never_saw_it() {
        let s = samples(&[(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (4, 6.0), (5, 5.0), (9, 9.0)]);
        let result = held_out(&s, 3, |train| {
            // Gives away whether 4 was in the training set.
            let seen = train.iter().any(|s| s.input == OpInput::Tokens(4));
            Ok::<_, Infallible>(
                Box::new(Constant(if seen { 1.0 } else { 10.0 })) as Box<dyn OpModel>
            )
        })
        .unwrap();
        let points: Vec<(OpInput, f64, f64)> =
            result.pairs.iter().map(|p| (p.input, p.measured_ms, p.predicted_ms)).collect();
        assert_eq!(
            points,
            [
                (OpInput::Tokens(2), 2.0, 1.0),
                (OpInput::Tokens(3), 3.0, 1.0),
                (OpInput::Tokens(4), 5.0, 10.0),
                (OpInput::Tokens(5), 5.0, 1.0),
            ]
        );
        let worst = result.worst().unwrap();
        assert_eq!((worst.input, worst.line), (OpInput::Tokens(4), 5));
        assert_eq!(result.median_ape_percent(), Some(100.0 * (2.0 / 3.0 + 0.8) / 2.0));
    }

    #[test]
    fn two_points_leave_nothing_to_hold_out() {
        let s = samples(&[(1, 1.0), (2, 2.0)]);
        let fit = |_: &[Sample]| Ok::<_, Infallible>(Box::new(Constant(0.0)) as Box<dyn OpModel>);
        assert_eq!(held_out(&s, 5, fit).unwrap().mape_percent(), None);
    }
}
