//! Writing graph profiles: `compute/<sku>/<org>/<model>/graph.csv`, a row for each whole graph that
//! a device ran, and the manifest beside it.

use super::location::folder_name;
use super::manifest::{DeviceInfo, FailedShape, Fingerprint, Run, sha256_hex};
use super::network::Times;
use super::write::{WriteError, line_of, write_atomically};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// What the device's profiler counted, where one was there. Shares are fractions.
pub const COUNTERS: [&str; 6] = [
    "tensor_engine_active_time_percent",
    "dma_active_time_percent",
    "mfu_estimated_percent",
    "mbu_estimated_percent",
    "hbm_read_bytes",
    "hbm_write_bytes",
];

const KEYS: [&str; 6] =
    ["num_tensor_parallel_workers", "phase", "batch_size", "bucket", "num_layers", "with_head"];

/// What a graph does with its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reads prompts of up to the bucket's tokens.
    Context,
    /// Decodes one token after up to the bucket's tokens.
    Token,
}

impl Phase {
    /// As files and workers name it.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Context => "context",
            Phase::Token => "token",
        }
    }
}

/// What tells the rows of one file apart; the file is sorted by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GraphKey {
    /// Workers that share each layer; the graph is that of one of them.
    pub tensor_parallel: u32,
    /// What it does.
    pub phase: Phase,
    /// Sequences.
    pub batch: u32,
    /// Tokens that it is compiled for.
    pub bucket: u64,
    /// Decoder layers inside.
    pub layers: u32,
    /// Whether embedding, final norm and LM head are inside.
    pub head: bool,
}

impl fmt::Display for GraphKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GraphKey { phase, batch, bucket, layers, head, .. } = self;
        let head = if *head { " and head" } else { "" };
        write!(f, "{} graph of {layers} layers{head}, {batch} x {bucket} tokens", phase.name())
    }
}

/// One measured graph.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphRow {
    /// Milliseconds of one execution.
    pub times: Times,
    /// Seconds that compiling or tracing took.
    pub compile_s: f64,
    /// `cold` when it was compiled, `warm` when a compiled one was found.
    pub cache: String,
    /// How it was timed.
    pub timing: String,
    /// Whether the time holds the collectives of its tensor-parallel group; else the graph is that
    /// of one worker's share alone.
    pub with_collectives: bool,
    /// By name, of [`COUNTERS`].
    pub counters: BTreeMap<String, f64>,
}

/// The rows of one file.
#[derive(Debug)]
pub struct GraphTable {
    folder: PathBuf,
    fingerprint: Fingerprint,
    rows: BTreeMap<GraphKey, Vec<String>>,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize, Deserialize)]
struct GraphManifest {
    profile: String,
    model: String,
    provenance: String,
    vidur_version: String,
    device: DeviceInfo,
    host_os: String,
    fingerprint: Fingerprint,
    rows: usize,
    sha256: String,
    failed: Vec<FailedShape>,
    runs: Vec<Run>,
}

/// Why a graph profile cannot be read back or written.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// A file.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The SKU is no folder name.
    #[error("{0}")]
    Name(String),
    /// The rows there were measured under other conditions.
    #[error("{} was measured under other conditions ({difference}); --force measures anew, --sku stores beside", path.display())]
    Fingerprint {
        /// The file.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
}

fn columns() -> Vec<String> {
    let times = super::schema::STATISTICS.iter().map(|s| format!("time_stats.graph.{s}"));
    let rest =
        KEYS.iter().chain(&["compile_s", "cache", "timing", "with_collectives"]).chain(&COUNTERS);
    times.chain(rest.map(|name| (*name).to_owned())).collect()
}

impl GraphTable {
    /// The file of the fingerprint's model and SKU under `root`; empty where there is none, or with
    /// `anew`.
    ///
    /// # Errors
    /// See [`GraphError`].
    pub fn open(
        root: &Path,
        fingerprint: Fingerprint,
        anew: bool,
    ) -> Result<GraphTable, GraphError> {
        folder_name(&fingerprint.sku).map_err(|e| GraphError::Name(format!("--sku: {e}")))?;
        let folder = root.join("compute").join(&fingerprint.sku).join(&fingerprint.model.name);
        let mut table = GraphTable { folder, fingerprint, rows: BTreeMap::new(), runs: Vec::new() };
        if !anew {
            table.read()?;
        }
        Ok(table)
    }

    fn read(&mut self) -> Result<(), GraphError> {
        let path = self.path();
        let Some(bytes) = existing(&path)? else { return Ok(()) };
        let manifest_path = self.manifest_path();
        let content = |path: &Path, line: u64, message: String| WriteError::Content {
            path: path.to_owned(),
            line,
            message,
        };
        let difference = match existing(&manifest_path)? {
            None => Some("it has no manifest".to_owned()),
            Some(text) => {
                let manifest: GraphManifest = serde_json::from_slice(&text).map_err(|e| {
                    content(
                        &manifest_path,
                        e.line() as u64,
                        format!("not a manifest of this version: {e}"),
                    )
                })?;
                self.runs = manifest.runs;
                self.fingerprint.difference(&manifest.fingerprint)
            }
        };
        if let Some(difference) = difference {
            return Err(GraphError::Fingerprint { path, difference });
        }
        let mut reader = csv::Reader::from_reader(bytes.as_slice());
        let header = reader.headers().map_err(|e| content(&path, 1, e.to_string()))?.clone();
        let columns = columns();
        let places: Vec<Option<usize>> =
            columns.iter().map(|c| header.iter().position(|name| name == c)).collect();
        for record in reader.records() {
            let record = record.map_err(|e| {
                content(&path, e.position().map_or(0, csv::Position::line), e.to_string())
            })?;
            let line = record.position().map_or(0, csv::Position::line);
            let cells: Vec<String> = places
                .iter()
                .map(|at| at.and_then(|at| record.get(at)).unwrap_or_default().to_owned())
                .collect();
            let key = key(&cells[5..]).ok_or_else(|| {
                content(&path, line, format!("the columns {} say no graph", KEYS.join(", ")))
            })?;
            self.rows.insert(key, cells);
        }
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.folder.join("graph.csv")
    }

    /// Id of the model.
    pub fn model(&self) -> &str {
        &self.fingerprint.model.name
    }

    /// Name of the device that it is stored under.
    pub fn sku(&self) -> &str {
        &self.fingerprint.sku
    }

    fn manifest_path(&self) -> PathBuf {
        self.folder.join("graph.manifest.json")
    }

    /// Whether it has a row of `key`.
    pub fn contains(&self, key: &GraphKey) -> bool {
        self.rows.contains_key(key)
    }

    /// Rows in sorting order: key, median in milliseconds, seconds of compiling.
    pub fn medians(&self) -> impl Iterator<Item = (GraphKey, f64, f64)> {
        self.rows.iter().filter_map(|(key, cells)| {
            Some((*key, cells.get(3)?.parse().ok()?, cells.get(11)?.parse().unwrap_or(0.0)))
        })
    }

    /// Puts a row in place of one with the same key.
    pub fn put(&mut self, key: GraphKey, row: &GraphRow) {
        let cell = |value: Option<f64>| value.map_or(String::new(), |x| x.to_string());
        // Cells without quotes, whatever a tool calls itself.
        let word = |text: &str| text.replace([',', '"', '\n', '\r'], " ");
        let t = &row.times;
        let mut cells =
            vec![cell(t.min), cell(t.max), cell(t.mean), t.median.to_string(), cell(t.std)];
        cells.extend([
            key.tensor_parallel.to_string(),
            key.phase.name().into(),
            key.batch.to_string(),
            key.bucket.to_string(),
            key.layers.to_string(),
            truth(key.head),
            row.compile_s.to_string(),
            word(&row.cache),
            word(&row.timing),
            truth(row.with_collectives),
        ]);
        cells.extend(COUNTERS.iter().map(|name| cell(row.counters.get(*name).copied())));
        self.rows.insert(key, cells);
    }

    /// Writes CSV and manifest with `run` as the last of its runs, in place of one that began at the
    /// same time: called after every graph, so that a kill loses none.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn save(
        &mut self,
        device: &DeviceInfo,
        host_os: &str,
        failed: &[FailedShape],
        run: Run,
    ) -> Result<(), GraphError> {
        self.runs.retain(|old| old.started != run.started || old.command != run.command);
        self.runs.push(run);
        let mut text = line_of(&columns());
        self.rows.values().for_each(|cells| text.push_str(&line_of(cells)));
        let manifest = GraphManifest {
            profile: "graph".into(),
            model: self.fingerprint.model.name.clone(),
            provenance: "measured".into(),
            vidur_version: env!("CARGO_PKG_VERSION").into(),
            device: device.clone(),
            host_os: host_os.to_owned(),
            fingerprint: self.fingerprint.clone(),
            rows: self.rows.len(),
            sha256: sha256_hex(text.as_bytes()),
            failed: failed.to_vec(),
            runs: self.runs.clone(),
        };
        fs::create_dir_all(&self.folder).map_err(WriteError::io("make directory", &self.folder))?;
        let path = self.manifest_path();
        let mut json = serde_json::to_string_pretty(&manifest)
            .map_err(|e| WriteError::io("write", &path)(e.into()))?;
        json.push('\n');
        // The manifest first: a CSV without one is not gone on with.
        write_atomically(&path, json.as_bytes())?;
        write_atomically(&self.path(), text.as_bytes())?;
        Ok(())
    }
}

/// As pandas writes it.
fn truth(flag: bool) -> String {
    if flag { "True" } else { "False" }.into()
}

fn existing(path: &Path) -> Result<Option<Vec<u8>>, WriteError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(WriteError::io("read", path)(e)),
    }
}

/// The key from the cells of [`KEYS`].
fn key(cells: &[String]) -> Option<GraphKey> {
    let [tp, phase, batch, bucket, layers, head, ..] = cells else { return None };
    Some(GraphKey {
        tensor_parallel: tp.parse().ok()?,
        phase: [Phase::Context, Phase::Token].into_iter().find(|p| p.name() == phase)?,
        batch: batch.parse().ok()?,
        bucket: bucket.parse().ok()?,
        layers: layers.parse().ok()?,
        head: match head.as_str() {
            "True" => true,
            "False" => false,
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::model::Dtype;

    fn device(kernel: &str) -> DeviceInfo {
        DeviceInfo {
            backend: "test".into(),
            name: "Test".into(),
            vendor: "vidur".into(),
            cores: 1,
            threads: 1,
            memory_bytes: 1,
            kernels: vec![kernel.into()],
            dtype: Dtype::F32,
        }
    }

    fn open(root: &Path, kernel: &str, anew: bool) -> Result<GraphTable, GraphError> {
        let model = crate::profiling::runner::testing::model();
        GraphTable::open(root, Fingerprint::new("sku", &device(kernel), &model), anew)
    }

    #[test]
    fn rows_come_back_and_other_conditions_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let key = GraphKey {
            tensor_parallel: 1,
            phase: Phase::Token,
            batch: 4,
            bucket: 256,
            layers: 2,
            head: true,
        };
        let row = GraphRow {
            times: Times::of(&[2.0, 1.0, 3.0]).unwrap(),
            compile_s: 1.5,
            cache: "cold".into(),
            timing: "wall, \"clock\"".into(),
            with_collectives: false,
            counters: BTreeMap::from([("hbm_read_bytes".into(), 12.0)]),
        };
        let run = || Run {
            command: "vidur".into(),
            started: "2026-11-22T00:00:00Z".into(),
            finished: "2026-11-22T00:00:01Z".into(),
            rows: 1,
            rounds: 1,
            skipped: 0,
        };
        let mut table = open(root.path(), "k 1", false).unwrap();
        table.put(key, &row);
        table.save(&device("k 1"), "os", &[], run()).unwrap();
        table.save(&device("k 1"), "os", &[], run()).unwrap();
        let again = open(root.path(), "k 1", false).unwrap();
        assert!(again.contains(&key));
        assert_eq!(again.runs.len(), 1);
        assert_eq!(again.medians().collect::<Vec<_>>(), [(key, 2.0, 1.5)]);
        let text = fs::read_to_string(again.path()).unwrap();
        assert!(
            text.contains(",1,token,4,256,2,True,1.5,cold,wall   clock ,False,,,,,12,\n"),
            "{text}"
        );
        let refused = open(root.path(), "k 2", false).unwrap_err().to_string();
        assert!(
            refused.contains("kernels was k 1, is k 2") || refused.contains("kernels"),
            "{refused}"
        );
        assert_eq!(open(root.path(), "k 2", true).unwrap().medians().count(), 0);
    }
}
