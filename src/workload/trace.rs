//! Requests from files: `arrived_at,num_prefill_tokens,num_decode_tokens` (seconds, tokens), as
//! Vidur's processed traces have them.

use super::{RequestSpec, Workload};
use crate::units::SimTime;
use csv::ByteRecord;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A trace to replay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceConfig {
    /// CSV file with the columns arrived_at, num_prefill_tokens and num_decode_tokens.
    pub file: PathBuf,
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
}

/// What happens to a request that is longer than `max_tokens`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// An error that names the line.
    #[default]
    Refuse,
    /// It is left out.
    Drop,
    /// Its prompt is shortened, as Vidur does.
    ClipPrompt,
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
    /// There is nothing in it.
    #[error("{file}: no requests; expected a header line and at least one row")]
    Empty {
        /// Which.
        file: String,
    },
    /// A number in the config makes no trace.
    #[error("workload.trace.{field}: {value}; expected a number above 0")]
    Scale {
        /// Which.
        field: &'static str,
        /// Its value.
        value: f64,
    },
}

/// Reads a trace and applies scales and limits.
///
/// # Errors
/// One line that names file, line, column, what was found and what was expected.
pub fn read_trace(config: &TraceConfig) -> Result<Workload, TraceError> {
    for (field, value) in [
        ("time_scale", config.time_scale),
        ("prefill_scale", config.prefill_scale),
        ("decode_scale", config.decode_scale),
    ] {
        if !(value.is_finite() && value > 0.0) {
            return Err(TraceError::Scale { field, value });
        }
    }
    let file = config.file.display().to_string();
    let limit = config.num_requests.map_or(usize::MAX, |n| n as usize);
    let mut requests = Vec::new();
    let mut rows = Rows::open(&config.file, &["arrived_at", PREFILL, DECODE])?;
    while requests.len() < limit && rows.next()? {
        let seconds = rows.number(0)?;
        let arrived_at = SimTime::from_seconds(seconds * config.time_scale).ok_or_else(|| {
            rows.error(0, "expected a time in seconds, 0 or more, less than 500 years")
        })?;
        let mut prefill = scale(rows.tokens(1)?, config.prefill_scale);
        let decode = scale(rows.tokens(2)?, config.decode_scale);
        let total = u64::from(prefill) + u64::from(decode);
        if let Some(max) = config.max_tokens.filter(|&max| total > u64::from(max)) {
            match config.too_long {
                TooLong::Drop => continue,
                TooLong::ClipPrompt if max > decode => prefill = max - decode,
                _ => {
                    let message = format!(
                        "the request has {total} tokens, more than max_tokens {max}; raise it, or \
                         set workload.trace.too_long to drop or clip_prompt"
                    );
                    return Err(TraceError::Line { file, line: rows.line(), message });
                }
            }
        }
        requests.push(RequestSpec { arrived_at, prefill_tokens: prefill, decode_tokens: decode });
    }
    if requests.is_empty() {
        return Err(TraceError::Empty { file });
    }
    requests.sort_by_key(|r| r.arrived_at);
    let description = format!("{} requests replayed from {file}", requests.len());
    Ok(Workload { requests, description })
}

/// Reads pairs of prompt and output tokens, whatever other columns there are.
///
/// # Errors
/// As [`read_trace`].
pub fn read_lengths(path: &Path) -> Result<Vec<(u32, u32)>, TraceError> {
    let mut lengths = Vec::new();
    let mut rows = Rows::open(path, &[PREFILL, DECODE])?;
    while rows.next()? {
        lengths.push((rows.tokens(0)?, rows.tokens(1)?));
    }
    if lengths.is_empty() {
        return Err(TraceError::Empty { file: path.display().to_string() });
    }
    Ok(lengths)
}

const PREFILL: &str = "num_prefill_tokens";
const DECODE: &str = "num_decode_tokens";

/// As Vidur scales: multiply, cut, at least one token.
fn scale(tokens: u32, factor: f64) -> u32 {
    ((f64::from(tokens) * factor) as u32).max(1)
}

/// The rows of a CSV file, seen through some of its columns.
struct Rows {
    reader: csv::Reader<std::fs::File>,
    record: ByteRecord,
    file: String,
    /// Name and position of each asked column.
    columns: Vec<(String, usize)>,
}

impl Rows {
    fn open(path: &Path, columns: &[&str]) -> Result<Self, TraceError> {
        let file = path.display().to_string();
        let io = |cause: String| TraceError::Io { file: file.clone(), cause };
        if path.is_dir() {
            return Err(io("is a directory; expected a CSV file".into()));
        }
        let handle = std::fs::File::open(path).map_err(|e| io(e.to_string()))?;
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(handle);
        let header = reader.byte_headers().map_err(|e| io(e.to_string()))?.clone();
        let found: Vec<_> =
            header.iter().map(|c| String::from_utf8_lossy(c).trim().to_owned()).collect();
        if found.iter().all(String::is_empty) {
            return Err(TraceError::Empty { file });
        }
        let position = |name: &&str| match found.iter().position(|c| c == name) {
            Some(at) => Ok(((*name).to_owned(), at)),
            None => Err(TraceError::Line {
                file: file.clone(),
                line: 1,
                message: format!("no column {name}; found {}", found.join(", ")),
            }),
        };
        let columns = columns.iter().map(position).collect::<Result<_, _>>()?;
        Ok(Rows { reader, record: ByteRecord::new(), file, columns })
    }

    /// Moves to the next row; `false` at the end.
    fn next(&mut self) -> Result<bool, TraceError> {
        self.reader
            .read_byte_record(&mut self.record)
            .map_err(|e| TraceError::Io { file: self.file.clone(), cause: e.to_string() })
    }

    fn line(&self) -> u64 {
        self.record.position().map_or(0, csv::Position::line)
    }

    fn text(&self, column: usize) -> String {
        let cell = self.record.get(self.columns[column].1).unwrap_or_default();
        String::from_utf8_lossy(cell).trim().to_owned()
    }

    fn error(&self, column: usize, expected: &str) -> TraceError {
        let message = format!("{} is {:?}; {expected}", self.columns[column].0, self.text(column));
        TraceError::Line { file: self.file.clone(), line: self.line(), message }
    }

    fn number(&self, column: usize) -> Result<f64, TraceError> {
        self.text(column).parse().map_err(|_| self.error(column, "expected a number"))
    }

    /// A token count; written as a float by some tools.
    fn tokens(&self, column: usize) -> Result<u32, TraceError> {
        let n = self.number(column)?;
        let whole = n.fract() == 0.0 && (1.0..=f64::from(u32::MAX / 4)).contains(&n);
        if whole {
            Ok(n as u32)
        } else {
            Err(self.error(column, "expected a whole number, 1 or more"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(file: &Path) -> TraceConfig {
        TraceConfig {
            file: file.into(),
            time_scale: 1.0,
            prefill_scale: 1.0,
            decode_scale: 1.0,
            num_requests: None,
            max_tokens: None,
            too_long: TooLong::Refuse,
        }
    }

    fn read(text: &str, change: impl FnOnce(&mut TraceConfig)) -> Result<Workload, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut config = config(file.path());
        change(&mut config);
        let shown = file.path().display().to_string();
        read_trace(&config).map_err(|e| e.to_string().replace(&shown, "t.csv"))
    }

    const TWO: &str = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,374,44\n0.25,396.0,9\n";

    #[test]
    fn rows_are_sorted_by_arrival_and_columns_found_by_name() {
        let w = read(TWO, |_| {}).unwrap();
        assert_eq!(w.requests[0].arrived_at.as_ns(), 250_000_000);
        assert_eq!((w.requests[1].prefill_tokens, w.requests[1].decode_tokens), (374, 44));
        let other = "num_decode_tokens,x,num_prefill_tokens,arrived_at\n44,?,374,0\n";
        assert_eq!(read(other, |_| {}).unwrap().requests[0].prefill_tokens, 374);
    }

    #[test]
    fn scales_and_limits_apply_in_vidurs_order() {
        let w = read(TWO, |c| {
            c.time_scale = 2.0;
            c.prefill_scale = 0.5;
            c.num_requests = Some(1);
        })
        .unwrap();
        assert_eq!(w.requests.len(), 1);
        assert_eq!(
            (w.requests[0].arrived_at.as_ns(), w.requests[0].prefill_tokens),
            (1_000_000_000, 187)
        );
        let clipped = read(TWO, |c| {
            c.max_tokens = Some(400);
            c.too_long = TooLong::ClipPrompt;
        })
        .unwrap();
        assert_eq!(clipped.requests[0].prefill_tokens, 391);
        assert_eq!(clipped.requests[1].prefill_tokens, 356);
    }

    #[test]
    fn errors_name_file_line_column_and_cure() {
        let header = "arrived_at,num_prefill_tokens,num_decode_tokens\n";
        for (text, expected) in [
            ("", "t.csv: no requests; expected a header line and at least one row"),
            (header, "t.csv: no requests; expected a header line and at least one row"),
            ("a,b\n1,2\n", "t.csv:1: no column arrived_at; found a, b"),
            (
                &format!("{header}0,1,2\n0,x,2\n"),
                "t.csv:3: num_prefill_tokens is \"x\"; expected a number",
            ),
            (
                &format!("{header}0,0,2\n"),
                "t.csv:2: num_prefill_tokens is \"0\"; expected a whole number, 1 or more",
            ),
            (&format!("{header}0,1\n"), "t.csv:2: num_decode_tokens is \"\"; expected a number"),
            (
                &format!("{header}-1,1,1\n"),
                "t.csv:2: arrived_at is \"-1\"; expected a time in seconds, 0 or more, less than 500 years",
            ),
        ] {
            assert_eq!(read(text, |_| {}).unwrap_err(), expected);
        }
        let long = read(TWO, |c| c.max_tokens = Some(400)).unwrap_err();
        assert!(
            long.starts_with("t.csv:2: the request has 418 tokens, more than max_tokens 400"),
            "{long}"
        );
        let scaled = read(TWO, |c| c.time_scale = 0.0).unwrap_err();
        assert_eq!(scaled, "workload.trace.time_scale: 0; expected a number above 0");
    }

    #[test]
    fn a_directory_is_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_trace(&config(dir.path())).unwrap_err().to_string();
        assert!(error.ends_with("is a directory; expected a CSV file"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut text = b"arrived_at,num_prefill_tokens,num_decode_tokens\n".to_vec();
            text.extend(bytes);
            std::fs::write(file.path(), text).unwrap();
            let _ = read_trace(&config(file.path()));
        }
    }
}
