//! `vidur profile cpu-overhead`: drive an engine and find out what it does between steps.

use super::super::Failure;
use super::super::table::{self, number, render, window_width};
use super::{command_line, shown};
use crate::dataset::cpu::{GapRow, gaps_to_csv};
use crate::dataset::manifest::sha256_hex;
use crate::dataset::write::write_atomically;
use crate::profiling::cpu_overhead::client::Endpoint;
use crate::profiling::cpu_overhead::drive::{Drive, periods};
use crate::profiling::cpu_overhead::iteration_log::{self, Iteration};
use crate::profiling::cpu_overhead::{StepTimes, decode_steps};
use crate::spec::catalog::check_model_name;
use crate::stats;
use serde_json::json;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model that the times belong to, as `vidur models` lists it.
    #[arg(long, value_name = "ORG/MODEL")]
    models: String,
    /// The engine's own address, without TLS or proxies between.
    #[arg(long, default_value = "http://127.0.0.1:8000", value_name = "URL")]
    endpoint: String,
    /// Name that the engine serves the model under [default: its first model].
    #[arg(long, value_name = "NAME")]
    served_model: Option<String>,
    /// File that the engine's log goes to; start vLLM with --enable-logging-iteration-details
    /// --no-async-scheduling, and send its output here.
    #[arg(long, value_name = "FILE")]
    engine_log: Option<PathBuf>,
    /// Wiring of the node, or its device's name for a single device: the folder to write to.
    #[arg(long, value_name = "NAME")]
    network_device: String,
    /// Tensor-parallel degree that the engine runs with.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    tensor_parallel: u32,
    /// Requests at the same time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32, 64, 128, 256], value_name = "N,N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_sizes: Vec<u32>,
    /// Words of each prompt, about its tokens.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    prompt_tokens: u32,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(8..=100_000))]
    output_tokens: u32,
    /// How long one request may take.
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Folder to write to.
    #[arg(long, short, default_value = "data/profiling", value_name = "DIR")]
    output_dir: PathBuf,
}

/// Questions that tell what transport takes.
const ROUND_TRIPS: usize = 9;

/// Runs `vidur profile cpu-overhead`.
pub fn run(args: &Args) -> Result<(), Failure> {
    check_model_name(&args.models).map_err(|e| Failure::user(format!("--models: {e}")))?;
    let folder = folder(args)?;
    // A key, where the engine wants one, is no argument: arguments are recorded.
    let key = std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty());
    let endpoint = Endpoint::open(&args.endpoint, args.served_model.as_deref(), key, args.timeout)
        .map_err(|e| {
            Failure::user(format!("{e}; give the address of a running engine with --endpoint"))
        })?;
    let mut log = args.engine_log.as_deref().map(LogTail::open).transpose()?;
    let mut sizes = args.batch_sizes.clone();
    sizes.sort_unstable();
    sizes.dedup();
    let transport_ms = (0..ROUND_TRIPS)
        .map(|_| endpoint.round_trip_ms())
        .collect::<Result<Vec<f64>, String>>()
        .map_err(Failure::user)?;
    let mut next =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_secs());
    // Once for nothing: the engine compiles and warms up.
    let mut seen: Vec<StepTimes> = Vec::new();
    for (i, &batch_size) in std::iter::once(&1).chain(&sizes).enumerate() {
        let drive = Drive {
            batch_size,
            prompt_words: args.prompt_tokens,
            output_tokens: args.output_tokens,
            first_number: next,
        };
        next += u64::from(batch_size);
        let period_ms = periods(&endpoint, drive).map_err(Failure::user)?;
        let iterations = match &mut log {
            Some(log) => log.new_iterations()?,
            None => Vec::new(),
        };
        if i > 0 {
            let device_ms = decode_steps(&iterations, batch_size);
            eprintln!(
                "batch {batch_size}: {} steps seen, {} in the log",
                period_ms.len() / batch_size as usize,
                device_ms.len()
            );
            seen.push(StepTimes { batch_size, period_ms, device_ms });
        }
    }
    finish(args, &folder, &endpoint, &seen, &transport_ms)
}

fn folder(args: &Args) -> Result<PathBuf, Failure> {
    crate::dataset::location::folder_name(&args.network_device)
        .map_err(|e| Failure::user(format!("--network-device: {e}")))?;
    Ok(args.output_dir.join("cpu_overhead").join(&args.network_device).join(&args.models))
}

/// Prints what was seen and, if it is whole, writes it.
fn finish(
    args: &Args,
    folder: &Path,
    endpoint: &Endpoint,
    seen: &[StepTimes],
    transport_ms: &[f64],
) -> Result<(), Failure> {
    let columns = [
        number("batch"),
        number("steps"),
        number("period ms"),
        number("device ms"),
        number("host gap ms"),
        number("noise"),
    ];
    let mut rows = Vec::new();
    let mut table = Vec::new();
    let mut missing = None;
    for times in seen {
        let shown = |ms: Option<f64>| ms.map_or("-".into(), |ms| format!("{ms:.3}"));
        let gaps = times.host_gaps();
        let gap = gaps.as_ref().ok().and_then(|gaps| stats::median(gaps));
        let mean = stats::mean(&times.period_ms).unwrap_or(0.0);
        let noise =
            stats::std_dev(&times.period_ms).map(|std| format!("{:.1} %", 100.0 * std / mean));
        table.push(vec![
            times.batch_size.to_string(),
            (times.period_ms.len() / times.batch_size as usize).to_string(),
            shown(stats::median(&times.period_ms)),
            shown(stats::median(&times.device_ms)),
            shown(gap),
            noise.unwrap_or_default(),
        ]);
        match gaps {
            Ok(gap_ms) => rows.push(GapRow {
                batch_size: times.batch_size,
                gap_ms,
                device_ms: times.device_ms.clone(),
                transport_ms: transport_ms.to_vec(),
            }),
            Err(why) => missing = missing.or(Some(why)),
        }
    }
    table::print(&render(&columns, &table, window_width()))?;
    if args.engine_log.is_none() {
        return Err(Failure::user(
            "an endpoint alone does not tell the device's time from the host's: start vLLM with \
             --enable-logging-iteration-details --no-async-scheduling, and give its log with --engine-log; \
             nothing was written",
        ));
    }
    if rows.is_empty() {
        return Err(Failure::user(format!("{}; nothing was written", missing.unwrap_or_default())));
    }
    if let Some(why) = missing {
        eprintln!("note: {why}; these batch sizes are left out");
    }
    let csv = gaps_to_csv(&args.models, args.tensor_parallel, &rows);
    let path = folder.join("cpu_overheads.csv");
    let manifest = json!({
        "profile": "cpu_overheads",
        "model": args.models,
        "network_device": args.network_device,
        "provenance": "measured",
        "vidur_version": env!("CARGO_PKG_VERSION"),
        "method": "period of decoding steps, seen by a streaming client, less the time that the engine logged for them",
        "endpoint": args.endpoint,
        "served_model": endpoint.model(),
        "rows": rows.len(),
        "sha256": sha256_hex(&csv),
        "command": command_line(),
        "finished": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
    });
    let mut json = serde_json::to_string_pretty(&manifest).map_err(Failure::internal)?;
    json.push('\n');
    std::fs::create_dir_all(folder)
        .map_err(|e| Failure::user(format!("{}: {e}", folder.display())))?;
    write_atomically(&path, &csv).map_err(Failure::user)?;
    write_atomically(&folder.join("cpu_overheads.manifest.json"), json.as_bytes())
        .map_err(Failure::user)?;
    table::print(&format!(
        "\n{}: {} rows. To use it: predictor settings with `cpu_overhead: true`\n",
        shown(&path),
        rows.len()
    ))
}

/// The part of a growing file that has not been read.
struct LogTail {
    path: PathBuf,
    at: u64,
}

impl LogTail {
    /// From the end of what is there now.
    fn open(path: &Path) -> Result<LogTail, Failure> {
        let at = std::fs::metadata(path)
            .map_err(|e| Failure::user(format!("--engine-log {}: {e}", path.display())))?
            .len();
        Ok(LogTail { path: path.to_owned(), at })
    }

    /// The iterations of the lines that came since; a line that is being written waits.
    fn new_iterations(&mut self) -> Result<Vec<Iteration>, Failure> {
        // The engine logs a step after its tokens went out.
        std::thread::sleep(Duration::from_millis(200));
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = std::fs::File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.at))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|e| Failure::user(format!("{}: {e}", self.path.display())))?;
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
        self.at += whole as u64;
        Ok(iteration_log::parse(&String::from_utf8_lossy(&bytes[..whole])))
    }
}
