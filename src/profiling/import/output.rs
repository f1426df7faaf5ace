//! Imported profiles: files in memory that a predictor reads as they are, or that are written to disk.

use super::ImportError;
use crate::dataset::location::ProfileRoot;
use crate::dataset::write::write_atomically;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where imported figures come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Package or repository, as people know it.
    pub source: String,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Licence of the figures, an SPDX identifier.
    pub license: String,
    /// Who holds the rights.
    pub copyright: String,
}

/// One file of an imported set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedFile {
    /// Path below the profile root.
    pub path: String,
    /// Contents.
    pub bytes: Vec<u8>,
}

/// A set of profiles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Files, each path once.
    pub files: Vec<ImportedFile>,
    /// What a user should know, one line each.
    pub notes: Vec<String>,
}

impl Imported {
    /// Adds a profile and the manifest that belongs beside it.
    ///
    /// # Errors
    /// Never in practice: when the manifest cannot be put into words.
    pub fn push(
        &mut self,
        path: String,
        bytes: Vec<u8>,
        manifest: &impl Serialize,
    ) -> Result<(), ImportError> {
        let beside = format!("{}.manifest.json", path.trim_end_matches(".csv"));
        let mut text = serde_json::to_vec_pretty(manifest)
            .map_err(|e| ImportError::Content { file: beside.clone(), problem: e.to_string() })?;
        text.push(b'\n');
        self.files.push(ImportedFile { path, bytes });
        self.files.push(ImportedFile { path: beside, bytes: text });
        Ok(())
    }

    /// Adds what another set holds; a path that is there already keeps its file.
    pub fn extend(&mut self, other: Imported) {
        for file in other.files {
            if !self.files.iter().any(|f| f.path == file.path) {
                self.files.push(file);
            }
        }
        for note in other.notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
    }

    /// The set as a place where profiles are found, called `name` in messages.
    pub fn into_root(self, name: impl Into<String>) -> ProfileRoot {
        let files: BTreeMap<String, Vec<u8>> =
            self.files.into_iter().map(|file| (file.path, file.bytes)).collect();
        ProfileRoot::memory(name, files)
    }

    /// Writes every file below `root`, each whole or not at all. Files that are there stay, unless
    /// `replace` says otherwise: then none is written.
    ///
    /// # Errors
    /// When a file exists and is not to be replaced, or cannot be written.
    pub fn write(&self, root: &Path, replace: bool) -> Result<Vec<PathBuf>, ImportError> {
        let targets: Vec<PathBuf> = self.files.iter().map(|f| root.join(&f.path)).collect();
        if !replace && let Some(there) = targets.iter().find(|path| path.exists()) {
            return Err(ImportError::Missing(format!(
                "{} exists; give another --output-dir, or --force to replace it",
                there.display()
            )));
        }
        for (file, target) in self.files.iter().zip(&targets) {
            let folder = target.parent().unwrap_or(root);
            std::fs::create_dir_all(folder)
                .map_err(|source| ImportError::Io { path: folder.to_owned(), source })?;
            write_atomically(target, &file.bytes)
                .map_err(|e| ImportError::Missing(e.to_string()))?;
        }
        Ok(targets)
    }
}
