//! `vidur profile`: time the operators of models on this machine.

mod all;
mod collectives;
mod cpu_overhead;
mod device;
mod graph;
mod progress;
mod summary;

use super::Failure;
use crate::dataset::write::{ProfileFiles, TableKind, write_atomically};
use crate::profiling::backend::{Backend, Effort, Peaks, Shape, Shard};
use crate::profiling::host::Host;
use crate::profiling::plan::{self, Grid, Limits};
use crate::profiling::runner::{self, Job, Outcome, RunError};
use crate::spec::device::DeviceSku;
use crate::spec::model::ModelSpec;
use crate::spec::parallel::Parallelism;
use clap::{Subcommand, ValueEnum};
use progress::Reporter;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Arguments of `vidur profile`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Time the operators that depend on the number of tokens: projections, norms, feed-forward.
    Mlp(MlpArgs),
    /// Time attention and the write to the KV cache, for prompts and for decoding.
    Attention(AttentionArgs),
    /// Measure everything that this machine can, and say what is missing to simulate it.
    All(all::Args),
    /// Time whole graphs, as devices that compile them run them: a graph per bucket.
    Graph(graph::Args),
    /// Time what devices do together (all-reduce, send and receive), or read what others timed.
    Collectives(collectives::Args),
    /// Time what an engine does on the host between the device's steps, by driving it.
    CpuOverhead(cpu_overhead::Args),
}

#[derive(Debug, clap::Args)]
struct MlpArgs {
    #[command(flatten)]
    common: Common,
    /// Most tokens in a batch.
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    max_tokens: u64,
}

#[derive(Debug, clap::Args)]
struct AttentionArgs {
    #[command(flatten)]
    common: Common,
    /// Most sequences in a decode batch.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 16))]
    max_batch_size: u64,
    /// Longest context in tokens; the model's own limit where that is shorter.
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=1 << 24))]
    max_context: u64,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Models, as `vidur models` lists them, or .yml files.
    #[arg(long, required = true, num_args = 1.., value_name = "ORG/MODEL")]
    models: Vec<String>,
    /// Tensor-parallel degrees: the shard of one device is timed.
    #[arg(long, value_delimiter = ',', default_values_t = [1], value_name = "N,N")]
    tensor_parallel: Vec<u32>,
    #[command(flatten)]
    device: device::DeviceArgs,
    /// Name of this machine's profiles [default: what `vidur devices --detect` says].
    #[arg(long, value_name = "NAME")]
    sku: Option<String>,
    /// Folder to write to.
    #[arg(long, short, default_value = "data/profiling", value_name = "DIR")]
    output_dir: PathBuf,
    /// Folder of models that take precedence over the built-in ones [default: data, where it exists].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Stop after this much time for each model: 90s, 10m, 1h 30m, or `none`.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = parse_budget)]
    budget: BudgetArg,
    /// Samples of every operator at every shape, at least, all rounds together.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeats: u32,
    /// Measure every shape this many times, spread over the budget, and pool the samples: machines
    /// drift. What the budget does not allow is left out, the last rounds first.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Which shapes: spaced evenly in log scale, or microsoft/vidur's thousands.
    #[arg(long, value_enum, default_value_t = GridArg::Log)]
    grid: GridArg,
    /// Measure anew what is there already.
    #[arg(long)]
    force: bool,
    /// Print the plan and what it will cost; measure and write nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GridArg {
    /// Neighbours differ by a factor of at most 1.5 (tokens) or 2 (attention).
    Log,
    /// The grid of microsoft/vidur's profilers.
    Vidur,
}

/// Time to spend; `None` is all it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BudgetArg(Option<Duration>);

fn parse_budget(text: &str) -> Result<BudgetArg, String> {
    if text == "none" {
        return Ok(BudgetArg(None));
    }
    match humantime::parse_duration(text) {
        Ok(time) if !time.is_zero() => Ok(BudgetArg(Some(time))),
        Ok(_) => Err("no time at all; give for example 90s, 10m or none".into()),
        Err(e) => Err(format!("{e}; give for example 90s, 10m, 1h 30m or none")),
    }
}

/// How long something may be waited for. Bounded, so that no sum with a time of day overflows.
fn parse_limit(text: &str) -> Result<Duration, String> {
    const BOUNDS: std::ops::RangeInclusive<Duration> =
        Duration::from_millis(1)..=Duration::from_secs(30 * 24 * 3600);
    match humantime::parse_duration(text) {
        Ok(time) if BOUNDS.contains(&time) => Ok(time),
        Ok(_) => Err("expected 1ms to 30days".into()),
        Err(e) => Err(format!("{e}; give for example 90s, 10m or 2h")),
    }
}

/// Runs `vidur profile`.
pub fn run(args: Args) -> Result<(), Failure> {
    match args.what {
        What::Mlp(args) => {
            let limits = Limits { max_tokens: args.max_tokens, max_batch_size: 1, max_context: 2 };
            profile(TableKind::Mlp, &args.common, limits)
        }
        What::Attention(args) => {
            let (max_batch_size, max_context) = (args.max_batch_size, args.max_context);
            let limits = Limits { max_tokens: 1, max_batch_size, max_context };
            profile(TableKind::Attention, &args.common, limits)
        }
        What::All(args) => all::run(&args),
        What::Graph(args) => graph::run(&args),
        What::Collectives(args) => collectives::run(&args),
        What::CpuOverhead(args) => cpu_overhead::run(args),
    }
}

fn profile(kind: TableKind, args: &Common, limits: Limits) -> Result<(), Failure> {
    measure(kind, args, limits, &mut |job, outcome| {
        super::table::print(&summary::outcome(job, outcome))
    })
}

/// Measures every model and tells `done` about each.
fn measure(
    kind: TableKind,
    args: &Common,
    limits: Limits,
    done: &mut dyn FnMut(&Job, &Outcome) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let models = resolve_models(args)?;
    let host = Host::detect();
    let device::Chosen { mut backend, sku } =
        device::open(&args.device, args.data_dir.as_deref(), &host)?;
    let sku = args.sku.clone().unwrap_or(sku);
    let jobs = models
        .into_iter()
        .map(|model| job(kind, args, limits, model, &sku, &host))
        .collect::<Result<Vec<Job>, Failure>>()?;
    backend.take_notes().iter().for_each(|note| eprintln!("note: {note}"));
    let peaks = backend.peaks().map_err(Failure::machine)?;
    if args.dry_run {
        return jobs.iter().try_for_each(|job| {
            super::table::print(&summary::plan(
                job,
                args.grid.into(),
                limits_for(job, limits),
                peaks,
            ))
        });
    }
    let begin = Instant::now();
    for job in &jobs {
        let mut reporter = Reporter::new(job);
        let outcome = runner::run(job, backend.as_mut(), peaks, &|| begin.elapsed(), &mut reporter)
            .map_err(|e| match e {
                RunError::Lost { .. } => Failure::machine(e),
                _ => Failure::user(e),
            })?;
        drop(reporter);
        if super::devices::open(args.data_dir.as_deref())?.device(&job.sku).is_err() {
            write_device(job, backend.as_ref(), peaks)?;
        }
        done(job, &outcome)?;
    }
    Ok(())
}

/// Every model, with every degree checked, before any work starts.
fn resolve_models(args: &Common) -> Result<Vec<ModelSpec>, Failure> {
    let catalog = super::devices::open(args.data_dir.as_deref())?;
    let mut models: Vec<ModelSpec> = Vec::new();
    for name in &args.models {
        let model = catalog.model(name).map_err(Failure::user)?;
        for &tensor_parallel in &args.tensor_parallel {
            let split = Parallelism { tensor_parallel, pipeline_parallel: 1 };
            split.check(&model).map_err(|e| Failure::user(format!("--tensor-parallel: {e}")))?;
        }
        if !models.iter().any(|m| m.name == model.name) {
            models.push(model);
        }
    }
    Ok(models)
}

/// The limits that the model allows: a sequence is no longer than its positions.
fn limits_for(job: &Job, limits: Limits) -> Limits {
    let positions = u64::from(job.model.max_position_embeddings).max(2);
    // The last position belongs to the token that is being decoded.
    Limits { max_context: limits.max_context.min(positions - 1).max(2), ..limits }
}

fn job(
    kind: TableKind,
    args: &Common,
    limits: Limits,
    model: ModelSpec,
    sku: &str,
    host: &Host,
) -> Result<Job, Failure> {
    let files = ProfileFiles::new(&args.output_dir, sku, &model.name, kind)
        .map_err(|e| Failure::user(format!("{e}; give another --sku")))?;
    let mut degrees = args.tensor_parallel.clone();
    degrees.sort_unstable();
    degrees.dedup();
    let repeats = args.repeats;
    let mut job = Job {
        kind,
        model,
        degrees,
        shapes: Vec::new(),
        effort: Effort { repeats, ..Effort::default() },
        rounds: args.rounds,
        budget: args.budget.0,
        force: args.force,
        sku: sku.to_owned(),
        files,
        max_model_len: 0,
        command: command_line(),
        host_os: host.os.clone(),
    };
    let limits = limits_for(&job, limits);
    job.max_model_len = limits.max_context;
    job.shapes = match kind {
        TableKind::Mlp => plan::mlp_shapes(args.grid.into(), limits),
        TableKind::Attention => plan::attention_shapes(args.grid.into(), limits),
    };
    Ok(job)
}

impl From<GridArg> for Grid {
    fn from(grid: GridArg) -> Grid {
        match grid {
            GridArg::Log => Grid::Log,
            GridArg::Vidur => Grid::Vidur,
        }
    }
}

/// The command as typed, without the folder that the program lies in.
fn command_line() -> String {
    let mut words = vec![String::from("vidur")];
    words.extend(std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Time that all rounds of the whole plan would take, preparation not counted.
fn estimated_cost(job: &Job, peaks: Peaks) -> Duration {
    let effort = job.effort_per_round();
    let cost = |&tensor_parallel: &u32| {
        let shard = Shard { model: job.model.clone(), tensor_parallel };
        let of = |&shape: &Shape| plan::estimate(&shard, shape, peaks, effort);
        job.shapes.iter().map(of).fold(Duration::ZERO, Duration::saturating_add)
    };
    let round = job.degrees.iter().map(cost).fold(Duration::ZERO, Duration::saturating_add);
    round.saturating_mul(job.rounds)
}

/// Describes this machine beside its profiles, so that simulations can name it. A description that
/// is there already stays, unless the run is forced.
fn write_device(job: &Job, backend: &dyn Backend, peaks: Peaks) -> Result<(), Failure> {
    let path = job.files.device();
    if path.exists() && !job.force {
        return Ok(());
    }
    let device = backend.device();
    let date = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let day = date.split('T').next().unwrap_or_default();
    let gpu = device.backend == "torch-cuda";
    let (memory, n) =
        if gpu { ("as torch reports it", 8192) } else { ("/proc/meminfo of the machine", 1024) };
    let with = format!("{} threads, {}", device.threads, device.kernels.join(", "));
    let sku = DeviceSku {
        name: job.sku.clone(),
        aliases: Vec::new(),
        full_name: format!("{}, {} cores", device.name, device.cores),
        vendor: device.vendor.clone(),
        memory_bytes: device.memory_bytes,
        memory_bandwidth_bytes_per_s: peaks.bytes_per_s.round(),
        peak_flops_per_s: BTreeMap::from([(device.dtype, peaks.flops_per_s.round())]),
        link_bytes_per_s: None,
        power_w: None,
        cores: None,
        sources: vec![
            format!("memory: {memory}, {day}"),
            format!(
                "memory bandwidth: measured {day}, best copy between buffers larger than the caches, \
                 bytes read plus bytes written; {with}"
            ),
            format!("peak: measured {day}, best product of two {n} x {n} matrices; {with}"),
        ],
    };
    let text = serde_saphyr::to_string(&sku).map_err(Failure::internal)?;
    write_atomically(&path, text.as_bytes()).map_err(Failure::user)
}

/// `path` as a shell takes it.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, String> {
        let words = std::iter::once("profile").chain(line.split(' '));
        Line::try_parse_from(words).map(|l| l.args).map_err(|e| e.to_string())
    }

    #[test]
    fn models_degrees_and_budgets_are_read_as_people_write_them() {
        let args = parse("mlp --models a/b c/d --tensor-parallel 1,2,4 --budget 2m").unwrap();
        let What::Mlp(args) = args.what else { panic!("not mlp") };
        assert_eq!(args.common.models, ["a/b", "c/d"]);
        assert_eq!(args.common.tensor_parallel, [1, 2, 4]);
        assert_eq!(args.common.budget, BudgetArg(Some(Duration::from_secs(120))));
        assert_eq!(args.max_tokens, 2048);
        let none = parse("attention --models a/b --budget none").unwrap();
        let What::Attention(none) = none.what else { panic!("not attention") };
        assert_eq!(none.common.budget, BudgetArg(None));
    }

    #[test]
    fn rounds_are_three_unless_told_and_at_most_twenty() {
        let rounds = |line: &str| match parse(line).map(|args| args.what) {
            Ok(What::Mlp(args)) => Ok(args.common.rounds),
            Ok(_) => panic!("not mlp"),
            Err(message) => Err(message),
        };
        assert_eq!(rounds("mlp --models a/b"), Ok(3));
        assert_eq!(rounds("mlp --models a/b --rounds 20"), Ok(20));
        for bad in ["0", "21"] {
            let message = rounds(&format!("mlp --models a/b --rounds {bad}")).unwrap_err();
            assert!(message.contains("1..=20"), "{message}");
        }
    }

    #[test]
    fn budgets_that_are_none_are_refused_with_an_example() {
        for budget in ["0s", "soon", "12", "-1s"] {
            let message = parse(&format!("mlp --models a/b --budget={budget}")).unwrap_err();
            assert!(message.contains("give for example 90s"), "{budget}: {message}");
        }
    }

    #[test]
    fn degrees_that_do_not_divide_are_refused_before_any_work() {
        let args = parse("mlp --models Qwen/Qwen3-0.6B --tensor-parallel 3").unwrap();
        let Err(Failure::User(message)) = run(args) else { panic!("accepted") };
        assert!(message.contains("degrees that fit"), "{message}");
    }
}
