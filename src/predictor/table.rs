//! Given tables: the predictions of another program's regressors, looked up as microsoft/vidur
//! looks them up. With these as predictor, two simulators can be compared apart from their
//! regressors.
//!
//! A folder holds `<operator>.csv` or `.csv.gz` with the columns `num_tokens`, or `batch_size` and
//! `kv_cache_size`, or `kv_cache_size` and `prefill_chunk_size_squared`, and `prediction` in
//! milliseconds. Keys, as Vidur has them:
//!
//! - per-token operators: tokens rounded up to a multiple of 8 (`attn_kv_cache_save`: as they are);
//! - decode: sequences, and the mean context cut to whole tokens and rounded up to a multiple of 64;
//! - prefill: the contexts, each rounded up to a multiple of 64, added up; and the square of
//!   `round(sqrt(sum of chunk²))`, halves to even;
//! - host operators: sequences in the batch.
//!
//! A question outside a table is answered with the table's nearest entry, scaled by the amount of
//! work beyond it, and counts as extrapolated.

use super::{AttentionBatchingOverhead, PredictorError};
use crate::cost::{BatchShape, CostModel, OpTime, StepCost};
use crate::ids::StageId;
use crate::spec::model::{LayerLayout, ModelSpec};
use crate::spec::ops::Op;
use crate::spec::parallel::Parallelism;
use crate::units::SimDuration;
use csv::ByteRecord;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Settings of the `table` predictor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSettings {
    /// Folder of the tables. May name environment variables.
    pub dir: PathBuf,
    /// Extra attention time over several sequences, grouped-query models only.
    #[serde(default = "AttentionBatchingOverhead::vidur")]
    pub attention_batching_overhead: AttentionBatchingOverhead,
    /// Milliseconds that launching one all-reduce adds.
    #[serde(default = "launch_ms")]
    pub all_reduce_launch_ms: f64,
    /// Add the host operators (`schedule`, `sampler_e2e`, …) to every stage.
    #[serde(default)]
    pub cpu_overhead: bool,
}

fn launch_ms() -> f64 {
    0.02
}

/// Contexts are rounded up to a multiple of this.
const KV_STEP: u64 = 64;
/// Tokens are rounded up to a multiple of this.
const TOKEN_STEP: u64 = 8;

/// Host operators, in the order in which Vidur adds them.
const HOST_OPS: [&str; 5] =
    ["schedule", "sampler_e2e", "prepare_inputs_e2e", "process_model_outputs", "ray_comm_time"];

/// A table over a grid: rows by `row - first_row`, columns by `(column - first) / step`.
#[derive(Debug)]
struct Grid {
    /// `values[row][column]`.
    values: Vec<Vec<f64>>,
    first_row: u64,
}

/// Answers from given tables.
#[derive(Debug)]
pub struct TableCost {
    stages: u32,
    layers: Vec<f64>,
    /// Per-token operators of one layer, each by tokens / 8; summed in `per_token`.
    token_ops: Vec<(Op, Vec<f64>)>,
    per_token: Vec<f64>,
    kv_save: Vec<f64>,
    decode: Grid,
    prefill: Grid,
    send_recv: Vec<f64>,
    /// By sequences in the batch.
    host: Vec<f64>,
    overhead: AttentionBatchingOverhead,
}

/// One looked-up value.
#[derive(Clone, Copy, Default)]
struct Found {
    ms: f64,
    outside: bool,
}

/// The entry at `index`, or the last one scaled by the work beyond it.
fn look_up(table: &[f64], index: u64) -> Found {
    match table.get(index as usize) {
        Some(&ms) => Found { ms, outside: false },
        None => {
            let last = table.len().saturating_sub(1);
            let ms = table.last().copied().unwrap_or(0.0);
            Found { ms: ms * index as f64 / last.max(1) as f64, outside: true }
        }
    }
}

impl Grid {
    fn look_up(&self, row: u64, column: u64) -> Found {
        let at = row.saturating_sub(self.first_row);
        let last = self.values.len().saturating_sub(1) as u64;
        let Some(values) = self.values.get(at.min(last) as usize) else { return Found::default() };
        let found = look_up(values, column);
        if at <= last && row >= self.first_row {
            return found;
        }
        let scale = (row.max(1)) as f64 / (last + self.first_row).max(1) as f64;
        Found { ms: found.ms * scale.max(1.0), outside: true }
    }
}

impl TableCost {
    /// Reads the tables of `settings.dir` for `model`, split as `parallel`.
    ///
    /// # Errors
    /// When a table is missing or malformed: one line with file, line and column.
    pub fn read(
        settings: &TableSettings,
        model: &ModelSpec,
        parallel: Parallelism,
    ) -> Result<Self, PredictorError> {
        let dir = &settings.dir;
        let mut token_ops = Vec::new();
        let mut ops = vec![
            Op::AttnPreProj,
            Op::AttnPostProj,
            Op::AttnRope,
            Op::InputLayernorm,
            Op::MlpUpProj,
            Op::MlpDownProj,
            Op::MlpAct,
            Op::Add,
        ];
        if model.layer_layout != LayerLayout::Parallel {
            ops.push(Op::PostAttentionLayernorm);
        }
        if parallel.tensor_parallel > 1 {
            ops.push(Op::AllReduce);
        }
        for op in ops {
            let mut table = every_eighth(&line(dir, op.name(), "num_tokens")?);
            if op == Op::AllReduce {
                // Twice a layer, each with its launch.
                table.iter_mut().for_each(|ms| *ms = 2.0 * (*ms + settings.all_reduce_launch_ms));
            }
            token_ops.push((op, table));
        }
        let longest = token_ops.iter().map(|(_, t)| t.len()).max().unwrap_or(0);
        let sum = |i: usize| token_ops.iter().map(|(_, t)| look_up(t, i as u64).ms).sum();
        let per_token = (0..longest).map(sum).collect();
        let layers = (0..parallel.pipeline_parallel)
            .map(|stage| f64::from(parallel.layers_in_stage(model.num_layers, stage)))
            .collect();
        let send_recv = match parallel.pipeline_parallel {
            1 => Vec::new(),
            _ => every_eighth(&line(dir, Op::SendRecv.name(), "num_tokens")?),
        };
        let mut host: Vec<f64> = Vec::new();
        for name in HOST_OPS.iter().filter(|_| settings.cpu_overhead) {
            let table = line(dir, name, "batch_size")?;
            host.resize(host.len().max(table.len()), 0.0);
            host.iter_mut().zip(&table).for_each(|(sum, ms)| *sum += ms);
        }
        let grouped = model.num_attention_heads > model.num_key_value_heads;
        Ok(TableCost {
            stages: parallel.pipeline_parallel,
            layers,
            token_ops,
            per_token,
            kv_save: line(dir, Op::AttnKvCacheSave.name(), "num_tokens")?,
            decode: decode_grid(dir)?,
            prefill: prefill_grid(dir)?,
            send_recv,
            host,
            overhead: match grouped {
                true => settings.attention_batching_overhead,
                false => AttentionBatchingOverhead::default(),
            },
        })
    }

    fn decode(&self, batch: &BatchShape) -> Found {
        let n = u64::from(batch.num_decodes);
        if n == 0 {
            return Found::default();
        }
        let context = (batch.decode_kv_tokens / n).div_ceil(KV_STEP);
        let mut found = self.decode.look_up(n, context);
        if n > 1 {
            found.ms *= 1.0 + self.overhead.decode;
        }
        found
    }

    fn prefill(&self, batch: &BatchShape) -> Found {
        if batch.prefills.is_empty() {
            return Found::default();
        }
        let context: u64 =
            batch.prefills.iter().map(|p| u64::from(p.kv_tokens).div_ceil(KV_STEP)).sum();
        let squares: u64 = batch.prefills.iter().map(|p| u64::from(p.chunk_tokens).pow(2)).sum();
        let chunk = (squares as f64).sqrt().round_ties_even() as u64;
        let mut found = self.prefill.look_up(context, chunk.saturating_sub(1));
        if batch.prefills.len() > 1 {
            found.ms *= 1.0 + self.overhead.prefill;
        }
        found
    }

    fn host_ms(&self, batch: &BatchShape) -> Found {
        if self.host.is_empty() {
            return Found::default();
        }
        look_up(&self.host, batch.prefills.len() as u64 + u64::from(batch.num_decodes))
    }
}

impl CostModel for TableCost {
    fn num_stages(&self) -> u32 {
        self.stages
    }

    fn stage_cost(&self, stage: StageId, batch: &BatchShape) -> StepCost {
        let tokens = batch.num_tokens();
        let eighths = tokens.div_ceil(TOKEN_STEP);
        let per_token = look_up(&self.per_token, eighths);
        let save = look_up(&self.kv_save, tokens);
        let (decode, prefill, host) =
            (self.decode(batch), self.prefill(batch), self.host_ms(batch));
        let send = match stage.0 + 1 < self.stages {
            true => look_up(&self.send_recv, eighths),
            false => Found::default(),
        };
        let layers = self.layers.get(stage.index()).copied().unwrap_or(0.0);
        let ms = layers * (per_token.ms + save.ms + decode.ms + prefill.ms) + send.ms;
        let (duration, fraction) = SimDuration::split_ms(ms + host.ms);
        StepCost {
            duration,
            fraction,
            host: SimDuration::from_ms(host.ms),
            extrapolated: [per_token, save, decode, prefill, host, send].iter().any(|f| f.outside),
        }
    }

    fn stage_breakdown(&self, stage: StageId, batch: &BatchShape) -> Vec<OpTime> {
        let tokens = batch.num_tokens();
        let eighths = tokens.div_ceil(TOKEN_STEP);
        let layers = self.layers.get(stage.index()).copied().unwrap_or(0.0);
        let mut times = Vec::new();
        let mut push = |op, found: Found, times_run: f64| {
            if found.ms > 0.0 {
                let ms = found.ms * times_run;
                times.push(OpTime { op, ms, extrapolated: found.outside });
            }
        };
        for (op, table) in &self.token_ops {
            push(*op, look_up(table, eighths), layers);
        }
        push(Op::AttnKvCacheSave, look_up(&self.kv_save, tokens), layers);
        push(Op::AttnDecode, self.decode(batch), layers);
        push(Op::AttnPrefill, self.prefill(batch), layers);
        if stage.0 + 1 < self.stages {
            push(Op::SendRecv, look_up(&self.send_recv, eighths), 1.0);
        }
        push(Op::Host, self.host_ms(batch), 1.0);
        times
    }
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
fn decode_grid(dir: &Path) -> Result<Grid, PredictorError> {
    let mut grid = Grid { values: Vec::new(), first_row: 1 };
    let keys = ["batch_size", "kv_cache_size", "prediction"];
    read_rows(dir, Op::AttnDecode.name(), keys, |[batch, kv, ms]| {
        push_cell(&mut grid, batch, kv / KV_STEP as f64, ms)
    })?;
    Ok(grid)
}

/// Rows by context / 64 from 0, columns by chunk from 1.
fn prefill_grid(dir: &Path) -> Result<Grid, PredictorError> {
    let mut grid = Grid { values: Vec::new(), first_row: 0 };
    let keys = ["kv_cache_size", "prefill_chunk_size_squared", "prediction"];
    read_rows(dir, Op::AttnPrefill.name(), keys, |[kv, squared, ms]| {
        push_cell(&mut grid, kv / KV_STEP as f64, squared.sqrt() - 1.0, ms)
    })?;
    Ok(grid)
}

/// Appends a cell; rows and columns come in order, none left out.
fn push_cell(grid: &mut Grid, row: f64, column: f64, ms: f64) -> Result<(), String> {
    if column == 0.0 {
        grid.values.push(Vec::new());
    }
    let rows = grid.values.len() as u64;
    let Some(values) = grid.values.last_mut() else {
        return Err("expected the rows in ascending order of both keys".into());
    };
    if row != (rows - 1 + grid.first_row) as f64 || column != values.len() as f64 {
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
