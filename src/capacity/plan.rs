//! The plan file: what is searched, under which constraints, for which objectives.

use super::pricing::Prices;
use super::slo::{Objectives, Rule};
use super::space::Space;
use crate::run::RunConfig;
use crate::yaml::{self, YamlError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A plan. Every field but the objectives has a default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// What all configurations have in common, as in a config of `vidur simulate`.
    pub run: RunConfig,
    /// What differs.
    pub space: Space,
    /// What a configuration must keep to be considered.
    pub constraints: Constraints,
    /// What a request rate must keep.
    #[serde(skip_serializing_if = "Objectives::is_empty")]
    pub slo: Objectives,
    /// Several of these by name, in place of `slo`: each gets a best configuration.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub slos: BTreeMap<String, Objectives>,
    /// What the best configuration has most, or least, of.
    pub objective: Objective,
    /// How rates are searched.
    pub search: Search,
    /// Prices of the user's own.
    #[serde(skip_serializing_if = "Prices::is_empty")]
    pub prices: Prices,
    /// How sure the choice is.
    pub confirm: Confirm,
    /// How the answer moves.
    #[serde(skip_serializing_if = "WhatIf::is_empty")]
    pub what_if: WhatIf,
    /// The smallest fleet for a rate, found by simulating it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fleet: Option<Fleet>,
    /// Which settings matter, by changing one at a time around the best configuration.
    pub sensitivity: bool,
}

/// What a configuration must keep to be considered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Constraints {
    /// Most devices, all replicas together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_devices: Option<u32>,
    /// Whether the devices of a replica must be those of one node.
    pub within_node: bool,
    /// Most US dollars per hour, all replicas together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_usd_per_hour: Option<f64>,
    /// Most watts of the data sheets' board power, all devices together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_power_w: Option<f64>,
    /// Least request rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_requests_per_s: Option<f64>,
}

/// What makes a configuration better than another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Fewest US dollars per million output tokens; where no price is known, most requests per second
    /// and device.
    #[default]
    Cost,
    /// Most requests per second and device.
    PerDevice,
    /// Most requests per second.
    Rate,
    /// Fewest joules per output token.
    Energy,
}

/// How rates are searched.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Search {
    /// Rates are tried this far apart: the capacity of a configuration is exact to that.
    pub precision_percent: f64,
    /// Requests of a run.
    pub requests: u32,
    /// Of these, how many of the first do not count: the engine is empty at the beginning.
    pub warmup_percent: f64,
    /// And how many of the last: they keep the load up until those that count are done.
    pub cooldown_percent: f64,
}

/// How sure the choice is: the best configurations again, on other random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Confirm {
    /// How many of the best; 0 for none.
    pub top: u32,
    /// Seeds, each a search of its own.
    pub seeds: u32,
    /// Confidence of the interval of the mean, per cent.
    pub level_percent: f64,
    /// Half its width, per cent of the mean: while it is wider, runs get twice as long.
    pub within_percent: f64,
    /// But no longer than this.
    pub max_requests: u32,
}

/// How the answer moves when something else does. Each entry is answered by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WhatIf {
    /// Factors on every limit of the objectives.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slo_times: Vec<f64>,
    /// Rates to be served, requests per second: which fleet is cheapest?
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requests_per_s: Vec<f64>,
    /// Factors on the price of a device.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub price_times: BTreeMap<String, Vec<f64>>,
}

/// The smallest fleet for a rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fleet {
    /// The rate; that of the workload itself when absent, for a trace its real one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_s: Option<f64>,
    /// Requests of a run; the workload's own number when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u32>,
    /// Most replicas.
    pub max_replicas: u32,
}

impl Default for Constraints {
    fn default() -> Self {
        Constraints {
            max_devices: None,
            within_node: true,
            max_usd_per_hour: None,
            max_power_w: None,
            min_requests_per_s: None,
        }
    }
}

impl Default for Search {
    fn default() -> Self {
        Search {
            precision_percent: 2.0,
            requests: 2000,
            warmup_percent: 10.0,
            cooldown_percent: 5.0,
        }
    }
}

impl Default for Confirm {
    fn default() -> Self {
        Confirm { top: 2, seeds: 5, level_percent: 95.0, within_percent: 5.0, max_requests: 16_000 }
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Fleet { requests_per_s: None, requests: None, max_replicas: 256 }
    }
}

/// Why a plan cannot be carried out. One line.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file does not parse.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// A field makes no sense, or nothing answers the plan.
    #[error("{0}")]
    Plan(String),
}

impl Plan {
    /// Reads a plan from YAML `text` of `file` and checks its numbers.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place in the file or its field.
    pub fn load(text: &str, file: &str) -> Result<Plan, PlanError> {
        let plan: Plan = yaml::from_str(text, file)?;
        plan.check().map_err(|e| PlanError::Plan(format!("{file}: {e}")))?;
        Ok(plan)
    }

    /// The objectives by name; a single set is called `slo`.
    ///
    /// # Errors
    /// One line that names the field, its value and what was expected.
    pub fn rules(&self) -> Result<Vec<(String, Rule)>, String> {
        if self.slos.is_empty() {
            return Ok(vec![("slo".to_owned(), self.slo.rule("slo")?)]);
        }
        if !self.slo.is_empty() {
            return Err("slo and slos are both given; expected one of them".into());
        }
        let rule = |(name, objectives): (&String, &Objectives)| {
            Ok((name.clone(), objectives.rule(&format!("slos.{name}"))?))
        };
        self.slos.iter().map(rule).collect()
    }

    /// The same plan with every limit of the objectives multiplied by `factor`.
    #[must_use]
    pub fn with_slo_times(&self, factor: f64) -> Plan {
        let mut plan = self.clone();
        plan.slo = plan.slo.scaled(factor);
        plan.slos.values_mut().for_each(|slo| *slo = slo.scaled(factor));
        plan
    }

    fn check(&self) -> Result<(), String> {
        self.rules()?;
        let s = &self.search;
        if !(0.1..=20.0).contains(&s.precision_percent) {
            let p = s.precision_percent;
            return Err(format!("search.precision_percent: {p}; expected 0.1 to 20"));
        }
        if !(20..=10_000_000).contains(&s.requests) {
            let n = s.requests;
            return Err(format!("search.requests: {n}; expected 20 to 10000000"));
        }
        let outer = s.warmup_percent + s.cooldown_percent;
        if !(s.warmup_percent >= 0.0 && s.cooldown_percent >= 0.0 && outer <= 80.0) {
            return Err(format!(
                "search.warmup_percent {} and cooldown_percent {}; expected 0 or more, together at \
                 most 80",
                s.warmup_percent, s.cooldown_percent
            ));
        }
        let c = &self.confirm;
        let level = c.level_percent > 50.0 && c.level_percent < 100.0;
        if c.top > 0 && !(level && c.within_percent > 0.0 && (2..=100).contains(&c.seeds)) {
            return Err(format!(
                "confirm: level_percent {}, within_percent {}, seeds {}; expected above 50 and below \
                 100, above 0, and 2 to 100",
                c.level_percent, c.within_percent, c.seeds
            ));
        }
        let positive = |field: &str, value: f64| {
            if value.is_finite() && value > 0.0 {
                return Ok(());
            }
            Err(format!("{field}: {value}; expected a number above 0"))
        };
        let k = &self.constraints;
        for (field, value) in [
            ("constraints.max_usd_per_hour", k.max_usd_per_hour),
            ("constraints.max_power_w", k.max_power_w),
            ("constraints.min_requests_per_s", k.min_requests_per_s),
            ("fleet.requests_per_s", self.fleet.and_then(|f| f.requests_per_s)),
        ] {
            value.map_or(Ok(()), |v| positive(field, v))?;
        }
        for factor in &self.what_if.slo_times {
            positive("what_if.slo_times", *factor)?;
        }
        for rate in &self.what_if.requests_per_s {
            positive("what_if.requests_per_s", *rate)?;
        }
        for (name, factors) in &self.what_if.price_times {
            for factor in factors {
                positive(&format!("what_if.price_times.{name}"), *factor)?;
            }
        }
        self.prices.check()?;
        self.space.check()
    }
}

impl WhatIf {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == WhatIf::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Plan::load(text, "plan.yml").unwrap_err().to_string()
    }

    #[test]
    fn an_objective_is_all_that_a_plan_needs() {
        let plan = Plan::load("slo: {ttft_ms: {p90: 2000}}\n", "plan.yml").unwrap();
        assert_eq!(plan.search.precision_percent, 2.0);
        assert!(plan.constraints.within_node);
        let text = serde_saphyr::to_string(&plan).unwrap();
        assert_eq!(Plan::load(&text, "again.yml").unwrap(), plan);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        assert!(
            error("search: {requests: 2000}\n").starts_with("plan.yml: slo is empty; expected")
        );
        let slo = "slo: {ttft_ms: {p90: 2000}}\n";
        for (text, expected) in [
            ("serch: {}\n", "plan.yml:2:1: unknown field `serch`; did you mean `search`?"),
            ("search: {requests: 3}\n", "plan.yml: search.requests: 3; expected 20 to"),
            ("slos: {a: {ttft_ms: {p9: 1}}}\n", "plan.yml: slo and slos are both given"),
            ("confirm: {seeds: 1}\n", "plan.yml: confirm: level_percent 95"),
            ("what_if: {slo_times: [0]}\n", "plan.yml: what_if.slo_times: 0; expected a number"),
        ] {
            let message = error(&format!("{slo}{text}"));
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
