//! Writing cpu_overheads.csv: rows by tensor-parallel degree and batch size, the manifest beside
//! them, and what an unfinished run has measured.

use super::manifest::sha256_hex;
use super::schema::STATISTICS;
use super::write::{WriteError, line_of, write_atomically};
use crate::stats;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// What has five figures each: microsoft/vidur's columns, then three of ours.
const TIMED: [&str; 7] = [
    "schedule",
    "sampler_e2e",
    "prepare_inputs_e2e",
    "process_model_outputs",
    "model_execution_e2e",
    "host_gap",
    "transport",
];

/// Columns after those.
const KEYS: [&str; 4] =
    ["ray_comm_time_mean", "model_name", "batch_size", "tensor_parallel_degree"];

/// What was measured at one batch size, in milliseconds: one value per step, none where a part is
/// not known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OverheadRow {
    /// Requests that decoded together.
    pub batch_size: u32,
    /// Choosing the batch.
    pub schedule_ms: Vec<f64>,
    /// Sampling, launch to result.
    pub sampler_ms: Vec<f64>,
    /// Building the input tensors.
    pub prepare_inputs_ms: Vec<f64>,
    /// Handing results back to requests.
    pub process_outputs_ms: Vec<f64>,
    /// The device's part; not added to a step's time on the host.
    pub device_ms: Vec<f64>,
    /// Host time of the step that is in none of the parts.
    pub gap_ms: Vec<f64>,
    /// A question that costs the engine nothing, there and back; not added either.
    pub transport_ms: Vec<f64>,
}

impl OverheadRow {
    /// In the order of the columns.
    fn timed(&self) -> [&[f64]; 7] {
        [
            &self.schedule_ms,
            &self.sampler_ms,
            &self.prepare_inputs_ms,
            &self.process_outputs_ms,
            &self.device_ms,
            &self.gap_ms,
            &self.transport_ms,
        ]
    }

    /// Median host time of a step: parts and gap.
    pub fn host_ms(&self) -> f64 {
        let of = |ms: &Vec<f64>| stats::median(ms).unwrap_or(0.0);
        of(&self.schedule_ms)
            + of(&self.sampler_ms)
            + of(&self.prepare_inputs_ms)
            + of(&self.process_outputs_ms)
            + of(&self.gap_ms)
    }
}

/// A batch size that could not be measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedBatch {
    /// Requests that should have decoded together.
    pub batch_size: u32,
    /// In one line.
    pub reason: String,
}

/// One command that added rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverheadRun {
    /// The command line.
    pub command: String,
    /// When it ended, RFC 3339, UTC.
    pub finished: String,
    /// Engine and settings: rows of one degree share it.
    pub source: String,
    /// How host and device were told apart.
    pub method: String,
    /// Degree that the engine ran with.
    pub tensor_parallel: u32,
    /// Batch sizes that it added.
    pub batch_sizes: Vec<u32>,
    /// Those that it could not measure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<FailedBatch>,
    /// Files that were read instead of measuring, with their SHA-256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// What is worth knowing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct OverheadManifest {
    profile: String,
    model: String,
    network_device: String,
    /// `measured`, by us or by the tool that wrote the file.
    provenance: String,
    vidur_version: String,
    rows: usize,
    sha256: String,
    runs: Vec<OverheadRun>,
}

/// What an unfinished run has measured.
#[derive(Debug, Serialize, Deserialize)]
struct Partial {
    source: String,
    tensor_parallel: u32,
    rows: Vec<Vec<String>>,
}

/// Degree and batch size.
type Key = (u32, u32);

/// The rows of one model on one kind of node.
#[derive(Debug)]
pub struct OverheadFile {
    folder: PathBuf,
    network_device: String,
    model: String,
    tensor_parallel: u32,
    source: String,
    rows: BTreeMap<Key, Vec<String>>,
    added: Vec<u32>,
    runs: Vec<OverheadRun>,
}

impl OverheadFile {
    /// The file under `root`, for rows of `tensor_parallel` that come from `source`; with what an
    /// unfinished run of the same source left. `force` drops the degree's rows.
    ///
    /// # Errors
    /// When the names cannot be folders, a file is not what we write, or the degree's rows come from
    /// another source.
    pub fn open(
        root: &Path,
        network_device: &str,
        model: &str,
        tensor_parallel: u32,
        source: &str,
        force: bool,
    ) -> Result<Self, OverheadError> {
        super::location::folder_name(network_device).map_err(OverheadError::Name)?;
        let folder = root.join("cpu_overhead").join(network_device).join(model);
        let mut file = OverheadFile {
            folder,
            network_device: network_device.to_owned(),
            model: model.to_owned(),
            tensor_parallel,
            source: source.to_owned(),
            rows: BTreeMap::new(),
            added: Vec::new(),
            runs: Vec::new(),
        };
        file.read()?;
        if force {
            file.rows.retain(|(degree, _), _| *degree != tensor_parallel);
            return Ok(file);
        }
        let theirs = file.runs.iter().rev().find(|run| run.tensor_parallel == tensor_parallel);
        if let Some(run) = theirs.filter(|run| run.source != source)
            && file.rows.keys().any(|(degree, _)| *degree == tensor_parallel)
        {
            return Err(OverheadError::Source {
                path: file.path(),
                tensor_parallel,
                theirs: run.source.clone(),
                ours: source.to_owned(),
            });
        }
        file.resume()?;
        Ok(file)
    }

    /// The CSV.
    pub fn path(&self) -> PathBuf {
        self.folder.join("cpu_overheads.csv")
    }

    fn partial(&self) -> PathBuf {
        self.folder.join("cpu_overheads.partial.json")
    }

    fn manifest(&self) -> PathBuf {
        self.folder.join("cpu_overheads.manifest.json")
    }

    fn read(&mut self) -> Result<(), WriteError> {
        if let Some(text) = read_text(&self.manifest())? {
            let old: OverheadManifest =
                serde_json::from_str(&text).map_err(|e| WriteError::Content {
                    path: self.manifest(),
                    line: e.line() as u64,
                    message: format!("not a manifest of this version: {e}"),
                })?;
            self.runs = old.runs;
        }
        let Some(text) = read_text(&self.path())? else { return Ok(()) };
        let path = self.path();
        let content =
            |line: u64, message: String| WriteError::Content { path: path.clone(), line, message };
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let header = reader.headers().map_err(|e| content(1, e.to_string()))?.clone();
        let columns = columns();
        // The first column of Vidur's own files is the nameless index of a pandas frame.
        let unknown =
            header.iter().find(|name| !name.is_empty() && !columns.iter().any(|c| c == name));
        if let Some(unknown) = unknown {
            return Err(content(1, format!("unknown column `{unknown}`")));
        }
        let places: Vec<Option<usize>> =
            columns.iter().map(|c| header.iter().position(|name| name == c)).collect();
        for record in reader.records() {
            let record = record
                .map_err(|e| content(e.position().map_or(0, csv::Position::line), e.to_string()))?;
            let line = record.position().map_or(0, csv::Position::line);
            let cell = |at: &Option<usize>| at.and_then(|at| record.get(at)).unwrap_or_default();
            let cells: Vec<String> = places.iter().map(|at| cell(at).to_owned()).collect();
            let key = key_of(&cells).ok_or_else(|| {
                content(line, "batch_size and tensor_parallel_degree must be numbers".into())
            })?;
            self.rows.insert(key, cells);
        }
        Ok(())
    }

    /// Takes over what an unfinished run of the same source measured.
    fn resume(&mut self) -> Result<(), WriteError> {
        let Some(text) = read_text(&self.partial())? else { return Ok(()) };
        // Whatever else lies there is replaced.
        let Ok(partial) = serde_json::from_str::<Partial>(&text) else { return Ok(()) };
        if partial.source != self.source || partial.tensor_parallel != self.tensor_parallel {
            return Ok(());
        }
        for cells in partial.rows.into_iter().filter(|cells| cells.len() == columns().len()) {
            if let Some(key) = key_of(&cells).filter(|key| key.0 == self.tensor_parallel) {
                self.rows.insert(key, cells);
                self.added.push(key.1);
            }
        }
        Ok(())
    }

    /// Whether this batch size is measured.
    pub fn contains(&self, batch_size: u32) -> bool {
        self.rows.contains_key(&(self.tensor_parallel, batch_size))
    }

    /// Whether every row stands in cpu_overheads.csv, and none only in what a killed run left.
    pub fn is_finished(&self) -> bool {
        self.added.is_empty() && self.path().is_file()
    }

    /// Rows of this degree.
    pub fn len(&self) -> usize {
        self.rows.keys().filter(|(degree, _)| *degree == self.tensor_parallel).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds or replaces a row, and keeps it should this run be killed.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn put(&mut self, row: &OverheadRow) -> Result<(), WriteError> {
        let mut cells: Vec<String> = row.timed().into_iter().flat_map(statistics).collect();
        cells.extend([
            String::new(),
            self.model.clone(),
            row.batch_size.to_string(),
            self.tensor_parallel.to_string(),
        ]);
        self.rows.insert((self.tensor_parallel, row.batch_size), cells);
        self.added.retain(|&n| n != row.batch_size);
        self.added.push(row.batch_size);
        let rows = self.added.iter().filter_map(|&n| self.rows.get(&(self.tensor_parallel, n)));
        let partial = Partial {
            source: self.source.clone(),
            tensor_parallel: self.tensor_parallel,
            rows: rows.cloned().collect(),
        };
        fs::create_dir_all(&self.folder).map_err(WriteError::io("make directory", &self.folder))?;
        write_json(&self.partial(), &partial)
    }

    /// The whole file.
    fn to_csv(&self) -> Vec<u8> {
        let mut text = line_of(&columns());
        self.rows.values().for_each(|cells| text.push_str(&line_of(cells)));
        text.into_bytes()
    }

    /// Writes CSV and manifest; source, degree and batch sizes of `run` are filled in.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn finish(mut self, run: OverheadRun) -> Result<(), WriteError> {
        self.added.sort_unstable();
        self.runs.push(OverheadRun {
            source: self.source.clone(),
            tensor_parallel: self.tensor_parallel,
            batch_sizes: std::mem::take(&mut self.added),
            ..run
        });
        let csv = self.to_csv();
        let manifest = OverheadManifest {
            profile: "cpu_overheads".into(),
            model: self.model.clone(),
            network_device: self.network_device.clone(),
            provenance: "measured".into(),
            vidur_version: env!("CARGO_PKG_VERSION").into(),
            rows: self.rows.len(),
            sha256: sha256_hex(&csv),
            runs: std::mem::take(&mut self.runs),
        };
        fs::create_dir_all(&self.folder).map_err(WriteError::io("make directory", &self.folder))?;
        write_atomically(&self.path(), &csv)?;
        write_json(&self.manifest(), &manifest)?;
        match fs::remove_file(self.partial()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(WriteError::io("remove", &self.partial())(e))
            }
            _ => Ok(()),
        }
    }
}

fn columns() -> Vec<String> {
    let timed = TIMED.iter().flat_map(|part| STATISTICS.map(|s| format!("{part}_{s}")));
    timed.chain(KEYS.map(str::to_owned)).collect()
}

fn key_of(cells: &[String]) -> Option<Key> {
    let [.., batch, degree] = cells else { return None };
    Some((degree.trim().parse().ok()?, batch.trim().parse().ok()?))
}

fn read_text(path: &Path) -> Result<Option<String>, WriteError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(WriteError::io("read", path)(e)),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), WriteError> {
    let mut json =
        serde_json::to_string_pretty(value).map_err(|e| WriteError::io("write", path)(e.into()))?;
    json.push('\n');
    write_atomically(path, json.as_bytes())
}

fn statistics(ms: &[f64]) -> [String; 5] {
    let figures = [
        ms.iter().copied().reduce(f64::min),
        ms.iter().copied().reduce(f64::max),
        stats::mean(ms),
        stats::median(ms),
        stats::std_dev(ms),
    ];
    figures.map(|f| f.map_or(String::new(), |ms| ms.to_string()))
}

/// Why cpu_overheads.csv cannot be added to.
#[derive(Debug, thiserror::Error)]
pub enum OverheadError {
    /// The name of the wiring is no folder name.
    #[error("--network-device: {0}")]
    Name(String),
    /// Rows that should not be mixed.
    #[error(
        "{}: its rows at tensor parallel {tensor_parallel} come from another source ({theirs}; this run: {ours}); \
         --force replaces them, another --output-dir keeps both", path.display()
    )]
    Source {
        /// The file.
        path: PathBuf,
        /// Degree of the rows.
        tensor_parallel: u32,
        /// Of the rows.
        theirs: String,
        /// Of this run.
        ours: String,
    },
    /// A file.
    #[error(transparent)]
    Write(#[from] WriteError),
}

#[cfg(test)]
#[path = "cpu_file_tests.rs"]
mod tests;
