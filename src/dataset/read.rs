//! Profiles as samples per operator: which rows count for a model, and what each row measures.

use super::attention::{MixedAttention, PromptBatch, Shape};
use super::cpu::read_cpu_overheads;
use super::location::{LocateError, ProfileFile, ProfileKind, ProfileRoot};
use super::schema::{ATTENTION_OPS, time_column};
use super::table::{Column, ReadError, Table, line};
use crate::spec::device::DeviceSku;
use crate::spec::model::ModelSpec;
use crate::spec::ops::{Op, OpInput};
use crate::spec::parallel::Parallelism;
use csv::ByteRecord;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// What to do with a row whose time is empty or NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingValues {
    /// Stop, and name the file, the column and the first line.
    #[default]
    Refuse,
    /// Leave the row out for the operator that lacks it, and warn.
    Skip,
}

/// One measurement of one operator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Where it was measured. For collectives [`OpInput::Tokens`] holds the message's bytes.
    pub input: OpInput,
    /// Median time of one execution in milliseconds.
    pub ms: f64,
    /// Line of the file.
    pub line: u64,
}

/// All measurements of one operator.
#[derive(Clone, Debug, PartialEq)]
pub struct OpSamples {
    /// The operator.
    pub op: Op,
    /// The file that they come from.
    pub file: String,
    /// The measurements, in file order.
    pub points: Vec<Sample>,
}

/// A file that samples were taken from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceFile {
    /// Path.
    pub file: String,
    /// SHA-256 of its contents.
    pub sha256: String,
    /// The manifest beside it, when there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<serde_json::Value>,
}

/// The samples of every operator that was asked for and measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProfileSet {
    /// Samples by operator, each operator once.
    pub ops: Vec<OpSamples>,
    /// Attention of several prompts at a time, where it was measured.
    pub prompt_batches: Vec<PromptBatch>,
    /// Attention of prompts and decoding sequences in one kernel, where it was measured.
    pub mixed_attention: Vec<MixedAttention>,
    /// Whether the times of the all-reduce hold what launching it costs; `None` when nothing says so.
    pub all_reduce_launch_included: Option<bool>,
    /// Operators that the profiles have no column for.
    pub not_measured: Vec<Op>,
    /// What the reader left out, and what that may cost.
    pub warnings: Vec<String>,
    /// What is worth knowing and no cause for worry.
    pub notes: Vec<String>,
    /// The files that were read.
    pub sources: Vec<SourceFile>,
}

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The model.
    pub model: &'a ModelSpec,
    /// The device.
    pub device: &'a DeviceSku,
    /// How the devices of a replica are wired; needed for collectives. The host's time is looked
    /// up under it too, or under the device when absent.
    pub network_device: Option<&'a str>,
    /// How the model is split.
    pub parallel: Parallelism,
    /// Operators to load.
    pub ops: &'a [Op],
    /// What to do with missing times.
    pub missing_values: MissingValues,
    /// Rows of this KV block size only; `None` takes all.
    pub block_size: Option<u32>,
}

/// Why profiles could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file was not found.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// A file was found and cannot be used.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Collectives without a network device.
    #[error(
        "{0} needs a network profile: name the network device (`cluster.network_device` in a config, `--network-device` for `vidur fit`), the folder under network/ that holds it"
    )]
    NoNetworkDevice(Op),
}

impl Request<'_> {
    /// Whether the profile may lack the operator's column: public profiles do, and leaving the
    /// operator out costs little (and is reported).
    fn is_optional(op: Op) -> bool {
        matches!(op, Op::Emb | Op::LmHead | Op::AttnQkNorm | Op::AttnKvCacheSave)
    }

    /// Finds and reads all files that the operators asked for need.
    ///
    /// # Errors
    /// When a file is absent or cannot be used.
    pub fn load(&self, root: &ProfileRoot) -> Result<ProfileSet, LoadError> {
        let mut set = ProfileSet::default();
        let names = |name, aliases: &[String]| -> Vec<String> {
            std::iter::once(name).chain(aliases.iter().cloned()).collect()
        };
        let hosts = names(self.device.name.clone(), &self.device.aliases);
        let models = names(self.model.name.clone(), &self.model.aliases);
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let models: Vec<&str> = models.iter().map(String::as_str).collect();
        if self.ops.iter().any(|op| is_mlp(*op)) {
            let file = root.find(ProfileKind::Mlp, &hosts, &models)?;
            self.read_mlp(&file, &mut set)?;
        }
        if self.ops.iter().any(|op| ATTENTION_OPS.contains(op)) {
            let file = root.find(ProfileKind::Attention, &hosts, &models)?;
            self.read_attention(&file, &mut set)?;
        }
        for (op, kind) in
            [(Op::AllReduce, ProfileKind::AllReduce), (Op::SendRecv, ProfileKind::SendRecv)]
        {
            if self.ops.contains(&op) {
                let host = self.network_device.ok_or(LoadError::NoNetworkDevice(op))?;
                let file = root.find(kind, &[host], &[])?;
                self.read_collective(op, &file, &mut set)?;
            }
        }
        if self.ops.contains(&Op::Host) {
            let wired = self.network_device.map(|name| vec![name]);
            let hosts = wired.as_ref().unwrap_or(&hosts);
            let file = root.find(ProfileKind::CpuOverhead, hosts, &models)?;
            self.read_host(&file, &models, &mut set)?;
        }
        set.ops.sort_by_key(|samples| samples.op);
        set.not_measured.sort();
        Ok(set)
    }

    /// Adds the engine's time on the host, by sequences in the batch, to `set`.
    ///
    /// # Errors
    /// When the file cannot be used; the message names line and column.
    pub fn read_host(
        &self,
        file: &ProfileFile,
        models: &[&str],
        set: &mut ProfileSet,
    ) -> Result<(), ReadError> {
        let rows = read_cpu_overheads(file, models, self.parallel.tensor_parallel)?;
        let points = rows.iter().map(|row| Sample {
            input: OpInput::Tokens(row.batch_size),
            ms: row.total_ms(),
            line: row.line,
        });
        let points = points.collect();
        set.ops.push(OpSamples { op: Op::Host, file: file.name.clone(), points });
        set.sources.push(source(file));
        Ok(())
    }

    /// Adds the operators of an mlp.csv to `set`.
    ///
    /// Rows are chosen by shape and tensor-parallel degree, not by `vocab_size`: public files
    /// carry padded vocabularies (32768 for Llama 2's 32000), and only `emb` and `lm_head`
    /// depend on it.
    ///
    /// # Errors
    /// When the file cannot be used; the message names line and column.
    pub fn read_mlp(&self, file: &ProfileFile, set: &mut ProfileSet) -> Result<(), ReadError> {
        let (table, fused) = (Table::parse(file)?, file.fused());
        let model = self.model;
        let counts = [
            ("n_head", model.num_attention_heads),
            ("n_kv_head", model.num_key_value_heads),
            ("n_embd", model.hidden_size),
            ("n_expanded_embd", model.intermediate_size),
        ];
        let gated = Some(("use_gated_mlp", model.gated_mlp));
        let rows = self.matching_rows(&table, "mlp.csv", &counts, gated)?;
        let tokens = table.column("num_tokens", "mlp.csv")?;
        for &op in self.ops {
            if !is_mlp(op) {
                continue;
            }
            self.collect(&table, op, &rows, &fused, set, |row| {
                Ok(Some(OpInput::Tokens(table.count(row, tokens)?)))
            })?;
        }
        set.sources.push(source(file));
        Ok(())
    }

    /// Adds the operators of an attention.csv to `set`.
    ///
    /// Prefill rows (a chunk above 0) feed `attn_prefill`, decode rows `attn_decode`: what the
    /// other column holds there (empty or 0) is "not measured". Prefill rows of several prompts on
    /// empty caches are kept apart, as [`PromptBatch`]. `attn_kv_cache_save` is taken
    /// from both, as a function of the tokens written: the chunk, or one per sequence.
    ///
    /// # Errors
    /// When the file cannot be used; the message names line and column.
    pub fn read_attention(
        &self,
        file: &ProfileFile,
        set: &mut ProfileSet,
    ) -> Result<(), ReadError> {
        let (table, fused) = (Table::parse(file)?, file.fused());
        let model = self.model;
        let counts = [
            ("n_embd", model.hidden_size),
            ("n_q_head", model.num_attention_heads),
            ("n_kv_head", model.num_key_value_heads),
        ];
        let mut rows = self.matching_rows(&table, "attention.csv", &counts, None)?;
        if let Some(wanted) = self.block_size {
            let column = table.column("block_size", "choosing rows by block size")?;
            let wanted = u64::from(wanted);
            rows = keep_degree(&table, rows, "block_size", column, |n| n == wanted, &wanted)?;
        }
        let batch = table.column("batch_size", "attention.csv")?;
        let chunk = table.column("prefill_chunk_size", "attention.csv")?;
        let kv = table.column("kv_cache_size", "attention.csv")?;
        let shape = Shape { batch, chunk, kv };
        if self.ops.contains(&Op::AttnPrefill) {
            set.prompt_batches = shape.several_prompts(&table, &rows)?;
        }
        if self.ops.contains(&Op::AttnDecode) {
            set.mixed_attention = shape.mixed(&table, &rows)?;
        }
        rows = shape.one_kind(&table, rows)?;
        for &op in self.ops.iter().filter(|op| ATTENTION_OPS.contains(op)) {
            self.collect(&table, op, &rows, &fused, set, |row| {
                let (batch, chunk) = (table.count(row, batch)?, table.count(row, chunk)?);
                let kv = table.count(row, kv)? as f64;
                Ok(match op {
                    Op::AttnPrefill if chunk > 0 && batch <= 1 => {
                        Some(OpInput::Prefill { kv, chunk: chunk as f64 })
                    }
                    Op::AttnDecode if chunk == 0 => Some(OpInput::Decode { batch, kv }),
                    Op::AttnKvCacheSave if chunk == 0 || batch <= 1 => {
                        Some(OpInput::Tokens(chunk.max(batch)))
                    }
                    _ => None,
                })
            })?;
        }
        set.sources.push(source(file));
        Ok(())
    }

    /// Adds all_reduce.csv or send_recv.csv to `set`. Rows of other group sizes, and of groups
    /// spread over nodes when the replica fits into one, do not count.
    ///
    /// # Errors
    /// When the file cannot be used; the message names line and column.
    pub fn read_collective(
        &self,
        op: Op,
        file: &ProfileFile,
        set: &mut ProfileSet,
    ) -> Result<(), ReadError> {
        let (table, fused) = (Table::parse(file)?, file.fused());
        let workers = table.column("num_workers", op.name())?;
        let size = table.column("size", op.name())?;
        let group = if op == Op::AllReduce { self.parallel.tensor_parallel } else { 2 };
        let group = u64::from(group);
        let all: Vec<&ByteRecord> = table.rows.iter().collect();
        let mut rows = keep_degree(&table, all, "num_workers", workers, |n| n == group, &group)?;
        if let Some(per_node) = table.optional("devices_per_node") {
            let mut local = group;
            if let (Op::SendRecv, Some(most)) = (op, table.optional("max_devices_per_node")) {
                // Neighbouring stages sit in one node when the whole replica fits into it.
                let node = table.count(rows[0], most)?;
                local = if u64::from(self.parallel.num_devices()) <= node { 2 } else { 1 };
            }
            let keep = |n| n == local;
            rows = keep_degree(&table, rows, "devices_per_node", per_node, keep, &local)?;
        }
        let rows = distinct(rows);
        if op == Op::AllReduce {
            let stated = file.manifest.as_ref().and_then(|m| m.get("launch_included"));
            set.all_reduce_launch_included = stated.and_then(serde_json::Value::as_bool);
        }
        self.collect(&table, op, &rows, &fused, set, |row| {
            Ok(Some(OpInput::Tokens(table.count(row, size)?)))
        })?;
        set.sources.push(source(file));
        Ok(())
    }

    /// Distinct rows of the model's shape and the degree asked for.
    fn matching_rows<'t>(
        &self,
        table: &'t Table<'_>,
        needed_for: &str,
        counts: &[(&str, u32)],
        gated: Option<(&str, bool)>,
    ) -> Result<Vec<&'t ByteRecord>, ReadError> {
        let mut columns = Vec::new();
        for (name, wanted) in counts {
            columns.push((table.column(name, needed_for)?, u64::from(*wanted)));
        }
        let gated = match gated {
            Some((name, wanted)) => Some((table.column(name, needed_for)?, wanted)),
            None => None,
        };
        let degree = table.column("num_tensor_parallel_workers", needed_for)?;
        let mut rows = Vec::new();
        let mut others = BTreeSet::new();
        for row in &table.rows {
            let mut same = true;
            for (column, wanted) in &columns {
                same &= table.count(row, *column)? == *wanted;
            }
            if let Some((column, wanted)) = gated {
                same &= table.flag(row, column)? == wanted;
            }
            if same {
                rows.push(row);
            } else if others.len() < 5 {
                let parts = columns.iter().map(|c| c.0).chain(gated.map(|g| g.0));
                let parts: Vec<String> =
                    parts.map(|c| format!("{} {}", table.name(c), table.text(row, c))).collect();
                others.insert(parts.join(", "));
            }
        }
        if rows.is_empty() {
            let mut wanted: Vec<String> =
                counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
            if let Some((column, flag)) = gated {
                let flag = if flag { "True" } else { "False" };
                wanted.push(format!("{} {flag}", table.name(column)));
            }
            return Err(ReadError::NoShape {
                file: table.file.into(),
                wanted: wanted.join(", "),
                present: others.into_iter().collect::<Vec<_>>().join("; "),
            });
        }
        let tp = u64::from(self.parallel.tensor_parallel);
        let column = "num_tensor_parallel_workers";
        Ok(distinct(keep_degree(table, rows, column, degree, |n| n == tp, &tp)?))
    }

    /// Samples of `op` from the rows for which `input` says where they were measured.
    fn collect<'t>(
        &self,
        table: &Table<'_>,
        op: Op,
        rows: &[&'t ByteRecord],
        fused: &BTreeMap<String, String>,
        set: &mut ProfileSet,
        input: impl Fn(&'t ByteRecord) -> Result<Option<OpInput>, ReadError>,
    ) -> Result<(), ReadError> {
        let name = time_column(op, "median");
        let column = match table.optional(&name) {
            Some(column) => column,
            None if let Some(by) = fused.get(op.name()) => {
                set.notes.push(format!("{}: the time of {op} is part of {by}", table.file));
                return Ok(());
            }
            None if Self::is_optional(op) => {
                set.not_measured.push(op);
                set.notes.push(format!(
                    "{}: no column {name}; the time of {op} is left out of every step",
                    table.file
                ));
                return Ok(());
            }
            None => table.column(&name, &self.model.name)?,
        };
        let mut points = Vec::with_capacity(rows.len());
        let mut missing = Vec::new();
        for row in rows {
            let Some(input) = input(row)? else { continue };
            match table.time(row, column)? {
                Some(ms) => points.push(Sample { input, ms, line: line(row) }),
                // Our profiler times it only for as many rows as are ever sampled at once.
                None if op == Op::LmHead => {}
                None => missing.push(line(row)),
            }
        }
        let file = table.file.to_string();
        if let Some(&first) = missing.first() {
            let rows = missing.len();
            if self.missing_values == MissingValues::Refuse {
                return Err(ReadError::Missing { file, line: first, column: name, rows });
            }
            let lines: Vec<String> = missing.iter().take(5).map(u64::to_string).collect();
            let more = if rows > 5 { ", ..." } else { "" };
            set.warnings.push(format!(
                "{file}: {rows} rows without a number in column {name} are left out (lines {}{more})",
                lines.join(", ")
            ));
        }
        if points.is_empty() {
            return Err(ReadError::NothingMeasured { file, column: name });
        }
        set.ops.push(OpSamples { op, file, points });
        Ok(())
    }
}

/// Rows of a profile.
///
/// # Errors
/// When it is no CSV file, or rows have unlike numbers of cells.
pub fn count_rows(file: &ProfileFile) -> Result<usize, ReadError> {
    Table::parse(file).map(|table| table.rows.len())
}

/// Whether an operator's times are in mlp.csv.
fn is_mlp(op: Op) -> bool {
    !op.is_collective() && !op.is_graph() && !ATTENTION_OPS.contains(&op) && op != Op::Host
}

/// The rows without exact repetitions: public files hold some, and they are no new measurements.
fn distinct(rows: Vec<&ByteRecord>) -> Vec<&ByteRecord> {
    let mut seen = HashSet::with_capacity(rows.len());
    rows.into_iter().filter(|row| seen.insert(cells(row))).collect()
}

/// A row as bytes; equal for equal rows only, since 0xFF occurs in no UTF-8 text.
fn cells(row: &ByteRecord) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(row.as_slice().len() + row.len());
    for cell in row {
        bytes.extend_from_slice(cell);
        bytes.push(0xFF);
    }
    bytes
}

/// The rows whose `column` passes; an error that names what there is when none does.
fn keep_degree<'t>(
    table: &Table<'_>,
    rows: Vec<&'t ByteRecord>,
    name: &'static str,
    column: Column,
    keep: impl Fn(u64) -> bool,
    wanted: &u64,
) -> Result<Vec<&'t ByteRecord>, ReadError> {
    let mut kept = Vec::with_capacity(rows.len());
    let mut present = BTreeSet::new();
    for row in rows {
        let n = table.count(row, column)?;
        present.insert(n);
        if keep(n) {
            kept.push(row);
        }
    }
    if kept.is_empty() {
        let present: Vec<String> = present.iter().map(u64::to_string).collect();
        return Err(ReadError::NoDegree {
            file: table.file.into(),
            column: name,
            wanted: wanted.to_string(),
            present: present.join(", "),
        });
    }
    Ok(kept)
}

fn source(file: &ProfileFile) -> SourceFile {
    SourceFile { file: file.name.clone(), sha256: file.sha256(), manifest: file.manifest.clone() }
}
