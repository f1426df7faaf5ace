//! Measures operators on real devices: [`plan`] says which shapes in which order, a [`backend`]
//! times one shape, [`runner`] strings them together so that a kill loses nothing, and
//! [`compute`] turns samples into the rows of mlp.csv and attention.csv.

pub mod backend;
mod budget;
pub mod compute;
pub mod host;
pub mod import;
pub mod plan;
pub mod runner;
mod session;
