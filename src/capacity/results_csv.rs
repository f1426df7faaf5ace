//! `results.csv`: a row per configuration, workload and set of objectives.

use super::row::Row;
use crate::metrics::Distribution;
use std::io::{self, Write};

/// Cells of one column.
type Cell = fn(&Row) -> String;

fn number(value: Option<f64>) -> String {
    value.map(|v| v.to_string()).unwrap_or_default()
}

fn text(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(serde_json::Value::Null) | Err(_) => String::new(),
        Ok(other) => other.to_string(),
    }
}

macro_rules! at {
    ($field:ident.$figure:ident) => {
        |r: &Row| {
            let of = |d: &Distribution| d.$figure;
            number(r.at.as_ref().and_then(|at| at.$field.as_ref()).map(of))
        }
    };
    ($field:ident) => {
        |r: &Row| number(r.at.as_ref().map(|at| at.$field as f64))
    };
}

/// Every column, in order; `docs/capacity.md` says what they mean.
const COLUMNS: [(&str, Cell); 57] = [
    ("id", |r| r.id.to_string()),
    ("rank", |r| text(&r.rank)),
    ("workload", |r| r.workload.clone()),
    ("slo", |r| r.slo.clone()),
    ("status", |r| text(&r.status)),
    ("model", |r| r.model.clone()),
    ("sku", |r| r.sku.clone()),
    ("tensor_parallel", |r| r.tensor_parallel.to_string()),
    ("pipeline_parallel", |r| r.pipeline_parallel.to_string()),
    ("replicas", |r| r.replicas.to_string()),
    ("devices", |r| r.devices.to_string()),
    ("scheduler", |r| r.scheduler.clone()),
    ("router", |r| text(&r.router)),
    ("labels", |r| {
        let pairs: Vec<String> = r.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        pairs.join("; ")
    }),
    ("requests_per_s", |r| number(r.requests_per_s)),
    ("fails_at_requests_per_s", |r| number(r.fails_at)),
    ("limited_by", |r| text(&r.limited_by)),
    ("requests", |r| text(&r.requests)),
    ("warmup_requests", |r| text(&r.warmup_requests)),
    ("requests_per_s_per_device", |r| number(r.requests_per_s_per_device)),
    ("output_tokens_per_s", |r| number(r.output_tokens_per_s)),
    ("input_tokens_per_s", |r| number(r.input_tokens_per_s)),
    ("node", |r| r.offer.as_ref().and_then(|o| o.node.clone()).unwrap_or_default()),
    ("usd_per_hour", |r| number(r.usd_per_hour)),
    ("requests_per_usd", |r| number(r.requests_per_usd)),
    ("usd_per_million_output_tokens", |r| number(r.usd_per_million_output_tokens)),
    ("usd_per_million_tokens", |r| number(r.usd_per_million_tokens)),
    ("price_source", |r| r.offer.as_ref().map(|o| o.source.clone()).unwrap_or_default()),
    ("power_w", |r| number(r.power_w)),
    ("joules_per_output_token", |r| number(r.joules_per_output_token)),
    ("pareto_ttft_p90", |r| r.pareto_ttft_p90.to_string()),
    ("pareto_itl_p99", |r| r.pareto_itl_p99.to_string()),
    ("ttft_mean_ms", at!(ttft_ms.mean)),
    ("ttft_p50_ms", at!(ttft_ms.p50)),
    ("ttft_p90_ms", at!(ttft_ms.p90)),
    ("ttft_p99_ms", at!(ttft_ms.p99)),
    ("tpot_mean_ms", at!(tpot_ms.mean)),
    ("tpot_p50_ms", at!(tpot_ms.p50)),
    ("tpot_p90_ms", at!(tpot_ms.p90)),
    ("tpot_p99_ms", at!(tpot_ms.p99)),
    ("itl_mean_ms", at!(itl_ms.mean)),
    ("itl_p50_ms", at!(itl_ms.p50)),
    ("itl_p99_ms", at!(itl_ms.p99)),
    ("e2e_mean_ms", at!(e2e_ms.mean)),
    ("e2e_p50_ms", at!(e2e_ms.p50)),
    ("e2e_p90_ms", at!(e2e_ms.p90)),
    ("e2e_p99_ms", at!(e2e_ms.p99)),
    ("queueing_p50_ms", at!(queueing_ms.p50)),
    ("queueing_p99_ms", at!(queueing_ms.p99)),
    ("mean_batch_size", at!(mean_batch_size)),
    ("kv_peak_percent", at!(kv_peak_percent)),
    ("preemptions", at!(preemptions)),
    ("busy_percent", at!(busy_percent)),
    ("extrapolated_percent", at!(extrapolated_percent)),
    ("step_times", |r| r.step_times.clone()),
    ("cause", |r| text(&r.cause)),
    ("reason", |r| text(&r.reason)),
];

/// Writes `rows`.
///
/// # Errors
/// Those of the system.
pub fn write(rows: &[Row], out: &mut impl Write) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(COLUMNS.iter().map(|c| c.0))?;
    for row in rows {
        writer.write_record(COLUMNS.iter().map(|c| c.1(row)))?;
    }
    writer.flush()
}
