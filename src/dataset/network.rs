//! Writing network profiles: `network/<network_device>/<collective>.csv` in microsoft/vidur's
//! columns, and the manifest beside each.

use super::manifest::sha256_hex;
use super::schema::STATISTICS;
use super::write::{WriteError, line_of, write_atomically};
use crate::stats;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

/// Columns after the five times.
const KEYS: [&str; 6] =
    ["rank", "num_workers", "size", "collective", "devices_per_node", "max_devices_per_node"];

/// What devices do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Collective {
    /// Every worker ends with the sum.
    AllReduce,
    /// Every worker ends with the pieces of all.
    AllGather,
    /// Every worker ends with its piece of the sum.
    ReduceScatter,
    /// Every worker has a piece for every other.
    AllToAll,
    /// One worker hands its message to another.
    SendRecv,
}

impl Collective {
    /// All of them.
    pub const ALL: [Collective; 5] = [
        Collective::AllReduce,
        Collective::AllGather,
        Collective::ReduceScatter,
        Collective::AllToAll,
        Collective::SendRecv,
    ];

    /// Name in columns and file names.
    pub const fn name(self) -> &'static str {
        match self {
            Collective::AllReduce => "all_reduce",
            Collective::AllGather => "all_gather",
            Collective::ReduceScatter => "reduce_scatter",
            Collective::AllToAll => "all_to_all",
            Collective::SendRecv => "send_recv",
        }
    }

    /// Names of its file: ours, then what others call it.
    pub const fn file_names(self) -> &'static [&'static str] {
        match self {
            Collective::AllReduce => &["all_reduce.csv", "allreduce.csv"],
            Collective::AllGather => &["all_gather.csv"],
            Collective::ReduceScatter => &["reduce_scatter.csv"],
            Collective::AllToAll => &["all_to_all.csv"],
            Collective::SendRecv => &["send_recv.csv"],
        }
    }

    /// Bus bandwidth over bytes per second. Source: nccl-tests, doc/PERFORMANCE.md.
    pub fn bus_factor(self, workers: u32) -> f64 {
        let n = f64::from(workers.max(1));
        match self {
            Collective::AllReduce => 2.0 * (n - 1.0) / n,
            Collective::AllGather | Collective::ReduceScatter | Collective::AllToAll => {
                (n - 1.0) / n
            }
            Collective::SendRecv => 1.0,
        }
    }

    /// Bus bandwidth in bytes per second: what each link carries, whatever the number of workers.
    pub fn bus_bandwidth(self, workers: u32, bytes: u64, ms: f64) -> f64 {
        self.bus_factor(workers) * bytes as f64 / (ms / 1e3)
    }
}

/// Times of one message size in milliseconds; a tool that reports only an average leaves the rest
/// empty.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// Shortest.
    pub min: Option<f64>,
    /// Longest.
    pub max: Option<f64>,
    /// Mean.
    pub mean: Option<f64>,
    /// Median; where a tool does not tell, its mean stands here.
    pub median: f64,
    /// Standard deviation of the population.
    pub std: Option<f64>,
}

impl Times {
    /// Of samples; `None` of nothing.
    pub fn of(ms: &[f64]) -> Option<Times> {
        Some(Times {
            min: ms.iter().copied().reduce(f64::min),
            max: ms.iter().copied().reduce(f64::max),
            mean: stats::mean(ms),
            median: stats::median(ms)?,
            std: stats::std_dev(ms),
        })
    }

    /// Of a tool that tells its average only.
    pub fn average(ms: f64) -> Times {
        Times { mean: Some(ms), median: ms, ..Times::default() }
    }

    /// Of several runs of one size: the median of their medians, and of the rest what all of them
    /// tell; `None` of nothing.
    pub fn pool(runs: &[Times]) -> Option<Times> {
        if let [only] = runs {
            return Some(*only);
        }
        let all = |figure: fn(&Times) -> Option<f64>| runs.iter().map(figure).collect();
        let (mins, maxs): (Option<Vec<f64>>, Option<Vec<f64>>) = (all(|t| t.min), all(|t| t.max));
        let (means, stds): (Option<Vec<f64>>, Option<Vec<f64>>) = (all(|t| t.mean), all(|t| t.std));
        let mean = means.as_deref().and_then(stats::mean);
        // Within the runs, and between them.
        let variance = |stds: &[f64]| {
            let between = stats::std_dev(means.as_deref()?)?;
            let squares: Vec<f64> = stds.iter().map(|std| std * std).collect();
            Some(stats::mean(&squares)? + between * between)
        };
        Some(Times {
            min: mins.and_then(|all| all.into_iter().reduce(f64::min)),
            max: maxs.and_then(|all| all.into_iter().reduce(f64::max)),
            mean,
            median: stats::median(&runs.iter().map(|times| times.median).collect::<Vec<_>>())?,
            std: stds.as_deref().and_then(variance).map(f64::sqrt),
        })
    }
}

/// What tells the rows of one file apart; the file is sorted by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkKey {
    /// Workers in all.
    pub workers: u32,
    /// Workers on each node.
    pub per_node: u32,
    /// Message in bytes, as nccl-tests counts it: the larger of a worker's two buffers.
    pub bytes: u64,
}

/// The rows of one file.
#[derive(Debug)]
pub struct NetworkTable {
    path: PathBuf,
    collective: Collective,
    network_device: String,
    rows: Rows,
}

/// A row per rank in files that Vidur wrote, one in ours.
type Rows = BTreeMap<NetworkKey, Vec<Vec<String>>>;

/// One command that added rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkRun {
    /// The command line.
    pub command: String,
    /// When it ended, RFC 3339, UTC.
    pub finished: String,
    /// What measured: a tool, or a kernel of ours.
    pub tool: String,
    /// Rows that it added.
    pub rows: usize,
    /// Files that were read instead of measuring, with their SHA-256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// What is worth knowing about the rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct NetworkManifest {
    profile: String,
    network_device: String,
    /// `measured`, by us or by the tool that wrote the file.
    provenance: String,
    vidur_version: String,
    rows: usize,
    sha256: String,
    runs: Vec<NetworkRun>,
}

impl NetworkTable {
    /// The file of `collective` on `network_device` under `root`; empty where there is none.
    ///
    /// # Errors
    /// When the name cannot be a folder, or the file is not what we write.
    pub fn open(
        root: &Path,
        network_device: &str,
        collective: Collective,
    ) -> Result<Self, NetworkError> {
        let parts: Vec<_> = Path::new(network_device).components().collect();
        if !matches!(parts.as_slice(), [Component::Normal(_)]) {
            return Err(NetworkError::Name(network_device.to_owned()));
        }
        let folder = root.join("network").join(network_device);
        let names = collective.file_names();
        let path = folder.join(names[0]);
        let network_device = network_device.to_owned();
        let mut table = NetworkTable { path, collective, network_device, rows: BTreeMap::new() };
        // Simulations read the first of these names only: rows of the others are taken along, behind
        // those of the first.
        for name in names.iter().rev() {
            let rows = table.read(&folder.join(name))?;
            table.rows.extend(rows);
        }
        Ok(table)
    }

    fn columns(&self) -> Vec<String> {
        let name = self.collective.name();
        let times = STATISTICS.iter().map(|s| format!("time_stats.{name}.{s}"));
        times.chain(KEYS.iter().map(|key| (*key).to_owned())).collect()
    }

    fn read(&self, path: &Path) -> Result<Rows, NetworkError> {
        let mut rows = Rows::new();
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(rows),
            Err(e) => return Err(WriteError::io("read", path)(e).into()),
        };
        let content = |line: u64, message: String| WriteError::Content {
            path: path.to_owned(),
            line,
            message,
        };
        let mut reader = csv::Reader::from_reader(bytes.as_slice());
        let header = reader.headers().map_err(|e| content(1, e.to_string()))?.clone();
        let columns = self.columns();
        // Vidur's first column is the nameless index of a pandas frame.
        let unknown =
            header.iter().find(|name| !name.is_empty() && !columns.iter().any(|c| c == name));
        if let Some(unknown) = unknown {
            return Err(content(1, format!("unknown column `{unknown}`")).into());
        }
        let places: Vec<Option<usize>> =
            columns.iter().map(|c| header.iter().position(|name| name == c)).collect();
        for record in reader.records() {
            let record = record
                .map_err(|e| content(e.position().map_or(0, csv::Position::line), e.to_string()))?;
            let line = record.position().map_or(0, csv::Position::line);
            let cells: Vec<String> = places
                .iter()
                .map(|at| at.and_then(|at| record.get(at)).unwrap_or_default().to_owned())
                .collect();
            let count = |name: &str| -> Result<u64, WriteError> {
                let cell = columns.iter().position(|c| c == name).map_or("", |at| &cells[at]);
                cell.parse()
                    .map_err(|_| content(line, format!("{name} is `{cell}`, expected a number")))
            };
            let key = NetworkKey {
                workers: count("num_workers")? as u32,
                per_node: count("devices_per_node")? as u32,
                bytes: count("size")?,
            };
            rows.entry(key).or_default().push(cells);
        }
        Ok(rows)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has a row of `key`.
    pub fn contains(&self, key: NetworkKey) -> bool {
        self.rows.contains_key(&key)
    }

    /// Whether the times of `key` that are there are others than these.
    pub fn differs(&self, key: NetworkKey, times: Times) -> bool {
        let cells = self.cells(key, times, 0);
        let (times, others) = (&cells[..STATISTICS.len()], self.rows.get(&key));
        others.is_some_and(|rows| rows.iter().any(|row| row[..STATISTICS.len()] != *times))
    }

    /// Puts a row in place of those with the same key. `node` is how many devices a node has.
    pub fn put(&mut self, key: NetworkKey, times: Times, node: u32) {
        let cells = self.cells(key, times, node);
        self.rows.insert(key, vec![cells]);
    }

    fn cells(&self, key: NetworkKey, times: Times, node: u32) -> Vec<String> {
        let cell = |value: Option<f64>| value.map_or(String::new(), |ms| ms.to_string());
        vec![
            cell(times.min),
            cell(times.max),
            cell(times.mean),
            times.median.to_string(),
            cell(times.std),
            "0".into(),
            key.workers.to_string(),
            key.bytes.to_string(),
            self.collective.name().into(),
            key.per_node.to_string(),
            node.max(key.per_node).to_string(),
        ]
    }

    /// The first rows with this many workers, by ascending size.
    fn of(&self, workers: u32, per_node: u32) -> impl Iterator<Item = (u64, &Vec<String>)> {
        let of = move |key: &NetworkKey| key.workers == workers && key.per_node == per_node;
        let rows = self.rows.iter().filter(move |(key, _)| of(key));
        rows.filter_map(|(key, rows)| Some((key.bytes, rows.first()?)))
    }

    /// Medians of the rows with this many workers, by ascending size: `(bytes, ms)`.
    pub fn medians(&self, workers: u32, per_node: u32) -> Vec<(u64, f64)> {
        let median = |(bytes, row): (u64, &Vec<String>)| Some((bytes, row.get(3)?.parse().ok()?));
        self.of(workers, per_node).filter_map(median).collect()
    }

    /// Relative spread of the rows with this many workers: the median of standard deviation over mean;
    /// `None` where the tool told averages only.
    pub fn noise(&self, workers: u32, per_node: u32) -> Option<f64> {
        let ratio = |(_, row): (u64, &Vec<String>)| {
            let figure = |at: usize| row.get(at)?.parse::<f64>().ok();
            let mean = figure(2).filter(|&mean| mean > 0.0)?;
            Some(figure(4)? / mean)
        };
        stats::median(&self.of(workers, per_node).filter_map(ratio).collect::<Vec<_>>())
    }

    /// Writes the CSV alone, so that nothing measured is lost.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn save(&self) -> Result<(), NetworkError> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(WriteError::io("make directory", folder))?;
        }
        write_atomically(&self.path, &self.to_csv())?;
        Ok(())
    }

    fn to_csv(&self) -> Vec<u8> {
        let mut text = line_of(&self.columns());
        self.rows.values().flatten().for_each(|cells| text.push_str(&line_of(cells)));
        text.into_bytes()
    }

    /// Writes CSV and manifest; `run` is added to those before it.
    ///
    /// # Errors
    /// When the system refuses, or the manifest there is not one of ours.
    pub fn finish(&self, run: NetworkRun) -> Result<(), NetworkError> {
        self.save()?;
        let path = self.path.with_extension("manifest.json");
        let mut runs = match fs::read_to_string(&path) {
            Ok(text) => {
                let old: NetworkManifest =
                    serde_json::from_str(&text).map_err(|e| WriteError::Content {
                        path: path.clone(),
                        line: e.line() as u64,
                        message: format!("not a manifest of this version: {e}"),
                    })?;
                old.runs
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(WriteError::io("read", &path)(e).into()),
        };
        runs.push(run);
        let manifest = NetworkManifest {
            profile: self.collective.name().into(),
            network_device: self.network_device.clone(),
            provenance: "measured".into(),
            vidur_version: env!("CARGO_PKG_VERSION").into(),
            rows: self.rows.values().map(Vec::len).sum(),
            sha256: sha256_hex(&self.to_csv()),
            runs,
        };
        let mut json = serde_json::to_string_pretty(&manifest)
            .map_err(|e| WriteError::io("write", &path)(e.into()))?;
        json.push('\n');
        write_atomically(&path, json.as_bytes())?;
        Ok(())
    }
}

/// Why a network profile cannot be read back or written.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The name of the wiring is no folder name.
    #[error(
        "network device `{0}` cannot name a folder; give --network-device a plain name such as h100_dgx"
    )]
    Name(String),
    /// A file.
    #[error(transparent)]
    Write(#[from] WriteError),
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
