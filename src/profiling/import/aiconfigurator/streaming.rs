//! Operators that only move data (norms, rotary embedding, activation), which the package does not
//! time: from the kernel of its tables that does nothing else, the static quantisation of a matrix from
//! 16 to 8 bits. Its time as a function of the bytes that it moves, launch included, is taken for them.
//! That is the device's bandwidth as measured: it rises with size, exceeds that of the memory while the
//! data fit into the cache, and ends at about 0.9 of the data sheet.

/// Time by bytes moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Streaming {
    /// `(bytes, ms)`, both ascending.
    knots: Vec<(f64, f64)>,
}

/// Bytes that quantising one element moves: 2 in, 1 out.
const BYTES_PER_ELEMENT: f64 = 3.0;
/// Knots per doubling of the bytes.
const PER_DOUBLING: f64 = 2.0;

impl Streaming {
    /// From `(m, k, ms)` of several engines' kernels: at each size the fastest. `None` of none.
    pub fn new(measured: impl IntoIterator<Item = (u32, u32, f64)>) -> Option<Streaming> {
        let mut points: Vec<(f64, f64)> = measured
            .into_iter()
            .filter(|p| p.2 > 0.0)
            .map(|(m, k, ms)| (BYTES_PER_ELEMENT * f64::from(m) * f64::from(k), ms))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let bucket = |bytes: f64| (bytes.log2() * PER_DOUBLING).round();
        let mut knots: Vec<(f64, f64)> = Vec::new();
        for near in points.chunk_by(|a, b| bucket(a.0) == bucket(b.0)) {
            // Shapes of one size differ by a few tenths of a microsecond: the middle of the fast half.
            let mut times: Vec<f64> = near.iter().map(|p| p.1 / p.0).collect();
            times.sort_by(f64::total_cmp);
            let bytes = near.iter().map(|p| p.0).sum::<f64>() / near.len() as f64;
            let ms = times[times.len() / 4] * bytes;
            // More bytes take no less time.
            let least = knots.last().map_or(0.0, |k| k.1);
            knots.push((bytes, ms.max(least)));
        }
        (!knots.is_empty()).then_some(Streaming { knots })
    }

    /// Milliseconds to move `bytes`.
    pub fn ms(&self, bytes: f64) -> f64 {
        let after = self.knots.partition_point(|k| k.0 <= bytes);
        let before = after.checked_sub(1).and_then(|i| self.knots.get(i));
        match (before, self.knots.get(after)) {
            (Some(a), Some(b)) => a.1 + (b.1 - a.1) * ((bytes - a.0) / (b.0 - a.0)),
            (Some(last), None) => last.1 * bytes / last.0,
            (None, Some(first)) => first.1,
            (None, None) => 0.0,
        }
    }

    /// Bytes per second at the largest size measured.
    pub fn bandwidth(&self) -> f64 {
        self.knots.last().map_or(0.0, |(bytes, ms)| bytes / ms * 1e3)
    }

    /// Milliseconds of the least work: a launch.
    pub fn launch_ms(&self) -> f64 {
        self.knots.first().map_or(0.0, |k| k.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_follows_the_bytes_beyond_a_launch() {
        let ms = |bytes: f64| 0.002 + bytes / 3e9;
        let sizes = [(1, 1024), (16, 1024), (256, 1024), (4096, 1024), (4096, 16384)];
        let points = sizes.map(|(m, k)| (m, k, ms(3.0 * f64::from(m) * f64::from(k))));
        let streaming = Streaming::new(points).unwrap();
        let middle = 3.0 * 1024.0 * 136.0;
        assert!((streaming.ms(middle) / ms(middle) - 1.0).abs() < 1e-12);
        assert_eq!(streaming.ms(1.0), streaming.launch_ms());
        let most = 3.0 * 4096.0 * 16384.0;
        assert!((streaming.ms(2.0 * most) / (2.0 * ms(most)) - 1.0).abs() < 1e-12);
        assert!(Streaming::new([]).is_none());
    }

    #[test]
    fn a_slower_kernel_of_the_same_size_does_not_count() {
        let fast = Streaming::new([(64, 1024, 0.002)]).unwrap();
        let both = Streaming::new([(64, 1024, 0.002), (64, 1024, 0.009)]).unwrap();
        assert_eq!(fast, both);
    }
}
