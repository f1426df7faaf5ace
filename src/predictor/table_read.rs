//! Reading given tables from a folder, see [`super::table`].

use super::PredictorError;
use super::table::{HOST_OPS, KV_STEP, TOKEN_STEP, TableSettings, Tables, layer_ops};
use crate::spec::model::ModelSpec;
use crate::spec::ops::Op;
use crate::spec::parallel::Parallelism;
use csv::ByteRecord;
use std::io::Read;
use std::path::Path;

/// Reads the tables of `settings.dir` for `model`, split as `parallel`.
///
/// # Errors
/// When a table is missing or malformed: one line with file, line and column.
pub(super) fn read(
    settings: &TableSettings,
    model: &ModelSpec,
    parallel: Parallelism,
) -> Result<Tables, PredictorError> {
    let dir = &settings.dir;
    let eighths = |op: Op| line(dir, op.name(), "num_tokens").map(|t| every_eighth(&t));
    let mut token_ops = Vec::new();
    for op in layer_ops(model, parallel) {
        token_ops.push((op, eighths(op)?));
    }
    let mut host: Vec<f64> = Vec::new();
    for name in HOST_OPS.iter().filter(|_| settings.cpu_overhead) {
        let table = line(dir, name, "batch_size")?;
        host.resize(host.len().max(table.len()), 0.0);
        host.iter_mut().zip(&table).for_each(|(sum, ms)| *sum += ms);
    }
    Ok(Tables {
        token_ops,
        kv_save: line(dir, Op::AttnKvCacheSave.name(), "num_tokens")?,
        decode: decode_grid(dir)?,
        prefill: prefill_grid(dir)?,
        send_recv: match parallel.pipeline_parallel {
            1 => Vec::new(),
            _ => eighths(Op::SendRecv)?,
        },
        host,
        ..Tables::default()
    })
}

/// Every eighth entry: the only ones that rounded keys reach.
fn every_eighth(table: &[f64]) -> Vec<f64> {
    table.iter().step_by(TOKEN_STEP as usize).copied().collect()
}

/// A table over one key from 1 on, as values by key; entry 0 is 0.
fn line(dir: &Path, name: &str, key: &str) -> Result<Vec<f64>, PredictorError> {
    let mut values = vec![0.0];
    read_rows(dir, name, [key, "prediction"], |[at, ms]| {
        if at != values.len() as f64 {
            return Err(format!(
                "{key} is {at}; expected {}: each value once, from 1",
                values.len()
            ));
        }
        values.push(ms);
        Ok(())
    })?;
    Ok(values)
}

/// Rows by sequences from 1, columns by context / 64 from 0.
fn decode_grid(dir: &Path) -> Result<Vec<Vec<f64>>, PredictorError> {
    let mut grid = Vec::new();
    let keys = ["batch_size", "kv_cache_size", "prediction"];
    read_rows(dir, Op::AttnDecode.name(), keys, |[batch, kv, ms]| {
        push_cell(&mut grid, batch - 1.0, kv / KV_STEP as f64, ms)
    })?;
    Ok(grid)
}

/// Rows by context / 64 from 0, columns by chunk from 1.
fn prefill_grid(dir: &Path) -> Result<Vec<Vec<f64>>, PredictorError> {
    let mut grid = Vec::new();
    let keys = ["kv_cache_size", "prefill_chunk_size_squared", "prediction"];
    read_rows(dir, Op::AttnPrefill.name(), keys, |[kv, squared, ms]| {
        push_cell(&mut grid, kv / KV_STEP as f64, squared.sqrt() - 1.0, ms)
    })?;
    Ok(grid)
}

/// Appends a cell; rows and columns come in order from 0, none left out.
fn push_cell(grid: &mut Vec<Vec<f64>>, row: f64, column: f64, ms: f64) -> Result<(), String> {
    if column == 0.0 {
        grid.push(Vec::new());
    }
    let rows = grid.len();
    let Some(values) = grid.last_mut() else {
        return Err("expected the rows in ascending order of both keys".into());
    };
    if row != (rows - 1) as f64 || column != values.len() as f64 {
        return Err(
            "expected every pair of keys once, in ascending order, in steps of 64 tokens of \
                    context"
                .into(),
        );
    }
    values.push(ms);
    Ok(())
}

/// Calls `take` with the numbers of the asked columns, row by row.
fn read_rows<const N: usize>(
    dir: &Path,
    name: &str,
    columns: [&str; N],
    mut take: impl FnMut([f64; N]) -> Result<(), String>,
) -> Result<(), PredictorError> {
    let plain = dir.join(format!("{name}.csv"));
    let packed = dir.join(format!("{name}.csv.gz"));
    let path = if plain.exists() { plain } else { packed };
    let shown = path.display().to_string();
    let error = |line: u64, message: String| PredictorError::Table {
        at: if line == 0 { shown.clone() } else { format!("{shown}:{line}") },
        message,
    };
    let io = |e: std::io::Error| error(0, format!("{e}; expected a table of {name}"));
    let bytes = std::fs::read(&path).map_err(io)?;
    let mut text = Vec::new();
    match bytes.starts_with(&[0x1f, 0x8b]) {
        true => flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut text).map_err(io)?,
        false => bytes.as_slice().read_to_end(&mut text).map_err(io)?,
    };
    let mut reader = csv::Reader::from_reader(&text[..]);
    let header = reader.byte_headers().map_err(|e| error(1, e.to_string()))?.clone();
    let mut positions = [0; N];
    for (position, column) in positions.iter_mut().zip(columns) {
        let found = header.iter().position(|c| c == column.as_bytes());
        *position = found.ok_or_else(|| error(1, format!("no column {column}")))?;
    }
    let mut record = ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(|e| error(0, e.to_string()))? {
        let line = record.position().map_or(0, csv::Position::line);
        let mut numbers = [0.0; N];
        for ((number, position), column) in numbers.iter_mut().zip(positions).zip(columns) {
            let cell = String::from_utf8_lossy(record.get(position).unwrap_or_default());
            *number =
                cell.trim().parse().ok().filter(|v: &f64| v.is_finite() && *v >= 0.0).ok_or_else(
                    || error(line, format!("{column} is {cell:?}; expected a number, 0 or more")),
                )?;
        }
        take(numbers).map_err(|message| error(line, message))?;
    }
    Ok(())
}
