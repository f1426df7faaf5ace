//! Collectives: what nccl-tests and nccom-test print, read as data; running those tools; and a
//! shared-memory ring of our own for the CPU. Bandwidths are always computed from bytes and time,
//! never taken from a tool: nccom-test has changed the unit of its columns.

pub mod distributed;
pub mod nccl;
pub mod nccom;
pub mod ring;
pub mod tcp;
pub mod tools;

use crate::dataset::network::{Collective, Times};
use serde_json::Value;

/// What a file or a tool says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Readings {
    /// The tool that measured, with its version where it tells.
    pub tool: String,
    /// What was measured, where it tells.
    pub collective: Option<Collective>,
    /// Workers in all, where it tells.
    pub workers: Option<u32>,
    /// Bytes of a message and its times, in the order of the file; a size measured twice is there
    /// twice.
    pub points: Vec<(u64, Times)>,
    /// What is worth knowing: rows that failed, figures that are averages only.
    pub notes: Vec<String>,
    /// Why the tool ended before its time; what is in `points` it measured before.
    pub failure: Option<String>,
    /// What the rows of nccl-tests say of their collective.
    pub claims: Vec<nccl::Claim>,
}

impl Readings {
    /// Adds a point.
    fn push(&mut self, bytes: u64, times: Times) {
        if bytes == 0 || !times.median.is_finite() || times.median <= 0.0 {
            self.notes.push(format!("a row of {bytes} bytes without a time was left out"));
            return;
        }
        self.points.push((bytes, times));
    }
}

/// Which buffers to take where a tool measured both ways: engines sum in place, and move out of it.
fn in_place(collective: Collective) -> bool {
    collective == Collective::AllReduce
}

/// Reads what nccl-tests (text or `-J`) or nccom-test (text of either generation, or
/// `--report-to-json-file`) left behind; which of them is told by the contents. `collective` says
/// which buffers to take where there are two.
///
/// # Errors
/// One line that names the line or key at fault, also where the rows are of another collective.
pub fn read(text: &str, collective: Collective) -> Result<Readings, String> {
    let readings = parse(text, collective)?;
    // One that is named as another's has nothing to contradict.
    match readings.collective {
        Some(other) if other != collective => Ok(readings),
        _ => nccl::check(&readings, collective).map(|()| readings),
    }
}

/// As [`read`], of a program that was run for `collective`: nothing else can be in there.
fn parse(text: &str, collective: Collective) -> Result<Readings, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let readings = if text.trim_start().starts_with('{') {
        let json: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
        let results = json.get("results").and_then(Value::as_array).ok_or(
            "no `results`; expected the JSON of nccl-tests (-J) or nccom-test (--report-to-json-file)",
        )?;
        match results.iter().any(|row| row.get("size(B)").is_some()) {
            true => nccom::from_json(results)?,
            false => nccl::from_json(&json, results, collective)?,
        }
    } else if text.lines().any(|line| line.contains("size(B)") && line.contains("count(elems)")) {
        nccom::from_text(text)?
    } else {
        nccl::from_text(text, collective)?
    };
    match (readings.points.is_empty(), readings.notes.first()) {
        (false, _) => Ok(readings),
        (true, Some(note)) => Err(format!("no row with a time ({note})")),
        (true, None) => Err(format!(
            "no rows; expected the output of nccl-tests or nccom-test{}",
            last_words(text)
        )),
    }
}

/// What a tool that failed early left behind.
fn last_words(text: &str) -> String {
    let words = |line: &&str| !line.is_empty() && !line.starts_with(['#', '{', '}']);
    match text.lines().map(str::trim).rfind(words) {
        Some(line) => format!("; it ends with: {}", line.chars().take(200).collect::<String>()),
        None => String::new(),
    }
}

/// A number, also as a string with blanks around it; `nan` is none.
fn number(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    number.is_finite().then_some(number)
}

/// Microseconds as milliseconds, in whole picoseconds so that 973.2 us are 0.9732 ms.
fn ms(us: f64) -> f64 {
    (us * 1e6).round() / 1e9
}

#[cfg(test)]
#[path = "network_tests.rs"]
pub(crate) mod tests;
