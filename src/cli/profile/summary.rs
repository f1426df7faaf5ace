//! What a run left behind, and what a dry run would do, as text.

use super::{estimated_cost, shown};
use crate::cli::table::{number, render, text, window_width};
use crate::dataset::manifest::noise;
use crate::dataset::schema::STATISTICS;
use crate::dataset::write::TableKind;
use crate::profiling::backend::Peaks;
use crate::profiling::plan::{self, Grid, Limits};
use crate::profiling::runner::{Job, Outcome};
use crate::spec::ops::Op;
use std::fmt::Write;
use std::time::Duration;

/// The plan of `job`, its grid and what it will cost.
pub fn plan(job: &Job, grid: Grid, limits: Limits, peaks: Peaks) -> String {
    let degrees: Vec<String> = job.degrees.iter().map(u32::to_string).collect();
    let cost = Duration::from_secs(estimated_cost(job, peaks).as_secs() + 1);
    let mut text = format!(
        "{} {} on {}: {} shapes x tensor parallel {}, {} {}\n",
        job.kind.name(),
        job.model.name,
        job.sku,
        job.shapes.len(),
        degrees.join(", "),
        job.rounds,
        if job.rounds == 1 { "round" } else { "rounds" }
    );
    for line in plan::describe(job.kind == TableKind::Mlp, grid, limits) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {line}");
    }
    let budget = match job.budget {
        Some(budget) => format!("budget {}", humantime::format_duration(budget)),
        None => "no budget".into(),
    };
    let _ = writeln!(
        text,
        "  calibration: {:.0} GFLOP/s, {:.1} GB/s\n  estimated cost: {} ({budget}); nothing was written",
        peaks.flops_per_s / 1e9,
        peaks.bytes_per_s / 1e9,
        humantime::format_duration(cost)
    );
    text
}

/// The rows of the profile by operator, where they are, and what to do next.
pub fn outcome(job: &Job, outcome: &Outcome) -> String {
    let mut out = String::new();
    let columns = [
        text("operator"),
        number("rows"),
        text("range"),
        number("ms at smallest"),
        number("ms at largest"),
        number("noise"),
    ];
    let noise = noise(&outcome.table);
    let rows: Vec<Vec<String>> = job
        .kind
        .ops()
        .iter()
        .enumerate()
        .filter_map(|(i, &op)| {
            let points = points(outcome, i, op);
            let (first, last) = (points.first()?, points.last()?);
            let spread = noise.get(op.name()).copied().unwrap_or(0.0);
            Some(vec![
                op.name().to_owned(),
                points.len().to_string(),
                if first.0 == last.0 {
                    first.1.clone()
                } else {
                    format!("{} to {}", first.1, last.1)
                },
                format!("{:.4}", first.2),
                format!("{:.4}", last.2),
                format!("{:.1} %", spread * 100.0),
            ])
        })
        .collect();
    out.push_str(&render(&columns, &rows, window_width()));
    if !out.ends_with('\n') {
        out.push('\n');
    }
    let path = shown(&job.files.csv());
    let _ = match outcome.measured {
        0 => writeln!(out, "{path}: complete, {} rows", outcome.table.len()),
        new => writeln!(out, "{path}: {} rows, {new} of them new", outcome.table.len()),
    };
    if !outcome.failed.is_empty() {
        let failed = &outcome.failed[0];
        let _ = writeln!(
            out,
            "{} shapes failed, the first: {}: {} (all are in {})",
            outcome.failed.len(),
            failed.shape,
            failed.reason,
            shown(&job.files.manifest())
        );
    }
    if outcome.skipped > 0 {
        let _ = writeln!(
            out,
            "{} more shapes did not fit into the budget: the same command goes on with them",
            outcome.skipped
        );
    }
    let other = match job.kind {
        TableKind::Mlp => TableKind::Attention,
        TableKind::Attention => TableKind::Mlp,
    };
    let (model, sku) = (&job.model.name, &job.sku);
    let beside = job.files.directory().join(format!("{}.csv", other.name()));
    let _ = if beside.exists() {
        writeln!(out, "next: vidur fit --model {model} --sku {sku}, then vidur simulate with it")
    } else {
        writeln!(
            out,
            "next: vidur profile {} --models {model}, then vidur fit --model {model} --sku {sku}",
            other.name()
        )
    };
    out
}

/// `(order, label, median)` of every row that has the operator, from small to large. The order is
/// by tokens in all, so that the ends are the ends of the range.
fn points(outcome: &Outcome, index: usize, op: Op) -> Vec<(u64, String, f64)> {
    let kind = outcome.table.kind();
    let first_key = STATISTICS.len() * kind.ops().len();
    let mut points: Vec<(u64, String, f64)> = outcome
        .table
        .rows()
        .filter_map(|row| {
            let median: f64 = row[index * STATISTICS.len() + 3].parse().ok()?;
            let key = |name: &str| {
                let at = kind.keys().iter().position(|k| *k == name);
                at.and_then(|at| row[first_key + at].parse::<u64>().ok()).unwrap_or(0)
            };
            let (order, label) = match (kind, op) {
                (TableKind::Mlp, _) => (key("num_tokens"), key("num_tokens").to_string()),
                (_, Op::AttnPrefill) => {
                    let (chunk, kv) = (key("prefill_chunk_size"), key("kv_cache_size"));
                    (chunk * (chunk + 2 * kv), format!("{chunk} after {kv}"))
                }
                (_, Op::AttnDecode) => {
                    let (batch, kv) = (key("batch_size"), key("kv_cache_size"));
                    (batch * (kv + 1), format!("{batch} x {kv}"))
                }
                _ => {
                    let tokens = key("prefill_chunk_size").max(key("batch_size"));
                    (tokens, tokens.to_string())
                }
            };
            Some((order, label, median))
        })
        .collect();
    points.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    points
}
