//! The CSV contract: which columns a profile has, where files lie, how they are read and written.
//! The schema is microsoft/vidur's, so its public profiles are read as they are; `docs/data-format.md`
//! states it for people.

pub mod journal;
pub mod manifest;
pub mod schema;
pub mod write;
