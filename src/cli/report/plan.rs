//! The report of a plan: what `vidur capacity` found.

use crate::capacity::{Answers, Group, Row, Status};
use crate::cli::Failure;
use crate::report::html::charts::{self, Spot};
use crate::report::html::{Cell, Page, Table};
use crate::report::text::number;
use serde_json::Value;
use std::path::Path;

/// The page of the results in `folder`.
///
/// # Errors
/// When they are not those of this program.
pub fn page(folder: &Path, written: &Value) -> Result<String, Failure> {
    let path = folder.join("summary.json");
    let wrong = |e: serde_json::Error| {
        Failure::user(format!(
            "{}: {e}; expected the results of this version of `vidur capacity`",
            path.display()
        ))
    };
    let rows: Vec<Row> = serde_json::from_value(written["rows"].clone()).map_err(wrong)?;
    let answers: Answers = serde_json::from_value(written["answers"].clone()).map_err(wrong)?;
    let models = distinct(rows.iter().map(|r| r.model.as_str()));
    let title = format!("Capacity of {}", models.join(", "));
    let subtitle = format!(
        "{} configurations on {}",
        rows.len(),
        distinct(rows.iter().map(|r| r.sku.as_str())).join(", ")
    );
    let mut page = Page::new(&title, &subtitle);
    for group in &answers.groups {
        group_part(&mut page, group, &rows)?;
    }
    for advice in &answers.advice {
        page.heading(&format!("What to change: {}, {}", advice.workload, advice.slo));
        advice.lines.iter().for_each(|line| page.warning(line));
    }
    let several_groups = answers.groups.len() > 1;
    let answers = serde_json::to_value(&answers).map_err(Failure::internal)?;
    for (field, heading) in [
        ("confirmations", "The best again, on other random numbers"),
        ("what_if", "How the answer moves"),
        ("fleets", "The smallest fleets"),
        ("sensitivity", "Which settings matter"),
        ("exclusions", "What is left out, and why"),
    ] {
        list(&mut page, heading, &answers[field], several_groups);
    }
    page.heading("All configurations");
    page.paragraph(
        "A click on a heading sorts; words in the field leave the rows that have them all.",
    );
    page.table(&table(&rows));
    page.heading("Where the numbers come from");
    for (steps, count) in step_times(&rows) {
        page.paragraph(&format!("Step times of {count} configurations: {steps}."));
    }
    for (offer, count) in offers(&rows) {
        page.paragraph(&format!("Prices of {count} configurations: {offer}."));
    }
    if let Ok(plan) = std::fs::read_to_string(folder.join("plan.yml")) {
        page.details("The plan as it ran", &plan);
    }
    let version = written["vidur_version"].as_str().unwrap_or("unknown");
    page.paragraph(&format!("Answered by vidur {version}."));
    Ok(page.finish())
}

fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen: Vec<&str> = Vec::new();
    values.for_each(|v| {
        if !seen.contains(&v) {
            seen.push(v);
        }
    });
    seen
}

/// Id of a row on the page.
fn row_id(row: &Row) -> String {
    format!("c{}-{}-{}", row.id, row.workload, row.slo)
}

/// What tells a configuration from the others.
fn name(row: &Row) -> String {
    format!(
        "{} on {} x {} (TP {}, PP {}, {} replicas), {}",
        row.model,
        row.devices,
        row.sku,
        row.tensor_parallel,
        row.pipeline_parallel,
        row.replicas,
        row.scheduler
    )
}

fn group_part(page: &mut Page, group: &Group, rows: &[Row]) -> Result<(), Failure> {
    page.heading(&format!("Workload {}, objectives {}", group.workload, group.slo));
    let own: Vec<&Row> =
        rows.iter().filter(|r| r.workload == group.workload && r.slo == group.slo).collect();
    let best = own.iter().find(|r| Some(r.id) == group.best && r.status == Status::Ok);
    match best {
        None => page.warning("No configuration keeps the objectives."),
        Some(best) => {
            page.paragraph(&format!("Best: {}.", name(best)));
            let of = |v: Option<f64>| v.map_or_else(|| "-".into(), number);
            page.tiles(&[
                ("requests/s".into(), of(best.requests_per_s)),
                ("USD per hour".into(), of(best.usd_per_hour)),
                ("USD per million output tokens".into(), of(best.usd_per_million_output_tokens)),
                ("joules per output token".into(), of(best.joules_per_output_token)),
                ("TTFT P90, ms".into(), of(best.ttft_p90())),
                ("ITL P99, ms".into(), of(best.itl_p99())),
            ]);
            if let Some(limit) = &best.limited_by {
                page.paragraph(&format!("A higher rate fails by {limit}."));
            }
        }
    }
    page.paragraph(&format!(
        "{} configurations keep the objectives at some rate, {} at none, {} are left out.",
        group.ok, group.misses_slo, group.excluded
    ));
    let priced = own.iter().any(|r| r.usd_per_million_output_tokens.is_some());
    let x = if priced { "USD per million output tokens" } else { "device-seconds per request" };
    let cost = |r: &Row| match priced {
        true => r.usd_per_million_output_tokens,
        false => r.requests_per_s_per_device.map(|rate| 1.0 / rate),
    };
    let mut figures = Vec::new();
    for (title, y, ttft) in [
        ("Cost against time to first token", "TTFT P90, ms", true),
        ("Cost against time between tokens", "ITL P99, ms", false),
    ] {
        let spot = |r: &&Row| {
            let (latency, on_front) = match ttft {
                true => (r.ttft_p90()?, r.pareto_ttft_p90),
                false => (r.itl_p99()?, r.pareto_itl_p99),
            };
            let cost = cost(r)?;
            let tip = format!(
                "{}\n{} requests/s\n{x}: {}\n{y}: {}",
                name(r),
                r.requests_per_s.map_or_else(|| "-".into(), number),
                number(cost),
                number(latency)
            );
            Some(Spot { x: cost, y: latency, on_front, tip, row: row_id(r) })
        };
        let spots: Vec<Spot> = own.iter().filter_map(spot).collect();
        if spots.is_empty() {
            continue;
        }
        let svg = charts::scatter(title, x, y, &spots).map_err(Failure::internal)?;
        figures.push((
            svg,
            "Each at its highest rate within the objectives; orange: nothing is cheaper and faster. \
             A click leads to the configuration."
                .into(),
        ));
    }
    page.charts(&figures);
    Ok(())
}

fn table(rows: &[Row]) -> Table {
    let several = |of: fn(&Row) -> &str| distinct(rows.iter().map(of)).len() > 1;
    let workloads = several(|r| &r.workload);
    let slos = several(|r| &r.slo);
    let mut columns: Vec<(String, bool)> = vec![("rank".into(), true)];
    if workloads {
        columns.push(("workload".into(), false));
    }
    if slos {
        columns.push(("objectives".into(), false));
    }
    for text in ["model", "device"] {
        columns.push((text.into(), false));
    }
    for figure in ["TP", "PP", "replicas", "devices"] {
        columns.push((figure.into(), true));
    }
    columns.push(("scheduler".into(), false));
    for figure in [
        "requests/s",
        "per device",
        "USD/h",
        "USD per M output tokens",
        "J per output token",
        "TTFT P90 ms",
        "TPOT mean ms",
        "ITL P99 ms",
        "KV peak %",
        "extrapolated %",
    ] {
        columns.push((figure.into(), true));
    }
    columns.push(("other settings".into(), false));
    columns.push(("limited by, or why it is out".into(), false));
    let line = |r: &Row| {
        let at = r.at.as_ref();
        let mut cells = vec![match r.rank {
            Some(rank) => Cell::count(rank.into()),
            None => Cell::number(None),
        }];
        if workloads {
            cells.push(Cell::text(&r.workload));
        }
        if slos {
            cells.push(Cell::text(&r.slo));
        }
        cells.push(Cell::text(&r.model));
        cells.push(Cell::text(&r.sku));
        for n in [r.tensor_parallel, r.pipeline_parallel, r.replicas, r.devices] {
            cells.push(Cell::count(n.into()));
        }
        cells.push(Cell::text(&r.scheduler));
        for figure in [
            r.requests_per_s,
            r.requests_per_s_per_device,
            r.usd_per_hour,
            r.usd_per_million_output_tokens,
            r.joules_per_output_token,
            r.ttft_p90(),
            at.and_then(|a| a.tpot_ms).map(|d| d.mean),
            r.itl_p99(),
            at.map(|a| a.kv_peak_percent),
            at.map(|a| a.extrapolated_percent),
        ] {
            cells.push(Cell::number(figure));
        }
        let labels: Vec<String> = r.other_labels().map(|(k, v)| format!("{k} {v}")).collect();
        cells.push(Cell::text(labels.join(", ")));
        let why = r.reason.as_deref().or(r.limited_by.as_deref()).unwrap_or_default();
        cells.push(Cell::long(why));
        (Some(row_id(r)), cells)
    };
    let mut ranked: Vec<&Row> = rows.iter().collect();
    ranked.sort_by_key(|r| (r.rank.is_none(), r.rank));
    Table { columns, rows: ranked.into_iter().map(line).collect(), sortable: true, filter: true }
}

/// A list of records as a table of their plain fields.
fn list(page: &mut Page, heading: &str, records: &Value, several_groups: bool) {
    let Some(records) = records.as_array().filter(|r| !r.is_empty()) else { return };
    page.heading(heading);
    let flat: Vec<Vec<(String, Value)>> = records.iter().flat_map(lines).collect();
    let mut columns: Vec<String> = Vec::new();
    for (name, _) in flat.iter().flatten() {
        let group = name == "workload" || name == "slo";
        if !columns.contains(name) && (several_groups || !group) {
            columns.push(name.clone());
        }
    }
    let cell = |value: Option<&Value>| match value {
        Some(Value::Number(n)) if n.is_f64() => Cell::number(n.as_f64()),
        Some(Value::Number(n)) => n.as_u64().map_or_else(Cell::default, Cell::count),
        Some(Value::String(text)) if text.len() > 60 => Cell::long(text),
        Some(Value::String(text)) => Cell::text(text),
        Some(Value::Bool(yes)) => Cell::text(if *yes { "yes" } else { "no" }),
        _ => Cell::text("-"),
    };
    let rows = flat.iter().map(|record| {
        let of = |name: &String| record.iter().find(|(n, _)| n == name).map(|(_, v)| v);
        (None, columns.iter().map(|name| cell(of(name))).collect())
    });
    let numeric = |name: &String| {
        flat.iter().flatten().any(|(other, value)| other == name && value.is_number())
    };
    page.table(&Table {
        rows: rows.collect(),
        columns: columns.iter().map(|n| (n.replace('_', " "), numeric(n))).collect(),
        sortable: true,
        filter: false,
    });
}

/// A record as one line, or one for each entry of a list within it, with the plain fields of both.
fn lines(record: &Value) -> Vec<Vec<(String, Value)>> {
    let mut plain = Vec::new();
    let mut inner = Vec::new();
    flatten("", record, &mut plain, &mut inner);
    if inner.is_empty() {
        return vec![plain];
    }
    let with = |entry: &Value| {
        let mut line = plain.clone();
        flatten("", entry, &mut line, &mut Vec::new());
        line
    };
    inner.iter().map(with).collect()
}

fn flatten(prefix: &str, value: &Value, plain: &mut Vec<(String, Value)>, inner: &mut Vec<Value>) {
    let Value::Object(fields) = value else { return };
    for (name, value) in fields {
        match value {
            Value::Object(_) if name == "at" || name == "offer" => {}
            Value::Object(_) => flatten(&format!("{prefix}{name} "), value, plain, inner),
            Value::Array(entries) if entries.iter().all(Value::is_object) => {
                inner.extend(entries.iter().cloned());
            }
            Value::Array(_) => {}
            plain_value => plain.push((format!("{prefix}{name}"), plain_value.clone())),
        }
    }
}

/// The texts of a record, joined.
fn sentence(record: &Value) -> String {
    let mut plain = Vec::new();
    flatten("", record, &mut plain, &mut Vec::new());
    let texts: Vec<String> = plain
        .iter()
        .map(|(name, value)| match value {
            Value::String(text) => text.clone(),
            other => format!("{} {other}", name.replace('_', " ")),
        })
        .collect();
    texts.join("; ")
}

/// Each description of step times, with how many rows have it.
fn step_times(rows: &[Row]) -> Vec<(&str, usize)> {
    let of = |r: &&Row| !r.step_times.is_empty();
    let texts = distinct(rows.iter().filter(of).map(|r| r.step_times.as_str()));
    let count = |text: &str| rows.iter().filter(|r| r.step_times == text).count();
    texts.into_iter().map(|text| (text, count(text))).collect()
}

/// Each way to rent, with how many rows are priced by it.
fn offers(rows: &[Row]) -> Vec<(String, usize)> {
    let text = |r: &Row| {
        let value = serde_json::to_value(r.offer.as_ref()?).ok()?;
        Some(sentence(&value))
    };
    let all: Vec<String> = rows.iter().filter_map(text).collect();
    let each = distinct(all.iter().map(String::as_str));
    each.into_iter().map(|t| (t.to_owned(), all.iter().filter(|o| *o == t).count())).collect()
}
