//! `vidur profile cpu-overhead`: drive an engine and find out what it does between steps, or read
//! what a profiler saw of it.

mod endpoint;
mod from_files;
mod offline;

use super::super::Failure;
use super::super::devices;
use super::super::table::{self, number, render, window_width};
use super::{command_line, shown};
use crate::dataset::cpu_file::{FailedBatch, OverheadFile, OverheadRow, OverheadRun};
use crate::profiling::detect;
use crate::profiling::tool::Tools;
use crate::spec::parallel::Parallelism;
use crate::stats;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model that the times belong to, as `vidur models` lists it, or a .yml file.
    #[arg(long, value_name = "ORG/MODEL")]
    models: String,
    /// Python interpreter that has vLLM, which is driven unless --endpoint, --engine-log or --from is given.
    #[arg(long, default_value = "python3", value_name = "PATH")]
    python: PathBuf,
    /// What vLLM reads the model's config.json from, a folder or a name on Hugging Face; weights
    /// and tokenizer are not read [default: the model's name].
    #[arg(long, value_name = "PATH")]
    model_path: Option<String>,
    /// Without CUDA graphs and compilation (vLLM).
    #[arg(long)]
    enforce_eager: bool,
    /// Number format (vLLM) [default: as config.json says].
    #[arg(long, value_name = "FORMAT")]
    dtype: Option<String>,
    /// Longest sequence that vLLM plans for [default: the model's].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(64..))]
    max_model_len: Option<u32>,
    /// Further arguments of vllm.LLM, such as '{"gpu_memory_utilization": 0.5}'.
    #[arg(long, value_name = "JSON", value_parser = parse_engine_args)]
    engine_args: Option<serde_json::Map<String, serde_json::Value>>,
    /// A running engine's own address, without TLS or proxies between [default with --engine-log:
    /// http://127.0.0.1:8000].
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Name that the engine serves the model under [default: its first model].
    #[arg(long, value_name = "NAME")]
    served_model: Option<String>,
    /// File that the engine's log goes to; start vLLM with --enable-logging-iteration-details
    /// --no-async-scheduling, and send its output here.
    #[arg(long, value_name = "FILE")]
    engine_log: Option<PathBuf>,
    /// Read these traces of torch's profiler (JSON, also gzip) or records of neuron-monitor instead of
    /// driving an engine.
    #[arg(long, num_args = 1.., value_name = "FILE", conflicts_with_all = ["endpoint", "engine_log"])]
    from: Vec<PathBuf>,
    /// Wiring of the node, or its device's name for a single device: the folder to write to
    /// [default: as detected; --from needs it].
    #[arg(long, value_name = "NAME")]
    network_device: Option<String>,
    /// Tensor-parallel degree that the engine runs with.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    tensor_parallel: u32,
    /// Requests at the same time [default: 1, 2, 4 and so on to 256]; with --from, one: the only steps
    /// of a trace that are read, or what a file is of that does not tell it.
    #[arg(long, value_delimiter = ',', value_name = "N,N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_sizes: Vec<u32>,
    /// Words of each prompt, about its tokens.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    prompt_tokens: u32,
    /// Tokens of each answer; steps that are timed.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(8..=100_000))]
    output_tokens: u32,
    /// How long one request, one batch size, or starting vLLM may take.
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = crate::cli::profile::parse_limit)]
    timeout: Duration,
    /// Folder to write to.
    #[arg(long, short, default_value = "data/profiling", value_name = "DIR")]
    output_dir: PathBuf,
    /// Folder of devices and nodes that go before the built-in ones [default: data, where it exists].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Measure anew what is there already.
    #[arg(long)]
    force: bool,
}

/// Batch sizes unless given: Vidur's range.
const BATCH_SIZES: [u32; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

fn parse_engine_args(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    serde_json::from_str(text).map_err(|e| format!("expected a JSON object: {e}"))
}

/// Runs `vidur profile cpu-overhead`.
pub fn run(mut args: Args) -> Result<(), Failure> {
    let catalog = devices::open(args.data_dir.as_deref())?;
    let model = catalog.model(&args.models).map_err(|e| Failure::user(format!("--models: {e}")))?;
    let split = Parallelism { tensor_parallel: args.tensor_parallel, pipeline_parallel: 1 };
    split.check(&model).map_err(|e| Failure::user(format!("--tensor-parallel: {e}")))?;
    args.models = model.name;
    match (args.from.is_empty(), args.endpoint.is_some() || args.engine_log.is_some()) {
        (false, _) => from_files::run(&args),
        (true, true) => endpoint::run(&args),
        (true, false) => offline::run(&args),
    }
}

impl Args {
    /// What to measure, ascending, each once.
    fn sizes(&self) -> Vec<u32> {
        let mut sizes = self.batch_sizes.clone();
        if sizes.is_empty() {
            sizes.extend(BATCH_SIZES);
        }
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// The batch sizes that `file` lacks; `None`, and a word about it, when it lacks none.
    fn to_go(&self, file: &OverheadFile) -> Result<Option<Vec<u32>>, Failure> {
        let sizes = self.sizes();
        let to_go: Vec<u32> = sizes.iter().copied().filter(|&n| !file.contains(n)).collect();
        if to_go.len() < sizes.len() {
            eprintln!(
                "{} batch sizes are measured already, {} to go",
                sizes.len() - to_go.len(),
                to_go.len()
            );
        }
        if !to_go.is_empty() || !file.is_finished() {
            return Ok(Some(to_go));
        }
        table::print(&format!("{}: nothing to do; --force measures anew\n", shown(&file.path())))?;
        Ok(None)
    }

    /// The folder to write to, as given or as this machine is called.
    fn network_device(&self) -> Result<String, Failure> {
        if let Some(name) = &self.network_device {
            return Ok(name.clone());
        }
        let catalog = devices::open(self.data_dir.as_deref())?;
        let found = detect::detect(&Tools::system(), &catalog, None).map_err(Failure::user)?;
        if let Some(doubt) = found.doubt {
            return Err(Failure::user(format!(
                "{doubt}; say with --network-device where the engine runs"
            )));
        }
        found.network_device.or(found.store_as).ok_or_else(|| {
            Failure::user(
                "the catalogue has no name for this machine; give --network-device (`vidur devices --detect` tells more)",
            )
        })
    }

    /// The file for rows of `source`.
    fn open(&self, source: &str) -> Result<OverheadFile, Failure> {
        let name = self.network_device()?;
        OverheadFile::open(
            &self.output_dir,
            &name,
            &self.models,
            self.tensor_parallel,
            source,
            self.force,
        )
        .map_err(Failure::user)
    }
}

/// What this command did, for the manifest.
fn this_run(method: &str, failed: Vec<FailedBatch>, notes: Vec<String>) -> OverheadRun {
    OverheadRun {
        command: command_line(),
        finished: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        source: String::new(),
        method: method.to_owned(),
        tensor_parallel: 0,
        batch_sizes: Vec::new(),
        failed,
        files: Vec::new(),
        notes,
    }
}

/// Medians of the parts and of the whole host time.
fn print_parts(rows: &[OverheadRow]) -> Result<(), Failure> {
    let columns = [
        number("batch"),
        number("steps"),
        number("host ms"),
        number("schedule").expendable(4),
        number("prepare").expendable(3),
        number("sample").expendable(2),
        number("process").expendable(1),
        number("gap"),
        number("device ms"),
    ];
    let cell = |ms: &[f64]| stats::median(ms).map_or("-".into(), |ms| format!("{ms:.3}"));
    let cells = |row: &OverheadRow| {
        vec![
            row.batch_size.to_string(),
            row.gap_ms.len().to_string(),
            format!("{:.3}", row.host_ms()),
            cell(&row.schedule_ms),
            cell(&row.prepare_inputs_ms),
            cell(&row.sampler_ms),
            cell(&row.process_outputs_ms),
            cell(&row.gap_ms),
            cell(&row.device_ms),
        ]
    };
    let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
    table::print(&render(&columns, &cells, window_width()))
}

/// Writes the file and says where it is and what it is for.
fn write(file: OverheadFile, run: OverheadRun) -> Result<(), Failure> {
    let (path, rows) = (file.path(), file.len());
    let failed = run.failed.clone();
    file.finish(run).map_err(Failure::user)?;
    let mut text = String::from("\n");
    for batch in &failed {
        text.push_str(&format!("batch {} failed: {}\n", batch.batch_size, batch.reason));
    }
    if !failed.is_empty() {
        text.push_str("the same command tries these again\n\n");
    }
    text.push_str(&format!(
        "{}: {rows} rows. To use it: predictor settings with `cpu_overhead: true`\n",
        shown(&path)
    ));
    table::print(&text)
}
