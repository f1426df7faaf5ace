//! Overload, told from a queue that keeps growing.
//!
//! Above its capacity a configuration falls behind by a fixed share of all arrivals, so the queue grows
//! in proportion to time; below, it comes and goes. Objectives that do not see the queue (time between
//! tokens) or that are loose would let an overloaded run pass when it is only short enough. So the mean
//! number of waiting requests is taken in windows of equally many arrivals, and growth counts as
//! overload when it is steady and larger than chance makes it.

/// Windows in which the mean number of waiting requests is taken.
const WINDOWS: usize = 16;
/// Growth that ends a run before its last arrival: so many windows in a row, each higher than the one
/// before. Independent windows do so once in 8! = 40,320 times.
const EARLY_WINDOWS: usize = 8;
/// And by so much of the arrivals in these windows.
const EARLY_SHARE: f64 = 0.05;
/// Fewest arrivals in a window for a run to be ended early.
const EARLY_ARRIVALS: usize = 30;

/// Mean number of waiting requests, as arriving requests find it, in windows.
#[derive(Clone, Debug)]
pub struct QueueGrowth {
    expected: usize,
    seen: usize,
    sum: u64,
    in_window: usize,
    means: Vec<f64>,
    tolerance: f64,
}

impl QueueGrowth {
    /// For `expected` arrivals. Up to their end the queue may grow by the share `tolerance` of them.
    pub fn new(expected: usize, tolerance: f64) -> Self {
        QueueGrowth {
            expected,
            seen: 0,
            sum: 0,
            in_window: 0,
            means: Vec::with_capacity(WINDOWS),
            tolerance,
        }
    }

    /// A request arrives and finds `waiting` others. Says whether this is overload.
    pub fn arrival(&mut self, waiting: u64) -> bool {
        self.seen += 1;
        self.sum += waiting;
        self.in_window += 1;
        let end_of_window = (self.means.len() + 1) * self.expected / WINDOWS;
        if self.seen < end_of_window || self.means.len() == WINDOWS {
            return false;
        }
        self.means.push(self.sum as f64 / self.in_window.max(1) as f64);
        (self.sum, self.in_window) = (0, 0);
        if self.means.len() == WINDOWS { self.grew() } else { self.surely_grows() }
    }

    /// Steady growth in the last windows, far beyond the tolerance.
    fn surely_grows(&self) -> bool {
        let per_window = self.expected / WINDOWS;
        let Some(from) = self.means.len().checked_sub(EARLY_WINDOWS) else { return false };
        let last = &self.means[from..];
        let (Some(first), Some(end)) = (last.first(), last.last()) else { return false };
        let arrivals = ((EARLY_WINDOWS - 1) * per_window) as f64;
        per_window >= EARLY_ARRIVALS
            && last.windows(2).all(|pair| matches!(pair, [a, b] if a < b))
            && end - first > EARLY_SHARE.max(self.tolerance) * arrivals
    }

    /// Growth from quarter to quarter, beyond the tolerance.
    fn grew(&self) -> bool {
        let quarters: Vec<f64> = self
            .means
            .chunks(WINDOWS / 4)
            .map(|windows| windows.iter().sum::<f64>() / windows.len() as f64)
            .collect();
        let (Some(first), Some(last)) = (quarters.first(), quarters.last()) else { return false };
        let arrivals = 0.75 * self.expected as f64;
        quarters.windows(2).all(|pair| matches!(pair, [a, b] if a < b))
            && last - first > self.tolerance * arrivals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Arrivals seen until overload is told, for a queue of so many at arrival i.
    fn told(n: usize, waiting: impl Fn(usize) -> u64) -> Option<usize> {
        let mut growth = QueueGrowth::new(n, 0.02);
        (0..n).find(|i| growth.arrival(waiting(*i)))
    }

    #[test]
    fn a_queue_that_grows_by_a_tenth_of_the_arrivals_ends_the_run_half_way() {
        assert_eq!(told(1600, |i| (i / 10) as u64), Some(799));
    }

    #[test]
    fn a_slow_steady_growth_is_told_at_the_end() {
        assert_eq!(told(1600, |i| (i / 33) as u64), Some(1599));
        assert_eq!(told(1600, |i| (i / 100) as u64), None, "1 % is within the tolerance");
    }

    #[test]
    fn a_queue_that_comes_and_goes_is_none() {
        assert_eq!(told(1600, |i| if (i / 200) % 2 == 0 { 300 } else { 5 }), None);
        assert_eq!(told(1600, |_| 1000), None, "a long queue that does not grow");
        assert_eq!(told(3, |i| i as u64 * 100), None, "too few arrivals to say");
    }
}
