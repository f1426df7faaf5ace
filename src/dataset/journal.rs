//! Rows of a run that has not finished, on disk as soon as they are measured.
//!
//! The file is `<kind>.partial.csv`: a comment line with the fingerprint, the header, then rows in
//! the order of measuring, each written whole by one system call. A row takes the place of earlier
//! ones with the same key. A process may be killed at any byte: what follows the last newline is
//! ignored, so that a torn row leaves the one that it would have replaced. The open file holds an
//! advisory lock, which dies with the process.

use super::manifest::Fingerprint;
use super::write::{Table, TableKind, WriteError, line_of};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Reading or writing failed, or the content is not ours.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Another process measures the same profile.
    #[error("{} is in use by another vidur profile; wait for it, or take another --output-dir", path.display())]
    Locked {
        /// The journal.
        path: PathBuf,
    },
    /// The rows were measured under other conditions.
    #[error("{} was measured under other conditions ({difference}); --force measures anew, --sku stores beside", path.display())]
    Fingerprint {
        /// The file with the other fingerprint.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
}

/// First line of the file, after `# `.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    fingerprint: Fingerprint,
    /// The run replaces what the finished profile holds, instead of adding to it.
    anew: bool,
}

/// An open journal; see the module.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    /// Rows that are on disk.
    rows: Table,
    anew: bool,
}

impl Journal {
    /// Opens or creates the journal at `path`, takes its lock and reads what it holds. With `anew`,
    /// what it holds is dropped.
    ///
    /// # Errors
    /// See [`JournalError`]; the file is then as it was.
    pub fn open(
        path: &Path,
        kind: TableKind,
        fingerprint: &Fingerprint,
        anew: bool,
    ) -> Result<Journal, JournalError> {
        let mut file = lock(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(WriteError::io("read", path))?;
        let header = line_of(&kind.columns());
        let mut journal = Journal { file, path: path.to_owned(), rows: Table::new(kind), anew };
        let head_end = match bytes.iter().position(|&b| b == b'\n') {
            Some(end) if !anew => end + 1,
            _ => {
                journal.restart(fingerprint, &header)?;
                return Ok(journal);
            }
        };
        let content = |line: u64, message: &str| WriteError::Content {
            path: path.to_owned(),
            line,
            message: message.to_owned(),
        };
        let head: Head = bytes[..head_end]
            .strip_prefix(b"# ")
            .and_then(|json| serde_json::from_slice(json).ok())
            .ok_or_else(|| content(1, "no fingerprint of this version"))?;
        if let Some(difference) = fingerprint.difference(&head.fingerprint) {
            return Err(JournalError::Fingerprint { path: path.to_owned(), difference });
        }
        journal.anew = head.anew;
        // Everything up to the last newline counts.
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        if whole == head_end {
            journal.restart(fingerprint, &header)?;
            return Ok(journal);
        }
        let text = std::str::from_utf8(&bytes[head_end..whole])
            .map_err(|_| content(2, "not valid UTF-8"))?;
        for (i, line) in text.lines().enumerate() {
            let number = i as u64 + 2;
            if i == 0 {
                if line != header.trim_end() {
                    return Err(content(number, "not the columns of this version").into());
                }
                continue;
            }
            let cells = line.split(',').map(str::to_owned).collect();
            journal.rows.insert(cells).map_err(|message| content(number, &message))?;
        }
        journal.cut(whole as u64)?;
        Ok(journal)
    }

    /// The rows on disk.
    pub fn rows(&self) -> &Table {
        &self.rows
    }

    /// Whether the run replaces what the finished profile holds.
    pub fn is_anew(&self) -> bool {
        self.anew
    }

    /// Puts one row on disk, in place of one with the same key. Cells are in the order of [`TableKind::columns`].
    ///
    /// # Errors
    /// When the row could not be written whole; what is there of it is ignored later.
    pub fn append(&mut self, cells: Vec<String>) -> Result<(), JournalError> {
        let line = line_of(&cells);
        let path = &self.path;
        self.rows.insert(cells).map_err(|message| WriteError::Content {
            path: path.clone(),
            line: 0,
            message,
        })?;
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.flush())
            .map_err(WriteError::io("write", path))?;
        Ok(())
    }

    /// Removes the file: the rows are in the finished profile, or there are none.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove(self) -> Result<(), JournalError> {
        // While the lock is held: whoever waits for it then finds that the file has gone.
        fs::remove_file(&self.path).map_err(WriteError::io("remove", &self.path))?;
        Ok(())
    }

    fn restart(&mut self, fingerprint: &Fingerprint, header: &str) -> Result<(), JournalError> {
        self.cut(0)?;
        let head = Head { fingerprint: fingerprint.clone(), anew: self.anew };
        let head = serde_json::to_string(&head)
            .map_err(io::Error::from)
            .map_err(WriteError::io("write", &self.path))?;
        self.file
            .write_all(format!("# {head}\n{header}").as_bytes())
            .and_then(|()| self.file.flush())
            .map_err(WriteError::io("write", &self.path))?;
        Ok(())
    }

    /// Cuts the file to `len` bytes and goes to its end.
    fn cut(&mut self, len: u64) -> Result<(), JournalError> {
        self.file
            .set_len(len)
            .and_then(|()| self.file.seek(SeekFrom::Start(len)))
            .map_err(WriteError::io("write", &self.path))?;
        Ok(())
    }
}

/// Opens `path` and locks it. The file that was locked may have been finished and removed by its
/// owner in between: then another try creates a new one.
fn lock(path: &Path) -> Result<File, JournalError> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(WriteError::io("write", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(JournalError::Locked { path: path.to_owned() });
            }
            Err(TryLockError::Error(e)) => return Err(WriteError::io("lock", path)(e).into()),
        }
        if is_at(&file, path) {
            return Ok(file);
        }
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
