//! Results kept between runs, so that a search that was stopped goes on where it was, and a plan that
//! changes a little is searched a little.
//!
//! A file is named by the SHA-256 of everything that its result depends on: the whole config, the
//! requests themselves, model, device, the profiles' digests, objectives, search, and the sources of
//! the program. It appears whole, and what cannot be read is worked out again.

use super::evaluate::{Evaluated, Subject};
use crate::predictor::PredictorConfig;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Where results are kept.
#[derive(Clone, Debug, Default)]
pub struct ResultCache {
    dir: Option<PathBuf>,
}

/// Hexadecimal SHA-256 of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl ResultCache {
    /// Keeps nothing.
    pub fn off() -> ResultCache {
        ResultCache::default()
    }

    /// Keeps results in `dir`, which need not exist yet.
    pub fn in_dir(dir: impl Into<PathBuf>) -> ResultCache {
        ResultCache { dir: Some(dir.into()) }
    }

    /// The result of `subject`: the kept one, else `make`'s, which is then kept. Says whether it was
    /// kept already.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn get(
        &self,
        subject: &Subject<'_>,
        make: impl FnOnce() -> Result<Evaluated, String>,
    ) -> Result<(Evaluated, bool), String> {
        let Some(path) = self.path(subject) else { return Ok((make()?, false)) };
        let kept = std::fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok());
        if let Some(evaluated) = kept {
            return Ok((evaluated, true));
        }
        let evaluated = make()?;
        if let Ok(bytes) = serde_json::to_vec(&evaluated) {
            // Not kept is not wrong: the next run searches again.
            let _ = write_whole(&path, &bytes);
        }
        Ok((evaluated, false))
    }

    fn path(&self, subject: &Subject<'_>) -> Option<PathBuf> {
        let dir = self.dir.as_ref()?;
        let run = subject.run;
        // Given tables are not digested.
        if matches!(run.config.predictor, PredictorConfig::Table(_)) {
            return None;
        }
        let key = serde_json::json!({
            "sources": env!("VIDUR_SOURCES"),
            "config": run.config,
            "model": run.model,
            "device": run.device,
            "provenance": run.provenance,
            "natural_rate": subject.template.natural_rate(),
            "rule": format!("{:?}", subject.rule),
            "search": subject.search,
        });
        let mut hash = Sha256::new();
        hash.update(digest(&serde_json::to_vec(&key).ok()?));
        for request in &subject.template.base().requests {
            hash.update(request.arrived_at.as_ns().to_le_bytes());
            hash.update(request.prefill_tokens.to_le_bytes());
            hash.update(request.decode_tokens.to_le_bytes());
        }
        let name = digest(&hash.finalize());
        Some(dir.join(&name[..2]).join(format!("{name}.json")))
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.persist(path).map(|_| ()).map_err(|e| e.error)
}
