//! `vidur profile graph`: trace whole graphs, bucket by bucket, and time them.

use super::super::Failure;
use super::super::table::{self, number, render, text, window_width};
use super::device::{BackendKind, DeviceArgs, about_doubt, torch_config};
use super::{Common, command_line, shown};
use crate::cli::devices;
use crate::dataset::graph::{GraphKey, GraphTable};
use crate::dataset::manifest::{FailedShape, Fingerprint, Run};
use crate::profiling::backend::torch::TorchBackend;
use crate::profiling::backend::{Backend, BackendError, Effort, Shard};
use crate::profiling::detect::{self, Detection, Kind};
use crate::profiling::graph::{self, GraphPlan, buckets};
use crate::profiling::host::Host;
use crate::profiling::tool::Tools;
use crate::spec::model::ModelSpec;
use crate::spec::parallel::Parallelism;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Models, as `vidur models` lists them, or .yml files.
    #[arg(long, required = true, num_args = 1.., value_name = "ORG/MODEL")]
    models: Vec<String>,
    /// Tensor-parallel degrees: the graph of one device's share is timed, without collectives.
    #[arg(long, value_delimiter = ',', default_values_t = [1], value_name = "N,N")]
    tensor_parallel: Vec<u32>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Longest context: buckets go from 128 to it as neuronx-distributed-inference makes them.
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    max_context: u64,
    /// Buckets of context encoding, instead of those.
    #[arg(long, value_delimiter = ',', value_name = "N,N", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    context_buckets: Vec<u64>,
    /// Buckets of token generation, instead of those.
    #[arg(long, value_delimiter = ',', value_name = "N,N", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    token_buckets: Vec<u64>,
    /// Sequences of a context-encoding graph.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    context_batch_size: u32,
    /// Sequences of the token-generation graphs.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 32], value_name = "N,N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_sizes: Vec<u32>,
    /// Trace one decoder layer, and embedding with head, instead of the whole model.
    #[arg(long)]
    per_layer: bool,
    /// Physical cores to a logical NeuronCore, 1 or 2, for compiler and runtime alike [default: what
    /// neuron-ls says].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2))]
    lnc: Option<u32>,
    /// Keep what the compiler leaves in this folder, and find it there again.
    #[arg(long, value_name = "DIR")]
    keep_graphs: Option<PathBuf>,
    /// Samples of every graph, at least.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeats: u32,
    /// Name of this machine's profiles [default: what `vidur devices --detect` says].
    #[arg(long, value_name = "NAME")]
    sku: Option<String>,
    /// Folder to write to.
    #[arg(long, short, default_value = "data/profiling", value_name = "DIR")]
    output_dir: PathBuf,
    /// Folder of models that take precedence over the built-in ones [default: data, where it exists].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Measure anew what is there already.
    #[arg(long)]
    force: bool,
    /// Print the plan; measure and write nothing.
    #[arg(long)]
    dry_run: bool,
}

/// A compiler may take this long for one graph, unless told otherwise.
const COMPILE_LIMIT: Duration = Duration::from_secs(3600);

/// The graphs of one model.
pub(super) struct Done {
    pub file: GraphTable,
    /// Graphs that this run added.
    pub new: usize,
    pub failed: Vec<FailedShape>,
}

/// Runs `vidur profile graph`.
pub fn run(args: &Args) -> Result<(), Failure> {
    measured(args)?.iter().try_for_each(|done| {
        // A file with nothing in it is no file.
        match (done.file.medians().next(), done.failed.first()) {
            (None, Some(first)) => Err(Failure::machine(format!(
                "nothing could be measured: {}: {}",
                first.shape, first.reason
            ))),
            _ => print_table(&done.file, &done.failed),
        }
    })
}

/// What `vidur profile all` measures on a device that runs graphs.
pub(super) fn for_all(
    common: &Common,
    max_context: u64,
    max_batch_size: u64,
    per_layer: bool,
    lnc: Option<u32>,
) -> Result<Vec<Done>, Failure> {
    let most = u32::try_from(max_batch_size).unwrap_or(4096).min(4096);
    let mut batch_sizes: Vec<u32> = [1, 4, 16, 32].into_iter().filter(|&n| n < most).collect();
    batch_sizes.push(most);
    measured(&Args {
        models: common.models.clone(),
        tensor_parallel: common.tensor_parallel.clone(),
        device: common.device.clone(),
        max_context,
        context_buckets: Vec::new(),
        token_buckets: Vec::new(),
        context_batch_size: 1,
        batch_sizes,
        per_layer,
        lnc,
        keep_graphs: None,
        repeats: common.repeats,
        sku: common.sku.clone(),
        output_dir: common.output_dir.clone(),
        data_dir: common.data_dir.clone(),
        force: common.force,
        dry_run: common.dry_run,
    })
}

fn measured(args: &Args) -> Result<Vec<Done>, Failure> {
    let catalog = devices::open(args.data_dir.as_deref())?;
    let mut models: Vec<ModelSpec> = Vec::new();
    for name in &args.models {
        let model = catalog.model(name).map_err(Failure::user)?;
        for &tensor_parallel in &args.tensor_parallel {
            let split = Parallelism { tensor_parallel, pipeline_parallel: 1 };
            split.check(&model).map_err(|e| Failure::user(format!("--tensor-parallel: {e}")))?;
        }
        models.push(model);
    }
    if args.dry_run {
        models.iter().try_for_each(|model| table::print(&plan_text(args, model)))?;
        return Ok(Vec::new());
    }
    let host = Host::detect();
    let found = detect::detect(&Tools::system(), &catalog, wanted(args.device.backend))
        .map_err(Failure::user)?;
    if let Some(doubt) = &found.doubt {
        about_doubt(args.device.backend, doubt)?;
    }
    let kind = match found.backend {
        Kind::Neuron => "neuron",
        Kind::Cuda | Kind::Rocm => "cuda",
        Kind::Cpu => "cpu",
    };
    let sku = match &args.sku {
        Some(sku) => sku.clone(),
        None => sku_of(&found, &host, args)?,
    };
    let mut config = torch_config(&args.device, &host, kind)?;
    if config.devices.len() > 1 {
        return Err(Failure::user("--devices: graphs are timed on one device; give one number"));
    }
    let told = found.devices.first().and_then(|device| device.logical_core_config);
    config.lnc = args.lnc.or(told).filter(|_| kind == "neuron");
    let mut backend = TorchBackend::new(config, &host).map_err(Failure::user)?;
    models
        .iter()
        .map(|model| profile(args, model, &sku, &host, &mut backend, kind == "neuron"))
        .collect()
}

/// The kind of device that the flag asks for; `None` is what is there.
fn wanted(backend: BackendKind) -> Option<Kind> {
    match backend {
        BackendKind::Auto | BackendKind::Torch => None,
        BackendKind::Cpu => Some(Kind::Cpu),
        BackendKind::Neuron => Some(Kind::Neuron),
    }
}

fn sku_of(found: &Detection, host: &Host, args: &Args) -> Result<String, Failure> {
    match (found.backend, &found.store_as) {
        (Kind::Cpu, _) => {
            Ok(format!("{}-torch", host.sku(args.device.threads.unwrap_or(host.cores))))
        }
        (_, Some(sku)) => Ok(sku.clone()),
        (_, None) => Err(Failure::user(format!("{}; give --sku", found.unknown.join("; ")))),
    }
}

fn plan_of(args: &Args, model: &ModelSpec) -> GraphPlan {
    let longest = args.max_context.min(u64::from(model.max_position_embeddings));
    let or = |given: &[u64]| match given {
        [] => buckets::between(buckets::SMALLEST.min(longest), longest),
        given => given.to_vec(),
    };
    GraphPlan {
        context: or(&args.context_buckets),
        token: or(&args.token_buckets),
        context_batch: args.context_batch_size,
        batches: args.batch_sizes.clone(),
        per_layer: args.per_layer,
    }
}

fn plan_text(args: &Args, model: &ModelSpec) -> String {
    let plan = plan_of(args, model);
    let keys: Vec<GraphKey> =
        args.tensor_parallel.iter().flat_map(|&tp| plan.keys(model, tp)).collect();
    let list: String = keys
        .iter()
        .map(|key| format!("  tensor parallel {}: {key}\n", key.tensor_parallel))
        .collect();
    format!(
        "graph {}: {} graphs; nothing was written, no device was asked\n{list}",
        model.name,
        keys.len()
    )
}

fn profile(
    args: &Args,
    model: &ModelSpec,
    sku: &str,
    host: &Host,
    backend: &mut TorchBackend,
    neuron: bool,
) -> Result<Done, Failure> {
    let fingerprint = Fingerprint::new(sku, backend.device(), model);
    let mut file =
        GraphTable::open(&args.output_dir, fingerprint, args.force).map_err(Failure::user)?;
    let plan = plan_of(args, model);
    let keys: Vec<GraphKey> =
        args.tensor_parallel.iter().flat_map(|&tp| plan.keys(model, tp)).collect();
    let pending: Vec<GraphKey> = keys.iter().filter(|key| !file.contains(key)).copied().collect();
    if pending.len() < keys.len() {
        eprintln!(
            "graph {}: {} graphs are measured already, {} to go",
            model.name,
            keys.len() - pending.len(),
            pending.len()
        );
    }
    let limit = args.device.worker_timeout.unwrap_or(COMPILE_LIMIT);
    let mut tools = Tools::system();
    tools.deadline = limit;
    let now = || humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let (started, mut rows, mut failed) = (now(), 0, Vec::new());
    let effort = Effort {
        repeats: args.repeats,
        min_time: Duration::from_millis(300),
        max_time: Duration::from_secs(60),
    };
    for (i, key) in pending.iter().enumerate() {
        eprintln!("graph {}: {} of {}, {key}", model.name, i + 1, pending.len());
        let folder = Folder::new(args.keep_graphs.as_deref(), model, *key)?;
        let shard = Shard { model: model.clone(), tensor_parallel: key.tensor_parallel };
        let tools = neuron.then_some(&tools);
        match graph::measure(backend, &shard, *key, effort, folder.path(), limit, tools) {
            Ok(row) => {
                file.put(*key, &row);
                rows += 1;
            }
            Err(BackendError::Lost(reason)) => {
                return Err(Failure::machine(format!(
                    "{reason}; {rows} rows are kept, the same command goes on from there"
                )));
            }
            Err(BackendError::Shape(reason)) => {
                eprintln!("graph {}: {key} failed: {reason}", model.name);
                failed.push(FailedShape {
                    tensor_parallel: key.tensor_parallel,
                    shape: key.to_string(),
                    reason,
                });
                if rows == 0 {
                    continue;
                }
            }
        }
        let run = Run {
            command: command_line(),
            started: started.clone(),
            finished: now(),
            rows,
            rounds: 1,
            skipped: 0,
        };
        file.save(backend.device(), &host.os, &failed, run).map_err(Failure::user)?;
    }
    Ok(Done { file, new: rows, failed })
}

fn print_table(file: &GraphTable, failed: &[FailedShape]) -> Result<(), Failure> {
    let columns = [
        number("TP"),
        text("phase"),
        number("batch"),
        number("bucket"),
        number("layers"),
        text("head").expendable(1),
        number("ms"),
        number("compile s"),
    ];
    let rows: Vec<Vec<String>> = file
        .medians()
        .map(|(key, ms, compile)| {
            vec![
                key.tensor_parallel.to_string(),
                key.phase.name().into(),
                key.batch.to_string(),
                key.bucket.to_string(),
                key.layers.to_string(),
                if key.head { "yes" } else { "no" }.into(),
                format!("{ms:.3}"),
                format!("{compile:.1}"),
            ]
        })
        .collect();
    let mut out = format!(
        "{}\n{}: {} rows\n",
        render(&columns, &rows, window_width()),
        shown(&file.path()),
        rows.len()
    );
    if let Some(first) = failed.first() {
        out.push_str(&format!(
            "{} graphs failed, the first: {}: {}\n",
            failed.len(),
            first.shape,
            first.reason
        ));
    }
    table::print(&out)
}

/// Where the compiler works: a folder that is kept, or one that goes away.
enum Folder {
    Kept(PathBuf),
    Gone(tempfile::TempDir),
}

impl Folder {
    fn new(keep: Option<&Path>, model: &ModelSpec, key: GraphKey) -> Result<Folder, Failure> {
        let failure = |e: std::io::Error| {
            Failure::user(format!("no folder for the compiler: {e}; give --keep-graphs"))
        };
        let Some(keep) = keep else {
            return tempfile::tempdir().map(Folder::Gone).map_err(failure);
        };
        let GraphKey { tensor_parallel, phase, batch, bucket, layers, head } = key;
        let head = if head { "-head" } else { "" };
        let name =
            format!("tp{tensor_parallel}-{}-b{batch}-n{bucket}-l{layers}{head}", phase.name());
        let path = keep.join(&model.name).join(name);
        std::fs::create_dir_all(&path).map_err(failure)?;
        Ok(Folder::Kept(path))
    }

    fn path(&self) -> &Path {
        match self {
            Folder::Kept(path) => path,
            Folder::Gone(dir) => dir.path(),
        }
    }
}
