//! vidur: how fast, at what latency and at what price a large language model will serve on
//! hardware you have not bought yet.
//!
//! One way through the data: [`profiling`] measures operators and writes CSV ([`dataset`]); a
//! [`predictor`] turns CSV into the time of a step ([`cost`], the seam); [`sim`] is a discrete-event
//! simulation that asks only for that time; [`metrics`] observes it and [`report`] writes what was
//! seen. `ARCHITECTURE.md` says which room may name which.

pub mod capacity;
pub mod cli;
pub mod cost;
pub mod dataset;
pub mod explain;
pub mod ids;
pub mod metrics;
pub mod predictor;
pub mod profiling;
pub mod report;
pub mod rng;
pub mod run;
pub mod sim;
pub mod spec;
pub mod stats;
pub mod units;
pub mod validate;
pub mod workload;
pub mod yaml;
