//! `vidur validate`: does the prediction come true?

mod layer;
mod llmservingsim;
mod silicon;
mod silicon_csv;

use super::Failure;
use clap::Subcommand;
use std::io::Write as _;
use std::path::Path;

/// Compare predictions with what really runs.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Run whole decoder layers on this machine, at shapes that were not profiled, and compare them
    /// with the sum of their predicted operators.
    Layer(layer::Args),
    /// Simulate serving runs that NVIDIA measured on H100, H200, B200 and GB200 from the operator timings
    /// that it publishes beside them, and compare.
    Silicon(silicon::Args),
    /// Replay LLMServingSim's recorded run of vLLM from the operator timings beside it, and compare.
    Llmservingsim(llmservingsim::Args),
}

pub fn run(args: Args) -> Result<(), Failure> {
    match args.what {
        What::Layer(args) => layer::run(&args),
        What::Llmservingsim(args) => llmservingsim::run(&args),
        What::Silicon(args) => silicon::run(&args),
    }
}

/// Writes a file whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path).map(|_| ()).map_err(|e| e.error)
}
