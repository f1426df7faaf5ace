//! Fitted tables kept between runs.
//!
//! A file is named by the SHA-256 of everything that its contents depend on: the measurements
//! themselves, the files that they come from, settings, model, device, parallelism, limits, and the code
//! that fits. What changes gets another name, so that nothing stale is ever read. Files appear
//! whole (written under another name, then renamed) and end with a digest: two processes may write
//! one at a time, and what is cut short or damaged is ignored and written anew. A folder that
//! cannot be used means that tables are fitted again, never an error; [`TableCache::trouble`] says so.

use super::{Limits, PredictorConfig, System};
use crate::dataset::read::ProfileSet;
use crate::spec::ops::OpInput;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The sources that decide what a table holds beside its inputs, and the versions of the libraries
/// that fit it.
const CODE: [&[u8]; 5] = [
    include_bytes!("cache.rs"),
    include_bytes!("forest.rs"),
    include_bytes!("forest_tables.rs"),
    include_bytes!("features.rs"),
    include_bytes!("../../Cargo.lock"),
];

/// First bytes of every file.
const MAGIC: &[u8] = b"vidur tables\n";
/// Bytes of the digest at the end of every file.
const DIGEST: usize = 32;

/// Where fitted tables are kept.
#[derive(Clone, Debug, Default)]
pub struct TableCache {
    /// `None` keeps nothing.
    dir: Option<PathBuf>,
    /// Why the first table that could not be kept was not.
    trouble: OnceLock<String>,
}

/// The folder `name` of the user's cache: below `$VIDUR_CACHE_DIR`, else `$XDG_CACHE_HOME/vidur`, else
/// `~/.cache/vidur`; `None` where there is no such place.
pub fn user_cache(name: &str) -> Option<PathBuf> {
    // The XDG specification says to ignore paths that are not absolute.
    let folder =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let own = std::env::var_os("VIDUR_CACHE_DIR").filter(|dir| !dir.is_empty());
    let base = own.map(PathBuf::from).or_else(|| {
        let caches = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
        Some(caches?.join("vidur"))
    });
    base.map(|base| base.join(name))
}

/// One table by name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sheet {
    pub name: String,
    pub rows: Vec<Vec<f64>>,
}

/// SHA-256 of everything that tables depend on, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key(String);

impl TableCache {
    /// Keeps nothing.
    pub fn off() -> TableCache {
        TableCache::default()
    }

    /// Keeps tables in `dir`, which need not exist yet.
    pub fn in_dir(dir: impl Into<PathBuf>) -> TableCache {
        TableCache { dir: Some(dir.into()), trouble: OnceLock::new() }
    }

    /// Keeps tables in the user's cache: `$VIDUR_CACHE_DIR/tables`, else
    /// `$XDG_CACHE_HOME/vidur/tables`, else `~/.cache/vidur/tables`.
    pub fn of_user() -> TableCache {
        TableCache { dir: user_cache("tables"), trouble: OnceLock::new() }
    }

    /// The tables of `key`; `None` when they are not kept, or damaged.
    pub(super) fn read(&self, key: &Key) -> Option<Vec<Sheet>> {
        let bytes = std::fs::read(self.path(key)?).ok()?;
        let (body, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
        if Sha256::digest(body)[..] != *digest {
            return None;
        }
        let mut rest = body.strip_prefix(MAGIC)?.strip_prefix(key.0.as_bytes())?;
        let mut sheets = Vec::new();
        while !rest.is_empty() {
            sheets.push(take_sheet(&mut rest)?);
        }
        Some(sheets)
    }

    /// Keeps `sheets` under `key`, if it can.
    pub(super) fn write(&self, key: &Key, sheets: &[Sheet]) {
        let Some(path) = self.path(key) else { return };
        let mut bytes = [MAGIC, key.0.as_bytes()].concat();
        for sheet in sheets {
            put_sheet(&mut bytes, sheet);
        }
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        // Not kept is not wrong: the next run fits the tables again.
        if let Err(e) = write_whole(&path, &bytes) {
            let dir = path.parent().unwrap_or(&path).display();
            self.trouble.get_or_init(|| format!("{dir}: {e}"));
        }
    }

    /// Why a table was not kept: the folder and what the system says.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.get().map(String::as_str)
    }

    fn path(&self, key: &Key) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join(format!("{}.bin", key.0)))
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.persist(path).map(|_| ()).map_err(|e| e.error)
}

impl Key {
    /// The key of the tables that `config` makes of `profiles`.
    pub(super) fn of(
        config: &PredictorConfig,
        system: &System<'_>,
        limits: Limits,
        profiles: &ProfileSet,
    ) -> Key {
        /// All that is written as JSON; names keep neighbouring fields apart.
        #[derive(Serialize)]
        struct Settings<'a> {
            version: &'a str,
            predictor: &'a PredictorConfig,
            model: &'a crate::spec::model::ModelSpec,
            device: &'a crate::spec::device::DeviceSku,
            network_device: Option<&'a str>,
            parallel: crate::spec::parallel::Parallelism,
            limits: Limits,
            sources: Vec<&'a str>,
        }
        let settings = Settings {
            version: env!("CARGO_PKG_VERSION"),
            predictor: config,
            model: system.model,
            device: system.device,
            network_device: system.network_device,
            parallel: system.parallel,
            limits,
            sources: profiles.sources.iter().map(|s| s.sha256.as_str()).collect(),
        };
        let mut hash = Sha256::new();
        for code in CODE {
            hash.update(Sha256::digest(code));
        }
        // Plain data with string keys always becomes JSON.
        hash.update(Sha256::digest(serde_json::to_vec(&settings).unwrap_or_default()));
        for samples in &profiles.ops {
            hash.update(samples.op.name());
            hash.update((samples.points.len() as u64).to_le_bytes());
            for point in &samples.points {
                let (kind, a, b) = match point.input {
                    OpInput::Tokens(n) => (0, n, 0),
                    OpInput::Prefill { kv, chunk } => (1, kv.to_bits(), chunk.to_bits()),
                    OpInput::Decode { batch, kv } => (2, batch, kv.to_bits()),
                };
                for number in [kind, a, b, point.ms.to_bits()] {
                    hash.update(number.to_le_bytes());
                }
            }
        }
        Key(hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing into a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        }))
    }
}

/// Name and rows, each with its length before it; numbers are little-endian.
fn put_sheet(bytes: &mut Vec<u8>, sheet: &Sheet) {
    let count = |bytes: &mut Vec<u8>, n: usize| bytes.extend((n as u64).to_le_bytes());
    count(bytes, sheet.name.len());
    bytes.extend(sheet.name.as_bytes());
    count(bytes, sheet.rows.len());
    for row in &sheet.rows {
        count(bytes, row.len());
        row.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    }
}

fn take_sheet(rest: &mut &[u8]) -> Option<Sheet> {
    let length = take_count(rest)?;
    let name = String::from_utf8(take(rest, length)?.to_vec()).ok()?;
    let mut rows = Vec::new();
    for _ in 0..take_count(rest)? {
        let length = take_count(rest)?.checked_mul(8)?;
        let values = take(rest, length)?.chunks_exact(8);
        rows.push(
            values.map(|v| v.try_into().map(f64::from_le_bytes)).collect::<Result<_, _>>().ok()?,
        );
    }
    Some(Sheet { name, rows })
}

fn take_count(rest: &mut &[u8]) -> Option<usize> {
    let bytes = take(rest, 8)?.try_into().ok()?;
    usize::try_from(u64::from_le_bytes(bytes)).ok()
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}
