//! Capacity planning, as a user runs it and against exhaustive search.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// `vidur` in `dir`, with a cache of its own.
fn vidur(dir: &Path, args: &[&str]) -> std::process::Output {
    Command::cargo_bin("vidur")
        .unwrap()
        .current_dir(dir)
        .env("VIDUR_CACHE_DIR", dir.join("cache"))
        .env("COLUMNS", "100")
        .env_remove("SLURM_ARRAY_TASK_ID")
        .args(args)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A plan over three devices that takes a second.
const SMALL: &str = "
run:
  model: meta-llama/Llama-3.1-8B
  predictor: {roofline: {}}
  workload:
    synthetic:
      num_requests: 300
      arrivals: {poisson: {requests_per_s: 1}}
      lengths: {fixed: {prefill_tokens: 512, decode_tokens: 64}}
space:
  skus: [h100_sxm, l4, l40s]
  tensor_parallel: [1, 2]
search: {requests: 300, precision_percent: 5}
confirm: {top: 0}
slo: {ttft_ms: {p90: 1000}, itl_ms: {p99: 100}}
";

fn plan(dir: &Path, text: &str) {
    fs::write(dir.join("plan.yml"), text).unwrap();
}

#[test]
fn a_plan_names_the_cheapest_configuration_and_writes_what_it_found() {
    let dir = tempfile::tempdir().unwrap();
    plan(dir.path(), SMALL);
    let out = vidur(dir.path(), &["capacity", "plan.yml", "-o", "out"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let summary = json(&dir.path().join("out/summary.json"));
    let group = &summary["answers"]["groups"][0];
    assert_eq!(group["ranked_by"], "usd_per_million_output_tokens");
    let best = group["best"].as_u64().unwrap();
    let row = &summary["rows"][best as usize];
    assert_eq!(row["rank"], 1);
    // The rate keeps the objectives, and the next one of the grid, 5 % up, does not.
    let (rate, fails) = (&row["requests_per_s"], &row["fails_at"]);
    let ratio = fails.as_f64().unwrap() / rate.as_f64().unwrap();
    assert!((ratio - 1.05).abs() < 1e-3, "{ratio}");
    assert!(row["at"]["ttft_ms"]["p90"].as_f64().unwrap() <= 1000.0);
    // What it costs follows from the price and the rate.
    let usd = row["usd_per_hour"].as_f64().unwrap() / 3600.0;
    let tokens = rate.as_f64().unwrap() * 64.0;
    let per_million = row["usd_per_million_output_tokens"].as_f64().unwrap();
    assert!((per_million - usd / tokens * 1e6).abs() < 1e-9 * per_million);
    for name in ["results.csv", "plan.yml", "best.yml", "pareto_ttft.svg", "pareto_itl.svg"] {
        assert!(dir.path().join("out").join(name).is_file(), "{name}");
    }
    let csv = fs::read_to_string(dir.path().join("out/results.csv")).unwrap();
    assert_eq!(csv.lines().count(), 7);
    // The plan as it ran gives the same again, byte by byte, whether results are kept or not.
    let again = vidur(dir.path(), &["capacity", "out/plan.yml", "-o", "again"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    let anew = vidur(dir.path(), &["capacity", "plan.yml", "-o", "anew", "--no-cache"]);
    assert!(anew.status.success());
    for name in ["results.csv", "summary.json", "plan.yml", "pareto_ttft.svg"] {
        let of = |folder: &str| fs::read(dir.path().join(folder).join(name)).unwrap();
        assert!(of("out") == of("again") && of("out") == of("anew"), "{name}");
    }
}

#[test]
fn the_best_configuration_simulates_to_what_the_plan_says() {
    let dir = tempfile::tempdir().unwrap();
    // Every request counts, so that the two summaries are of the same requests.
    let all =
        SMALL.replace("requests: 300,", "requests: 300, warmup_percent: 0, cooldown_percent: 0,");
    plan(dir.path(), &all);
    assert!(vidur(dir.path(), &["capacity", "plan.yml", "-o", "out"]).status.success());
    let summary = json(&dir.path().join("out/summary.json"));
    let best = summary["answers"]["groups"][0]["best"].as_u64().unwrap() as usize;
    let out = vidur(dir.path(), &["simulate", "--config", "out/best.yml", "-o", "run"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let run = json(&dir.path().join("run/summary.json"));
    for (ours, theirs) in [("ttft_ms", "ttft_ms"), ("tpot_ms", "tpot_ms"), ("e2e_ms", "e2e_ms")] {
        let plan = &summary["rows"][best]["at"][ours];
        assert_eq!(*plan, run["summary"]["latency"][theirs], "{ours}");
    }
}

#[test]
fn bad_plans_are_answered_with_the_reason_and_the_nearest_change() {
    for (change, expected) in [
        ("slo: {ttft_ms: {p90: 1}}\n", "raise slo.ttft_ms.p90 to"),
        ("constraints: {max_usd_per_hour: 0.01}\n", "raise constraints.max_usd_per_hour to 0.805"),
        ("constraints: {max_power_w: 1}\n", "raise constraints.max_power_w to 72"),
        ("constraints: {min_requests_per_s: 1000000}\n", "lower constraints.min_requests_per_s to"),
        ("space: {skus: [l4], tensor_parallel: [16]}\n", "set constraints.within_node to false"),
        (
            "space: {models: [meta-llama/Llama-3.1-70B], skus: [h100_sxm]}\n",
            "it fits with tensor_parallel: [2]",
        ),
        (
            "space: {models: [meta-llama/Llama-3.1-70B], skus: [a30]}\n",
            "the smallest device that holds it is b200_sxm",
        ),
        (
            "constraints: {max_devices: 1}\nspace: {tensor_parallel: [2], skus: [l4]}\n",
            "raise constraints.max_devices to 2: l4 TP2",
        ),
        ("space: {skus: ['nothing*']}\n", "space.skus: nothing is called `nothing*`"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        // A section that is changed replaces the one of the small plan.
        let names: Vec<&str> = change.lines().filter_map(|l| l.split(':').next()).collect();
        let mut kept = String::new();
        let mut skip = false;
        for line in SMALL.lines() {
            if !line.starts_with(' ') {
                skip = names.contains(&line.split(':').next().unwrap());
            }
            if !skip {
                kept.push_str(line);
                kept.push('\n');
            }
        }
        plan(dir.path(), &(kept + change));
        let out = vidur(dir.path(), &["capacity", "plan.yml", "-o", "out"]);
        let message = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{change}{message}{}", text(&out.stdout));
        assert!(message.contains(expected), "{change}{message}");
        assert!(!dir.path().join("out").exists(), "{change}");
    }
}

#[test]
fn the_readme_shows_what_its_example_prints() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let example = root.join("examples/capacity.yml");
    let out = Command::cargo_bin("vidur")
        .unwrap()
        .current_dir(dir.path())
        .env("VIDUR_CACHE_DIR", dir.path().join("cache"))
        .env("COLUMNS", "100")
        .args(["capacity", "--no-output", "--top", "5"])
        .arg(&example)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    for line in text(&out.stdout).lines().filter(|line| !line.trim().is_empty()) {
        assert!(readme.contains(line), "README.md lacks:\n{line}\n\nof\n{}", text(&out.stdout));
    }
}

#[test]
fn parts_come_to_the_same_as_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    plan(dir.path(), &format!("{SMALL}sensitivity: true\n"));
    assert!(vidur(dir.path(), &["capacity", "plan.yml", "-o", "whole"]).status.success());
    for part in ["1/3", "2/3", "3/3"] {
        let folder = format!("part{}", &part[..1]);
        let args = ["capacity", "plan.yml", "--shard", part, "-o", &folder, "--no-cache"];
        let out = vidur(dir.path(), &args);
        assert!(out.status.success(), "{}", text(&out.stderr));
    }
    let two = vidur(dir.path(), &["capacity", "merge", "part1", "part3", "-o", "two"]);
    assert_eq!(two.status.code(), Some(2));
    assert!(text(&two.stderr).contains("parts 2 of 3 are missing"), "{}", text(&two.stderr));
    let twice = vidur(dir.path(), &["capacity", "merge", "part1", "part1", "-o", "two"]);
    assert!(text(&twice.stderr).contains("are both part 1 of 3"), "{}", text(&twice.stderr));
    let args = ["capacity", "merge", "part3", "part1", "part2", "-o", "merged"];
    let merged = vidur(dir.path(), &args);
    assert!(merged.status.success(), "{}", text(&merged.stderr));
    for name in ["results.csv", "summary.json", "plan.yml", "best.yml"] {
        let of = |folder: &str| fs::read(dir.path().join(folder).join(name)).unwrap();
        assert!(of("whole") == of("merged"), "{name}");
    }
}

#[test]
fn compared_cases_stand_in_one_table_with_the_confidence_of_their_differences() {
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "simulate",
        "--set",
        "workload.synthetic.num_requests=60",
        "--compare",
        "scheduler.sarathi.max_num_seqs=2,64",
        "--compare",
        "workload.synthetic.arrivals.poisson.requests_per_s=2,40",
        "-o",
        "out",
    ];
    let out = vidur(dir.path(), &args);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let shown = text(&out.stdout);
    assert!(shown.contains("max_num_seqs=64 requests_per_s=40"), "{shown}");
    assert!(shown.contains("95 % confidence from 5 seeds"), "{shown}");
    let result = json(&dir.path().join("out/comparison.json"));
    let cases = result["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    // Twenty times the rate: the time to first token rises, and not by chance.
    let ttft = &cases[1]["differences"][0];
    let (percent, half) = (&ttft["percent"], &ttft["plus_minus_percent"]);
    assert!(percent.as_f64().unwrap() - half.as_f64().unwrap() > 0.0, "{ttft}");
}
