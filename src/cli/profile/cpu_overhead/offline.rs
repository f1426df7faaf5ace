//! vLLM in a process of its own, without a server: nothing but an interpreter is needed.

use super::{Args, print_parts, this_run, write};
use crate::cli::Failure;
use crate::dataset::cpu_file::FailedBatch;
use crate::profiling::cpu_overhead::offline::{OfflineConfig, OfflineEngine, OfflineError};
use serde_json::Value;

/// How host and device are told apart.
const METHOD: &str = "vLLM's engine driven step by step in one process, its methods timed on the host; \
                      model_execution ends when the device is done; what no method covers is the gap";

/// Starts vLLM with dummy weights and times its steps.
pub fn run(args: &Args) -> Result<(), Failure> {
    let sizes = args.sizes();
    let config = OfflineConfig {
        python: args.python.clone(),
        model: args.model_path.clone().unwrap_or_else(|| args.models.clone()),
        tensor_parallel: args.tensor_parallel,
        enforce_eager: args.enforce_eager,
        dtype: args.dtype.clone(),
        max_num_seqs: sizes.last().copied().unwrap_or(1),
        max_model_len: args.max_model_len,
        engine_args: args.engine_args.clone().unwrap_or_default(),
        prompt_tokens: args.prompt_tokens,
        steps: args.output_tokens,
        limit: args.timeout,
        seed: 42,
    };
    let mut settings = settings(&config);
    if let Some(path) = &args.model_path {
        settings.push_str(&format!(", of {path}"));
    }
    let mut engine = OfflineEngine::new(config);
    let version = engine.probe().map_err(failure)?;
    let mut file = args.open(&format!("{version}, offline, {settings}"))?;
    let Some(to_go) = args.to_go(&file)? else { return Ok(()) };
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for &batch_size in &to_go {
        match engine.measure(batch_size) {
            Ok(row) => {
                file.put(&row).map_err(Failure::user)?;
                eprintln!("batch {batch_size}: {:.3} ms on the host", row.host_ms());
                rows.push(row);
            }
            Err(OfflineError::Batch(reason)) => {
                eprintln!("batch {batch_size} failed: {reason}");
                failed.push(FailedBatch { batch_size, reason });
            }
            Err(OfflineError::Lost(reason)) if !file.is_empty() => {
                // What is measured so far stands.
                eprintln!("batch {batch_size} failed, and nothing more is tried: {reason}");
                failed.push(FailedBatch { batch_size, reason });
                break;
            }
            Err(lost) => return Err(failure(lost)),
        }
    }
    let info = engine.info().clone();
    let mut notes = Vec::new();
    if !info.missing.is_empty() {
        let note = format!(
            "{} has no method known to us for {}: that time is in host_gap",
            info.engine,
            info.missing.join(", ")
        );
        eprintln!("note: {note}");
        notes.push(note);
    }
    if !rows.is_empty() {
        notes.push(format!("ran on {}", info.device));
        let timed = info.methods.iter().map(|(part, of)| format!("{part}: {}", of.join(", ")));
        notes.push(format!("timed methods: {}", timed.collect::<Vec<_>>().join("; ")));
        print_parts(&rows)?;
    }
    if let (true, Some(first)) = (file.is_empty(), failed.first()) {
        return Err(Failure::machine(format!(
            "batch {}: {}; nothing was written",
            first.batch_size, first.reason
        )));
    }
    write(file, this_run(METHOD, failed, notes))
}

/// What rows of one file share beside the version.
fn settings(config: &OfflineConfig) -> String {
    let mut words = vec![
        if config.enforce_eager { "eager" } else { "graphs" }.to_owned(),
        format!("prompts of {} tokens", config.prompt_tokens),
    ];
    words.extend(config.dtype.clone());
    words.extend(config.max_model_len.map(|n| format!("at most {n} tokens")));
    if !config.engine_args.is_empty() {
        words.push(Value::Object(config.engine_args.clone()).to_string());
    }
    words.join(", ")
}

fn failure(error: OfflineError) -> Failure {
    Failure::user(match error {
        OfflineError::Absent(why) => format!(
            "{why}; name an interpreter that has vLLM with --python, drive a running engine with --endpoint and \
             --engine-log, or read a profiler's trace with --from"
        ),
        other => format!("vLLM: {other}"),
    })
}
