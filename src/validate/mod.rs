//! What engines measured against what the simulator says of the same runs.

pub mod client;
pub mod llmservingsim;
pub mod silicon;
