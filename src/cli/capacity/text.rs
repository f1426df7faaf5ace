//! What a capacity run prints.

use super::answers;
use super::files::Results;
use crate::capacity::{Group, Row};
use crate::cli::table::{Column, number, render, text, window_width};
use crate::report::text::number as figure;

/// A number or a dash.
pub fn or_dash(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), figure)
}

/// Everything, group by group.
pub fn tables(results: &Results<'_>, top: usize) -> String {
    let answers = results.answers;
    let mut out = String::new();
    for group in &answers.groups {
        out.push_str(&headline(results, group));
        match answers.advice.iter().find(|a| same(group, &a.workload, &a.slo)) {
            Some(advice) => {
                for line in &advice.lines {
                    out.push_str(&indented(line));
                }
            }
            None => {
                out.push_str(&table(results, group, top));
                out.push('\n');
                out.push_str(&answers::of_group(answers, group));
            }
        }
        out.push('\n');
    }
    out.push_str(&answers::what_if(answers));
    out.push_str(&left_out(results));
    out.push_str(&step_times(results));
    out
}

/// Whether something belongs to a group.
pub fn same(group: &Group, workload: &str, slo: &str) -> bool {
    (group.workload.as_str(), group.slo.as_str()) == (workload, slo)
}

/// Why nothing answers the plan, and what to change.
pub fn nothing(results: &Results<'_>) -> String {
    let mut out = "no configuration keeps the objectives".to_owned();
    let several = results.answers.groups.len() > 1;
    for advice in &results.answers.advice {
        for line in &advice.lines {
            let of = format!("{} under {}: ", advice.workload, advice.slo);
            out.push_str(&format!("\n  {}{line}", if several { &of } else { "" }));
        }
    }
    out
}

fn left_out(results: &Results<'_>) -> String {
    const MOST: usize = 8;
    let exclusions = &results.answers.exclusions;
    if exclusions.is_empty() {
        return String::new();
    }
    let mut out = "left out\n".to_owned();
    for e in exclusions.iter().take(MOST) {
        out.push_str(&indented(&format!("{}: {}", e.count, e.reason)));
    }
    if exclusions.len() > MOST {
        let more = exclusions.len() - MOST;
        out.push_str(&format!("  and {more} more reasons, in results.csv\n"));
    }
    out + "\n"
}

/// What a reader must know before believing the figures.
fn step_times(results: &Results<'_>) -> String {
    let mut kinds: Vec<&str> = Vec::new();
    for row in results.rows.iter().filter(|r| r.rank.is_some()) {
        if !kinds.contains(&row.step_times.as_str()) {
            kinds.push(&row.step_times);
        }
    }
    format!("{:<12} {}\n", "step times", kinds.join("; "))
}

/// `text` below a heading, in lines of the usual width.
pub fn indented(text: &str) -> String {
    let wrapped = crate::report::text::wrap_to(text, 77);
    wrapped.lines().map(|line| format!("  {line}\n")).collect()
}

fn headline(results: &Results<'_>, group: &Group) -> String {
    let rule = results.study.rules.iter().find(|(name, _)| *name == group.slo);
    let terms = rule.map_or_else(String::new, |(_, rule)| {
        let terms: Vec<String> = rule.terms.iter().map(ToString::to_string).collect();
        terms.join(", ")
    });
    let all = group.ok + group.misses_slo + group.excluded;
    let mut counts = format!("{} of {all} configurations keep this at some rate", group.ok);
    for (n, what) in [(group.misses_slo, "do not"), (group.excluded, "are left out")] {
        if n > 0 {
            counts.push_str(&format!(", {n} {what}"));
        }
    }
    let named = match results.answers.groups.len() {
        1 => String::new(),
        _ => format!("{} under {}: ", group.workload, group.slo),
    };
    crate::report::text::wrap(&format!("{named}{terms}")) + "\n" + &counts + "\n\n"
}

fn table(results: &Results<'_>, group: &Group, top: usize) -> String {
    let rows = results.ranked(group);
    let differs = |of: fn(&Row) -> String| {
        let mut values = rows.iter().map(|r| of(r));
        let first = values.next();
        values.any(|v| Some(v) != first)
    };
    type Cell = fn(&Row) -> String;
    let mut columns: Vec<(Column, Cell)> =
        vec![(number("#"), |r| r.rank.map_or_else(String::new, |n| n.to_string()))];
    if differs(|r| r.model.clone()) {
        columns
            .push((text("model"), |r| r.model.rsplit('/').next().unwrap_or(&r.model).to_owned()));
    }
    columns.push((text("device"), |r| r.sku.clone()));
    columns.push((number("TP"), |r| r.tensor_parallel.to_string()));
    if differs(|r| r.pipeline_parallel.to_string()) {
        columns.push((number("PP"), |r| r.pipeline_parallel.to_string()));
    }
    if rows.iter().any(|r| r.replicas > 1) {
        columns.push((number("x"), |r| r.replicas.to_string()));
    }
    columns.push((text("scheduler"), |r| r.scheduler.clone()));
    if differs(others) {
        columns.push((text("other").expendable(2), others));
    }
    columns.push((number("req/s"), |r| or_dash(r.requests_per_s)));
    columns.push((number("/device").expendable(4), |r| or_dash(r.requests_per_s_per_device)));
    columns.push((number("USD/h").expendable(3), |r| or_dash(r.usd_per_hour)));
    columns.push((number("USD/Mtok"), |r| or_dash(r.usd_per_million_output_tokens)));
    columns.push((number("J/tok").expendable(6), |r| or_dash(r.joules_per_output_token)));
    columns.push((number("TTFT P90").expendable(2), |r| or_dash(r.ttft_p90())));
    columns.push((number("ITL P99").expendable(2), |r| or_dash(r.itl_p99())));
    columns.push((text("limit").expendable(5), |r| r.limited_by.clone().unwrap_or_default()));
    let cells: Vec<Vec<String>> =
        rows.iter().take(top).map(|r| columns.iter().map(|c| (c.1)(r)).collect()).collect();
    let heads: Vec<Column> = columns.into_iter().map(|c| c.0).collect();
    let mut out = render(&heads, &cells, window_width());
    if rows.len() > top {
        out.push_str(&format!("and {} more in results.csv\n", rows.len() - top));
    }
    out
}

/// Dimensions that have no column of their own.
fn others(row: &Row) -> String {
    let parts: Vec<String> = row
        .other_labels()
        .map(|(name, value)| format!("{}={value}", name.rsplit('.').next().unwrap_or(name)))
        .collect();
    parts.join(" ")
}
