//! When requests arrive.

use crate::rng::Rng;
use crate::units::SimTime;
use rand_distr::{Distribution, Exp, Gamma};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An arrival process. The first request arrives after one gap, all at once excepted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ArrivalConfig {
    /// Independent arrivals: exponential gaps.
    Poisson {
        /// Mean rate, requests per second.
        requests_per_s: f64,
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
    /// Everything at time zero.
    AllAtOnce {},
}

impl ArrivalConfig {
    fn rate(self) -> Option<f64> {
        match self {
            ArrivalConfig::Poisson { requests_per_s }
            | ArrivalConfig::Gamma { requests_per_s, .. }
            | ArrivalConfig::FixedRate { requests_per_s } => Some(requests_per_s),
            ArrivalConfig::AllAtOnce {} => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            ArrivalConfig::Poisson { .. } => "poisson",
            ArrivalConfig::Gamma { .. } => "gamma",
            ArrivalConfig::FixedRate { .. } => "fixed_rate",
            ArrivalConfig::AllAtOnce {} => "all_at_once",
        }
    }

    /// `n` arrival times in ascending order.
    ///
    /// # Errors
    /// The field, and what was expected of it.
    pub(super) fn draw(self, n: usize, rng: &mut Rng) -> Result<Vec<SimTime>, (String, String)> {
        let name = self.name();
        let positive = |field: &str, value: f64| {
            if value.is_finite() && value > 0.0 {
                return Ok(value);
            }
            Err((format!("{name}.{field}"), format!("{value}; expected a number above 0")))
        };
        let rate = self.rate().map(|r| positive("requests_per_s", r)).transpose()?;
        let rate = rate.unwrap_or(1.0);
        let gaps: Box<dyn FnMut() -> f64> = match self {
            ArrivalConfig::AllAtOnce {} => return Ok(vec![SimTime::ZERO; n]),
            ArrivalConfig::FixedRate { .. } => Box::new(move || 1.0 / rate),
            ArrivalConfig::Poisson { .. } => {
                let gap = Exp::new(rate)
                    .map_err(|e| (format!("{name}.requests_per_s"), e.to_string()))?;
                Box::new(move || gap.sample(rng))
            }
            ArrivalConfig::Gamma { cv, .. } => {
                let shape = 1.0 / positive("cv", cv)?.powi(2);
                let gap = Gamma::new(shape, 1.0 / (rate * shape))
                    .map_err(|e| (format!("{name}.cv"), e.to_string()))?;
                Box::new(move || gap.sample(rng))
            }
        };
        accumulate(gaps, n).ok_or_else(|| {
            let message = format!("{rate}; so slow that the last request is centuries away");
            (format!("{name}.requests_per_s"), message)
        })
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
            ArrivalConfig::Poisson { requests_per_s } => {
                write!(f, "Poisson arrivals at {requests_per_s} requests/s")
            }
            ArrivalConfig::Gamma { requests_per_s, cv } => {
                write!(f, "gamma arrivals (cv {cv}) at {requests_per_s} requests/s")
            }
            ArrivalConfig::FixedRate { requests_per_s } => {
                write!(f, "one arrival every {:.6} s", 1.0 / requests_per_s)
            }
            ArrivalConfig::AllAtOnce {} => write!(f, "all at once"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use crate::stats;

    fn gaps(config: ArrivalConfig, n: usize) -> Vec<f64> {
        let times = config.draw(n, &mut stream(1, "arrivals")).unwrap();
        times.windows(2).map(|w| w[1].since(w[0]).as_seconds()).collect()
    }

    #[test]
    fn gaps_have_the_asked_mean_and_variation() {
        for (config, cv) in [
            (ArrivalConfig::Poisson { requests_per_s: 4.0 }, 1.0),
            (ArrivalConfig::Gamma { requests_per_s: 4.0, cv: 2.0 }, 2.0),
            (ArrivalConfig::Gamma { requests_per_s: 4.0, cv: 0.5 }, 0.5),
        ] {
            let gaps = gaps(config, 40_000);
            let mean = stats::mean(&gaps).unwrap();
            assert!((mean - 0.25).abs() < 0.01, "{config}: mean {mean}");
            let measured = stats::std_dev(&gaps).unwrap() / mean;
            assert!((measured / cv - 1.0).abs() < 0.06, "{config}: cv {measured}");
        }
    }

    #[test]
    fn a_fixed_rate_is_even_and_all_at_once_is_at_zero() {
        let even = gaps(ArrivalConfig::FixedRate { requests_per_s: 10.0 }, 100);
        assert!(even.iter().all(|g| (g - 0.1).abs() < 2e-9));
        let all = ArrivalConfig::AllAtOnce {}.draw(3, &mut stream(1, "arrivals")).unwrap();
        assert_eq!(all, [SimTime::ZERO; 3]);
    }

    #[test]
    fn rates_that_are_none_are_refused_by_name() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let (path, message) = ArrivalConfig::Poisson { requests_per_s: bad }
                .draw(1, &mut stream(1, "arrivals"))
                .unwrap_err();
            assert_eq!(path, "poisson.requests_per_s");
            assert!(message.contains("expected a number above 0"), "{message}");
        }
        let slow = ArrivalConfig::FixedRate { requests_per_s: 1e-300 };
        assert!(slow.draw(1, &mut stream(1, "arrivals")).unwrap_err().1.contains("centuries"));
    }
}
