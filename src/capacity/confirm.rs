//! How sure the choice is: the best configurations searched again on other random numbers.
//!
//! Every seed is an independent draw of arrivals and lengths; all configurations see the same draws. The
//! capacities of the seeds give an interval of the mean by Student's t. While it is wider than asked,
//! runs get twice as long.

use super::answer::{Group, Key};
use super::plan::Confirm;
use super::row::{Row, Status};
use super::study::{Study, Task};
use crate::stats;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// One of the best configurations on several seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The name of the workload.
    pub workload: String,
    /// The name of the objectives.
    pub slo: String,
    /// The configuration.
    pub id: usize,
    /// In short.
    pub configuration: String,
    /// Seeds.
    pub seeds: u32,
    /// Requests of a run, in the end.
    pub requests: u32,
    /// Mean capacity, requests per second.
    pub requests_per_s: f64,
    /// Half the width of the confidence interval of the mean, per cent of it.
    pub plus_minus_percent: f64,
    /// Its confidence, per cent.
    pub level_percent: f64,
    /// Whether it is as narrow as asked.
    pub narrow_enough: bool,
    /// Seeds on which this configuration was the best of those confirmed.
    pub best_on: u32,
}

/// The best configurations of `group` on other seeds.
pub fn confirm(
    study: &Study<'_>,
    tasks: &[Task],
    rows: &[Row],
    group: &Group,
) -> Vec<Confirmation> {
    let settings = study.plan.confirm;
    let mut best: Vec<(&Task, &Row)> = tasks
        .iter()
        .zip(rows)
        .filter(|(_, r)| (&r.workload, &r.slo) == (&group.workload, &group.slo))
        .filter(|(_, r)| r.rank.is_some_and(|rank| rank <= settings.top))
        .collect();
    best.sort_by_key(|(_, r)| r.rank);
    let Some((first, _)) = best.first() else { return Vec::new() };
    // A trace that is replayed has no random numbers: it would agree with itself.
    let drawn = |seed: u64| {
        let mut candidate = first.candidate.clone();
        candidate.config.seed = candidate.config.seed.wrapping_add(seed);
        study.run_of(&candidate, Some(study.plan.search.requests)).map(|r| r.workload.requests)
    };
    if drawn(1) == drawn(2) {
        return Vec::new();
    }
    let mut requests = study.plan.search.requests;
    loop {
        let found = once(study, &best, requests, settings);
        let done = found.iter().all(|c| c.narrow_enough);
        let longer = requests.saturating_mul(2);
        // A trace has no more requests than it has.
        let own = best.iter().map(|(t, _)| own_requests(study, t)).min().unwrap_or(0);
        if done || longer > settings.max_requests || longer > own {
            return found;
        }
        requests = longer;
    }
}

/// Requests that the workload of a task can have.
fn own_requests(study: &Study<'_>, task: &Task) -> u32 {
    match &task.candidate.config.workload {
        crate::workload::WorkloadConfig::Synthetic(_) => u32::MAX,
        crate::workload::WorkloadConfig::Trace(_) => {
            let run = study.run_of(&task.candidate, None);
            run.map_or(0, |r| u32::try_from(r.workload.requests.len()).unwrap_or(u32::MAX))
        }
    }
}

fn once(
    study: &Study<'_>,
    best: &[(&Task, &Row)],
    requests: u32,
    settings: Confirm,
) -> Vec<Confirmation> {
    let search = super::plan::Search { requests, ..study.plan.search };
    let longer = study.with_plan(super::plan::Plan { search, ..study.plan.clone() });
    let work: Vec<(usize, u32)> =
        (0..best.len()).flat_map(|i| (1..=settings.seeds).map(move |s| (i, s))).collect();
    let searched: Vec<Row> = work
        .par_iter()
        .with_max_len(1)
        .map(|(i, seed)| {
            let (task, _) = best[*i];
            let mut candidate = task.candidate.clone();
            candidate.config.seed = candidate.config.seed.wrapping_add(u64::from(*seed));
            longer.row(&candidate, task.rule)
        })
        .collect();
    let key = Key::of(study.plan.objective, best.iter().map(|b| b.1));
    let of = |i: usize, seed: u32| -> &Row {
        &searched[i * settings.seeds as usize + (seed - 1) as usize]
    };
    let wins = |i: usize| {
        let best_on = |seed: &u32| {
            let cost = |j: usize| key.cost(of(j, *seed)).unwrap_or(f64::INFINITY);
            (0..best.len()).all(|j| cost(i) < cost(j) || (cost(i) <= cost(j) && i <= j))
        };
        (1..=settings.seeds).filter(best_on).count() as u32
    };
    best.iter()
        .enumerate()
        .map(|(i, (_, row))| {
            let rates: Vec<f64> = (1..=settings.seeds)
                .map(|s| of(i, s))
                .map(|r| r.requests_per_s.filter(|_| r.status == Status::Ok).unwrap_or(0.0))
                .collect();
            let mean = stats::mean(&rates).unwrap_or(0.0);
            let half =
                stats::mean_half_width(&rates, settings.level_percent).unwrap_or(f64::INFINITY);
            let percent = if mean > 0.0 { 100.0 * half / mean } else { 100.0 };
            Confirmation {
                workload: row.workload.clone(),
                slo: row.slo.clone(),
                id: row.id,
                configuration: row.short(),
                seeds: settings.seeds,
                requests,
                requests_per_s: mean,
                plus_minus_percent: percent,
                level_percent: settings.level_percent,
                narrow_enough: percent <= settings.within_percent,
                best_on: wins(i),
            }
        })
        .collect()
}
