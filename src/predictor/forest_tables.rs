//! Forests compiled into the tables that [`TableCost`](super::TableCost) looks up: one entry per key
//! that a batch can ask for, as far as was measured. Beyond that the look-up scales by the work.

use super::PredictorError;
use super::cache::Sheet;
use super::config::Limits;
use super::features::axes;
use super::forest::{ForestSettings, fit_and_ask};
use super::table::{KV_STEP, TOKEN_STEP, Tables, layer_ops};
use crate::dataset::read::{OpSamples, ProfileSet};
use crate::spec::model::ModelSpec;
use crate::spec::ops::{Op, OpInput};
use crate::spec::parallel::Parallelism;
use rayon::prelude::*;

/// Operators whose sheets have several rows. Sheets are named as their operators.
const GRIDS: [Op; 2] = [Op::AttnDecode, Op::AttnPrefill];

/// Name of the sheet that holds the tokens from one column of the prefill table to the next.
const PREFILL_STEP: &str = "attn_prefill step";

/// Keys that the prefill table has at most, about: as many again take seconds and hundreds of
/// megabytes. Contexts of 4,096 tokens and chunks of 8,192 stay below; beyond, every second chunk
/// is asked for, or every fourth and so on.
const MOST_PREFILL_KEYS: u64 = 1 << 20;

impl Tables {
    /// Fits a forest to every operator of `profiles` and asks it for all keys up to `limits`.
    ///
    /// # Errors
    /// When an operator has no samples.
    pub(super) fn of_forests(
        profiles: &ProfileSet,
        settings: &ForestSettings,
        model: &ModelSpec,
        limits: Limits,
    ) -> Result<Tables, PredictorError> {
        let bytes_per_token = f64::from(model.hidden_size) * model.dtype.bytes();
        let sheets: Result<Vec<(Sheet, u64)>, PredictorError> = profiles
            .ops
            .par_iter()
            .map(|samples| {
                let keys = Keys::of(samples, limits, bytes_per_token);
                let answers = fit_and_ask(samples, settings, &keys.inputs)?;
                let rows = keys.rows(&answers);
                Ok((Sheet { name: samples.op.name().into(), rows }, keys.step))
            })
            .collect();
        let sheets = sheets?;
        let step = sheets.iter().map(|s| s.1).max().unwrap_or(1);
        let mut tables = Tables::from_sheets(sheets.into_iter().map(|s| s.0).collect());
        tables.prefill_step = step;
        Ok(tables)
    }

    /// Tables by the names of their operators; those without a sheet stay empty.
    pub(super) fn from_sheets(sheets: Vec<Sheet>) -> Tables {
        let mut tables = Tables::default();
        for sheet in sheets {
            if sheet.name == PREFILL_STEP {
                tables.prefill_step = sheet.rows.iter().flatten().map(|&step| step as u64).sum();
            }
            let Some(op) = Op::ALL.into_iter().find(|op| op.name() == sheet.name) else { continue };
            if GRIDS.contains(&op) {
                match op {
                    Op::AttnDecode => tables.decode = sheet.rows,
                    _ => tables.prefill = sheet.rows,
                }
                continue;
            }
            let line = sheet.rows.into_iter().next().unwrap_or_default();
            match op {
                Op::AttnKvCacheSave => tables.kv_save = line,
                Op::SendRecv => tables.send_recv = line,
                Op::Host => tables.host = line,
                _ => tables.token_ops.push((op, line)),
            }
        }
        tables
    }

    /// The inverse of [`Tables::from_sheets`].
    pub(super) fn to_sheets(&self) -> Vec<Sheet> {
        let sheet = |op: Op, rows: Vec<Vec<f64>>| Sheet { name: op.name().into(), rows };
        let line = |op: Op, line: &Vec<f64>| sheet(op, vec![line.clone()]);
        let mut sheets: Vec<Sheet> =
            self.token_ops.iter().map(|(op, table)| line(*op, table)).collect();
        sheets.push(line(Op::AttnKvCacheSave, &self.kv_save));
        sheets.push(sheet(Op::AttnDecode, self.decode.clone()));
        sheets.push(sheet(Op::AttnPrefill, self.prefill.clone()));
        let rows = vec![vec![self.prefill_step as f64]];
        sheets.push(Sheet { name: PREFILL_STEP.into(), rows });
        sheets.push(line(Op::SendRecv, &self.send_recv));
        sheets.push(line(Op::Host, &self.host));
        sheets
    }

    /// Puts the operators of a layer in the order in which Vidur adds them.
    pub(super) fn in_order(mut self, model: &ModelSpec, parallel: Parallelism) -> Tables {
        let order = layer_ops(model, parallel);
        self.token_ops.sort_by_key(|(op, _)| order.iter().position(|o| o == op));
        self
    }
}

/// The keys of one operator's table, row by row.
struct Keys {
    inputs: Vec<OpInput>,
    /// Keys in a row; 0 where the table is one line, which begins with the entry of no tokens.
    columns: usize,
    /// Tokens from one chunk to the next, where keys have chunks.
    step: u64,
}

impl Keys {
    fn of(samples: &OpSamples, limits: Limits, bytes_per_token: f64) -> Keys {
        let most = |feature: fn((f64, f64)) -> f64| {
            samples.points.iter().map(|s| feature(axes(s.input))).fold(0.0, f64::max)
        };
        let (most_rows, most_x) = (most(|(row, _)| row), most(|(_, x)| x));
        let tokens = u64::from(limits.max_batch_tokens);
        let sequences = u64::from(limits.max_batch_size);
        let contexts = (most_x / KV_STEP as f64).ceil() as u64;
        let context = |step: u64| (step * KV_STEP) as f64;
        let line = |inputs: Vec<OpInput>| Keys { inputs, columns: 0, step: 1 };
        let eighths = |most: f64, scale: f64| {
            let last = tokens.div_ceil(TOKEN_STEP).min((most / TOKEN_STEP as f64).ceil() as u64);
            let input = |i| OpInput::Tokens(((i * TOKEN_STEP) as f64 * scale) as u64);
            line((1..=last.max(1)).map(input).collect())
        };
        match samples.op {
            Op::AttnDecode => Keys {
                inputs: (1..=sequences.min(most_rows as u64).max(1))
                    .flat_map(|batch| {
                        (0..=contexts).map(move |k| OpInput::Decode { batch, kv: context(k) })
                    })
                    .collect(),
                columns: contexts as usize + 1,
                step: 1,
            },
            Op::AttnPrefill => {
                let most = tokens.min(most_rows as u64).max(1);
                let keys = most.saturating_mul(contexts + 1);
                let step = keys.div_ceil(MOST_PREFILL_KEYS).next_power_of_two();
                let chunks = most.div_ceil(step);
                let input = |k: u64, c: u64| {
                    let chunk = (c * step).min(most) as f64;
                    OpInput::Prefill { kv: context(k), chunk }
                };
                Keys {
                    inputs: (0..=contexts)
                        .flat_map(|k| (1..=chunks).map(move |c| input(k, c)))
                        .collect(),
                    columns: chunks as usize,
                    step,
                }
            }
            Op::AttnKvCacheSave => {
                line((1..=tokens.min(most_x as u64).max(1)).map(OpInput::Tokens).collect())
            }
            Op::Host => {
                line((1..=sequences.min(most_x as u64).max(1)).map(OpInput::Tokens).collect())
            }
            op if op.is_collective() => eighths(most_x / bytes_per_token, bytes_per_token),
            _ => eighths(most_x, 1.0),
        }
    }

    fn rows(&self, answers: &[f64]) -> Vec<Vec<f64>> {
        match self.columns {
            0 => vec![std::iter::once(0.0).chain(answers.iter().copied()).collect()],
            columns => answers.chunks(columns).map(<[f64]>::to_vec).collect(),
        }
    }
}
