//! `vidur simulate --compare`: cases side by side.

use super::super::Failure;
use super::super::table::{self, Column, number, render, text};
use crate::predictor::TableCache;
use crate::report::text as words;
use crate::run::compare::{self, Comparison, FIGURES};
use crate::run::{Run, RunConfig};
use crate::spec::catalog::Catalog;
use std::path::Path;

/// Compares the cases and prints one table; with a folder also writes comparison.json there.
pub fn run(
    config: &RunConfig,
    compared: &[String],
    seeds: u32,
    output_dir: Option<&Path>,
    catalog: &Catalog,
    cache: &TableCache,
) -> Result<(), Failure> {
    let cases = compare::cases(config, compared).map_err(Failure::user)?;
    let dir = output_dir.map(|dir| super::super::new_run_dir(Some(dir), "")).transpose()?;
    let result = compare::compare(&cases, seeds, catalog, cache).map_err(Failure::user)?;
    let mut shown = headline(&cases[0].config, catalog, cache);
    shown.push_str(&rendered(&result));
    if let Some(dir) = dir {
        let path = dir
            .write("comparison.json", |out| {
                serde_json::to_writer_pretty(out, &result).map_err(std::io::Error::from)
            })
            .and_then(|()| dir.finish())
            .map_err(Failure::user)?;
        shown.push_str(&format!("written to   {}\n", path.display()));
    }
    table::print(&shown)
}

/// What the cases have in common.
fn headline(config: &RunConfig, catalog: &Catalog, cache: &TableCache) -> String {
    match Run::resolve_with(config.clone(), catalog, cache) {
        Ok(run) => format!(
            "{}\n{}\n\n",
            words::wrap(&format!("{}, {}", run.model.name, run.provenance.description)),
            words::wrap(&run.workload.description)
        ),
        Err(_) => String::new(),
    }
}

fn rendered(result: &Comparison) -> String {
    const EXPENDABLE: [u8; FIGURES.len()] = [0, 3, 0, 4, 2, 0];
    let mut columns: Vec<Column> = vec![text("case")];
    columns.extend(FIGURES.iter().zip(EXPENDABLE).map(|(f, order)| number(f.0).expendable(order)));
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut errors = String::new();
    for case in &result.cases {
        let mut row = vec![case.case.clone()];
        row.extend(case.figures.iter().map(|v| v.map_or_else(|| "-".to_owned(), words::number)));
        rows.push(row);
        if let Some(error) = &case.error {
            errors.push_str(&words::wrap(&format!("{}: {error}", case.case)));
            errors.push('\n');
        }
        if !case.differences.is_empty() {
            let mut row = vec![String::new()];
            row.extend(case.differences.iter().map(|d| {
                d.map_or_else(
                    || "-".to_owned(),
                    |d| format!("{:+.1} ±{:.1} %", d.percent, d.plus_minus_percent),
                )
            }));
            rows.push(row);
        }
    }
    format!(
        "{}\n{}\n{errors}",
        render(&columns, &rows, table::window_width())
            .replace("--json has everything", "--output-dir writes everything"),
        words::wrap(&result.method)
    )
}
