//! What a run looked like to its users and to its operators. An observer keeps records; a summary
//! condenses them. `docs/metrics.md` defines every figure with its unit.

mod recorder;
mod summary;

pub use recorder::{Recorder, RequestRecord, StageSpan};
pub use summary::{Distribution, KvUse, Latency, Summary, Throughput};
