//! `vidur profile cpu-overhead --from`: what profilers recorded.

use assert_cmd::Command;
use std::fs;
use std::path::Path;
use vidur::dataset::cpu::{CpuOverhead, read_cpu_overheads};
use vidur::dataset::location::ProfileFile;

/// Recorded by vLLM 0.13.0 on a CPU (2026-11-22, four layers of Qwen3-0.6B with dummy weights, 4 requests,
/// VLLM_CUSTOM_SCOPES_FOR_PROFILING=1); all but sixty of its cpu_op events were left out.
const RECORDED: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/vllm_0.13_cpu.pt.trace.json.gz");

fn import(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("vidur")
        .unwrap()
        .current_dir(dir)
        .args([
            "profile",
            "cpu-overhead",
            "--models",
            "Qwen/Qwen3-0.6B",
            "--network-device",
            "box",
            "--from",
        ])
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn rows(dir: &Path) -> Vec<CpuOverhead> {
    let path = dir.join("data/profiling/cpu_overhead/box/Qwen/Qwen3-0.6B/cpu_overheads.csv");
    let file = ProfileFile::from_bytes("cpu", fs::read(path).unwrap());
    read_cpu_overheads(&file, &["Qwen/Qwen3-0.6B"], 1).unwrap()
}

#[test]
fn a_trace_that_vllm_recorded_becomes_rows_with_their_parts() {
    let dir = tempfile::tempdir().unwrap();
    let (code, stdout, stderr) = import(dir.path(), &[RECORDED]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("the forward pass counts as the device's part"), "{stderr}");
    assert!(stdout.contains("1 rows"), "{stdout}");
    let [row] = rows(dir.path())[..] else { panic!("{stdout}") };
    // One step reads prompts, eleven decode: ten of them up to the next.
    assert!(row.batch_size == 4 && stdout.contains(" 10 "), "{stdout}");
    for ms in
        [row.schedule_ms, row.prepare_inputs_ms, row.sampler_ms, row.process_outputs_ms, row.gap_ms]
    {
        assert!(ms > 0.01 && ms < 100.0, "{row:?}");
    }
    // The same again is the same; other kinds are not mixed with it.
    assert_eq!(import(dir.path(), &[RECORDED]).0, 0);
    assert_eq!(rows(dir.path()), [row]);
    let monitor = r#"{"neuron_runtime_data":[{"report":{"execution_stats":{"latency_stats":{"total_latency":{"p50":0.0125},"device_latency":{"p50":0.01}}}}}]}"#;
    fs::write(dir.path().join("monitor.jsonl"), monitor).unwrap();
    let line = ["monitor.jsonl", "--batch-sizes", "8"];
    let (code, _, stderr) = import(dir.path(), &line);
    assert!(code == 2 && stderr.contains("--force"), "{stderr}");
    let (code, _, stderr) = import(dir.path(), &["monitor.jsonl", "--batch-sizes", "8", "--force"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!((rows(dir.path())[0].batch_size, rows(dir.path())[0].total_ms()), (8, 2.5));
}

#[test]
fn files_that_tell_nothing_are_refused_in_one_line_with_their_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("cut.json"),
        r#"{"traceEvents":[{"ph":"X","cat":"kernel","ts":"?"}]}"#,
    )
    .unwrap();
    fs::write(dir.path().join("note.txt"), "hello\n").unwrap();
    for (args, words) in [
        (&["cut.json"][..], "cut.json: event 0: ts is `?`, expected microseconds"),
        (&["note.txt"], "note.txt: expected a trace"),
        (&["absent.json"], "absent.json: cannot be read"),
        (&[RECORDED, "--batch-sizes", "1,2"], "one --batch-sizes"),
        (&[RECORDED, "--batch-sizes", "8"], "its steps are of 4 requests, none of 8"),
    ] {
        let (code, _, stderr) = import(dir.path(), args);
        assert!(code == 2 && stderr.contains(words) && stderr.lines().count() == 1, "{stderr}");
    }
    // Whose trace it is, this machine cannot know.
    let line = ["profile", "cpu-overhead", "--models", "Qwen/Qwen3-0.6B", "--from", RECORDED];
    let output =
        Command::cargo_bin("vidur").unwrap().current_dir(dir.path()).args(line).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && stderr.contains("--network-device"), "{stderr}");
    assert!(!dir.path().join("data").exists());
}

/// Steps of a pretended engine under torch's own profiler: 20 ms of forward pass, 4 ms of preparing,
/// 3 of sampling, 5 that nothing covers. Prints what each really took.
const PROFILED: &str = r#"
import sys, time, torch
from torch.profiler import profile, record_function, ProfilerActivity
took = {}
def nap(name, ms):
    start = time.perf_counter()
    time.sleep(ms / 1e3)
    took.setdefault(name, []).append((time.perf_counter() - start) * 1e3)
with profile(activities=[ProfilerActivity.CPU]) as p:
    for step in range(8):
        with record_function("execute_new_0_cached_3"):
            with record_function("gpu_model_runner: preprocess"):
                nap("prepare", 4)
            with record_function("gpu_model_runner: forward"):
                torch.ones(8, 8) @ torch.ones(8, 8)
                nap("device", 20)
        with record_function("gpu_model_runner: sample"):
            nap("sampler", 3)
        nap("gap", 5)
p.export_chrome_trace(sys.argv[1])
for name, ms in took.items():
    ms.pop()  # The last step ends with no mark: the trace does not tell it.
    print(name, sorted(ms)[len(ms) // 2])
"#;

#[test]
fn a_trace_that_torch_records_here_says_what_was_slept() {
    let Some(python) = crate::support::torch_python("torch.profiler") else {
        eprintln!("skipped: no Python with torch; set VIDUR_TORCH_PYTHON to one");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("profiled.py"), PROFILED).unwrap();
    let output = std::process::Command::new(python)
        .current_dir(dir.path())
        .args(["profiled.py", "trace.json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let slept = String::from_utf8(output.stdout).unwrap();
    let slept = |name: &str| -> f64 {
        slept.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap()
    };
    let (code, stdout, stderr) = import(dir.path(), &["trace.json"]);
    assert_eq!(code, 0, "{stderr}");
    let [row] = rows(dir.path())[..] else { panic!("{stdout}") };
    for (name, ms) in
        [("prepare", row.prepare_inputs_ms), ("sampler", row.sampler_ms), ("gap", row.gap_ms)]
    {
        let truth = slept(name);
        assert!(
            (ms - truth).abs() < 1.0 + 0.15 * truth,
            "{name}: {ms} ms, {truth} slept\n{stdout}"
        );
    }
}
