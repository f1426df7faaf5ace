//! The files of a run.

use super::Format;
use crate::metrics::{Figure, Recorder, RequestDetail, Summary};
use crate::report::run_dir::{RunDir, RunDirError};
use crate::report::{batch_csv, cdf_svg, chrome_trace, plots, request_csv, vllm_bench};
use crate::run::Run;
use crate::workload::{ArrivalConfig, WorkloadConfig};
use serde_json::json;
use std::io::Write as _;

/// Batches beyond which no trace is written: viewers do not open more.
const MAX_TRACE_SPANS: usize = 300_000;

/// Files beside the usual ones.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Another tool's result file.
    pub format: Option<Format>,
    /// Request by request in it.
    pub save_detailed: bool,
}

/// Batches on stages that the files need at most.
pub fn max_spans(run: &Run) -> usize {
    if run.config.metrics.batches { usize::MAX } else { MAX_TRACE_SPANS }
}

/// Writes every file of the run.
///
/// # Errors
/// Those of the system, with the path.
pub fn write(
    dir: &RunDir,
    run: &Run,
    recorder: &Recorder,
    summary: &Summary,
    wanted: Wanted,
) -> Result<(), RunDirError> {
    let metrics = &run.config.metrics;
    let sampled = metrics.requests == RequestDetail::Sampled;
    if !sampled {
        dir.write("request_metrics.csv", |out| request_csv::write(&recorder.requests, out))?;
    }
    let json = |name: &str, value: serde_json::Value| {
        dir.write(name, |out| {
            serde_json::to_writer_pretty(&mut *out, &value)?;
            writeln!(out)
        })
    };
    let value = json!({
        "vidur_version": env!("CARGO_PKG_VERSION"),
        "deployment": run.report(),
        "summary": summary,
        "provenance": run.provenance,
    });
    json("summary.json", value)?;
    dir.write("config.yml", |out| {
        let text = serde_saphyr::to_string(&run.config).map_err(std::io::Error::other)?;
        out.write_all(text.as_bytes())
    })?;
    if !recorder.spans_dropped && recorder.spans.len() <= MAX_TRACE_SPANS {
        dir.write("chrome_trace.json", |out| chrome_trace::write(&recorder.spans, out))?;
    }
    if metrics.batches {
        dir.write("batch_metrics.csv", |out| batch_csv::write(&recorder.spans, out))?;
    }
    if metrics.plots {
        plots::write(dir, recorder, summary)?;
    }
    if wanted.format == Some(Format::VllmBench) {
        let value = vllm_bench::value(&bench_header(run), recorder, summary, wanted.save_detailed);
        json("vllm_bench.json", value)?;
    }
    curves(dir, recorder)
}

fn curves(dir: &RunDir, recorder: &Recorder) -> Result<(), RunDirError> {
    for (name, title, figure) in [
        ("ttft_cdf.svg", "Time to first token", Figure::Ttft),
        ("tpot_cdf.svg", "Time per output token", Figure::Tpot),
        ("e2e_cdf.svg", "End-to-end latency", Figure::E2e),
    ] {
        let svg = cdf_svg::draw(title, recorder.curve(figure))
            .map_err(|cause| RunDirError::Io { path: name.to_owned(), cause })?;
        if let Some(svg) = svg {
            dir.write(name, |out| out.write_all(svg.as_bytes()))?;
        }
    }
    Ok(())
}

/// What the bench file says of the workload. The rate of a trace is the one that it has.
fn bench_header(run: &Run) -> vllm_bench::Header<'_> {
    let arrivals = &run.workload.requests;
    let seconds = match (arrivals.first(), arrivals.last()) {
        (Some(first), Some(last)) => last.arrived_at.since(first.arrived_at).as_seconds(),
        _ => 0.0,
    };
    let gaps = arrivals.len().saturating_sub(1) as f64;
    let realised = (seconds > 0.0).then(|| gaps / seconds);
    let process = match &run.config.workload {
        WorkloadConfig::Synthetic(synthetic) => Some(&synthetic.arrivals),
        WorkloadConfig::Trace(_) => None,
    };
    let (request_rate, burstiness) = match process {
        Some(ArrivalConfig::Poisson { requests_per_s, .. }) => (Some(*requests_per_s), 1.0),
        Some(ArrivalConfig::Gamma { requests_per_s, cv }) => {
            (Some(*requests_per_s), 1.0 / (cv * cv))
        }
        // Equal gaps are the limit of an ever higher burstiness, which JSON cannot write.
        Some(ArrivalConfig::FixedRate { requests_per_s }) => (Some(*requests_per_s), f64::INFINITY),
        _ => (realised, 1.0),
    };
    vllm_bench::Header {
        date: run.config.metrics.date.as_deref().unwrap_or("simulated"),
        model: &run.model.name,
        num_prompts: arrivals.len(),
        request_rate,
        burstiness,
        max_concurrency: run.workload.clients.map(|c| c.concurrency),
    }
}
