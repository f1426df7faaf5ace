//! Polynomial regression, for comparison with Vidur's `linear_regression` predictor and for
//! profiles too noisy to interpolate.
//!
//! Least squares of the *relative* error (every row divided by its time), by linfa's
//! `LinearRegression`: plain least squares would fit the largest shapes only. The basis is
//! Chebyshev polynomials of the features scaled to -1..=1: the same functions as powers, but
//! conditioned well enough for degree 5. The degree, 1 to 5, is the one with the smallest
//! held-out error.

use super::cv::held_out;
use super::features::axes;
use super::interpolate::medians;
use super::roofline::Roofline;
use super::{OpModel, Prediction, PredictorError};
use crate::dataset::read::{OpSamples, Sample};
use crate::spec::ops::OpInput;
use linfa::DatasetBase;
use linfa::traits::Fit;
use linfa_linear::LinearRegression;
use ndarray::{Array1, Array2};

/// Largest degree that is tried.
pub const MAX_DEGREE: usize = 5;

/// A fitted polynomial of one operator.
#[derive(Clone, Debug)]
pub struct Polynomial {
    degree: usize,
    coefficients: Vec<f64>,
    rows: Range,
    xs: Range,
    /// Smallest measured time: no kernel is faster than its launch, and a polynomial may be.
    floor_ms: f64,
    roofline: Roofline,
}

/// A measured range, scaled to -1..=1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    low: f64,
    high: f64,
}

impl Range {
    /// From the smallest to the largest of `values`.
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Range {
        let start = Range { low: f64::INFINITY, high: f64::NEG_INFINITY };
        values.fold(start, |r, v| Range { low: r.low.min(v), high: r.high.max(v) })
    }

    /// The point of the range that is nearest to `v`.
    pub(super) fn nearest(self, v: f64) -> f64 {
        v.max(self.low).min(self.high)
    }

    fn scaled(self, v: f64) -> f64 {
        if self.high > self.low { 2.0 * (v - self.low) / (self.high - self.low) - 1.0 } else { 0.0 }
    }

    fn is_point(self) -> bool {
        self.high <= self.low
    }
}

/// Chebyshev polynomials T0 to T5 at `u`.
fn chebyshev(u: f64) -> [f64; MAX_DEGREE + 1] {
    let mut t = [1.0, u, 0.0, 0.0, 0.0, 0.0];
    for k in 2..=MAX_DEGREE {
        t[k] = 2.0 * u * t[k - 1] - t[k - 2];
    }
    t
}

/// All products of degree `degree` or less; those that do not vary are left out.
fn basis(degree: usize, rows: Range, xs: Range, row: f64, x: f64) -> Vec<f64> {
    let (a, b) = (chebyshev(rows.scaled(row)), chebyshev(xs.scaled(x)));
    let most = |range: Range, left: usize| if range.is_point() { 0 } else { left };
    let mut terms = Vec::with_capacity(21);
    for (i, outer) in a.iter().enumerate().take(most(rows, degree) + 1) {
        terms.extend(b.iter().take(most(xs, degree - i) + 1).map(|inner| outer * inner));
    }
    terms
}

impl Polynomial {
    /// The polynomial of `samples` whose degree has the smallest held-out error.
    ///
    /// # Errors
    /// When no degree can be fitted.
    pub fn fit(samples: &OpSamples, roofline: &Roofline) -> Result<Polynomial, PredictorError> {
        let mut best: Option<(f64, usize)> = None;
        for degree in 1..=MAX_DEGREE {
            let result = held_out(samples, 5, |train| {
                let fitted = Polynomial::of_degree(degree, train, roofline).ok_or(())?;
                Ok::<_, ()>(Box::new(fitted) as Box<dyn OpModel>)
            });
            let Some(error) = result.ok().and_then(|r| r.mape_percent()) else { continue };
            if best.is_none_or(|(least, _)| error < least) {
                best = Some((error, degree));
            }
        }
        // Too few points to hold any out: the plainest model that there is.
        let degree = best.map_or(1, |(_, degree)| degree);
        Polynomial::of_degree(degree, &samples.points, roofline)
            .or_else(|| Polynomial::of_degree(0, &samples.points, roofline))
            .ok_or_else(|| PredictorError::NoFit { op: samples.op, file: samples.file.clone() })
    }

    /// The polynomial of exactly this degree; `None` when the points do not determine one.
    pub fn of_degree(degree: usize, samples: &[Sample], roofline: &Roofline) -> Option<Polynomial> {
        let points = medians(samples);
        let rows = Range::of(points.iter().map(|p| p.0));
        let xs = Range::of(points.iter().map(|p| p.1));
        let floor_ms = points.iter().map(|p| p.2).fold(f64::INFINITY, f64::min);
        let least = points.iter().map(|p| p.2).filter(|ms| *ms > 0.0).fold(f64::MAX, f64::min);
        let terms: Vec<Vec<f64>> =
            points.iter().map(|p| basis(degree, rows, xs, p.0, p.1)).collect();
        let width = terms.first()?.len();
        if points.len() < width {
            return None;
        }
        let weights: Vec<f64> = points.iter().map(|p| 1.0 / p.2.max(least)).collect();
        let records =
            Array2::from_shape_fn((points.len(), width), |(i, j)| terms[i][j] * weights[i]);
        let targets = Array1::from_shape_fn(points.len(), |i| points[i].2 * weights[i]);
        // T0 is the intercept: weighted like every other term, so linfa must not add its own.
        let fitted = LinearRegression::new()
            .with_intercept(false)
            .fit(&DatasetBase::new(records, targets))
            .ok()?;
        let coefficients = fitted.params().to_vec();
        coefficients.iter().all(|c| c.is_finite()).then(|| Polynomial {
            degree,
            coefficients,
            rows,
            xs,
            floor_ms,
            roofline: roofline.clone(),
        })
    }

    /// Degree of the polynomial.
    pub fn degree(&self) -> usize {
        self.degree
    }
}

impl OpModel for Polynomial {
    /// Inside the measured box: the polynomial, not below the smallest measured time. Outside:
    /// the value at the nearest point of the box, scaled by the roofline, since a polynomial
    /// leaves its data at once.
    fn predict(&self, input: OpInput) -> Prediction {
        let (row, x) = axes(input);
        let nearest = (self.rows.nearest(row), self.xs.nearest(x));
        let terms = basis(self.degree, self.rows, self.xs, nearest.0, nearest.1);
        let ms: f64 = terms.iter().zip(&self.coefficients).map(|(t, c)| t * c).sum();
        let ms = ms.max(self.floor_ms);
        if nearest == (row, x) {
            return Prediction { ms, extrapolated: false };
        }
        let ms = (ms * self.roofline.growth(nearest, (row, x))).min(f64::MAX);
        Prediction { ms, extrapolated: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predictor::roofline::RooflineContext;
    use crate::predictor::test_support::{device, model};
    use crate::spec::ops::Op;
    use crate::spec::parallel::Parallelism;

    fn roofline(op: Op) -> Roofline {
        Roofline::new(op, &RooflineContext::new(&model(), Parallelism::SINGLE, &device()))
    }

    fn samples(op: Op, points: impl Iterator<Item = (OpInput, f64)>) -> OpSamples {
        let points = points.map(|(input, ms)| Sample { input, ms, line: 2 }).collect();
        OpSamples { op, file: "f.csv".into(), points }
    }

    #[test]
    fn a_parabola_is_found_and_its_degree_with_it() {
        let f = |n: f64| 0.5 + 0.01 * n + 0.002 * n * n;
        let s = samples(Op::Add, (1..60).map(|n| (OpInput::Tokens(n * 7), f((n * 7) as f64))));
        let p = Polynomial::fit(&s, &roofline(Op::Add)).unwrap();
        assert!(p.degree() >= 2);
        let ms = p.predict(OpInput::Tokens(100)).ms;
        assert!((ms / f(100.0) - 1.0).abs() < 1e-9, "{ms}");
    }

    #[test]
    fn attention_work_over_chunk_and_cache_is_a_polynomial_of_both() {
        let f = |chunk: f64, kv: f64| 0.01 + 1e-6 * chunk * (kv + chunk / 2.0);
        let grid =
            (1..9).flat_map(|c| (0..8).map(move |k| (f64::from(c * 64), f64::from(k * 100))));
        let s = samples(
            Op::AttnPrefill,
            grid.map(|(chunk, kv)| (OpInput::Prefill { kv, chunk }, f(chunk, kv))),
        );
        let p = Polynomial::fit(&s, &roofline(Op::AttnPrefill)).unwrap();
        let ms = p.predict(OpInput::Prefill { kv: 333.0, chunk: 200.0 }).ms;
        assert!((ms / f(200.0, 333.0) - 1.0).abs() < 1e-6, "{ms}");
    }

    #[test]
    fn never_below_the_smallest_measured_time_inside_the_range() {
        let s = samples(
            Op::Add,
            [(1, 5.0), (10, 0.1), (20, 0.1), (30, 0.1), (40, 5.0)]
                .into_iter()
                .map(|(n, ms)| (OpInput::Tokens(n), ms)),
        );
        let p = Polynomial::of_degree(1, &s.points, &roofline(Op::Add)).unwrap();
        for n in 1..=40 {
            assert!(p.predict(OpInput::Tokens(n)).ms >= 0.1);
        }
    }

    #[test]
    fn outside_the_range_the_edge_is_scaled_by_the_roofline_and_flagged() {
        let s = samples(Op::Add, (1..20).map(|n| (OpInput::Tokens(n), n as f64)));
        let p = Polynomial::fit(&s, &roofline(Op::Add)).unwrap();
        let far = p.predict(OpInput::Tokens(190));
        assert!(far.extrapolated && (far.ms - 190.0).abs() < 1e-6, "{far:?}");
        assert!(!p.predict(OpInput::Tokens(19)).extrapolated);
    }

    #[test]
    fn one_point_is_a_constant_and_none_is_an_error() {
        let one = samples(Op::Add, std::iter::once((OpInput::Tokens(4), 2.0)));
        let p = Polynomial::fit(&one, &roofline(Op::Add)).unwrap();
        assert!((p.predict(OpInput::Tokens(4)).ms - 2.0).abs() < 1e-12);
        let error = Polynomial::fit(&samples(Op::Add, std::iter::empty()), &roofline(Op::Add));
        assert_eq!(
            error.unwrap_err().to_string(),
            "f.csv: too few measurements of add to fit; use the interpolate predictor, or measure more points"
        );
    }
}
