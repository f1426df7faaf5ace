//! request_metrics.csv: one row per request, with the columns of microsoft/vidur and their meaning
//! (times in seconds). Where Vidur divides by token counts that a restart has changed, we divide by
//! the counts that the request arrived with. `docs/metrics.md` defines each column.

use crate::metrics::RequestRecord;
use crate::units::{SimDuration, SimTime};
use std::io::{self, Write};

/// A cell of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell {
    /// A time, written in seconds, exact to the nanosecond.
    Time(SimDuration),
    /// Tokens or events.
    Count(u32),
    /// Anything else.
    Ratio(f64),
    /// Nothing: the first request has no one before it.
    Empty,
}

/// A cell of a request, given when the one before it arrived.
type Value = fn(&RequestRecord, Option<SimTime>) -> Cell;

/// Every column after the request's number.
pub const COLUMNS: [(&str, Value); 20] = [
    ("request_e2e_time", |r, _| Cell::Time(e2e(r))),
    ("request_e2e_time_normalized", |r, _| per(e2e(r), r.output_tokens)),
    ("request_execution_time", |r, _| Cell::Time(r.execution)),
    ("request_execution_time_normalized", |r, _| per(r.execution, r.output_tokens)),
    ("request_model_execution_time", |r, _| Cell::Time(model(r))),
    ("request_model_execution_time_normalized", |r, _| per(model(r), r.output_tokens)),
    ("request_preemption_time", |r, _| Cell::Time(served(r) - r.execution)),
    ("request_scheduling_delay", |r, _| Cell::Time(r.scheduled_at.since(r.arrived_at))),
    ("request_execution_plus_preemption_time", |r, _| Cell::Time(served(r))),
    ("request_execution_plus_preemption_time_normalized", |r, _| per(served(r), r.output_tokens)),
    ("prefill_e2e_time", |r, _| Cell::Time(r.first_token_at.since(r.arrived_at))),
    ("prefill_time_execution_plus_preemption", |r, _| Cell::Time(prefill(r))),
    ("prefill_time_execution_plus_preemption_normalized", |r, _| per(prefill(r), r.prompt_tokens)),
    ("decode_time_execution_plus_preemption_normalized", |r, _| {
        per(r.completed_at.since(r.first_token_at), r.output_tokens)
    }),
    ("request_inter_arrival_delay", |r, previous| match previous {
        Some(previous) => Cell::Time(r.arrived_at.since(previous)),
        None => Cell::Empty,
    }),
    ("request_num_tokens", |r, _| Cell::Count(r.prompt_tokens.saturating_add(r.output_tokens))),
    ("request_num_prefill_tokens", |r, _| Cell::Count(r.prompt_tokens)),
    ("request_num_decode_tokens", |r, _| Cell::Count(r.output_tokens)),
    ("request_pd_ratio", |r, _| {
        Cell::Ratio(f64::from(r.prompt_tokens) / f64::from(r.output_tokens))
    }),
    ("request_num_restarts", |r, _| Cell::Count(r.restarts)),
];

/// Seconds per token.
fn per(time: SimDuration, tokens: u32) -> Cell {
    Cell::Ratio(time.as_seconds() / f64::from(tokens))
}

fn e2e(r: &RequestRecord) -> SimDuration {
    r.completed_at.since(r.arrived_at)
}

fn served(r: &RequestRecord) -> SimDuration {
    r.completed_at.since(r.scheduled_at)
}

fn model(r: &RequestRecord) -> SimDuration {
    r.execution - r.host
}

fn prefill(r: &RequestRecord) -> SimDuration {
    r.first_token_at.since(r.scheduled_at)
}

impl Cell {
    /// As a number, times in seconds.
    pub fn as_f64(self) -> Option<f64> {
        match self {
            Cell::Time(time) => Some(time.as_seconds()),
            Cell::Count(n) => Some(f64::from(n)),
            Cell::Ratio(v) => Some(v),
            Cell::Empty => None,
        }
    }

    /// Appends the cell to a line, as `Display` would write its number.
    fn push_to(self, line: &mut Vec<u8>) {
        match self {
            Cell::Time(time) => push_seconds(line, time.as_ns()),
            Cell::Count(n) => line.extend_from_slice(itoa::Buffer::new().format(n).as_bytes()),
            Cell::Ratio(v) => push_ratio(line, v),
            Cell::Empty => {}
        }
    }
}

/// Nanoseconds as seconds, without zeros at the end.
fn push_seconds(line: &mut Vec<u8>, ns: u64) {
    const SECOND: u64 = 1_000_000_000;
    line.extend_from_slice(itoa::Buffer::new().format(ns / SECOND).as_bytes());
    let mut rest = ns % SECOND;
    let mut digit = SECOND / 10;
    if rest > 0 {
        line.push(b'.');
    }
    while rest > 0 {
        line.push(b'0' + (rest / digit) as u8);
        rest %= digit;
        digit /= 10;
    }
}

/// The shortest digits that read back as `v`, without an exponent.
fn push_ratio(line: &mut Vec<u8>, v: f64) {
    // There `zmij` writes no exponent and differs from `Display` in a final ".0" only; beyond, two
    // texts of the same length can be equally near, and each has its own rule.
    if (1e-4..1e12).contains(&v) {
        let mut buffer = zmij::Buffer::new();
        let digits = buffer.format_finite(v);
        line.extend_from_slice(digits.strip_suffix(".0").unwrap_or(digits).as_bytes());
    } else {
        line.extend_from_slice(v.to_string().as_bytes());
    }
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
    let mut line = Vec::with_capacity(512);
    for (id, r) in requests.iter().enumerate() {
        line.clear();
        line.extend_from_slice(itoa::Buffer::new().format(id).as_bytes());
        for (_, value) in COLUMNS {
            line.push(b',');
            value(r, previous).push_to(&mut line);
        }
        line.push(b'\n');
        out.write_all(&line)?;
        previous = Some(r.arrived_at);
    }
    Ok(())
}

/// The values of one column, ascending.
pub fn sorted(requests: &[RequestRecord], value: Value) -> Vec<f64> {
    let before = std::iter::once(None).chain(requests.iter().map(|r| Some(r.arrived_at)));
    let mut values: Vec<f64> =
        requests.iter().zip(before).filter_map(|(r, before)| value(r, before).as_f64()).collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(cell: Cell) -> String {
        let mut line = Vec::new();
        cell.push_to(&mut line);
        String::from_utf8(line).unwrap()
    }

    proptest! {
        #[test]
        fn ratios_are_written_as_display_writes_them(v in prop_oneof![
            0.0..1e-3, 0.0..10.0, 0.0..1e16, (0u32..100_000).prop_map(f64::from),
            any::<f64>(),
        ]) {
            prop_assert_eq!(text(Cell::Ratio(v)), v.to_string());
        }

        #[test]
        fn times_are_exact(ns in prop_oneof![0u64..2_000_000_000, 0u64..1_000_000_000_000_000]) {
            let written = text(Cell::Time(SimDuration::from_ns(ns)));
            // Up to 15 digits the shortest text of the nearest double is the number itself.
            prop_assert_eq!(&written, &(ns as f64 / 1e9).to_string());
        }
    }

    #[test]
    fn times_by_hand() {
        let time = |ns| text(Cell::Time(SimDuration::from_ns(ns)));
        assert_eq!(time(0), "0");
        assert_eq!(time(1), "0.000000001");
        assert_eq!(time(1_500_000_000), "1.5");
        assert_eq!(time(12_000_000_034), "12.000000034");
        assert_eq!(time(u64::MAX), "18446744073.709551615");
    }
}
