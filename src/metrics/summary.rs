//! Records condensed to the figures that people compare.

use super::recorder::{Recorder, RequestRecord};
use crate::stats;
use crate::units::SimTime;
use serde::Serialize;

/// A distribution in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// Values.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Population standard deviation.
    pub std: f64,
    /// Smallest.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

/// Latencies as the user of the service sees them, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Time to first token: arrival to the first output token.
    pub ttft_ms: Option<Distribution>,
    /// Time per output token after the first: (last - first) / (n - 1), of requests with n > 1.
    pub tpot_ms: Option<Distribution>,
    /// Inter-token latency: gaps between consecutive tokens, all requests pooled.
    pub itl_ms: Option<Distribution>,
    /// Arrival to last token.
    pub e2e_ms: Option<Distribution>,
    /// Arrival to the start of the first batch.
    pub queueing_ms: Option<Distribution>,
}

/// Rates over the time from the first arrival to the last token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Throughput {
    /// First arrival to last token, seconds.
    pub duration_s: f64,
    /// Requests completed per second.
    pub requests_per_s: f64,
    /// Prompt tokens of completed requests per second.
    pub input_tokens_per_s: f64,
    /// Output tokens per second.
    pub output_tokens_per_s: f64,
}

/// Use of the KV cache of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KvUse {
    /// Blocks of one replica.
    pub capacity_blocks: u32,
    /// Most in use on one replica, percent of its capacity.
    pub peak_percent: f64,
    /// Mean over time and replicas, percent of the capacity.
    pub mean_percent: f64,
}

/// The figures of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How TPOT and ITL are defined, for comparisons across tools.
    pub metrics_dialect: &'static str,
    /// Requests served.
    pub num_requests: u64,
    /// Latencies.
    pub latency: Latency,
    /// Rates.
    pub throughput: Throughput,
    /// Use of the KV cache.
    pub kv_cache: KvUse,
    /// Times that a request lost its KV cache and started again.
    pub preemptions: u64,
    /// Steps run, all replicas.
    pub num_batches: u64,
    /// Requests per step.
    pub mean_batch_size: f64,
    /// Tokens per step.
    pub mean_batch_tokens: f64,
    /// Share of time in which stages ran a batch, percent.
    pub busy_percent: f64,
    /// Share of the busy time that was predicted outside the measured range, percent.
    pub extrapolated_percent: f64,
}

impl Distribution {
    /// The distribution of `values` (any order); `None` of nothing.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let q = |q| stats::quantile_sorted(&values, q);
        Some(Distribution {
            count: values.len() as u64,
            mean: stats::mean(&values)?,
            std: stats::std_dev(&values)?,
            min: q(0.0)?,
            p50: q(0.5)?,
            p90: q(0.9)?,
            p95: q(0.95)?,
            p99: q(0.99)?,
            max: q(1.0)?,
        })
    }

    /// The distribution, in milliseconds, of nanosecond values given with their counts. The same
    /// figures as if each value stood there `count` times.
    pub fn of_counted_ns(values: &[(u64, u32)]) -> Option<Self> {
        let mut sorted: Vec<(u64, u64)> =
            values.iter().map(|&(ns, count)| (ns, u64::from(count))).collect();
        sorted.sort_unstable_by_key(|v| v.0);
        // Each value once, so that sums do not depend on how the counts were split.
        sorted.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            kept.1 += if same { next.1 } else { 0 };
            same
        });
        let count: u64 = sorted.iter().map(|v| v.1).sum();
        let last = count.checked_sub(1)?;
        let sum: u128 = sorted.iter().map(|v| u128::from(v.0) * u128::from(v.1)).sum();
        let mean = sum as f64 / count as f64;
        let square = |v: &(u64, u64)| (v.0 as f64 - mean).powi(2) * v.1 as f64;
        let variance = sorted.iter().map(square).sum::<f64>() / count as f64;
        let mut ends = Vec::with_capacity(sorted.len());
        let mut seen = 0;
        for v in &sorted {
            seen += v.1;
            ends.push(seen);
        }
        let nth = |n: u64| sorted[ends.partition_point(|&end| end <= n)].0 as f64;
        let quantile = |q: f64| {
            let position = q * last as f64;
            let below = position.floor();
            let (low, high) = (nth(below as u64), nth((below as u64 + 1).min(last)));
            (low + (high - low) * (position - below)) * 1e-6
        };
        Some(Distribution {
            count,
            mean: mean * 1e-6,
            std: variance.sqrt() * 1e-6,
            min: quantile(0.0),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p95: quantile(0.95),
            p99: quantile(0.99),
            max: quantile(1.0),
        })
    }
}

impl RequestRecord {
    /// Arrival to first token, milliseconds.
    pub fn ttft_ms(&self) -> f64 {
        self.first_token_at.since(self.arrived_at).as_ms()
    }

    /// Time per output token after the first, milliseconds; `None` of a single token.
    pub fn tpot_ms(&self) -> Option<f64> {
        let gaps = self.output_tokens.checked_sub(1).filter(|&n| n > 0)?;
        Some(self.completed_at.since(self.first_token_at).as_ms() / f64::from(gaps))
    }

    /// Arrival to last token, milliseconds.
    pub fn e2e_ms(&self) -> f64 {
        self.completed_at.since(self.arrived_at).as_ms()
    }

    /// Arrival to the first batch, milliseconds.
    pub fn queueing_ms(&self) -> f64 {
        self.scheduled_at.since(self.arrived_at).as_ms()
    }
}

impl Summary {
    /// Condenses the records of a run of `num_stages` pipeline stages that ended at `end`.
    pub fn of(recorder: &Recorder, num_stages: u32, end: SimTime) -> Self {
        let r = &recorder.requests;
        let distribution =
            |value: fn(&RequestRecord) -> f64| Distribution::of(r.iter().map(value).collect());
        let start = r.iter().map(|r| r.arrived_at).min().unwrap_or_default();
        let duration_s = end.since(start).as_seconds();
        let per_s = |n: u64| if duration_s > 0.0 { n as f64 / duration_s } else { 0.0 };
        let percent = |part: f64, whole: f64| if whole > 0.0 { 100.0 * part / whole } else { 0.0 };
        let batches = recorder.num_batches.max(1) as f64;
        let capacity = f64::from(recorder.kv_capacity);
        let stage_seconds = duration_s * f64::from(num_stages) * f64::from(recorder.num_replicas());
        Summary {
            metrics_dialect: "vidur: TPOT over n-1 tokens, ITL pooled over tokens (as vLLM bench)",
            num_requests: r.len() as u64,
            latency: Latency {
                ttft_ms: distribution(RequestRecord::ttft_ms),
                tpot_ms: Distribution::of(r.iter().filter_map(RequestRecord::tpot_ms).collect()),
                itl_ms: Distribution::of_counted_ns(&recorder.token_gaps),
                e2e_ms: distribution(RequestRecord::e2e_ms),
                queueing_ms: distribution(RequestRecord::queueing_ms),
            },
            throughput: Throughput {
                duration_s,
                requests_per_s: per_s(r.len() as u64),
                input_tokens_per_s: per_s(r.iter().map(|r| u64::from(r.prompt_tokens)).sum()),
                output_tokens_per_s: per_s(r.iter().map(|r| u64::from(r.output_tokens)).sum()),
            },
            kv_cache: KvUse {
                capacity_blocks: recorder.kv_capacity,
                peak_percent: percent(f64::from(recorder.kv_peak), capacity),
                mean_percent: percent(recorder.kv_mean(end), capacity),
            },
            preemptions: recorder.num_restarts,
            num_batches: recorder.num_batches,
            mean_batch_size: recorder.batch_requests as f64 / batches,
            mean_batch_tokens: recorder.batch_tokens as f64 / batches,
            busy_percent: percent(recorder.busy.as_seconds(), stage_seconds),
            extrapolated_percent: percent(
                recorder.extrapolated.as_seconds(),
                recorder.busy.as_seconds(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counted_values_have_the_distribution_of_the_values_written_out(
            values in prop::collection::vec((0u64..2_000_000_000, 1u32..9), 1..60)
        ) {
            let counted = Distribution::of_counted_ns(&values).unwrap();
            let written: Vec<f64> = values
                .iter()
                .flat_map(|&(ns, n)| std::iter::repeat_n(ns as f64 * 1e-6, n as usize))
                .collect();
            let plain = Distribution::of(written).unwrap();
            prop_assert_eq!(counted.count, plain.count);
            for (a, b) in [
                (counted.mean, plain.mean),
                (counted.std, plain.std),
                (counted.p50, plain.p50),
                (counted.p90, plain.p90),
                (counted.p99, plain.p99),
                (counted.max, plain.max),
            ] {
                prop_assert!((a - b).abs() <= 1e-9 * (1.0 + b), "{} {}", a, b);
            }
        }
    }

    #[test]
    fn nothing_has_no_distribution() {
        assert_eq!(Distribution::of(vec![]), None);
        assert_eq!(Distribution::of_counted_ns(&[]), None);
    }
}
