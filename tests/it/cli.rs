//! The program as a user runs it: output, errors, exit codes. Snapshots hold what people read.

use assert_cmd::Command;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Runs `vidur` in an empty folder; gives exit code, stdout and stderr.
fn vidur_in(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("vidur")
        .unwrap()
        .current_dir(dir)
        .env_remove("VIDUR_SHARED_DATA")
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Qwen3-0.6B on the CPU whose profile is built in.
const CPU: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/cpu_qwen3.yml");

fn vidur(args: &[&str]) -> (i32, String, String) {
    vidur_in(tempfile::tempdir().unwrap().path(), args)
}

/// A command that must be refused: exit code 2, one line, nothing written.
fn refused(dir: &Path, args: &[&str]) -> String {
    let before = fs::read_dir(dir).unwrap().count();
    let (code, stdout, stderr) = vidur_in(dir, args);
    assert_eq!(code, 2, "{args:?}: {stderr}");
    assert_eq!(stdout, "", "{args:?}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert_eq!(fs::read_dir(dir).unwrap().count(), before, "{args:?} left something behind");
    stderr
}

fn refused_config(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("run.yml"), text).unwrap();
    refused(dir.path(), &["simulate", "--config", "run.yml"])
}

#[test]
fn the_first_command_prints_the_same_table_every_time() {
    let (code, first, stderr) = vidur(&["simulate", "--no-output"]);
    assert_eq!(code, 0, "{stderr}");
    let (_, second, _) = vidur(&["simulate", "--no-output"]);
    assert_eq!(first, second);
    assert!(first.lines().all(|l| l.chars().count() <= 79), "wider than a terminal:\n{first}");
    let readme = fs::read_to_string("README.md").unwrap();
    assert!(readme.contains(&first), "the README shows another table than this:\n{first}");
    insta::assert_snapshot!("first_command", first);
}

#[test]
fn explain_shows_where_the_time_went_and_what_would_help() {
    let dir = tempfile::tempdir().unwrap();
    let small = "workload.synthetic.num_requests=100";
    let (code, stdout, stderr) = vidur_in(
        dir.path(),
        &[
            "simulate",
            "--config",
            CPU,
            "--set",
            small,
            "--set",
            "cluster.num_replicas=2",
            "--output-dir",
            "run",
        ],
    );
    assert_eq!(code, 0, "{stdout}{stderr}");
    let (code, stdout, stderr) = vidur_in(dir.path(), &["explain", "run"]);
    insta::assert_snapshot!("explain", format!("exit {code}\n{stdout}---\n{stderr}"));
    let (_, json, _) = vidur_in(dir.path(), &["explain", "run", "--json", "--no-changes"]);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let summary = fs::read_to_string(dir.path().join("run/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    for (part, latency) in [("ttft", "ttft_ms"), ("tpot", "tpot_ms"), ("e2e", "e2e_ms")] {
        let explained = value["explanation"][part]["total_ms"].as_f64().unwrap();
        let measured = summary["summary"]["latency"][latency]["mean"].as_f64().unwrap();
        assert!((explained / measured - 1.0).abs() < 1e-9, "{part}: {explained} {measured}");
    }
    // A run that cannot be repeated as it was.
    let path = dir.path().join("run/config.yml");
    let config = fs::read_to_string(&path).unwrap().replace("seed: 42", "seed: 43");
    fs::write(&path, config).unwrap();
    let (code, _, stderr) = vidur_in(dir.path(), &["explain", "run", "--no-changes"]);
    assert_eq!(code, 0);
    assert!(stderr.contains("have changed since"), "{stderr}");
}

/// What a run left in `dir`, by file name.
fn files_of(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entry = |e: std::io::Result<fs::DirEntry>| {
        let e = e.unwrap();
        (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())
    };
    fs::read_dir(dir).unwrap().map(entry).collect()
}

#[test]
fn a_run_gives_the_same_bytes_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    for predictor in ["interpolate: {}", "forest: {}"] {
        let run = |threads: &str, out: &str| {
            Command::cargo_bin("vidur")
                .unwrap()
                .current_dir(dir.path())
                .env("RAYON_NUM_THREADS", threads)
                .args(["simulate", "--config", CPU, "--no-cache", "--output-dir", out])
                .args(["--set", &format!("predictor={{{predictor}}}")])
                .args(["--set", "workload.synthetic.num_requests=100"])
                .args(["--set", "cluster.num_replicas=3"])
                .assert()
                .success();
            let files = files_of(&dir.path().join(out));
            fs::remove_dir_all(dir.path().join(out)).unwrap();
            files
        };
        let one = run("1", "run");
        assert!(one.contains_key("summary.json") && one.contains_key("chrome_trace.json"));
        assert_eq!(one, run("2", "run"), "{predictor}");
        assert_eq!(one, run("4", "run"), "{predictor}");
    }
}

#[test]
fn a_run_writes_its_files_and_the_config_it_wrote_gives_the_same_bytes_again() {
    let dir = tempfile::tempdir().unwrap();
    let small = "workload.synthetic.num_requests=40";
    let (code, ..) = vidur_in(dir.path(), &["simulate", "--set", small, "--output-dir", "a"]);
    assert_eq!(code, 0);
    let (code, ..) =
        vidur_in(dir.path(), &["simulate", "--config", "a/config.yml", "--output-dir", "b"]);
    assert_eq!(code, 0);
    for file in [
        "summary.json",
        "request_metrics.csv",
        "config.yml",
        "chrome_trace.json",
        "ttft_cdf.svg",
        "tpot_cdf.svg",
        "e2e_cdf.svg",
    ] {
        let read = |run: &str| fs::read(dir.path().join(run).join(file)).unwrap();
        assert!(read("a") == read("b"), "{file} differs");
    }
    let rows = fs::read_to_string(dir.path().join("a/request_metrics.csv")).unwrap();
    assert_eq!(rows.lines().count(), 41);
    let summary: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join("a/summary.json")).unwrap()).unwrap();
    assert_eq!(summary["summary"]["num_requests"], 40);
    assert!(summary["provenance"]["sources"][0]["sha256"].as_str().unwrap().len() == 64);
}

#[test]
fn the_cpu_profile_is_built_in_too() {
    let (code, table, stderr) = vidur(&["simulate", "--no-output", "--config", CPU]);
    assert_eq!(code, 0, "{stderr}");
    insta::assert_snapshot!("cpu_example", table);
}

#[test]
fn tensor_parallel_llamas_run_from_the_built_in_timings_without_naming_the_wiring() {
    for (model, tensor_parallel) in
        [("meta-llama/Llama-3.1-8B", 2), ("meta-llama/Llama-3.1-70B", 8)]
    {
        let degree = format!("cluster.tensor_parallel={tensor_parallel}");
        let small = "workload.synthetic.num_requests=20";
        let args = ["simulate", "--no-output", "--model", model, "--set", &degree, "--set", small];
        let (code, table, stderr) = vidur(&args);
        assert_eq!(code, 0, "{stderr}");
        assert!(
            table.starts_with(&format!("{model} on h100_sxm (TP {tensor_parallel})")),
            "{table}"
        );
    }
}

#[test]
fn profiles_in_vidurs_format_are_imported_and_not_replaced_unless_forced() {
    let dir = tempfile::tempdir().unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/data/profiling");
    let import = ["import", "vidur", source, "-o", "mine"];
    let (code, table, stderr) = vidur_in(dir.path(), &import);
    assert_eq!(code, 0, "{stderr}");
    assert!(table.contains("compute/cpu-intel-xeon-2c/Qwen/Qwen3-0.6B/mlp"), "{table}");
    let same = fs::read(Path::new(source).join("network/h100_dgx/all_reduce.csv")).unwrap();
    assert_eq!(fs::read(dir.path().join("mine/network/h100_dgx/all_reduce.csv")).unwrap(), same);
    let error = refused(dir.path(), &import);
    assert!(error.contains("exists; give another --output-dir, or --force"), "{error}");
    let mut forced = import.to_vec();
    forced.push("--force");
    assert_eq!(vidur_in(dir.path(), &forced).0, 0);
}

#[test]
fn imports_that_cannot_be_are_answered_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("no.whl"), "not a zip file").unwrap();
    let aic = ["import", "aiconfigurator", "--from", "no.whl", "--models"];
    let error = refused(dir.path(), &[&aic[..], &["meta-llama/Llama-3.1-8B"]].concat());
    assert!(error.contains("no.whl: no wheel"), "{error}");
    let error = refused(dir.path(), &[&aic[..], &["Llama-9"]].concat());
    assert!(error.contains("unknown model `Llama-9`"), "{error}");
    let error = refused(dir.path(), &["import", "llmservingsim", "nowhere"]);
    assert!(error.contains("nowhere/bench/meta.json: cannot be read"), "{error}");
    let error = refused(dir.path(), &["import", "vidur", "nowhere"]);
    assert!(error.contains("expected Vidur's data/profiling"), "{error}");
}

#[test]
fn without_output_dir_each_run_gets_a_folder_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let args = ["simulate", "--set", "workload.synthetic.num_requests=2"];
        assert_eq!(vidur_in(dir.path(), &args).0, 0);
    }
    assert_eq!(fs::read_dir(dir.path().join("runs")).unwrap().count(), 2);
}

#[test]
fn nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    fs::write(dir.path().join("a/mine"), "precious").unwrap();
    let error = refused(dir.path(), &["simulate", "--output-dir", "a"]);
    insta::assert_snapshot!("output_exists", error);
    assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
}

#[test]
fn bad_configs_are_answered_in_one_line() {
    let cases = [
        ("truncated", "scheduler: {sarathi: {chunk_size: 5"),
        ("unknown key", "scheduler:\n  sarathi:\n    chunk_sise: 512\n"),
        ("unknown scheduler", "scheduler: {sarathy: {}}\n"),
        ("wrong type", "seed: many\n"),
        ("duplicate key", "seed: 1\nseed: 2\n"),
        ("not a mapping", "- 1\n- 2\n"),
        (
            "negative rate",
            "workload:\n  synthetic:\n    num_requests: 5\n    arrivals: {poisson: {requests_per_s: -3}}\n    lengths: {fixed: {prefill_tokens: 5, decode_tokens: 5}}\n",
        ),
        (
            "zero requests",
            "workload:\n  synthetic:\n    num_requests: 0\n    arrivals: {all_at_once: {}}\n    lengths: {fixed: {prefill_tokens: 5, decode_tokens: 5}}\n",
        ),
        (
            "too long",
            "workload:\n  synthetic:\n    num_requests: 5\n    arrivals: {all_at_once: {}}\n    lengths: {fixed: {prefill_tokens: 200000, decode_tokens: 5}}\n",
        ),
        ("heads not divisible", "cluster: {tensor_parallel: 3}\n"),
        ("unknown model", "model: Qwen/Qwen3-0.7B\n"),
        ("unknown device", "cluster: {sku: h1000}\n"),
        ("does not fit", "model: Qwen/Qwen3-8B\ncluster: {sku: cpu-intel-xeon-2c}\n"),
        ("no profile", "model: meta-llama/Llama-3.2-1B\n"),
        ("no trace", "workload: {trace: {file: nowhere.csv}}\n"),
        ("variable", "profiling_dir: ${VIDUR_NO_SUCH_VARIABLE}/x\n"),
        ("no memory", "kv_cache: {size: {blocks: 3}}\n"),
        ("watermark", "kv_cache: {watermark: 1.5}\n"),
        (
            "all kept free",
            "kv_cache: {watermark: 0.99, size: {blocks: 300}}\nscheduler: {sarathi: {}}\n",
        ),
        ("reserved", "kv_cache: {size: {blocks: 200}}\nscheduler: {orca: {}}\n"),
        ("small share", "kv_cache: {size: {memory_utilization: 0.15}}\n"),
        ("large batch", "scheduler: {orca: {max_num_seqs: 4294967295}}\n"),
        ("no tokens", "scheduler: {vllm_v1: {max_num_batched_tokens: 0}}\n"),
        ("no seats", "scheduler: {sglang: {max_running_requests: 0}}\n"),
    ];
    let answers: Vec<String> =
        cases.iter().map(|(name, text)| format!("{name}\n  {}", refused_config(text))).collect();
    insta::assert_snapshot!("bad_configs", answers.join("\n"));
}

#[test]
fn settings_beyond_reason_are_served_or_refused_and_never_crash() {
    let small = "workload.synthetic.num_requests=20";
    for (set, code) in [
        ("workload.synthetic.arrivals.closed_loop.concurrency=4000000000", 0),
        ("scheduler.sarathi.chunk_size=4000000000", 0),
        ("scheduler.vllm.max_num_batched_tokens=4000000000", 0),
        ("scheduler.orca.max_request_tokens=4000000000", 2),
        ("kv_cache.size.blocks=4000000000", 0),
        // Not vllm_v1's setting.
        ("kv_cache.watermark=0.99", 0),
        ("cluster.num_replicas=100000", 0),
        ("cluster.num_replicas=4000000000", 2),
        ("workload.synthetic.num_requests=4000000000", 2),
    ] {
        // Blocks are given, so that the memory of the device refuses nothing.
        let blocks = "kv_cache.size.blocks=5000";
        let args = ["simulate", "--no-output", "--set", small, "--set", blocks, "--set", set];
        let (got, _, stderr) = vidur(&args);
        assert_eq!(got, code, "{set}: {stderr}");
    }
}

#[test]
fn bad_files_and_flags_are_answered_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    fs::write(dir.path().join("empty.csv"), "").unwrap();
    let header = "arrived_at,num_prefill_tokens,num_decode_tokens\n";
    fs::write(dir.path().join("header.csv"), header).unwrap();
    fs::write(dir.path().join("bad.csv"), format!("{header}0,10,x\n")).unwrap();
    let trace = |file: &str| format!("workload={{trace: {{file: {file}}}}}");
    let mut answers = Vec::new();
    for args in [
        vec!["simulate".to_owned(), "--config".into(), "folder".into()],
        vec!["simulate".into(), "--config".into(), "nowhere.yml".into()],
        vec!["simulate".into(), "--set".into(), trace("folder")],
        vec!["simulate".into(), "--set".into(), trace("empty.csv")],
        vec!["simulate".into(), "--set".into(), trace("header.csv")],
        vec!["simulate".into(), "--set".into(), trace("bad.csv")],
        vec!["simulate".into(), "--set".into(), "seed".into()],
        vec!["simulate".into(), "--set".into(), "scheduler.vlm.max_num_seqs=3".into()],
        vec!["simulate".into(), "--profiling-dir".into(), "nowhere".into()],
        vec!["simulate".into(), "--output-dir".into(), "empty.csv/x".into()],
        vec!["fit".into(), "--model".into(), "Qwen/Qwen3-8B".into(), "--sku".into(), "a30".into()],
        vec!["models".into(), "show".into(), "Qwen/Qwen3-0.6".into()],
        vec!["devices".into(), "show".into(), "h10".into()],
        vec!["models".into(), "add".into(), "folder".into()],
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        answers.push(format!("vidur {}\n  {}", args.join(" "), refused(dir.path(), &args)));
    }
    insta::assert_snapshot!("bad_files", answers.join("\n"));
}

#[test]
fn a_full_disk_leaves_nothing_that_looks_finished() {
    let dir = tempfile::tempdir().unwrap();
    let program = assert_cmd::cargo::cargo_bin!("vidur");
    // Files may not grow past two blocks: every write beyond fails, as on a full disk.
    let script =
        format!("trap '' XFSZ; ulimit -f 2; exec {} simulate --output-dir out", program.display());
    let output =
        Command::new("bash").arg("-c").arg(script).current_dir(dir.path()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("error: cannot write out/"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something was left behind");
}

#[test]
fn print_config_gives_a_config_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (code, config, _) = vidur_in(dir.path(), &["simulate", "--print-config"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!("default_config", config);
    fs::write(dir.path().join("all.yml"), &config).unwrap();
    let (_, again, _) =
        vidur_in(dir.path(), &["simulate", "--config", "all.yml", "--print-config"]);
    assert_eq!(config, again);
    let sglang = ["--set", "scheduler.sglang={}", "--set", "workload.synthetic.num_requests=2"];
    for more in [&["--set", "workload.synthetic.num_requests=2"], &sglang[..]] {
        let args = |last: &[&'static str]| [&["simulate"], more, last].concat();
        assert_eq!(vidur_in(dir.path(), &args(&["--output-dir", "run"])).0, 0);
        let (_, printed, _) = vidur_in(dir.path(), &args(&["--print-config"]));
        assert_eq!(printed, fs::read_to_string(dir.path().join("run/config.yml")).unwrap());
        fs::remove_dir_all(dir.path().join("run")).unwrap();
    }
}

#[test]
fn a_model_can_be_added_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 256,
        "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "vocab_size": 1000, "max_position_embeddings": 128,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "torch_dtype": "bfloat16"}"#;
    fs::write(dir.path().join("config.json"), config).unwrap();
    let (code, _, stderr) =
        vidur_in(dir.path(), &["models", "add", "config.json", "--name", "me/tiny"]);
    assert_eq!(code, 0, "{stderr}");
    let (code, shown, _) = vidur_in(dir.path(), &["models", "show", "me/tiny"]);
    assert_eq!(code, 0);
    assert!(shown.contains("hidden_size: 256"), "{shown}");
}

#[test]
fn a_model_can_be_profiled_fitted_and_simulated() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 256,
        "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "vocab_size": 1000, "max_position_embeddings": 128,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "torch_dtype": "bfloat16"}"#;
    fs::write(dir.path().join("config.json"), config).unwrap();
    let run = |args: &[&str]| {
        let (code, stdout, stderr) = vidur_in(dir.path(), args);
        assert_eq!(code, 0, "{args:?}: {stderr}");
        stdout
    };
    run(&["models", "add", "config.json", "--name", "me/tiny"]);
    // Without a budget, so that a busy machine measures the same shapes.
    let options = ["--budget", "none", "--rounds", "1", "--repeats", "2", "--sku", "here"];
    for kind in ["mlp", "attention"] {
        let mut args = vec!["profile", kind, "--models", "me/tiny"];
        args.extend(options);
        run(&args);
    }
    let table = run(&["fit", "--model", "me/tiny", "--sku", "here"]);
    assert!(table.contains("mlp_up_proj"), "{table}");
    let shown = run(&[
        "simulate",
        "--model",
        "me/tiny",
        "--sku",
        "here",
        "--set",
        "workload.synthetic.lengths={fixed: {prefill_tokens: 60, decode_tokens: 10}}",
    ]);
    assert!(shown.contains("me/tiny on here"), "{shown}");
}

#[test]
fn any_model_on_any_device_of_the_catalogue_runs_from_the_data_sheet_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let roofline = |more: &[&str]| {
        let mut args = vec!["simulate", "--set", "predictor.roofline={}"];
        args.extend(["--set", "workload.synthetic.num_requests=20"]);
        args.extend(more);
        vidur_in(dir.path(), &args)
    };
    let llama = ["--model", "meta-llama/Llama-3.1-8B", "--sku", "h100_sxm", "--output-dir", "a"];
    let (code, stdout, stderr) = roofline(&llama);
    assert_eq!(code, 0, "{stderr}");
    let said = "step times   roofline: from the data sheet, not measured\n             70 % of peak \
                arithmetic, 80 % of memory bandwidth, 3 us a kernel\n";
    assert!(stdout.contains(said), "{stdout}");
    let summary = fs::read(dir.path().join("a/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
    assert_eq!(summary["provenance"]["description"], "roofline: from the data sheet, not measured");
    assert_eq!(summary["summary"]["extrapolated_percent"], 100.0);
    // The built-in CPU has no link to share a layer over.
    let (code, _, stderr) =
        roofline(&["--sku", "cpu-intel-xeon-2c", "--set", "cluster.tensor_parallel=2"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("cpu-intel-xeon-2c states no link_bytes_per_s"), "{stderr}");
}

#[test]
fn fitted_forests_are_kept_unless_no_cache_is_asked_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let run = |more: &[&str]| {
        let output = Command::cargo_bin("vidur")
            .unwrap()
            .current_dir(dir.path())
            .env("VIDUR_CACHE_DIR", &cache)
            .args(["simulate", "--no-output", "--config", CPU])
            .args(["--set", "workload.synthetic.num_requests=20"])
            .args(["--set", "predictor.forest.num_trees=3"])
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.stdout, stderr.starts_with("note: fitted tables are not kept: "))
    };
    let fresh = run(&["--no-cache"]);
    assert!(!fresh.1);
    assert!(!cache.exists());
    fs::write(&cache, "a file, no folder").unwrap();
    assert_eq!(run(&[]), (fresh.0.clone(), true));
    fs::remove_file(&cache).unwrap();
    assert_eq!(run(&[]), fresh);
    assert_eq!(fs::read_dir(cache.join("tables")).unwrap().count(), 1);
    assert_eq!(run(&[]), fresh);
    assert_eq!(run(&["--no-cache"]), fresh);
}
