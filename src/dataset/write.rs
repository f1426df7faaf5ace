//! Writing profiles: tables in the column order of `schema`, files that appear whole or not at all.

use super::schema::{self, STATISTICS, time_column};
use crate::spec::ops::Op;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

/// Why a profile could not be read back or written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried: `write`, `read`, ...
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file holds something that we did not write.
    #[error("{}, line {line}: {message}; mend or move the file", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: u64,
        /// What is wrong.
        message: String,
    },
}

impl WriteError {
    /// An I/O error with what was tried on which file.
    pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
        let path = path.to_owned();
        move |source| WriteError::Io { what, path, source }
    }
}

/// The two operator profiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// mlp.csv: operators whose time depends on the number of tokens.
    Mlp,
    /// attention.csv: attention and the KV cache.
    Attention,
}

impl TableKind {
    /// File stem and name of the command.
    pub const fn name(self) -> &'static str {
        match self {
            TableKind::Mlp => "mlp",
            TableKind::Attention => "attention",
        }
    }

    /// Operators in column order.
    pub const fn ops(self) -> &'static [Op] {
        match self {
            TableKind::Mlp => &schema::MLP_OPS,
            TableKind::Attention => &schema::ATTENTION_OPS,
        }
    }

    /// Columns that say what was measured.
    pub const fn keys(self) -> &'static [&'static str] {
        match self {
            TableKind::Mlp => &schema::MLP_KEYS,
            TableKind::Attention => &schema::ATTENTION_KEYS,
        }
    }

    /// Key columns that tell the rows of one file apart, in sorting order.
    const fn identity(self) -> &'static [&'static str] {
        match self {
            TableKind::Mlp => &["num_tensor_parallel_workers", "num_tokens"],
            TableKind::Attention => &[
                "num_tensor_parallel_workers",
                "is_prefill",
                "batch_size",
                "prefill_chunk_size",
                "kv_cache_size",
            ],
        }
    }

    /// All columns, in order: five times per operator, then the keys.
    pub fn columns(self) -> Vec<String> {
        let times = self
            .ops()
            .iter()
            .flat_map(|&op| STATISTICS.iter().map(move |statistic| time_column(op, statistic)));
        times.chain(self.keys().iter().map(|&key| key.to_owned())).collect()
    }

    /// Identity of a row from its key cells, in the order of [`TableKind::keys`].
    ///
    /// # Errors
    /// A message that names the cell that is no number.
    pub fn row_key(self, key_cells: &[impl AsRef<str>]) -> Result<RowKey, String> {
        let number = |name: &&str| {
            let at = self.keys().iter().position(|key| key == name);
            let cell = at.and_then(|at| key_cells.get(at)).map_or("", |cell| cell.as_ref());
            match cell {
                "True" => Ok(1),
                "False" => Ok(0),
                _ => cell.parse().map_err(|_| format!("{name} is `{cell}`, expected a number")),
            }
        };
        self.identity().iter().map(number).collect::<Result<_, _>>().map(RowKey)
    }
}

/// What tells the rows of one file apart; sorts as the file is sorted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowKey(Vec<u64>);

/// Rows of one profile by identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    kind: TableKind,
    rows: BTreeMap<RowKey, Vec<String>>,
}

impl Table {
    /// No rows.
    pub fn new(kind: TableKind) -> Table {
        Table { kind, rows: BTreeMap::new() }
    }

    /// Which profile this is.
    pub fn kind(&self) -> TableKind {
        self.kind
    }

    /// Rows in sorting order; cells in the order of [`TableKind::columns`].
    pub fn rows(&self) -> impl Iterator<Item = &[String]> {
        self.rows.values().map(Vec::as_slice)
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether the row of `key` is here.
    pub fn contains(&self, key: &RowKey) -> bool {
        self.rows.contains_key(key)
    }

    /// Adds a row, in place of one with the same identity.
    ///
    /// # Errors
    /// A message when the row has too few or too many cells, or no identity.
    pub fn insert(&mut self, cells: Vec<String>) -> Result<(), String> {
        let (times, keys) = (STATISTICS.len() * self.kind.ops().len(), self.kind.keys().len());
        if cells.len() != times + keys {
            return Err(format!("{} cells, expected {}", cells.len(), times + keys));
        }
        let key = self.kind.row_key(&cells[times..])?;
        self.rows.insert(key, cells);
        Ok(())
    }

    /// Adds every row of `other`, in place of those with the same identity.
    pub fn extend(&mut self, other: Table) {
        self.rows.extend(other.rows);
    }

    /// Reads the profile at `path`; `None` if there is no such file. Columns are looked up by name,
    /// those that are missing are left empty.
    ///
    /// # Errors
    /// When the file cannot be read, or has columns that writing it again would lose.
    pub fn read(kind: TableKind, path: &Path) -> Result<Option<Table>, WriteError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(WriteError::io("read", path)(e)),
        };
        let content = |line: u64, message: String| WriteError::Content {
            path: path.to_owned(),
            line,
            message,
        };
        let mut reader = csv::Reader::from_reader(bytes.as_slice());
        let columns = kind.columns();
        let header = reader.headers().map_err(|e| content(1, e.to_string()))?.clone();
        if let Some(unknown) = header.iter().find(|name| !columns.iter().any(|c| c == name)) {
            return Err(content(1, format!("unknown column `{unknown}`")));
        }
        let places: Vec<Option<usize>> =
            columns.iter().map(|c| header.iter().position(|name| name == c)).collect();
        let mut table = Table::new(kind);
        for record in reader.records() {
            let record = record.map_err(|e| {
                let line = e.position().map_or(0, csv::Position::line);
                content(line, e.to_string())
            })?;
            let cell = |at: &Option<usize>| at.and_then(|at| record.get(at)).unwrap_or_default();
            let cells = places.iter().map(|at| cell(at).to_owned()).collect();
            let line = record.position().map_or(0, csv::Position::line);
            table.insert(cells).map_err(|message| content(line, message))?;
        }
        Ok(Some(table))
    }

    /// The file: a header line and the rows in sorting order. Operators that no row has, such as
    /// `attn_qk_norm` of a model without such norms, have no columns.
    pub fn to_csv(&self) -> Vec<u8> {
        let times = STATISTICS.len() * self.kind.ops().len();
        let kept = |at: &usize| *at >= times || self.rows.values().any(|row| !row[*at].is_empty());
        let columns = self.kind.columns();
        let kept: Vec<usize> = (0..columns.len()).filter(kept).collect();
        let pick = |cells: &[String]| -> Vec<String> {
            kept.iter().map(|&at| cells[at].clone()).collect()
        };
        let mut text = line_of(&pick(&columns));
        for row in self.rows.values() {
            text.push_str(&line_of(&pick(row)));
        }
        text.into_bytes()
    }
}

/// One line of CSV with its newline. Precondition: cells need no quotes, as numbers, column names
/// and True or False do not.
pub(super) fn line_of(cells: &[String]) -> String {
    let mut line = cells.join(",");
    line.push('\n');
    line
}

/// Where the files of one profile lie: `<root>/compute/<sku>/<org>/<model>/<kind>.csv` and those
/// beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileFiles {
    sku_directory: PathBuf,
    directory: PathBuf,
    kind: TableKind,
}

impl ProfileFiles {
    /// Under `root`, usually data/profiling.
    ///
    /// # Errors
    /// A message when `sku` or `model` is no plain relative path.
    pub fn new(
        root: &Path,
        sku: &str,
        model: &str,
        kind: TableKind,
    ) -> Result<ProfileFiles, String> {
        for (what, name) in [("SKU", sku), ("model", model)] {
            let parts: Vec<_> = Path::new(name).components().collect();
            if parts.is_empty() || parts.iter().any(|p| !matches!(p, Component::Normal(_))) {
                return Err(format!("{what} name `{name}` cannot name a folder"));
            }
        }
        let sku_directory = root.join("compute").join(sku);
        Ok(ProfileFiles { directory: sku_directory.join(model), sku_directory, kind })
    }

    /// The folder of the model.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The finished profile.
    pub fn csv(&self) -> PathBuf {
        self.directory.join(format!("{}.csv", self.kind.name()))
    }

    /// The manifest beside it.
    pub fn manifest(&self) -> PathBuf {
        self.directory.join(format!("{}.manifest.json", self.kind.name()))
    }

    /// The journal of a run that has not finished.
    pub fn partial(&self) -> PathBuf {
        self.directory.join(format!("{}.partial.csv", self.kind.name()))
    }

    /// The device itself, one for all models.
    pub fn device(&self) -> PathBuf {
        self.sku_directory.join("device.yml")
    }
}

/// Replaces `path` by a file of `bytes`. Whoever looks sees the old file or the new one, whole,
/// even after a power failure.
///
/// # Errors
/// When any step fails; `path` is then as it was.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let renamed = written.and_then(|()| fs::rename(&temporary, path));
    if let Err(e) = renamed {
        // Best effort: the error that matters is the first one.
        let _ = fs::remove_file(&temporary);
        return Err(WriteError::io("write", path)(e));
    }
    // The new name is on disk once its folder is; not every file system lets folders be synced.
    if let Some(Ok(directory)) = path.parent().map(File::open) {
        let _ = directory.sync_all();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tokens: u64) -> Vec<String> {
        let mut cells = vec![String::from("0.5"); 5 * schema::MLP_OPS.len()];
        let keys = ["14", "2", "896", "4864", "151936", "True"];
        cells.extend(keys.map(String::from));
        cells.extend([tokens.to_string(), "1".into()]);
        cells
    }

    #[test]
    fn tables_are_sorted_by_number_and_read_back_as_written() {
        let mut table = Table::new(TableKind::Mlp);
        for tokens in [128, 2, 16] {
            table.insert(row(tokens)).unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mlp.csv");
        write_atomically(&path, &table.to_csv()).unwrap();
        assert_eq!(Table::read(TableKind::Mlp, &path).unwrap(), Some(table.clone()));
        let order: Vec<&str> = table.rows().map(|r| r[r.len() - 2].as_str()).collect();
        assert_eq!(order, ["2", "16", "128"]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn columns_that_would_be_lost_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mlp.csv");
        fs::write(&path, "num_tokens,num_tensor_parallel_workers,mine\n1,1,2\n").unwrap();
        let message = Table::read(TableKind::Mlp, &path).unwrap_err().to_string();
        assert!(message.contains("line 1: unknown column `mine`"), "{message}");
        fs::write(&path, "num_tokens,num_tensor_parallel_workers\n1,1\nx,1\n").unwrap();
        let message = Table::read(TableKind::Mlp, &path).unwrap_err().to_string();
        assert!(message.contains("line 3: num_tokens is `x`"), "{message}");
    }

    #[test]
    fn names_stay_inside_the_root() {
        let files = |sku, model| ProfileFiles::new(Path::new("d"), sku, model, TableKind::Mlp);
        assert_eq!(files("s", "o/m").unwrap().csv(), Path::new("d/compute/s/o/m/mlp.csv"));
        assert!(files("..", "o/m").is_err());
        assert!(files("s", "/o/m").is_err());
        assert!(files("", "o/m").is_err());
    }
}
