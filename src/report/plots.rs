//! The folder `plots/`: the data behind Vidur's plots, for scripts that read them. Distributions
//! have 101 quantiles (`cdf` from 0 to 1, then the value); times are in seconds, and replicas and
//! stages count from 0.

use super::request_csv;
use super::run_dir::{RunDir, RunDirError};
use crate::metrics::{Counts, Distribution, Figure, OperatorTimes, Recorder, Summary};
use crate::stats::{self, Sketch};
use serde_json::json;
use std::io::Write as _;

const POINTS: usize = 101;

/// Writes every file of the folder.
///
/// # Errors
/// Those of the system, with the path.
pub fn write(dir: &RunDir, recorder: &Recorder, summary: &Summary) -> Result<(), RunDirError> {
    match &recorder.sampled {
        None => {
            for (name, value) in request_csv::COLUMNS {
                let sorted = request_csv::sorted(&recorder.requests, value);
                cdf(dir, name, &quantiles(&sorted))?;
            }
            cdf(dir, GAPS, &counted_quantiles(&recorder.token_gaps))?;
        }
        Some(sampled) => {
            for (name, sketch) in [
                ("request_e2e_time", sampled.figure(Figure::E2e)),
                ("request_e2e_time_normalized", sampled.figure(Figure::Normalized)),
                ("request_scheduling_delay", sampled.figure(Figure::Queueing)),
                ("prefill_e2e_time", sampled.figure(Figure::Ttft)),
                (
                    "decode_time_execution_plus_preemption_normalized",
                    sampled.figure(Figure::TpotOverAll),
                ),
                (GAPS, &sampled.gaps),
            ] {
                cdf(dir, name, &seconds(sketch))?;
            }
        }
    }
    let batches = &recorder.batches;
    cdf(dir, "batch_size", &batches.size.quantiles(POINTS))?;
    cdf(dir, "batch_num_tokens", &batches.tokens.quantiles(POINTS))?;
    cdf(dir, "batch_num_prefill_tokens", &batches.prefill_tokens.quantiles(POINTS))?;
    cdf(dir, "batch_num_decode_tokens", &batches.decode_tokens.quantiles(POINTS))?;
    cdf(dir, "batch_execution_time", &seconds(&batches.execution))?;
    replicas(dir, summary)?;
    if let Some(course) = &recorder.course {
        sums(dir, "request_arrival_time_series", &course.arrivals)?;
        sums(dir, "request_completion_time_series", &course.completions)?;
        sums(dir, "prefill_completion_time_series", &course.prefill_tokens)?;
        sums(dir, "decode_completion_time_series", &course.decode_tokens)?;
    }
    kv_series(dir, recorder)
}

/// A file for each operator: its time in a batch on a stage.
///
/// # Errors
/// Those of the system, with the path.
pub fn operators(dir: &RunDir, times: &OperatorTimes<'_>) -> Result<(), RunDirError> {
    for (op, sketch) in times.distributions() {
        cdf(dir, op.name(), &seconds(sketch))?;
    }
    Ok(())
}

/// How many by when.
fn sums(dir: &RunDir, name: &str, counts: &Counts) -> Result<(), RunDirError> {
    dir.write(&format!("plots/{name}.csv"), |out| {
        writeln!(out, "time,count")?;
        for (end, sum) in counts.sums() {
            writeln!(out, "{end},{sum}")?;
        }
        Ok(())
    })
}

/// Vidur's name of the gaps between tokens.
const GAPS: &str = "decode_token_execution_plus_preemption_time";

fn cdf(dir: &RunDir, name: &str, values: &[f64]) -> Result<(), RunDirError> {
    dir.write(&format!("plots/{name}.csv"), |out| {
        writeln!(out, "cdf,{name}")?;
        for (i, value) in values.iter().enumerate() {
            writeln!(out, "{},{value}", i as f64 / (POINTS - 1) as f64)?;
        }
        Ok(())
    })
}

fn seconds(sketch: &Sketch) -> Vec<f64> {
    sketch.quantiles(POINTS).into_iter().map(|ns| ns * 1e-9).collect()
}

fn quantiles(sorted: &[f64]) -> Vec<f64> {
    let at = |i: usize| stats::quantile_sorted(sorted, i as f64 / (POINTS - 1) as f64);
    (0..POINTS).filter_map(at).collect()
}

fn counted_quantiles(values: &[(u64, u32)]) -> Vec<f64> {
    Distribution::quantiles_of_counted_ns(values, POINTS).into_iter().map(|ns| ns * 1e-9).collect()
}

/// Vidur's files of each replica and stage, in percent.
fn replicas(dir: &RunDir, summary: &Summary) -> Result<(), RunDirError> {
    let level = |name: String, min: f64, max: f64, mean: f64| {
        dir.write(&format!("plots/{name}.json"), |out| {
            let value = json!({"min": min, "max": max, "weighted_mean": mean});
            serde_json::to_writer(&mut *out, &value)?;
            writeln!(out)
        })
    };
    for replica in &summary.replicas {
        let (i, kv) = (replica.replica, replica.kv_cache_percent);
        level(format!("replica_{i}_memory_usage"), kv.min, kv.max, kv.mean)?;
        for stage in &replica.stages {
            let (j, busy) = (stage.stage, stage.busy_percent);
            let idle = if busy < 100.0 { 0.0 } else { 100.0 };
            let most = if busy > 0.0 { 100.0 } else { 0.0 };
            level(format!("replica_{i}_stage_{j}_busy_time_percent"), idle, most, busy)?;
            if let (Some(mean), Some(max)) = (stage.mfu_percent, stage.mfu_max_percent) {
                level(format!("replica_{i}_stage_{j}_mfu"), 0.0, max, mean)?;
            }
        }
    }
    Ok(())
}

/// Blocks in use over time, percent.
fn kv_series(dir: &RunDir, recorder: &Recorder) -> Result<(), RunDirError> {
    let percent = 100.0 / f64::from(recorder.kv_capacity.max(1));
    dir.write("plots/memory_usage_time_series.csv", |out| {
        writeln!(out, "replica,time,mean_percent,max_percent")?;
        for (replica, used) in recorder.replicas.iter().enumerate() {
            for p in used.kv.series.iter().flat_map(|series| series.points()) {
                let (mean, max) = (p.mean * percent, f64::from(p.max) * percent);
                writeln!(out, "{replica},{},{mean},{max}", p.start_s)?;
            }
        }
        Ok(())
    })
}
