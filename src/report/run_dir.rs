//! The folder of a run. Everything is written into a temporary folder beside it, which is renamed
//! at the end: a folder with the final name is a finished run, and nothing is ever overwritten.
//! Whoever writes one holds a lock on it, so that the next run can tell and remove what a killed one
//! left behind.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Names of temporary folders begin so.
const UNFINISHED: &str = ".unfinished-";

/// A folder is locked long before it is as old as this.
const STALE: Duration = Duration::from_secs(60);

/// A folder that becomes visible under its name when [`RunDir::finish`] is called, and disappears
/// otherwise.
#[derive(Debug)]
pub struct RunDir {
    target: PathBuf,
    temporary: tempfile::TempDir,
    /// The temporary folder, locked; the system unlocks it with the end of this process.
    _lock: fs::File,
    /// Removed again if the run is given up and nothing else is in it.
    new_parent: Option<NewFolder>,
}

/// A folder that was made for a run. Goes away with it while it is empty.
#[derive(Debug)]
struct NewFolder(PathBuf);

impl Drop for NewFolder {
    fn drop(&mut self) {
        // Fails where a run is in it, which is as it should be.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Why a folder cannot be written. One line with path and cure.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// There is something already.
    #[error(
        "{path} exists already and nothing is overwritten; choose another --output-dir or remove it"
    )]
    Exists {
        /// Where.
        path: String,
    },
    /// The system refuses: no permission, no space, no such folder.
    #[error("cannot write {path}: {cause}")]
    Io {
        /// What was being written.
        path: String,
        /// What the system says.
        cause: String,
    },
}

impl RunDir {
    /// Prepares `target`, which must not exist or be empty. Its parents are made.
    ///
    /// # Errors
    /// When it exists with something in it, or cannot be made.
    pub fn create(target: &Path) -> Result<Self, RunDirError> {
        let failed = |cause: io::Error| RunDirError::Io {
            path: target.display().to_string(),
            cause: cause.to_string(),
        };
        let occupied = match fs::read_dir(target) {
            Ok(mut entries) => entries.next().is_some(),
            Err(_) => target.symlink_metadata().is_ok(),
        };
        if occupied {
            return Err(RunDirError::Exists { path: target.display().to_string() });
        }
        let parent = match target.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let new_parent = (!parent.exists()).then(|| NewFolder(parent.into()));
        fs::create_dir_all(parent).map_err(failed)?;
        remove_stale(parent);
        let temporary = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir_in(parent)
            .map_err(failed)?;
        let lock = fs::File::open(temporary.path()).map_err(failed)?;
        // Without locks on this file system, what is here looks stale to nobody: see `remove_stale`.
        let _ = lock.try_lock();
        Ok(RunDir { target: target.into(), temporary, _lock: lock, new_parent })
    }

    /// Writes one file of the run; folders in its name are made.
    ///
    /// # Errors
    /// Those of the system, with the path.
    pub fn write(
        &self,
        name: &str,
        fill: impl FnOnce(&mut BufWriter<fs::File>) -> io::Result<()>,
    ) -> Result<(), RunDirError> {
        let path = self.temporary.path().join(name);
        let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
        let result = folder.and_then(|()| fs::File::create_new(&path)).and_then(|file| {
            let mut out = BufWriter::with_capacity(1 << 16, file);
            fill(&mut out)?;
            out.flush()
        });
        result.map_err(|e| RunDirError::Io {
            path: self.target.join(name).display().to_string(),
            cause: e.to_string(),
        })
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// When something took the name meanwhile, or the system refuses.
    pub fn finish(self) -> Result<PathBuf, RunDirError> {
        let path = self.target.display().to_string();
        // An empty folder may stand there; anything else makes the rename fail.
        match fs::rename(self.temporary.path(), &self.target) {
            Ok(()) => {
                let _ = self.temporary.keep();
                drop(self.new_parent);
                Ok(self.target)
            }
            Err(e) => match e.kind() {
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                    Err(RunDirError::Exists { path })
                }
                _ => Err(RunDirError::Io { path, cause: e.to_string() }),
            },
        }
    }
}

/// Removes what killed runs left in `parent`. Nothing is said when that fails: it is no fault of
/// the run at hand.
fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let old = || entry.metadata().and_then(|m| m.modified()).ok()?.elapsed().ok();
        let ours = name.to_string_lossy().starts_with(UNFINISHED);
        if ours
            && old().is_some_and(|age| age > STALE)
            && fs::File::open(entry.path()).is_ok_and(|folder| folder.try_lock().is_ok())
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_is_removed_and_what_is_being_written_stays() {
        let dir = tempfile::tempdir().unwrap();
        let living = RunDir::create(&dir.path().join("a")).unwrap();
        let killed = dir.path().join(".unfinished-killed");
        let fresh = dir.path().join(".unfinished-fresh");
        for folder in [&killed, &fresh] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("x"), "x").unwrap();
        }
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        for folder in [living.temporary.path(), &killed] {
            fs::File::open(folder).unwrap().set_modified(long_ago).unwrap();
        }
        let _next = RunDir::create(&dir.path().join("b")).unwrap();
        assert!(living.temporary.path().exists() && fresh.exists() && !killed.exists());
    }

    #[test]
    fn a_run_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a/b");
        let run = RunDir::create(&target).unwrap();
        run.write("x.txt", |out| out.write_all(b"x")).unwrap();
        assert!(!target.exists());
        drop(run);
        assert!(!dir.path().join("a").exists(), "a folder was left behind");

        let run = RunDir::create(&target).unwrap();
        run.write("x.txt", |out| out.write_all(b"x")).unwrap();
        run.write("plots/y.csv", |out| out.write_all(b"y")).unwrap();
        run.finish().unwrap();
        assert_eq!(fs::read(target.join("plots/y.csv")).unwrap(), b"y");
        assert_eq!(fs::read(target.join("x.txt")).unwrap(), b"x");
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x"), "mine").unwrap();
        let error = RunDir::create(dir.path()).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
        let file = dir.path().join("x");
        assert!(RunDir::create(&file).unwrap_err().to_string().contains("exists already"));
        let late = RunDir::create(&dir.path().join("late")).unwrap();
        fs::create_dir(dir.path().join("late")).unwrap();
        fs::write(dir.path().join("late/y"), "theirs").unwrap();
        assert!(late.finish().unwrap_err().to_string().contains("exists already"));
    }
}
