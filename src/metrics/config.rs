//! What a run is asked to measure: the sections `metrics` and `slo` of its config.

use serde::{Deserialize, Serialize};

/// The section `metrics` of a config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Whether every request is kept.
    pub requests: RequestDetail,
    /// Whether the time of each operator is added up. Costs a second prediction per batch.
    pub operators: bool,
    /// Whether every batch is written to batch_metrics.csv.
    pub batches: bool,
    /// Whether `plots/` is written: Vidur's distributions and replica files.
    pub plots: bool,
    /// How TPOT and ITL are defined.
    pub dialect: Dialect,
    /// What vllm_bench.json states as `date`; results read no clock, so that without it the word
    /// `simulated` stands there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
}

/// Whether every request is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestDetail {
    /// Every request: exact quantiles and a row per request; memory grows with their number.
    #[default]
    All,
    /// Requests in flight only: quantiles within 0.05 %, in fixed memory.
    Sampled,
}

/// How TPOT and ITL are defined, by the tool that reports them so. Of a request, *a* is the
/// arrival, *f* the first and *c* the last of *n* output tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// `vllm bench serve`: TPOT (c - f) / (n - 1), ITL pooled over tokens.
    #[default]
    #[serde(alias = "vidur-default")]
    Vllm,
    /// GuideLLM: TPOT (c - a) / n, ITL (c - f) / (n - 1).
    Guidellm,
    /// genai-perf and AIPerf: ITL and TPOT (c - f) / (n - 1), and the time to the second token.
    GenaiPerf,
    /// microsoft/vidur: TPOT (c - f) / n, ITL pooled over tokens.
    Vidur,
}

impl Dialect {
    /// Whether the time to the second token is reported.
    pub const fn has_second_token(self) -> bool {
        matches!(self, Dialect::GenaiPerf)
    }

    /// The definitions in a line, for result files.
    pub const fn describe(self) -> &'static str {
        match self {
            Dialect::Vllm => {
                "vllm: TPOT over n-1 tokens after the first, ITL pooled over tokens (as vllm bench serve)"
            }
            Dialect::Guidellm => {
                "guidellm: TPOT is end-to-end latency over n tokens, ITL over n-1 tokens per request"
            }
            Dialect::GenaiPerf => {
                "genai-perf: ITL and TPOT over n-1 tokens per request, TTST to the second token"
            }
            Dialect::Vidur => {
                "vidur: TPOT is the time after the first token over n tokens, ITL pooled over tokens"
            }
        }
    }
}

/// Service-level objectives, the section `slo` of a config. A request is good when it meets every
/// one that is given: value at most objective, as `vllm bench serve --goodput` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Slo {
    /// Time to first token, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Time per output token after the first, (c - f) / (n - 1) in every dialect, milliseconds; 0
    /// of a single token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<f64>,
    /// Arrival to last token, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e2el_ms: Option<f64>,
}

impl Slo {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.fields().iter().all(|(_, value)| value.is_none())
    }

    /// Every objective with its name.
    pub fn fields(&self) -> [(&'static str, Option<f64>); 3] {
        [("ttft_ms", self.ttft_ms), ("tpot_ms", self.tpot_ms), ("e2el_ms", self.e2el_ms)]
    }

    /// Checks that every objective is a time.
    ///
    /// # Errors
    /// One line that names the field, its value and what was expected.
    pub fn check(&self) -> Result<(), String> {
        for (name, value) in self.fields() {
            if let Some(v) = value.filter(|v| !(v.is_finite() && *v > 0.0)) {
                return Err(format!("slo.{name}: {v}; expected milliseconds above 0"));
            }
        }
        Ok(())
    }

    /// Whether values in milliseconds meet every objective.
    pub fn met_by(&self, ttft_ms: f64, tpot_ms: f64, e2el_ms: f64) -> bool {
        let met = |objective: Option<f64>, value: f64| objective.is_none_or(|most| value <= most);
        met(self.ttft_ms, ttft_ms) && met(self.tpot_ms, tpot_ms) && met(self.e2el_ms, e2el_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_objective_is_met_up_to_and_including_its_value() {
        let slo = Slo { ttft_ms: Some(200.0), tpot_ms: Some(50.0), e2el_ms: None };
        assert!(slo.met_by(200.0, 50.0, 1e9));
        assert!(!slo.met_by(200.1, 50.0, 0.0));
        assert!(!slo.met_by(0.0, 50.1, 0.0));
        assert!(Slo::default().met_by(1e9, 1e9, 1e9) && Slo::default().is_empty());
    }

    #[test]
    fn objectives_that_are_no_time_are_refused() {
        let slo = Slo { tpot_ms: Some(-1.0), ..Slo::default() };
        assert_eq!(slo.check().unwrap_err(), "slo.tpot_ms: -1; expected milliseconds above 0");
        assert!(Slo { e2el_ms: Some(f64::NAN), ..Slo::default() }.check().is_err());
        assert!(Slo { e2el_ms: Some(1.0), ..Slo::default() }.check().is_ok());
    }

    #[test]
    fn dialects_have_the_names_of_their_tools() {
        for (name, dialect) in [
            ("vllm", Dialect::Vllm),
            ("vidur-default", Dialect::Vllm),
            ("guidellm", Dialect::Guidellm),
            ("genai-perf", Dialect::GenaiPerf),
            ("vidur", Dialect::Vidur),
        ] {
            let read: Dialect = serde_json::from_value(name.into()).unwrap();
            assert_eq!(read, dialect);
        }
    }
}
