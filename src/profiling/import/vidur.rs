//! microsoft/vidur's profiles (MIT), as they are: a folder with compute/, network/ and cpu_overhead/, or
//! the repository that has it under data/profiling. Our readers take these files unchanged; what an import
//! adds is a check of each and a manifest that says where it comes from.

use super::{ImportError, Imported, Origin};
use crate::dataset::location::ProfileFile;
use crate::dataset::manifest::sha256_hex;
use crate::dataset::read::count_rows;
use serde_json::json;
use std::path::Path;

/// File names of profiles.
const PROFILES: [&str; 6] = [
    "mlp.csv",
    "attention.csv",
    "all_reduce.csv",
    "allreduce.csv",
    "send_recv.csv",
    "cpu_overheads.csv",
];
/// Folders of profiles.
const FOLDERS: [&str; 3] = ["compute", "network", "cpu_overhead"];

/// Every profile below `dir`.
///
/// # Errors
/// When there is none, or one of them is no profile.
pub fn profiles(dir: &Path) -> Result<Imported, ImportError> {
    let places = ["", "profiling", "data/profiling"];
    let root = places
        .iter()
        .map(|place| dir.join(place))
        .find(|root| FOLDERS.iter().any(|folder| root.join(folder).is_dir()));
    let none = || {
        ImportError::Missing(format!(
            "{}: no compute/, network/ or cpu_overhead/ with profiles in it; expected Vidur's \
             data/profiling",
            dir.display()
        ))
    };
    let root = root.ok_or_else(none)?;
    let mut paths = Vec::new();
    for folder in FOLDERS {
        let folder = root.join(folder);
        if folder.is_dir() {
            walk(&folder, &mut paths)?;
        }
    }
    paths.sort();
    let mut set = Imported::default();
    for path in paths {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if !PROFILES.contains(&name.as_str()) {
            continue;
        }
        let bytes = std::fs::read(&path)
            .map_err(|source| ImportError::Io { path: path.clone(), source })?;
        let file = ProfileFile::from_bytes(path.display().to_string(), bytes);
        let rows = count_rows(&file).map_err(|e| ImportError::Missing(e.to_string()))?;
        let origin = Origin {
            source: "microsoft/vidur (github.com/microsoft/vidur)".into(),
            version: None,
            license: "MIT".into(),
            copyright: "Copyright (c) Microsoft Corporation".into(),
        };
        let relative: Vec<String> = path
            .strip_prefix(&root)
            .unwrap_or(&path)
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        let manifest = json!({
            "profile": name.trim_end_matches(".csv"),
            "provenance": "imported",
            "origin": origin,
            "rows": rows,
            "sha256": sha256_hex(&file.bytes),
            "vidur_version": env!("CARGO_PKG_VERSION"),
        });
        set.push(relative.join("/"), file.bytes.into_owned(), &manifest)?;
    }
    if set.files.is_empty() { Err(none()) } else { Ok(set) }
}

fn walk(dir: &Path, paths: &mut Vec<std::path::PathBuf>) -> Result<(), ImportError> {
    let io = |source| ImportError::Io { path: dir.to_owned(), source };
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_dir() {
            walk(&path, paths)?;
        } else {
            paths.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn profiles_are_taken_as_they_are_and_get_a_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("data/profiling/network/a100_dgx");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("all_reduce.csv"), "size,num_workers\n1,2\n3,4\n").unwrap();
        fs::write(folder.join("notes.txt"), "no profile").unwrap();
        let set = profiles(dir.path()).unwrap();
        let paths: Vec<&str> = set.files.iter().map(|f| f.path.as_str()).collect();
        let base = "network/a100_dgx/all_reduce";
        assert_eq!(paths, [format!("{base}.csv"), format!("{base}.manifest.json")]);
        assert_eq!(set.files[0].bytes, b"size,num_workers\n1,2\n3,4\n");
        assert!(String::from_utf8_lossy(&set.files[1].bytes).contains("\"rows\": 2"));
    }

    #[test]
    fn a_folder_without_profiles_and_a_broken_profile_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(profiles(dir.path()).unwrap_err().to_string().contains("no compute/"));
        let folder = dir.path().join("network/x");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("send_recv.csv"), "size,num_workers\n1\n").unwrap();
        let message = profiles(dir.path()).unwrap_err().to_string();
        assert!(message.contains("send_recv.csv") && message.contains("line 2"), "{message}");
    }
}
