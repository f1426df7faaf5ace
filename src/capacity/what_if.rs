//! How the answer moves when objectives, prices or the rate do.

use super::answer::{Group, rank};
use super::row::Row;
use super::study::{Study, Task};
use serde::{Deserialize, Serialize};

/// The answer to one change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhatIfRow {
    /// The name of the workload.
    pub workload: String,
    /// The name of the objectives.
    pub slo: String,
    /// What changes: `limits x 0.5`, `h100_sxm price x 0.8`, `40 requests/s`.
    pub change: String,
    /// The best configuration then; none where nothing keeps the objectives.
    pub best: Option<Choice>,
}

/// A configuration that is chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Which.
    pub id: usize,
    /// In short.
    pub configuration: String,
    /// Whether it is the best of the plan as it is.
    pub same: bool,
    /// Its capacity, requests per second.
    pub requests_per_s: Option<f64>,
    /// Replicas: of the configuration, or of the fleet.
    pub replicas: u32,
    /// Devices of these.
    pub devices: u32,
    /// US dollars per hour; of a fleet for whole nodes.
    pub usd_per_hour: Option<f64>,
    /// US dollars per million output tokens at the capacity; of a fleet at the rate that is served.
    pub usd_per_million_output_tokens: Option<f64>,
}

/// Every change of the plan's `what_if`, for every group. `done` is told of each row searched.
pub fn what_if(
    study: &Study<'_>,
    tasks: &[Task],
    rows: &[Row],
    groups: &[Group],
    done: &(dyn Fn() + Sync),
) -> Vec<WhatIfRow> {
    let wanted = &study.plan.what_if;
    let mut out = Vec::new();
    for factor in &wanted.slo_times {
        let other = study.with_plan(study.plan.with_slo_times(*factor));
        let mut moved = other.rows(tasks, done);
        let ranked = rank(&mut moved, study.plan.objective);
        out.extend(choices(&moved, &ranked, groups, &format!("limits x {factor}")));
    }
    for (device, factors) in &wanted.price_times {
        for factor in factors {
            let prices = study.prices.with_times(device, *factor);
            let mut moved: Vec<Row> = rows.iter().map(|row| repriced(row, &prices)).collect();
            let ranked = rank(&mut moved, study.plan.objective);
            let change = format!("{device} price x {factor}");
            out.extend(choices(&moved, &ranked, groups, &change));
        }
    }
    for rate in &wanted.requests_per_s {
        out.extend(groups.iter().map(|group| WhatIfRow {
            workload: group.workload.clone(),
            slo: group.slo.clone(),
            change: format!("{rate} requests/s"),
            best: cheapest_fleet(rows, group, *rate),
        }));
    }
    out
}

fn repriced(row: &Row, prices: &super::pricing::PriceList) -> Row {
    let per_replica = row.tensor_parallel.saturating_mul(row.pipeline_parallel);
    let node = row.offer.as_ref().map(|o| o.node.clone());
    // The same node where it still is offered, else the cheapest: a price that falls for all nodes of
    // a device leaves their order.
    let offers = prices.offers(&row.sku, per_replica);
    let offer = match node {
        Some(node) => offers.into_iter().find(|o| o.node == node),
        None => None,
    };
    row.clone().priced(offer)
}

fn choices(moved: &[Row], ranked: &[Group], groups: &[Group], change: &str) -> Vec<WhatIfRow> {
    let of = |group: &Group| {
        let now = groups.iter().find(|g| (&g.workload, &g.slo) == (&group.workload, &group.slo));
        let inside = |r: &&Row| (&r.workload, &r.slo) == (&group.workload, &group.slo);
        let best = moved.iter().filter(inside).find(|r| r.rank == Some(1));
        WhatIfRow {
            workload: group.workload.clone(),
            slo: group.slo.clone(),
            change: change.to_owned(),
            best: best.map(|row| Choice {
                id: row.id,
                configuration: row.short(),
                same: now.is_some_and(|g| g.best == Some(row.id)),
                requests_per_s: row.requests_per_s,
                replicas: row.replicas,
                devices: row.devices,
                usd_per_hour: row.usd_per_hour,
                usd_per_million_output_tokens: row.usd_per_million_output_tokens,
            }),
        }
    };
    ranked.iter().map(of).collect()
}

/// The cheapest way to serve a rate with copies of one configuration, each at most at its capacity.
fn cheapest_fleet(rows: &[Row], group: &Group, rate: f64) -> Option<Choice> {
    let inside = rows
        .iter()
        .filter(|r| (&r.workload, &r.slo) == (&group.workload, &group.slo))
        .filter(|r| r.rank.is_some());
    let fleets = inside.filter_map(|row| {
        let copies = (rate / row.requests_per_s?).ceil().max(1.0) as u32;
        let replicas = copies.saturating_mul(row.replicas);
        let usd = row.offer.as_ref().map(|o| o.whole(replicas));
        let tokens_per_s = rate * row.at.as_ref()?.output_tokens;
        Some(Choice {
            id: row.id,
            configuration: row.short_of_one(),
            same: group.best == Some(row.id),
            requests_per_s: row.requests_per_s,
            replicas,
            devices: copies.saturating_mul(row.devices),
            usd_per_hour: usd,
            usd_per_million_output_tokens: usd.map(|u| u / 3600.0 / tokens_per_s * 1e6),
        })
    });
    fleets.min_by(|a, b| {
        let cost = |c: &Choice| (c.usd_per_hour.unwrap_or(f64::INFINITY), f64::from(c.devices));
        let (a, b) = ((cost(a), a.id), (cost(b), b.id));
        a.0.0.total_cmp(&b.0.0).then(a.0.1.total_cmp(&b.0.1)).then(a.1.cmp(&b.1))
    })
}
