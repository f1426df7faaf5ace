//! A Parquet file as columns in memory: integers, floats and texts, as the package writes them.

use crate::profiling::import::ImportError;
use bytes::Bytes;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::collections::BTreeMap;

/// Columns of one file, all of one length.
#[derive(Debug, Default)]
pub struct Frame {
    file: String,
    rows: usize,
    integers: BTreeMap<String, Vec<i64>>,
    floats: BTreeMap<String, Vec<f64>>,
    texts: BTreeMap<String, Texts>,
}

/// A column of few distinct texts.
#[derive(Debug, Default)]
pub struct Texts {
    names: Vec<String>,
    ids: Vec<u32>,
}

impl Texts {
    /// The text in `row`.
    pub fn at(&self, row: usize) -> &str {
        self.ids.get(row).and_then(|id| self.names.get(*id as usize)).map_or("", String::as_str)
    }

    /// Every text that occurs.
    pub fn distinct(&self) -> &[String] {
        &self.names
    }
}

impl Frame {
    /// Reads the columns `wanted` of the Parquet file `bytes`, called `file` in messages. Columns that
    /// the file lacks are left out here and refused when they are asked for.
    ///
    /// # Errors
    /// When it is no Parquet file, or a wanted column has empty cells or another type.
    pub fn read(file: &str, bytes: Bytes, wanted: &[&str]) -> Result<Frame, ImportError> {
        let broken = |problem: String| ImportError::Content { file: file.to_owned(), problem };
        let parquet = |e: parquet::errors::ParquetError| broken(format!("no Parquet file ({e})"));
        let reader = SerializedFileReader::new(bytes).map_err(parquet)?;
        let mut frame = Frame { file: file.to_owned(), ..Frame::default() };
        let schema = reader.metadata().file_metadata().schema_descr_ptr();
        for group in 0..reader.num_row_groups() {
            let group = reader.get_row_group(group).map_err(parquet)?;
            let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
            for (i, column) in schema.columns().iter().enumerate() {
                let name = column.name();
                if !wanted.contains(&name) {
                    continue;
                }
                let empty = || broken(format!("column {name} has empty cells"));
                match group.get_column_reader(i).map_err(parquet)? {
                    ColumnReader::Int64ColumnReader(r) => {
                        let read = values(r, rows).map_err(parquet)?.ok_or_else(empty)?;
                        frame.integers.entry(name.into()).or_default().extend(read);
                    }
                    ColumnReader::DoubleColumnReader(r) => {
                        let read = values(r, rows).map_err(parquet)?.ok_or_else(empty)?;
                        frame.floats.entry(name.into()).or_default().extend(read);
                    }
                    ColumnReader::ByteArrayColumnReader(r) => {
                        let read = values(r, rows).map_err(parquet)?.ok_or_else(empty)?;
                        frame.texts.entry(name.into()).or_default().extend(&read);
                    }
                    _ => {
                        let kind = column.physical_type();
                        return Err(broken(format!(
                            "column {name} is {kind}; expected INT64, DOUBLE or text"
                        )));
                    }
                }
            }
            frame.rows += rows;
        }
        Ok(frame)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The integers in column `name`.
    ///
    /// # Errors
    /// When there is no such column.
    pub fn integers(&self, name: &str) -> Result<&[i64], ImportError> {
        self.integers.get(name).map(Vec::as_slice).ok_or_else(|| self.lacks(name, "integers"))
    }

    /// The floats in column `name`.
    ///
    /// # Errors
    /// When there is no such column.
    pub fn floats(&self, name: &str) -> Result<&[f64], ImportError> {
        self.floats.get(name).map(Vec::as_slice).ok_or_else(|| self.lacks(name, "numbers"))
    }

    /// The texts in column `name`.
    ///
    /// # Errors
    /// When there is no such column.
    pub fn texts(&self, name: &str) -> Result<&Texts, ImportError> {
        self.texts.get(name).ok_or_else(|| self.lacks(name, "text"))
    }

    /// As [`Frame::texts`]; `None` where the file has no such column.
    pub fn optional_texts(&self, name: &str) -> Option<&Texts> {
        self.texts.get(name)
    }

    fn lacks(&self, name: &str, kind: &str) -> ImportError {
        ImportError::Content {
            file: self.file.clone(),
            problem: format!("no column {name} of {kind}"),
        }
    }
}

impl Texts {
    fn extend(&mut self, values: &[ByteArray]) {
        for value in values {
            let text = value.data();
            let known = self.names.iter().position(|name| name.as_bytes() == text);
            let id = known.unwrap_or_else(|| {
                self.names.push(String::from_utf8_lossy(text).into_owned());
                self.names.len() - 1
            });
            self.ids.push(id as u32);
        }
    }
}

/// Every value of a column of `rows` rows; `None` when some cells are empty.
fn values<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    rows: usize,
) -> parquet::errors::Result<Option<Vec<T::T>>> {
    let mut values = Vec::with_capacity(rows);
    let mut levels = Vec::new();
    while values.len() < rows {
        let (read, _, _) =
            reader.read_records(rows - values.len(), Some(&mut levels), None, &mut values)?;
        if read == 0 {
            break;
        }
    }
    Ok((values.len() == rows).then_some(values))
}
