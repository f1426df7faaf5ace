//! From graphs on a Neuron device to a simulation and its report, with stand-ins for the vendor's
//! tools; and the example that a field report gave, against what it measured.
#![cfg(unix)]

use crate::profile_tools::Box;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A worker that knows graphs only: 5 ms for 128 tokens of a prompt, 1 ms and a quarter for each
/// sequence of a decode, 0.5 ms more with a bucket of 256. It tells what Neuron's runtime was told.
const WORKER: &str = r#"
import json, os, sys, time
lnc = os.environ.get("NEURON_LOGICAL_NC_CONFIG", "-"), os.environ.get("NEURON_RT_VIRTUAL_CORE_SIZE", "-")
for line in sys.stdin:
    r = json.loads(line)
    ok = {}
    if r["do"] == "hello":
        ok = {"protocol": 1, "device": {"name": "NeuronCore", "vendor": "AWS"}, "kernels": ["torch-neuronx 2"],
              "attention": "graph", "dtype": "bf16", "threads": 1}
    elif r["do"] == "graph":
        if os.path.exists("broken") and r["bucket"] == 256:
            os._exit(9)
        prompt = r["phase"] == "context"
        ms = 5.0 * r["bucket"] / 128 if prompt else 1.0 + 0.25 * r["batch"] + (0.5 if r["bucket"] > 128 else 0)
        time.sleep(ms / 1e3)
        ok = {"ms": [ms, ms, ms], "compile_s": 33.5, "route": "wall clock, lnc %s %s %s" % (*lnc, r["lnc"]), "neff": None}
    print(json.dumps({"id": r["id"], "ok": ok}), flush=True)
"#;

/// nccom-test on the cores of one chip: 16 microseconds whatever the size.
const NCCOM: &str = r#"while [ $# -gt 0 ]; do case $1 in -b) b=$2;; -e) e=$2;; esac; shift; done
echo 'size(B)    count(elems)    type    time:avg(us)    algbw(GB/s)    busbw(GB/s)'
s=$b; while [ $s -le $e ]; do echo "$s 1 bf16 16.0 0.1 0.1"; s=$((s*2)); done"#;

fn inf2(instance: &str, lnc: &str) -> Box {
    let list = format!(
        r#"echo '[{{"instance_type":"{instance}","neuron_device":0,"nc_count":2,"connected_to":null,{lnc}"memory_size":34359738368,"neuroncore_ids":[0,1]}}]'"#
    );
    let machine = Box::new().tool("neuron-ls", &list).tool("nccom-test", NCCOM);
    fs::write(machine.path().join("worker.py"), WORKER).unwrap();
    let worker = format!("exec python3 -u {}", machine.path().join("worker.py").display());
    machine.tool("neuron-python", &worker)
}

fn mean(summary: &str, latency: &str) -> f64 {
    let summary: Value = serde_json::from_str(summary).unwrap();
    summary["summary"]["latency"][latency]["mean"].as_f64().unwrap()
}

const ALL: [&str; 11] = [
    "profile",
    "all",
    "--models",
    "Qwen/Qwen3-0.6B",
    "--python",
    "neuron-python",
    "--tensor-parallel",
    "1,2",
    "--max-context",
    "256",
    "--max-batch-size=4",
];

#[test]
fn one_command_profiles_a_neuron_machine_and_its_graphs_are_simulated_and_reported() {
    let machine = inf2("inf2.xlarge", "");
    // The largest bucket fails at first: everything else stands, and the table says what is missing.
    fs::write(machine.path().join("broken"), "").unwrap();
    let (code, text, stderr) = machine.run(&ALL);
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stderr.contains("[1 of 2] graphs") && stderr.contains("[2 of 2] collectives"),
        "{stderr}"
    );
    for words in ["graph.csv", "inferentia2_chip/all_reduce.csv", "graphs that failed, the first"] {
        assert!(text.contains(words), "{words} is not in\n{text}");
    }
    fs::remove_file(machine.path().join("broken")).unwrap();
    let (code, text, stderr) = machine.run(&ALL);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("6 graphs are measured already, 6 to go"), "{stderr}");
    assert!(!text.contains("failed") && text.contains("vidur profile cpu-overhead"), "{text}");
    // What is on disk is not missing, whatever this run is asked for.
    let one = ALL.map(|word| if word == "1,2" { "1" } else { word });
    let (_, text_of_one, _) = machine.run(&one);
    assert!(!text_of_one.contains("at tensor parallel"), "{text_of_one}");
    // The command that the table ends with runs as it stands.
    let command = text.split("to simulate\n").nth(1).unwrap().trim().strip_prefix("vidur").unwrap();
    let vidur = assert_cmd::cargo::cargo_bin("vidur");
    let shell =
        format!("cd '{}' && '{}' {command} --no-output", machine.path().display(), vidur.display());
    let output = std::process::Command::new("sh").args(["-c", &shell]).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && shown.contains("inferentia2 (TP 2), vllm_neuron"),
        "{output:?}"
    );
    let csv = machine.read("data/profiling/compute/inferentia2/Qwen/Qwen3-0.6B/graph.csv");
    assert_eq!(csv.lines().count(), 1 + 2 * (2 + 2 * 2), "{csv}");

    // One request of 100 prompt and 30 output tokens: contexts 101 to 127 in the bucket of 128, 128 and
    // 129 in that of 256. All-reduces of a share: two a layer of 16 us.
    let run = |sets: &[&str]| {
        let lengths =
            "workload.synthetic.lengths={fixed: {prefill_tokens: 100, decode_tokens: 30}}";
        let mut line = vec![
            "simulate",
            "--model",
            "Qwen/Qwen3-0.6B",
            "--sku",
            "inferentia2",
            "--set",
            "scheduler={vllm_neuron: {max_num_seqs: 4, max_model_len: 256}}",
            "--set",
            "workload.synthetic.num_requests=1",
            "--set",
            lengths,
            "--output-dir",
            "run",
        ];
        sets.iter().for_each(|set| line.extend(["--set", set]));
        let _ = fs::remove_dir_all(machine.path().join("run"));
        let (code, text, stderr) = machine.run(&line);
        assert_eq!(code, 0, "{stderr}");
        assert!(text.contains("step times   graph"), "{text}");
        mean(&machine.read("run/summary.json"), "e2e_ms")
    };
    let alone = 5.0 + 27.0 * 1.25 + 2.0 * 1.75;
    let e2e = run(&[]);
    assert!((e2e - alone).abs() < 1e-6, "{e2e} against {alone}");
    let all_reduces = |steps: f64| steps * 56.0 * 0.016;
    let e2e = run(&["cluster.tensor_parallel=2"]);
    let shared = alone + all_reduces(30.0);
    assert!((e2e - shared).abs() < 1e-3, "{e2e} against {shared}");
    // Compiled for batches of four only, and without buckets.
    let e2e = run(&[
        "predictor={graph: {enable_bucketing: false, token_generation_batches: [4]}}",
        "metrics.operators=true",
    ]);
    assert!((e2e - (10.0 + 29.0 * 2.5)).abs() < 1e-6, "{e2e}");
    let summary = machine.read("run/summary.json");
    for words in ["context_graph", "token_graph", "graph_padding", "graph.csv"] {
        assert!(summary.contains(words), "{words} is not in {summary}");
    }
    let (code, _, stderr) = machine.run(&["report", "run"]);
    assert_eq!(code, 0, "{stderr}");
    let html = machine.read("run/report.html");
    assert!(html.contains("context_graph") && html.contains("graph.csv"));
}

#[test]
fn what_graphs_cannot_do_is_refused_with_the_cure() {
    let machine = inf2("inf2.xlarge", "");
    assert_eq!(machine.run(&ALL).0, 0);
    let elsewhere = ["simulate", "--model", "Qwen/Qwen3-8B", "--sku", "trainium2"];
    let (code, _, stderr) = machine.run(&elsewhere);
    assert!(
        code == 2 && stderr.contains("`vidur profile graph --models Qwen/Qwen3-8B`"),
        "{stderr}"
    );
    let fit = ["fit", "--model", "Qwen/Qwen3-0.6B", "--sku", "inferentia2"];
    let (code, _, stderr) = machine.run(&fit);
    assert!(code == 2 && stderr.contains("there is nothing to fit"), "{stderr}");
    for (sets, expected) in [
        (
            &[][..],
            "scheduler.vllm_v1 cuts prompts into pieces, and compiled graphs read prompts whole",
        ),
        (
            &["scheduler={vllm_neuron: {max_num_seqs: 4}}"],
            "largest context-encoding bucket of data/profiling",
        ),
        (
            &[
                "scheduler={vllm_neuron: {}}",
                "workload.synthetic.lengths={fixed: {prefill_tokens: 9, decode_tokens: 9}}",
            ],
            "scheduler.vllm_neuron.max_num_seqs: 32 sequences may decode together",
        ),
        (
            &["cluster.tensor_parallel=4", "scheduler={vllm_neuron: {}}"],
            "no graphs at tensor parallel 4; it has 1, 2",
        ),
        (
            &["cluster.pipeline_parallel=2", "scheduler={vllm_neuron: {}}"],
            "cluster.pipeline_parallel: 2; whole graphs hold every layer",
        ),
    ] {
        let mut line = vec!["simulate", "--model", "Qwen/Qwen3-0.6B", "--sku", "inferentia2"];
        sets.iter().for_each(|set| line.extend(["--set", set]));
        let (code, _, stderr) = machine.run(&line);
        assert!(code == 2 && stderr.contains(expected), "{sets:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn the_logical_core_config_reaches_runtime_and_compiler_and_the_manifest() {
    let machine = inf2("trn2.3xlarge", "\"logical_neuroncore_config\":2,");
    let line = [
        "profile",
        "graph",
        "--models",
        "Qwen/Qwen3-0.6B",
        "--python",
        "neuron-python",
        "--context-buckets",
        "128",
        "--token-buckets",
        "128",
        "--batch-sizes",
        "1",
    ];
    let (code, _, stderr) = machine.run(&line);
    assert_eq!(code, 0, "{stderr}");
    let folder = "data/profiling/compute/trainium2/Qwen/Qwen3-0.6B";
    let csv = machine.read(&format!("{folder}/graph.csv"));
    assert!(csv.contains("lnc 2 2 2"), "{csv}");
    assert!(
        machine.read(&format!("{folder}/graph.manifest.json")).contains("logical-core-config 2")
    );
    // Cores of another size are another device.
    let (code, _, stderr) = machine.run(&[&line[..], &["--lnc", "1"]].concat());
    assert!(code == 2 && stderr.contains("measured under other conditions"), "{stderr}");
    let (code, _, stderr) = machine.run(&[&line[..], &["--lnc", "1", "--sku", "small"]].concat());
    assert_eq!(code, 0, "{stderr}");
    let csv = machine.read("data/profiling/compute/small/Qwen/Qwen3-0.6B/graph.csv");
    assert!(csv.contains("lnc 1 1 1"), "{csv}");
}

/// The example's figures are those of a field report: a query of 20 prompts took 299.2 ms, a batch of
/// eight 112 to 126 ms, and its own reading of a batch was one graph of 14.28 ms.
#[test]
fn the_reranker_of_the_field_report_is_predicted_from_one_graph() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = root.join("examples/inf2_reranker.yml");
    let profiles = format!("profiling_dir={}", root.join("examples/inf2/profiling").display());
    let last = |sets: &[&str]| {
        let machine = Box::new();
        let mut line =
            vec!["simulate", "--config", config.to_str().unwrap(), "--output-dir", "run"];
        [&[profiles.as_str()], sets].concat().iter().for_each(|set| line.extend(["--set", *set]));
        let (code, _, stderr) = machine.run(&line);
        assert_eq!(code, 0, "{stderr}");
        let csv = machine.read("run/request_metrics.csv");
        let mut reader = csv::Reader::from_reader(csv.as_bytes());
        let at = reader.headers().unwrap().iter().position(|h| h == "request_e2e_time").unwrap();
        let e2e = reader.records().map(|r| r.unwrap()[at].parse::<f64>().unwrap());
        e2e.fold(0.0, f64::max) * 1e3
    };
    let query = last(&[]);
    assert!((query - 20.0 * 14.276642922).abs() < 1e-4, "{query}");
    assert!((query / 299.2 - 1.0).abs() < 0.05, "{query}");
    let eight = last(&["workload.synthetic.num_requests=8"]);
    assert!((112.0..=126.0).contains(&eight), "{eight}");
    let unbucketed = last(&["predictor.graph.enable_bucketing=false"]);
    assert!((unbucketed - 1202.9).abs() < 0.01, "{unbucketed}");
    let machine = Box::new();
    let off = "predictor.graph.enable_bucketing=false";
    let line = ["explain", config.to_str().unwrap(), "--no-changes", "--set", &profiles];
    let (code, text, stderr) = machine.run(&[&line[..], &["--set", off]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(text.contains("short of     neither arithmetic nor memory bandwidth"), "{text}");
    // 127 of 2048 tokens are not padding.
    let padding = text.lines().find(|l| l.trim_start().starts_with("padding")).unwrap();
    assert!(padding.contains("56.42"), "{text}");
}
