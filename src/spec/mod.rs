//! What exists: models, devices, nodes, parallelism, and the operators that a model runs on them.

pub mod catalog;
pub mod device;
pub mod hf;
pub mod memory;
pub mod model;
pub mod ops;
pub mod parallel;
pub mod precision;
