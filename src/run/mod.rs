//! A run: its config file, what that resolves to, and running it. Where profiling's data,
//! predictor, workload and simulator meet.

pub mod compare;
mod config;
pub mod lookup;
mod overrides;
mod pool;
mod resolve;

pub use config::{
    ClusterConfig, KvCacheConfig, KvSize, RunConfig, VidurCompat, VidurMemoryPlanner,
};
pub use lookup::ResolveError;
pub use overrides::ConfigError;
pub use pool::Pool;
pub use resolve::{DeploymentReport, KvReport, Run};
