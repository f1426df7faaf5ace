//! Summaries and records as files and text: CSV, JSON, Chrome trace, SVG, a table for the terminal.

pub mod batch_csv;
pub mod cdf_svg;
pub mod chrome_trace;
pub mod fit_svg;
pub mod html;
pub mod plots;
pub mod request_csv;
pub mod run_dir;
pub mod scatter_svg;
pub mod text;
pub mod vllm_bench;
