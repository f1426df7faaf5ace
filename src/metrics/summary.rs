//! Records condensed to the figures that people compare.

use super::batches::BatchDistributions;
use super::config::{Dialect, RequestDetail, Slo};
use super::distribution::Distribution;
use super::operators::OperatorShare;
use super::record::Figure;
use super::recorder::Recorder;
use super::replica::{ReplicaUse, StageUse};
use crate::stats;
use crate::units::SimTime;
use serde::Serialize;

/// Latencies as the user of the service sees them, in milliseconds. TPOT and ITL are those of the
/// dialect.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Time to first token: arrival to the first output token.
    pub ttft_ms: Option<Distribution>,
    /// Time per output token.
    pub tpot_ms: Option<Distribution>,
    /// Inter-token latency.
    pub itl_ms: Option<Distribution>,
    /// Arrival to last token.
    pub e2e_ms: Option<Distribution>,
    /// Arrival to the start of the first batch.
    pub queueing_ms: Option<Distribution>,
    /// Time to second token: arrival to the second output token, in the dialect that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttst_ms: Option<Distribution>,
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
    /// Most output tokens in one of the seconds counted from the first arrival.
    pub max_output_tokens_per_s: u64,
    /// Most requests between arrival and last token at a time.
    pub max_concurrent_requests: u32,
}

/// Requests that met every objective.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Goodput {
    /// The objectives.
    pub slo: Slo,
    /// Requests that met them.
    pub requests: u64,
    /// Of all requests, percent.
    pub percent: f64,
    /// Per second of the time from the first arrival to the last token.
    pub requests_per_s: f64,
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

/// Smallest, largest and mean over the time from zero to the end, percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Level {
    /// Smallest for any length of time.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Weighted by time.
    pub mean: f64,
}

/// The use of one replica, counted from 0.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReplicaSummary {
    /// Which.
    pub replica: u32,
    /// Requests routed to it.
    pub requests: u64,
    /// Batches that it formed.
    pub batches: u64,
    /// KV blocks in use, percent of its blocks.
    pub kv_cache_percent: Level,
    /// Its stages.
    pub stages: Vec<StageSummary>,
}

/// The use of one pipeline stage, counted from 0, over the time from zero to the end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StageSummary {
    /// Which.
    pub stage: u32,
    /// Time in which it ran a batch, percent.
    pub busy_percent: f64,
    /// Arithmetic done, of the devices' peak over all the time, percent; absent where the peak is
    /// not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu_percent: Option<f64>,
    /// The same over the busy time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu_while_busy_percent: Option<f64>,
    /// The same of the batch that had most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu_max_percent: Option<f64>,
}

/// The figures of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How TPOT and ITL are defined, for comparisons across tools.
    pub metrics_dialect: &'static str,
    /// Whether every request was kept.
    pub request_detail: RequestDetail,
    /// Largest relative error of the latency quantiles, percent: 0 when every request was kept.
    pub latency_quantile_error_percent: f64,
    /// Requests served.
    pub num_requests: u64,
    /// Latencies.
    pub latency: Latency,
    /// Rates.
    pub throughput: Throughput,
    /// Requests that met the objectives, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goodput: Option<Goodput>,
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
    /// Distributions over batches; quantiles within 0.05 %.
    pub batches: BatchDistributions,
    /// The replicas.
    pub replicas: Vec<ReplicaSummary>,
    /// Where the time goes, where asked for: `metrics: {operators: true}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operators: Option<Vec<OperatorShare>>,
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { 100.0 * part / whole } else { 0.0 }
}

impl Recorder {
    /// The distribution of a latency, milliseconds.
    pub fn distribution(&self, figure: Figure) -> Option<Distribution> {
        match &self.sampled {
            Some(sampled) => Distribution::of_sketch(sampled.figure(figure), 1e-6),
            None => Distribution::of(self.values(figure)),
        }
    }

    /// A latency of every request that has it, milliseconds; empty when requests are sampled.
    pub fn values(&self, figure: Figure) -> Vec<f64> {
        self.requests.iter().filter_map(|r| r.figure_ms(figure)).collect()
    }

    /// The values that the curve of a latency is drawn through, milliseconds: every request's, or
    /// evenly spaced quantiles when requests are sampled.
    pub fn curve(&self, figure: Figure) -> Vec<f64> {
        const POINTS: usize = 401;
        match &self.sampled {
            None => self.values(figure),
            Some(sampled) => {
                let ns = sampled.figure(figure).quantiles(POINTS);
                ns.into_iter().map(|ns| ns * 1e-6).collect()
            }
        }
    }

    /// The distribution of the gaps between tokens, all requests pooled, milliseconds.
    pub fn gap_distribution(&self) -> Option<Distribution> {
        match &self.sampled {
            Some(sampled) => Distribution::of_sketch(&sampled.gaps, 1e-6),
            None => Distribution::of_counted_ns(&self.token_gaps),
        }
    }

    /// All latencies, TPOT and ITL as `dialect` defines them.
    pub fn latency(&self, dialect: Dialect) -> Latency {
        let tpot = match dialect {
            Dialect::Vllm | Dialect::GenaiPerf => Figure::Tpot,
            Dialect::Guidellm => Figure::Normalized,
            Dialect::Vidur => Figure::TpotOverAll,
        };
        let itl_ms = match dialect {
            Dialect::Vllm | Dialect::Vidur => self.gap_distribution(),
            Dialect::Guidellm | Dialect::GenaiPerf => self.distribution(Figure::Tpot),
        };
        let ttst_ms = match &self.sampled {
            Some(sampled) => Distribution::of_sketch(&sampled.second_tokens, 1e-6),
            None => Distribution::of_counted_ns(&self.second_tokens),
        };
        Latency {
            ttft_ms: self.distribution(Figure::Ttft),
            tpot_ms: self.distribution(tpot),
            itl_ms,
            e2e_ms: self.distribution(Figure::E2e),
            queueing_ms: self.distribution(Figure::Queueing),
            ttst_ms,
        }
    }

    fn stage_summary(&self, index: u32, stage: &StageUse, end_s: f64) -> StageSummary {
        let peak = self.options().peak_flops_per_s;
        let known = peak > 0.0 && !self.options().stage_flops.is_empty();
        let mfu = |flops: f64, seconds: f64| known.then(|| percent(flops, peak * seconds));
        let busy = stage.busy.as_seconds();
        StageSummary {
            stage: index,
            busy_percent: percent(busy, end_s),
            mfu_percent: mfu(stage.flops, end_s),
            mfu_while_busy_percent: mfu(stage.flops, busy),
            mfu_max_percent: mfu(stage.most_flops_per_s, 1.0),
        }
    }

    fn replica_summary(
        &self,
        index: u32,
        replica: &ReplicaUse,
        stages: u32,
        end: SimTime,
    ) -> ReplicaSummary {
        let capacity = f64::from(self.kv_capacity);
        let of = |index: u32| replica.stages.get(index as usize).copied().unwrap_or_default();
        ReplicaSummary {
            replica: index,
            requests: replica.requests,
            batches: replica.batches,
            kv_cache_percent: Level {
                min: percent(f64::from(replica.kv.min()), capacity),
                max: percent(f64::from(replica.kv.max()), capacity),
                mean: percent(replica.kv.area() as f64, capacity * end.as_ns() as f64),
            },
            stages: (0..stages)
                .map(|index| self.stage_summary(index, &of(index), end.as_seconds()))
                .collect(),
        }
    }
}

impl Summary {
    /// Condenses the records of a run of `num_stages` pipeline stages that ended at `end`.
    pub fn of(recorder: &Recorder, num_stages: u32, end: SimTime) -> Self {
        let options = recorder.options();
        let metrics = &options.metrics;
        let totals = recorder.totals();
        let duration_s = end.since(recorder.peaks.first_arrival()).as_seconds();
        let per_s = |n: u64| if duration_s > 0.0 { n as f64 / duration_s } else { 0.0 };
        let batches = recorder.num_batches.max(1) as f64;
        let capacity = f64::from(recorder.kv_capacity);
        let stage_seconds = duration_s * f64::from(num_stages) * f64::from(recorder.num_replicas());
        let error = match metrics.requests {
            RequestDetail::All => 0.0,
            RequestDetail::Sampled => 100.0 * stats::RELATIVE_ERROR,
        };
        let replicas = (0..).zip(&recorder.replicas);
        let replicas =
            replicas.map(|(at, used)| recorder.replica_summary(at, used, num_stages, end));
        Summary {
            metrics_dialect: metrics.dialect.describe(),
            request_detail: metrics.requests,
            latency_quantile_error_percent: error,
            num_requests: totals.requests,
            latency: recorder.latency(metrics.dialect),
            throughput: Throughput {
                duration_s,
                requests_per_s: per_s(totals.requests),
                input_tokens_per_s: per_s(totals.input_tokens),
                output_tokens_per_s: per_s(totals.output_tokens),
                max_output_tokens_per_s: recorder.peaks.max_tokens_per_s(),
                max_concurrent_requests: recorder.peaks.max_concurrent_requests(),
            },
            goodput: (!options.slo.is_empty()).then(|| Goodput {
                slo: options.slo,
                requests: totals.good,
                percent: percent(totals.good as f64, totals.requests as f64),
                requests_per_s: per_s(totals.good),
            }),
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
            batches: recorder.batches.distributions(),
            replicas: replicas.collect(),
            operators: None,
        }
    }
}
