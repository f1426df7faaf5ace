//! The CSV contract: which columns a profile has, where files lie, how they are read and written.
//! The schema is microsoft/vidur's, so its public profiles are read as they are; `docs/data-format.md`
//! states it for people.

pub mod attention;
pub mod cpu;
pub mod cpu_file;
pub mod graph;
pub mod graph_read;
pub mod journal;
pub mod location;
#[cfg(test)]
mod location_tests;
pub mod manifest;
pub mod network;
pub mod read;
#[cfg(test)]
mod read_tests;
pub mod schema;
mod table;
pub mod write;

pub use table::ReadError;
