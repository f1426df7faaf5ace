//! The summary as a table for the terminal, at most 79 columns wide.

use crate::metrics::{Distribution, Summary};
use std::fmt::Write as _;

/// Renders `summary`.
pub fn table(summary: &Summary) -> String {
    let mut out = String::new();
    let l = &summary.latency;
    let rows = [
        ("TTFT", &l.ttft_ms),
        ("TPOT", &l.tpot_ms),
        ("ITL", &l.itl_ms),
        ("E2E", &l.e2e_ms),
        ("queueing", &l.queueing_ms),
    ];
    line(&mut out, &["milliseconds", "mean", "P50", "P90", "P95", "P99"].map(String::from));
    for (name, distribution) in rows {
        let cells = match distribution {
            Some(d) => figures(d).map(number),
            None => [const { String::new() }; 5].map(|_| "-".to_owned()),
        };
        let [mean, p50, p90, p95, p99] = cells;
        line(&mut out, &[name.to_owned(), mean, p50, p90, p95, p99]);
    }
    let t = &summary.throughput;
    let kv = &summary.kv_cache;
    let facts = [
        (
            "throughput",
            format!(
                "{} requests/s, {} output tokens/s, {} input tokens/s",
                number(t.requests_per_s),
                number(t.output_tokens_per_s),
                number(t.input_tokens_per_s)
            ),
        ),
        (
            "requests",
            format!("{} in {:.1} s of simulated time", summary.num_requests, t.duration_s),
        ),
        (
            "steps",
            format!(
                "{}, mean batch {:.1} requests, {:.1} tokens; busy {:.1} %",
                summary.num_batches,
                summary.mean_batch_size,
                summary.mean_batch_tokens,
                summary.busy_percent
            ),
        ),
        (
            "KV cache",
            format!(
                "peak {:.1} %, mean {:.1} % of {} blocks; {} preemptions",
                kv.peak_percent, kv.mean_percent, kv.capacity_blocks, summary.preemptions
            ),
        ),
    ];
    out.push('\n');
    for (name, fact) in facts {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<12} {fact}");
    }
    out
}

/// `text` in lines of at most 79 columns, broken between words.
pub fn wrap(text: &str) -> String {
    let mut out = String::new();
    let mut width = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > 79 {
            out.push('\n');
            width = 0;
        } else if width > 0 {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += length;
    }
    out
}

fn figures(d: &Distribution) -> [f64; 5] {
    [d.mean, d.p50, d.p90, d.p95, d.p99]
}

fn line(out: &mut String, cells: &[String; 6]) {
    let [name, rest @ ..] = cells;
    let _ = write!(out, "{name:<12}");
    for cell in rest {
        let _ = write!(out, " {cell:>11}");
    }
    out.push('\n');
}

/// Four significant digits or whole numbers, digits grouped by commas.
fn number(v: f64) -> String {
    let decimals = match v.abs() {
        a if a == 0.0 || a >= 999.95 => 0,
        a if a >= 100.0 => 1,
        a if a >= 10.0 => 2,
        _ => 3,
    };
    let plain = format!("{v:.decimals$}");
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let mut grouped = String::new();
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(c);
    }
    if !fraction.is_empty() {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_four_digits() {
        let cases = [(0.0, "0"), (0.1234, "0.123"), (12.345, "12.35"), (999.96, "1,000")];
        for (v, text) in cases {
            assert_eq!(number(v), text);
        }
        assert_eq!(number(1_234_567.8), "1,234,568");
    }
}
