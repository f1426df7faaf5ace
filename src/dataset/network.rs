//! Writing network profiles: `network/<network_device>/<collective>.csv` in microsoft/vidur's
//! columns, and the manifest beside each.

use super::manifest::sha256_hex;
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

    /// Bus bandwidth in bytes per second: what each link carries, whatever the number of workers.
    /// Factors: nccl-tests, doc/PERFORMANCE.md.
    pub fn bus_bandwidth(self, workers: u32, bytes: u64, ms: f64) -> f64 {
        let n = f64::from(workers.max(1));
        let factor = match self {
            Collective::AllReduce => 2.0 * (n - 1.0) / n,
            Collective::AllGather | Collective::ReduceScatter | Collective::AllToAll => {
                (n - 1.0) / n
            }
            Collective::SendRecv => 1.0,
        };
        factor * bytes as f64 / (ms / 1e3)
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
    /// A row per rank in files that Vidur wrote, one in ours.
    rows: BTreeMap<NetworkKey, Vec<Vec<String>>>,
}

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
        let path = folder.join(format!("{}.csv", collective.name()));
        let network_device = network_device.to_owned();
        let mut table = NetworkTable { path, collective, network_device, rows: BTreeMap::new() };
        table.read()?;
        Ok(table)
    }

    fn columns(&self) -> Vec<String> {
        let name = self.collective.name();
        let times = super::schema::STATISTICS.iter().map(|s| format!("time_stats.{name}.{s}"));
        times.chain(KEYS.iter().map(|key| (*key).to_owned())).collect()
    }

    fn read(&mut self) -> Result<(), NetworkError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(WriteError::io("read", &self.path)(e).into()),
        };
        let path = self.path.clone();
        let content =
            |line: u64, message: String| WriteError::Content { path: path.clone(), line, message };
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
            self.rows.entry(key).or_default().push(cells);
        }
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has a row of `key`.
    pub fn contains(&self, key: NetworkKey) -> bool {
        self.rows.contains_key(&key)
    }

    /// Puts a row in place of those with the same key. `node` is how many devices a node has.
    pub fn put(&mut self, key: NetworkKey, times: Times, node: u32) {
        let cell = |value: Option<f64>| value.map_or(String::new(), |ms| ms.to_string());
        let cells = vec![
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
        ];
        self.rows.insert(key, vec![cells]);
    }

    /// Medians of the rows with this many workers, by ascending size: `(bytes, ms)`.
    pub fn medians(&self, workers: u32, per_node: u32) -> Vec<(u64, f64)> {
        self.rows
            .iter()
            .filter(|(key, _)| key.workers == workers && key.per_node == per_node)
            .filter_map(|(key, rows)| Some((key.bytes, rows.first()?.get(3)?.parse().ok()?)))
            .collect()
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
mod tests {
    use super::*;
    use crate::dataset::location::ProfileFile;
    use crate::dataset::read::ProfileSet;

    fn run() -> NetworkRun {
        NetworkRun {
            command: "vidur".into(),
            finished: "2026-11-22T00:00:00Z".into(),
            tool: "test".into(),
            rows: 1,
            files: Vec::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn rows_are_read_back_by_the_reader_of_profiles() {
        let root = tempfile::tempdir().unwrap();
        let open = || NetworkTable::open(root.path(), "box_dgx", Collective::AllReduce).unwrap();
        let mut table = open();
        let key = |workers, bytes| NetworkKey { workers, per_node: workers, bytes };
        table.put(key(8, 2048), Times::of(&[0.01, 0.03, 0.02]).unwrap(), 8);
        table.put(key(8, 1024), Times::average(0.005), 8);
        table.finish(run()).unwrap();
        let mut again = open();
        again.put(key(4, 1024), Times::average(0.004), 8);
        again.finish(run()).unwrap();
        assert!(open().contains(key(8, 2048)));
        assert_eq!(open().medians(8, 8), [(1024, 0.005), (2048, 0.02)]);
        let text = fs::read_to_string(again.path()).unwrap();
        assert!(text.starts_with("time_stats.all_reduce.min,"), "{text}");
        assert!(text.contains("\n,,0.005,0.005,,0,8,1024,all_reduce,8,8\n"), "{text}");
        let json = fs::read_to_string(again.path().with_extension("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (manifest["rows"].as_u64(), manifest["runs"].as_array().unwrap().len()),
            (Some(3), 2)
        );
        // What the simulator sees.
        let model = crate::profiling::runner::testing::model();
        let device = crate::spec::catalog::Catalog::open(Some(Path::new("none")))
            .device("h100_sxm")
            .unwrap();
        let request = crate::dataset::read::Request {
            model: &model,
            device: &device,
            network_device: Some("box_dgx"),
            parallel: crate::spec::parallel::Parallelism {
                tensor_parallel: 8,
                pipeline_parallel: 1,
            },
            ops: &[crate::spec::ops::Op::AllReduce],
            missing_values: Default::default(),
            block_size: None,
        };
        let mut set = ProfileSet::default();
        let file = ProfileFile::from_bytes("all_reduce.csv", text);
        request.read_collective(crate::spec::ops::Op::AllReduce, &file, &mut set).unwrap();
        assert_eq!(set.ops[0].points.iter().map(|p| p.ms).collect::<Vec<_>>(), [0.005, 0.02]);
    }

    #[test]
    fn vidurs_own_files_can_be_added_to() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("network/n");
        fs::create_dir_all(&folder).unwrap();
        let line = "0.007,0.038,0.0173,0.007,0.0146";
        let csv = format!(
            ",time_stats.all_reduce.min,time_stats.all_reduce.max,time_stats.all_reduce.mean,time_stats.all_reduce.median,time_stats.all_reduce.std,rank,num_workers,size,collective,devices_per_node,max_devices_per_node\n\
             0,{line},0,2,2048,all_reduce,2,4\n1,{line},1,2,2048,all_reduce,2,4\n"
        );
        fs::write(folder.join("all_reduce.csv"), csv).unwrap();
        let mut table = NetworkTable::open(root.path(), "n", Collective::AllReduce).unwrap();
        table.put(NetworkKey { workers: 4, per_node: 4, bytes: 64 }, Times::average(1.0), 4);
        table.save().unwrap();
        let text = fs::read_to_string(table.path()).unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(text.contains(&format!("{line},1,2,2048,all_reduce,2,4")), "{text}");
        fs::write(table.path(), "mine\n1\n").unwrap();
        let refused = NetworkTable::open(root.path(), "n", Collective::AllReduce).unwrap_err();
        assert!(refused.to_string().contains("unknown column `mine`"), "{refused}");
        assert!(NetworkTable::open(root.path(), "../n", Collective::AllReduce).is_err());
    }

    #[test]
    fn bandwidth_on_the_bus_does_not_depend_on_the_number_of_workers() {
        // nccl-tests, 4 x A100: 33554432 bytes of all_gather in 973.2 us are 25.86 GB/s.
        let bus = Collective::AllGather.bus_bandwidth(4, 33_554_432, 0.9732) / 1e9;
        assert!((bus - 25.86).abs() < 0.01, "{bus}");
    }
}
