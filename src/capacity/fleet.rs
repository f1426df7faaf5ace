//! The smallest fleet that serves a rate, found by simulating fleets.
//!
//! The capacity of one configuration says about how many replicas are needed. Behind a router replicas
//! do better than alone, and a trace has peaks that its mean rate does not show: so fleets of that size,
//! and of sizes around it, serve the workload, and the smallest that keeps the objectives counts.

use super::answer::Group;
use super::evaluate::{Measure, in_flight};
use super::plan::Fleet;
use super::pricing::Offer;
use super::row::Row;
use super::search::{Highest, highest};
use super::study::{Study, Task};
use crate::run::RunConfig;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Fleets that are tried at most: those of the configurations that look cheapest by their capacity.
const MOST_TRIED: usize = 12;
/// The warm-up is so many times as long as a request is under way.
const WARMUP_LIFETIMES: f64 = 2.0;
/// And none that look this many times more expensive than the cheapest.
const MOST_EXPENSIVE: f64 = 1.5;

/// A fleet of one configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetRow {
    /// The configuration.
    pub id: usize,
    /// In short.
    pub configuration: String,
    /// The fewest replicas that keep the objectives; none up to the most that were tried.
    pub replicas: Option<u32>,
    /// How many its capacity alone would ask for.
    pub replicas_by_capacity: u32,
    /// Devices of these replicas.
    pub devices: Option<u32>,
    /// How they are rented.
    pub offer: Option<Offer>,
    /// Whole nodes of that offer.
    pub nodes: Option<u32>,
    /// US dollars per hour of whole nodes.
    pub usd_per_hour: Option<f64>,
    /// Latencies of the fleet.
    pub at: Option<Measure>,
}

/// The fleets for one workload and set of objectives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetAnswer {
    /// The name of the workload.
    pub workload: String,
    /// The name of the objectives.
    pub slo: String,
    /// The rate that is served, requests per second.
    pub requests_per_s: f64,
    /// Requests of a run.
    pub requests: u32,
    /// What was tried, the cheapest first.
    pub tried: Vec<FleetRow>,
}

/// The smallest fleets for `group`.
///
/// # Errors
/// When a fleet cannot be simulated.
pub fn fleets(
    study: &Study<'_>,
    settings: Fleet,
    tasks: &[Task],
    rows: &[Row],
    group: &Group,
) -> Result<Option<FleetAnswer>, String> {
    // One replica of each configuration, whatever number of replicas the space has.
    let mut seen: Vec<RunConfig> = Vec::new();
    let mut ones: Vec<(&Task, &Row)> = Vec::new();
    let inside = tasks
        .iter()
        .zip(rows)
        .filter(|(_, r)| (&r.workload, &r.slo) == (&group.workload, &group.slo));
    for (task, row) in inside.filter(|(_, r)| r.rank.is_some()) {
        let mut config = task.candidate.config.clone();
        config.cluster.num_replicas = 1;
        if !seen.contains(&config) {
            seen.push(config);
            ones.push((task, row));
        }
    }
    let Some((first, _)) = ones.first() else { return Ok(None) };
    let first_run = study.run_of(&first.candidate, settings.requests)?;
    let rule = &study.rules[first.rule].1;
    let natural = study.subject(&first_run, rule)?.template.natural_rate();
    let rate = settings.requests_per_s.unwrap_or(natural);
    let requests = first_run.workload.requests.len();
    let by_capacity = |row: &Row| {
        let each = row.requests_per_s.unwrap_or(f64::INFINITY) / f64::from(row.replicas);
        ((rate / each).ceil().max(1.0)) as u32
    };
    let cost = |row: &Row, replicas: u32| match &row.offer {
        Some(offer) => offer.whole(replicas),
        None => f64::from(replicas * row.devices / row.replicas),
    };
    let priced = ones.iter().any(|(_, r)| r.offer.is_some());
    ones.retain(|(_, r)| r.offer.is_some() || !priced);
    ones.sort_by(|a, b| {
        let guess = |r: &Row| cost(r, by_capacity(r));
        guess(a.1).total_cmp(&guess(b.1)).then(a.1.rank.cmp(&b.1.rank))
    });
    let cheapest = ones.first().map_or(0.0, |(_, r)| cost(r, by_capacity(r)));
    ones.retain(|(_, r)| cost(r, by_capacity(r)) <= MOST_EXPENSIVE * cheapest);
    ones.truncate(MOST_TRIED);
    let mut tried: Vec<FleetRow> = ones
        .par_iter()
        .with_max_len(1)
        .map(|(task, row)| {
            let start = by_capacity(row);
            let warmup = row.at.as_ref().map_or(0, |at| in_flight(rate, at, WARMUP_LIFETIMES));
            let most = settings.max_replicas;
            let found = smallest(study, task, rate, (start, most), (warmup, requests))?;
            let replicas = found.as_ref().map(|f| f.0);
            let each = row.devices / row.replicas;
            Ok(FleetRow {
                id: row.id,
                configuration: row.short_of_one(),
                replicas,
                replicas_by_capacity: start,
                devices: replicas.map(|n| n * each),
                nodes: replicas.and_then(|n| Some(row.offer.as_ref()?.nodes(n))),
                usd_per_hour: replicas.and_then(|n| Some(row.offer.as_ref()?.whole(n))),
                offer: row.offer.clone(),
                at: found.map(|f| f.1),
            })
        })
        .collect::<Result<_, String>>()?;
    let order = |r: &FleetRow| r.usd_per_hour.or(r.devices.map(f64::from)).unwrap_or(f64::INFINITY);
    tried.sort_by(|a, b| order(a).total_cmp(&order(b)).then(a.devices.cmp(&b.devices)));
    Ok(Some(FleetAnswer {
        workload: group.workload.clone(),
        slo: group.slo.clone(),
        requests_per_s: rate,
        requests: u32::try_from(requests).unwrap_or(u32::MAX),
        tried,
    }))
}

/// The fewest replicas of a configuration that keep the objectives at `rate`, looked for from `start`, up
/// to `most`. `counted` requests follow after a warm-up, as far as the workload has them.
fn smallest(
    study: &Study<'_>,
    task: &Task,
    rate: f64,
    (start, most): (u32, u32),
    (warmup, counted): (usize, usize),
) -> Result<Option<(u32, Measure)>, String> {
    let rule = &study.rules[task.rule].1;
    let drawn = u32::try_from(counted + warmup).unwrap_or(u32::MAX);
    let mut best: Option<(u32, Measure)> = None;
    let most = i32::try_from(most.max(1)).unwrap_or(i32::MAX);
    let start = i32::try_from(start).unwrap_or(most);
    let found = highest(-start, 1, 1, (-most, -1), |place| {
        let replicas = place.unsigned_abs();
        let mut fleet = task.candidate.clone();
        fleet.config.cluster.num_replicas = replicas;
        let run = study.run_of(&fleet, Some(drawn))?;
        let subject = study.subject(&run, rule)?;
        let n = subject.template.base().requests.len();
        let warmup = if rule.vidur { 0 } else { warmup.min(n / 2) };
        let (probe, seconds) = subject.probe_after(warmup, rate, n, true)?;
        let passes = probe.verdict().is_none();
        if passes && best.as_ref().is_none_or(|b| b.0 > replicas) {
            best = Some((replicas, subject.measure(&probe, seconds)));
        }
        Ok::<_, String>(passes)
    })?;
    Ok(best.filter(|_| !matches!(found, Highest::None(_))))
}
