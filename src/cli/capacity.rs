//! `vidur capacity`: a plan in, the configuration to run out.

mod files;
mod text;

use super::Failure;
use crate::capacity::{Plan, ResultCache, Study, exclusions, rank};
use crate::predictor::{TableCache, user_cache};
use crate::spec::catalog::Catalog;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Instant;

/// Find the cheapest configuration that serves a workload within its objectives.
#[derive(Debug, clap::Args)]
#[command(after_help = "docs/capacity.md describes plans, results and large searches.")]
pub struct Args {
    /// YAML file that describes the plan
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
    /// New folder for the results [default: runs/<time>-capacity-<plan>]
    #[arg(long, short, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Print the table only, write no files
    #[arg(long)]
    no_output: bool,
    /// Rows of the table
    #[arg(long, default_value_t = 10, value_name = "N")]
    top: usize,
    /// Print summary.json instead of the table
    #[arg(long)]
    json: bool,
    /// Search everything anew, and keep nothing for the next run (results are kept in
    /// $VIDUR_CACHE_DIR, else ~/.cache/vidur)
    #[arg(long)]
    no_cache: bool,
    /// Folder of models, devices and nodes that take precedence over the built-in ones
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let started = Instant::now();
    let text = super::simulate::read(&args.plan, "a YAML plan")?;
    let plan = Plan::load(&text, &args.plan.display().to_string()).map_err(Failure::user)?;
    let catalog = Catalog::open(args.data_dir.as_deref());
    let (tables, results) = match args.no_cache {
        true => (TableCache::off(), ResultCache::off()),
        false => (
            TableCache::of_user(),
            user_cache("capacity").map_or_else(ResultCache::off, ResultCache::in_dir),
        ),
    };
    let study = Study::new(plan, &catalog, tables, results).map_err(Failure::user)?;
    let tasks = study.tasks().map_err(Failure::user)?;
    let name = args.plan.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    let dir = match args.no_output {
        true => None,
        false => Some(super::new_run_dir(args.output_dir.as_deref(), &format!("capacity-{name}"))?),
    };
    let bar = progress(tasks.len() as u64);
    let mut rows = study.rows(&tasks, &|| bar.inc(1));
    bar.finish_and_clear();
    let groups = rank(&mut rows, study.plan.objective);
    let exclusions = exclusions(&rows);
    let results =
        files::Results { study: &study, rows: &rows, groups: &groups, exclusions: &exclusions };
    let mut shown = text::tables(&results, args.top);
    if let Some(dir) = dir {
        let path =
            files::write(&dir, &results).and_then(|()| dir.finish()).map_err(Failure::user)?;
        shown.push_str(&format!("{:<12} {}\n", "written to", path.display()));
    }
    if args.json {
        super::table::print_json(&files::summary(&results))?;
    } else {
        super::table::print(&shown)?;
    }
    if std::io::stderr().is_terminal() {
        let (kept, searched) = study.counts();
        eprintln!(
            "{searched} searches in {:.1} s, {kept} kept from earlier runs",
            started.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

/// A bar on stderr, where that is a terminal.
fn progress(length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed}, {eta} left") {
        bar.set_style(style);
    }
    bar
}
