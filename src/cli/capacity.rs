//! `vidur capacity`: a plan in, the configuration to run out.

mod answers;
mod files;
mod text;

use super::Failure;
use crate::capacity::{
    Part, Plan, ResultCache, Row, Shard, Study, Task, conclude, merge, plan_digest,
};
use crate::predictor::{TableCache, user_cache};
use crate::report::run_dir::RunDir;
use crate::spec::catalog::Catalog;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Find the cheapest configuration that serves a workload within its objectives.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "docs/capacity.md describes plans, results and large searches."
)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// YAML file that describes the plan
    #[arg(value_name = "PLAN", required = true)]
    plan: Option<PathBuf>,
    /// Search only the i-th of n parts, for `vidur capacity merge`; auto/n takes i from the array job
    /// that this runs in (Slurm, Kubernetes, AWS Batch), which is also looked at without this option
    #[arg(long, value_name = "I/N")]
    shard: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// What searching and merging have in common.
#[derive(Debug, clap::Args)]
struct Common {
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

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Put the parts of a search together.
    Merge {
        /// Folders that `vidur capacity --shard` wrote, one for each part
        #[arg(value_name = "DIR", required = true)]
        parts: Vec<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
}

pub fn run(args: Args) -> Result<(), Failure> {
    if let Some(Command::Merge { parts, common }) = args.command {
        return run_merge(&parts, &common);
    }
    let Some(path) = args.plan else {
        return Err(Failure::user("expected a plan"));
    };
    let started = Instant::now();
    let text = super::simulate::read(&path, "a YAML plan")?;
    let plan = Plan::load(&text, &path.display().to_string()).map_err(Failure::user)?;
    let shard =
        Shard::of(args.shard.as_deref(), |name| std::env::var(name).ok()).map_err(Failure::user)?;
    let name = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    let catalog = Catalog::open(args.common.data_dir.as_deref());
    let study = study(plan, &catalog, &args.common)?;
    let mut tasks = study.tasks().map_err(Failure::user)?;
    let searches = tasks.len();
    if let Some(shard) = shard {
        let part = format!("part {} of {}", shard.index + 1, shard.of);
        eprintln!("note: {part} of {searches} searches; `vidur capacity merge` puts them together");
        let mut place = 0..;
        tasks.retain(|_| place.next().is_some_and(|place| shard.has(place)));
    }
    let name = match shard {
        Some(shard) => format!("capacity-{name}-part{}of{}", shard.index + 1, shard.of),
        None => format!("capacity-{name}"),
    };
    let dir = folder(&args.common, &name)?;
    let bar = progress(tasks.len() as u64);
    let rows = study.rows(&tasks, &|| bar.inc(1));
    bar.finish_and_clear();
    match shard {
        Some(shard) => {
            let part = Part {
                vidur_version: env!("CARGO_PKG_VERSION").to_owned(),
                plan_digest: plan_digest(&study.plan),
                plan: study.plan.clone(),
                shard,
                searches,
                rows,
            };
            let Some(dir) = dir else {
                return Err(Failure::user("a part is for merging; leave out --no-output"));
            };
            let path = files::write_part(&dir, &part)
                .and_then(|()| dir.finish())
                .map_err(Failure::user)?;
            super::table::print(&format!("{:<12} {}\n", "written to", path.display()))?;
        }
        None => finish(&study, &tasks, rows, dir, &args.common)?,
    }
    timing(&study, started);
    Ok(())
}

fn run_merge(folders: &[PathBuf], common: &Common) -> Result<(), Failure> {
    let started = Instant::now();
    let parts = folders.iter().map(|f| read_part(f)).collect::<Result<_, _>>()?;
    let (plan, rows) = merge(parts).map_err(Failure::user)?;
    let catalog = Catalog::open(common.data_dir.as_deref());
    let study = study(plan, &catalog, common)?;
    let tasks = study.tasks().map_err(Failure::user)?;
    if tasks.len() != rows.len() {
        return Err(Failure::user(format!(
            "the parts hold {} searches, and the plan comes to {} here: models and devices of the \
             catalogue differ from those of the jobs; give their --data-dir",
            rows.len(),
            tasks.len()
        )));
    }
    let dir = folder(common, "capacity-merged")?;
    finish(&study, &tasks, rows, dir, common)?;
    timing(&study, started);
    Ok(())
}

fn read_part(folder: &Path) -> Result<(String, Part), Failure> {
    let path = if folder.is_dir() { folder.join("part.json") } else { folder.to_owned() };
    let name = path.display().to_string();
    let expected = "expected a folder that `vidur capacity --shard` wrote";
    let bytes =
        std::fs::read(&path).map_err(|e| Failure::user(format!("{name}: {e}; {expected}")))?;
    let part = serde_json::from_slice(&bytes)
        .map_err(|e| Failure::user(format!("{name}: {e}; {expected}")))?;
    Ok((name, part))
}

fn study<'a>(plan: Plan, catalog: &'a Catalog, common: &Common) -> Result<Study<'a>, Failure> {
    let (tables, results) = match common.no_cache {
        true => (TableCache::off(), ResultCache::off()),
        false => (
            TableCache::of_user(),
            user_cache("capacity").map_or_else(ResultCache::off, ResultCache::in_dir),
        ),
    };
    Study::new(plan, catalog, tables, results).map_err(Failure::user)
}

/// The folder of the results, taken before the work, so that one that cannot be written costs no time.
fn folder(common: &Common, name: &str) -> Result<Option<RunDir>, Failure> {
    if common.no_output {
        return Ok(None);
    }
    super::new_run_dir(common.output_dir.as_deref(), name).map(Some)
}

/// Draws the conclusions, writes and prints.
fn finish(
    study: &Study<'_>,
    tasks: &[Task],
    mut rows: Vec<Row>,
    dir: Option<RunDir>,
    common: &Common,
) -> Result<(), Failure> {
    let bar = progress(0);
    let answers = conclude(study, tasks, &mut rows, &|| bar.tick()).map_err(Failure::user)?;
    bar.finish_and_clear();
    let results = files::Results { study, tasks, rows: &rows, answers: &answers };
    if answers.groups.iter().all(|group| group.best.is_none()) {
        return Err(Failure::User(text::nothing(&results)));
    }
    let mut shown = text::tables(&results, common.top);
    if let Some(dir) = dir {
        let path =
            files::write(&dir, &results).and_then(|()| dir.finish()).map_err(Failure::user)?;
        shown.push_str(&format!("{:<12} {}\n", "written to", path.display()));
    }
    if common.json {
        return super::table::print_json(&files::summary(&results));
    }
    super::table::print(&shown)
}

fn timing(study: &Study<'_>, started: Instant) {
    if std::io::stderr().is_terminal() {
        let (kept, searched) = study.counts();
        let took = started.elapsed().as_secs_f64();
        eprintln!("{searched} searches in {took:.1} s, {kept} kept from earlier runs");
    }
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
