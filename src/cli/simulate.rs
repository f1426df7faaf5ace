//! `vidur simulate`: a config in, latencies and throughput out.

use super::Failure;
use crate::metrics::{Recorder, RequestRecord, Summary};
use crate::predictor::{PredictorConfig, TableCache};
use crate::report::run_dir::{RunDir, RunDirError};
use crate::report::{cdf_svg, chrome_trace, request_csv, text};
use crate::run::{Run, RunConfig};
use crate::sim::Silent;
use crate::spec::catalog::Catalog;
use crate::units::SimTime;
use serde_json::json;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Batches beyond which no trace is written unless it is asked for: viewers do not open more.
const MAX_TRACE_SPANS: u64 = 300_000;

/// Simulate serving and report latency and throughput.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --config the built-in example runs: a small model on a CPU that we \
measured. `vidur simulate --print-config` shows every field and its value."
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
    /// Print the table only, write no files
    #[arg(long)]
    no_output: bool,
    /// Print the resolved config and stop
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

pub fn run(args: Args) -> Result<(), Failure> {
    let config = load(&args)?;
    if args.print_config {
        let text = serde_saphyr::to_string(&config).map_err(Failure::internal)?;
        return super::table::print(&text);
    }
    let started = Instant::now();
    let catalog = Catalog::open(args.data_dir.as_deref());
    let cache = if args.no_cache { TableCache::off() } else { TableCache::of_user() };
    let run = Run::resolve_with(config, &catalog, &cache).map_err(Failure::user)?;
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
    let (outcome, recorder, Silent) = run.execute(dir.is_some(), Silent).map_err(|e| match e {
        crate::sim::SimError::Stuck { .. } => Failure::internal(e),
        _ => Failure::user(e),
    })?;
    let stages = run.config.cluster.pipeline_parallel;
    let summary = Summary::of(&recorder, stages, outcome.end);
    let took = started.elapsed().as_secs_f64();

    let mut shown = headline(&run);
    shown.push('\n');
    shown.push_str(&text::table(&summary));
    shown.push_str(&caveats(&run, &summary));
    if let Some(dir) = dir {
        let path = write_files(&dir, &run, &recorder, &summary)
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
        Some(path) => Ok((read(path)?, path.display().to_string())),
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let failed = |cause: &dyn std::fmt::Display| {
        Failure::user(format!("{}: {cause}; expected a YAML config file", path.display()))
    };
    if path.is_dir() {
        return Err(failed(&"is a directory"));
    }
    std::fs::read_to_string(path).map_err(|e| failed(&e))
}

fn headline(run: &Run) -> String {
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

fn write_files(
    dir: &RunDir,
    run: &Run,
    recorder: &Recorder,
    summary: &Summary,
) -> Result<(), RunDirError> {
    dir.write("request_metrics.csv", |out| request_csv::write(&recorder.requests, out))?;
    dir.write("summary.json", |out| {
        let value = json!({
            "vidur_version": env!("CARGO_PKG_VERSION"),
            "deployment": run.report(),
            "summary": summary,
            "provenance": run.provenance,
        });
        serde_json::to_writer_pretty(&mut *out, &value)?;
        writeln!(out)
    })?;
    dir.write("config.yml", |out| {
        let text = serde_saphyr::to_string(&run.config).map_err(std::io::Error::other)?;
        out.write_all(text.as_bytes())
    })?;
    if recorder.spans.len() as u64 <= MAX_TRACE_SPANS {
        dir.write("chrome_trace.json", |out| chrome_trace::write(&recorder.spans, out))?;
    }
    let values = |value: fn(&RequestRecord) -> Option<f64>| -> Vec<f64> {
        recorder.requests.iter().filter_map(value).collect()
    };
    for (name, title, values) in [
        ("ttft_cdf.svg", "Time to first token", values(|r| Some(r.ttft_ms()))),
        ("tpot_cdf.svg", "Time per output token", values(RequestRecord::tpot_ms)),
        ("e2e_cdf.svg", "End-to-end latency", values(|r| Some(r.e2e_ms()))),
    ] {
        let svg = cdf_svg::draw(title, values)
            .map_err(|cause| RunDirError::Io { path: name.to_owned(), cause })?;
        if let Some(svg) = svg {
            dir.write(name, |out| out.write_all(svg.as_bytes()))?;
        }
    }
    debug_assert!(recorder.requests.iter().all(|r| r.completed_at < SimTime::NEVER));
    Ok(())
}
