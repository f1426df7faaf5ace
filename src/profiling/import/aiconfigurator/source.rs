//! The package itself: a wheel (a zip file) or the folder that it was unpacked into.

use crate::profiling::import::ImportError;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use zip::ZipArchive;

/// An opened package. Names of files are relative to its `systems` folder, with `/` between parts.
#[derive(Debug)]
pub struct Package {
    origin: PathBuf,
    version: Option<String>,
    /// Every file below the `systems` folder.
    files: BTreeSet<String>,
    store: Store,
}

#[derive(Debug)]
enum Store {
    Folder(PathBuf),
    Wheel { archive: Mutex<ZipArchive<BufReader<File>>>, prefix: String },
}

/// A file that every version of the package has, in its `systems` folder.
const LANDMARK: &str = "systems/silicon_sample.csv";

impl Package {
    /// Opens the wheel or folder at `path`. A folder may be the unpacked wheel, the package in it, or
    /// its `systems` folder.
    ///
    /// # Errors
    /// When there is nothing to read, or it is another package.
    pub fn open(path: &Path) -> Result<Package, ImportError> {
        if path.is_dir() { Package::of_folder(path) } else { Package::of_wheel(path) }
    }

    fn of_folder(path: &Path) -> Result<Package, ImportError> {
        let places = ["", "systems", "aiconfigurator_core/systems", "aiconfigurator/systems"];
        let systems = places.iter().map(|place| path.join(place)).find(|dir| {
            dir.join("data").is_dir() && dir.file_name().is_some_and(|n| n == "systems")
        });
        let Some(systems) = systems else {
            return Err(ImportError::Missing(format!(
                "{}: no aiconfigurator_core/systems/data in it; expected the folder that the wheel of \
                 aiconfigurator-core was unpacked into, or the wheel itself (`pip download --no-deps \
                 aiconfigurator-core`)",
                path.display()
            )));
        };
        let mut files = BTreeSet::new();
        walk(&systems, &systems, &mut files)?;
        let version = version_beside(path);
        Ok(Package { origin: path.to_owned(), version, files, store: Store::Folder(systems) })
    }

    fn of_wheel(path: &Path) -> Result<Package, ImportError> {
        let io = |source| ImportError::Io { path: path.to_owned(), source };
        let broken =
            |problem: String| ImportError::Content { file: path.display().to_string(), problem };
        let file = BufReader::new(File::open(path).map_err(io)?);
        let archive = ZipArchive::new(file)
            .map_err(|e| broken(format!("no wheel ({e}); expected a zip file or a folder")))?;
        let names: Vec<String> =
            archive.file_names().filter_map(|n| n.ok().map(|n| n.into_owned())).collect();
        let Some(prefix) = names.iter().find_map(|n| n.strip_suffix(LANDMARK)) else {
            return Err(broken(format!(
                "no {LANDMARK} in it; expected a wheel of aiconfigurator-core"
            )));
        };
        let prefix = format!("{prefix}systems/");
        let inside = names.iter().filter_map(|n| n.strip_prefix(&prefix));
        let files = inside.filter(|n| !n.ends_with('/')).map(str::to_owned).collect();
        let version = names.iter().find_map(|n| dist_info_version(n));
        let store = Store::Wheel { archive: Mutex::new(archive), prefix };
        Ok(Package { origin: path.to_owned(), version, files, store })
    }

    /// Where it was opened.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// The version that the wheel states; `None` of a folder without its metadata.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Every file below `systems` whose name begins with `prefix`.
    pub fn files<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.files
            .range(prefix.to_owned()..)
            .map(String::as_str)
            .take_while(move |n| n.starts_with(prefix))
    }

    /// Whether there is a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains(name)
    }

    /// The file `name`, whole.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub fn read(&self, name: &str) -> Result<Bytes, ImportError> {
        let io = |source| ImportError::Io { path: self.origin.join(name), source };
        if !self.has(name) {
            let problem = format!("{}: no systems/{name} in it", self.origin.display());
            return Err(ImportError::Missing(problem));
        }
        match &self.store {
            Store::Folder(systems) => {
                std::fs::read(systems.join(name)).map(Bytes::from).map_err(io)
            }
            Store::Wheel { archive, prefix } => {
                // A thread that panicked while it read leaves the archive as it was.
                let mut archive = archive.lock().unwrap_or_else(|e| e.into_inner());
                let full = format!("{prefix}{name}");
                let mut entry = archive.by_name(&full).map_err(|e| ImportError::Content {
                    file: self.origin.display().to_string(),
                    problem: format!("{full}: {e}"),
                })?;
                let mut bytes = Vec::with_capacity(entry.size() as usize);
                entry.read_to_end(&mut bytes).map_err(io)?;
                Ok(bytes.into())
            }
        }
    }
}

/// `aiconfigurator_core-0.12.0.dist-info/METADATA` → `0.12.0`.
fn dist_info_version(name: &str) -> Option<String> {
    let folder = name.split('/').next()?.strip_suffix(".dist-info")?;
    folder.rsplit_once('-').map(|(_, version)| version.to_owned())
}

/// The version that the metadata beside an unpacked package states.
fn version_beside(path: &Path) -> Option<String> {
    let parents = path.ancestors().take(3);
    parents.flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten()).find_map(
        |entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            name.starts_with("aiconfigurator").then(|| dist_info_version(name)).flatten()
        },
    )
}

fn walk(root: &Path, dir: &Path, files: &mut BTreeSet<String>) -> Result<(), ImportError> {
    let io = |source| ImportError::Io { path: dir.to_owned(), source };
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_dir() {
            walk(root, &path, files)?;
        } else if let Ok(relative) = path.strip_prefix(root) {
            let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
            files.insert(parts.join("/"));
        }
    }
    Ok(())
}
