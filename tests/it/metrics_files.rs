//! The files that a run writes when its config asks for more.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::Path;

fn simulate(dir: &Path, sets: &[&str], flags: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("vidur").unwrap();
    let cpu = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/cpu_qwen3.yml");
    command.current_dir(dir).args(["simulate", "--config", cpu]);
    command.args(["--set", "workload.synthetic.num_requests=30"]);
    for set in sets {
        command.args(["--set", set]);
    }
    let output = command.args(flags).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_bench_file_has_vllms_keys_in_its_order_and_agrees_with_the_summary() {
    let dir = tempfile::tempdir().unwrap();
    let rate = "workload.synthetic.arrivals.poisson.requests_per_s=0.3";
    let sets = [rate, "slo.ttft_ms=2000", "metrics.date=20260101-000000", "metrics.dialect=vidur"];
    let flags = ["--format", "vllm-bench", "--save-detailed", "--output-dir", "a"];
    let (code, table, stderr) = simulate(dir.path(), &sets, &flags);
    assert_eq!(code, 0, "{stderr}");
    assert!(table.contains("\ngoodput ") && table.contains("\ndialect      vidur\n"), "{table}");
    let bench = json(dir.path().join("a/vllm_bench.json"));
    let keys: Vec<&str> = bench.as_object().unwrap().keys().map(String::as_str).collect();
    let (head, tail) = keys.split_at(26);
    assert_eq!(
        head,
        [
            "date",
            "endpoint_type",
            "backend",
            "label",
            "model_id",
            "tokenizer_id",
            "num_prompts",
            "request_rate",
            "burstiness",
            "max_concurrency",
            "duration",
            "completed",
            "failed",
            "total_input_tokens",
            "total_output_tokens",
            "request_throughput",
            "request_goodput",
            "output_throughput",
            "total_token_throughput",
            "input_lens",
            "output_lens",
            "ttfts",
            "itls",
            "start_times",
            "max_output_tokens_per_s",
            "max_concurrent_requests",
        ]
    );
    assert_eq!(tail[..5], ["rtfx", "mean_ttft_ms", "median_ttft_ms", "std_ttft_ms", "p99_ttft_ms"]);
    assert_eq!(tail[5], "mean_tpot_ms");
    assert_eq!(tail[16], "p99_e2el_ms");
    assert_eq!(tail.len(), 17);
    assert_eq!(bench["date"], "20260101-000000");
    assert_eq!(bench["request_rate"], 0.3);
    assert_eq!((&bench["completed"], &bench["failed"]), (&30.into(), &0.into()));

    let summary = &json(dir.path().join("a/summary.json"))["summary"];
    assert_eq!(bench["mean_ttft_ms"], summary["latency"]["ttft_ms"]["mean"]);
    assert_eq!(bench["request_goodput"], summary["goodput"]["requests_per_s"]);
    assert!(summary["metrics_dialect"].as_str().unwrap().starts_with("vidur: "));
    // Vidur divides by n, vLLM by n - 1.
    let mean = |v: &Value| v.as_f64().unwrap();
    assert!(mean(&bench["mean_tpot_ms"]) > mean(&summary["latency"]["tpot_ms"]["mean"]));
    // The lists give the summary again: seconds there, milliseconds here.
    let numbers = |v: &Value| -> Vec<f64> {
        v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let ttfts = numbers(&bench["ttfts"]);
    let again = 1e3 * ttfts.iter().sum::<f64>() / ttfts.len() as f64;
    assert!((again - mean(&bench["mean_ttft_ms"])).abs() < 1e-6);
    let gaps: Vec<f64> = bench["itls"].as_array().unwrap().iter().flat_map(numbers).collect();
    let again = 1e3 * gaps.iter().sum::<f64>() / gaps.len() as f64;
    assert!((again - mean(&bench["mean_itl_ms"])).abs() < 1e-6);
    let tokens: f64 = numbers(&bench["output_lens"]).iter().sum();
    assert_eq!(tokens, (gaps.len() + ttfts.len()) as f64);
    assert_eq!(numbers(&bench["start_times"]).len(), 30);
}

#[test]
fn batches_operators_and_plots_are_written_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let sets = ["metrics.batches=true", "metrics.operators=true", "metrics.plots=true"];
    let (code, table, stderr) = simulate(dir.path(), &sets, &["--output-dir", "a"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(table.contains("mlp_up_proj"), "{table}");
    let run = dir.path().join("a");
    let summary = &json(run.join("summary.json"))["summary"];
    let batches = fs::read_to_string(run.join("batch_metrics.csv")).unwrap();
    assert_eq!(batches.lines().count() as u64, 1 + summary["num_batches"].as_u64().unwrap());
    let shares = summary["operators"].as_array().unwrap();
    let percent: f64 = shares.iter().map(|s| s["percent"].as_f64().unwrap()).sum();
    assert!((percent - 100.0).abs() < 1e-9);
    // Vidur's files: 101 quantiles, from the smallest to the largest.
    for name in ["request_e2e_time", "prefill_e2e_time", "batch_size", "batch_execution_time"] {
        let text = fs::read_to_string(run.join(format!("plots/{name}.csv"))).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], format!("cdf,{name}"));
        assert_eq!(lines.len(), 102, "{name}");
        assert!(lines[1].starts_with("0,") && lines[101].starts_with("1,"), "{name}");
    }
    let usage = json(run.join("plots/replica_0_memory_usage.json"));
    assert_eq!(usage["weighted_mean"], summary["replicas"][0]["kv_cache_percent"]["mean"]);
    let mfu = json(run.join("plots/replica_0_stage_0_mfu.json"));
    let (mean, max) = (mfu["weighted_mean"].as_f64().unwrap(), mfu["max"].as_f64().unwrap());
    assert!(0.0 < mean && mean < max && max < 100.0, "{mfu}");
    assert!(run.join("plots/replica_0_stage_0_busy_time_percent.json").exists());
    assert!(run.join("plots/memory_usage_time_series.csv").exists());
    let last = |name: &str| -> u64 {
        let text = fs::read_to_string(run.join(format!("plots/{name}_time_series.csv"))).unwrap();
        text.lines().last().unwrap().split_once(',').unwrap().1.parse().unwrap()
    };
    let requests = fs::read_to_string(run.join("request_metrics.csv")).unwrap().lines().count() - 1;
    assert_eq!(last("request_arrival"), requests as u64);
    assert_eq!(last("request_completion"), requests as u64);
    assert!(last("prefill_completion") > last("decode_completion"), "prompts are longer here");
    let up = fs::read_to_string(run.join("plots/mlp_up_proj.csv")).unwrap();
    assert!(up.starts_with("cdf,mlp_up_proj\n0,") && up.lines().count() == 102);
}

#[test]
fn a_sampled_run_keeps_no_rows_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let sampled = "metrics.requests=sampled";
    let (code, table, stderr) =
        simulate(dir.path(), &[sampled, "metrics.plots=true"], &["--output-dir", "a"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(table.contains("\nsampled "), "{table}");
    let run = dir.path().join("a");
    assert!(!run.join("request_metrics.csv").exists());
    assert!(run.join("ttft_cdf.svg").exists() && run.join("plots/prefill_e2e_time.csv").exists());
    let summary = &json(run.join("summary.json"))["summary"];
    assert_eq!(summary["request_detail"], "sampled");
    assert_eq!(summary["num_requests"], 30);
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |sets: &[&str], flags: &[&str]| {
        let (code, stdout, stderr) = simulate(dir.path(), sets, flags);
        assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        stderr
    };
    let detailed = ["--format", "vllm-bench", "--save-detailed"];
    assert_eq!(
        refused(&["metrics.requests=sampled"], &detailed),
        "error: --save-detailed needs every request, and metrics.requests is sampled; set it to all\n"
    );
    assert_eq!(
        refused(&["slo.tpot_ms=0"], &[]),
        "error: slo.tpot_ms: 0; expected milliseconds above 0\n"
    );
    assert!(refused(&["slo.itl_ms=5"], &[]).contains("unknown field `itl_ms`"));
    assert!(refused(&["metrics.dialect=sglang"], &[]).contains("unknown value `sglang`"));
    assert!(refused(&[], &["--format", "vllm-bench", "--no-output"]).contains("cannot be used"));
    assert!(refused(&[], &["--save-detailed"]).contains("--format"));
}
