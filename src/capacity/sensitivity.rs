//! Which settings matter: one at a time is changed around the best configuration.

use super::answer::{Group, Key};
use super::row::{Row, Status};
use super::space::Candidate;
use super::study::{Study, Task};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One change around the best configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// The name of the workload.
    pub workload: String,
    /// The name of the objectives.
    pub slo: String,
    /// The setting: a path of the config.
    pub setting: String,
    /// Its value in the best configuration.
    pub from: String,
    /// Its value here.
    pub to: String,
    /// The capacity then, requests per second.
    pub requests_per_s: Option<f64>,
    /// What the objective gains, per cent: cost, energy or devices saved, or rate won. Negative is a
    /// loss.
    pub gain_percent: Option<f64>,
    /// Why there is no capacity.
    pub reason: Option<String>,
}

/// A path of the config, the value there, and others to try.
struct Knob {
    path: String,
    from: String,
    to: Vec<String>,
}

/// Twice and half of every whole number.
fn around(path: &str, value: u64) -> Knob {
    let mut to = vec![(value * 2).to_string()];
    if value >= 2 {
        to.insert(0, (value / 2).to_string());
    }
    Knob { path: path.to_owned(), from: value.to_string(), to }
}

/// Every setting that is changed around `candidate`.
fn knobs(candidate: &Candidate) -> Vec<Knob> {
    let config = &candidate.config;
    let cluster = &config.cluster;
    let mut knobs = vec![
        around("cluster.tensor_parallel", u64::from(cluster.tensor_parallel)),
        around("cluster.pipeline_parallel", u64::from(cluster.pipeline_parallel)),
        around("kv_cache.block_size", u64::from(config.kv_cache.block_size)),
    ];
    if let crate::run::KvSize::MemoryUtilization(share) = config.kv_cache.size {
        let to: Vec<String> = [0.8, 0.95]
            .into_iter()
            .filter(|other: &f64| (other - share).abs() > 1e-9)
            .map(|other| other.to_string())
            .collect();
        let path = "kv_cache.size.memory_utilization".to_owned();
        knobs.push(Knob { path, from: share.to_string(), to });
    }
    if let Ok(Value::Object(choice)) = serde_json::to_value(&config.scheduler)
        && let Some((name, Value::Object(settings))) = choice.iter().next()
    {
        for (key, value) in settings {
            if let Some(n) = value.as_u64().filter(|n| *n > 0) {
                knobs.push(around(&format!("scheduler.{name}.{key}"), n));
            }
        }
    }
    knobs
}

/// Effects of all settings around the best configuration of `group`, the largest first.
pub fn sensitivity(study: &Study<'_>, tasks: &[Task], rows: &[Row], group: &Group) -> Vec<Effect> {
    let inside = |r: &Row| (&r.workload, &r.slo) == (&group.workload, &group.slo);
    let Some((task, best)) = tasks.iter().zip(rows).find(|(_, r)| inside(r) && r.rank == Some(1))
    else {
        return Vec::new();
    };
    let key = Key::of(study.plan.objective, rows.iter().filter(|r| inside(r)));
    let mut changes: Vec<(String, String, String, Candidate)> = Vec::new();
    for knob in knobs(&task.candidate) {
        for to in knob.to {
            let Ok(config) = task.candidate.config.with(&format!("{}={to}", knob.path)) else {
                continue;
            };
            let mut candidate = Candidate { config, ..task.candidate.clone() };
            // Other degrees may stand on other nodes.
            candidate.config.cluster.network_device =
                task.candidate.config.cluster.network_device.clone();
            changes.push((knob.path.clone(), knob.from.clone(), to, candidate));
        }
    }
    // And whatever the space itself has beside the best in one dimension.
    let beside = tasks.iter().zip(rows).filter(|(_, r)| inside(r));
    for (other, row) in beside {
        let differs: Vec<_> = row.labels.iter().zip(&best.labels).filter(|(a, b)| a != b).collect();
        if let [(to, from)] = differs.as_slice()
            && ["sku", "model", "router", "scheduler"].contains(&to.0.as_str())
        {
            let same_scheduler =
                other.candidate.config.scheduler.name() == task.candidate.config.scheduler.name();
            if to.0 != "scheduler" || !same_scheduler {
                changes.push((to.0.clone(), from.1.clone(), to.1.clone(), other.candidate.clone()));
            }
        }
    }
    let mut effects: Vec<Effect> = changes
        .into_par_iter()
        .with_max_len(1)
        .map(|(setting, from, to, candidate)| {
            let row = study.row(&candidate, task.rule);
            let gain = match (key.cost(best), key.cost(&row)) {
                (Some(now), Some(then)) if row.status == Status::Ok => {
                    Some(100.0 * (now - then) / now)
                }
                _ => None,
            };
            Effect {
                workload: group.workload.clone(),
                slo: group.slo.clone(),
                setting,
                from,
                to,
                requests_per_s: row.requests_per_s,
                gain_percent: gain,
                reason: row.reason,
            }
        })
        .collect();
    let size = |e: &Effect| e.gain_percent.map_or(-1.0, f64::abs);
    effects.sort_by(|a, b| size(b).total_cmp(&size(a)));
    effects
}
