//! The discrete-event simulator: requests arrive, a router spreads them over replicas, each
//! replica's scheduler forms batches, each batch passes the pipeline stages, and the cost model says
//! how long each stage takes. Nothing here reads a clock, a file or the environment: the same
//! configuration, cost model and workload give the same facts in the same order.
//!
//! Order at one instant, from first to last: arrivals in workload order are routed after every
//! stage that ends at that instant has ended, in the order in which the stages began; then each
//! replica that anything happened to forms new batches, by ascending id. So a decision knows
//! everything that happened up to and at its time.
//!
//! A batch of decoding requests that nothing can change (no arrival, no completion, room in the
//! cache) is not taken apart and formed again for every token: the engine runs such a stretch in
//! one go, step by step in time and to the same nanosecond (`stretch.rs`).

mod arrivals;
mod batch;
mod check;
mod demand;
mod engine;
mod host;
mod invariants;
mod kv_blocks;
mod observer;
mod prefix_cache;
mod request;
mod router;
mod scheduler;
mod stretch;

pub use batch::{Batch, Entry};
pub use check::SimError;
pub use engine::{Outcome, SimConfig, run};
pub use host::HostTime;
pub use invariants::Invariants;
pub use kv_blocks::{FoundPrefix, KvBlocks};
pub use observer::{Observer, PUNCTUALITY, Repeat, Silent};
pub use request::{Progress, Request};
pub use router::RouterConfig;
pub use scheduler::{
    BatchLimits, Defects, LightllmConfig, OrcaConfig, SarathiConfig, SchedulerConfig, SglangConfig,
    TrtllmConfig, Usage, VllmConfig, VllmNeuronConfig, VllmV1Config,
};
