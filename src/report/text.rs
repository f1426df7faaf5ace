//! The summary as a table for the terminal, at most 79 columns wide.

use crate::metrics::{Dialect, Distribution, OperatorShare, RequestDetail, Summary};
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
    for (name, fact) in facts.into_iter().chain(asked_for(summary)) {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<12} {fact}");
    }
    out
}

/// Lines that stand there only when the config asks for something.
fn asked_for(summary: &Summary) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if let Some(g) = &summary.goodput {
        let given = g.slo.fields().into_iter().filter_map(|(name, value)| Some((name, value?)));
        let slo: Vec<String> = given
            .map(|(name, ms)| format!("{} {ms} ms", name.trim_end_matches("_ms").to_uppercase()))
            .collect();
        facts.push((
            "goodput",
            format!("{} requests/s, {:.1} % of requests", number(g.requests_per_s), g.percent),
        ));
        facts.push(("", format!("within {}", slo.join(", "))));
    }
    if let Some(d) = &summary.latency.ttst_ms {
        let [mean, p50, _, _, p99] = figures(d).map(number);
        facts.push(("TTST", format!("mean {mean}, P50 {p50}, P99 {p99} ms to the second token")));
    }
    if summary.metrics_dialect != Dialect::default().describe() {
        let (name, definitions) =
            summary.metrics_dialect.split_once(": ").unwrap_or((summary.metrics_dialect, ""));
        facts.push(("dialect", name.to_owned()));
        facts.extend(definitions.split(", ").map(|d| ("", d.to_owned())));
    }
    if summary.request_detail == RequestDetail::Sampled {
        facts.push(("sampled", "quantiles within 0.05 %; no row per request is kept".to_owned()));
    }
    facts
}

/// Renders where the time goes, operator by operator.
pub fn operators(operators: &[OperatorShare]) -> String {
    let mut out = format!("{:<26} {:>14} {:>9}\n", "operator", "total ms", "percent");
    for o in operators {
        let (name, ms) = (o.operator, number(o.total_ms));
        let _ = writeln!(out, "{name:<26} {ms:>14} {:>9.2}", o.percent);
    }
    out
}

/// `text` in lines of at most 79 columns, broken between words.
pub fn wrap(text: &str) -> String {
    wrap_to(text, 79)
}

/// `text` in lines of at most `most` columns, broken between words.
pub fn wrap_to(text: &str, most: usize) -> String {
    let mut out = String::new();
    let mut width = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > most {
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
pub fn number(v: f64) -> String {
    let decimals = match v.abs() {
        a if a == 0.0 || a >= 999.95 => 0,
        a if a >= 100.0 => 1,
        a if a >= 10.0 => 2,
        _ => 3,
    };
    let plain = format!("{:.decimals$}", v.abs());
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    // No sign before nothing but zeros.
    let negative = v < 0.0 && plain.bytes().any(|c| (b'1'..=b'9').contains(&c));
    let mut grouped = String::from(if negative { "-" } else { "" });
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
        assert_eq!(number(-781.6), "-781.6");
        assert_eq!(number(-1234.0), "-1,234");
        assert_eq!(number(-0.0001), "0.000");
    }
}
