//! All integration tests in one binary. Names read as sentences; snapshots are refreshed with
//! `INSTA_UPDATE=always cargo test` and reviewed in the diff.

mod capacity;
mod capacity_search;
mod cli;
mod conformance;
mod conformance_forest;
mod cpu_overhead;
mod explain;
mod metrics;
mod metrics_files;
mod neuron;
mod offline_engine;
mod profile_tools;
mod profiler_traces;
mod report;
mod sim_properties;
mod sim_scenarios;
mod support;
mod tidy;
mod two_nodes;
