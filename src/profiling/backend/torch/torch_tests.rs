//! The protocol against a scripted worker that dies, hangs, prints rubbish and runs out of memory
//! when told to, and against torch where it is found.

use super::*;
use crate::profiling::compute::ops_of;
use crate::profiling::host::Host;
use crate::profiling::runner::testing::model;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;

/// Answers as the worker does, from a table of misfortunes: the shape with this many tokens fails
/// so. Each start is counted in a file beside it.
const STAND_IN: &str = r#"
import json, os, sys, time
here = os.path.dirname(os.path.abspath(__file__))
def note(name):
    with open(os.path.join(here, name), "a") as f:
        f.write("x\n")
note("starts")
OPS = "emb input_layernorm attn_pre_proj attn_qk_norm attn_rope attn_post_proj post_attention_layernorm mlp_up_proj mlp_act mlp_down_proj add lm_head".split()
for line in sys.stdin:
    r = json.loads(line)
    def say(ok): print(json.dumps({"id": r["id"], "ok": ok}), flush=True)
    def no(kind): print(json.dumps({"id": r["id"], "error": {"kind": kind, "message": kind + " it is"}}), flush=True)
    if r["do"] == "hello": device = r["device"]
    woe = os.path.join(here, device + "-" + r["do"])
    if os.path.exists(woe):
        kind = open(woe).read()
        if kind == "death": os._exit(1)
        if kind == "hang": time.sleep(60)
        no(kind)
    elif r["do"] == "hello":
        if os.path.exists(os.path.join(here, "no-torch")): no("torch"); continue
        say({"protocol": 2 if os.path.exists(os.path.join(here, "other")) else r["protocol"],
             "device": {"name": "Stand-in", "vendor": "vidur", "cores": 1, "memory_bytes": 1 << 30},
             "kernels": ["stand-in 1"], "attention": "stand, in", "dtype": "f32", "threads": 1})
    elif r["do"] == "peaks": say({"flops_per_s": 1e12, "bytes_per_s": 1e11})
    elif r["do"] == "prepare": note("prepares"); say({})
    elif r["do"] == "layers": say({"ms": [0.001, 0.002]})
    else:
        n = r["shape"].get("tokens", 0)
        if n == 2: print("about to die", file=sys.stderr, flush=True); os._exit(3)
        if n == 3: time.sleep(60)
        if n == 4: print("Segmentation fault?", flush=True); continue
        if n == 6: no("memory"); continue
        if n == 8: say({"samples": {"emb": [1e-3]}}); continue
        if n == 12: print(json.dumps({"id": 10**6, "ok": {}}), flush=True); continue
        if n == 16: say({"samples": {op: [float("nan")] for op in OPS}}); continue
        if n == 20: say({"samples": {op: [1e300] for op in OPS}}); continue
        if n == 24: say({"samples": {op: [0.0] for op in OPS}}); continue
        if n >= 100: time.sleep(0.2)
        say({"samples": {op: [1e-3 * max(n, 1)] * r["repeats"] for op in OPS if op != "lm_head" or r["lm_head"]}})
"#;

/// A folder with an interpreter that runs the stand-in whatever it is asked to run.
fn stand_in() -> (TempDir, TorchConfig) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("stand_in.py"), STAND_IN).unwrap();
    let python = dir.path().join("python");
    let text = format!("#!/bin/sh\nexec python3 -u {}\n", dir.path().join("stand_in.py").display());
    std::fs::write(&python, text).unwrap();
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = config(python);
    (dir, config)
}

fn config(python: PathBuf) -> TorchConfig {
    TorchConfig {
        python,
        devices: vec!["cpu".into()],
        dtype: Some(Dtype::F32),
        threads: Some(1),
        cache_bytes: 1 << 20,
        plain_kernels: true,
        limit: Duration::from_secs(30),
        seed: 1,
        lnc: None,
    }
}

const EFFORT: Effort =
    Effort { repeats: 2, min_time: Duration::ZERO, max_time: Duration::from_millis(100) };

fn lines(dir: &TempDir, name: &str) -> usize {
    std::fs::read_to_string(dir.path().join(name)).map_or(0, |text| text.lines().count())
}

fn shard() -> Shard {
    Shard { model: model(), tensor_parallel: 1 }
}

#[test]
fn every_misfortune_costs_its_shape_only() {
    let (dir, mut config) = stand_in();
    config.limit = Duration::from_secs(3);
    let mut backend = TorchBackend::new(config, &Host::detect()).unwrap();
    assert_eq!(backend.device().name, "Stand-in");
    assert_eq!(backend.attention_kernel(), "stand  in", "a cell that needs no quotes");
    backend.prepare(&shard(), Purpose::Mlp).unwrap();
    for (tokens, reason, restarts) in [
        (2, "the worker died (exit status: 3; about to die)", true),
        (3, "no answer within 3s", true),
        (4, "the worker printed `Segmentation fault?`", true),
        (6, "out of memory: memory it is", false),
        (8, "the worker's answer for input_layernorm: no samples", false),
        (12, "the worker answered another question", true),
        (16, "a sample that is no time", false),
        (20, "the worker's answer for emb: a sample of 1e300 ms, within a call of", false),
        (24, "a sample that is no time", false),
    ] {
        let before = (lines(&dir, "starts"), lines(&dir, "prepares"));
        let error = backend.measure(Shape::Tokens(tokens), EFFORT).unwrap_err();
        // `NaN` is no JSON: the worker counts as printing rubbish.
        let nan = tokens == 16;
        assert!(error.to_string().contains(if nan { "NaN" } else { reason }), "{tokens}: {error}");
        assert!(matches!(error, BackendError::Shape(_)), "{tokens}: {error}");
        let samples = backend.measure(Shape::Tokens(1), EFFORT).unwrap();
        assert_eq!(samples.len(), ops_of(&model(), Shape::Tokens(1)).len());
        let after = (lines(&dir, "starts"), lines(&dir, "prepares"));
        let more = usize::from(restarts || nan);
        assert_eq!((after.0 - before.0, after.1 - before.1), (more, more), "{tokens}");
    }
}

#[test]
fn a_device_that_keeps_dying_is_lost() {
    let (_dir, config) = stand_in();
    let mut backend = TorchBackend::new(config, &Host::detect()).unwrap();
    backend.prepare(&shard(), Purpose::Mlp).unwrap();
    for _ in 0..20 {
        match backend.measure(Shape::Tokens(2), EFFORT).unwrap_err() {
            // Preparing again answers, so deaths are not in a row.
            BackendError::Shape(reason) => assert!(reason.contains("died"), "{reason}"),
            BackendError::Lost(reason) => panic!("{reason}"),
        }
    }
    // An interpreter that goes away cannot be started again.
    std::fs::remove_file(backend_python(&backend)).unwrap();
    let mut last = backend.measure(Shape::Tokens(1), EFFORT).unwrap_err();
    for _ in 0..4 {
        last = backend.measure(Shape::Tokens(1), EFFORT).unwrap_err();
    }
    assert!(matches!(last, BackendError::Lost(_)), "{last}");
}

fn backend_python(backend: &TorchBackend) -> PathBuf {
    backend.lanes[0].python().to_owned()
}

#[test]
fn several_devices_work_at_the_same_time() {
    let (dir, mut config) = stand_in();
    config.devices = vec!["cuda:0".into(), "cuda:1".into(), "cuda:2".into()];
    let mut backend = TorchBackend::new(config, &Host::detect()).unwrap();
    backend.prepare(&shard(), Purpose::Mlp).unwrap();
    assert_eq!((backend.lanes(), lines(&dir, "starts"), lines(&dir, "prepares")), (3, 3, 3));
    let shapes: Vec<Shape> =
        (0..9).map(|i| Shape::Tokens(100 + i)).chain([Shape::Tokens(2)]).collect();
    let begin = std::time::Instant::now();
    let mut seen = vec![None; shapes.len()];
    backend.measure_all(&shapes, EFFORT, &mut |i, result| seen[i] = Some(result.is_ok()));
    // Nine times 0.2 s on three devices; one after the other it would be 1.8 s.
    assert!(begin.elapsed() < Duration::from_millis(1500), "{:?}", begin.elapsed());
    assert_eq!(seen[..9], [Some(true); 9]);
    assert_eq!(seen[9], Some(false));
}

#[test]
fn a_device_that_fails_is_left_out_with_a_note_and_the_others_measure() {
    for (request, woe, words) in [
        ("hello", "device", "cuda:0 is left out: device it is"),
        ("hello", "death", "cuda:0 is left out: the worker died"),
        ("prepare", "memory", "cuda:0 is left out: out of memory"),
        ("prepare", "death", "cuda:0 is left out: the worker died"),
        ("peaks", "memory", ""),
    ] {
        let (dir, mut config) = stand_in();
        config.devices = vec!["cuda:0".into(), "cuda:1".into()];
        std::fs::write(dir.path().join(format!("cuda:0-{request}")), woe).unwrap();
        let mut backend = TorchBackend::new(config.clone(), &Host::detect()).unwrap();
        backend.peaks().unwrap();
        backend.prepare(&shard(), Purpose::Mlp).unwrap();
        let notes = backend.take_notes();
        assert_eq!(notes.len(), usize::from(!words.is_empty()), "{notes:?}");
        assert!(notes.iter().all(|note| note.starts_with(words)), "{notes:?}");
        assert_eq!(backend.lanes(), 2 - notes.len(), "{request} {woe}");
        let mut seen = vec![None; 4];
        let shapes = [1, 5, 7, 9].map(Shape::Tokens);
        backend.measure_all(&shapes, EFFORT, &mut |i, result| seen[i] = Some(result.is_ok()));
        assert_eq!(seen, [Some(true); 4], "{request} {woe}");
        assert_eq!(backend.take_notes(), Vec::<String>::new());
        if request == "hello" {
            // Workers that wait for each other are not asked while one is missing.
            let ask = |n: usize| vec![serde_json::json!({"do": "peaks"}); n];
            assert!(backend.request_each(ask(1), EFFORT)[0].is_ok());
            let answers = backend.request_each(ask(2), EFFORT);
            let all = answers.iter().all(|a| a.as_ref().is_err_and(|e| e.to_string() == notes[0]));
            assert!(answers.len() == 2 && all, "{answers:?}");
        }
        // With no device left there is nothing to note.
        std::fs::write(dir.path().join(format!("cuda:1-{request}")), woe).unwrap();
        let failed = TorchBackend::new(config, &Host::detect()).and_then(|mut backend| {
            backend.peaks()?;
            backend.prepare(&shard(), Purpose::Mlp)
        });
        assert!(failed.is_err(), "{request} {woe}");
    }
}

#[test]
fn a_greeting_or_a_graph_that_hangs_ends_at_its_limit() {
    let (dir, mut config) = stand_in();
    let mut backend = TorchBackend::new(config.clone(), &Host::detect()).unwrap();
    for request in ["graph", "hello"] {
        std::fs::write(dir.path().join(format!("cpu-{request}")), "hang").unwrap();
    }
    let key = crate::dataset::graph::GraphKey {
        tensor_parallel: 1,
        phase: crate::dataset::graph::Phase::Token,
        batch: 1,
        bucket: 128,
        layers: 1,
        head: true,
    };
    let limit = Duration::from_millis(300);
    let error = backend.graph(&shard(), key, EFFORT, dir.path(), limit).unwrap_err();
    assert!(error.to_string().contains("no answer within 400ms"), "{error}");
    config.limit = limit;
    let error = TorchBackend::new(config, &Host::detect()).err().unwrap();
    assert!(error.to_string().contains("no answer within 300ms"), "{error}");
}

#[test]
fn a_missing_interpreter_a_missing_torch_and_another_protocol_are_one_line_each() {
    let error = |config: TorchConfig| match TorchBackend::new(config, &Host::detect()) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("accepted"),
    };
    let message = error(config("/nonexistent/python".into()));
    assert!(message.contains("--python") && !message.contains('\n'), "{message}");
    let (dir, config) = stand_in();
    std::fs::write(dir.path().join("no-torch"), "").unwrap();
    let message = error(config.clone());
    assert!(message.starts_with("torch it is; install it there"), "{message}");
    std::fs::remove_file(dir.path().join("no-torch")).unwrap();
    std::fs::write(dir.path().join("other"), "").unwrap();
    assert!(error(config).contains("protocol 2, not 1"));
}

/// An interpreter with torch, from VIDUR_TORCH_PYTHON or the usual places.
fn torch_python() -> Option<PathBuf> {
    let named = std::env::var_os("VIDUR_TORCH_PYTHON").map(PathBuf::from);
    named.into_iter().chain(["python3".into(), "/usr/bin/python3".into()]).find(|python| {
        let import = std::process::Command::new(python).args(["-c", "import torch"]).output();
        import.is_ok_and(|output| output.status.success())
    })
}

#[test]
fn the_worker_measures_on_torch_where_there_is_one() {
    let Some(python) = torch_python() else {
        eprintln!("skipped: no Python with torch; set VIDUR_TORCH_PYTHON to one");
        return;
    };
    let mut backend = TorchBackend::new(config(python.clone()), &Host::detect()).unwrap();
    assert!(backend.device().kernels[0].starts_with("torch "), "{:?}", backend.device());
    let peaks = backend.peaks().unwrap();
    assert!(peaks.flops_per_s > 1e6 && peaks.bytes_per_s > 1e6);
    backend.prepare(&shard(), Purpose::Mlp).unwrap();
    for tokens in [1, 33] {
        let samples = backend.measure(Shape::Tokens(tokens), EFFORT).unwrap();
        assert_eq!(samples.len(), ops_of(&model(), Shape::Tokens(tokens)).len());
    }
    backend.prepare(&shard(), Purpose::Attention).unwrap();
    for shape in [
        Shape::Prefill { chunk: 5, kv: 0 },
        Shape::Prefill { chunk: 5, kv: 20 },
        Shape::Decode { batch: 3, kv: 20 },
    ] {
        assert_eq!(backend.measure(shape, EFFORT).unwrap().len(), 2, "{shape}");
    }
    // More memory than there is costs the shape, not the worker.
    let error = backend.measure(Shape::Decode { batch: 1 << 16, kv: 1 << 20 }, EFFORT).unwrap_err();
    assert!(error.to_string().contains("out of memory"), "{error}");
    backend.prepare(&shard(), Purpose::Layers).unwrap();
    let batch = LayerBatch { prefills: vec![(7, 3)], decodes: vec![5, 5, 9] };
    assert!(backend.measure_layers(&batch, EFFORT).unwrap().iter().all(|&ms| ms > 0.0));
    for (layout, gated) in [("parallel", false), ("sandwich", true)] {
        let mut shard = shard();
        shard.model.layer_layout = match layout {
            "parallel" => crate::spec::model::LayerLayout::Parallel,
            _ => crate::spec::model::LayerLayout::Sandwich,
        };
        shard.model.gated_mlp = gated;
        shard.model.linear_bias = true;
        backend.prepare(&shard, Purpose::Mlp).unwrap();
        let samples = backend.measure(Shape::Tokens(4), EFFORT).unwrap();
        assert_eq!(samples.len(), ops_of(&shard.model, Shape::Tokens(4)).len(), "{layout}");
    }
    assert!(Path::new(&python).components().count() > 0);
}
