//! Objectives that a configuration has to meet, and Vidur's rule by name.

use crate::metrics::{Figure, Slo};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What a request rate must keep. At least one objective; all of them are to be met.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Objectives {
    /// Time to first token: statistic (`mean`, `p50`, `p99.9`) to milliseconds.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ttft_ms: BTreeMap<String, f64>,
    /// Time per output token after the first, by request.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tpot_ms: BTreeMap<String, f64>,
    /// Time between tokens, all requests pooled: Vidur's TBT.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub itl_ms: BTreeMap<String, f64>,
    /// Arrival to last token.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub e2e_ms: BTreeMap<String, f64>,
    /// Arrival to first batch.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub queueing_ms: BTreeMap<String, f64>,
    /// Share of requests that meet every limit given here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goodput: Option<Goodput>,
    /// The rule of microsoft/vidur's own search, which stands alone: a quantile of the queueing delay
    /// of all requests, warm-up included, and nothing said of a queue that grows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vidur_queueing_delay: Option<VidurQueueingDelay>,
}

/// A share of requests that must be good.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Goodput {
    /// Per cent of requests that meet all of the limits below.
    pub percent: f64,
    /// Time to first token, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Time per output token after the first, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<f64>,
    /// Arrival to last token, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e2el_ms: Option<f64>,
}

/// Settings of Vidur's rule; the defaults are those of its search.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VidurQueueingDelay {
    /// Quantile of the queueing delay, 0 to 1.
    pub quantile: f64,
    /// What it may come to, seconds.
    pub at_most_s: f64,
}

impl Default for VidurQueueingDelay {
    fn default() -> Self {
        VidurQueueingDelay { quantile: 0.99, at_most_s: 5.0 }
    }
}

/// What a limit is set on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measured {
    /// A latency of every request.
    Request(Figure),
    /// The gaps between tokens.
    Gaps,
}

/// Which figure of a distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistic {
    /// Arithmetic mean.
    Mean,
    /// Quantile, 0 to 1.
    Quantile(f64),
}

/// One objective.
#[derive(Clone, Debug, PartialEq)]
pub enum Term {
    /// A statistic of a latency is at most a limit.
    Bound {
        /// Of what.
        measured: Measured,
        /// Which.
        statistic: Statistic,
        /// Milliseconds.
        limit_ms: f64,
    },
    /// So many requests meet every limit.
    Good {
        /// Per cent of requests.
        percent: f64,
        /// The limits.
        slo: Slo,
    },
}

/// The objectives as the search uses them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// All of them.
    pub terms: Vec<Term>,
    /// Whether every request counts, and a growing queue is no failure: Vidur's way.
    pub vidur: bool,
}

fn statistic(text: &str) -> Option<Statistic> {
    if text == "mean" {
        return Some(Statistic::Mean);
    }
    let percent: f64 = text.strip_prefix('p')?.parse().ok()?;
    (percent > 0.0 && percent <= 100.0).then_some(Statistic::Quantile(percent / 100.0))
}

impl Objectives {
    /// The fields with a limit by statistic.
    fn bounds(&self) -> [(&'static str, Measured, &BTreeMap<String, f64>); 5] {
        [
            ("ttft_ms", Measured::Request(Figure::Ttft), &self.ttft_ms),
            ("tpot_ms", Measured::Request(Figure::Tpot), &self.tpot_ms),
            ("itl_ms", Measured::Gaps, &self.itl_ms),
            ("e2e_ms", Measured::Request(Figure::E2e), &self.e2e_ms),
            ("queueing_ms", Measured::Request(Figure::Queueing), &self.queueing_ms),
        ]
    }

    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Objectives::default()
    }

    /// Checks the numbers and puts them in the form in which they are watched.
    ///
    /// # Errors
    /// One line that names the field below `path`, its value and what was expected.
    pub fn rule(&self, path: &str) -> Result<Rule, String> {
        let mut terms = Vec::new();
        for (field, measured, limits) in self.bounds() {
            for (name, &limit_ms) in limits {
                let statistic = statistic(name).ok_or_else(|| {
                    format!(
                        "{path}.{field}.{name}: expected mean or a percentile such as p90 or p99.9"
                    )
                })?;
                if !(limit_ms.is_finite() && limit_ms > 0.0) {
                    let message = format!("{limit_ms}; expected milliseconds above 0");
                    return Err(format!("{path}.{field}.{name}: {message}"));
                }
                terms.push(Term::Bound { measured, statistic, limit_ms });
            }
        }
        if let Some(good) = self.goodput {
            let slo = Slo { ttft_ms: good.ttft_ms, tpot_ms: good.tpot_ms, e2el_ms: good.e2el_ms };
            slo.check().map_err(|e| format!("{path}.goodput: {e}"))?;
            if slo.is_empty() || !(good.percent > 0.0 && good.percent <= 100.0) {
                return Err(format!(
                    "{path}.goodput: {} % of requests; expected above 0, at most 100, and at least one \
                     of ttft_ms, tpot_ms and e2el_ms",
                    good.percent
                ));
            }
            terms.push(Term::Good { percent: good.percent, slo });
        }
        if let Some(vidur) = self.vidur_queueing_delay {
            if !terms.is_empty() {
                return Err(format!(
                    "{path}.vidur_queueing_delay is a whole rule and stands alone; for the same limit \
                     beside others use queueing_ms: {{p99: 5000}}"
                ));
            }
            let VidurQueueingDelay { quantile, at_most_s } = vidur;
            if !(quantile > 0.0 && quantile <= 1.0 && at_most_s.is_finite() && at_most_s > 0.0) {
                return Err(format!(
                    "{path}.vidur_queueing_delay: quantile {quantile} and at_most_s {at_most_s}; \
                     expected above 0 and at most 1, and seconds above 0"
                ));
            }
            let term = Term::Bound {
                measured: Measured::Request(Figure::Queueing),
                statistic: Statistic::Quantile(quantile),
                limit_ms: at_most_s * 1e3,
            };
            return Ok(Rule { terms: vec![term], vidur: true });
        }
        if terms.is_empty() {
            return Err(format!(
                "{path} is empty; expected what a request rate has to keep, such as ttft_ms: \
                 {{p90: 2000}} and itl_ms: {{p99: 200}}"
            ));
        }
        Ok(Rule { terms, vidur: false })
    }

    /// The same objectives with every limit in milliseconds or seconds multiplied by `factor`.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Objectives {
        let mut scaled = self.clone();
        let Objectives { ttft_ms, tpot_ms, itl_ms, e2e_ms, queueing_ms, .. } = &mut scaled;
        for limits in [ttft_ms, tpot_ms, itl_ms, e2e_ms, queueing_ms] {
            limits.values_mut().for_each(|limit| *limit *= factor);
        }
        if let Some(good) = &mut scaled.goodput {
            for limit in [&mut good.ttft_ms, &mut good.tpot_ms, &mut good.e2el_ms] {
                *limit = limit.map(|l| l * factor);
            }
        }
        if let Some(vidur) = &mut scaled.vidur_queueing_delay {
            vidur.at_most_s *= factor;
        }
        scaled
    }
}

impl Measured {
    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Measured::Gaps => "ITL",
            Measured::Request(Figure::Ttft) => "TTFT",
            Measured::Request(Figure::Tpot) => "TPOT",
            Measured::Request(Figure::TpotOverAll) => "TPOT over all tokens",
            Measured::Request(Figure::Normalized) => "normalised latency",
            Measured::Request(Figure::E2e) => "E2E",
            Measured::Request(Figure::Queueing) => "queueing",
        }
    }

    /// The field of the plan.
    pub const fn field(self) -> &'static str {
        match self {
            Measured::Gaps => "itl_ms",
            Measured::Request(Figure::Ttft) => "ttft_ms",
            Measured::Request(Figure::Tpot | Figure::TpotOverAll) => "tpot_ms",
            Measured::Request(Figure::E2e | Figure::Normalized) => "e2e_ms",
            Measured::Request(Figure::Queueing) => "queueing_ms",
        }
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Statistic::Mean => f.write_str("mean"),
            // Without the noise of the last bits: 99.9, not 99.90000000000001.
            Statistic::Quantile(q) => write!(f, "P{}", (q * 1e8).round() / 1e6),
        }
    }
}

impl Term {
    /// What it is a limit on: `TTFT P90`.
    pub fn short(&self) -> String {
        match self {
            Term::Bound { measured, statistic, .. } => format!("{} {statistic}", measured.name()),
            Term::Good { .. } => "goodput".to_owned(),
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Term::Bound { limit_ms, .. } => write!(f, "{} at most {limit_ms} ms", self.short()),
            Term::Good { percent, slo } => {
                let given = slo.fields().into_iter().filter_map(|(name, v)| Some((name, v?)));
                let limits: Vec<String> = given
                    .map(|(name, ms)| {
                        format!("{} {ms} ms", name.trim_end_matches("_ms").to_uppercase())
                    })
                    .collect();
                write!(f, "{percent} % of requests within {}", limits.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(yaml: &str) -> Result<Rule, String> {
        crate::yaml::from_str::<Objectives>(yaml, "plan.yml")
            .map_err(|e| e.to_string())?
            .rule("slo")
    }

    #[test]
    fn any_statistic_of_any_latency_and_a_share_of_good_requests() {
        let rule = rule(
            "ttft_ms: {p90: 2000, mean: 500}\nitl_ms: {p99.9: 200}\n\
             goodput: {percent: 95, ttft_ms: 1000}\n",
        )
        .unwrap();
        let texts: Vec<String> = rule.terms.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "TTFT mean at most 500 ms",
                "TTFT P90 at most 2000 ms",
                "ITL P99.9 at most 200 ms",
                "95 % of requests within TTFT 1000 ms"
            ]
        );
    }

    #[test]
    fn vidurs_rule_stands_alone() {
        let vidur = rule("vidur_queueing_delay: {}").unwrap();
        assert!(vidur.vidur);
        assert_eq!(vidur.terms[0].to_string(), "queueing P99 at most 5000 ms");
        let error = rule("vidur_queueing_delay: {}\nttft_ms: {p90: 1}").unwrap_err();
        assert!(error.contains("stands alone"), "{error}");
    }

    #[test]
    fn what_makes_no_objective_is_named() {
        assert!(rule("ttft_ms: {}").unwrap_err().starts_with("slo is empty; expected"));
        for (yaml, expected) in [
            ("ttft_ms: {q90: 3}", "slo.ttft_ms.q90: expected mean or a percentile"),
            ("ttft_ms: {p101: 3}", "slo.ttft_ms.p101: expected mean"),
            ("e2e_ms: {p50: -1}", "slo.e2e_ms.p50: -1; expected milliseconds above 0"),
            ("goodput: {percent: 95}", "slo.goodput: 95 % of requests; expected"),
        ] {
            let error = rule(yaml).unwrap_err();
            assert!(error.starts_with(expected), "{yaml}: {error}");
        }
    }
}
