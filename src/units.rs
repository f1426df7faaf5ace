//! Simulated time. Integer nanoseconds everywhere in the simulator; floating-point milliseconds
//! live in `dataset`, `stats` and `predictor`, and [`SimDuration::from_ms`] is the one way across.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};

/// A point in simulated time: nanoseconds since the simulation began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SimTime(u64);

/// A span of simulated time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SimDuration(u64);

impl SimTime {
    /// When the simulation begins.
    pub const ZERO: SimTime = SimTime(0);
    /// Later than anything that happens.
    pub const NEVER: SimTime = SimTime(u64::MAX);

    /// The time `ns` nanoseconds after the beginning.
    pub const fn from_ns(ns: u64) -> Self {
        SimTime(ns)
    }

    /// Rounds seconds to the nearest nanosecond; `None` if negative, not finite or past the range (584 years).
    pub fn from_seconds(seconds: f64) -> Option<Self> {
        ns_from(seconds * 1e9).map(SimTime)
    }

    /// Nanoseconds since the beginning.
    pub const fn as_ns(self) -> u64 {
        self.0
    }

    /// Seconds since the beginning.
    pub fn as_seconds(self) -> f64 {
        self.0 as f64 * 1e-9
    }

    /// The span from `earlier` to here; zero if `earlier` is later.
    pub const fn since(self, earlier: SimTime) -> SimDuration {
        SimDuration(self.0.saturating_sub(earlier.0))
    }
}

impl SimDuration {
    /// No time at all.
    pub const ZERO: SimDuration = SimDuration(0);

    /// A span of `ns` nanoseconds.
    pub const fn from_ns(ns: u64) -> Self {
        SimDuration(ns)
    }

    /// Milliseconds to nanoseconds, rounded to nearest. Predicted times are non-negative (a
    /// postcondition of `predictor`); what is not, counts as zero, and what does not fit as the most
    /// that does, which no run survives ([`crate::sim::SimError::TooLong`]).
    pub fn from_ms(ms: f64) -> Self {
        // The cast saturates, and turns NaN into 0.
        SimDuration((ms * 1e6).round() as u64)
    }

    /// Milliseconds as whole nanoseconds, cut, and what was cut off in units of 2⁻³² ns: so that
    /// many steps of the same length can be added up without the error growing with their number.
    pub fn split_ms(ms: f64) -> (Self, u32) {
        let ns = (ms * 1e6).max(0.0);
        if ns >= u64::MAX as f64 {
            return (SimDuration(u64::MAX), 0);
        }
        (SimDuration(ns as u64), (ns.fract() * (1_u64 << 32) as f64) as u32)
    }

    /// Rounds seconds to the nearest nanosecond; `None` if negative, not finite or out of range.
    pub fn from_seconds(seconds: f64) -> Option<Self> {
        ns_from(seconds * 1e9).map(SimDuration)
    }

    /// Nanoseconds.
    pub const fn as_ns(self) -> u64 {
        self.0
    }

    /// Milliseconds.
    pub fn as_ms(self) -> f64 {
        self.0 as f64 * 1e-6
    }

    /// Seconds.
    pub fn as_seconds(self) -> f64 {
        self.0 as f64 * 1e-9
    }
}

/// `None` unless `ns` is finite, non-negative and fits into 64 bits.
fn ns_from(ns: f64) -> Option<u64> {
    (ns.is_finite() && ns >= 0.0 && ns < u64::MAX as f64).then(|| ns.round() as u64)
}

impl Add<SimDuration> for SimTime {
    type Output = SimTime;
    fn add(self, d: SimDuration) -> SimTime {
        SimTime(self.0.saturating_add(d.0))
    }
}

impl Add for SimDuration {
    type Output = SimDuration;
    fn add(self, d: SimDuration) -> SimDuration {
        SimDuration(self.0.saturating_add(d.0))
    }
}

impl Sub for SimDuration {
    type Output = SimDuration;
    fn sub(self, d: SimDuration) -> SimDuration {
        SimDuration(self.0.saturating_sub(d.0))
    }
}

impl AddAssign for SimDuration {
    fn add_assign(&mut self, d: SimDuration) {
        *self = *self + d;
    }
}

impl Sum for SimDuration {
    fn sum<I: Iterator<Item = SimDuration>>(iter: I) -> Self {
        iter.fold(SimDuration::ZERO, Add::add)
    }
}

impl fmt::Display for SimTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6} s", self.as_seconds())
    }
}

impl fmt::Display for SimDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6} ms", self.as_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_round_to_the_nearest_nanosecond() {
        assert_eq!(SimDuration::from_ms(1.000_000_4).as_ns(), 1_000_000);
        assert_eq!(SimDuration::from_ms(1.000_000_6).as_ns(), 1_000_001);
        assert_eq!(SimDuration::from_ms(f64::NAN), SimDuration::ZERO);
        assert_eq!(SimDuration::from_ms(-1.0), SimDuration::ZERO);
        assert_eq!(SimDuration::from_ms(1e300).as_ns(), u64::MAX);
    }

    #[test]
    fn what_is_cut_off_is_kept() {
        assert_eq!(SimDuration::split_ms(1.000_000_5), (SimDuration::from_ns(1_000_000), 1 << 31));
        assert_eq!(SimDuration::split_ms(f64::NAN), (SimDuration::ZERO, 0));
        assert_eq!(SimDuration::split_ms(1e300), (SimDuration::from_ns(u64::MAX), 0));
        assert_eq!(SimDuration::split_ms(-1.0), (SimDuration::ZERO, 0));
    }

    #[test]
    fn seconds_that_are_no_time_are_refused() {
        assert_eq!(SimTime::from_seconds(0.866_366).map(SimTime::as_ns), Some(866_366_000));
        assert_eq!(SimTime::from_seconds(-0.1), None);
        assert_eq!(SimTime::from_seconds(f64::INFINITY), None);
        assert_eq!(SimTime::from_seconds(1e12), None);
    }

    #[test]
    fn sums_saturate_instead_of_wrapping() {
        assert_eq!(SimTime::NEVER + SimDuration::from_ns(1), SimTime::NEVER);
        assert_eq!(SimTime::from_ns(3).since(SimTime::from_ns(5)), SimDuration::ZERO);
    }
}
