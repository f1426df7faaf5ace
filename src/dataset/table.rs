//! One CSV file as rows of typed cells, looked up by column name. Every message names file, line
//! and column, and says what to do.

use super::location::ProfileFile;
use csv::{ByteRecord, ErrorKind, Position, ReaderBuilder};

/// Why a profile cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Bytes that are no text.
    #[error(
        "{file}: line {line}: not UTF-8; save the file as UTF-8 (without a compressed or binary format)"
    )]
    NotUtf8 {
        /// Path.
        file: String,
        /// Line, 1 is the header.
        line: u64,
    },
    /// No rows.
    #[error("{file}: holds no rows; measure the profile again, or remove the file")]
    Empty {
        /// Path.
        file: String,
    },
    /// A row with more or fewer cells than the header.
    #[error(
        "{file}: line {line}: {cells} cells where the header has {expected}; was the file cut off?"
    )]
    Ragged {
        /// Path.
        file: String,
        /// Line.
        line: u64,
        /// Cells in it.
        cells: u64,
        /// Cells in the header.
        expected: u64,
    },
    /// A column that is needed and not there.
    #[error(
        "{file}: line 1: no column {column}, which {needed_for} needs; measure the profile again with this program"
    )]
    NoColumn {
        /// Path.
        file: String,
        /// Column.
        column: String,
        /// What needs it.
        needed_for: String,
    },
    /// A cell of the wrong type.
    #[error("{file}: line {line}: column {column} is \"{value}\"; expected {expected}")]
    Cell {
        /// Path.
        file: String,
        /// Line.
        line: u64,
        /// Column.
        column: String,
        /// The cell.
        value: String,
        /// What was expected.
        expected: &'static str,
    },
    /// Times that were not measured.
    #[error(
        "{file}: line {line}: column {column} holds no number, in {rows} rows in all; measure them again, or leave these rows out with `missing_values: skip` in the predictor config (`--missing-values skip` for `vidur fit`)"
    )]
    Missing {
        /// Path.
        file: String,
        /// First such line.
        line: u64,
        /// Column.
        column: String,
        /// Such rows in all.
        rows: usize,
    },
    /// Rows of the model, none at this degree of parallelism.
    #[error(
        "{file}: no rows with {column} = {wanted}; it has {present}: choose one of these, or measure what is missing"
    )]
    NoDegree {
        /// Path.
        file: String,
        /// Column.
        column: &'static str,
        /// What was asked.
        wanted: String,
        /// What the file has.
        present: String,
    },
    /// No rows of the model's shape.
    #[error(
        "{file}: no rows of the shape {wanted}; it has {present}: is this the profile of another model?"
    )]
    NoShape {
        /// Path.
        file: String,
        /// What was asked.
        wanted: String,
        /// What the file has.
        present: String,
    },
    /// Two rows of one thing.
    #[error("{file}: line {line}: {what} stands on line {first} already; delete one of the two")]
    Twice {
        /// Path.
        file: String,
        /// The later line.
        line: u64,
        /// The earlier line.
        first: u64,
        /// What both measure.
        what: String,
    },
    /// Only missing values are left.
    #[error("{file}: column {column} holds no number in any row that applies; measure it again")]
    NothingMeasured {
        /// Path.
        file: String,
        /// Column.
        column: String,
    },
}

/// A CSV file in memory: header and rows.
pub(super) struct Table<'a> {
    pub file: &'a str,
    header: Vec<String>,
    pub rows: Vec<ByteRecord>,
}

/// A column that exists.
#[derive(Clone, Copy)]
pub(super) struct Column(usize);

/// The line on which a row starts; 1 is the header.
pub(super) fn line(row: &ByteRecord) -> u64 {
    row.position().map_or(0, |p| p.line())
}

/// The line of a row. The csv crate notes where the last row ended, which is before the line feed
/// of a `\r\n` and before blank lines.
fn first_line(bytes: &[u8], position: &Position) -> u64 {
    let rest = bytes.get(position.byte() as usize..).unwrap_or_default();
    let blank = rest.iter().take_while(|b| matches!(b, b'\r' | b'\n'));
    position.line() + blank.filter(|b| **b == b'\n').count() as u64
}

impl<'a> Table<'a> {
    pub fn parse(file: &'a ProfileFile) -> Result<Table<'a>, ReadError> {
        let name = || file.name.clone();
        if let Err(e) = std::str::from_utf8(&file.bytes) {
            let before = &file.bytes[..e.valid_up_to()];
            let line = 1 + before.iter().filter(|b| **b == b'\n').count() as u64;
            return Err(ReadError::NotUtf8 { file: name(), line });
        }
        // Spreadsheet programs put a byte order mark before the header; the csv crate drops it.
        let mut reader = ReaderBuilder::new().from_reader(&file.bytes[..]);
        let bytes = &file.bytes[..];
        let to_error = |e: csv::Error| match e.kind() {
            ErrorKind::UnequalLengths { pos, expected_len, len } => ReadError::Ragged {
                file: name(),
                line: pos.as_ref().map_or(0, |p| first_line(bytes, p)),
                cells: *len,
                expected: *expected_len,
            },
            // From memory, and read as bytes: nothing else can go wrong.
            _ => ReadError::Empty { file: name() },
        };
        let header = reader.byte_headers().map_err(to_error)?;
        let header = header.iter().map(|c| String::from_utf8_lossy(c).trim().to_string()).collect();
        let mut rows = reader.byte_records().collect::<Result<Vec<_>, _>>().map_err(to_error)?;
        for row in &mut rows {
            if let Some(mut position) = row.position().cloned() {
                position.set_line(first_line(bytes, &position));
                row.set_position(Some(position));
            }
        }
        if rows.is_empty() {
            return Err(ReadError::Empty { file: name() });
        }
        Ok(Table { file: &file.name, header, rows })
    }

    pub fn optional(&self, column: &str) -> Option<Column> {
        self.header.iter().position(|c| c == column).map(Column)
    }

    pub fn column(&self, column: &str, needed_for: &str) -> Result<Column, ReadError> {
        self.optional(column).ok_or_else(|| ReadError::NoColumn {
            file: self.file.into(),
            column: column.into(),
            needed_for: needed_for.into(),
        })
    }

    pub fn text<'r>(&self, row: &'r ByteRecord, column: Column) -> &'r str {
        // Every row has as many cells as the header, and the file is UTF-8: neither default is
        // taken.
        std::str::from_utf8(row.get(column.0).unwrap_or_default()).unwrap_or_default().trim()
    }

    pub fn wrong(&self, row: &ByteRecord, column: Column, expected: &'static str) -> ReadError {
        ReadError::Cell {
            file: self.file.into(),
            line: line(row),
            column: self.header[column.0].clone(),
            value: self.text(row, column).chars().take(40).collect(),
            expected,
        }
    }

    /// A whole number, 0 or more; pandas writes some of them as `64.0`.
    pub fn count(&self, row: &ByteRecord, column: Column) -> Result<u64, ReadError> {
        let text = self.text(row, column);
        if let Ok(n) = text.parse() {
            return Ok(n);
        }
        match text.parse::<f64>() {
            Ok(x) if x >= 0.0 && x.fract() == 0.0 && x < 1e15 => Ok(x as u64),
            _ => Err(self.wrong(row, column, "a whole number, 0 or more")),
        }
    }

    pub fn flag(&self, row: &ByteRecord, column: Column) -> Result<bool, ReadError> {
        match self.text(row, column) {
            "True" | "true" | "TRUE" | "1" => Ok(true),
            "False" | "false" | "FALSE" | "0" => Ok(false),
            _ => Err(self.wrong(row, column, "True or False")),
        }
    }

    /// A time in milliseconds; `None` when the cell is empty or NaN.
    pub fn time(&self, row: &ByteRecord, column: Column) -> Result<Option<f64>, ReadError> {
        let text = self.text(row, column);
        if text.is_empty() {
            return Ok(None);
        }
        match text.parse::<f64>() {
            Ok(ms) if ms.is_nan() => Ok(None),
            Ok(ms) if ms >= 0.0 && ms.is_finite() => Ok(Some(ms)),
            _ => Err(self.wrong(row, column, "a time in milliseconds, 0 or more")),
        }
    }

    pub fn name(&self, column: Column) -> &str {
        &self.header[column.0]
    }
}
