//! nccom-test, the Neuron counterpart of nccl-tests. Its table has changed: `time(us)` in whole
//! microseconds became `time:avg(us)` with further columns by percentile, and its bandwidths went
//! from GiB/s to GB/s without a change of name; they are not read. Source: AWS Neuron documentation,
//! tools/neuron-sys-tools/nccom-test.rst (SDK 2.32) and its samples.

use super::{Readings, ms, number};
use crate::dataset::network::{Collective, Times};
use serde_json::Value;

/// What the tool calls `collective`.
pub fn operation(collective: Collective) -> &'static str {
    match collective {
        Collective::AllReduce => "allr",
        Collective::AllGather => "allg",
        Collective::ReduceScatter => "redsct",
        Collective::AllToAll => "alltoall",
        Collective::SendRecv => "sendrecv",
    }
}

/// Puts the figures of one row together; `figure` looks a column up.
fn times(figure: impl Fn(&str) -> Option<f64>) -> Option<Times> {
    let column = |name: &str| figure(name).filter(|us| us.is_finite() && *us > 0.0).map(ms);
    let mean = column("time:avg(us)").or_else(|| column("time(us)"));
    let median = column("time:p50(us)").or(mean)?;
    Some(Times {
        min: column("time:min(us)").or_else(|| column("time:p0(us)")),
        max: column("time:max(us)").or_else(|| column("time:p100(us)")),
        mean,
        median,
        std: column("time:std(us)"),
    })
}

/// Reads the table of either generation. Rows of sizes that failed become notes.
///
/// # Errors
/// When there is no header.
pub fn from_text(text: &str) -> Result<Readings, String> {
    let mut readings = Readings { tool: "nccom-test".into(), ..Readings::default() };
    let mut header: Vec<&str> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.first() == Some(&"size(B)") {
            header = words;
            continue;
        }
        if line.contains("errors found") || line.contains("Neuron DKMS Driver is not running") {
            readings.notes.push(line.trim().to_owned());
            continue;
        }
        let Some(bytes) = words.first().and_then(|word| word.parse::<u64>().ok()) else { continue };
        if header.is_empty() {
            return Err(format!("line {}: a row before the header", number + 1));
        }
        if line.contains("Failure") {
            readings.notes.push(format!("{bytes} bytes: {}", words[1..].join(" ")));
            continue;
        }
        let figure = |name: &str| {
            let at = header.iter().position(|column| *column == name)?;
            words.get(at)?.parse::<f64>().ok()
        };
        match times(figure) {
            Some(times) => readings.push(bytes, times),
            None => readings.notes.push(format!("line {}: no time", number + 1)),
        }
    }
    if header.is_empty() {
        return Err("no header with size(B); expected the table of nccom-test".into());
    }
    Ok(readings)
}

/// Reads the rows of a `--report-to-json-file` file.
///
/// # Errors
/// One line that names the row at fault.
pub fn from_json(results: &[Value]) -> Result<Readings, String> {
    let mut readings = Readings { tool: "nccom-test".into(), ..Readings::default() };
    for (i, row) in results.iter().enumerate() {
        let bytes =
            row.get("size(B)").and_then(number).filter(|&bytes| bytes >= 0.0).ok_or_else(|| {
                format!("results[{i}].size(B) is missing; expected the bytes of a message")
            })?;
        match times(|name| row.get(name).and_then(number)) {
            Some(times) => readings.push(bytes as u64, times),
            None => readings.notes.push(format!("results[{i}] has no time")),
        }
    }
    Ok(readings)
}
