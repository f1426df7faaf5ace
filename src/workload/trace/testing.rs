//! Traces from text, for the tests of every format.

use super::{Lengths, TraceConfig, lengths_with_notes, read_trace};
use crate::workload::{RequestSpec, Workload};
use std::path::Path;

/// The whole file as it is.
pub(super) fn config(file: &Path) -> TraceConfig {
    TraceConfig::new(file)
}

/// Reads `text`, with the file called `t.csv` in messages.
pub(super) fn read_text(
    text: &str,
    change: impl FnOnce(&mut TraceConfig),
) -> Result<Workload, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let mut config = config(file.path());
    change(&mut config);
    let renamed = |text: String| text.replace(&file.path().display().to_string(), "t.csv");
    let mut workload = read_trace(&config).map_err(|e| renamed(e.to_string()))?;
    workload.notes = workload.notes.into_iter().map(renamed).collect();
    Ok(workload)
}

/// Lengths and notes of `text`.
pub(super) fn read_lengths_of(text: &str) -> Result<Lengths, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let renamed = |text: String| text.replace(&file.path().display().to_string(), "t.csv");
    let lengths =
        lengths_with_notes(file.path(), None, None).map_err(|e| renamed(e.to_string()))?;
    Ok(Lengths { pairs: lengths.pairs, notes: lengths.notes.into_iter().map(renamed).collect() })
}

/// Arrival in nanoseconds, prompt and output of each request.
pub(super) fn ns_and_tokens(workload: &Workload) -> Vec<(u64, u32, u32)> {
    let request = |r: &RequestSpec| (r.arrived_at.as_ns(), r.prefill_tokens, r.decode_tokens);
    workload.requests.iter().map(request).collect()
}
