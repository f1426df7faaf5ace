//! `vidur profile collectives` between two nodes: two processes that meet at a port of this machine.

use assert_cmd::cargo::CommandCargoExt;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// An address that is free now.
fn free() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn node(dir: &Path, rank: &str, master: &str, more: &[&str]) -> Child {
    let folder = dir.join(rank);
    fs::create_dir_all(&folder).unwrap();
    Command::cargo_bin("vidur")
        .unwrap()
        .current_dir(folder)
        // No vendor's tools: a machine with a GPU would measure that.
        .env("PATH", "/usr/bin:/bin")
        .args(["profile", "collectives", "--collective", "send_recv", "--num-nodes", "2"])
        .args(["--node-rank", rank, "--master-addr", master, "--network-device", "here"])
        .args(["--max-size", "64KiB", "--repeats", "5", "--devices-per-node", "1"])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn end(child: Child) -> (i32, String, String) {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn medians(dir: &Path) -> Vec<(u64, f64)> {
    let csv = fs::read_to_string(dir.join("0/data/profiling/network/here/send_recv.csv")).unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        assert_eq!(&cells[5..7], ["0", "2"], "{line}");
        assert_eq!(&cells[8..], ["send_recv", "1", "1"], "{line}");
        (cells[7].parse().unwrap(), cells[3].parse().unwrap())
    };
    csv.lines().skip(1).map(row).collect()
}

const CPU: [&str; 2] = ["--backend", "cpu"];

#[test]
fn two_processes_hand_over_messages_and_node_0_writes_the_file() {
    let (dir, master) = (tempfile::tempdir().unwrap(), free());
    let one = node(dir.path(), "1", &master, &CPU);
    let (code, stdout, stderr) = end(node(dir.path(), "0", &master, &CPU));
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("send_recv"), "{stdout}");
    let (code, stdout, stderr) = end(one);
    assert_eq!((code, stdout.as_str()), (0, ""), "{stderr}");
    assert!(stderr.contains("node 0 writes the file"), "{stderr}");
    assert!(!dir.path().join("1/data").exists());
    let rows = medians(dir.path());
    assert_eq!(
        rows.iter().map(|r| r.0).collect::<Vec<_>>(),
        [1024, 2048, 4096, 8192, 16384, 32768, 65536]
    );
    assert!(rows.iter().all(|r| r.1 > 0.0), "{rows:?}");
    let manifest = fs::read_to_string(
        dir.path().join("0/data/profiling/network/here/send_recv.manifest.json"),
    )
    .unwrap();
    assert!(manifest.contains("vidur-tcp 1 (half a round trip)"), "{manifest}");
    // Where all is measured, the other node is let go at once.
    let one = node(dir.path(), "1", &master, &CPU);
    let (code, _, stderr) = end(node(dir.path(), "0", &master, &CPU));
    assert_eq!((code, end(one).0), (0, 0), "{stderr}");
}

#[test]
fn a_node_that_never_comes_is_one_line_on_either_side() {
    for (rank, words) in [("0", "node 1 did not come to"), ("1", "no node 0 at")] {
        let (dir, master) = (tempfile::tempdir().unwrap(), free());
        let begin = Instant::now();
        let more = ["--backend", "cpu", "--meet-timeout", "1s"];
        let (code, _, stderr) = end(node(dir.path(), rank, &master, &more));
        let last = stderr.lines().last().unwrap();
        assert!(code == 2 && last.contains(words) && last.contains("within 1s"), "{stderr}");
        assert!(begin.elapsed() < Duration::from_secs(30));
        assert!(!dir.path().join(rank).join("data").exists());
    }
}

/// Plays node 1 until node 0 asks for messages of this size, and dies then.
fn dies_at(master: &str, last: u64) {
    let begin = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(master) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "node 0 does not listen");
    };
    stream.write_all(b"vidur-tcp 1\n").unwrap();
    let mut greeting = [0; 12];
    stream.read_exact(&mut greeting).unwrap();
    loop {
        let mut order = [0; 12];
        stream.read_exact(&mut order).unwrap();
        let bytes = u64::from_le_bytes(order[..8].try_into().unwrap());
        if bytes >= last {
            return;
        }
        let mut message = vec![0; bytes as usize];
        for _ in 0..u32::from_le_bytes(order[8..].try_into().unwrap()) {
            stream.read_exact(&mut message).unwrap();
            stream.write_all(&message).unwrap();
        }
    }
}

#[test]
fn a_node_that_dies_costs_what_is_left_only() {
    let (dir, master) = (tempfile::tempdir().unwrap(), free());
    let zero = node(dir.path(), "0", &master, &CPU);
    dies_at(&master, 4096);
    let (code, _, stderr) = end(zero);
    let last = stderr.lines().last().unwrap();
    assert!(code == 2 && last.contains("the other node went away at 4096 bytes"), "{stderr}");
    assert_eq!(medians(dir.path()).len(), 2);
    // Node 0 dies: node 1 says so.
    let (dir, master) = (tempfile::tempdir().unwrap(), free());
    let listener = TcpListener::bind(&master).unwrap();
    let one = node(dir.path(), "1", &master, &CPU);
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"vidur-tcp 1\n").unwrap();
    let mut greeting = [0; 12];
    stream.read_exact(&mut greeting).unwrap();
    drop(stream);
    let (code, _, stderr) = end(one);
    assert!(code == 2 && stderr.contains("the other node went away"), "{stderr}");
    // What was measured is kept: the next run goes on behind it.
    let (dir, master) = (tempfile::tempdir().unwrap(), free());
    let zero = node(dir.path(), "0", &master, &CPU);
    dies_at(&master, 16384);
    end(zero);
    let one = node(dir.path(), "1", &master, &CPU);
    let (code, _, stderr) = end(node(dir.path(), "0", &master, &CPU));
    assert_eq!((code, end(one).0), (0, 0), "{stderr}");
    assert!(stderr.contains("send_recv of 2 workers: 3 sizes"), "{stderr}");
    assert_eq!(medians(dir.path()).len(), 7);
}

#[test]
fn what_two_nodes_cannot_measure_is_refused_before_they_wait() {
    let dir = tempfile::tempdir().unwrap();
    for (rank, nodes, more, words) in [
        ("2", "2", &[][..], "numbered 0 to 1"),
        ("0", "3", &[], "send_recv between --num-nodes 2"),
        ("0", "2", &["--max-size", "2GiB"], "at most 1GiB"),
    ] {
        let output = Command::cargo_bin("vidur")
            .unwrap()
            .current_dir(dir.path())
            .env("PATH", "/usr/bin:/bin")
            .args(["profile", "collectives", "--backend", "cpu", "--collective", "send_recv"])
            .args(["--master-addr", "127.0.0.1:1", "--network-device", "here"])
            .args(["--node-rank", rank, "--num-nodes", nodes])
            .args(more)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && stderr.contains(words), "{stderr}");
    }
}

#[test]
fn torch_hands_over_between_two_nodes_where_it_is_installed() {
    let Some(python) = crate::support::torch_python("torch.distributed") else {
        eprintln!("skipped: no Python with torch; set VIDUR_TORCH_PYTHON to one");
        return;
    };
    let (dir, master) = (tempfile::tempdir().unwrap(), free());
    let more = ["--backend", "torch", "--python", &python, "--meet-timeout", "2m"];
    let one = node(dir.path(), "1", &master, &more);
    let (code, _, stderr) = end(node(dir.path(), "0", &master, &more));
    assert_eq!(code, 0, "{stderr}");
    let (code, stdout, stderr) = end(one);
    assert_eq!((code, stdout.as_str()), (0, ""), "{stderr}");
    assert!(!dir.path().join("1/data").exists());
    assert_eq!(medians(dir.path()).len(), 7);
    let (dir, master) = (tempfile::tempdir().unwrap(), free());
    let more = ["--backend", "torch", "--python", &python, "--meet-timeout", "3s"];
    let (code, _, stderr) = end(node(dir.path(), "0", &master, &more));
    assert_eq!(code, 2, "{stderr}");
    assert!(!dir.path().join("0/data").exists(), "{stderr}");
}
