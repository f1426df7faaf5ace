//! What is drawn, and what is refused.

use super::*;
use crate::rng::stream;

fn draw(config: LengthConfig, n: usize) -> Result<Vec<(u32, u32)>, String> {
    let mut notes = Vec::new();
    config.draw(n, &mut stream(3, "lengths"), &mut notes).map_err(|e| e.to_string())
}

fn parse(text: &str) -> LengthConfig {
    crate::yaml::from_str(text, "lengths.yml").unwrap()
}

fn trace(file: &std::path::Path, rest: &str) -> LengthConfig {
    parse(&format!("trace: {{file: {}, {rest}}}", file.display()))
}

#[test]
fn uniform_lengths_stay_inside_their_bounds_and_reach_them() {
    let range = |min, max| TokenRange { min, max };
    let config = LengthConfig::Uniform { prefill_tokens: range(3, 5), decode_tokens: range(1, 2) };
    let drawn = draw(config, 1000).unwrap();
    assert_eq!(drawn.iter().map(|l| l.0).min(), Some(3));
    assert_eq!(drawn.iter().map(|l| l.0).max(), Some(5));
    assert!(drawn.iter().all(|l| (1..=2).contains(&l.1)));
}

#[test]
fn a_length_file_is_used_up_before_rows_repeat() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let rows = "num_prefill_tokens,num_decode_tokens\n1,10\n2,20\n3,30\n400,1\n";
    std::fs::write(file.path(), rows).unwrap();
    let config = trace(file.path(), "max_tokens: 100");
    let drawn = draw(config, 5).unwrap();
    let mut first: Vec<u32> = drawn[..3].iter().map(|l| l.0).collect();
    first.sort_unstable();
    assert_eq!(first, [1, 2, 3]);
    assert!(drawn.iter().all(|&(p, d)| d == 10 * p));
}

#[test]
fn lengths_that_are_none_are_refused_by_name() {
    let zero = LengthConfig::Fixed { prefill_tokens: 0, decode_tokens: 1 };
    assert_eq!(
        draw(zero, 1).unwrap_err(),
        "workload.synthetic.lengths.fixed.prefill_tokens: 0; expected at least 1 token"
    );
    let range = TokenRange { min: 5, max: 4 };
    let empty = LengthConfig::Uniform { prefill_tokens: range, decode_tokens: range };
    assert!(draw(empty, 1).unwrap_err().contains("uniform.prefill_tokens.max: 4"));
}

#[test]
fn totals_are_split_by_the_ratio() {
    assert_eq!(split(100, 19.0), (95, 5));
    assert_eq!(split(101, 19.0), (95, 6));
    assert_eq!(split(2, 1e9), (1, 1));
    assert_eq!(split(2, 1e-9), (1, 1));
    let text = "uniform_total: {min_tokens: 10, max_tokens: 12, prefill_to_decode_ratio: 4}";
    let mut drawn = draw(parse(text), 1000).unwrap();
    drawn.sort_unstable();
    drawn.dedup();
    assert_eq!(drawn, [(8, 2), (8, 3), (9, 3)]);
}

#[test]
fn zipf_totals_have_the_written_probabilities() {
    let text = "zipf: {min_tokens: 5, max_tokens: 8, theta: 0.6, prefill_to_decode_ratio: 1}";
    let drawn = draw(parse(text), 100_000).unwrap();
    let weights: Vec<f64> = (1..=4).map(|k| f64::from(k).powf(-0.6)).collect();
    let sum: f64 = weights.iter().sum();
    for (total, weight) in (5..=8).zip(&weights) {
        let share = drawn.iter().filter(|(p, d)| p + d == total).count() as f64 / 1e5;
        assert!((share - weight / sum).abs() < 0.006, "{total}: {share}");
    }
    assert!(drawn.iter().all(|(p, d)| (5..=8).contains(&(p + d))));
}

#[test]
fn scrambled_zipf_stays_in_range_and_keeps_its_skew() {
    let text = "zipf: {min_tokens: 100, max_tokens: 4096, theta: 1.2, scramble: true, \
                prefill_to_decode_ratio: 1}";
    let mut totals: Vec<u32> =
        draw(parse(text), 10_000).unwrap().iter().map(|(p, d)| p + d).collect();
    assert!(totals.iter().all(|t| (100..=4096).contains(t)));
    totals.sort_unstable();
    let runs = totals.chunk_by(|a, b| a == b);
    let (most, total) = runs.map(|run| (run.len(), run[0])).max().unwrap();
    assert!(most > 1500, "{most}");
    assert_ne!(total, 100);
}

#[test]
fn long_lengths_are_clipped_in_proportion() {
    assert_eq!(clip_both((3000, 1000), 4096), (3000, 1000));
    // Excess 1904: ceil(1904 * 5/6) = 1587 and ceil(1904 / 6) = 318.
    assert_eq!(clip_both((5000, 1000), 4096), (3413, 682));
    assert_eq!(clip_both((1, 1_000_000), 10), (1, 9));
    assert_eq!(clip_both((u32::MAX, u32::MAX), 2), (1, 1));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "num_prefill_tokens,num_decode_tokens\n5000,500\n").unwrap();
    let rest = "max_tokens: 4096, too_long: clip_both, decode_scale: 2";
    assert_eq!(draw(trace(file.path(), rest), 1).unwrap(), [(3413, 682)]);
}

#[test]
fn ranges_and_exponents_that_are_none_are_refused_by_name() {
    for (text, expected) in [
        (
            "uniform_total: {min_tokens: 1, max_tokens: 9, prefill_to_decode_ratio: 1}",
            "uniform_total.min_tokens: 1; expected at least 2, a prompt and an output token",
        ),
        (
            "uniform_total: {min_tokens: 10, max_tokens: 9, prefill_to_decode_ratio: 1}",
            "uniform_total.max_tokens: 9; expected at least min_tokens, 10",
        ),
        (
            "zipf: {min_tokens: 2, max_tokens: 9, theta: 1, prefill_to_decode_ratio: 0}",
            "zipf.prefill_to_decode_ratio: 0; expected a number above 0",
        ),
        (
            "zipf: {min_tokens: 2, max_tokens: 9, theta: -1, prefill_to_decode_ratio: 1}",
            "zipf.theta: -1; expected a number, 0 or more",
        ),
    ] {
        let error = draw(parse(text), 1).unwrap_err();
        assert_eq!(error, format!("workload.synthetic.lengths.{expected}"));
    }
}
