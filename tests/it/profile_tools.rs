//! `vidur profile` and `vidur devices --detect` with stand-ins for the vendors' tools on the PATH.
#![cfg(unix)]

use assert_cmd::Command;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;

/// An empty folder to work in, and one for tools that goes before the rest of the PATH.
pub(crate) struct Box {
    dir: TempDir,
}

impl Box {
    pub(crate) fn new() -> Box {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        Box { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn tool(self, name: &str, body: &str) -> Box {
        let path = self.path().join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    pub(crate) fn run(&self, args: &[&str]) -> (i32, String, String) {
        let path = format!("{}:/usr/bin:/bin", self.path().join("bin").display());
        let output = Command::cargo_bin("vidur")
            .unwrap()
            .current_dir(self.path())
            .env("PATH", path)
            .env_remove("COLUMNS")
            .args(args)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path().join(path)).unwrap()
    }
}

/// `nvidia-smi` of a node with `n` switched H100.
fn h100s(n: usize) -> String {
    let rows: String = (0..n)
        .map(|i| format!("{i}, NVIDIA H100 80GB HBM3, GPU-{i}, 0:0.0, 81559 MiB, 580.1, 9.0\\n"))
        .collect();
    let header: String = (0..n).map(|i| format!("\\tGPU{i}")).collect();
    let matrix: String = (0..n)
        .map(|a| {
            let cells: String = (0..n).map(|b| if a == b { "\\tX" } else { "\\tNV18" }).collect();
            format!("GPU{a}{cells}\\t0-47\\t0\\n")
        })
        .collect();
    format!(
        "case $1 in\ntopo) printf '\\033[4m{header}\\tCPU Affinity\\tNUMA Affinity\\033[0m\\n{matrix}';;\n\
         *) printf 'index, name, uuid, pci.bus_id, memory.total [MiB], driver_version, compute_cap\\n{rows}';;\nesac"
    )
}

#[test]
fn detection_names_the_node_and_tells_what_it_asked() {
    let machine = Box::new().tool("nvidia-smi", &h100s(8));
    let (code, text, stderr) = machine.run(&["devices", "--detect"]);
    assert_eq!(code, 0, "{stderr}");
    for line in [
        "backend  cuda",
        "sku      h100_sxm",
        "network  h100_dgx",
        "wiring   every pair on NVLink (NV18)",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let (_, json, _) = machine.run(&["devices", "--detect", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["network_device"], "h100_dgx");
    assert_eq!(json["topology"]["dgx"]["links"], 18);
    assert_eq!(json["devices"].as_array().unwrap().len(), 8);
    let (code, _, stderr) = machine.run(&["devices", "--detect", "--backend", "neuron"]);
    assert_eq!((code, stderr.lines().count()), (2, 1), "{stderr}");
}

/// nccl-tests, whose time tells the number of devices, 10 us each; it cannot do 4.
fn perf() -> String {
    "while [ $# -gt 0 ]; do case $1 in -g) g=$2;; -b) b=$2;; -e) e=$2;; esac; shift; done\n\
     echo \"$g on $CUDA_VISIBLE_DEVICES\" >> \"$(dirname \"$0\")/../runs\"\n\
     [ $g = 4 ] && { echo 'NCCL failure' >&2; exit 3; }\n\
     s=$b; while [ $s -le $e ]; do echo \"$s 1 half sum -1 99.0 1 1 N/A ${g}0.0 1 1 N/A\"; s=$((s*2)); done"
        .into()
}

#[test]
fn a_failure_ends_nothing_else_and_only_the_devices_asked_for_take_part() {
    let machine = Box::new()
        .tool("nvidia-smi", &h100s(8))
        .tool("all_reduce_perf", &perf())
        .tool("sendrecv_perf", &perf());
    let line = ["profile", "collectives", "--max-size", "2KiB"];
    let (code, text, stderr) = machine.run(&line);
    assert_eq!(code, 1, "{stderr}");
    let reason = "all_reduce of 4 workers: all_reduce_perf: NCCL failure (exit code 3)";
    assert_eq!(stderr.lines().last(), Some(format!("error: {reason}").as_str()));
    assert!(text.contains(&format!("failed: {reason}")) && text.contains("send_recv"), "{text}");
    let csv = machine.read("data/profiling/network/h100_dgx/all_reduce.csv");
    assert_eq!(csv.lines().count(), 1 + 2 * 2, "{csv}");
    // A number of workers that cannot be, among others that can.
    fs::remove_file(machine.path().join("runs")).unwrap();
    let more =
        ["--devices", "6,3", "--num-workers-per-node", "2,8", "--force", "--network-device", "n"];
    let (code, text, stderr) = machine.run(&[&line[..], &more].concat());
    assert!(code == 2 && stderr.contains("this node has 2 devices to take part"), "{stderr}");
    assert!(text.contains("send_recv"), "{text}");
    assert_eq!(machine.read("runs"), "2 on 6,3\n2 on 6,3\n");
    let (code, _, stderr) = machine.run(&[&line[..], &["--devices", "8"]].concat());
    assert!(
        code == 2 && stderr.contains("--devices 8: this node has 8, numbered from 0"),
        "{stderr}"
    );
}

/// A Python without torch, and with vLLM as its driver shows it.
const VLLM_ONLY: &str = r#"
import json, sys
for line in sys.stdin:
    r = json.loads(line)
    answer = {"ok": {"protocol": 1, "engine": "vllm 0", "device": "gpu", "parts": {}, "missing": []}}
    if r["do"] == "hello" and "dtype" in r and "device" in r:
        answer = {"error": {"kind": "torch", "message": "cannot import torch"}}
    elif r["do"] == "drive":
        answer = {"ok": {"steps": [{"step": 3.0, "schedule": 0.5, "model_execution": 2.0}] * 8}}
    print(json.dumps({"id": r["id"], **answer}), flush=True)
"#;

#[test]
fn all_measures_what_it_can_and_its_exit_code_tells_that_a_part_failed() {
    let machine = Box::new()
        .tool("nvidia-smi", &h100s(2))
        .tool("all_reduce_perf", &perf())
        .tool("sendrecv_perf", &perf());
    fs::write(machine.path().join("vllm.py"), VLLM_ONLY).unwrap();
    let file = machine.path().join("vllm.py");
    let python = format!("case $1 in -c) echo vllm;; *) exec python3 -u {};; esac", file.display());
    let machine = machine.tool("python", &python);
    let line = ["profile", "all", "--models", "Qwen/Qwen3-0.6B", "--python", "python"];
    let more = ["--network-device", "n"];
    let (code, text, stderr) = machine.run(&[&line[..], &more, &["--dry-run"]].concat());
    assert_eq!(code, 2, "{stderr}");
    assert!(text.contains("all_reduce of 2 workers, 17 sizes from 1024"), "{text}");
    assert!(!machine.path().join("data").exists());
    let (code, text, stderr) = machine.run(&[&line[..], &more].concat());
    let reason = "operators, for any simulation: cannot import torch";
    assert!(code == 2 && stderr.lines().last().unwrap().contains(reason), "{stderr}");
    for words in
        [&format!(" - {reason}"), "n/all_reduce.csv", "n/send_recv.csv", "cpu_overheads.csv"]
    {
        assert!(text.contains(words), "{words} is not in\n{text}");
    }
    assert!(!text.contains("which needs vLLM"), "{text}");
    let csv = machine.read("data/profiling/cpu_overhead/n/Qwen/Qwen3-0.6B/cpu_overheads.csv");
    assert_eq!(csv.lines().count(), 1 + 9, "{csv}");
    // Nothing at all: the devices kept out stay out, of the engine too.
    let (code, text, stderr) =
        machine.run(&[&line[..], &["--devices", "1", "-o", "other"]].concat());
    assert!(code == 2 && text.contains("nothing was written"), "{text}{stderr}");
    assert!(
        text.contains("one takes part") && text.contains("CUDA_VISIBLE_DEVICES=1 vidur"),
        "{text}"
    );
}

#[test]
fn the_device_that_is_measured_is_the_one_that_was_meant() {
    let mlp = |machine: &Box, more: &[&str]| {
        let line = ["profile", "mlp", "--models", "Qwen/Qwen3-0.6B"];
        machine.run(&[&line[..], more].concat())
    };
    let broken = Box::new().tool("nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9");
    let graph = ["profile", "graph", "--models", "Qwen/Qwen3-0.6B"];
    let overhead = ["profile", "cpu-overhead", "--models", "Qwen/Qwen3-0.6B", "--endpoint"];
    let (_, text, _) = broken.run(&["devices", "--detect"]);
    assert!(text.contains("unknown  nvidia-smi is here but says: NVIDIA-SMI has failed"), "{text}");
    for (code, _, stderr) in [mlp(&broken, &[]), broken.run(&graph)] {
        assert!(code == 2 && stderr.contains("--backend cpu if you mean the CPU"), "{stderr}");
    }
    let (code, _, stderr) = broken.run(&[&overhead[..], &["http://127.0.0.1:9"]].concat());
    assert!(code == 2 && stderr.contains("--endpoint"), "{stderr}");
    let unknown = ["profile", "cpu-overhead", "--models", "org/model", "--network-device", "box"];
    let (code, _, stderr) = broken.run(&unknown);
    assert!(code == 2 && stderr.contains("--models: unknown model `org/model`"), "{stderr}");
    let gpus = Box::new().tool("nvidia-smi", &h100s(2));
    for (more, words) in [
        (&["--devices", "0,0"][..], "--devices names 0 twice"),
        (&["--devices", "0,1", "--backend", "cpu"], "--devices numbers GPUs"),
    ] {
        let (code, _, stderr) = mlp(&gpus, more);
        assert!(code == 2 && stderr.contains(words), "{stderr}");
    }
    let (code, _, stderr) = gpus.run(&[&graph[..], &["--devices", "0,1"]].concat());
    assert!(code == 2 && stderr.contains("graphs are timed on one device"), "{stderr}");
}

#[test]
fn nccl_tests_are_run_for_every_number_of_workers_and_never_twice() {
    // The time of the stand-in tells the number of devices: 10 us each.
    let perf = "while [ $# -gt 0 ]; do case $1 in -g) g=$2;; -b) b=$2;; -e) e=$2;; esac; shift; done\n\
        echo run >> \"$(dirname \"$0\")/../runs\"\n\
        echo '# nThread 1 nGpus'\n\
        i=0; while [ $i -lt $g ]; do echo \"#  Rank  $i Group  0 Pid 1 on box device  $i [0x00] H100\"; i=$((i+1)); done\n\
        s=$b; while [ $s -le $e ]; do echo \"$s 1 half sum -1 99.0 1 1 N/A ${g}0.0 1 1 N/A\"; s=$((s*2)); done";
    let machine = Box::new().tool("nvidia-smi", &h100s(8)).tool("all_reduce_perf", perf);
    let line = [
        "profile",
        "collectives",
        "--collective",
        "all_reduce",
        "--num-workers-per-node",
        "1,2,4,8",
        "--max-size",
        "8KiB",
    ];
    let (code, text, stderr) = machine.run(&line);
    assert_eq!(code, 0, "{stderr}");
    assert!(text.contains("data/profiling/network/h100_dgx/all_reduce.csv"), "{text}");
    let csv = machine.read("data/profiling/network/h100_dgx/all_reduce.csv");
    assert_eq!(csv.lines().count(), 1 + 3 * 4, "{csv}");
    assert!(csv.contains(",0.08,0.08,,0,8,1024,all_reduce,8,8"), "{csv}");
    assert_eq!(machine.read("runs").lines().count(), 3);
    let (code, ..) = machine.run(&line);
    assert_eq!(
        (code, machine.read("runs").lines().count()),
        (0, 3),
        "a second run measures nothing"
    );
    let manifest = machine.read("data/profiling/network/h100_dgx/all_reduce.manifest.json");
    assert!(manifest.contains("\"tool\": \"nccl-tests\""), "{manifest}");
}

#[test]
fn nccom_test_measures_between_cores_and_failed_sizes_are_told() {
    let neuron = r#"echo '[{"instance_type":"trn2.3xlarge","neuron_device":0,"nc_count":4,"connected_to":null,"memory_size":103079215104,"neuroncore_ids":[0,1,2,3]}]'"#;
    let nccom = "cat <<'END'\n\
        size(B)    count(elems)    type    time:avg(us)    algbw(GB/s)    busbw(GB/s)\n\
        1024             512    bf16            10.5           0.10           0.09\n\
        2048    Failure running neuron-bench - log file /tmp/nccom_test_log_1.log\n\
        Avg bus bandwidth:\t9.1966GB/s\n\
        1 errors found - test failed\nEND\nexit 1";
    let machine = Box::new().tool("neuron-ls", neuron).tool("nccom-test", nccom);
    let line = [
        "profile",
        "collectives",
        "--collective",
        "all_reduce",
        "--num-workers-per-node",
        "4",
        "--network-device",
        "trn2_chip",
        "--max-size",
        "2KiB",
    ];
    let (code, text, stderr) = machine.run(&line);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("2048 bytes: Failure running neuron-bench"), "{stderr}");
    assert!(text.contains("10.5") && text.contains("1 new, failed"), "{text}");
    let absent = Box::new().tool("neuron-ls", neuron);
    let (code, _, stderr) = absent.run(&line);
    assert_eq!(code, 2);
    assert!(stderr.contains("nccom-test: not found on the PATH"), "{stderr}");
    assert!(!absent.path().join("data").exists());
}

#[test]
fn two_threads_of_this_machine_are_timed_for_real_and_simulated_with() {
    let machine = Box::new();
    let (code, text, stderr) = machine.run(&[
        "profile",
        "collectives",
        "--backend",
        "cpu",
        "--num-workers-per-node",
        "2",
        "--network-device",
        "here",
        "--collective",
        "all_reduce",
        "--max-size",
        "64KiB",
        "--repeats",
        "3",
        "--devices-per-node",
        "2",
    ]);
    // A machine of one core says that it cannot.
    if std::thread::available_parallelism().unwrap().get() < 2 {
        assert_eq!(code, 2, "{stderr}");
        return;
    }
    assert_eq!(code, 0, "{stderr}");
    assert!(text.contains("all_reduce        2"), "{text}");
    let csv = machine.read("data/profiling/network/here/all_reduce.csv");
    assert_eq!(csv.lines().count(), 8, "{csv}");
}

#[test]
fn files_of_others_become_rows_and_contradictions_are_refused() {
    let machine = Box::new();
    let json = r#"{"version":3,"args":["all_reduce_perf"],"config":{"nthreads":1,"ngpus":8,"devices":[{}]},
        "results":[{"size":1024,"root":"    -1","out_of_place":null,"in_place":{"time":12.5,"nwrong":null}}]}"#;
    fs::write(machine.path().join("nccl.json"), json).unwrap();
    let line = |workers: &str, collective: &str| {
        let args = [
            "profile",
            "collectives",
            "--collective",
            collective,
            "--from",
            "nccl.json",
            "--network-device",
            "h100_dgx",
            "--num-workers-per-node",
            workers,
        ];
        machine.run(&args)
    };
    let (code, _, stderr) = line("4", "all_reduce");
    assert_eq!(code, 2);
    assert!(stderr.contains("nccl.json: has 8 workers"), "{stderr}");
    let (code, _, stderr) = line("8", "all_gather");
    assert!(code == 2 && stderr.contains("holds all_reduce, not all_gather"), "{stderr}");
    assert!(!machine.path().join("data").exists());
    let (code, _, stderr) = line("8", "all_reduce");
    assert_eq!(code, 0, "{stderr}");
    let csv = machine.read("data/profiling/network/h100_dgx/all_reduce.csv");
    assert!(csv.ends_with("\n,,0.0125,0.0125,,0,8,1024,all_reduce,8,8\n"), "{csv}");
    // The same again is nothing new; other times take nobody's place unasked.
    assert_eq!(line("8", "all_reduce").0, 0);
    fs::write(machine.path().join("nccl.json"), json.replace("12.5", "99.5")).unwrap();
    let (code, _, stderr) = line("8", "all_reduce");
    assert!(code == 2 && stderr.contains("the first 1024 bytes of 8 workers; --force"), "{stderr}");
    assert_eq!(machine.read("data/profiling/network/h100_dgx/all_reduce.csv"), csv);
}

/// A worker that knows graphs only, and leaves a NEFF where the compiler would.
const GRAPH_WORKER: &str = r#"
import json, os, sys, time
for line in sys.stdin:
    r = json.loads(line)
    ok = {}
    if r["do"] == "hello":
        ok = {"protocol": 1, "device": {"name": "NeuronCore", "vendor": "AWS"}, "kernels": ["torch-neuronx 2"],
              "attention": "graph", "dtype": "bf16", "threads": 1}
    elif r["do"] == "graph":
        if r["bucket"] == 256:
            os._exit(9)
        neff = os.path.join(r["workdir"], "graph.neff")
        open(neff, "w").close()
        time.sleep(0.007)
        ok = {"ms": [5.0, 6.0, 7.0], "compile_s": 33.5, "route": "wall clock", "neff": neff}
    print(json.dumps({"id": r["id"], "ok": ok}), flush=True)
"#;

#[test]
fn neuron_graphs_are_timed_by_the_profiler_and_a_graph_that_fails_is_told() {
    let neuron = r#"echo '[{"instance_type":"trn1.2xlarge","neuron_device":0,"nc_count":2,"connected_to":null,"numa_node":"-1","memory_size":34359738368}]'"#;
    let explorer = "case $1 in\ncapture) shift; while [ $# -gt 0 ]; do [ $1 = -s ] && d=$(dirname $2); shift; done; touch $d/profile_exec_2.ntff;;\n\
        view) echo 'INFO reading'; echo '{\"n_1_2\":{\"total_time\":0.0021,\"hbm_read_bytes\":1024,\"tensor_engine_active_time_percent\":0.27}}';;\nesac";
    let machine = Box::new().tool("neuron-ls", neuron).tool("neuron-profile", explorer);
    fs::write(machine.path().join("worker.py"), GRAPH_WORKER).unwrap();
    let worker = format!("exec python3 -u {}", machine.path().join("worker.py").display());
    let machine = machine.tool("neuron-python", &worker);
    let line = [
        "profile",
        "graph",
        "--models",
        "Qwen/Qwen3-0.6B",
        "--python",
        "neuron-python",
        "--batch-sizes",
        "4",
        "--context-buckets",
        "128",
        "--token-buckets",
        "128,256",
    ];
    let (code, text, stderr) = machine.run(&line);
    assert_eq!(code, 0, "{stderr}");
    assert!(
        text.contains("1 graphs failed") && text.contains("4 x 256 tokens: the worker died"),
        "{text}"
    );
    let csv = machine.read("data/profiling/compute/trainium1/Qwen/Qwen3-0.6B/graph.csv");
    assert_eq!(csv.lines().count(), 3, "{csv}");
    assert!(
        csv.contains("2.1,2.1,,1,token,4,128,28,True,33.5,cold,neuron-profile capture"),
        "{csv}"
    );
    assert!(csv.trim_end().ends_with(",0.27,,,,1024,"), "{csv}");
    // What is there stays: only the one that failed is tried again.
    let (_, _, stderr) = machine.run(&line);
    assert!(stderr.contains("2 graphs are measured already, 1 to go"), "{stderr}");
    // Single operators are not what this device runs.
    let (code, _, stderr) = machine.run(&["profile", "mlp", "--models", "Qwen/Qwen3-0.6B"]);
    assert!(code == 2 && stderr.contains("vidur profile graph"), "{stderr}");
}

#[test]
fn everything_at_once_ends_with_what_is_there_and_what_is_missing() {
    let machine = Box::new();
    let model = "name: me/tiny\nsource: made up\nnum_layers: 2\nhidden_size: 64\nintermediate_size: 128\n\
        num_attention_heads: 4\nnum_key_value_heads: 2\nhead_dim: 16\nvocab_size: 128\nmax_position_embeddings: 512\n\
        gated_mlp: true\nactivation: silu\nnorm: rms_norm\ntie_word_embeddings: true\nrope_theta: 10000.0\ndtype: bf16\n";
    fs::write(machine.path().join("tiny.yml"), model).unwrap();
    let line = [
        "profile",
        "all",
        "--models",
        "tiny.yml",
        "--backend",
        "cpu",
        "--sku",
        "here",
        "--threads",
        "1",
        "--budget",
        "2s",
        "--rounds",
        "1",
        "--max-tokens",
        "16",
        "--max-context",
        "64",
        "--max-batch-size",
        "2",
        "--network-device",
        "box",
    ];
    let (code, text, stderr) = machine.run(&line);
    assert_eq!(code, 0, "{stderr}");
    for words in [
        "compute/here/me/tiny/mlp.csv",
        "compute/here/me/tiny/attention.csv",
        "attn_pre_proj",
        "still missing",
        "vidur profile cpu-overhead",
    ] {
        assert!(text.contains(words), "{words} is not in\n{text}");
    }
    if std::thread::available_parallelism().unwrap().get() >= 2 {
        assert!(text.contains("network/box/all_reduce.csv"), "{text}");
        let noise = text.lines().find(|line| line.starts_with(" all_reduce  "));
        assert!(noise.is_some_and(|line| line.ends_with('%')), "{text}");
    }
}

#[test]
fn torch_times_collectives_between_processes_and_graphs_where_it_is_installed() {
    let Some(python) = crate::support::torch_python("torch.distributed") else {
        eprintln!("skipped: no Python with torch; set VIDUR_TORCH_PYTHON to one");
        return;
    };
    let machine = Box::new();
    if std::thread::available_parallelism().unwrap().get() >= 2 {
        let line = [
            "profile",
            "collectives",
            "--backend",
            "torch",
            "--python",
            &python,
            "--num-workers-per-node",
            "2",
            "--network-device",
            "here",
            "--max-size",
            "4KiB",
            "--repeats",
            "3",
            "--devices-per-node",
            "2",
        ];
        let (code, _, stderr) = machine.run(&line);
        assert_eq!(code, 0, "{stderr}");
        for name in ["all_reduce", "send_recv"] {
            let csv = machine.read(&format!("data/profiling/network/here/{name}.csv"));
            assert_eq!(csv.lines().count(), 4, "{csv}");
            assert!(csv.contains(&format!(",0,2,2048,{name},2,2")), "{csv}");
        }
    }
    let model = "name: me/tiny\nsource: made up\nnum_layers: 2\nhidden_size: 64\nintermediate_size: 128\n\
        num_attention_heads: 4\nnum_key_value_heads: 2\nhead_dim: 16\nvocab_size: 128\nmax_position_embeddings: 512\n\
        gated_mlp: true\nactivation: silu\nnorm: rms_norm\ntie_word_embeddings: true\nrope_theta: 10000.0\ndtype: bf16\n";
    fs::write(machine.path().join("tiny.yml"), model).unwrap();
    let line = [
        "profile",
        "graph",
        "--models",
        "tiny.yml",
        "--backend",
        "cpu",
        "--python",
        &python,
        "--sku",
        "here",
        "--max-context",
        "256",
        "--batch-sizes",
        "2",
    ];
    for (extra, rows) in [(&[][..], 4), (&["--per-layer"][..], 12)] {
        let (code, _, stderr) = machine.run(&[&line[..], extra].concat());
        assert_eq!(code, 0, "{stderr}");
        let csv = machine.read("data/profiling/compute/here/me/tiny/graph.csv");
        assert_eq!(csv.lines().count(), 1 + rows, "{csv}");
    }
}
