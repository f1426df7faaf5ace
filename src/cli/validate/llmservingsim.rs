//! `vidur validate llmservingsim`: a recorded run of vLLM against a simulation of it.

use crate::cli::Failure;
use crate::cli::table::{self, number, text};
use crate::validate::llmservingsim::{Comparison, compare};
use std::path::PathBuf;

/// Arguments as typed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder with bench/meta.json, bench/requests.jsonl and profile/*.csv
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Device SKU of the run, for what its timings do not cover
    #[arg(long, default_value = "rtx_4090")]
    sku: String,
    /// Folder of models and devices that take precedence over the built-in ones
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let catalog = crate::cli::devices::open(args.data_dir.as_deref())?;
    let comparison = compare(&args.dir, &catalog, &args.sku).map_err(Failure::user)?;
    table::print(&report(&comparison))
}

fn report(c: &Comparison) -> String {
    let columns = [text("figure"), number("measured"), number("simulated"), number("error")];
    let rows: Vec<Vec<String>> = c
        .figures
        .iter()
        .map(|f| {
            let digits = if f.measured < 1000.0 { 2 } else { 0 };
            let error = (f.simulated / f.measured - 1.0) * 100.0;
            vec![
                f.name.to_owned(),
                format!("{:.digits$}", f.measured),
                format!("{:.digits$}", f.simulated),
                format!("{error:+.2} %"),
            ]
        })
        .collect();
    format!(
        "{}\n\n{}request by request, median error: TTFT {:.1} %, E2E {:.1} %\n",
        c.description,
        table::render(&columns, &rows, table::window_width()),
        100.0 * c.ttft_median,
        100.0 * c.e2e_median
    )
}
