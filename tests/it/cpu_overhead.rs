//! `vidur profile cpu-overhead` against an engine of paper: it sleeps on the host and on the device
//! for known times, logs the device's part as vLLM does, and streams a token per step. Sleeps last
//! longer on a busy machine, so it also notes what each step really took beside the device.

use assert_cmd::Command;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

const HOST: Duration = Duration::from_millis(12);
const DEVICE: Duration = Duration::from_millis(25);

/// A request that waits for its tokens.
struct Stream {
    socket: TcpStream,
    left: u32,
    fresh: bool,
}

/// Serves until the test process ends; gives the address.
fn engine(log: PathBuf, elapsed: impl Fn(Duration) -> Duration + Send + 'static) -> String {
    engine_with(log, elapsed, usize::MAX, u32::MAX)
}

/// The same, with an error after so many `requests`, and at most so many `tokens` for each.
fn engine_with(
    log: PathBuf,
    elapsed: impl Fn(Duration) -> Duration + Send + 'static,
    requests: usize,
    tokens: u32,
) -> String {
    let served = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, streams): (Sender<Stream>, Receiver<Stream>) = channel();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let (sender, served) = (sender.clone(), Arc::clone(&served));
            let serves = move || served.fetch_add(1, Ordering::Relaxed) < requests;
            std::thread::spawn(move || serve(socket, &sender, &serves, tokens));
        }
    });
    std::thread::spawn(move || steps(&streams, &log, elapsed));
    address
}

/// Reads requests of one connection.
fn serve(mut socket: TcpStream, engine: &Sender<Stream>, serves: &impl Fn() -> bool, most: u32) {
    socket.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_lowercase());
        }
        let length =
            head.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body).unwrap();
        if head[0].starts_with("get /v1/models") {
            let list = r#"{"object":"list","data":[{"id":"served","object":"model"}]}"#;
            write!(socket, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{list}", list.len()).unwrap();
            continue;
        }
        let body: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["stream"], &body["model"]), (&true.into(), &"served".into()));
        if !serves() {
            write!(socket, "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\n\r\ndead")
                .unwrap();
            continue;
        }
        let left = (body["max_tokens"].as_u64().unwrap() as u32).min(most);
        write!(socket, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
        engine.send(Stream { socket, left, fresh: true }).unwrap();
        return;
    }
}

fn chunk(socket: &mut TcpStream, text: &str) {
    let event = format!("data: {text}\n\n");
    // A client that has gone away is no failure of the engine.
    let _ = write!(socket, "{:x}\r\n{event}\r\n", event.len());
}

/// The engine's loop: host, device, tokens, log.
fn steps(new: &Receiver<Stream>, log: &Path, elapsed: impl Fn(Duration) -> Duration) {
    let mut running: Vec<Stream> = Vec::new();
    let append = |path: &Path| OpenOptions::new().create(true).append(true).open(path).unwrap();
    let mut truth = append(&log.with_extension("truth"));
    let mut log = append(log);
    let mut sent = Instant::now();
    for index in 0.. {
        if running.is_empty() {
            let Ok(stream) = new.recv() else { return };
            running.push(stream);
        }
        running.extend(new.try_iter());
        std::thread::sleep(HOST);
        let begin = Instant::now();
        std::thread::sleep(DEVICE);
        let device = begin.elapsed();
        let ms = elapsed(device).as_secs_f64() * 1e3;
        let context = running.iter().filter(|s| s.fresh).count();
        let generation = running.len() - context;
        writeln!(log, "(EngineCore_DP0 pid=7) INFO 09-27 11:17:17 [core.py:358] Iteration({index}): {context} context requests, {} context tokens, {generation} generation requests, {generation} generation tokens, iteration elapsed time: {ms:.2} ms", 32 * context).unwrap();
        for stream in &mut running {
            stream.fresh = false;
            stream.left -= 1;
            chunk(&mut stream.socket, r#"{"choices":[{"index":0,"text":" one"}]}"#);
            if stream.left == 0 {
                chunk(&mut stream.socket, r#"{"choices":[],"usage":{"completion_tokens":1}}"#);
                chunk(&mut stream.socket, "[DONE]");
                let _ = write!(stream.socket, "0\r\n\r\n");
            }
        }
        let period = sent.elapsed();
        sent = Instant::now();
        if context == 0 {
            let host = (period - device).as_secs_f64() * 1e3;
            writeln!(truth, "{generation} {host}").unwrap();
        }
        running.retain(|s| s.left > 0);
    }
}

/// The median host time of the steps with this many requests, by the engine's own clock.
fn truth(log: &Path, batch_size: u64) -> f64 {
    let text = std::fs::read_to_string(log.with_extension("truth")).unwrap();
    let of = |line: &str| -> Option<f64> {
        let (n, ms) = line.split_once(' ')?;
        (n.parse() == Ok(batch_size)).then(|| ms.parse().unwrap())
    };
    vidur::stats::median(&text.lines().filter_map(of).collect::<Vec<f64>>()).unwrap()
}

fn profile(dir: &Path, address: &str, more: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("vidur")
        .unwrap()
        .current_dir(dir)
        .env_remove("OPENAI_API_KEY")
        .args([
            "profile",
            "cpu-overhead",
            "--models",
            "Qwen/Qwen3-0.6B",
            "--network-device",
            "box",
            "--endpoint",
            address,
        ])
        .args(["--batch-sizes", "1,4", "--output-tokens", "24"])
        .args(more)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_host_time_that_comes_out_is_the_one_that_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("engine.log");
    let address = engine(log.clone(), |device| device);
    std::fs::write(&log, "").unwrap();
    let (code, stdout, stderr) = profile(dir.path(), &address, &["--engine-log", "engine.log"]);
    assert_eq!(code, 0, "{stderr}");
    let path = dir.path().join("data/profiling/cpu_overhead/box/Qwen/Qwen3-0.6B/cpu_overheads.csv");
    let file =
        vidur::dataset::location::ProfileFile::from_bytes("cpu", std::fs::read(path).unwrap());
    let rows = vidur::dataset::cpu::read_cpu_overheads(&file, &["Qwen/Qwen3-0.6B"], 1).unwrap();
    assert_eq!(rows.iter().map(|r| r.batch_size).collect::<Vec<_>>(), [1, 4]);
    for row in rows {
        let truth = truth(&log, row.batch_size);
        assert!(truth >= 12.0, "{truth}");
        let ms = row.total_ms();
        // The machine's load may change between the steps that each of the two medians is of.
        let off = (ms - truth).abs();
        assert!(
            off < 2.0 + 0.35 * truth,
            "{ms} ms of host time, the engine had {truth}\n{stdout}\n{stderr}"
        );
    }
    assert!(
        stdout.contains("host gap ms") && stdout.contains("cpu_overheads.csv: 2 rows"),
        "{stdout}"
    );
}

#[test]
fn an_engine_that_logs_launches_only_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("engine.log");
    let address = engine(log.clone(), |_| Duration::from_micros(30));
    std::fs::write(&log, "").unwrap();
    let (code, _, stderr) = profile(dir.path(), &address, &["--engine-log", "engine.log"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("--no-async-scheduling"), "{stderr}");
    let (code, stdout, stderr) = profile(dir.path(), &address, &[]);
    assert!(code == 2 && stderr.contains("--engine-log"), "{stderr}");
    assert!(stdout.contains("period ms"), "{stdout}");
    assert!(!dir.path().join("data").exists());
}

#[test]
fn a_bad_answer_costs_its_batch_size_and_a_short_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("engine.log");
    std::fs::write(&log, "").unwrap();
    // One request to warm up, one for a batch of 1, and then the engine is broken.
    let address = engine_with(log.clone(), |device| device, 2, 9);
    let (code, stdout, stderr) = profile(dir.path(), &address, &["--engine-log", "engine.log"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("note: batch 1: an answer came in 9 pieces instead of 24"), "{stderr}");
    assert!(stdout.contains("batch 4 failed: http") && stdout.contains("1 rows"), "{stdout}");
    assert!(stdout.contains("500 Internal Server Error: dead"), "{stdout}");
    let folder = dir.path().join("data/profiling/cpu_overhead/box/Qwen/Qwen3-0.6B");
    let manifest = std::fs::read_to_string(folder.join("cpu_overheads.manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["runs"][0]["failed"][0]["batch_size"], 4, "{manifest}");
    // An engine that answers nothing is no mistake of the user's.
    let (code, _, stderr) = profile(dir.path(), &address, &["--engine-log", "engine.log"]);
    assert!(code == 1 && stderr.contains("nothing was measured"), "{stderr}");
}

#[test]
fn no_engine_and_the_wrong_model_are_one_line_each() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, stderr) = profile(dir.path(), "http://127.0.0.1:9", &[]);
    assert!(code == 2 && stderr.lines().count() == 1 && stderr.contains("--endpoint"), "{stderr}");
    let (code, _, stderr) = profile(dir.path(), "http://127.0.0.1:9", &["--tensor-parallel", "7"]);
    assert!(code == 2 && stderr.contains("which tensor_parallel 7 does not divide"), "{stderr}");
    let address = engine(dir.path().join("log"), |device| device);
    let (code, _, stderr) = profile(dir.path(), &address, &["--served-model", "other"]);
    assert!(code == 2 && stderr.contains("serves served, not other"), "{stderr}");
}
