//! Against reference runs of Vidur. They lie outside the repository: `VIDUR_SHARED_DATA` names the
//! folder, and without it these tests say that they are skipped.

use std::path::{Path, PathBuf};
use vidur::metrics::{Recorder, StageSpan};
use vidur::run::{Run, RunConfig};
use vidur::sim::{Invariants, Silent};
use vidur::spec::catalog::Catalog;

pub fn shared() -> Option<PathBuf> {
    let dir = std::env::var_os("VIDUR_SHARED_DATA").map(PathBuf::from);
    if dir.is_none() {
        eprintln!("skipped: VIDUR_SHARED_DATA is not set");
    }
    dir
}

/// The columns that are compared, request by request, in seconds; restarts are counted.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub e2e: f64,
    ttft: f64,
    delay: f64,
    restarts: u32,
}

pub fn reference(shared: &Path, run: &str) -> Vec<Row> {
    let path = shared.join("vidur/reference/runs").join(run).join("request_metrics.csv");
    let mut reader = csv::Reader::from_path(path).unwrap();
    let header = reader.headers().unwrap().clone();
    let column = |name: &str| header.iter().position(|c| c == name).unwrap();
    let at = [
        column("request_e2e_time"),
        column("prefill_e2e_time"),
        column("request_scheduling_delay"),
        column("request_num_restarts"),
    ];
    reader
        .records()
        .map(|record| {
            let record = record.unwrap();
            let number = |i: usize| record[at[i]].parse::<f64>().unwrap();
            let restarts = number(3) as u32;
            Row { e2e: number(0), ttft: number(1), delay: number(2), restarts }
        })
        .collect()
}

/// Runs a config file as the command line does, invariants on.
fn simulate(path: &str) -> (Vec<Row>, Recorder) {
    simulate_with(path, &[])
}

/// The same, with fields changed as by `--set`.
pub fn simulate_with(path: &str, sets: &[String]) -> (Vec<Row>, Recorder) {
    let text = std::fs::read_to_string(path).unwrap();
    let config = RunConfig::load(&text, path, sets).unwrap_or_else(|e| panic!("{e}"));
    let run = Run::resolve(config, &Catalog::open(None)).unwrap_or_else(|e| panic!("{e}"));
    let (_, recorder, invariants) =
        run.execute(false, Invariants::new(run.limits)).unwrap_or_else(|e| panic!("{path}: {e}"));
    // With Vidur's leak switched on, cache is lost for good.
    if !run.sim.defects.leaky_static_batches {
        assert_eq!(invariants.violations(), &[] as &[String], "{path}");
    }
    let rows = recorder
        .requests
        .iter()
        .map(|r| Row {
            e2e: r.e2e_ms() * 1e-3,
            ttft: r.ttft_ms() * 1e-3,
            delay: r.queueing_ms() * 1e-3,
            restarts: r.restarts,
        })
        .collect();
    (rows, recorder)
}

#[test]
fn with_vidurs_tables_every_request_of_every_reference_run_agrees_within_a_microsecond() {
    let Some(shared) = shared() else { return };
    let mut compared = 0;
    for entry in std::fs::read_dir("tests/conformance").unwrap() {
        let path = entry.unwrap().path();
        let run = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let theirs = reference(&shared, &run);
        let (ours, recorder) = simulate(path.to_str().unwrap());
        assert_eq!(ours.len(), theirs.len(), "{run}");
        let mut worst = 0.0_f64;
        for (id, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            let off =
                (a.e2e - b.e2e).abs().max((a.ttft - b.ttft).abs()).max((a.delay - b.delay).abs());
            worst = worst.max(off);
            assert!(off < 1e-6, "{run}, request {id}: {a:?}, Vidur {b:?}");
            assert_eq!(a.restarts, b.restarts, "{run}, request {id}");
        }
        let batches = reference_batches(&shared, &run);
        if let Some(batches) = batches {
            assert_eq!(recorder.num_batches, batches, "{run}: batches");
        }
        eprintln!("{run}: {} requests, at most {:.1} ns apart", ours.len(), worst * 1e9);
        compared += 1;
    }
    assert!(compared == 12, "only {compared} reference runs have a config");
}

/// Batches of a reference run, where its trace was kept: one event per batch and stage, one stage.
fn reference_batches(shared: &Path, run: &str) -> Option<u64> {
    let path = shared.join("vidur/reference/runs").join(run).join("chrome_trace.json.gz");
    let file = std::fs::File::open(path).ok()?;
    let trace: serde_json::Value =
        serde_json::from_reader(flate2::read::GzDecoder::new(file)).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    Some(events.iter().filter(|e| e["ph"] == "X").count() as u64)
}

/// The 101 quantiles of a figure over batches, in order of rank, as a reference run plots them.
fn reference_quantiles(shared: &Path, run: &str, figure: &str) -> Vec<(f64, f64)> {
    let file = format!("vidur/reference/runs/{run}/plots/{figure}.csv");
    let mut reader = csv::Reader::from_path(shared.join(file)).unwrap();
    let row = |record: csv::StringRecord| {
        (record[1].parse::<f64>().unwrap(), record[2].parse::<f64>().unwrap())
    };
    reader.records().map(|record| row(record.unwrap())).collect()
}

/// A figure of a batch, of which a reference run plots the quantiles.
type Figure = (&'static str, fn(&StageSpan) -> u32);

/// Only two runs kept a trace that tells how many batches there were. All kept quantiles over their
/// batches, by a sketch that gives the value at rank q (n - 1) within 0.1 %: a batch more or less
/// moves the ranks, which shows wherever sizes change beside one of the 101.
#[test]
fn the_batches_of_every_reference_run_have_vidurs_sizes_at_every_rank() {
    let Some(shared) = shared() else { return };
    for entry in std::fs::read_dir("tests/conformance").unwrap() {
        let path = entry.unwrap().path();
        let run = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let spans = spans(path.to_str().unwrap());
        let figures: [Figure; 3] = [
            ("batch_size", |s| s.num_requests),
            ("batch_num_tokens", |s| s.num_prefill_tokens + s.num_decode_tokens),
            ("batch_num_decode_tokens", |s| s.num_decode_tokens),
        ];
        for (figure, of) in figures {
            let mut ours: Vec<u32> = spans.iter().filter(|s| s.stage.0 == 0).map(of).collect();
            ours.sort_unstable();
            for (q, theirs) in reference_quantiles(&shared, &run, figure) {
                let value = f64::from(ours[(q * (ours.len() - 1) as f64) as usize]);
                assert!(
                    (value - theirs).abs() <= 0.00101 * value,
                    "{run}: {figure} at {q}: {value}, Vidur {theirs}"
                );
            }
        }
        eprintln!("{run}: {} batches", spans.iter().filter(|s| s.stage.0 == 0).count());
    }
}

/// Every batch on every stage of a run.
fn spans(path: &str) -> Vec<StageSpan> {
    let config = RunConfig::load(&std::fs::read_to_string(path).unwrap(), path, &[]).unwrap();
    let run = Run::resolve(config, &Catalog::open(None)).unwrap();
    let (_, recorder, _) = run.execute(true, Silent).unwrap();
    recorder.spans
}

#[test]
fn the_a30_example_agrees_with_vidurs_forest_within_three_percent() {
    let Some(shared) = shared() else { return };
    let theirs = reference(&shared, "j_real_a30_qwen2_conv200");
    let (ours, _) = simulate("examples/a30_qwen2.yml");
    let mean = |rows: &[Row]| rows.iter().map(|r| r.e2e).sum::<f64>() / rows.len() as f64;
    let error = (mean(&ours) / mean(&theirs) - 1.0).abs();
    assert!(error < 0.03, "mean E2E is {:.1} % off", error * 100.0);
    let per_request =
        ours.iter().zip(&theirs).map(|(a, b)| (a.e2e / b.e2e - 1.0).abs()).sum::<f64>();
    let per_request = per_request / ours.len() as f64;
    assert!(per_request < 0.03, "requests are {:.1} % off on average", per_request * 100.0);
    eprintln!("mean E2E {:.2} % off, each request {:.2} %", error * 100.0, per_request * 100.0);
}
