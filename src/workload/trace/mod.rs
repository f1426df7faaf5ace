//! Requests from files. The format is recognised by the content, never by the name; gzip and
//! Zstandard are unpacked on the way. A file is read line by line, and only numbers are kept.
//!
//! [`layout`] says what a format is, and each format has a file of its own; [`table`] reads CSV and
//! [`json`] reads JSON.

mod apex;
mod azure;
mod burstgpt;
mod json;
mod layout;
mod llmservingsim;
mod mooncake;
mod qwen;
mod replay;
mod sharegpt;
mod source;
mod splitwise;
mod table;
mod timestamp;
mod vidur;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use layout::TraceFormat;
pub use replay::read_trace;

use layout::{EXPECTED_TOKENS, Layout, Need, Row, wrong};
use serde::{Deserialize, Serialize};
use source::Source;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// A trace to replay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceConfig {
    /// The file: CSV, JSON lines or a JSON array, as it is or compressed by gzip or Zstandard.
    pub file: PathBuf,
    /// Its format; recognised by the content where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<TraceFormat>,
    /// Arrival times are multiplied by this: 0.5 doubles the rate.
    #[serde(default = "one")]
    pub time_scale: f64,
    /// Prompt tokens are multiplied by this and cut to whole tokens, at least 1.
    #[serde(default = "one")]
    pub prefill_scale: f64,
    /// Output tokens are multiplied by this and cut to whole tokens, at least 1.
    #[serde(default = "one")]
    pub decode_scale: f64,
    /// Only the first so many requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_requests: Option<u32>,
    /// Longest request, prompt and output together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// What happens to longer ones.
    #[serde(default)]
    pub too_long: TooLong,
    /// What happens to requests with 0 tokens in prompt or output. Where it is not given, formats
    /// that write failed requests so (burstgpt, sharegpt) skip, and others refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty: Option<Empty>,
}

impl TraceConfig {
    /// The whole of `file` as it is.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        TraceConfig {
            file: file.into(),
            format: None,
            time_scale: 1.0,
            prefill_scale: 1.0,
            decode_scale: 1.0,
            num_requests: None,
            max_tokens: None,
            too_long: TooLong::Refuse,
            empty: None,
        }
    }
}

/// What happens to a request that is longer than `max_tokens`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// An error that names the line.
    #[default]
    Refuse,
    /// It is left out, and counted in the workload's notes.
    Drop,
    /// Its prompt is shortened, as Vidur does.
    ClipPrompt,
}

/// What happens to a request whose prompt or output has 0 tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Empty {
    /// An error that names the line.
    Refuse,
    /// It is left out, and counted in the workload's notes.
    Skip,
    /// 0 becomes 1, as Vidur does, and is counted in the workload's notes.
    One,
}

fn one() -> f64 {
    1.0
}

/// Why a file is no trace. One line with file, line and column.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be opened or read.
    #[error("{file}: {cause}")]
    Io {
        /// Which.
        file: String,
        /// What the system says.
        cause: String,
    },
    /// A line does not parse.
    #[error("{file}:{line}: {message}")]
    Line {
        /// Which file.
        file: String,
        /// Which line, from 1.
        line: u64,
        /// Column, what was found, what was expected.
        message: String,
    },
    /// The content is of no known format.
    #[error(
        "{file}:{line}: no trace format is recognised in {found:?}; understood are {formats} \
         (`format` names one)"
    )]
    Unrecognised {
        /// Which file.
        file: String,
        /// Its first line that is not blank, from 1.
        line: u64,
        /// That line, shortened.
        found: String,
        /// The formats that are understood, with their columns or fields.
        formats: String,
    },
    /// There is nothing in it.
    #[error(
        "{file}: no requests; expected at least one: a row below the header line, or an object of JSON"
    )]
    Empty {
        /// Which.
        file: String,
    },
    /// There is something in it, and all of it is left out.
    #[error("{left_out}; no request remains: change max_tokens, too_long or empty")]
    NoneLeft {
        /// What is left out and why.
        left_out: String,
    },
    /// A number in the config makes no trace.
    #[error("workload.trace.{field}: {message}")]
    Config {
        /// Which.
        field: &'static str,
        /// Its value, and what was expected.
        message: String,
    },
}

impl TraceError {
    /// No request is there: `notes` say what was left out.
    fn none(file: String, notes: &[String]) -> Self {
        match notes {
            [] => TraceError::Empty { file },
            _ => TraceError::NoneLeft { left_out: notes.join("; ") },
        }
    }
}

/// Prompt and output tokens of each request in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    /// In the order of the file.
    pub(super) pairs: Vec<(u32, u32)>,
    /// What was left out or mended.
    pub(super) notes: Vec<String>,
}

/// Reads pairs of prompt and output tokens, whatever other columns there are.
///
/// # Errors
/// As [`read_trace`].
pub fn read_lengths(path: &Path) -> Result<Vec<(u32, u32)>, TraceError> {
    Ok(lengths_with_notes(path, None, None)?.pairs)
}

/// As [`read_lengths`], of a given format, with the notes.
pub(super) fn lengths_with_notes(
    path: &Path,
    format: Option<TraceFormat>,
    empty: Option<Empty>,
) -> Result<Lengths, TraceError> {
    let mut pairs = Vec::new();
    let mut empties = Empties::new(empty);
    let mut unshared = 0;
    let source = Source::open(path)?;
    let file = source.file.clone();
    layout::read(source, format, Need::Lengths, &mut |layout, row| {
        if let Some(pair) = empties.pass(layout, &row)? {
            pairs.push(pair);
            unshared += u64::from(!row.hashes.is_empty());
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let mut notes = empties.notes(&file);
    if pairs.is_empty() {
        return Err(TraceError::none(file, &notes));
    }
    note(
        &mut notes,
        &file,
        unshared,
        "whose hash_ids are not used: lengths alone share no prefixes",
    );
    Ok(Lengths { pairs, notes })
}

/// Applies [`Empty`] and counts.
struct Empties {
    asked: Option<Empty>,
    skipped: u64,
    mended: u64,
}

impl Empties {
    fn new(asked: Option<Empty>) -> Self {
        Empties { asked, skipped: 0, mended: 0 }
    }

    /// Prompt and output of a row, at least 1 each; `None` if the row is to be left out.
    fn pass(&mut self, layout: &Layout, row: &Row) -> Result<Option<(u32, u32)>, String> {
        if row.prefill > 0 && row.decode > 0 {
            return Ok(Some((row.prefill, row.decode)));
        }
        let usual = if layout.skips_empty { Empty::Skip } else { Empty::Refuse };
        match self.asked.unwrap_or(usual) {
            Empty::Skip => {
                self.skipped += 1;
                Ok(None)
            }
            Empty::One => {
                self.mended += 1;
                Ok(Some((row.prefill.max(1), row.decode.max(1))))
            }
            Empty::Refuse if row.prefill == 0 => Err(wrong(layout.prefill, &"0", EXPECTED_TOKENS)),
            Empty::Refuse => {
                let cure = "(`empty: skip` leaves such requests out, `empty: one` makes it 1)";
                Err(wrong(layout.decode, &"0", &format!("{EXPECTED_TOKENS} {cure}")))
            }
        }
    }

    fn notes(&self, file: &str) -> Vec<String> {
        let mut notes = Vec::new();
        note(&mut notes, file, self.skipped, "with 0 tokens left out");
        note(&mut notes, file, self.mended, "with 0 tokens given 1");
        notes
    }
}

/// Adds a note about `count` requests, unless there are none.
fn note(notes: &mut Vec<String>, file: &str, count: u64, what: &str) {
    match count {
        0 => {}
        1 => notes.push(format!("{file}: 1 request {what}")),
        _ => notes.push(format!("{file}: {count} requests {what}")),
    }
}

/// As Vidur scales: multiply, cut, at least one token.
pub(super) fn scale(tokens: u32, factor: f64) -> u32 {
    ((f64::from(tokens) * factor) as u32).max(1)
}
