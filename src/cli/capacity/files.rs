//! The files of a capacity run.

use crate::capacity::{Exclusion, Group, Key, Row, Status, Study, results_csv};
use crate::report::run_dir::{RunDir, RunDirError};
use crate::report::scatter_svg::{self, Axes, Point};
use serde_json::{Value, json};
use std::io::Write as _;

/// What is written and shown.
pub struct Results<'a> {
    /// The plan.
    pub study: &'a Study<'a>,
    /// A row per configuration, workload and set of objectives.
    pub rows: &'a [Row],
    /// By workload and set of objectives.
    pub groups: &'a [Group],
    /// Why configurations are left out.
    pub exclusions: &'a [Exclusion],
}

impl Results<'_> {
    /// The row of a configuration in a group.
    pub fn row(&self, group: &Group, id: usize) -> Option<&Row> {
        let inside = |r: &&Row| (&r.workload, &r.slo) == (&group.workload, &group.slo);
        self.rows.iter().filter(inside).find(|r| r.id == id)
    }

    /// The ranked rows of a group, the best first.
    pub fn ranked(&self, group: &Group) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self
            .rows
            .iter()
            .filter(|r| (&r.workload, &r.slo) == (&group.workload, &group.slo))
            .filter(|r| r.status == Status::Ok)
            .collect();
        rows.sort_by_key(|r| r.rank);
        rows
    }
}

/// `summary.json`.
pub fn summary(results: &Results<'_>) -> Value {
    json!({
        "vidur_version": env!("CARGO_PKG_VERSION"),
        "kind": "capacity",
        "groups": results.groups,
        "exclusions": results.exclusions,
        "rows": results.rows,
    })
}

/// Writes every file.
///
/// # Errors
/// Those of the system, with the path.
pub fn write(dir: &RunDir, results: &Results<'_>) -> Result<(), RunDirError> {
    dir.write("results.csv", |out| results_csv::write(results.rows, out))?;
    dir.write("summary.json", |out| {
        serde_json::to_writer_pretty(&mut *out, &summary(results))?;
        writeln!(out)
    })?;
    yaml(dir, "plan.yml", &results.study.plan)?;
    let several = results.groups.len() > 1;
    for group in results.groups {
        let suffix = |name: &str| match several {
            true => format!("{name}-{}-{}", group.workload, group.slo),
            false => name.to_owned(),
        };
        front(dir, results, group, &suffix("pareto_ttft"), true)?;
        front(dir, results, group, &suffix("pareto_itl"), false)?;
    }
    Ok(())
}

fn yaml(dir: &RunDir, name: &str, value: &impl serde::Serialize) -> Result<(), RunDirError> {
    dir.write(name, |out| {
        let text = serde_saphyr::to_string(value).map_err(std::io::Error::other)?;
        out.write_all(text.as_bytes())
    })
}

/// A configuration in a few words: what sets it apart.
pub fn short(row: &Row) -> String {
    let mut parts = vec![row.sku.clone()];
    for (n, what) in
        [(row.tensor_parallel, "TP"), (row.pipeline_parallel, "PP"), (row.replicas, "x")]
    {
        if n > 1 {
            parts.push(format!("{what}{n}"));
        }
    }
    parts.push(row.scheduler.clone());
    parts.join(" ")
}

fn front(
    dir: &RunDir,
    results: &Results<'_>,
    group: &Group,
    name: &str,
    ttft: bool,
) -> Result<(), RunDirError> {
    let ranked = results.ranked(group);
    let key = Key::of(results.study.plan.objective, ranked.iter().copied());
    let points: Vec<Point> = ranked
        .iter()
        .filter_map(|row| {
            let (y, on_front) = match ttft {
                true => (row.ttft_p90()?, row.pareto_ttft_p90),
                false => (row.itl_p99()?, row.pareto_itl_p99),
            };
            let label = if on_front { short(row) } else { String::new() };
            Some(Point { x: key.cost(row)?, y, on_front, label })
        })
        .collect();
    let x = match key {
        Key::Usd => "USD per million output tokens",
        Key::PerDevice => "device-seconds per request",
        Key::Rate => "seconds per request",
        Key::Joules => "joules per output token",
    };
    let (y, title) = match ttft {
        true => ("TTFT P90, ms", "Cost against time to first token, at capacity"),
        false => ("ITL P99, ms", "Cost against time between tokens, at capacity"),
    };
    let svg = scatter_svg::draw(Axes { title, x, y }, &points)
        .map_err(|cause| RunDirError::Io { path: name.to_owned(), cause })?;
    match svg {
        Some(svg) => dir.write(&format!("{name}.svg"), |out| out.write_all(svg.as_bytes())),
        None => Ok(()),
    }
}
