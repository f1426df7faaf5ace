//! Tables of predictions, looked up as microsoft/vidur looks them up. They are given (the predictions
//! of another program's regressors: two simulators can then be compared apart from these), or
//! compiled from our own forests (the `forest` predictor).
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

use super::config::{AttentionBatchingOverhead, HostStages};
use super::{PredictorError, table_read};
use crate::cost::{BatchShape, CostModel, OpTime, StepCost};
use crate::ids::StageId;
use crate::spec::model::{LayerLayout, ModelSpec};
use crate::spec::ops::Op;
use crate::spec::parallel::Parallelism;
use crate::units::SimDuration;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

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
pub(super) const KV_STEP: u64 = 64;
/// Tokens are rounded up to a multiple of this.
pub(super) const TOKEN_STEP: u64 = 8;

/// Host operators, in the order in which Vidur adds them.
pub(super) const HOST_OPS: [&str; 5] =
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
    prefill_step: u64,
    send_recv: Vec<f64>,
    /// By sequences in the batch.
    host: Vec<f64>,
    host_stages: HostStages,
    overhead: AttentionBatchingOverhead,
}

/// One looked-up value.
#[derive(Clone, Copy, Default)]
struct Found {
    ms: f64,
    outside: bool,
}

/// The entry at `index`, or the last one scaled by the work beyond it. An empty table is an
/// operator that is not modelled, and takes no time.
fn look_up(table: &[f64], index: u64) -> Found {
    match table.get(index as usize) {
        Some(&ms) => Found { ms, outside: false },
        None if table.is_empty() => Found::default(),
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

/// The tables of one execution of each operator, before they are added up. Milliseconds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Tables {
    /// Operators of a layer by tokens / [`TOKEN_STEP`], in the order of [`layer_ops`].
    pub token_ops: Vec<(Op, Vec<f64>)>,
    /// By tokens. Empty when not modelled.
    pub kv_save: Vec<f64>,
    /// Rows by sequences from 1, columns by context / [`KV_STEP`] from 0.
    pub decode: Vec<Vec<f64>>,
    /// Rows by context / [`KV_STEP`] from 0, columns by chunk / `prefill_step` from 1.
    pub prefill: Vec<Vec<f64>>,
    /// Tokens from one column of `prefill` to the next.
    pub prefill_step: u64,
    /// By tokens / [`TOKEN_STEP`]. Empty with one stage.
    pub send_recv: Vec<f64>,
    /// By sequences. Empty when not modelled.
    pub host: Vec<f64>,
}

/// How tables are added up.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableRules {
    pub overhead: AttentionBatchingOverhead,
    pub all_reduce_launch_ms: f64,
    pub host_stages: HostStages,
}

/// The operators of one layer that depend on tokens rounded to eight, in the order in which Vidur
/// adds them.
pub(super) fn layer_ops(model: &ModelSpec, parallel: Parallelism) -> Vec<Op> {
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
    ops
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
        let tables = table_read::read(settings, model, parallel)?;
        let rules = TableRules {
            overhead: settings.attention_batching_overhead,
            all_reduce_launch_ms: settings.all_reduce_launch_ms,
            host_stages: HostStages::Every,
        };
        Ok(TableCost::new(tables, model, parallel, rules))
    }

    /// Adds `tables` up for `model`, split as `parallel`.
    pub(super) fn new(
        tables: Tables,
        model: &ModelSpec,
        parallel: Parallelism,
        rules: TableRules,
    ) -> Self {
        let mut token_ops = tables.token_ops;
        for (_, table) in token_ops.iter_mut().filter(|(op, _)| *op == Op::AllReduce) {
            // Twice a layer, each with its launch.
            table.iter_mut().for_each(|ms| *ms = 2.0 * (*ms + rules.all_reduce_launch_ms));
        }
        let longest = token_ops.iter().map(|(_, t)| t.len()).max().unwrap_or(0);
        let sum = |i: usize| token_ops.iter().map(|(_, t)| look_up(t, i as u64).ms).sum();
        let per_token = (0..longest).map(sum).collect();
        let layers = (0..parallel.pipeline_parallel)
            .map(|stage| f64::from(parallel.layers_in_stage(model.num_layers, stage)))
            .collect();
        let grouped = model.num_attention_heads > model.num_key_value_heads;
        TableCost {
            stages: parallel.pipeline_parallel,
            layers,
            token_ops,
            per_token,
            kv_save: tables.kv_save,
            decode: Grid { values: tables.decode, first_row: 1 },
            prefill: Grid { values: tables.prefill, first_row: 0 },
            prefill_step: tables.prefill_step.max(1),
            send_recv: tables.send_recv,
            host: tables.host,
            host_stages: rules.host_stages,
            overhead: match grouped {
                true => rules.overhead,
                false => AttentionBatchingOverhead::default(),
            },
        }
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
        let column = chunk.div_ceil(self.prefill_step).saturating_sub(1);
        let mut found = self.prefill.look_up(context, column);
        if batch.prefills.len() > 1 {
            found.ms *= 1.0 + self.overhead.prefill;
        }
        found
    }

    fn host_ms(&self, stage: StageId, batch: &BatchShape) -> Found {
        if !self.host_stages.pays(stage.0) {
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
            (self.decode(batch), self.prefill(batch), self.host_ms(stage, batch));
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
        push(Op::Host, self.host_ms(stage, batch), 1.0);
        times
    }
}
