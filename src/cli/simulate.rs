//! `vidur simulate`: a config in, latencies and throughput out.

mod compare;
mod files;

use super::Failure;
use crate::metrics::{OperatorTimes, RecordOptions, Recorder, RequestDetail, Summary};
use crate::predictor::{PredictorConfig, TableCache};
use crate::report::{plots, text};
use crate::run::{Run, RunConfig};
use crate::sim::{Outcome, Silent, SimError};
use crate::spec::catalog::Catalog;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Simulate serving and report latency and throughput.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --config the built-in example runs: Llama-3.1-8B on one H100 (h100_sxm). \
`vidur simulate --print-config` shows every field and its value."
)]
pub struct Args {
    /// YAML file that describes the run; fields it leaves out keep their defaults
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Change one field: path=value, the value in YAML; may be repeated
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Model: Hugging Face id, alias or model file (same as --set model=…)
    #[arg(long)]
    model: Option<String>,
    /// Device SKU (same as --set cluster.sku=…)
    #[arg(long)]
    sku: Option<String>,
    /// Folder of profiles (same as --set profiling_dir=…); several, separated as in PATH, are
    /// searched in this order
    #[arg(long, value_name = "DIR")]
    profiling_dir: Option<PathBuf>,
    /// New folder for the results [default: runs/<time>-<model>-<sku>]
    #[arg(long, short, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Also write the results in another tool's format
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with = "no_output")]
    format: Option<Format>,
    /// Request by request in that file: lengths, times to first token, gaps, start times
    #[arg(long, requires = "format")]
    save_detailed: bool,
    /// Print the table only, write no files
    #[arg(long)]
    no_output: bool,
    /// Run every combination of these values and print one table with the differences: path=a,b,…;
    /// may be repeated
    #[arg(long, value_name = "PATH=A,B", conflicts_with_all = ["format", "no_output"])]
    compare: Vec<String>,
    /// Seeds of each case that --compare runs
    #[arg(long, default_value_t = 5, value_name = "N", requires = "compare", value_parser = clap::value_parser!(u32).range(2..=1000))]
    seeds: u32,
    /// Print the config that a run would write to its config.yml, defaults resolved, and stop
    #[arg(long)]
    print_config: bool,
    /// Folder of models and devices that take precedence over the built-in ones
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Fit anew, and keep no fitted tables for the next run (only `forest` is slow enough to keep
    /// them: in $VIDUR_CACHE_DIR, else ~/.cache/vidur)
    #[arg(long)]
    no_cache: bool,
}

/// A result file of another tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// `vllm bench serve`: vllm_bench.json
    VllmBench,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let config = load(&args)?;
    let catalog = Catalog::open(args.data_dir.as_deref());
    if args.print_config {
        let config = config.resolved(&catalog).map_err(Failure::user)?;
        let text = serde_saphyr::to_string(&config).map_err(Failure::internal)?;
        return super::table::print(&text);
    }
    if args.save_detailed && config.metrics.requests == RequestDetail::Sampled {
        return Err(Failure::user(
            "--save-detailed needs every request, and metrics.requests is sampled; set it to all",
        ));
    }
    let started = Instant::now();
    let cache = if args.no_cache { TableCache::off() } else { TableCache::of_user() };
    if !args.compare.is_empty() {
        let dir = args.output_dir.as_deref();
        compare::run(&config, &args.compare, args.seeds, dir, &catalog, &cache)?;
        super::note_cache(&cache);
        return Ok(());
    }
    let run = Run::resolve_with(config, &catalog, &cache).map_err(Failure::user)?;
    super::note_cache(&cache);
    for note in &run.workload.notes {
        eprintln!("note: {note}");
    }
    for warning in &run.provenance.warnings {
        eprintln!("warning: {warning}");
    }
    // Taken before the work, so that a folder that cannot be written costs no time.
    let name = format!("{}-{}", run.model.short_name(), run.device.name);
    let dir = match args.no_output {
        true => None,
        false => Some(super::new_run_dir(args.output_dir.as_deref(), &name)?),
    };
    let options = RecordOptions {
        max_spans: if dir.is_some() { files::max_spans(&run) } else { 0 },
        token_lists: args.save_detailed,
        ..run.record_options()
    };
    let (outcome, recorder, operators) = execute(&run, options).map_err(|e| match e {
        SimError::Stuck { .. } => Failure::internal(e),
        _ => Failure::user(e),
    })?;
    let stages = run.config.cluster.pipeline_parallel;
    let mut summary = Summary::of(&recorder, stages, outcome.end);
    summary.operators = operators.as_ref().map(OperatorTimes::shares);
    let took = started.elapsed().as_secs_f64();

    let mut shown = headline(&run);
    shown.push('\n');
    shown.push_str(&text::table(&summary));
    shown.push_str(&caveats(&run, &summary));
    if let Some(operators) = &summary.operators {
        shown.push_str(&format!("\n{}\n", text::operators(operators)));
    }
    if let Some(dir) = dir {
        let wanted = files::Wanted { format: args.format, save_detailed: args.save_detailed };
        let path = files::write(&dir, &run, &recorder, &summary, wanted)
            .and_then(|()| operators.map_or(Ok(()), |times| plots::operators(&dir, &times)))
            .and_then(|()| dir.finish())
            .map_err(Failure::user)?;
        shown.push_str(&format!("{:<12} {}\n", "written to", path.display()));
    }
    super::table::print(&shown)?;
    if std::io::stderr().is_terminal() {
        let n = outcome.requests.len();
        eprintln!("simulated {n} requests in {took:.2} s, reading and fitting included");
    }
    Ok(())
}

/// Simulates; also gives the time of each operator where the config asks for it.
fn execute(
    run: &Run,
    options: RecordOptions,
) -> Result<(Outcome, Recorder, Option<OperatorTimes<'_>>), SimError> {
    if run.config.metrics.operators {
        let times = OperatorTimes::new(&*run.cost, run.config.metrics.plots);
        let (outcome, recorder, times) = run.execute_with(options, times)?;
        return Ok((outcome, recorder, Some(times)));
    }
    let (outcome, recorder, Silent) = run.execute_with(options, Silent)?;
    Ok((outcome, recorder, None))
}

/// The config file with the flags and `--set`s applied, in this order.
fn load(args: &Args) -> Result<RunConfig, Failure> {
    let (text, name) = config_text(args.config.as_deref())?;
    let flag = |field: &str, value: String| format!("{field}={}", serde_json::Value::String(value));
    let mut sets = Vec::new();
    sets.extend(args.model.clone().map(|m| flag("model", m)));
    sets.extend(args.sku.clone().map(|s| flag("cluster.sku", s)));
    let dir = args.profiling_dir.as_ref().map(|d| d.to_string_lossy().into_owned());
    sets.extend(dir.map(|d| flag("profiling_dir", d)));
    sets.extend(args.set.iter().cloned());
    RunConfig::load(&text, &name, &sets).map_err(Failure::user)
}

/// Text and name of the config file; both empty without one.
pub(super) fn config_text(path: Option<&Path>) -> Result<(String, String), Failure> {
    match path {
        None => Ok((String::new(), String::new())),
        Some(path) => Ok((read(path, "a YAML config file")?, path.display().to_string())),
    }
}

/// The text of a file that the user named; `expected` says what it should be.
pub(super) fn read(path: &Path, expected: &str) -> Result<String, Failure> {
    let failed = |cause: &dyn std::fmt::Display| {
        Failure::user(format!("{}: {cause}; expected {expected}", path.display()))
    };
    if path.is_dir() {
        return Err(failed(&"is a directory"));
    }
    std::fs::read_to_string(path).map_err(|e| failed(&e))
}

pub fn headline(run: &Run) -> String {
    let c = &run.config.cluster;
    let parts = [
        (c.num_replicas, format!("{} replicas", c.num_replicas)),
        (c.tensor_parallel, format!("TP {}", c.tensor_parallel)),
        (c.pipeline_parallel, format!("PP {}", c.pipeline_parallel)),
    ];
    let parts: Vec<String> = parts.into_iter().filter(|p| p.0 > 1).map(|p| p.1).collect();
    let spread = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
    let what = format!(
        "{} on {}{spread}, {} scheduler",
        run.model.name,
        run.device.name,
        run.config.scheduler.name()
    );
    format!("{}\n{}\n", text::wrap(&what), text::wrap(&run.workload.description))
}

/// What a reader must know before believing the figures.
fn caveats(run: &Run, summary: &Summary) -> String {
    let mut out = format!("{:<12} {}\n", "step times", run.provenance.description);
    for line in run.provenance.imported() {
        out.push_str(&format!("{:<12} {line}\n", ""));
    }
    if let PredictorConfig::Roofline(settings) = &run.config.predictor {
        out.push_str(&format!("{:<12} {settings}\n", ""));
    } else if summary.extrapolated_percent > 0.0 {
        out.push_str(&format!(
            "{:<12} {:.1} % of the busy time was predicted outside the measured range\n",
            "", summary.extrapolated_percent
        ));
    }
    if !run.provenance.not_modelled.is_empty() {
        let names: Vec<String> =
            run.provenance.not_modelled.iter().map(ToString::to_string).collect();
        out.push_str(&format!("{:<12} not in the profile, taken as 0: {}\n", "", names.join(", ")));
    }
    out
}
