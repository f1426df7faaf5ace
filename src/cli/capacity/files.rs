//! The files of a capacity run.

use crate::capacity::{Answers, Group, Key, Part, Row, Status, Study, Task, results_csv};
use crate::report::run_dir::{RunDir, RunDirError};
use crate::report::scatter_svg::{self, Axes, Point};
use serde_json::{Value, json};
use std::io::Write as _;

/// What is written and shown.
pub struct Results<'a> {
    /// The plan.
    pub study: &'a Study<'a>,
    /// Its searches.
    pub tasks: &'a [Task],
    /// A row per configuration, workload and set of objectives.
    pub rows: &'a [Row],
    /// What follows from them.
    pub answers: &'a Answers,
}

impl Results<'_> {
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
        "plan": results.study.plan,
        "answers": results.answers,
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
    let several = results.answers.groups.len() > 1;
    for group in &results.answers.groups {
        let suffix = |name: &str| match several {
            true => format!("{name}-{}-{}", group.workload, group.slo),
            false => name.to_owned(),
        };
        front(dir, results, group, &suffix("pareto_ttft"), true)?;
        front(dir, results, group, &suffix("pareto_itl"), false)?;
        best(dir, results, group, &suffix("best"))?;
    }
    Ok(())
}

/// What a job leaves behind for merging.
///
/// # Errors
/// Those of the system, with the path.
pub fn write_part(dir: &RunDir, part: &Part) -> Result<(), RunDirError> {
    dir.write("part.json", |out| {
        serde_json::to_writer(&mut *out, part)?;
        writeln!(out)
    })
}

/// The config of the best configuration at its capacity, for `vidur simulate`.
fn best(dir: &RunDir, results: &Results<'_>, group: &Group, name: &str) -> Result<(), RunDirError> {
    let failed = |cause| RunDirError::Io { path: name.to_owned(), cause };
    let best = results.tasks.iter().zip(results.rows).find(|(_, row)| {
        row.rank == Some(1) && (&row.workload, &row.slo) == (&group.workload, &group.slo)
    });
    let found = best.and_then(|(t, r)| Some((t, r.requests_per_s?, r.requests?)));
    let Some((task, rate, requests)) = found else { return Ok(()) };
    let config = results.study.config_at(task, rate, requests).map_err(failed)?;
    yaml(dir, &format!("{name}.yml"), &config)
}

fn yaml(dir: &RunDir, name: &str, value: &impl serde::Serialize) -> Result<(), RunDirError> {
    dir.write(name, |out| {
        let text = serde_saphyr::to_string(value).map_err(std::io::Error::other)?;
        out.write_all(text.as_bytes())
    })
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
            let label = if on_front { row.short() } else { String::new() };
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
