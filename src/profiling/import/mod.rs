//! Timings that others measured and published, turned into profiles of ours. Figures carry over with
//! their source; each profile's manifest says which rows were measured and which derived.

pub mod aiconfigurator;
mod csv_text;
pub mod llmservingsim;
mod output;
pub mod vidur;

pub use output::{Imported, ImportedFile, Origin};

use std::path::PathBuf;

/// Why timings could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file or folder cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Io {
        /// Path.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A file is there and is not what it should be.
    #[error("{file}: {problem}")]
    Content {
        /// Path, or name inside the archive.
        file: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// The source lacks what was asked for.
    #[error("{0}")]
    Missing(String),
}
