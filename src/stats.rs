//! Summary statistics. Quantiles interpolate linearly between order statistics, as numpy does by
//! default; standard deviations are of the population, as Vidur's and vLLM's are.

mod sketch;

pub use sketch::{RELATIVE_ERROR, Sketch};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Arithmetic mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Population standard deviation; `None` of nothing.
pub fn std_dev(values: &[f64]) -> Option<f64> {
    let m = mean(values)?;
    Some((values.iter().map(|v| (v - m).powi(2)).sum::<f64>() / values.len() as f64).sqrt())
}

/// Half the width of the confidence interval of the mean of independent `values`, by Student's t; `None`
/// of fewer than two.
pub fn mean_half_width(values: &[f64], level_percent: f64) -> Option<f64> {
    let n = values.len() as f64;
    if n < 2.0 {
        return None;
    }
    // The deviation of a sample, from that of a population.
    let deviation = std_dev(values)? * (n / (n - 1.0)).sqrt();
    let t = StudentsT::new(0.0, 1.0, n - 1.0).ok()?;
    Some(t.inverse_cdf(0.5 + level_percent / 200.0) * deviation / n.sqrt())
}

/// The `q` quantile (0 to 1) of values in ascending order; `None` of nothing.
pub fn quantile_sorted(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = q.clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(last);
    let share = position - below as f64;
    Some(sorted[below] + (sorted[above] - sorted[below]) * share)
}

/// The median; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile_sorted(&sorted, 0.5)
}

/// Absolute error of `predicted` as a share of `measured`. Where the measurement is 0: 0 if the
/// prediction is too, else 1 (Vidur's convention).
pub fn ape(measured: f64, predicted: f64) -> f64 {
    if measured == 0.0 {
        return if predicted == 0.0 { 0.0 } else { 1.0 };
    }
    ((predicted - measured) / measured).abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_agree_with_numpy() {
        let v = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(quantile_sorted(&v, 0.0), Some(1.0));
        assert_eq!(quantile_sorted(&v, 0.5), Some(3.0));
        assert!((quantile_sorted(&v, 0.9).unwrap() - 6.8).abs() < 1e-12);
        assert_eq!(quantile_sorted(&v, 1.0), Some(8.0));
        assert_eq!(quantile_sorted(&[], 0.5), None);
    }

    #[test]
    fn the_interval_of_a_mean_is_that_of_the_books() {
        // Five values, 95 %: t = 2.7764 with 4 degrees of freedom, deviation 1.5811, over the root of 5.
        let half = mean_half_width(&[1.0, 2.0, 3.0, 4.0, 5.0], 95.0).unwrap();
        assert!((half - 1.963_243_161).abs() < 1e-6, "{half}");
        assert_eq!(mean_half_width(&[1.0], 95.0), None);
        assert_eq!(mean_half_width(&[2.0, 2.0], 95.0), Some(0.0));
    }

    #[test]
    fn deviation_is_of_the_population() {
        assert_eq!(std_dev(&[1.0, 3.0]), Some(1.0));
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn error_against_zero_is_all_or_nothing() {
        assert_eq!(ape(0.0, 0.0), 0.0);
        assert_eq!(ape(0.0, 0.1), 1.0);
        assert!((ape(2.0, 1.5) - 0.25).abs() < 1e-12);
    }
}
