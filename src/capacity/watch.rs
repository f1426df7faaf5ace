//! Objectives under watch while a simulation runs: each knows how many values may miss its limit, so
//! that a run can stop as soon as no later value could change the answer.

use super::slo::{Measured, Statistic, Term};
use crate::metrics::{Figure, Slo};
use crate::units::SimDuration;

/// One objective and what has missed it.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The objective.
    pub term: Term,
    /// Its limit in nanoseconds; of goodput 0.
    limit_ns: u64,
    /// Values above the limit with which the objective can still be met.
    allowed: u64,
    /// Values above the limit so far; of a mean, their sum in nanoseconds.
    missed: u128,
    /// Requests before this one that arrived too long ago have been counted, whether or not their
    /// value is known.
    pub overdue: usize,
}

impl Watch {
    /// The watch of `term` over `requests` requests of which `several` have more than one output
    /// token, with `gaps` gaps between tokens.
    pub fn new(term: &Term, requests: u64, several: u64, gaps: u64) -> Watch {
        let mut watch =
            Watch { term: term.clone(), limit_ns: 0, allowed: 0, missed: 0, overdue: 0 };
        match term {
            Term::Good { percent, .. } => {
                // Met with `percent` of all and more.
                let least = (percent / 100.0 * requests as f64 - 1e-9).ceil().max(0.0) as u64;
                watch.allowed = requests.saturating_sub(least);
            }
            Term::Bound { measured, statistic, limit_ms } => {
                watch.limit_ns = SimDuration::from_ms(*limit_ms).as_ns();
                let n = match measured {
                    Measured::Gaps => gaps,
                    Measured::Request(Figure::Tpot) => several,
                    Measured::Request(_) => requests,
                };
                watch.allowed = match statistic {
                    // The quantile lies between the order statistics at and above q (n - 1): when the
                    // lower one misses the limit, so does the quantile.
                    Statistic::Quantile(q) => {
                        let last = n.saturating_sub(1);
                        last - ((q * last as f64).floor() as u64).min(last)
                    }
                    Statistic::Mean => n,
                };
            }
        }
        watch
    }

    /// Whether a mean is watched.
    fn is_mean(&self) -> bool {
        matches!(self.term, Term::Bound { statistic: Statistic::Mean, .. })
    }

    /// Whether this watch is on `measured`.
    pub fn is_on(&self, measured: Measured) -> bool {
        matches!(self.term, Term::Bound { measured: own, .. } if own == measured)
    }

    /// The limits of goodput.
    pub fn good(&self) -> Option<&Slo> {
        match &self.term {
            Term::Good { slo, .. } => Some(slo),
            Term::Bound { .. } => None,
        }
    }

    /// `times` values of `ns` nanoseconds; not those of requests that were counted as overdue.
    pub fn value(&mut self, ns: u64, times: u64) {
        if self.is_mean() {
            self.missed += u128::from(ns) * u128::from(times);
        } else if ns > self.limit_ns {
            self.missed += u128::from(times);
        }
    }

    /// One value that is above the limit, however large it becomes.
    pub fn miss(&mut self) {
        if !self.is_mean() {
            self.missed += 1;
        }
    }

    /// Waiting time beyond which a request has missed the limit; `None` where time alone does not tell.
    pub fn deadline_ns(&self) -> Option<u64> {
        match &self.term {
            Term::Bound {
                measured: Measured::Request(Figure::Ttft | Figure::E2e | Figure::Queueing),
                statistic: Statistic::Quantile(_),
                ..
            } => Some(self.limit_ns),
            _ => None,
        }
    }

    /// Whether the objective cannot be met any more.
    pub fn is_lost(&self) -> bool {
        if self.is_mean() {
            return self.missed > u128::from(self.limit_ns) * u128::from(self.allowed);
        }
        self.missed > u128::from(self.allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(statistic: Statistic, n: u64) -> Watch {
        let measured = Measured::Request(Figure::Ttft);
        Watch::new(&Term::Bound { measured, statistic, limit_ms: 1.0 }, n, n, n)
    }

    #[test]
    fn a_quantile_is_lost_when_its_lower_neighbour_is() {
        // P90 of 11 values is the 10th: one may miss, two may not.
        let mut w = watch(Statistic::Quantile(0.9), 11);
        w.value(1_000_000, 100);
        w.value(1_000_001, 1);
        assert!(!w.is_lost());
        w.miss();
        assert!(w.is_lost());
    }

    #[test]
    fn a_mean_is_lost_when_the_sum_is() {
        let mut w = watch(Statistic::Mean, 3);
        w.value(3_000_000, 1);
        assert!(!w.is_lost());
        w.value(1, 1);
        assert!(w.is_lost());
    }

    #[test]
    fn goodput_is_a_share_that_is_met_exactly() {
        let slo = Slo { ttft_ms: Some(1.0), ..Slo::default() };
        let mut w = Watch::new(&Term::Good { percent: 90.0, slo }, 20, 20, 0);
        w.miss();
        w.miss();
        assert!(!w.is_lost(), "18 of 20 are 90 %");
        w.miss();
        assert!(w.is_lost());
    }
}
