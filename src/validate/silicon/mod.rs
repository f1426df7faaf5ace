//! Measured serving runs of NVIDIA's package `aiconfigurator-core` (`systems/silicon_sample.csv`) against
//! simulations of the same runs, from operator timings in the same package.
//!
//! ```text
//! rows (what was measured) ─► setups (how: protocol, engine) ─► predict (simulate) ─► errors (compare)
//! ```
//!
//! Dense models served by whole replicas only: rows of disaggregated runs do not state the run fully.

pub mod calibrate;
pub mod errors;
pub mod predict;
pub mod rows;
pub mod scaled;
pub mod setups;
