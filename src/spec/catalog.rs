//! Looking up models, devices and nodes by name: first in a data directory on disk, then among
//! those compiled into the program. A file is read only when something asks for it.

mod entry;
#[cfg(test)]
mod tests;

use super::device::{DeviceSku, NodeSku, check_name};
use super::model::ModelSpec;
use crate::yaml::{self, YamlError};
use entry::Entry;
use include_dir::Dir;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The data directory that is used when none is named and it exists.
pub const DEFAULT_DATA_DIR: &str = "data";

/// Why something is not in the catalogue. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A file cannot be read.
    #[error("{file}: cannot be read: {source}")]
    Read {
        /// The file or folder.
        file: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// A file can be read, but its numbers make no sense.
    #[error("{file}: {problem}")]
    Invalid {
        /// The file.
        file: String,
        /// The field, its value and what was expected.
        problem: String,
    },
    /// Nothing has this name.
    #[error("unknown {noun} `{name}`; {}`{command}` lists them{}", did_you_mean(.suggestion.as_deref()), .cure)]
    Unknown {
        /// model, device or node.
        noun: &'static str,
        /// What was asked for.
        name: String,
        /// A name that is like it.
        suggestion: Option<String>,
        /// The command that lists what there is.
        command: &'static str,
        /// What else would help, appended.
        cure: &'static str,
    },
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map(|like| format!("did you mean `{like}`? ")).unwrap_or_default()
}

/// Where models, devices and nodes are looked up.
#[derive(Clone, Debug)]
pub struct Catalog {
    data_dir: Option<PathBuf>,
}

impl Catalog {
    /// A catalogue of the files under `data_dir` (or `./data`, where there is one, when `None`)
    /// and those compiled in. A file on disk goes before a compiled one of the same name.
    pub fn open(data_dir: Option<&Path>) -> Catalog {
        let default = Path::new(DEFAULT_DATA_DIR);
        let chosen = data_dir.or_else(|| default.is_dir().then_some(default));
        Catalog { data_dir: chosen.map(Path::to_owned) }
    }

    /// The model with this id or alias, or in this `.yml` file.
    ///
    /// # Errors
    /// When nothing has that name, or its file is broken.
    pub fn model(&self, name: &str) -> Result<ModelSpec, CatalogError> {
        self.find(name)
    }

    /// The device with this name or alias, or in this `.yml` file.
    ///
    /// # Errors
    /// When nothing has that name, or its file is broken.
    pub fn device(&self, name: &str) -> Result<DeviceSku, CatalogError> {
        self.find(name)
    }

    /// The node with this name, or in this `.yml` file.
    ///
    /// # Errors
    /// When nothing has that name, or its file is broken.
    pub fn node(&self, name: &str) -> Result<NodeSku, CatalogError> {
        self.find(name)
    }

    /// Every model, by name.
    ///
    /// # Errors
    /// When a file is broken.
    pub fn models(&self) -> Result<Vec<ModelSpec>, CatalogError> {
        self.all()
    }

    /// Every device, by name.
    ///
    /// # Errors
    /// When a file is broken.
    pub fn devices(&self) -> Result<Vec<DeviceSku>, CatalogError> {
        self.all()
    }

    /// Every node, by name.
    ///
    /// # Errors
    /// When a file is broken.
    pub fn nodes(&self) -> Result<Vec<NodeSku>, CatalogError> {
        self.all()
    }

    fn find<T: Entry>(&self, name: &str) -> Result<T, CatalogError> {
        if name.ends_with(".yml") || name.ends_with(".yaml") {
            return parse(&read(Path::new(name))?, name);
        }
        // Only a well-formed name becomes a path.
        if T::check_name(name).is_ok() {
            if let Some(path) = self.on_disk::<T>(name).filter(|path| path.is_file()) {
                return load_file(&path, name);
            }
            if let Some(file) = T::embedded().get_file(format!("{name}.yml")) {
                return load_embedded(file, name);
            }
        }
        let mut known = self.all::<T>()?;
        if let Some(index) = known.iter().position(|it| it.aliases().iter().any(|a| a == name)) {
            return Ok(known.swap_remove(index));
        }
        let names = known.iter().flat_map(|it| {
            std::iter::once(it.name()).chain(it.aliases().iter().map(String::as_str))
        });
        Err(CatalogError::Unknown {
            noun: T::NOUN,
            name: name.to_owned(),
            suggestion: yaml::closest(name, names).map(str::to_owned),
            command: T::COMMAND,
            cure: T::CURE,
        })
    }

    fn all<T: Entry>(&self) -> Result<Vec<T>, CatalogError> {
        let mut found = BTreeMap::new();
        let mut embedded = Vec::new();
        embedded_files(T::embedded(), &mut embedded);
        for file in embedded {
            let name = name_of(file.path());
            if !self.on_disk::<T>(&name).is_some_and(|path| path.is_file()) {
                found.insert(name.clone(), load_embedded(file, &name)?);
            }
        }
        if let Some(dir) = &self.data_dir {
            let root = dir.join(T::FOLDER);
            let mut paths = Vec::new();
            if root.is_dir() {
                files_on_disk(&root, T::DEPTH, &mut paths)?;
            }
            for path in paths {
                let name = name_of(path.strip_prefix(&root).unwrap_or(&path));
                found.insert(name.clone(), load_file(&path, &name)?);
            }
        }
        Ok(found.into_values().collect())
    }

    fn on_disk<T: Entry>(&self, name: &str) -> Option<PathBuf> {
        Some(self.data_dir.as_ref()?.join(T::FOLDER).join(format!("{name}.yml")))
    }
}

/// Checks that `name` is a Hugging Face id, `org/model`, that is safe to use as a path.
///
/// # Errors
/// One line that says what was expected.
pub fn check_model_name(name: &str) -> Result<(), String> {
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        [org, model] if check_name(org).is_ok() && check_name(model).is_ok() => Ok(()),
        _ => Err(format!(
            "`{name}` is no model name; expected org/model, each of letters, digits, `.`, `_` and `-` without `..`, starting with a letter or digit"
        )),
    }
}

fn parse<T: Entry>(text: &str, file: &str) -> Result<T, CatalogError> {
    let entry: T = yaml::from_str(text, file)?;
    let invalid = |problem| CatalogError::Invalid { file: file.to_owned(), problem };
    entry.check().map_err(invalid)?;
    Ok(entry)
}

/// Parses a file of the catalogue, whose place must agree with the name inside.
fn parse_named<T: Entry>(text: &str, file: &str, name: &str) -> Result<T, CatalogError> {
    let entry: T = parse(text, file)?;
    if entry.name() == name {
        return Ok(entry);
    }
    let problem = format!("name is `{}`; expected `{name}`, as the file is called", entry.name());
    Err(CatalogError::Invalid { file: file.to_owned(), problem })
}

fn load_file<T: Entry>(path: &Path, name: &str) -> Result<T, CatalogError> {
    parse_named(&read(path)?, &path.display().to_string(), name)
}

fn load_embedded<T: Entry>(file: &include_dir::File<'_>, name: &str) -> Result<T, CatalogError> {
    let label = format!("built-in {}/{name}.yml", T::FOLDER);
    parse_named(file.contents_utf8().unwrap_or_default(), &label, name)
}

fn read(path: &Path) -> Result<String, CatalogError> {
    std::fs::read_to_string(path).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: std::io::Error) -> CatalogError {
    CatalogError::Read { file: path.display().to_string(), source }
}

/// The name that a file's place gives it: its path without `.yml`, with `/` between the parts.
fn name_of(relative: &Path) -> String {
    let stem = relative.with_extension("");
    let parts: Vec<_> = stem.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

fn is_yml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yml")
}

fn embedded_files(dir: &'static Dir<'static>, out: &mut Vec<&'static include_dir::File<'static>>) {
    out.extend(dir.files().filter(|file| is_yml(file.path())));
    for sub in dir.dirs() {
        embedded_files(sub, out);
    }
}

/// The `.yml` files exactly `depth` levels below `dir`.
fn files_on_disk(dir: &Path, depth: u32, out: &mut Vec<PathBuf>) -> Result<(), CatalogError> {
    for entry in std::fs::read_dir(dir).map_err(|e| unreadable(dir, e))? {
        let path = entry.map_err(|e| unreadable(dir, e))?.path();
        if depth > 1 && path.is_dir() {
            files_on_disk(&path, depth - 1, out)?;
        } else if depth == 1 && is_yml(&path) && path.is_file() {
            out.push(path);
        }
    }
    Ok(())
}
