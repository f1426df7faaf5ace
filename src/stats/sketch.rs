//! Quantiles of a stream in fixed memory.

/// Sub-buckets per power of two are 2^BITS.
const BITS: u32 = 10;

/// Largest relative error of a quantile of [`Sketch`]: half a bucket, 2⁻¹¹ of its lower edge.
pub const RELATIVE_ERROR: f64 = 1.0 / 2048.0;

/// Counts of values in buckets that widen with the value: a logarithmic histogram, 1024 buckets to
/// each power of two. Values below 2048 are exact, larger ones within [`RELATIVE_ERROR`] (0.05 %).
/// At most 56,320 buckets, 440 KiB, however many values there are; only integers decide on the
/// bucket, so that every machine finds the same one. Count, mean, smallest and largest are exact.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sketch {
    counts: Vec<u64>,
    count: u64,
    sum: u128,
    /// Modulo 2¹²⁸: see [`Sketch::std_dev`].
    squares: u128,
    min: u64,
    max: u64,
}

fn bucket(value: u64) -> usize {
    let exponent = (63 - (value | 1).leading_zeros()).saturating_sub(BITS);
    ((exponent as usize) << BITS) + (value >> exponent) as usize
}

/// The middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let exponent = (bucket >> BITS).saturating_sub(1);
    let low = ((bucket - (exponent << BITS)) as u64) << exponent;
    low + ((1_u64 << exponent) >> 1)
}

impl Sketch {
    /// Counts one value.
    pub fn add(&mut self, value: u64) {
        self.add_times(value, 1);
    }

    /// Counts a value `times` times. The order in which values come makes no difference.
    pub fn add_times(&mut self, value: u64, times: u64) {
        if times == 0 {
            return;
        }
        let at = bucket(value);
        if at >= self.counts.len() {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] += times;
        if self.count == 0 {
            (self.min, self.max) = (value, value);
        }
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.count += times;
        let (value, times) = (u128::from(value), u128::from(times));
        self.sum += value * times;
        self.squares = self.squares.wrapping_add((value * value).wrapping_mul(times));
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Arithmetic mean; `None` of nothing.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum as f64 / self.count as f64)
    }

    /// Population standard deviation; `None` of nothing.
    ///
    /// About the whole part m of the mean: Σ (v - m)² = Σ v² - 2 m Σ v + n m², in integers modulo
    /// 2¹²⁸, which that sum does not reach unless values spread over days.
    pub fn std_dev(&self) -> Option<f64> {
        let n = u128::from(self.count);
        let m = self.sum.checked_div(n)?;
        let rest = (self.sum - m * n) as f64 / n as f64;
        let about_m = self
            .squares
            .wrapping_sub(m.wrapping_mul(self.sum).wrapping_mul(2))
            .wrapping_add(n.wrapping_mul(m.wrapping_mul(m)));
        Some((about_m as f64 / n as f64 - rest * rest).max(0.0).sqrt())
    }

    /// The `q` quantile (0 to 1), interpolated as [`super::quantile_sorted`] does; `None` of nothing.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let last = self.count.checked_sub(1)?;
        let position = q.clamp(0.0, 1.0) * last as f64;
        let below = (position.floor() as u64).min(last);
        let (low, high) = (self.nth(below), self.nth((below + 1).min(last)));
        Some(low + (high - low) * (position - below as f64))
    }

    /// The quantiles 0, 1 / (points - 1), … 1; empty of nothing.
    pub fn quantiles(&self, points: usize) -> Vec<f64> {
        let whole = points.saturating_sub(1).max(1) as f64;
        (0..points).filter_map(|i| self.quantile(i as f64 / whole)).collect()
    }

    /// About the value with `rank` smaller ones.
    fn nth(&self, rank: u64) -> f64 {
        if rank == 0 {
            return self.min as f64;
        }
        if rank + 1 >= self.count {
            return self.max as f64;
        }
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen > rank {
                return middle(at).clamp(self.min, self.max) as f64;
            }
        }
        self.max as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats;
    use proptest::prelude::*;

    fn sketch(values: &[u64]) -> Sketch {
        let mut sketch = Sketch::default();
        values.iter().for_each(|v| sketch.add(*v));
        sketch
    }

    #[test]
    fn small_values_are_exact() {
        let s = sketch(&[1, 2, 4, 8]);
        assert_eq!(
            (s.quantile(0.0), s.quantile(0.5), s.quantile(1.0)),
            (Some(1.0), Some(3.0), Some(8.0))
        );
        assert_eq!((s.count(), s.mean()), (4, Some(3.75)));
        // ((2.75² + 1.75² + 0.25² + 4.25²) / 4)½
        assert!((s.std_dev().unwrap() - 2.680_951_323_690_902).abs() < 1e-12);
        assert_eq!(s.quantiles(3), vec![1.0, 3.0, 8.0]);
    }

    #[test]
    fn nothing_has_no_quantiles() {
        let s = Sketch::default();
        assert_eq!((s.quantile(0.5), s.mean(), s.std_dev()), (None, None, None));
        assert_eq!(s.quantiles(101), Vec::<f64>::new());
    }

    #[test]
    fn buckets_join_without_gap_and_memory_is_bounded() {
        let mut previous = 0;
        for value in 0..100_000_u64 {
            let at = bucket(value);
            assert!(at == previous || at == previous + 1, "{value}");
            assert!(middle(at).abs_diff(value) as f64 <= RELATIVE_ERROR * value as f64, "{value}");
            previous = at;
        }
        assert_eq!(bucket(u64::MAX), 56_319);
        assert_eq!(sketch(&[0, u64::MAX]).quantile(1.0), Some(u64::MAX as f64));
    }

    #[test]
    fn the_deviation_of_close_values_far_from_zero_is_kept() {
        let s = sketch(&[1_000_000_000_000, 1_000_000_000_002]);
        assert_eq!(s.std_dev(), Some(1.0));
    }

    proptest! {
        #[test]
        fn the_order_makes_no_difference(
            values in prop::collection::vec((any::<u64>(), 1u64..9), 1..50)
        ) {
            let (mut once, mut one_by_one) = (Sketch::default(), Sketch::default());
            for (value, times) in &values {
                once.add_times(*value, *times);
            }
            for (value, times) in values.iter().rev() {
                (0..*times).for_each(|_| one_by_one.add(*value));
            }
            prop_assert_eq!(once, one_by_one);
        }

        #[test]
        fn quantiles_are_within_the_stated_error(
            values in prop::collection::vec(prop_oneof![0u64..5000, 0u64..1_000_000_000_000], 1..300),
            q in 0.0..=1.0f64,
        ) {
            let s = sketch(&values);
            let mut sorted: Vec<f64> = values.iter().map(|v| *v as f64).collect();
            sorted.sort_by(f64::total_cmp);
            let exact = stats::quantile_sorted(&sorted, q).unwrap();
            prop_assert!((s.quantile(q).unwrap() - exact).abs() <= RELATIVE_ERROR * exact + 1e-9);
            prop_assert!((s.mean().unwrap() - stats::mean(&sorted).unwrap()).abs() <= 1e-9 * exact.max(1e12));
            let std = stats::std_dev(&sorted).unwrap();
            prop_assert!((s.std_dev().unwrap() - std).abs() <= 1e-6 * (1.0 + std));
        }
    }
}
