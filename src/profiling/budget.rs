//! When to stop, and how estimates compare with what shapes really took.

use std::time::Duration;

/// The end of a run, and what its estimates are worth.
pub struct Budget {
    end: Option<Duration>,
    /// Estimates of the shapes measured so far, in seconds, and what they took. They start at a
    /// second each: the first few cheap shapes say little about the dear ones.
    estimated_s: f64,
    actual_s: f64,
}

impl Budget {
    /// Until the clock shows `end`; `None` is for ever.
    pub fn new(end: Option<Duration>) -> Budget {
        Budget { end, estimated_s: 1.0, actual_s: 1.0 }
    }

    /// When one of `parts` even parts of what is left at `now` ends.
    pub fn share(&self, now: Duration, parts: u32) -> Option<Duration> {
        self.end.map(|end| now + end.saturating_sub(now) / parts.max(1))
    }

    /// `estimate`, scaled by what earlier shapes took.
    pub fn corrected(&self, estimate: Duration) -> Duration {
        let seconds = estimate.as_secs_f64() * self.actual_s / self.estimated_s;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// A shape of this estimate took `actual`.
    pub fn learn(&mut self, estimate: Duration, actual: Duration) {
        self.estimated_s += estimate.as_secs_f64();
        self.actual_s += actual.as_secs_f64();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_follow_what_shapes_took() {
        let mut budget = Budget::new(None);
        let second = Duration::from_secs(1);
        assert_eq!(budget.corrected(second), second);
        budget.learn(99 * second, 199 * second);
        assert_eq!(budget.corrected(second), 2 * second);
        assert_eq!(budget.corrected(Duration::MAX), Duration::MAX);
    }

    #[test]
    fn shares_are_even_and_none_is_left_after_the_end() {
        let second = Duration::from_secs(1);
        let budget = Budget::new(Some(10 * second));
        assert_eq!(budget.share(4 * second, 3), Some(6 * second));
        assert_eq!(budget.share(12 * second, 2), Some(12 * second));
        assert_eq!(Budget::new(None).share(second, 2), None);
    }
}
