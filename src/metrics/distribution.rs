//! A distribution in nine figures.

use crate::stats::{self, Sketch};
use serde::{Deserialize, Serialize};

/// A distribution, in the unit that its field names.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Values.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Population standard deviation.
    pub std: f64,
    /// Smallest.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Distribution {
    /// The distribution of `values` (any order); `None` of nothing.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let q = |q| stats::quantile_sorted(&values, q);
        Some(Distribution {
            count: values.len() as u64,
            mean: stats::mean(&values)?,
            std: stats::std_dev(&values)?,
            min: q(0.0)?,
            p50: q(0.5)?,
            p90: q(0.9)?,
            p95: q(0.95)?,
            p99: q(0.99)?,
            max: q(1.0)?,
        })
    }

    /// The distribution, in milliseconds, of nanosecond values given with their counts. The same
    /// figures as if each value stood there `count` times.
    pub fn of_counted_ns(values: &[(u64, u32)]) -> Option<Self> {
        let counted = Counted::of(values);
        let count = counted.ends.last().copied().filter(|n| *n > 0)?;
        let sum: u128 = values.iter().map(|v| u128::from(v.0) * u128::from(v.1)).sum();
        let mean = sum as f64 / count as f64;
        let square = |v: &(u64, u64)| (v.0 as f64 - mean).powi(2) * v.1 as f64;
        let variance = counted.sorted.iter().map(square).sum::<f64>() / count as f64;
        let q = |q: f64| counted.quantile(q).map(|ns| ns * 1e-6);
        Some(Distribution {
            count,
            mean: mean * 1e-6,
            std: variance.sqrt() * 1e-6,
            min: q(0.0)?,
            p50: q(0.5)?,
            p90: q(0.9)?,
            p95: q(0.95)?,
            p99: q(0.99)?,
            max: q(1.0)?,
        })
    }

    /// The quantiles 0, 1 / (points - 1), … 1 of values given with their counts.
    pub fn quantiles_of_counted_ns(values: &[(u64, u32)], points: usize) -> Vec<f64> {
        let counted = Counted::of(values);
        let whole = points.saturating_sub(1).max(1) as f64;
        (0..points).filter_map(|i| counted.quantile(i as f64 / whole)).collect()
    }

    /// The distribution of a sketch, its values multiplied by `unit`; `None` of nothing.
    pub fn of_sketch(sketch: &Sketch, unit: f64) -> Option<Self> {
        let q = |q| sketch.quantile(q).map(|v| v * unit);
        Some(Distribution {
            count: sketch.count(),
            mean: sketch.mean()? * unit,
            std: sketch.std_dev()? * unit,
            min: q(0.0)?,
            p50: q(0.5)?,
            p90: q(0.9)?,
            p95: q(0.95)?,
            p99: q(0.99)?,
            max: q(1.0)?,
        })
    }
}

/// Values with their counts, ascending.
struct Counted {
    sorted: Vec<(u64, u64)>,
    /// How many values there are up to and including each.
    ends: Vec<u64>,
}

impl Counted {
    fn of(values: &[(u64, u32)]) -> Self {
        let mut sorted: Vec<(u64, u64)> =
            values.iter().map(|&(ns, count)| (ns, u64::from(count))).collect();
        sorted.sort_unstable_by_key(|v| v.0);
        // Each value once, so that sums do not depend on how the counts were split.
        sorted.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            kept.1 += if same { next.1 } else { 0 };
            same
        });
        let add = |seen: &mut u64, v: &(u64, u64)| {
            *seen += v.1;
            Some(*seen)
        };
        let ends = sorted.iter().scan(0, add).collect();
        Counted { sorted, ends }
    }

    fn quantile(&self, q: f64) -> Option<f64> {
        let last = self.ends.last()?.checked_sub(1)?;
        let position = q * last as f64;
        let below = position.floor();
        let nth = |n: u64| {
            let at = self.ends.partition_point(|&end| end <= n);
            self.sorted.get(at).map(|v| v.0 as f64)
        };
        let (low, high) = (nth(below as u64)?, nth((below as u64 + 1).min(last))?);
        Some(low + (high - low) * (position - below))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counted_values_have_the_distribution_of_the_values_written_out(
            values in prop::collection::vec((0u64..2_000_000_000, 1u32..9), 1..60)
        ) {
            let counted = Distribution::of_counted_ns(&values).unwrap();
            let written: Vec<f64> = values
                .iter()
                .flat_map(|&(ns, n)| std::iter::repeat_n(ns as f64 * 1e-6, n as usize))
                .collect();
            let plain = Distribution::of(written).unwrap();
            prop_assert_eq!(counted.count, plain.count);
            for (a, b) in [
                (counted.mean, plain.mean),
                (counted.std, plain.std),
                (counted.p50, plain.p50),
                (counted.p90, plain.p90),
                (counted.p99, plain.p99),
                (counted.max, plain.max),
            ] {
                prop_assert!((a - b).abs() <= 1e-9 * (1.0 + b), "{} {}", a, b);
            }
        }
    }

    #[test]
    fn nothing_has_no_distribution() {
        assert_eq!(Distribution::of(vec![]), None);
        assert_eq!(Distribution::of_counted_ns(&[]), None);
        assert_eq!(Distribution::of_sketch(&Sketch::default(), 1.0), None);
    }
}
