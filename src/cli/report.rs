//! `vidur report`: a run or a plan as one HTML file.

mod plan;
mod run;

use super::Failure;
use crate::predictor::TableCache;
use crate::spec::catalog::Catalog;
use serde_json::Value;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Write a run, or the answers of a plan, as one HTML file that needs no network.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of a run or of a plan's results
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// The file [default: report.html in the folder]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Folder of models and devices that take precedence over the built-in ones
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let path = args.folder.join("summary.json");
    let text = std::fs::read_to_string(&path).map_err(|e| {
        Failure::user(format!(
            "{}: {e}; expected the folder of a finished `vidur simulate` or `vidur capacity` run",
            path.display()
        ))
    })?;
    let summary: Value = serde_json::from_str(&text)
        .map_err(|e| Failure::user(format!("{}: {e}; expected a summary", path.display())))?;
    let html = match summary["kind"].as_str() {
        Some("capacity") => plan::page(&args.folder, &summary)?,
        _ => {
            let catalog = Catalog::open(args.data_dir.as_deref());
            run::page(&args.folder, &summary, &catalog, &TableCache::of_user())?
        }
    };
    let output = args.output.unwrap_or_else(|| args.folder.join("report.html"));
    write(&output, &html)?;
    super::table::print(&format!("written to   {}\n", output.display()))
}

/// Writes the file beside its name and renames it: half a report is none.
fn write(path: &Path, html: &str) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::user(format!("cannot write {}: {e}", path.display()));
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(failed)?;
    file.write_all(html.as_bytes()).map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}
