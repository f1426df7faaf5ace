//! Buckets as neuronx-distributed-inference makes them: powers of two from the smallest to, not
//! including, the one that the largest rounds to in log scale, then the largest itself. Python's
//! `round` takes halves to the even number. Source: its modules/autobucketing.py.

/// The smallest bucket.
pub const SMALLEST: u64 = 128;

/// The buckets from `min` to `max` tokens, ascending; one where they are equal.
pub fn between(min: u64, max: u64) -> Vec<u64> {
    if max <= min {
        return vec![max];
    }
    let from = min.max(1).ilog2();
    let to = (max as f64).log2().round_ties_even() as u32;
    let mut buckets: Vec<u64> = (from..to).map(|i| 1 << i).collect();
    buckets.push(max);
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_takes_the_place_of_the_power_that_it_rounds_to() {
        assert_eq!(between(128, 2048), [128, 256, 512, 1024, 2048]);
        assert_eq!(between(128, 1500), [128, 256, 512, 1024, 1500]);
        assert_eq!(between(128, 1400), [128, 256, 512, 1400]);
        assert_eq!(between(128, 128), [128]);
        assert_eq!(between(128, 100), [100]);
        assert_eq!(between(128, 130), [130]);
    }
}
