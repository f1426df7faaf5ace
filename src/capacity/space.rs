//! The search space: from lists to single configurations.

use crate::run::{ConfigError, RunConfig};
use crate::sim::{RouterConfig, SchedulerConfig};
use crate::spec::catalog::Catalog;
use crate::workload::WorkloadConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Configurations beyond which a space is refused.
const MOST: u64 = 1_000_000;

/// What differs between configurations. A list that is empty leaves what the plan's `run` says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Space {
    /// Models; `*` in a name stands for anything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Models that are left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude_models: Vec<String>,
    /// Devices; `*` in a name stands for anything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skus: Vec<String>,
    /// Devices that are left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude_skus: Vec<String>,
    /// Devices that share each layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensor_parallel: Vec<u32>,
    /// Pipeline stages.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pipeline_parallel: Vec<u32>,
    /// Copies of the model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<u32>,
    /// Schedulers; a list in place of a setting's value stands for its alternatives.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schedulers: Vec<Value>,
    /// Routers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routers: Vec<RouterConfig>,
    /// Workloads by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub workloads: BTreeMap<String, WorkloadConfig>,
    /// Any other field of the config: its path to its values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, Vec<Value>>,
}

/// One configuration of the space.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its place in the space, from 0.
    pub id: usize,
    /// The name of its workload.
    pub workload: String,
    /// What it has of every dimension that has more than one value: name and value.
    pub labels: Vec<(String, String)>,
    /// The whole config.
    pub config: RunConfig,
}

/// One dimension: its name, and for every value what to call it and how to put it into a config.
struct Dimension {
    name: String,
    values: Vec<(String, Change)>,
}

/// What one value changes.
#[derive(Clone)]
enum Change {
    Model(String),
    Sku(String),
    TensorParallel(u32),
    PipelineParallel(u32),
    Replicas(u32),
    Scheduler(SchedulerConfig),
    Router(RouterConfig),
    Workload(WorkloadConfig),
    Set(String),
}

impl Change {
    fn apply(&self, config: &mut RunConfig) -> Result<(), String> {
        match self.clone() {
            Change::Model(model) => config.model = model,
            Change::Sku(sku) => config.cluster.sku = sku,
            Change::TensorParallel(n) => config.cluster.tensor_parallel = n,
            Change::PipelineParallel(n) => config.cluster.pipeline_parallel = n,
            Change::Replicas(n) => config.cluster.num_replicas = n,
            Change::Scheduler(scheduler) => config.scheduler = scheduler,
            Change::Router(router) => config.cluster.router = router,
            Change::Workload(workload) => config.workload = workload,
            Change::Set(set) => {
                *config = config.with(&set).map_err(|e| match e {
                    ConfigError::Set { set, message } => format!("space.set: {set}: {message}"),
                    other => other.to_string(),
                })?;
            }
        }
        Ok(())
    }
}

/// Whether `name` is what `pattern` says; `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len())
                .filter(|i| rest.is_char_boundary(*i))
                .any(|i| matches(tail, &rest[i..]))
        }),
    }
}

/// Names of `known` that some pattern matches, in the order of the patterns, without those left out. A
/// name without `*` stands for itself, known or not: looking it up says what is wrong with it.
fn select(
    field: &str,
    patterns: &[String],
    excluded: &[String],
    known: &[String],
) -> Result<Vec<String>, String> {
    let mut chosen: Vec<String> = Vec::new();
    for pattern in patterns {
        let found: Vec<String> = if pattern.contains('*') {
            known.iter().filter(|name| matches(pattern, name)).cloned().collect()
        } else {
            vec![pattern.clone()]
        };
        if found.is_empty() {
            return Err(format!(
                "space.{field}: nothing is called `{pattern}`; there are {}",
                known.join(", ")
            ));
        }
        for name in found {
            if !chosen.contains(&name) && !excluded.iter().any(|e| matches(e, &name)) {
                chosen.push(name);
            }
        }
    }
    if chosen.is_empty() && !patterns.is_empty() {
        return Err(format!(
            "space.exclude_{field} leaves nothing of space.{field}; exclude less than {}",
            excluded.join(", ")
        ));
    }
    Ok(chosen)
}

/// Every scheduler that `value` stands for: lists inside a choice are alternatives.
fn schedulers(value: &Value) -> Result<Vec<SchedulerConfig>, String> {
    let wrong = |message: String| format!("space.schedulers: {message}");
    let (name, settings) = match value {
        Value::String(name) => (name.clone(), serde_json::Map::new()),
        Value::Object(object) => match (object.len(), object.iter().next()) {
            (1, Some((name, Value::Object(settings)))) => (name.clone(), settings.clone()),
            (1, Some((name, Value::Null))) => (name.clone(), serde_json::Map::new()),
            _ => return Err(wrong(format!("{value}; expected one scheduler with its settings"))),
        },
        _ => return Err(wrong(format!("{value}; expected sarathi: {{chunk_size: [256, 512]}}"))),
    };
    let mut all = vec![serde_json::Map::new()];
    for (key, value) in settings {
        let alternatives = match value {
            Value::Array(values) if values.is_empty() => {
                return Err(wrong(format!("{name}.{key} is an empty list; expected values")));
            }
            Value::Array(values) => values,
            single => vec![single],
        };
        all = all
            .into_iter()
            .flat_map(|map| {
                let key = key.clone();
                alternatives.clone().into_iter().map(move |v| {
                    let mut map = map.clone();
                    map.insert(key.clone(), v);
                    map
                })
            })
            .collect();
    }
    let build = |settings| {
        let one = serde_json::json!({ name.clone(): Value::Object(settings) });
        serde_path_to_error::deserialize(one).map_err(|e| {
            let at = e.path().to_string();
            wrong(format!("{at}: {}", e.inner()))
        })
    };
    all.into_iter().map(build).collect()
}

/// A scheduler in a few characters: its name, and the numbers that set it up. Of one with many settings
/// only those that are not its defaults.
pub fn scheduler_label(scheduler: &SchedulerConfig) -> String {
    const FEW: usize = 3;
    let settings = |of: &SchedulerConfig| match serde_json::to_value(of) {
        Ok(Value::Object(choice)) => choice.into_iter().next().and_then(|c| match c.1 {
            Value::Object(settings) => Some(settings),
            _ => None,
        }),
        _ => None,
    };
    let own = settings(scheduler).unwrap_or_default();
    let parts: Vec<String> = if own.len() <= FEW && !own.values().any(Value::is_object) {
        vec![own.values().map(Value::to_string).collect::<Vec<_>>().join("/")]
    } else {
        let plain = serde_json::json!({ scheduler.name(): {} });
        let plain = serde_json::from_value(plain).ok().and_then(|d| settings(&d));
        let plain = plain.unwrap_or_default();
        own.iter()
            .filter(|(key, value)| plain.get(*key) != Some(*value))
            .map(|(key, value)| format!("{}={value}", key.trim_start_matches("max_num_")))
            .collect()
    };
    let name = match scheduler.name() {
        "faster_transformer" => "ft",
        other => other,
    };
    std::iter::once(name.to_owned()).chain(parts).collect::<Vec<_>>().join(" ")
}

impl Space {
    /// Checks what can be checked without the catalogue.
    ///
    /// # Errors
    /// One line that names the field and what was expected.
    pub fn check(&self) -> Result<(), String> {
        for (field, excluded, chosen) in [
            ("models", &self.exclude_models, &self.models),
            ("skus", &self.exclude_skus, &self.skus),
        ] {
            if !excluded.is_empty() && chosen.is_empty() {
                return Err(format!(
                    "space.exclude_{field} without space.{field}; add {field}: ['*'] for all there are"
                ));
            }
        }
        for (path, values) in &self.set {
            if values.is_empty() {
                return Err(format!("space.set.{path} is an empty list; expected values"));
            }
        }
        Ok(())
    }

    fn dimensions(&self, catalog: &Catalog) -> Result<Vec<Dimension>, String> {
        let mut dimensions = Vec::new();
        let mut add = |name: &str, values: Vec<(String, Change)>| {
            if !values.is_empty() {
                dimensions.push(Dimension { name: name.to_owned(), values });
            }
        };
        let names = |all: Result<Vec<String>, _>| {
            all.map_err(|e: crate::spec::catalog::CatalogError| e.to_string())
        };
        let models = names(catalog.models().map(|v| v.into_iter().map(|m| m.name).collect()))?;
        let models = select("models", &self.models, &self.exclude_models, &models)?;
        add("model", models.into_iter().map(|m| (m.clone(), Change::Model(m))).collect());
        let devices = names(catalog.devices().map(|v| v.into_iter().map(|d| d.name).collect()))?;
        let skus = select("skus", &self.skus, &self.exclude_skus, &devices)?;
        add("sku", skus.into_iter().map(|s| (s.clone(), Change::Sku(s))).collect());
        let numbers = |values: &[u32], change: fn(u32) -> Change| {
            values.iter().map(|n| (n.to_string(), change(*n))).collect::<Vec<_>>()
        };
        add("tensor_parallel", numbers(&self.tensor_parallel, Change::TensorParallel));
        add("pipeline_parallel", numbers(&self.pipeline_parallel, Change::PipelineParallel));
        add("replicas", numbers(&self.replicas, Change::Replicas));
        let mut all = Vec::new();
        for value in &self.schedulers {
            for scheduler in schedulers(value)? {
                all.push((scheduler_label(&scheduler), Change::Scheduler(scheduler)));
            }
        }
        add("scheduler", all);
        let routers = self.routers.iter().map(|r| {
            let label = serde_json::to_value(r).ok().and_then(|v| v.as_str().map(str::to_owned));
            (label.unwrap_or_default(), Change::Router(*r))
        });
        add("router", routers.collect());
        for (path, values) in &self.set {
            let change = |v: &Value| (v.to_string(), Change::Set(format!("{path}={v}")));
            add(path, values.iter().map(change).collect());
        }
        let workloads =
            self.workloads.iter().map(|(n, w)| (n.clone(), Change::Workload(w.clone())));
        add("workload", workloads.collect());
        Ok(dimensions)
    }

    /// Every configuration, in a fixed order: the last dimension changes fastest.
    ///
    /// # Errors
    /// When a list makes no sense, or the product is too large.
    pub fn expand(&self, base: &RunConfig, catalog: &Catalog) -> Result<Vec<Candidate>, String> {
        let dimensions = self.dimensions(catalog)?;
        let count = dimensions.iter().map(|d| d.values.len() as u64).fold(1, u64::saturating_mul);
        if count > MOST {
            let sizes: Vec<String> =
                dimensions.iter().map(|d| format!("{} {}", d.values.len(), d.name)).collect();
            return Err(format!(
                "space: {count} configurations ({}), more than {MOST}; shorten a list",
                sizes.join(" x ")
            ));
        }
        (0..count as usize)
            .map(|id| {
                let mut rest = id;
                let mut chosen = Vec::with_capacity(dimensions.len());
                for dimension in dimensions.iter().rev() {
                    let n = dimension.values.len();
                    chosen.push((dimension, &dimension.values[rest % n]));
                    rest /= n;
                }
                let mut candidate = Candidate {
                    id,
                    workload: "workload".to_owned(),
                    labels: Vec::new(),
                    config: base.clone(),
                };
                for (dimension, (label, change)) in chosen.into_iter().rev() {
                    change.apply(&mut candidate.config)?;
                    if dimension.name == "workload" {
                        candidate.workload.clone_from(label);
                    }
                    if dimension.values.len() > 1 {
                        candidate.labels.push((dimension.name.clone(), label.clone()));
                    }
                }
                Ok(candidate)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(yaml: &str) -> Result<Vec<Candidate>, String> {
        let space: Space = crate::yaml::from_str(yaml, "plan.yml").map_err(|e| e.to_string())?;
        space.check()?;
        space.expand(&RunConfig::default(), &Catalog::open(None))
    }

    #[test]
    fn the_product_of_all_lists_in_a_fixed_order() {
        let all = expand(
            "skus: [h100_sxm, l4]\ntensor_parallel: [1, 2]\nschedulers:\n  \
             - sarathi: {chunk_size: [256, 512], max_num_seqs: 64}\n  - vllm\n\
             set: {kv_cache.block_size: [16, 32]}\n",
        )
        .unwrap();
        assert_eq!(all.len(), 2 * 2 * 3 * 2);
        let labels: Vec<String> = all[1].labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            labels,
            [
                "sku=h100_sxm",
                "tensor_parallel=1",
                "scheduler=sarathi 256/64",
                "kv_cache.block_size=32"
            ]
        );
        assert_eq!(all[1].config.kv_cache.block_size, 32);
        assert_eq!(all[23].config.cluster.sku, "l4");
        assert_eq!(all[23].config.scheduler.name(), "vllm");
    }

    #[test]
    fn stars_and_exclusions() {
        let all = expand("skus: ['h100*']\nexclude_skus: ['*pcie']\n").unwrap();
        let skus: Vec<&str> = all.iter().map(|c| c.config.cluster.sku.as_str()).collect();
        assert_eq!(skus, ["h100_nvl", "h100_sxm"]);
        assert!(matches("a*c*", "abcd") && !matches("a*c", "abcd") && matches("*", ""));
    }

    #[test]
    fn empty_and_unknown_spaces_say_what_there_is() {
        for (yaml, expected) in [
            ("skus: ['zz*']", "space.skus: nothing is called `zz*`; there are a100_40gb_pcie, "),
            ("skus: [l4]\nexclude_skus: ['*']", "space.exclude_skus leaves nothing of space.skus"),
            ("exclude_skus: [l4]", "space.exclude_skus without space.skus; add skus: ['*']"),
            (
                "schedulers: [{sarathi: {chunk_sise: 1}}]",
                "space.schedulers: sarathi.chunk_sise: unknown field",
            ),
            (
                "schedulers: [{sarathi: {chunk_size: []}}]",
                "space.schedulers: sarathi.chunk_size is an empty",
            ),
            ("set: {seed: []}", "space.set.seed is an empty list"),
            ("set: {sed: [1]}", "space.set: sed=1: unknown field `sed`; did you mean `seed`?"),
        ] {
            let error = expand(yaml).unwrap_err();
            assert!(error.starts_with(expected), "{yaml}: {error}");
        }
    }
}
