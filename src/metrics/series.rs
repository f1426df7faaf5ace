//! The course of a level over time in fixed memory.

/// Points that a series has at most.
const POINTS: usize = 512;

/// Intervals are this wide at first: a millisecond.
const NARROWEST_NS: u64 = 1_000_000;

/// Events counted in equal intervals from time zero, told in any order. When one falls past the
/// last interval, neighbours are joined and the intervals become twice as wide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    width_ns: u64,
    counts: Vec<u64>,
}

impl Default for Counts {
    fn default() -> Self {
        Counts { width_ns: NARROWEST_NS, counts: Vec::new() }
    }
}

impl Counts {
    /// `events` more at `at`, in nanoseconds.
    pub fn add(&mut self, at: u64, events: u64) {
        while at / self.width_ns >= POINTS as u64 {
            self.counts = self.counts.chunks(2).map(|pair| pair.iter().sum()).collect();
            self.width_ns = self.width_ns.saturating_mul(2);
        }
        let at = (at / self.width_ns) as usize;
        if at >= self.counts.len() {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] += events;
    }

    /// The end of each interval in seconds, and all events before it.
    pub fn sums(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.counts.iter().zip(1_u64..).scan(0, |sum, (count, end)| {
            *sum += count;
            Some((self.width_ns.saturating_mul(end) as f64 / 1e9, *sum))
        })
    }
}

/// Mean and maximum of a level in equal intervals from time zero. When time runs past the last
/// interval, neighbours are joined and the intervals become twice as wide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    width_ns: u64,
    /// Level times nanoseconds, and the highest level.
    points: Vec<(u128, u32)>,
    end_ns: u64,
}

/// One interval of a [`Series`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Where the interval begins, seconds.
    pub start_s: f64,
    /// Mean level in it.
    pub mean: f64,
    /// Highest level in it.
    pub max: u32,
}

impl Default for Series {
    fn default() -> Self {
        Series { width_ns: NARROWEST_NS, points: Vec::new(), end_ns: 0 }
    }
}

impl Series {
    /// The level was `level` from `from` to `to`, in nanoseconds; `from` is where the last one ended.
    pub fn add(&mut self, from: u64, to: u64, level: u32) {
        while to / self.width_ns >= POINTS as u64 {
            let join =
                |pair: &[(u128, u32)]| pair.iter().fold((0, 0), |a, b| (a.0 + b.0, a.1.max(b.1)));
            self.points = self.points.chunks(2).map(join).collect();
            self.width_ns = self.width_ns.saturating_mul(2);
        }
        let last = (to / self.width_ns) as usize;
        if last >= self.points.len() {
            self.points.resize(last + 1, (0, 0));
        }
        let first = (from / self.width_ns) as usize;
        for (at, point) in self.points.iter_mut().enumerate().take(last + 1).skip(first) {
            let start = at as u64 * self.width_ns;
            let held = to.min(start.saturating_add(self.width_ns)).saturating_sub(from.max(start));
            if held > 0 {
                point.0 += u128::from(level) * u128::from(held);
                point.1 = point.1.max(level);
            }
        }
        self.end_ns = to;
    }

    /// Where the last level ended, seconds.
    pub fn end_s(&self) -> f64 {
        self.end_ns as f64 * 1e-9
    }

    /// The intervals, the last one as long as it lasted.
    pub fn points(&self) -> impl Iterator<Item = Point> + '_ {
        self.points.iter().enumerate().filter_map(|(at, (area, max))| {
            let start = at as u64 * self.width_ns;
            let held = self.end_ns.saturating_sub(start).min(self.width_ns);
            let mean = *area as f64 / held as f64;
            (held > 0).then_some(Point { start_s: start as f64 * 1e-9, mean, max: *max })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_level_is_spread_over_the_intervals_it_lasts() {
        let mut s = Series::default();
        s.add(0, 1_500_000, 2);
        s.add(1_500_000, 3_000_000, 4);
        let points: Vec<Point> = s.points().collect();
        assert_eq!(points.iter().map(|p| p.mean).collect::<Vec<_>>(), [2.0, 3.0, 4.0]);
        assert_eq!(points.iter().map(|p| p.max).collect::<Vec<_>>(), [2, 4, 4]);
        assert_eq!(points[2].start_s, 0.002);
    }

    #[test]
    fn events_are_counted_in_whatever_order_they_are_told() {
        let mut counts = Counts::default();
        for (ms, events) in [(600, 2), (0, 1), (999, 4), (1, 8)] {
            counts.add(ms * 1_000_000, events);
        }
        // Twice as wide than at first.
        let sums: Vec<(f64, u64)> = counts.sums().collect();
        assert_eq!((sums.len(), sums[0], sums[299]), (500, (0.002, 9), (0.6, 9)));
        assert_eq!((sums[300].1, sums[499]), (11, (1.0, 15)));
    }

    proptest! {
        #[test]
        fn memory_is_fixed_and_the_area_is_kept(
            steps in prop::collection::vec((1u64..20_000_000_000, 0u32..100), 1..60)
        ) {
            let mut s = Series::default();
            let (mut now, mut area) = (0, 0);
            for (held, level) in steps {
                s.add(now, now + held, level);
                now += held;
                area += u128::from(held) * u128::from(level);
            }
            prop_assert_eq!(s.points.iter().map(|p| p.0).sum::<u128>(), area);
            prop_assert!(s.points.len() <= POINTS);
        }
    }
}
