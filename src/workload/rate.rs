//! A workload whose rate can be chosen: the same requests, closer together or further apart.
//!
//! Configurations are compared on common random numbers: whatever the rate, request number i has the
//! same lengths, and the gap before it is the same multiple of the mean gap.

use super::{ArrivalConfig, Workload, WorkloadConfig, WorkloadError};
use crate::rng;
use crate::units::SimTime;

/// Requests that can arrive at any rate.
#[derive(Clone, Debug)]
pub struct RateTemplate {
    config: WorkloadConfig,
    seed: u64,
    base: Workload,
    /// Requests per second of `base`.
    natural: f64,
}

impl WorkloadConfig {
    /// The same workload at `requests_per_s`; `None` where requests do not arrive at a rate.
    /// `natural` is the rate of a trace as it is, see [`RateTemplate::natural_rate`].
    #[must_use]
    pub fn at_rate(&self, requests_per_s: f64, natural: f64) -> Option<WorkloadConfig> {
        let mut config = self.clone();
        match &mut config {
            WorkloadConfig::Trace(trace) => trace.time_scale *= natural / requests_per_s,
            WorkloadConfig::Synthetic(s) => match &mut s.arrivals {
                ArrivalConfig::Poisson { requests_per_s: rate, .. }
                | ArrivalConfig::Gamma { requests_per_s: rate, .. }
                | ArrivalConfig::FixedRate { requests_per_s: rate } => *rate = requests_per_s,
                ArrivalConfig::Trace { requests_per_s: rate, .. } => *rate = Some(requests_per_s),
                ArrivalConfig::AllAtOnce {} | ArrivalConfig::ClosedLoop { .. } => return None,
            },
        }
        Some(config)
    }

    /// The same workload with at most `n` requests.
    #[must_use]
    pub fn with_requests(&self, n: u32) -> WorkloadConfig {
        let mut config = self.clone();
        match &mut config {
            WorkloadConfig::Trace(trace) => {
                trace.num_requests = Some(trace.num_requests.map_or(n, |own| own.min(n)));
            }
            WorkloadConfig::Synthetic(s) => s.num_requests = n,
        }
        config
    }
}

/// Mean rate between the first and the last arrival; `None` where that takes no time.
fn mean_rate(workload: &Workload) -> Option<f64> {
    let (first, last) = (workload.requests.first()?, workload.requests.last()?);
    let seconds = last.arrived_at.since(first.arrived_at).as_seconds();
    (seconds > 0.0).then(|| (workload.requests.len() - 1) as f64 / seconds)
}

impl RateTemplate {
    /// The requests of `config`, drawn as `base` from `seed`.
    ///
    /// # Errors
    /// Where requests do not arrive at a rate: closed-loop clients, or all at once.
    pub fn of(config: &WorkloadConfig, seed: u64, base: Workload) -> Result<Self, WorkloadError> {
        let wrong = |path: &str, message: &str| WorkloadError::Config {
            path: path.to_owned(),
            message: message.to_owned(),
        };
        let own = match config {
            WorkloadConfig::Trace(_) => None,
            WorkloadConfig::Synthetic(s) => match s.arrivals {
                ArrivalConfig::AllAtOnce {} | ArrivalConfig::ClosedLoop { .. } => {
                    return Err(wrong(
                        "synthetic.arrivals",
                        "these arrivals have no rate that could be searched for; use poisson, gamma, \
                         fixed_rate or trace",
                    ));
                }
                ArrivalConfig::Poisson { requests_per_s, .. }
                | ArrivalConfig::Gamma { requests_per_s, .. }
                | ArrivalConfig::FixedRate { requests_per_s } => Some(requests_per_s),
                ArrivalConfig::Trace { requests_per_s, .. } => requests_per_s,
            },
        };
        let natural = own.or_else(|| mean_rate(&base)).ok_or_else(|| {
            wrong("trace", "all requests arrive at once; expected arrivals that have a rate")
        })?;
        Ok(RateTemplate { config: config.clone(), seed, base, natural })
    }

    /// The rate of the workload as its config has it: that asked for, or the mean of its trace.
    pub fn natural_rate(&self) -> f64 {
        self.natural
    }

    /// The requests as they were drawn.
    pub fn base(&self) -> &Workload {
        &self.base
    }

    /// The config of [`RateTemplate::at`].
    pub fn config_at(&self, requests_per_s: f64) -> WorkloadConfig {
        self.config.at_rate(requests_per_s, self.natural).unwrap_or_else(|| self.config.clone())
    }

    /// The first `n` requests, arriving at `requests_per_s`. Arrivals that are drawn are those of
    /// [`RateTemplate::config_at`]; those of a trace may differ by the rounding of one nanosecond.
    ///
    /// # Errors
    /// When the rate is so low that the clock does not reach to the last arrival.
    pub fn at(&self, requests_per_s: f64, n: usize) -> Result<Workload, WorkloadError> {
        let n = n.min(self.base.requests.len());
        let config = self.config_at(requests_per_s);
        let mut requests = self.base.requests[..n].to_vec();
        match &config {
            WorkloadConfig::Synthetic(s) if !matches!(s.arrivals, ArrivalConfig::Trace { .. }) => {
                let mut notes = Vec::new();
                let times =
                    s.arrivals.draw(n, &mut rng::stream(self.seed, "arrivals"), &mut notes)?;
                for (request, time) in requests.iter_mut().zip(times) {
                    request.arrived_at = time;
                }
            }
            _ => {
                let factor = self.natural / requests_per_s;
                for request in &mut requests {
                    let seconds = request.arrived_at.as_seconds() * factor;
                    request.arrived_at = SimTime::from_seconds(seconds).unwrap_or(SimTime::NEVER);
                }
            }
        }
        Ok(Workload {
            requests,
            prefixes: self.base.prefixes.clone(),
            front_end: self.base.front_end,
            ..Workload::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{LengthConfig, SyntheticConfig, TokenRange};

    fn synthetic(arrivals: ArrivalConfig) -> WorkloadConfig {
        WorkloadConfig::Synthetic(SyntheticConfig {
            num_requests: 50,
            arrivals,
            lengths: LengthConfig::Uniform {
                prefill_tokens: TokenRange { min: 1, max: 100 },
                decode_tokens: TokenRange { min: 1, max: 100 },
            },
        })
    }

    fn template(config: &WorkloadConfig) -> RateTemplate {
        RateTemplate::of(config, 7, config.build(7).unwrap()).unwrap()
    }

    #[test]
    fn drawn_arrivals_are_those_of_the_config_at_that_rate() {
        for arrivals in [
            ArrivalConfig::Poisson { requests_per_s: 1.0, cap_gaps: false },
            ArrivalConfig::Gamma { requests_per_s: 3.0, cv: 2.0 },
            ArrivalConfig::FixedRate { requests_per_s: 3.0 },
        ] {
            let config = synthetic(arrivals);
            let template = template(&config);
            let at = template.at(12.34, 50).unwrap();
            assert_eq!(at.requests, template.config_at(12.34).build(7).unwrap().requests);
            // Fewer requests are the first ones.
            assert_eq!(template.at(12.34, 20).unwrap().requests[..], at.requests[..20]);
        }
    }

    #[test]
    fn a_trace_keeps_its_bursts_at_any_rate() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,5\n1,5,5\n4,5,5\n";
        std::fs::write(file.path(), text).unwrap();
        let config = WorkloadConfig::Trace(super::super::TraceConfig::new(file.path()));
        let template = template(&config);
        assert_eq!(template.natural_rate(), 0.5);
        let times = |w: &Workload| -> Vec<u64> {
            w.requests.iter().map(|r| r.arrived_at.as_ns() / 1_000_000).collect()
        };
        assert_eq!(times(&template.at(2.0, 9).unwrap()), [0, 250, 1000]);
        assert_eq!(times(&template.config_at(2.0).build(7).unwrap()), [0, 250, 1000]);
    }

    #[test]
    fn what_has_no_rate_is_refused_by_name() {
        for arrivals in [
            ArrivalConfig::AllAtOnce {},
            ArrivalConfig::ClosedLoop { concurrency: 3, think_time_s: 0.0 },
        ] {
            let config = synthetic(arrivals);
            let error = RateTemplate::of(&config, 7, config.build(7).unwrap()).unwrap_err();
            assert!(error.to_string().contains("use poisson, gamma"), "{error}");
        }
    }
}
