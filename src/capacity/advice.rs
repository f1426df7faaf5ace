//! What to change when nothing answers a plan: the reason, and the nearest change that does.

use super::answer::Group;
use super::row::{Cause, Row, Status};
use super::search::round_significant;
use super::study::{Study, Task};
use crate::spec::catalog::Catalog;

/// Tensor parallel degrees that are tried in search of one that fits.
const DEGREES: [u32; 5] = [1, 2, 4, 8, 16];

/// What would have to change for a group in which no configuration keeps the objectives. One sentence a
/// line, the nearest change first.
pub fn advice(study: &Study<'_>, tasks: &[Task], rows: &[Row], group: &Group) -> Vec<String> {
    let inside: Vec<(&Task, &Row)> = tasks
        .iter()
        .zip(rows)
        .filter(|(_, r)| (&r.workload, &r.slo) == (&group.workload, &group.slo))
        .collect();
    let mut lines: Vec<String> = misses(study, &inside).into_iter().collect();
    for cause in
        [Cause::Rate, Cause::Devices, Cause::Budget, Cause::Power, Cause::NodeSize, Cause::Memory]
    {
        let those: Vec<(&Task, &Row)> =
            inside.iter().filter(|(_, r)| r.cause == Some(cause)).copied().collect();
        if !those.is_empty() {
            lines.extend(relax(study, &those, cause));
        }
    }
    if lines.is_empty() {
        // The reasons say it all: a degree that does not divide, a profile that is missing.
        lines.extend(inside.iter().find_map(|(_, r)| r.reason.clone()));
    }
    lines
}

/// A limit that is just met, in three digits.
fn above(value: f64) -> f64 {
    let rounded = round_significant(value, 3);
    if rounded >= value { rounded } else { round_significant(value * 1.005, 3) }
}

/// The configuration that comes nearest to the objectives at the lowest rate.
fn misses(study: &Study<'_>, inside: &[(&Task, &Row)]) -> Option<String> {
    let factor = |row: &Row| {
        let of = |m: &super::evaluate::Missed| match m.field.as_str() {
            "goodput" => m.limit / m.reached.max(1e-3),
            _ => m.reached / m.limit,
        };
        row.missed.iter().map(of).fold(1.0, f64::max)
    };
    let missing = inside.iter().filter(|(_, r)| r.status == Status::MissesSlo);
    let (_, row) = missing.min_by(|a, b| factor(a.1).total_cmp(&factor(b.1)))?;
    let missed: Vec<String> = row
        .missed
        .iter()
        .map(|m| match m.field.as_str() {
            "goodput" => format!("{:.1} % of requests are good and not {}", m.reached, m.limit),
            _ => format!("{} is {} ms and not {}", m.objective, above(m.reached), m.limit),
        })
        .collect();
    let section =
        if study.plan.slos.is_empty() { "slo".to_owned() } else { format!("slos.{}", row.slo) };
    let cure: Vec<String> = row
        .missed
        .iter()
        .map(|m| {
            let key = m.objective.rsplit(' ').next().unwrap_or_default().to_lowercase();
            match m.field.as_str() {
                "goodput" => format!("lower {section}.goodput.percent to {:.1}", m.reached),
                field => format!("raise {section}.{field}.{key} to {}", above(m.reached)),
            }
        })
        .collect();
    Some(format!(
        "the nearest is {}: even when requests hardly meet, {}; {}, or add faster devices or more \
         tensor_parallel",
        row.short(),
        missed.join(" and "),
        cure.join(" and ")
    ))
}

/// The smallest step over a constraint that leads to a configuration that serves something.
fn relax(study: &Study<'_>, those: &[(&Task, &Row)], cause: Cause) -> Option<String> {
    if cause == Cause::Memory {
        return fits(study, those);
    }
    if cause == Cause::Rate {
        let best = those.iter().max_by(|a, b| {
            let rate = |r: &Row| r.requests_per_s.unwrap_or(0.0);
            rate(a.1).total_cmp(&rate(b.1))
        })?;
        let (row, rate) = (best.1, best.1.requests_per_s?);
        let least = study.plan.constraints.min_requests_per_s?;
        let copies = (least / rate).ceil() * f64::from(row.replicas);
        return Some(format!(
            "the fastest is {} with {rate} requests/s: lower constraints.min_requests_per_s to {rate}, \
             or add replicas: [{copies}] to the space",
            row.short()
        ));
    }
    let size = |row: &Row| match cause {
        Cause::Budget => row.usd_per_hour,
        Cause::Power => row.power_w,
        _ => Some(f64::from(row.devices)),
    };
    let mut order: Vec<(f64, &Task, &Row)> =
        those.iter().filter_map(|(t, r)| Some((size(r)?, *t, *r))).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let free = super::plan::Constraints {
        within_node: cause != Cause::NodeSize,
        ..super::plan::Constraints { max_devices: None, ..Default::default() }
    };
    // The smallest that also fits and keeps the objectives.
    for (size, task, _) in order.into_iter().take(20) {
        let row = study.row_under(&task.candidate, task.rule, &free);
        let Some(rate) = row.requests_per_s.filter(|_| row.status == Status::Ok) else { continue };
        let change = match cause {
            Cause::Devices => format!("raise constraints.max_devices to {size}"),
            Cause::Budget => {
                format!("raise constraints.max_usd_per_hour to {}", above(size))
            }
            Cause::Power => format!("raise constraints.max_power_w to {size}"),
            _ => "set constraints.within_node to false, or lower tensor_parallel and \
                  pipeline_parallel"
                .to_owned(),
        };
        return Some(format!("{change}: {} serves {rate} requests/s", row.short()));
    }
    those.iter().find_map(|(_, r)| r.reason.clone())
}

/// Where a model would fit that fits nowhere in the space: at a higher degree, else on another device.
fn fits(study: &Study<'_>, those: &[(&Task, &Row)]) -> Option<String> {
    let (task, row) = those.first()?;
    let reason = row.reason.clone().unwrap_or_default();
    let most = study.prices.largest_node(&row.sku).map_or(16, |n| n.num_devices);
    for tp in DEGREES.into_iter().filter(|tp| *tp > row.tensor_parallel && *tp <= most) {
        let mut candidate = task.candidate.clone();
        candidate.config.cluster.tensor_parallel = tp;
        if study.run_of(&candidate, Some(20)).is_ok() {
            return Some(format!("{reason}; it fits with tensor_parallel: [{tp}]"));
        }
    }
    let device = larger(study.catalog, task, study)?;
    Some(format!("{reason}; the smallest device that holds it is {device}"))
}

/// The device with the least memory on which a configuration fits.
fn larger(catalog: &Catalog, task: &Task, study: &Study<'_>) -> Option<String> {
    let mut devices = catalog.devices().ok()?;
    devices.sort_by_key(|d| d.memory_bytes);
    devices.into_iter().map(|d| d.name).find(|name| {
        let mut candidate = task.candidate.clone();
        candidate.config.cluster.sku.clone_from(name);
        candidate.config.cluster.network_device = None;
        study.run_of(&candidate, Some(20)).is_ok()
    })
}
