//! Our forests against reference runs of Vidur: the same profiles, schedulers and traces, but step
//! times from forests that we fit. The profiles lie outside the repository: without
//! `VIDUR_SHARED_DATA` this test says that it is skipped.
//!
//! Left out of the twelve runs: `e_linreg_conv1k_q3`, which is polynomials.

use super::conformance::{Row, reference, shared, simulate_with};
use std::path::Path;

/// Runs with all their profiles, and the changes beside the predictor that they need. Attention
/// of Llama-2-7b and Llama-3-8B is synthetic.
const RUNS: [(&str, &[&str]); 11] = [
    ("j_real_a30_qwen2_conv200", &["predictor.forest.missing_values=skip"]),
    ("h_real70b_tp2_conv200", &[]),
    ("c_sarathi_conv1k_q3", &[]),
    ("c_vllm_conv1k_q3", &[]),
    ("c_vllm_conv1k_q8", &[]),
    ("c_ft_conv200_cap4", &[]),
    ("c_lightllm_conv1k_q3", &[]),
    ("c_orca_conv200_cap16", &[]),
    ("d_tp2pp2_rr", &[]),
    (
        "f_cpu_overhead_conv200",
        &["predictor.forest.cpu_overhead=true", "cluster.network_device=a100_pairwise_nvlink"],
    ),
    ("s_llama3_1k_default", &[]),
];

/// Relative difference of the mean end-to-end time, and the mean over requests.
fn compare(shared: &Path, run: &str, more: &[&str]) -> (f64, f64) {
    // Attention by single tokens, which lightllm needs, lies beside that by blocks of 16 under a name
    // of its own.
    let by_token = tempfile::tempdir().unwrap();
    let mut dirs = vec![shared.join("vidur/profiles"), shared.join("vidur/profiles-synthetic")];
    if run == "c_lightllm_conv1k_q3" {
        let folder = "compute/a100/meta-llama/Llama-2-7b-hf";
        let synthetic = dirs.pop().unwrap().join(folder).join("attention_block1.csv");
        std::fs::create_dir_all(by_token.path().join(folder)).unwrap();
        std::fs::copy(synthetic, by_token.path().join(folder).join("attention.csv")).unwrap();
        dirs.push(by_token.path().to_owned());
    }
    let dirs = std::env::join_paths(dirs).unwrap().into_string().unwrap();
    let mut sets = vec!["predictor={forest: {}}".to_owned(), format!("profiling_dir='{dirs}'")];
    sets.extend(more.iter().map(|set| (*set).to_owned()));
    let (ours, _) = simulate_with(&format!("tests/conformance/{run}.yml"), &sets);
    let theirs = reference(shared, run);
    assert_eq!(ours.len(), theirs.len(), "{run}");
    let mean = |rows: &[Row]| rows.iter().map(|r| r.e2e).sum::<f64>() / rows.len() as f64;
    let each = ours.iter().zip(&theirs).map(|(a, b)| (a.e2e / b.e2e - 1.0).abs());
    (mean(&ours) / mean(&theirs) - 1.0, each.sum::<f64>() / ours.len() as f64)
}

#[test]
fn with_our_own_forests_mean_e2e_is_within_two_percent_of_vidurs() {
    let Some(shared) = shared() else { return };
    for (run, more) in RUNS {
        let began = std::time::Instant::now();
        let (mean, each) = compare(&shared, run, more);
        let took = began.elapsed().as_secs_f64();
        let (mean, each) = (100.0 * mean, 100.0 * each);
        eprintln!("{run}: mean E2E {mean:+.2} %, a request {each:.2} % off, {took:.1} s");
        assert!(mean.abs() < 2.0, "{run}: mean E2E is {mean:+.2} % off");
    }
}
