//! The manifest beside each profile: what was measured, with what, when, and how steadily.

use super::schema::STATISTICS;
use super::write::{Table, WriteError};
use crate::spec::model::{Dtype, ModelSpec};
use crate::stats;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// What is measured, and with which kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Backend that measured: `cpu`, `scripted`.
    pub backend: String,
    /// What the maker calls the device.
    pub name: String,
    /// Who makes it.
    pub vendor: String,
    /// Physical cores (or the device's own count of compute units).
    pub cores: u32,
    /// Threads that the kernels use.
    pub threads: u32,
    /// Memory of the device in bytes.
    pub memory_bytes: u64,
    /// Libraries that hold the kernels, each `name version`.
    pub kernels: Vec<String>,
    /// Number format of weights, activations and KV cache.
    pub dtype: Dtype,
}

/// What rows must share to stand in one file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// SKU that the profile is stored under.
    pub sku: String,
    /// Backend that measured.
    pub backend: String,
    /// What the maker calls the device.
    pub device: String,
    /// Threads that the kernels use.
    pub threads: u32,
    /// Libraries that hold the kernels.
    pub kernels: Vec<String>,
    /// Number format of weights, activations and KV cache.
    pub dtype: Dtype,
    /// The model; where its numbers come from does not count.
    pub model: ModelSpec,
}

impl Fingerprint {
    /// Of `model` on `device`, stored under `sku`.
    pub fn new(sku: &str, device: &DeviceInfo, model: &ModelSpec) -> Fingerprint {
        let mut model = model.clone();
        model.aliases.clear();
        model.source.clear();
        Fingerprint {
            sku: sku.to_owned(),
            backend: device.backend.clone(),
            device: device.name.clone(),
            threads: device.threads,
            kernels: device.kernels.clone(),
            dtype: device.dtype,
            model,
        }
    }

    /// What differs from `other`, for people; `None` if nothing does.
    pub fn difference(&self, other: &Fingerprint) -> Option<String> {
        let change =
            |what: &str, a: String, b: String| (a != b).then(|| format!("{what} was {b}, is {a}"));
        let list = |k: &[String]| k.join(", ");
        change("sku", self.sku.clone(), other.sku.clone())
            .or_else(|| change("backend", self.backend.clone(), other.backend.clone()))
            .or_else(|| change("device", self.device.clone(), other.device.clone()))
            .or_else(|| change("threads", self.threads.to_string(), other.threads.to_string()))
            .or_else(|| change("kernels", list(&self.kernels), list(&other.kernels)))
            .or_else(|| change("dtype", format!("{:?}", self.dtype), format!("{:?}", other.dtype)))
            .or_else(|| {
                (self.model != other.model).then(|| "the model's configuration changed".into())
            })
    }
}

/// A shape without a row, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedShape {
    /// Devices that share each layer.
    pub tensor_parallel: u32,
    /// The shape in words.
    pub shape: String,
    /// What the backend said.
    pub reason: String,
}

/// One command that added rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The command line.
    pub command: String,
    /// When it began, RFC 3339, UTC.
    pub started: String,
    /// When it ended, RFC 3339, UTC.
    pub finished: String,
    /// Rows that it added.
    pub rows: usize,
    /// Times that it was to measure each shape; a budget may have ended the later rounds early.
    #[serde(default = "one_round")]
    pub rounds: u32,
    /// Shapes that it had no time for.
    pub skipped: usize,
}

/// Manifests that do not tell are older than rounds.
fn one_round() -> u32 {
    1
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// `mlp` or `attention`.
    pub profile: String,
    /// Hugging Face id of the model.
    pub model: String,
    /// Where the figures come from: `measured`.
    pub provenance: String,
    /// Version of the program that wrote this.
    pub vidur_version: String,
    /// The device in full.
    pub device: DeviceInfo,
    /// Operating system of the host.
    pub host_os: String,
    /// What all rows share.
    pub fingerprint: Fingerprint,
    /// Rows of the profile.
    pub rows: usize,
    /// SHA-256 of the CSV file, hexadecimal.
    pub sha256: String,
    /// Per operator: the median over its rows of standard deviation divided by mean.
    pub noise: BTreeMap<String, f64>,
    /// Shapes that could not be measured in the last run.
    pub failed: Vec<FailedShape>,
    /// The commands that made the profile, the first one first.
    pub runs: Vec<Run>,
}

impl Manifest {
    /// Reads the manifest at `path`; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read or is no manifest.
    pub fn read(path: &Path) -> Result<Option<Manifest>, WriteError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(WriteError::io("read", path)(e)),
        };
        serde_json::from_str(&text).map(Some).map_err(|e| WriteError::Content {
            path: path.to_owned(),
            line: e.line() as u64,
            message: format!("not a manifest of this version: {e}"),
        })
    }
}

/// SHA-256 in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file whose SHA-256 is taken while it is read: it may be large, or a pipe that gives its bytes
/// once.
#[derive(Debug)]
pub struct Hashing<R> {
    file: R,
    hash: Sha256,
}

impl<R: io::Read> Hashing<R> {
    /// Of `file`, from where it stands.
    pub fn new(file: R) -> Self {
        Hashing { file, hash: Sha256::new() }
    }

    /// The SHA-256 of all of it, in hexadecimal digits; what nobody has read yet is read now.
    ///
    /// # Errors
    /// When the rest cannot be read.
    pub fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(hex(&self.hash.finalize()))
    }
}

impl<R: io::Read> io::Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

/// Relative spread of each operator: the median over its rows of standard deviation over mean.
pub fn noise(table: &Table) -> BTreeMap<String, f64> {
    let figures = STATISTICS.len();
    let ops = table.kind().ops().iter().enumerate();
    ops.filter_map(|(i, op)| {
        let ratios: Vec<f64> = table
            .rows()
            .filter_map(|row| {
                let mean: f64 = row[i * figures + 2].parse().ok()?;
                let std: f64 = row[i * figures + 4].parse().ok()?;
                (mean > 0.0).then_some(std / mean)
            })
            .collect();
        Some((op.name().to_owned(), stats::median(&ratios)?))
    })
    .collect()
}
