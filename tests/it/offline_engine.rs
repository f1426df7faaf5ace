//! `vidur profile cpu-overhead` through a stand-in of vLLM: a Python package with the classes and
//! methods of its V1 engine, each of which sleeps for a known time and notes how long it really
//! slept.

use assert_cmd::Command;
use std::fs;
use std::path::Path;
use vidur::dataset::cpu::{CpuOverhead, read_cpu_overheads};
use vidur::dataset::location::ProfileFile;

/// Milliseconds: schedule 3, prepare 2 + 3, forward 8, logits 2, sample 4, bookkeeping 2, update 3,
/// outputs 2, and 5 that no method covers. Two requests join a step.
const VLLM: &str = r#"
import os, time
__version__ = "0.13.0"
TRUTH = os.environ["FAKE_TRUTH"]
DIES, HANGS = (int(os.environ.get("FAKE_" + n, 0)) for n in ("DIES", "HANGS"))
assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
print("INFO loading", flush=True)
state = {"batch": 0, "naps": {}}

def nap(part, ms):
    start = time.perf_counter()
    time.sleep(ms / 1e3)
    state["naps"][part] = state["naps"].get(part, 0.0) + (time.perf_counter() - start) * 1e3

class SamplingParams:
    def __init__(self, **options):
        assert options["ignore_eos"] and options["max_tokens"] > 8
        self.max_tokens = options["max_tokens"]

class Out:
    def __init__(self, request_id, finished):
        self.request_id, self.finished = request_id, finished

class Scheduler:
    def __init__(self):
        self.waiting, self.running = [], []
    def schedule(self):
        nap("schedule", 3)
        for _ in range(2):
            if self.waiting:
                self.running.append(self.waiting.pop(0))
        state["batch"] = len(self.running)
        return list(self.running)
    def update_from_output(self, scheduled, tokens):
        nap("process", 3)
        return scheduled

class Model:
    def __call__(self, x):
        nap("device", 8)
    def compute_logits(self, x):
        nap("device", 2)

class GPUModelRunner:
    def __init__(self):
        self.model = Model()
    def _update_states(self, scheduled):
        nap("prepare", 2)
    def _prepare_inputs(self, scheduled):
        nap("prepare", 3)
    def _model_forward(self, x):
        return self.model(x)
    def execute_model(self, scheduled):
        self._update_states(scheduled)
        self._prepare_inputs(scheduled)
        if len(scheduled) == DIES:
            os._exit(3)
        if len(scheduled) == HANGS:
            time.sleep(600)
        self._model_forward(scheduled)
        self.model.compute_logits(scheduled)
    def _sample(self, x):
        nap("sampler", 4)
    def _bookkeeping_sync(self, x):
        nap("sampler", 2)
    def sample_tokens(self, scheduled):
        self._sample(scheduled)
        self._bookkeeping_sync(scheduled)
        return scheduled

for name in os.environ.get("FAKE_WITHOUT", "").split():
    if name == "_model_forward":
        def execute_model(self, scheduled):
            self._update_states(scheduled)
            self._prepare_inputs(scheduled)
            self.model(scheduled)
            self.model.compute_logits(scheduled)
        GPUModelRunner.execute_model = execute_model
        del GPUModelRunner._model_forward
    else:
        setattr(GPUModelRunner, name, None)

class Worker:
    def __init__(self):
        self.model_runner = GPUModelRunner()

class Wrapper:
    def __init__(self):
        self.worker = Worker()

class Executor:
    def __init__(self):
        self.wrapper = Wrapper()
    def collective_rpc(self, method, args=()):
        return [method(self.wrapper, *args)]

class EngineCore:
    def __init__(self):
        self.scheduler, self.model_executor = Scheduler(), Executor()

class InprocClient:
    def __init__(self):
        self.engine_core = EngineCore()

class OutputProcessor:
    def process_outputs(self, outputs):
        nap("process", 2)
        return outputs

class ModelConfig:
    max_model_len = 4096

class LLMEngine:
    def __init__(self):
        self.engine_core, self.output_processor = InprocClient(), OutputProcessor()
        self.model_config, self.left, self.slept = ModelConfig(), {}, []
    def add_request(self, request_id, prompt, params):
        assert len(prompt["prompt_token_ids"]) == 32
        self.left[request_id] = params.max_tokens
        self.engine_core.engine_core.scheduler.waiting.append(request_id)
    def has_unfinished_requests(self):
        return bool(self.left)
    def abort_request(self, ids):
        scheduler = self.engine_core.engine_core.scheduler
        for name in ids:
            self.left.pop(name, None)
        scheduler.running = [r for r in scheduler.running if r in self.left]
        scheduler.waiting = [r for r in scheduler.waiting if r in self.left]
        with open(TRUTH, "a") as out:
            for n, part, ms in self.slept:
                out.write(f"{n} {part} {ms}\n")
        self.slept = []
    def step(self):
        state["naps"] = {}
        core = self.engine_core.engine_core
        scheduled = core.scheduler.schedule()
        runner = core.model_executor.wrapper.worker.model_runner
        runner.execute_model(scheduled)
        sample = runner.sample_tokens
        tokens = scheduled
        if callable(getattr(runner, "_sample", None)):
            tokens = sample(scheduled)
        else:
            nap("sampler", 6)
        outputs = core.scheduler.update_from_output(scheduled, tokens)
        outputs = self.output_processor.process_outputs(outputs)
        nap("gap", 5)
        self.slept.extend((len(scheduled), part, ms) for part, ms in state["naps"].items())
        for name in scheduled:
            self.left[name] -= 1
        return [Out(name, self.left[name] == 0) for name in outputs]

class LLM:
    def __init__(self, **options):
        assert options["load_format"] == "dummy" and options["skip_tokenizer_init"]
        if "async_scheduling" in options:
            raise TypeError("got an unexpected keyword argument 'async_scheduling'")
        if options["model"] == "broken":
            raise ValueError("no config.json in\n broken")
        with open(TRUTH, "a") as out:
            out.write("started\n")
        self.llm_engine = LLMEngine()
"#;

/// Steps that are timed.
const STEPS: usize = 12;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("py/vllm")).unwrap();
        fs::write(dir.path().join("py/vllm/__init__.py"), VLLM).unwrap();
        Place { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn run(&self, more: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
        let output = Command::cargo_bin("vidur")
            .unwrap()
            .current_dir(self.path())
            .env("PYTHONPATH", self.path().join("py"))
            .env("FAKE_TRUTH", self.path().join("truth"))
            .envs(env.iter().copied())
            .args([
                "profile",
                "cpu-overhead",
                "--models",
                "Qwen/Qwen3-0.6B",
                "--network-device",
                "box",
            ])
            .args(["--batch-sizes", "1,3,4", "--output-tokens", "12"])
            .args(more)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn file(&self, name: &str) -> String {
        let folder = self.path().join("data/profiling/cpu_overhead/box/Qwen/Qwen3-0.6B");
        fs::read_to_string(folder.join(name)).unwrap()
    }

    fn rows(&self) -> Vec<CpuOverhead> {
        let file = ProfileFile::from_bytes("cpu", self.file("cpu_overheads.csv"));
        read_cpu_overheads(&file, &["Qwen/Qwen3-0.6B"], 1).unwrap()
    }

    fn starts(&self) -> usize {
        let truth = fs::read_to_string(self.path().join("truth")).unwrap_or_default();
        truth.lines().filter(|line| *line == "started").count()
    }

    /// Median of what a part slept in the steps of this batch that were timed: the last ones.
    fn truth(&self, batch: u64, part: &str) -> f64 {
        let text = fs::read_to_string(self.path().join("truth")).unwrap();
        let of = |line: &str| -> Option<f64> {
            let words: Vec<&str> = line.split(' ').collect();
            let [n, name, ms] = words[..] else { return None };
            (n.parse() == Ok(batch) && name == part).then(|| ms.parse().unwrap())
        };
        let all: Vec<f64> = text.lines().filter_map(of).collect();
        vidur::stats::median(&all[all.len() - STEPS..]).unwrap()
    }
}

/// Within two milliseconds and a fifth: a busy machine interrupts between two clocks too.
#[track_caller]
fn close(what: &str, measured: f64, truth: f64) {
    assert!(
        (measured - truth).abs() < 2.0 + 0.2 * truth,
        "{what}: {measured} ms measured, {truth} ms slept"
    );
}

#[test]
fn every_part_comes_out_as_long_as_it_slept() {
    let place = Place::new();
    let (code, stdout, stderr) = place.run(&[], &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("host ms") && stdout.contains("3 rows"), "{stdout}");
    let rows = place.rows();
    assert_eq!(rows.iter().map(|r| r.batch_size).collect::<Vec<_>>(), [1, 3, 4]);
    for row in rows {
        let truth = |part| place.truth(row.batch_size, part);
        close("schedule", row.schedule_ms, truth("schedule"));
        close("prepare", row.prepare_inputs_ms, truth("prepare"));
        close("sampler", row.sampler_ms, truth("sampler"));
        close("process", row.process_outputs_ms, truth("process"));
        close("gap", row.gap_ms, truth("gap"));
        // What went in: parts of 3, 5, 6 and 5 ms, and 5 ms beside them.
        assert!(row.total_ms() >= 24.0, "{row:?}");
    }
    let csv = place.file("cpu_overheads.csv");
    let column =
        csv.lines().next().unwrap().split(',').position(|c| c == "model_execution_e2e_min");
    let device: f64 =
        csv.lines().nth(1).unwrap().split(',').nth(column.unwrap()).unwrap().parse().unwrap();
    assert!(device >= 10.0, "{device}");
    let manifest = place.file("cpu_overheads.manifest.json");
    assert!(manifest.contains("vllm 0.13.0, offline, graphs"), "{manifest}");
    assert!(manifest.contains("schedule: Scheduler.schedule"), "{manifest}");
    // All there: nothing is started again.
    let (code, stdout, stderr) = place.run(&[], &[]);
    assert_eq!((code, place.starts()), (0, 1), "{stderr}");
    assert!(stdout.contains("nothing to do"), "{stdout}");
    // Other settings are another source.
    let (code, _, stderr) = place.run(&["--enforce-eager"], &[]);
    assert!(code == 2 && stderr.contains("--force"), "{stderr}");
}

#[test]
fn a_batch_size_that_dies_or_hangs_costs_itself_and_is_tried_again() {
    for (env, words) in
        [(("FAKE_DIES", "3"), "exit status: 3"), (("FAKE_HANGS", "3"), "no answer within 4s")]
    {
        let place = Place::new();
        let (code, stdout, stderr) = place.run(&["--timeout", "4s"], &[env]);
        assert_eq!(code, 0, "{stderr}");
        assert!(stdout.contains("batch 3 failed") && stdout.contains(words), "{stdout}");
        assert_eq!(place.rows().iter().map(|r| r.batch_size).collect::<Vec<_>>(), [1, 4]);
        let manifest: serde_json::Value =
            serde_json::from_str(&place.file("cpu_overheads.manifest.json")).unwrap();
        let failed = manifest["runs"][0]["failed"].as_array().unwrap();
        assert_eq!(failed.len(), 1, "{manifest}");
        assert!(failed[0]["reason"].as_str().unwrap().contains(words), "{manifest}");
        let (code, _, stderr) = place.run(&[], &[]);
        assert_eq!(code, 0, "{stderr}");
        assert!(stderr.contains("2 batch sizes are measured already, 1 to go"), "{stderr}");
        assert_eq!(place.rows().len(), 3);
        assert_eq!(place.starts(), 3, "started, again after the failure, and by the second run");
    }
}

#[test]
fn parts_without_a_method_end_in_the_gap_and_older_runners_are_timed_too() {
    let place = Place::new();
    let without = "_sample _bookkeeping_sync _model_forward";
    let (code, stdout, stderr) = place.run(&["--batch-sizes", "2"], &[("FAKE_WITHOUT", without)]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("no method known to us for sampler"), "{stderr}");
    let row = place.rows()[0];
    assert_eq!(row.sampler_ms, 0.0);
    close("gap", row.gap_ms, place.truth(2, "gap") + place.truth(2, "sampler"));
    close("prepare", row.prepare_inputs_ms, place.truth(2, "prepare"));
    assert!(stdout.contains(" - "), "{stdout}");
    assert!(place.file("cpu_overheads.manifest.json").contains("Model.__call__"));
}

#[test]
fn no_vllm_and_an_engine_that_does_not_start_are_one_line_each() {
    let place = Place::new();
    let (code, _, stderr) = place.run(&["--model-path", "broken"], &[]);
    assert!(code == 2 && stderr.contains("ValueError: no config.json in broken"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    fs::remove_dir_all(place.path().join("py")).unwrap();
    let (code, _, stderr) = place.run(&[], &[]);
    assert_eq!((code, stderr.lines().count()), (2, 1), "{stderr}");
    assert!(stderr.contains("--python") && stderr.contains("--endpoint"), "{stderr}");
    let (code, _, stderr) = place.run(&["--python", "no-such-python"], &[]);
    assert!(code == 2 && stderr.contains("cannot start no-such-python"), "{stderr}");
    assert!(!place.path().join("data").exists());
}
