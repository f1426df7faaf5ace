//! From rows to answers: ranks, the best of each group, Pareto fronts, and why configurations are out.

use super::plan::Objective;
use super::row::{Cause, Row, Status};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// The rows of one workload under one set of objectives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The name of the workload.
    pub workload: String,
    /// The name of the objectives.
    pub slo: String,
    /// What configurations are ranked by: `usd_per_million_output_tokens`,
    /// `requests_per_s_per_device`, `requests_per_s` or `joules_per_output_token`.
    pub ranked_by: String,
    /// Configurations that keep the objectives at some rate.
    pub ok: usize,
    /// Configurations that do so at none.
    pub misses_slo: usize,
    /// Configurations that are left out.
    pub excluded: usize,
    /// The id of the best.
    pub best: Option<usize>,
    /// Ids on the front of cost against TTFT P90, the cheapest first.
    pub pareto_ttft_p90: Vec<usize>,
    /// Ids on the front of cost against ITL P99, the cheapest first.
    pub pareto_itl_p99: Vec<usize>,
}

/// A reason for which configurations are left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exclusion {
    /// Of what kind.
    pub cause: Cause,
    /// In words, of the first configuration.
    pub reason: String,
    /// How many configurations, over all workloads and objectives.
    pub count: usize,
}

/// What rows are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// US dollars per million output tokens, few are better.
    Usd,
    /// Requests per second and device, many are better.
    PerDevice,
    /// Requests per second, many are better.
    Rate,
    /// Joules per output token, few are better.
    Joules,
}

impl Key {
    /// What `objective` means for `rows`: without any price, cost is the number of devices.
    pub fn of<'a>(objective: Objective, rows: impl IntoIterator<Item = &'a Row>) -> Key {
        match objective {
            Objective::Cost => {
                let mut ok = rows.into_iter().filter(|r| r.status == Status::Ok);
                match ok.any(|r| r.usd_per_hour.is_some()) {
                    true => Key::Usd,
                    false => Key::PerDevice,
                }
            }
            Objective::PerDevice => Key::PerDevice,
            Objective::Rate => Key::Rate,
            Objective::Energy => Key::Joules,
        }
    }

    /// The field of a row.
    pub const fn field(self) -> &'static str {
        match self {
            Key::Usd => "usd_per_million_output_tokens",
            Key::PerDevice => "requests_per_s_per_device",
            Key::Rate => "requests_per_s",
            Key::Joules => "joules_per_output_token",
        }
    }

    /// The value by which a row is ranked, the least first.
    pub fn cost(self, row: &Row) -> Option<f64> {
        match self {
            Key::Usd => row.usd_per_million_output_tokens,
            Key::PerDevice => row.requests_per_s_per_device.map(|rate| 1.0 / rate),
            Key::Rate => row.requests_per_s.map(|rate| 1.0 / rate),
            Key::Joules => row.joules_per_output_token,
        }
    }

    /// The better row first; of equals the one with the lower TTFT P90, then the first of the space.
    fn compare(self, a: &Row, b: &Row) -> Ordering {
        let known_first = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        };
        known_first(self.cost(a), self.cost(b))
            .then_with(|| known_first(Key::PerDevice.cost(a), Key::PerDevice.cost(b)))
            .then_with(|| known_first(a.ttft_p90(), b.ttft_p90()))
            .then_with(|| a.id.cmp(&b.id))
    }
}

/// Places of the points that no other point beats in both, by `x` ascending; the least of both is
/// best. Of equal points the first counts.
pub fn pareto(points: &[(f64, f64)]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    let by = |i: &usize, j: &usize| {
        let (a, b) = (points[*i], points[*j]);
        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(i.cmp(j))
    };
    order.sort_by(by);
    let mut least = f64::INFINITY;
    order.retain(|i| {
        let better = points[*i].1 < least;
        least = least.min(points[*i].1);
        better
    });
    order
}

/// Ranks the rows of every workload and objective, and marks the fronts. Groups come in the order in
/// which they first occur.
pub fn rank(rows: &mut [Row], objective: Objective) -> Vec<Group> {
    let mut names: Vec<(String, String)> = Vec::new();
    for row in rows.iter() {
        let name = (row.workload.clone(), row.slo.clone());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.into_iter().map(|name| rank_group(rows, name, objective)).collect()
}

fn rank_group(rows: &mut [Row], name: (String, String), objective: Objective) -> Group {
    let inside: Vec<usize> = rows
        .iter()
        .enumerate()
        .filter(|(_, r)| (&r.workload, &r.slo) == (&name.0, &name.1))
        .map(|(i, _)| i)
        .collect();
    let count = |status| inside.iter().filter(|i| rows[**i].status == status).count();
    let key = Key::of(objective, inside.iter().map(|i| &rows[*i]));
    let mut group = Group {
        workload: name.0,
        slo: name.1,
        ranked_by: key.field().to_owned(),
        ok: count(Status::Ok),
        misses_slo: count(Status::MissesSlo),
        excluded: count(Status::Excluded),
        best: None,
        pareto_ttft_p90: Vec::new(),
        pareto_itl_p99: Vec::new(),
    };
    let mut ok: Vec<usize> = inside.into_iter().filter(|i| rows[*i].status == Status::Ok).collect();
    ok.sort_by(|a, b| key.compare(&rows[*a], &rows[*b]));
    group.best = ok.first().map(|i| rows[*i].id);
    for (place, i) in ok.iter().enumerate() {
        rows[*i].rank = u32::try_from(place + 1).ok();
    }
    let front = |latency: fn(&Row) -> Option<f64>| -> Vec<usize> {
        let with: Vec<(usize, (f64, f64))> = ok
            .iter()
            .filter_map(|i| Some((*i, (key.cost(&rows[*i])?, latency(&rows[*i])?))))
            .collect();
        let points: Vec<(f64, f64)> = with.iter().map(|w| w.1).collect();
        pareto(&points).into_iter().map(|p| with[p].0).collect()
    };
    let (ttft, itl) = (front(Row::ttft_p90), front(Row::itl_p99));
    group.pareto_ttft_p90 = ttft.iter().map(|i| rows[*i].id).collect();
    group.pareto_itl_p99 = itl.iter().map(|i| rows[*i].id).collect();
    ttft.into_iter().for_each(|i| rows[i].pareto_ttft_p90 = true);
    itl.into_iter().for_each(|i| rows[i].pareto_itl_p99 = true);
    group
}

/// Why configurations are left out, most frequent first. Reasons that differ in numbers only, of one
/// model on one device spread the same way, are one.
pub fn exclusions(rows: &[Row]) -> Vec<Exclusion> {
    let mut seen: Vec<(_, Exclusion)> = Vec::new();
    for row in rows.iter().filter(|r| r.status == Status::Excluded) {
        let (Some(cause), Some(reason)) = (row.cause, &row.reason) else { continue };
        let of = match cause {
            Cause::Memory | Cause::NodeSize => format!(
                "{} {} {} {}",
                row.model, row.sku, row.tensor_parallel, row.pipeline_parallel
            ),
            _ => reason.clone(),
        };
        match seen.iter_mut().find(|(key, _)| *key == (cause, of.clone())) {
            Some((_, exclusion)) => exclusion.count += 1,
            None => {
                let exclusion = Exclusion { cause, reason: reason.clone(), count: 1 };
                seen.push(((cause, of), exclusion));
            }
        }
    }
    let mut all: Vec<Exclusion> = seen.into_iter().map(|(_, exclusion)| exclusion).collect();
    all.sort_by_key(|e| std::cmp::Reverse(e.count));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_beats_the_front_and_the_front_beats_the_rest(
            points in prop::collection::vec((0u8..20, 0u8..20), 0..40)
        ) {
            let points: Vec<(f64, f64)> =
                points.iter().map(|(x, y)| (f64::from(*x), f64::from(*y))).collect();
            let front = pareto(&points);
            let beats = |a: (f64, f64), b: (f64, f64)| a.0 <= b.0 && a.1 <= b.1 && a != b;
            for (i, point) in points.iter().enumerate() {
                let beaten = points.iter().any(|other| beats(*other, *point));
                let equal_before = front.iter().any(|f| *f != i && points[*f] == *point);
                prop_assert_eq!(front.contains(&i), !beaten && !equal_before);
            }
        }
    }
}
