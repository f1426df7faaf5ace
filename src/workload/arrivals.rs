//! When requests arrive.

use super::trace::{Empty, TraceConfig, TraceFormat, read_trace};
use super::{Clients, WorkloadError};
use crate::rng::Rng;
use crate::units::{SimDuration, SimTime};
use rand_distr::{Distribution, Exp, Gamma};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// An arrival process. The first request of a random or even one arrives after one gap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ArrivalConfig {
    /// Independent arrivals: exponential gaps.
    Poisson {
        /// Mean rate, requests per second.
        requests_per_s: f64,
        /// Whether no gap is longer than three mean gaps, as in Vidur; the rate then is 5.2 %
        /// higher than asked, 1 / (1 - e⁻³).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        cap_gaps: bool,
    },
    /// Gamma gaps: burstier than Poisson above `cv` 1, more even below.
    Gamma {
        /// Mean rate, requests per second.
        requests_per_s: f64,
        /// Coefficient of variation of the gaps; shape = 1 / cv².
        cv: f64,
    },
    /// Equal gaps.
    FixedRate {
        /// Rate, requests per second.
        requests_per_s: f64,
    },
    /// Everything at time zero: Vidur's `static`.
    AllAtOnce {},
    /// Clients that send their next request when the last one is done, as benchmark tools do
    /// (`vllm bench serve --max-concurrency`).
    ClosedLoop {
        /// Clients, so requests under way at most.
        concurrency: u32,
        /// Seconds between a completion and the next request of the same client.
        #[serde(default)]
        think_time_s: f64,
    },
    /// The times of the first requests in a trace file, which must have as many as are asked for.
    Trace {
        /// The file, of any format that has times.
        file: PathBuf,
        /// Its format; recognised by the content where it is not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        format: Option<TraceFormat>,
        /// All times are multiplied by one factor such that the mean gap between the first and
        /// the last arrival is that of this rate, requests per second. Bursts stay bursts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        requests_per_s: Option<f64>,
        /// Whether requests with 0 tokens count as arrivals (`one`), or not (`skip`).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        empty: Option<Empty>,
    },
}

impl ArrivalConfig {
    /// Multiplies the rate by `factor`, or for clients their number, of which one at least stays.
    /// Arrivals without a rate stay.
    pub fn scale_rate(&mut self, factor: f64) {
        match self {
            ArrivalConfig::Poisson { requests_per_s, .. }
            | ArrivalConfig::Gamma { requests_per_s, .. }
            | ArrivalConfig::FixedRate { requests_per_s }
            | ArrivalConfig::Trace { requests_per_s: Some(requests_per_s), .. } => {
                *requests_per_s *= factor;
            }
            ArrivalConfig::ClosedLoop { concurrency, .. } => {
                let scaled = (f64::from(*concurrency) * factor).round() as u32;
                *concurrency = scaled.max((*concurrency).min(1));
            }
            ArrivalConfig::AllAtOnce {} | ArrivalConfig::Trace { requests_per_s: None, .. } => {}
        }
    }

    fn rate(&self) -> Option<f64> {
        match *self {
            ArrivalConfig::Poisson { requests_per_s, .. }
            | ArrivalConfig::Gamma { requests_per_s, .. }
            | ArrivalConfig::FixedRate { requests_per_s } => Some(requests_per_s),
            ArrivalConfig::Trace { requests_per_s, .. } => requests_per_s,
            ArrivalConfig::AllAtOnce {} | ArrivalConfig::ClosedLoop { .. } => None,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            ArrivalConfig::Poisson { .. } => "poisson",
            ArrivalConfig::Gamma { .. } => "gamma",
            ArrivalConfig::FixedRate { .. } => "fixed_rate",
            ArrivalConfig::AllAtOnce {} => "all_at_once",
            ArrivalConfig::ClosedLoop { .. } => "closed_loop",
            ArrivalConfig::Trace { .. } => "trace",
        }
    }

    /// The clients of a closed loop that send `n` requests.
    ///
    /// # Errors
    /// When there is none of them, or the think time is no time or takes the last request past the
    /// range of the clock.
    pub(super) fn clients(&self, n: u32) -> Result<Option<Clients>, WorkloadError> {
        let ArrivalConfig::ClosedLoop { concurrency, think_time_s } = *self else {
            return Ok(None);
        };
        if concurrency == 0 {
            return Err(self.invalid("concurrency", "0; expected at least 1".into()));
        }
        let wrong = |expected| self.invalid("think_time_s", format!("{think_time_s}; {expected}"));
        if !(think_time_s.is_finite() && think_time_s >= 0.0) {
            return Err(wrong("expected 0 or more seconds"));
        }
        let rounds = f64::from(n.div_ceil(concurrency));
        let think_time = SimTime::from_seconds(think_time_s * rounds)
            .and(SimDuration::from_seconds(think_time_s))
            .ok_or_else(|| wrong("so long that the last request is centuries away"))?;
        Ok(Some(Clients { concurrency, think_time }))
    }

    fn invalid(&self, field: &str, message: String) -> WorkloadError {
        let path = format!("synthetic.arrivals.{}.{field}", self.name());
        WorkloadError::Config { path, message }
    }

    /// `n` arrival times in ascending order.
    ///
    /// # Errors
    /// The field, and what was expected of it; or a file that is no trace.
    pub(super) fn draw(
        &self,
        n: usize,
        rng: &mut Rng,
        notes: &mut Vec<String>,
    ) -> Result<Vec<SimTime>, WorkloadError> {
        let positive = |field: &str, value: f64| {
            if value.is_finite() && value > 0.0 {
                return Ok(value);
            }
            Err(self.invalid(field, format!("{value}; expected a number above 0")))
        };
        let asked_rate = self.rate().map(|r| positive("requests_per_s", r)).transpose()?;
        let rate = asked_rate.unwrap_or(1.0);
        let gaps: Box<dyn FnMut() -> f64> = match self {
            ArrivalConfig::AllAtOnce {} | ArrivalConfig::ClosedLoop { .. } => {
                return Ok(vec![SimTime::ZERO; n]);
            }
            ArrivalConfig::Trace { file, format, empty, .. } => {
                let trace = TraceConfig {
                    format: *format,
                    num_requests: Some(u32::try_from(n).unwrap_or(u32::MAX)),
                    empty: *empty,
                    ..TraceConfig::new(file)
                };
                let workload = read_trace(&trace)?;
                notes.extend(workload.notes);
                let times = workload.requests.iter().map(|r| r.arrived_at).collect();
                return self.times_of(times, n, file, asked_rate);
            }
            ArrivalConfig::FixedRate { .. } => Box::new(move || 1.0 / rate),
            ArrivalConfig::Poisson { cap_gaps, .. } => {
                let gap =
                    Exp::new(rate).map_err(|e| self.invalid("requests_per_s", e.to_string()))?;
                let longest = if *cap_gaps { 3.0 / rate } else { f64::INFINITY };
                Box::new(move || gap.sample(rng).min(longest))
            }
            ArrivalConfig::Gamma { cv, .. } => {
                if !(1e-6..=1e6).contains(cv) {
                    return Err(self.invalid("cv", format!("{cv:?}; expected 1e-6 to 1e6")));
                }
                let shape = 1.0 / cv.powi(2);
                let gap = Gamma::new(shape, 1.0 / (rate * shape)).map_err(|e| {
                    self.invalid("requests_per_s", format!("{rate:?} with cv {cv:?}: {e}"))
                })?;
                Box::new(move || gap.sample(rng))
            }
        };
        accumulate(gaps, n).ok_or_else(|| self.too_slow(rate))
    }

    fn times_of(
        &self,
        times: Vec<SimTime>,
        n: usize,
        file: &Path,
        rate: Option<f64>,
    ) -> Result<Vec<SimTime>, WorkloadError> {
        let file = file.display();
        if times.len() < n {
            let message = format!(
                "{file} has {} requests; expected {n}: lower workload.synthetic.num_requests",
                times.len()
            );
            return Err(self.invalid("file", message));
        }
        let (Some(rate), [first, .., last]) = (rate, times.as_slice()) else { return Ok(times) };
        let span = last.since(*first).as_seconds();
        if span == 0.0 {
            let message = format!(
                "{rate}; the first {n} requests of {file} arrive at once: no factor gives a rate"
            );
            return Err(self.invalid("requests_per_s", message));
        }
        let factor = (times.len() - 1) as f64 / span / rate;
        let scaled = times.iter().map(|t| SimTime::from_seconds(t.as_seconds() * factor));
        scaled.collect::<Option<_>>().ok_or_else(|| self.too_slow(rate))
    }

    fn too_slow(&self, rate: f64) -> WorkloadError {
        let message = format!("{rate}; so slow that the last request is centuries away");
        self.invalid("requests_per_s", message)
    }
}

/// Sums gaps, in seconds, to times; `None` past the range of the clock.
fn accumulate(mut gap: impl FnMut() -> f64, n: usize) -> Option<Vec<SimTime>> {
    let mut seconds = 0.0;
    (0..n)
        .map(|_| {
            seconds += gap();
            SimTime::from_seconds(seconds)
        })
        .collect()
}

impl fmt::Display for ArrivalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArrivalConfig::Poisson { requests_per_s, cap_gaps } => {
                let cap = if *cap_gaps { ", gaps capped at three times the mean" } else { "" };
                write!(f, "Poisson arrivals at {requests_per_s} requests/s{cap}")
            }
            ArrivalConfig::Gamma { requests_per_s, cv } => {
                write!(f, "gamma arrivals (cv {cv}) at {requests_per_s} requests/s")
            }
            ArrivalConfig::FixedRate { requests_per_s } => {
                write!(f, "one arrival every {:.6} s", 1.0 / requests_per_s)
            }
            ArrivalConfig::AllAtOnce {} => write!(f, "all at once"),
            ArrivalConfig::ClosedLoop { concurrency, think_time_s } => {
                write!(f, "{concurrency} clients")?;
                match *think_time_s {
                    0.0 => Ok(()),
                    s => write!(f, " that think for {s} s"),
                }
            }
            ArrivalConfig::Trace { file, requests_per_s, .. } => {
                write!(f, "arrivals from {}", file.display())?;
                requests_per_s.map_or(Ok(()), |rate| write!(f, ", scaled to {rate} requests/s"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use crate::stats;

    fn draw(config: &ArrivalConfig, n: usize) -> Result<Vec<SimTime>, String> {
        let mut notes = Vec::new();
        config.draw(n, &mut stream(1, "arrivals"), &mut notes).map_err(|e| e.to_string())
    }

    fn poisson(requests_per_s: f64) -> ArrivalConfig {
        ArrivalConfig::Poisson { requests_per_s, cap_gaps: false }
    }

    fn gaps(config: &ArrivalConfig, n: usize) -> Vec<f64> {
        let times = draw(config, n).unwrap();
        times.windows(2).map(|w| w[1].since(w[0]).as_seconds()).collect()
    }

    #[test]
    fn gaps_have_the_asked_mean_and_variation() {
        for (config, cv) in [
            (poisson(4.0), 1.0),
            (ArrivalConfig::Gamma { requests_per_s: 4.0, cv: 2.0 }, 2.0),
            (ArrivalConfig::Gamma { requests_per_s: 4.0, cv: 0.5 }, 0.5),
        ] {
            let gaps = gaps(&config, 40_000);
            let mean = stats::mean(&gaps).unwrap();
            assert!((mean - 0.25).abs() < 0.01, "{config}: mean {mean}");
            let measured = stats::std_dev(&gaps).unwrap() / mean;
            assert!((measured / cv - 1.0).abs() < 0.06, "{config}: cv {measured}");
        }
    }

    #[test]
    fn a_fixed_rate_is_even_and_all_at_once_is_at_zero() {
        let even = gaps(&ArrivalConfig::FixedRate { requests_per_s: 10.0 }, 100);
        assert!(even.iter().all(|g| (g - 0.1).abs() < 2e-9));
        let all = draw(&ArrivalConfig::AllAtOnce {}, 3).unwrap();
        assert_eq!(all, [SimTime::ZERO; 3]);
    }

    #[test]
    fn rates_that_are_none_are_refused_by_name() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(
                draw(&poisson(bad), 1).unwrap_err(),
                format!(
                    "workload.synthetic.arrivals.poisson.requests_per_s: {bad}; expected a number \
                     above 0"
                )
            );
        }
        let slow = ArrivalConfig::FixedRate { requests_per_s: 1e-300 };
        assert!(draw(&slow, 1).unwrap_err().contains("centuries"));
        let wild = ArrivalConfig::Gamma { requests_per_s: 1.0, cv: 1e200 };
        assert_eq!(
            draw(&wild, 1).unwrap_err(),
            "workload.synthetic.arrivals.gamma.cv: 1e200; expected 1e-6 to 1e6"
        );
    }

    #[test]
    fn clients_keep_one_of_them_and_the_range_of_the_clock() {
        let closed = |think_time_s| ArrivalConfig::ClosedLoop { concurrency: 8, think_time_s };
        let mut fewer = closed(0.0);
        fewer.scale_rate(0.01);
        assert_eq!(fewer.clients(9).unwrap().unwrap().concurrency, 1);
        assert!(closed(1e9).clients(18 * 8).is_ok());
        let error = closed(1e9).clients(19 * 8).unwrap_err().to_string();
        assert_eq!(
            error,
            "workload.synthetic.arrivals.closed_loop.think_time_s: 1000000000; so long that the last \
             request is centuries away"
        );
    }

    #[test]
    fn capped_gaps_are_the_same_draws_and_never_above_three_means() {
        let capped = ArrivalConfig::Poisson { requests_per_s: 4.0, cap_gaps: true };
        let (free, capped) = (gaps(&poisson(4.0), 10_000), gaps(&capped, 10_000));
        assert!(free.iter().any(|g| *g > 0.75));
        assert!(free.iter().zip(&capped).all(|(f, c)| (f.min(0.75) - c).abs() < 5e-9));
    }

    fn from_trace(rate: Option<f64>, n: usize) -> Result<Vec<u64>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "arrived_at,num_prefill_tokens,num_decode_tokens\n1,5,5\n2,5,5\n5,5,5\n5,5,5\n";
        std::fs::write(file.path(), text).unwrap();
        let config = ArrivalConfig::Trace {
            file: file.path().into(),
            format: None,
            requests_per_s: rate,
            empty: None,
        };
        let times =
            draw(&config, n).map_err(|e| e.replace(&file.path().display().to_string(), "t.csv"))?;
        Ok(times.iter().map(|t| t.as_ns() / 1_000_000).collect())
    }

    #[test]
    fn times_come_from_a_trace_and_scale_to_a_rate() {
        assert_eq!(from_trace(None, 4).unwrap(), [1000, 2000, 5000, 5000]);
        assert_eq!(from_trace(None, 2).unwrap(), [1000, 2000]);
        // 3 gaps in 4 s are 0.75 per second: 1.5 per second is twice as fast.
        assert_eq!(from_trace(Some(1.5), 4).unwrap(), [500, 1000, 2500, 2500]);
        assert_eq!(from_trace(Some(1.5), 1).unwrap(), [1000]);
        assert_eq!(
            from_trace(None, 5).unwrap_err(),
            "workload.synthetic.arrivals.trace.file: t.csv has 4 requests; expected 5: lower \
             workload.synthetic.num_requests"
        );
    }
}
