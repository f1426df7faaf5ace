//! Matrix products: times on a grid of (m, n, k), and between its lines.
//!
//! Every m of the grid becomes a row of the profile; n and k of a model mostly lie between grid lines.
//! Between four neighbours times are interpolated linearly in n and in k: the work is proportional to
//! both, so what deviates from linear is how well the kernel fits the shape, which nothing between
//! two lines tells. Beyond the largest n (vocabularies) the time grows in proportion.
//! Some times are no kernel's: single points 10 to 20 µs above their neighbours (10 % of the fp8 products of
//! vLLM 0.24.0 on B200, 1 to 3 % of those on H100). A time more than a quarter above that of a product
//! with more rows is replaced by the least of the next four sizes: the engine could have padded.
//!
//! [`Grid::held_out`] leaves out every inner line in turn and says how far off its neighbours put it.

use std::collections::BTreeMap;

/// Lines of the grid below which shapes are no part of a language model's layer, and held-out errors
/// would be those of launches.
const LEAST_SIZE: u32 = 1024;

/// A time so many times that of a product with more rows is an outlier. Kernels chosen badly for one
/// size stay below it (1.18 for 4096 x 65536 in bf16 on H100), outliers are 1.3 to 3.
const OUTLIER: f64 = 1.25;
/// Next larger sizes of m that a time is compared with.
const NEXT_SIZES: usize = 4;

/// Times of one number format.
#[derive(Clone, Debug, Default)]
pub struct Grid {
    m: Vec<u32>,
    /// Lines of both n and k.
    size: Vec<u32>,
    /// Milliseconds by `(m, n, k)`; NaN where not measured.
    ms: Vec<f64>,
    replaced: usize,
}

/// Held-out errors, as shares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOut {
    /// Points that were held out.
    pub points: usize,
    /// Median of the absolute errors.
    pub median: f64,
    /// Mean of the absolute errors.
    pub mean: f64,
    /// Mean of the errors.
    pub bias: f64,
}

/// A time at one m.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct At {
    /// Rows of the input.
    pub m: u32,
    /// Milliseconds.
    pub ms: f64,
}

impl Grid {
    /// From `(m, n, k, ms)`; the mean of what was measured more than once.
    pub fn new(points: &[(u32, u32, u32, f64)]) -> Grid {
        let lines = |values: Vec<u32>| {
            let mut values = values;
            values.sort_unstable();
            values.dedup();
            values
        };
        let m = lines(points.iter().map(|p| p.0).collect());
        let size = lines(points.iter().flat_map(|p| [p.1, p.2]).collect());
        let ms = vec![f64::NAN; m.len() * size.len() * size.len()];
        let mut grid = Grid { ms, m, size, replaced: 0 };
        let mut counts: BTreeMap<usize, f64> = BTreeMap::new();
        for &(m, n, k, ms) in points {
            let (Ok(m), Ok(n), Ok(k)) = (
                grid.m.binary_search(&m),
                grid.size.binary_search(&n),
                grid.size.binary_search(&k),
            ) else {
                continue;
            };
            let at = grid.index(m, n, k);
            let count = counts.entry(at).or_default();
            let before = if *count > 0.0 { grid.ms[at] } else { 0.0 };
            *count += 1.0;
            grid.ms[at] = before + (ms - before) / *count;
        }
        grid.replace_outliers();
        grid
    }

    fn replace_outliers(&mut self) {
        let lines = self.size.len();
        for (n, k) in (0..lines).flat_map(|n| (0..lines).map(move |k| (n, k))) {
            // From the largest down, so that what a time is compared with is sound already.
            for m in (0..self.m.len()).rev() {
                let larger = (m + 1..self.m.len()).filter_map(|l| self.at(l, n, k));
                let least = larger.take(NEXT_SIZES).fold(f64::INFINITY, f64::min);
                if self.at(m, n, k).is_some_and(|ms| ms > OUTLIER * least) {
                    let at = self.index(m, n, k);
                    self.ms[at] = least;
                    self.replaced += 1;
                }
            }
        }
    }

    /// Times that were outliers, and the number of all.
    pub fn replaced(&self) -> (usize, usize) {
        (self.replaced, self.ms.iter().filter(|ms| ms.is_finite()).count())
    }

    fn index(&self, m: usize, n: usize, k: usize) -> usize {
        (m * self.size.len() + n) * self.size.len() + k
    }

    fn at(&self, m: usize, n: usize, k: usize) -> Option<f64> {
        self.ms.get(self.index(m, n, k)).copied().filter(|ms| ms.is_finite())
    }

    /// Whether (n, k) lies on grid lines: nothing is interpolated.
    pub fn is_measured(&self, n: u64, k: u64) -> bool {
        let on = |v: u64| u32::try_from(v).is_ok_and(|v| self.size.binary_search(&v).is_ok());
        on(n) && on(k)
    }

    /// The time of a `[m, k] x [k, n]` product at every m of the grid where its neighbours were
    /// measured, by ascending m.
    pub fn times(&self, n: u64, k: u64) -> Vec<At> {
        let (Some(n), Some(k)) = (self.bracket(n), self.bracket(k)) else { return Vec::new() };
        let times = self.m.iter().enumerate().filter_map(|(i, m)| {
            let mut ms = 0.0;
            for (n, n_share) in n {
                for (k, k_share) in k {
                    let share = n_share * k_share;
                    if share != 0.0 {
                        ms += share * self.at(i, n, k)?;
                    }
                }
            }
            Some(At { m: *m, ms })
        });
        times.collect()
    }

    /// Two lines and their shares: of the neighbours of `value`, or of the two outermost lines at the
    /// mean of their rates (a single line is no better a guide than its neighbour), or of the first
    /// line below the range.
    fn bracket(&self, value: u64) -> Option<[(usize, f64); 2]> {
        let last = self.size.len().checked_sub(1)?;
        let v = value as f64;
        let line = |i: usize| f64::from(self.size[i]);
        let after = self.size.partition_point(|s| u64::from(*s) <= value);
        if after == 0 {
            return Some([(0, v / line(0)), (0, 0.0)]);
        }
        let below = after - 1;
        if u64::from(self.size[below]) == value {
            return Some([(below, 1.0), (below, 0.0)]);
        }
        if after > last {
            let before = last.saturating_sub(1);
            return Some([(last, 0.5 * v / line(last)), (before, 0.5 * v / line(before))]);
        }
        let share = (v - line(below)) / (line(after) - line(below));
        Some([(below, 1.0 - share), (after, share)])
    }

    /// How well the neighbours of each inner line of n and of k (from 1024 up) predict it.
    pub fn held_out(&self) -> Option<HeldOut> {
        let first = self.size.partition_point(|s| *s < LEAST_SIZE);
        let mut errors = Vec::new();
        let lines = self.size.len();
        for held in first + 1..lines.saturating_sub(1) {
            let line = |i: usize| f64::from(self.size[i]);
            let share = (line(held) - line(held - 1)) / (line(held + 1) - line(held - 1));
            for m in 0..self.m.len() {
                for other in first..lines {
                    for along_n in [true, false] {
                        let at = |line: usize| {
                            if along_n { self.at(m, line, other) } else { self.at(m, other, line) }
                        };
                        if let (Some(a), Some(want), Some(b)) =
                            (at(held - 1), at(held), at(held + 1))
                        {
                            errors.push((a + (b - a) * share) / want - 1.0);
                        }
                    }
                }
            }
        }
        let absolute: Vec<f64> = errors.iter().map(|e| e.abs()).collect();
        Some(HeldOut {
            points: errors.len(),
            median: crate::stats::median(&absolute)?,
            mean: crate::stats::mean(&absolute)?,
            bias: crate::stats::mean(&errors)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 µs, and 1 ns for each 2^20 multiply-adds.
    fn made_up(m: u32, n: u32, k: u32) -> f64 {
        1e-3 + 1e-6 * f64::from(m) * f64::from(n) * f64::from(k) / f64::from(1 << 20)
    }

    fn grid() -> Grid {
        let sizes = [1024, 2048, 4096, 16384];
        let mut points = Vec::new();
        for m in [1, 64, 1024] {
            for n in sizes {
                for k in sizes {
                    points.push((m, n, k, made_up(m, n, k)));
                }
            }
        }
        Grid::new(&points)
    }

    #[test]
    fn grid_points_are_exact_and_products_linear_in_n_and_k_are_found_between_them() {
        let grid = grid();
        assert!(grid.is_measured(2048, 16384) && !grid.is_measured(2048, 3072));
        for (n, k) in [(2048, 16384), (3072, 4096), (6144, 1536)] {
            for At { m, ms } in grid.times(n, k) {
                let want = made_up(m, n as u32, k as u32);
                assert!((ms / want - 1.0).abs() < 1e-12, "{m} {n} {k}: {ms} {want}");
            }
        }
        assert_eq!(grid.times(3072, 3072).len(), 3);
        let held = grid.held_out().unwrap();
        assert_eq!(held.points, 2 * 2 * 4 * 3);
        assert!(held.mean < 1e-12, "{held:?}");
    }

    #[test]
    fn a_time_far_above_that_of_more_rows_is_replaced_and_counted() {
        let point = |(m, ms): (u32, f64)| (m, 1024, 1024, ms);
        let times =
            [(1, 24.0), (2, 30.0), (4, 10.0), (8, 11.0), (16, 10.5), (32, 12.0), (64, 40.0)];
        let grid = Grid::new(&times.map(point));
        let ms: Vec<f64> = grid.times(1024, 1024).iter().map(|t| t.ms).collect();
        // A tenth above more rows is a kernel's own; the rise to 64 rows is work.
        assert_eq!(ms, [10.0, 10.0, 10.0, 11.0, 10.5, 12.0, 40.0]);
        assert_eq!(grid.replaced(), (2, 7));
    }

    #[test]
    fn beyond_the_grid_time_grows_in_proportion() {
        let grid = Grid::new(&[(1, 1024, 1024, 1.0), (1, 1024, 2048, 2.0), (1, 2048, 1024, 4.0)]);
        // 4096 columns at the mean of 2.0 / 1024 and 1.0 / 1024 a column.
        assert_eq!(grid.times(4096, 1024), [At { m: 1, ms: 0.5 * (4.0 * 2.0 + 1.0 * 4.0) }]);
        assert_eq!(grid.times(512, 1024), [At { m: 1, ms: 0.5 }]);
    }

    #[test]
    fn shapes_without_measured_neighbours_have_no_times() {
        let grid = Grid::new(&[(1, 1024, 1024, 1.0), (1, 1024, 2048, 2.0), (1, 2048, 1024, 4.0)]);
        assert_eq!(grid.times(1536, 1536), []);
        assert_eq!(Grid::default().times(1, 1), []);
        // The mean of what was measured twice.
        let twice = Grid::new(&[(1, 1024, 1024, 1.0), (1, 1024, 1024, 2.0), (1, 1024, 1024, 6.0)]);
        assert_eq!(twice.times(1024, 1024), [At { m: 1, ms: 3.0 }]);
    }
}
