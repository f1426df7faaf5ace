//! What was seen, written for people: files are complete or absent, never half written.

pub mod files;
pub mod fit_svg;
