//! `vidur report`: one file, no network, and a page that answers to mouse and keyboard. What needs a
//! browser runs where Chromium is installed and says so where it is not.

use assert_cmd::Command;
use std::fs;
use std::path::{Path, PathBuf};

fn vidur(dir: &Path, args: &[&str]) -> (i32, String) {
    let output = Command::cargo_bin("vidur").unwrap().current_dir(dir).args(args).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), text)
}

/// Headless Chromium, where there is one.
fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path)
        .flat_map(|dir| names.map(|name| dir.join(name)))
        .find(|file| file.is_file())
}

/// Loads `html` with `script` at its end, and gives what the script left in the element `#test`, or
/// the first error of the page. `None` without a browser.
fn in_browser(dir: &Path, html: &str, script: &str) -> Option<String> {
    let Some(browser) = browser() else {
        eprintln!("skipped: no Chromium on PATH");
        return None;
    };
    let watch = "<script>window.failures = [];\
        window.onerror = (m) => { window.failures.push(m); };\
        console.error = (m) => { window.failures.push(m); };</script><head>";
    let done = format!(
        "<script>const found = (() => {{ {script} }})();\
         const out = document.createElement('p'); out.id = 'test';\
         out.textContent = window.failures.length ? 'failed: ' + window.failures : found;\
         document.body.appendChild(out);</script></body>"
    );
    let page = html.replacen("<head>", watch, 1).replacen("</body>", &done, 1);
    let file = dir.join("under_test.html");
    fs::write(&file, page).unwrap();
    let profile = dir.join("browser");
    let output = std::process::Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--dump-dom",
            "--window-size=1000,900",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, rest) = dom.split_once("<p id=\"test\">").expect("the page ran to its end");
    Some(rest.split("</p>").next().unwrap_or_default().to_owned())
}

/// Qwen3-0.6B on the CPU whose profile is built in.
const CPU: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/cpu_qwen3.yml");

#[test]
fn a_run_becomes_one_page() {
    let dir = tempfile::tempdir().unwrap();
    let n = "workload.synthetic.num_requests=100";
    let (code, text) = vidur(
        dir.path(),
        &[
            "simulate",
            "--config",
            CPU,
            "--set",
            n,
            "--set",
            "slo.ttft_ms=1500",
            "--output-dir",
            "run",
        ],
    );
    assert_eq!(code, 0, "{text}");
    let (code, text) = vidur(dir.path(), &["report", "run"]);
    assert_eq!((code, text.trim()), (0, "written to   run/report.html"));
    let html = fs::read_to_string(dir.path().join("run/report.html")).unwrap();
    assert!(html.len() < 5_000_000);
    for outside in ["http:", "https:", "src=", "@import", "url("] {
        let found = html.replace("http://www.w3.org/2000/svg", "").contains(outside);
        assert!(!found, "{outside} in the page");
    }
    for part in ["Where the time goes", "decode weights", "seed: 42", "sha256", "meet the SLO"] {
        assert!(html.contains(part), "{part}");
    }
    // The same run, the same bytes.
    let (code, _) = vidur(dir.path(), &["report", "run", "--output", "again.html"]);
    assert_eq!(code, 0);
    assert_eq!(html, fs::read_to_string(dir.path().join("again.html")).unwrap());

    // A click on "E2E ms" sorts the changes, the best first; a second one turns them round.
    let sorted = in_browser(
        dir.path(),
        &html,
        "const table = document.querySelector('table.sortable');
         const head = [...table.tHead.rows[0].cells].find((c) => c.textContent == 'E2E ms');
         const column = head.cellIndex;
         const numbers = () => [...table.tBodies[0].rows]
           .map((r) => parseFloat(r.cells[column].dataset.v)).filter((v) => !isNaN(v));
         const rises = (v) => v.every((x, i) => i == 0 || v[i - 1] <= x);
         head.click(); const up = rises(numbers());
         head.click(); const down = rises(numbers().reverse());
         const bar = document.querySelector('.bar [data-tip]');
         bar.dispatchEvent(new MouseEvent('mousemove', {clientX: 50, clientY: 50}));
         const tip = document.getElementById('tip');
         const shown = tip.style.display == 'block' && tip.textContent == bar.dataset.tip;
         return [up, down, numbers().length > 2, shown].join(' ');",
    );
    if let Some(sorted) = sorted {
        assert_eq!(sorted, "true true true true");
    }
}

#[test]
fn a_plan_becomes_a_page_whose_points_lead_to_their_rows() {
    let dir = tempfile::tempdir().unwrap();
    let plan = "run:
  model: meta-llama/Llama-3.1-8B
  predictor: {roofline: {}}
  workload: {synthetic: {num_requests: 100, arrivals: {poisson: {requests_per_s: 1}},
    lengths: {fixed: {prefill_tokens: 500, decode_tokens: 50}}}}
space: {skus: [h100_sxm, l40s, l4], schedulers: [{sarathi: {max_num_seqs: [16, 64]}}]}
slo: {ttft_ms: {p90: 1000}}
search: {requests: 100, precision_percent: 10}
";
    fs::write(dir.path().join("plan.yml"), plan).unwrap();
    let (code, text) = vidur(dir.path(), &["capacity", "plan.yml", "--output-dir", "found"]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = vidur(dir.path(), &["report", "found"]);
    assert_eq!(code, 0, "{text}");
    let html = fs::read_to_string(dir.path().join("found/report.html")).unwrap();
    assert!(html.len() < 5_000_000);
    assert!(html.contains("USD per million output tokens") && html.contains("max_num_seqs"));
    let clicked = in_browser(
        dir.path(),
        &html,
        "const hit = document.querySelector('svg .hit');
         hit.dispatchEvent(new MouseEvent('mousemove', {clientX: 50, clientY: 50}));
         const shown = document.getElementById('tip').textContent == hit.dataset.tip;
         hit.dispatchEvent(new MouseEvent('click'));
         const row = document.querySelector('tr.on');
         const led = row && row.id == hit.dataset.row;
         const filter = document.querySelector('input.filter');
         const rows = [...document.getElementById(filter.dataset.for).tBodies[0].rows];
         filter.value = 'L40S'; filter.dispatchEvent(new Event('input'));
         const left = rows.filter((r) => !r.hidden);
         return [shown, led, rows.length, left.length].join(' ');",
    );
    if let Some(clicked) = clicked {
        assert_eq!(clicked, "true true 6 2");
    }
}

#[test]
fn a_folder_without_a_run_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = vidur(dir.path(), &["report", "nothing"]);
    assert_eq!(code, 2);
    assert!(text.contains("nothing/summary.json") && text.contains("vidur simulate"), "{text}");
}
