//! What a run looked like to its users and to its operators. An observer keeps records; a summary
//! condenses them. `docs/metrics.md` defines every figure with its unit.

mod batches;
mod config;
mod distribution;
mod flops;
mod levels;
mod operators;
mod peaks;
mod record;
mod recorder;
mod replica;
mod sampled;
mod series;
mod summary;
mod together;

pub use batches::{BatchDistributions, BatchSketches};
pub use config::{Dialect, MetricsConfig, RequestDetail, Slo};
pub use distribution::Distribution;
pub use flops::StageFlops;
pub use levels::Levels;
pub use operators::{OperatorShare, OperatorTimes};
pub use peaks::Peaks;
pub use record::{Figure, RequestRecord, StageSpan};
pub use recorder::{Course, RecordOptions, Recorder};
pub use replica::{KvTrack, ReplicaUse, StageUse};
pub use sampled::{Sampled, Totals};
pub use series::{Counts, Point, Series};
pub use summary::{
    Goodput, KvUse, Latency, Level, ReplicaSummary, StageSummary, Summary, Throughput,
};
