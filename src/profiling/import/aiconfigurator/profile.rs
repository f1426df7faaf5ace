//! Profiles of a model from the tables: mlp.csv, attention.csv and the network's files.

use super::attention::{Found, Heads, Point, Prompts, Table, longer};
use super::engine::{Engine, gemm_format};
use super::gemm::{At, Grid};
use super::manifest::{Counts, Manifest};
use super::tables::Tables;
use crate::dataset::schema::time_column;
use crate::profiling::import::csv_text::{Csv, number};
use crate::profiling::import::{ImportError, Imported};
use crate::spec::model::ModelSpec;
use crate::spec::ops::{Op, OpInput};
use crate::spec::parallel::Parallelism;
use std::collections::BTreeMap;

/// Cached tokens before a chunk for which a row is derived.
const PREFIXES: [u32; 10] = [256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131_072];
/// Chunks longer than this follow no prefix: engines cut prompts into smaller ones.
const LONGEST_CHUNK_AFTER_A_PREFIX: u32 = 16_384;

/// Operators that only move data, in column order.
const STREAMED: [Op; 6] = [
    Op::Emb,
    Op::InputLayernorm,
    Op::AttnQkNorm,
    Op::AttnRope,
    Op::PostAttentionLayernorm,
    Op::MlpAct,
];
/// Matrix products, in column order; the last one is not part of a layer.
const PRODUCTS: [Op; 5] =
    [Op::AttnPreProj, Op::AttnPostProj, Op::MlpUpProj, Op::MlpDownProj, Op::LmHead];

impl Tables {
    /// mlp.csv and attention.csv of `model` as stored under `sku`, for each of the tensor-parallel
    /// degrees `degrees` that the model can be split into.
    ///
    /// # Errors
    /// When the tables lack a number format or a shape of attention that the model needs.
    pub fn model_profiles(
        &self,
        model: &ModelSpec,
        sku: &str,
        degrees: &[u32],
    ) -> Result<Imported, ImportError> {
        let mut set = Imported::default();
        let mut splits = Vec::new();
        for &tensor_parallel in degrees {
            let parallel = Parallelism { tensor_parallel, pipeline_parallel: 1 };
            match parallel.check(model) {
                Ok(()) => splits.push(parallel),
                Err(problem) => set.notes.push(problem),
            }
        }
        let mut mlp = Csv::new(&MlpRow::columns(model, self.engine));
        let mut counts = Counts::default();
        for parallel in &splits {
            self.mlp_rows(model, *parallel, &mut mlp, &mut counts)?;
        }
        let manifest = Manifest::mlp(self, model, counts, &mlp);
        set.push(
            format!("compute/{sku}/{}/mlp.csv", model.name),
            mlp.text.into_bytes(),
            &manifest,
        )?;
        let mut attention = Csv::new(&attention_columns());
        let mut counts = Counts::default();
        for parallel in &splits {
            self.attention_rows(model, *parallel, &mut attention, &mut counts)?;
        }
        let manifest = Manifest::attention(self, model, counts, &attention);
        let path = format!("compute/{sku}/{}/attention.csv", model.name);
        set.push(path, attention.text.into_bytes(), &manifest)?;
        Ok(set)
    }

    /// Everything that a predictor needs for `model`: its profiles under `sku` and the network's under
    /// `network_device`.
    ///
    /// # Errors
    /// As [`Tables::model_profiles`] and [`Tables::network_profiles`].
    pub fn profiles(
        &self,
        model: &ModelSpec,
        sku: &str,
        network_device: &str,
        degrees: &[u32],
    ) -> Result<Imported, ImportError> {
        let mut set = self.model_profiles(model, sku, degrees)?;
        set.extend(self.network_profiles(network_device)?);
        Ok(set)
    }

    fn mlp_rows(
        &self,
        model: &ModelSpec,
        parallel: Parallelism,
        csv: &mut Csv,
        counts: &mut Counts,
    ) -> Result<(), ImportError> {
        let mut products = Vec::with_capacity(PRODUCTS.len());
        for op in PRODUCTS {
            products.push(self.product(model, parallel, op, counts)?);
        }
        let streaming = self.streaming.as_ref().ok_or_else(|| {
            ImportError::Missing(format!(
                "the package has no quantize tables of {}, from which the operators that only move data \
                 are derived",
                self.system
            ))
        })?;
        let fused: Vec<Op> = self.engine.fused().iter().map(|f| f.0).collect();
        let streamed: Vec<Op> = streamed(model, &fused).collect();
        let rows: Vec<u32> = products[0].keys().copied().collect();
        for m in rows {
            let mut cells: Vec<String> = Vec::new();
            for op in &streamed {
                let bytes = moved_bytes(*op, model, parallel, m);
                cells.push(number(streaming.ms(bytes)));
                counts.derived(*op);
            }
            for (op, times) in PRODUCTS.iter().zip(&products) {
                match times.get(&m) {
                    Some(ms) => cells.push(number(*ms)),
                    None if *op == Op::LmHead => cells.push(String::new()),
                    // A row counts where all projections of the layer have a time.
                    None => break,
                }
            }
            if cells.len() < streamed.len() + PRODUCTS.len() {
                continue;
            }
            cells.extend(MlpRow::keys(model, m, parallel.tensor_parallel));
            csv.push(&cells);
        }
        Ok(())
    }

    /// Time of matrix product `op` by rows of its input.
    fn product(
        &self,
        model: &ModelSpec,
        parallel: Parallelism,
        op: Op,
        counts: &mut Counts,
    ) -> Result<BTreeMap<u32, f64>, ImportError> {
        let (format, static_scales) = gemm_format(model, op);
        let Some((k, n)) = op.weight_shape(model, parallel) else { return Ok(BTreeMap::new()) };
        let grid = self.gemm.get(format).ok_or_else(|| {
            let held: Vec<&str> = self.gemm.keys().map(String::as_str).collect();
            ImportError::Missing(format!(
                "{}: {} on {} has no {format} matrix products, which {op} of {} needs (it has {})",
                self.engine.name(),
                self.engine_version,
                self.system,
                model.name,
                held.join(", ")
            ))
        })?;
        let mut times: BTreeMap<u32, f64> = grid.times(n, k).iter().map(|t| (t.m, t.ms)).collect();
        if times.is_empty() {
            return Err(ImportError::Missing(format!(
                "{} {} on {} has no {format} product near {k} x {n}, {op} of {} at tensor_parallel {}",
                self.engine.name(),
                self.engine_version,
                self.system,
                model.name,
                parallel.tensor_parallel
            )));
        }
        let measured = grid.is_measured(n, k) && !static_scales;
        counts.product(op, times.len(), measured);
        if static_scales {
            self.drop_quantization(
                &mut times,
                k,
                self.engine.quantizes_before(op, parallel.tensor_parallel),
            );
        }
        Ok(times)
    }

    /// Takes out of `times` what finding the scale of the input adds, and with `whole` the
    /// quantisation too; a quarter of the time stays at least.
    fn drop_quantization(&self, times: &mut BTreeMap<u32, f64>, k: u64, whole: bool) {
        let by_m = |grid: &Grid| -> BTreeMap<u32, f64> {
            grid.times(1, k).iter().map(|At { m, ms }| (*m, *ms)).collect()
        };
        let (find, scale) = (by_m(&self.find_scale), by_m(&self.scale));
        for (m, ms) in times {
            let mut less = find.get(m).copied().unwrap_or(0.0);
            if whole {
                less += scale.get(m).copied().unwrap_or(0.0);
            }
            *ms = (*ms - less).max(0.25 * *ms);
        }
    }

    fn attention_rows(
        &self,
        model: &ModelSpec,
        parallel: Parallelism,
        csv: &mut Csv,
        counts: &mut Counts,
    ) -> Result<(), ImportError> {
        let heads = Heads {
            query: model.num_attention_heads / parallel.tensor_parallel,
            key_value: parallel.kv_heads_per_device(model),
            dim: model.head_dim,
        };
        let formats = self.engine.context_formats(model);
        let context =
            formats.iter().find_map(|(a, c)| self.context.get(&((*a).to_owned(), (*c).to_owned())));
        let cache = Engine::generation_format(model);
        let generation = self.generation.get(cache);
        let lacks = |kind: &str, table: Option<&Table>| {
            let near: Vec<String> = table
                .into_iter()
                .flat_map(Table::shapes)
                .filter(|h| h.dim == heads.dim)
                .map(|h| format!("{}/{}", h.query, h.key_value))
                .collect();
            ImportError::Missing(format!(
                "{} {} on {}: no {kind} attention of {} query and {} key-value heads of width {} (cache \
                 {cache}), which {} needs at tensor_parallel {}; it has {}",
                self.engine.name(),
                self.engine_version,
                self.system,
                heads.query,
                heads.key_value,
                heads.dim,
                model.name,
                parallel.tensor_parallel,
                if near.is_empty() { "no heads of this width".into() } else { near.join(", ") }
            ))
        };
        let (prompts, found) =
            context.and_then(|t| t.of(heads)).ok_or_else(|| lacks("context", context))?;
        let chunks = context
            .and_then(|t| Prompts::new(t, heads))
            .ok_or_else(|| lacks("context", context))?;
        let (decodes, decode_found) =
            generation.and_then(|t| t.of(heads)).ok_or_else(|| lacks("generation", generation))?;
        let mut push = |batch, chunk, kv, ms: f64, found| {
            csv.push(&attention_row(
                model,
                parallel.tensor_parallel,
                (batch, chunk, kv),
                ms,
                found,
            ));
            counts.attention(chunk > 0, found);
        };
        for Point { batch, length, ms } in &prompts {
            push(*batch, *length, 0, *ms, found);
        }
        let lengths = prompts.iter().filter(|p| p.batch == 1).map(|p| p.length);
        for chunk in lengths.filter(|c| (1..=LONGEST_CHUNK_AFTER_A_PREFIX).contains(c)) {
            for prefix in PREFIXES.iter().filter(|p| **p <= model.max_position_embeddings) {
                let ms = chunks.chunk_ms(f64::from(*prefix), f64::from(chunk));
                push(1, chunk, *prefix, ms, Found::Derived);
            }
        }
        for Point { batch, length, ms } in &decodes {
            push(*batch, 0, *length, *ms, decode_found);
        }
        for Point { batch, length, ms } in longer(&decodes) {
            push(batch, 0, length, ms, Found::Derived);
        }
        Ok(())
    }
}

/// The operators of `model` that only move data and are not part of another kernel.
pub(super) fn streamed<'a>(model: &'a ModelSpec, fused: &'a [Op]) -> impl Iterator<Item = Op> + 'a {
    STREAMED
        .into_iter()
        .filter(|op| !fused.contains(op))
        .filter(|op| *op != Op::AttnQkNorm || model.qk_norm)
}

/// Bytes that a streaming operator moves for `m` tokens. A norm adds the residual first: it reads the
/// update and the residual and writes the sum and the result.
fn moved_bytes(op: Op, model: &ModelSpec, parallel: Parallelism, m: u32) -> f64 {
    let work = |op: Op| op.work(model, parallel, model.dtype, OpInput::Tokens(u64::from(m))).bytes;
    match op {
        Op::InputLayernorm | Op::PostAttentionLayernorm => 2.0 * work(op),
        _ => work(op),
    }
}

/// Key columns of mlp.csv, and the times before them.
struct MlpRow;

impl MlpRow {
    fn columns(model: &ModelSpec, engine: Engine) -> Vec<String> {
        let fused: Vec<Op> = engine.fused().iter().map(|f| f.0).collect();
        let ops = streamed(model, &fused).chain(PRODUCTS);
        let mut columns: Vec<String> = ops.map(|op| time_column(op, "median")).collect();
        let keys = crate::dataset::schema::MLP_KEYS;
        columns.extend(keys.map(str::to_owned));
        columns
    }

    fn keys(model: &ModelSpec, m: u32, tensor_parallel: u32) -> [String; 8] {
        [
            model.num_attention_heads.to_string(),
            model.num_key_value_heads.to_string(),
            model.hidden_size.to_string(),
            model.intermediate_size.to_string(),
            model.vocab_size.to_string(),
            if model.gated_mlp { "True".into() } else { "False".into() },
            m.to_string(),
            tensor_parallel.to_string(),
        ]
    }
}

fn attention_columns() -> Vec<String> {
    let times = [Op::AttnPrefill, Op::AttnDecode].map(|op| time_column(op, "median"));
    let keys = [
        "n_embd",
        "n_q_head",
        "n_kv_head",
        "num_tensor_parallel_workers",
        "batch_size",
        "prefill_chunk_size",
        "kv_cache_size",
        "is_prefill",
        "provenance",
    ];
    times.into_iter().chain(keys.map(str::to_owned)).collect()
}

fn attention_row(
    model: &ModelSpec,
    tensor_parallel: u32,
    (batch, chunk, kv): (u32, u32, u32),
    ms: f64,
    found: Found,
) -> Vec<String> {
    let prefill = chunk > 0;
    let cell = |here: bool| if here { number(ms) } else { String::new() };
    vec![
        cell(prefill),
        cell(!prefill),
        model.hidden_size.to_string(),
        model.num_attention_heads.to_string(),
        model.num_key_value_heads.to_string(),
        tensor_parallel.to_string(),
        batch.to_string(),
        chunk.to_string(),
        kv.to_string(),
        if prefill { "True".into() } else { "False".into() },
        if found == Found::Measured { "measured".into() } else { "derived".into() },
    ]
}
