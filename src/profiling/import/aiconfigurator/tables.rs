//! The tables of one system and engine, read once and asked for any model.

use super::attention::{Heads, Point, Table};
use super::engine::{Engine, by_version};
use super::frame::Frame;
use super::gemm::Grid;
use super::source::Package;
use super::streaming::Streaming;
use crate::dataset::manifest::sha256_hex;
use crate::profiling::import::ImportError;
use serde::Serialize;
use std::collections::BTreeMap;

/// A file of the package that figures were taken from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableFile {
    /// Path below `systems`.
    pub path: String,
    /// SHA-256 of it, hexadecimal.
    pub sha256: String,
    /// Rows that it holds.
    pub rows: usize,
    /// The device as the driver names it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Kernels that were timed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<String>,
}

/// What one system and engine were timed at.
#[derive(Debug)]
pub struct Tables {
    /// System, as the package calls it.
    pub system: String,
    /// Engine.
    pub engine: Engine,
    /// Version of the engine that the matrix products were timed with.
    pub engine_version: String,
    /// Version of the package.
    pub package_version: Option<String>,
    /// Matrix products by number format.
    pub(super) gemm: BTreeMap<String, Grid>,
    /// Quantising an input when its scale is known, and what finding the scale adds: `(m, 1, k)`.
    pub(super) scale: Grid,
    pub(super) find_scale: Grid,
    /// Prompts by the formats of attention and cache.
    pub(super) context: BTreeMap<(String, String), Table>,
    /// Decoding sequences by the format of the cache.
    pub(super) generation: BTreeMap<String, Table>,
    /// All-reduce: `(devices, bytes, ms)`.
    pub(super) all_reduce: Vec<(u32, u64, f64)>,
    /// Exchange between two devices: `(bytes sent each way, ms)`.
    pub(super) exchange: Vec<(u64, f64)>,
    /// Operators that only move data.
    pub(super) streaming: Option<Streaming>,
    /// Where the figures come from, by family.
    pub files: BTreeMap<&'static str, TableFile>,
}

/// Elements of messages and activations are 16 bits wide.
const BYTES_PER_ELEMENT: u64 = 2;

impl Tables {
    /// Reads the tables of `engine` on `system`, of the version `wanted` or the newest.
    ///
    /// # Errors
    /// When the package lacks the system or engine (the message says what it has), or a table is broken.
    pub fn load(
        package: &Package,
        system: &str,
        engine: Engine,
        wanted: Option<&str>,
    ) -> Result<Tables, ImportError> {
        let finder = Finder { package, system };
        let (version, gemm_file) = finder.newest("gemm", engine.name(), "gemm_perf", wanted)?;
        let mut tables = Tables {
            system: system.to_owned(),
            engine,
            engine_version: version.clone(),
            package_version: package.version().map(str::to_owned),
            gemm: BTreeMap::new(),
            scale: Grid::default(),
            find_scale: Grid::default(),
            context: BTreeMap::new(),
            generation: BTreeMap::new(),
            all_reduce: Vec::new(),
            exchange: Vec::new(),
            streaming: None,
            files: BTreeMap::new(),
        };
        tables.read_gemm(package, &gemm_file)?;
        let engine_name = engine.name();
        for (family, file) in
            [("context", "context_attention_perf"), ("generation", "generation_attention_perf")]
        {
            let (_, path) = finder
                .newest("attention", engine_name, file, Some(&version))
                .or_else(|_| finder.newest("attention", engine_name, file, None))?;
            tables.read_attention(package, &path, family)?;
        }
        let at_most = finder.up_to("comm", engine_name, "custom_allreduce_perf", &version);
        if let Some(path) = at_most {
            tables.read_all_reduce(package, &path)?;
        }
        if let Ok((_, path)) = finder.newest("comm", "nccl", "nccl_perf", None) {
            tables.read_nccl(package, &path)?;
        }
        tables.read_quantize(&finder, &version)?;
        Ok(tables)
    }

    /// Reads `columns` of the file at `path` and notes it under `family`.
    fn frame(
        &mut self,
        package: &Package,
        path: &str,
        family: &'static str,
        columns: &[&str],
    ) -> Result<Frame, ImportError> {
        let bytes = package.read(path)?;
        let sha256 = sha256_hex(&bytes);
        let mut wanted = vec!["device", "kernel_source"];
        wanted.extend(columns);
        let frame = Frame::read(path, bytes, &wanted)?;
        let distinct = |column: &str| {
            let mut names =
                frame.optional_texts(column).map_or(Vec::new(), |t| t.distinct().to_vec());
            names.sort();
            names
        };
        let file = TableFile {
            path: path.to_owned(),
            sha256,
            rows: frame.rows(),
            devices: distinct("device"),
            kernels: distinct("kernel_source"),
        };
        self.files.insert(family, file);
        Ok(frame)
    }

    fn read_gemm(&mut self, package: &Package, path: &str) -> Result<(), ImportError> {
        let frame = self.frame(package, path, "gemm", &["gemm_dtype", "m", "n", "k", "latency"])?;
        let (m, n, k) = (frame.integers("m")?, frame.integers("n")?, frame.integers("k")?);
        let (ms, format) = (frame.floats("latency")?, frame.texts("gemm_dtype")?);
        for name in format.distinct() {
            let rows = (0..frame.rows()).filter(|row| format.at(*row) == name && ms[*row] > 0.0);
            let points: Vec<_> =
                rows.map(|row| (size(m[row]), size(n[row]), size(k[row]), ms[row])).collect();
            self.gemm.insert(name.clone(), Grid::new(&points));
        }
        Ok(())
    }

    fn read_attention(
        &mut self,
        package: &Package,
        path: &str,
        family: &'static str,
    ) -> Result<(), ImportError> {
        let columns = [
            "batch_size",
            "isl",
            "num_heads",
            "num_key_value_heads",
            "head_dim",
            "attn_dtype",
            "kv_cache_dtype",
            "step",
            "window_size",
            "latency",
        ];
        let frame = self.frame(package, path, family, &columns)?;
        let (batch, isl) = (frame.integers("batch_size")?, frame.integers("isl")?);
        let (query, kv) = (frame.integers("num_heads")?, frame.integers("num_key_value_heads")?);
        let (dim, step) = (frame.integers("head_dim")?, frame.integers("step")?);
        let (ms, window) = (frame.floats("latency")?, frame.integers("window_size").ok());
        let (format, cache) = (frame.texts("attn_dtype")?, frame.texts("kv_cache_dtype")?);
        let context = family == "context";
        for row in 0..frame.rows() {
            if ms[row] <= 0.0 || window.is_some_and(|w| w[row] > 0) || (context && step[row] > 0) {
                continue;
            }
            let heads =
                Heads { query: size(query[row]), key_value: size(kv[row]), dim: size(dim[row]) };
            let length = if context { isl[row] } else { step[row] };
            let point = Point { batch: size(batch[row]), length: size(length), ms: ms[row] };
            if context {
                let key = (format.at(row).to_owned(), cache.at(row).to_owned());
                self.context.entry(key).or_default().push(heads, point);
            } else {
                self.generation.entry(cache.at(row).to_owned()).or_default().push(heads, point);
            }
        }
        self.context.values_mut().chain(self.generation.values_mut()).for_each(Table::finish);
        Ok(())
    }

    /// Sizes of messages are numbers of 16-bit elements: at the largest, twice as many bytes are what
    /// the links of the data sheet carry in the time measured.
    fn read_all_reduce(&mut self, package: &Package, path: &str) -> Result<(), ImportError> {
        let columns = ["num_gpus", "message_size", "latency"];
        let frame = self.frame(package, path, "all_reduce", &columns)?;
        let (devices, size_of) = (frame.integers("num_gpus")?, frame.integers("message_size")?);
        let (ms, kernel) = (frame.floats("latency")?, frame.texts("kernel_source")?);
        for row in (0..frame.rows()).filter(|row| self.engine.all_reduce_row(kernel.at(*row))) {
            let bytes = u64::from(size(size_of[row])) * BYTES_PER_ELEMENT;
            self.all_reduce.push((size(devices[row]), bytes, ms[row]));
        }
        self.all_reduce.sort_by_key(|row| (row.0, row.1));
        Ok(())
    }

    /// NCCL: an exchange between two devices from `alltoall`, in which each sends half of its message;
    /// and the all-reduce of numbers of devices that the engine's own table lacks.
    fn read_nccl(&mut self, package: &Package, path: &str) -> Result<(), ImportError> {
        let columns = ["nccl_dtype", "op_name", "num_gpus", "message_size", "latency"];
        let frame = self.frame(package, path, "nccl", &columns)?;
        let (devices, size_of) = (frame.integers("num_gpus")?, frame.integers("message_size")?);
        let (ms, op, dtype) =
            (frame.floats("latency")?, frame.texts("op_name")?, frame.texts("nccl_dtype")?);
        let known: Vec<u32> = self.all_reduce.iter().map(|row| row.0).collect();
        for row in (0..frame.rows()).filter(|row| dtype.at(*row) == "half") {
            let bytes = u64::from(size(size_of[row])) * BYTES_PER_ELEMENT;
            match op.at(row) {
                "alltoall" if devices[row] == 2 => self.exchange.push((bytes / 2, ms[row])),
                "all_reduce" if !known.contains(&size(devices[row])) => {
                    self.all_reduce.push((size(devices[row]), bytes, ms[row]));
                }
                _ => {}
            }
        }
        self.exchange.sort_by_key(|row| row.0);
        self.all_reduce.sort_by_key(|row| (row.0, row.1));
        Ok(())
    }

    /// Quantisation of inputs, by this engine; and every engine's, for operators that move data.
    fn read_quantize(&mut self, finder: &Finder<'_>, version: &str) -> Result<(), ImportError> {
        let columns = ["m", "k", "latency"];
        let mut moved = Vec::new();
        for engine in Engine::ALL {
            let own = engine == self.engine;
            for (table, family) in
                [("scale_matrix_perf", "scale"), ("computescale_perf", "find_scale")]
            {
                let found = if own {
                    finder.up_to("quantize", engine.name(), table, version)
                } else {
                    None
                };
                let newest =
                    || finder.newest("quantize", engine.name(), table, None).ok().map(|f| f.1);
                let Some(path) = found.or_else(newest) else { continue };
                if !own && family == "find_scale" {
                    continue;
                }
                let family = match (own, engine) {
                    (true, _) => family,
                    (_, Engine::Vllm) => "scale_vllm",
                    (_, Engine::Sglang) => "scale_sglang",
                    (_, Engine::Trtllm) => "scale_trtllm",
                };
                let frame = self.frame(finder.package, &path, family, &columns)?;
                let (m, k, ms) =
                    (frame.integers("m")?, frame.integers("k")?, frame.floats("latency")?);
                let points: Vec<_> =
                    (0..frame.rows()).map(|row| (size(m[row]), size(k[row]), ms[row])).collect();
                let grid = |p: &[(u32, u32, f64)]| {
                    Grid::new(&p.iter().map(|p| (p.0, 1, p.1, p.2)).collect::<Vec<_>>())
                };
                match family {
                    "scale" => self.scale = grid(&points),
                    "find_scale" => self.find_scale = grid(&points),
                    _ => {}
                }
                if family != "find_scale" {
                    moved.extend(points);
                }
            }
        }
        self.streaming = Streaming::new(moved);
        Ok(())
    }
}

/// A count in a table; what is no count becomes 0 and matches nothing.
fn size(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

/// Finds the tables of a system.
struct Finder<'a> {
    package: &'a Package,
    system: &'a str,
}

impl Finder<'_> {
    /// Versions that hold `table`, ascending, with the path of each.
    fn versions(&self, family: &str, engine: &str, table: &str) -> Vec<(String, String)> {
        let prefix = format!("data/{}/{family}/{engine}/", self.system);
        let file = format!("/{table}.parquet");
        let mut found: Vec<(String, String)> = self
            .package
            .files(&prefix)
            .filter_map(|path| {
                let version = path.strip_prefix(&prefix)?.strip_suffix(&file)?;
                Some((version.to_owned(), path.to_owned()))
            })
            .collect();
        found.sort_by(|a, b| by_version(&a.0, &b.0));
        found
    }

    /// The newest version that is not newer than `version`, else the newest.
    fn up_to(&self, family: &str, engine: &str, table: &str, version: &str) -> Option<String> {
        let versions = self.versions(family, engine, table);
        let fits = versions.iter().rfind(|v| by_version(&v.0, version).is_le());
        fits.or(versions.last()).map(|v| v.1.clone())
    }

    /// The version `wanted`, or the newest.
    fn newest(
        &self,
        family: &str,
        engine: &str,
        table: &str,
        wanted: Option<&str>,
    ) -> Result<(String, String), ImportError> {
        let versions = self.versions(family, engine, table);
        let found = match wanted {
            Some(wanted) => versions.iter().find(|v| v.0 == wanted),
            None => versions.last(),
        };
        if let Some(found) = found {
            return Ok(found.clone());
        }
        let origin = self.package.origin().display();
        let held = if versions.is_empty() {
            self.inventory(table)
        } else {
            format!(
                "versions there: {}",
                versions.iter().map(|v| v.0.as_str()).collect::<Vec<_>>().join(", ")
            )
        };
        let wanted = wanted.map(|w| format!(" {w}")).unwrap_or_default();
        Err(ImportError::Missing(format!(
            "{origin}: no {table} of {engine}{wanted} on {} ({held})",
            self.system
        )))
    }

    /// Systems and engines that have `table`.
    fn inventory(&self, table: &str) -> String {
        let file = format!("/{table}.parquet");
        let mut held: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for path in self.package.files("data/").filter(|p| p.ends_with(&file)) {
            let parts: Vec<&str> = path.split('/').collect();
            if let [_, system, _, engine, ..] = parts[..] {
                let engines = held.entry(system).or_default();
                if !engines.contains(&engine) {
                    engines.push(engine);
                }
            }
        }
        let words: Vec<String> = held
            .iter()
            .map(|(system, engines)| format!("{system}: {}", engines.join(", ")))
            .collect();
        format!("it has {}", words.join("; "))
    }
}
