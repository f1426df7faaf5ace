//! Where profiles lie: a folder on disk, or the set compiled into the program. Both have
//! microsoft/vidur's layout: `compute/<sku>/<org>/<model>/{mlp,attention,graph}.csv`,
//! `network/<network_device>/{all_reduce,send_recv}.csv`,
//! `cpu_overhead/<network_device>/<org>/<model>/cpu_overheads.csv`.

use super::network::Collective;
use include_dir::{Dir, include_dir};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

static BUILT_IN: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/data/profiling");

/// A set of profiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProfileRoot {
    /// A folder on disk.
    Directory(PathBuf),
    /// Several sets: a profile comes from the first that has it.
    Several(Vec<ProfileRoot>),
    /// The profiles compiled into the program.
    BuiltIn,
    /// Profiles in memory.
    Memory(Arc<Files>),
}

/// Profiles in memory: contents by path below the root.
#[derive(Debug, PartialEq, Eq)]
pub struct Files {
    name: String,
    files: BTreeMap<String, Vec<u8>>,
}

/// The kinds of profile, one CSV file each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProfileKind {
    /// Operators whose time depends on the number of tokens.
    Mlp,
    /// Attention and the write to the KV cache.
    Attention,
    /// Whole compiled graphs, bucket by bucket.
    Graph,
    /// Sum over tensor-parallel devices.
    AllReduce,
    /// Hand-over between pipeline stages.
    SendRecv,
    /// Time that the engine spends on the host.
    CpuOverhead,
}

/// One profile, read whole, and what is known about where it comes from.
#[derive(Clone, Debug)]
pub struct ProfileFile {
    /// Path as messages show it.
    pub name: String,
    /// Contents.
    pub bytes: Cow<'static, [u8]>,
    /// The manifest beside it (`mlp.manifest.json` for mlp.csv): device, driver, command, date.
    pub manifest: Option<Value>,
}

/// Why a profile was not found.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// The folder itself is not there.
    #[error("profiling directory {} does not exist; give an existing one with --profiling-dir", .0.display())]
    NoDirectory(PathBuf),
    /// No file of this kind for the names.
    #[error("no {file} for {wanted} in {root} (found there: {held}); {cure}")]
    NotFound {
        /// File name, `mlp.csv`.
        file: &'static str,
        /// What was looked for.
        wanted: String,
        /// Where.
        root: String,
        /// What is there instead.
        held: String,
        /// What to do about it.
        cure: String,
    },
    /// A file is there and cannot be read.
    #[error("{file}: cannot be read: {source}")]
    Io {
        /// Path.
        file: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The manifest beside a profile is not JSON.
    #[error("{file}: not JSON ({message}); mend it, or delete it to use the profile without one")]
    Manifest {
        /// Path.
        file: String,
        /// What the parser says, with line and column.
        message: String,
    },
}

/// Checks that `name` can be the folder of a device or a wiring.
///
/// # Errors
/// One line that says what was expected.
pub fn folder_name(name: &str) -> Result<(), String> {
    let parts: Vec<_> = Path::new(name).components().collect();
    match parts.as_slice() {
        [std::path::Component::Normal(part)] if **part == *name => Ok(()),
        _ => Err(format!("`{name}` cannot name a folder; give a plain name such as h100_dgx")),
    }
}

impl ProfileKind {
    /// File names, the one that we write first.
    const fn file_names(self) -> &'static [&'static str] {
        match self {
            ProfileKind::Mlp => &["mlp.csv"],
            ProfileKind::Attention => &["attention.csv"],
            ProfileKind::Graph => &["graph.csv"],
            ProfileKind::AllReduce => Collective::AllReduce.file_names(),
            ProfileKind::SendRecv => Collective::SendRecv.file_names(),
            ProfileKind::CpuOverhead => &["cpu_overheads.csv"],
        }
    }

    const fn folder(self) -> &'static str {
        match self {
            ProfileKind::Mlp | ProfileKind::Attention | ProfileKind::Graph => "compute",
            ProfileKind::AllReduce | ProfileKind::SendRecv => "network",
            ProfileKind::CpuOverhead => "cpu_overhead",
        }
    }

    fn command(self) -> &'static str {
        match self {
            ProfileKind::Mlp => "vidur profile mlp",
            ProfileKind::Attention => "vidur profile attention",
            ProfileKind::Graph => "vidur profile graph",
            ProfileKind::AllReduce | ProfileKind::SendRecv => "vidur profile collectives",
            ProfileKind::CpuOverhead => "vidur profile cpu-overhead",
        }
    }
}

impl ProfileFile {
    /// A profile that is already in memory, without a manifest.
    pub fn from_bytes(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> ProfileFile {
        ProfileFile { name: name.into(), bytes: Cow::Owned(bytes.into()), manifest: None }
    }

    /// Operators that the profile has no column for because another one does their work, and which,
    /// as its manifest says.
    pub fn fused(&self) -> BTreeMap<String, String> {
        let stated = self.manifest.as_ref().and_then(|m| m.get("fused")).and_then(Value::as_object);
        let words = stated.into_iter().flatten();
        words.filter_map(|(op, by)| Some((op.clone(), by.as_str()?.to_owned()))).collect()
    }

    /// SHA-256 of the contents, in hexadecimal.
    pub fn sha256(&self) -> String {
        Sha256::digest(&self.bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing into a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl ProfileRoot {
    /// Files in memory by path below the root, called `name` in messages.
    pub fn memory(name: impl Into<String>, files: BTreeMap<String, Vec<u8>>) -> ProfileRoot {
        ProfileRoot::Memory(Arc::new(Files { name: name.into(), files }))
    }

    /// The folder at `path`, or several, separated as in the PATH variable (`:`, on Windows `;`).
    ///
    /// # Errors
    /// When one is not a folder.
    pub fn directory(path: impl Into<PathBuf>) -> Result<ProfileRoot, LocateError> {
        let path = path.into();
        if path.is_dir() {
            return Ok(ProfileRoot::Directory(path));
        }
        let parts: Vec<PathBuf> = std::env::split_paths(&path).collect();
        if parts.len() < 2 {
            return Err(LocateError::NoDirectory(path));
        }
        let roots: Result<_, _> = parts.into_iter().map(ProfileRoot::directory).collect();
        roots.map(ProfileRoot::Several)
    }

    /// The profile of `kind` measured on the first of `hosts` that has one (a device SKU and its
    /// aliases, or a network device), for the first of `models` that it has (empty for network
    /// profiles, which belong to no model).
    ///
    /// # Errors
    /// When there is none: names what the set holds, and how to fill the gap.
    pub fn find(
        &self,
        kind: ProfileKind,
        hosts: &[&str],
        models: &[&str],
    ) -> Result<ProfileFile, LocateError> {
        let models = if models.is_empty() { &[""][..] } else { models };
        match self.look(kind, hosts, models)? {
            Some(file) => Ok(file),
            None => Err(self.not_found(kind, hosts, models)),
        }
    }

    /// Whether [`ProfileRoot::find`] would find one.
    pub fn has(&self, kind: ProfileKind, hosts: &[&str], models: &[&str]) -> bool {
        let models = if models.is_empty() { &[""][..] } else { models };
        self.look(kind, hosts, models).is_ok_and(|found| found.is_some())
    }

    /// As [`ProfileRoot::find`]; `None` when there is none.
    fn look(
        &self,
        kind: ProfileKind,
        hosts: &[&str],
        models: &[&str],
    ) -> Result<Option<ProfileFile>, LocateError> {
        if let ProfileRoot::Several(roots) = self {
            let mut found = roots.iter().map(|root| root.look(kind, hosts, models));
            return found.find(|r| !matches!(r, Ok(None))).unwrap_or(Ok(None));
        }
        for host in hosts {
            for model in models {
                for name in kind.file_names() {
                    let mut path = format!("{}/{host}", kind.folder());
                    if !model.is_empty() {
                        path = format!("{path}/{model}");
                    }
                    let path = format!("{path}/{name}");
                    if let Some(bytes) = self.read(&path)? {
                        return self.with_manifest(&path, bytes).map(Some);
                    }
                }
            }
        }
        Ok(None)
    }

    /// The description of a device beside its profiles, `compute/<sku>/device.yml`; `None` when
    /// there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn device_file(&self, sku: &str) -> Result<Option<ProfileFile>, LocateError> {
        if let ProfileRoot::Several(roots) = self {
            let mut found = roots.iter().map(|root| root.device_file(sku));
            return found.find(|r| !matches!(r, Ok(None))).unwrap_or(Ok(None));
        }
        let path = format!("compute/{sku}/device.yml");
        let file = |bytes| ProfileFile { name: self.show(&path), bytes, manifest: None };
        Ok(self.read(&path)?.map(file))
    }

    fn with_manifest(
        &self,
        path: &str,
        bytes: Cow<'static, [u8]>,
    ) -> Result<ProfileFile, LocateError> {
        let beside = format!("{}.manifest.json", path.trim_end_matches(".csv"));
        let manifest = match self.read(&beside)? {
            None => None,
            Some(text) => Some(serde_json::from_slice(&text).map_err(|e| {
                LocateError::Manifest { file: self.show(&beside), message: e.to_string() }
            })?),
        };
        Ok(ProfileFile { name: self.show(path), bytes, manifest })
    }

    /// The file at `path` below the root; `None` when there is none.
    fn read(&self, path: &str) -> Result<Option<Cow<'static, [u8]>>, LocateError> {
        match self {
            ProfileRoot::BuiltIn => {
                Ok(BUILT_IN.get_file(path).map(|file| Cow::Borrowed(file.contents())))
            }
            ProfileRoot::Directory(root) => match std::fs::read(root.join(path)) {
                Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(LocateError::Io { file: self.show(path), source }),
            },
            ProfileRoot::Memory(set) => Ok(set.files.get(path).cloned().map(Cow::Owned)),
            // Asked one by one, so that a profile and its manifest come from the same set.
            ProfileRoot::Several(_) => Ok(None),
        }
    }

    fn show(&self, path: &str) -> String {
        match self {
            ProfileRoot::BuiltIn => format!("<built in>/{path}"),
            ProfileRoot::Directory(root) => root.join(path).display().to_string(),
            ProfileRoot::Memory(set) => format!("<{}>/{path}", set.name),
            ProfileRoot::Several(_) => path.to_owned(),
        }
    }

    fn not_found(&self, kind: ProfileKind, hosts: &[&str], models: &[&str]) -> LocateError {
        let host = hosts.first().copied().unwrap_or("?");
        let model = models.first().copied().unwrap_or("");
        let (wanted, flags) = if model.is_empty() {
            (format!("network device {host}"), String::new())
        } else if kind == ProfileKind::CpuOverhead {
            (format!("{model} on network device {host}"), format!(" --models {model}"))
        } else {
            (format!("{model} on {host}"), format!(" --models {model}"))
        };
        LocateError::NotFound {
            file: kind.file_names()[0],
            wanted,
            root: self.name(),
            held: self.inventory(kind),
            cure: format!(
                "measure it with `{}{flags}`, or point --profiling-dir at a folder that has it",
                kind.command()
            ),
        }
    }

    fn name(&self) -> String {
        match self {
            ProfileRoot::BuiltIn => "the built-in profiles".into(),
            ProfileRoot::Directory(path) => path.display().to_string(),
            ProfileRoot::Memory(set) => set.name.clone(),
            ProfileRoot::Several(roots) => {
                roots.iter().map(ProfileRoot::name).collect::<Vec<_>>().join(" and ")
            }
        }
    }

    /// What the set holds of `kind`: hosts, and their models.
    fn inventory(&self, kind: ProfileKind) -> String {
        let mut found: Vec<String> = Vec::new();
        for path in self.files(kind.folder()) {
            // <folder>/<host>/<model...>/<file>
            let parts: Vec<&str> = path.split('/').collect();
            if parts.len() < 3 || !kind.file_names().contains(&parts[parts.len() - 1]) {
                continue;
            }
            let model = parts[2..parts.len() - 1].join("/");
            found.push(if model.is_empty() {
                parts[1].to_string()
            } else {
                format!("{} ({model})", parts[1])
            });
        }
        found.sort();
        found.dedup();
        if found.is_empty() { "none at all".into() } else { found.join(", ") }
    }

    /// Paths of the files below `folder`, relative to the root, with `/` between their parts.
    fn files(&self, folder: &str) -> Vec<String> {
        let mut paths = Vec::new();
        match self {
            ProfileRoot::BuiltIn => {
                if let Some(dir) = BUILT_IN.get_dir(folder) {
                    list_built_in(dir, &mut paths);
                }
            }
            ProfileRoot::Memory(set) => {
                let below = |path: &&String| path.split('/').next() == Some(folder);
                paths.extend(set.files.keys().filter(below).cloned());
            }
            ProfileRoot::Directory(root) => list_on_disk(root, &root.join(folder), 6, &mut paths),
            ProfileRoot::Several(roots) => {
                paths.extend(roots.iter().flat_map(|root| root.files(folder)));
            }
        }
        paths
    }
}

fn list_built_in(dir: &Dir<'static>, paths: &mut Vec<String>) {
    paths.extend(dir.files().map(|file| file.path().display().to_string()));
    for inner in dir.dirs() {
        list_built_in(inner, paths);
    }
}

/// Folders that cannot be read are left out: this only feeds a message.
fn list_on_disk(root: &Path, dir: &Path, depth: u32, paths: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if depth > 0 {
                list_on_disk(root, &path, depth - 1, paths);
            }
        } else if let Ok(relative) = path.strip_prefix(root) {
            let parts: Vec<_> =
                relative.components().map(|c| c.as_os_str().to_string_lossy()).collect();
            paths.push(parts.join("/"));
        }
    }
}
