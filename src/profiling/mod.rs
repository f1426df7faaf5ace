//! Measures operators on real devices: [`plan`] says which shapes in which order, a [`backend`]
//! times one shape, [`runner`] strings them together so that a kill loses nothing, and
//! [`compute`] turns samples into the rows of mlp.csv and attention.csv. [`detect`] says what this
//! machine is, by asking the vendors' [tools](tool).

pub mod backend;
mod budget;
pub mod compute;
pub mod cpu_overhead;
pub mod detect;
pub mod graph;
pub mod host;
pub mod import;
pub mod network;
pub mod plan;
pub mod runner;
mod session;
pub mod tool;
pub mod worker;

#[cfg(test)]
mod fuzz_tests;
