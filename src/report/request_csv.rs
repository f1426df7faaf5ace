//! request_metrics.csv: one row per request, with the columns of microsoft/vidur and their meaning
//! (times in seconds). Where Vidur divides by token counts that a restart has changed, we divide by
//! the counts that the request arrived with. `docs/metrics.md` defines each column.

use crate::metrics::RequestRecord;
use crate::units::{SimDuration, SimTime};
use std::io::{self, Write};

/// A value of a request, given when the one before it arrived.
type Value = fn(&RequestRecord, Option<SimTime>) -> Option<f64>;

/// Every column after the request's number.
pub const COLUMNS: [(&str, Value); 20] = [
    ("request_e2e_time", |r, _| Some(e2e(r))),
    ("request_e2e_time_normalized", |r, _| Some(e2e(r) / output(r))),
    ("request_execution_time", |r, _| Some(r.execution.as_seconds())),
    ("request_execution_time_normalized", |r, _| Some(r.execution.as_seconds() / output(r))),
    ("request_model_execution_time", |r, _| Some(model(r))),
    ("request_model_execution_time_normalized", |r, _| Some(model(r) / output(r))),
    ("request_preemption_time", |r, _| Some((served(r) - r.execution).as_seconds())),
    ("request_scheduling_delay", |r, _| Some(r.scheduled_at.since(r.arrived_at).as_seconds())),
    ("request_execution_plus_preemption_time", |r, _| Some(served(r).as_seconds())),
    ("request_execution_plus_preemption_time_normalized", |r, _| {
        Some(served(r).as_seconds() / output(r))
    }),
    ("prefill_e2e_time", |r, _| Some(r.first_token_at.since(r.arrived_at).as_seconds())),
    ("prefill_time_execution_plus_preemption", |r, _| Some(prefill(r))),
    ("prefill_time_execution_plus_preemption_normalized", |r, _| Some(prefill(r) / prompt(r))),
    ("decode_time_execution_plus_preemption_normalized", |r, _| {
        Some(r.completed_at.since(r.first_token_at).as_seconds() / output(r))
    }),
    ("request_inter_arrival_delay", |r, previous| Some(r.arrived_at.since(previous?).as_seconds())),
    ("request_num_tokens", |r, _| Some(prompt(r) + output(r))),
    ("request_num_prefill_tokens", |r, _| Some(prompt(r))),
    ("request_num_decode_tokens", |r, _| Some(output(r))),
    ("request_pd_ratio", |r, _| Some(prompt(r) / output(r))),
    ("request_num_restarts", |r, _| Some(f64::from(r.restarts))),
];

fn prompt(r: &RequestRecord) -> f64 {
    f64::from(r.prompt_tokens)
}

fn output(r: &RequestRecord) -> f64 {
    f64::from(r.output_tokens)
}

fn e2e(r: &RequestRecord) -> f64 {
    r.completed_at.since(r.arrived_at).as_seconds()
}

fn served(r: &RequestRecord) -> SimDuration {
    r.completed_at.since(r.scheduled_at)
}

fn model(r: &RequestRecord) -> f64 {
    (r.execution - r.host).as_seconds()
}

fn prefill(r: &RequestRecord) -> f64 {
    r.first_token_at.since(r.scheduled_at).as_seconds()
}

/// Writes the rows of `requests`, in order of arrival.
///
/// # Errors
/// Those of `out`.
pub fn write(requests: &[RequestRecord], out: &mut impl Write) -> io::Result<()> {
    write!(out, "Request Id")?;
    for (name, _) in COLUMNS {
        write!(out, ",{name}")?;
    }
    writeln!(out)?;
    let mut previous = None;
    for (id, r) in requests.iter().enumerate() {
        write!(out, "{id}")?;
        for (_, value) in COLUMNS {
            match value(r, previous) {
                Some(v) => write!(out, ",{v}")?,
                None => write!(out, ",")?,
            }
        }
        writeln!(out)?;
        previous = Some(r.arrived_at);
    }
    Ok(())
}

/// The values of one column, ascending.
pub fn sorted(requests: &[RequestRecord], value: Value) -> Vec<f64> {
    let before = std::iter::once(None).chain(requests.iter().map(|r| Some(r.arrived_at)));
    let mut values: Vec<f64> =
        requests.iter().zip(before).filter_map(|(r, before)| value(r, before)).collect();
    values.sort_by(f64::total_cmp);
    values
}
