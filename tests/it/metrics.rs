//! Figures of small runs, worked out by hand; and sampled runs against exact ones.

use crate::support::{LinearCost, sim_config, workload};
use proptest::prelude::*;
use vidur::cost::{BatchShape, PrefillChunk};
use vidur::metrics::{
    Dialect, Distribution, MetricsConfig, OperatorTimes, RecordOptions, Recorder, RequestDetail,
    Slo, StageFlops, Summary,
};
use vidur::sim::{self, SimConfig};
use vidur::spec::catalog::Catalog;
use vidur::spec::ops::Op;
use vidur::spec::parallel::Parallelism;

fn run(
    config: &SimConfig,
    requests: &[(u64, u32, u32)],
    options: RecordOptions,
) -> (Recorder, Summary) {
    let mut recorder = Recorder::with(config.num_replicas, options);
    let cost = LinearCost { stages: 1 };
    let end = sim::run(config, &cost, &workload(requests), &mut recorder).unwrap().end;
    let summary = Summary::of(&recorder, 1, end);
    (recorder, summary)
}

fn options(dialect: Dialect) -> RecordOptions {
    RecordOptions {
        metrics: MetricsConfig { dialect, ..MetricsConfig::default() },
        ..RecordOptions::default()
    }
}

fn assert_near(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * b.abs().max(1.0), "{a}, expected {b}");
}

fn mean(d: Option<Distribution>) -> f64 {
    d.unwrap().mean
}

/// One request that arrives at 10 ms with a prompt of 10 tokens and gets 3: a prefill of 5.1 ms,
/// then steps of 5.1111 and 5.1112 ms. It holds one KV block of 1000.
const ALONE: [(u64, u32, u32); 1] = [(10, 10, 3)];

#[test]
fn every_dialect_by_hand() {
    let (ttft, gap1, gap2) = (5.1, 5.1111, 5.1112);
    let decode = gap1 + gap2;
    for (dialect, tpot, itl, ttst) in [
        (Dialect::Vllm, decode / 2.0, decode / 2.0, None),
        (Dialect::Guidellm, (ttft + decode) / 3.0, decode / 2.0, None),
        (Dialect::GenaiPerf, decode / 2.0, decode / 2.0, Some(ttft + gap1)),
        (Dialect::Vidur, decode / 3.0, decode / 2.0, None),
    ] {
        let (_, summary) = run(&sim_config(), &ALONE, options(dialect));
        assert_near(mean(summary.latency.ttft_ms), ttft);
        assert_near(mean(summary.latency.tpot_ms), tpot);
        assert_near(mean(summary.latency.itl_ms), itl);
        assert_near(mean(summary.latency.e2e_ms), ttft + decode);
        assert_near(mean(summary.latency.queueing_ms), 0.0);
        assert_eq!(summary.latency.ttst_ms.is_some(), ttst.is_some());
        if let Some(ttst) = ttst {
            assert_near(mean(summary.latency.ttst_ms), ttst);
        }
        // Pooled gaps are two values, the mean of a request is one.
        let pooled = matches!(dialect, Dialect::Vllm | Dialect::Vidur);
        assert_eq!(summary.latency.itl_ms.unwrap().count, if pooled { 2 } else { 1 });
    }
}

#[test]
fn the_use_of_a_replica_counts_from_time_zero() {
    let (_, summary) = run(&sim_config(), &ALONE, RecordOptions::default());
    let (busy, end) = (15.3223, 25.3223);
    let replica = &summary.replicas[0];
    assert_eq!((replica.replica, replica.requests, replica.batches), (0, 1, 3));
    let kv = replica.kv_cache_percent;
    assert_eq!((kv.min, kv.max), (0.0, 0.1));
    assert_near(kv.mean, 0.1 * busy / end);
    assert_near(replica.stages[0].busy_percent, 100.0 * busy / end);
    assert_eq!(replica.stages[0].mfu_percent, None);
    // From the first arrival on the only stage never rests.
    assert_near(summary.busy_percent, 100.0);
    assert_near(summary.throughput.duration_s, busy * 1e-3);
    assert_near(summary.throughput.output_tokens_per_s, 3e3 / busy);
    assert_eq!(summary.throughput.max_output_tokens_per_s, 3);
    assert_eq!(summary.throughput.max_concurrent_requests, 1);
}

#[test]
fn labels_of_replicas_are_not_rotated() {
    let config = SimConfig { num_replicas: 3, ..sim_config() };
    // Round robin: the fourth request meets replica 0 again.
    let requests = [(0, 10, 1), (0, 10, 1), (0, 10, 1), (1, 10, 9)];
    let (_, summary) = run(&config, &requests, RecordOptions::default());
    let counts: Vec<_> = summary.replicas.iter().map(|r| (r.replica, r.requests)).collect();
    assert_eq!(counts, [(0, 2), (1, 1), (2, 1)]);
    let busy = |i: usize| summary.replicas[i].stages[0].busy_percent;
    assert!(busy(0) > busy(1) && busy(1) == busy(2));
}

#[test]
fn mfu_is_the_arithmetic_of_the_batches_over_the_peak() {
    let model = Catalog::open(None).model("Qwen/Qwen3-0.6B").unwrap();
    let flops = StageFlops::of(&model, Parallelism::SINGLE, 0);
    let options = RecordOptions {
        stage_flops: vec![flops],
        peak_flops_per_s: 1e12,
        ..RecordOptions::default()
    };
    let (_, summary) = run(&sim_config(), &ALONE, options);
    let chunk = PrefillChunk { kv_tokens: 0, chunk_tokens: 10, completes: true };
    let prefill = flops.of_batch(&BatchShape { prefills: vec![chunk], ..BatchShape::default() });
    let decode = |context| flops.of_batch(&BatchShape::decodes(1, context));
    let all = prefill + decode(11) + decode(12);
    let stage = summary.replicas[0].stages[0];
    assert_near(stage.mfu_while_busy_percent.unwrap(), 100.0 * all / (1e12 * 15.3223e-3));
    assert_near(stage.mfu_percent.unwrap(), 100.0 * all / (1e12 * 25.3223e-3));
    assert_near(stage.mfu_max_percent.unwrap(), 100.0 * prefill / (1e12 * 5.1e-3));
}

#[test]
fn goodput_counts_requests_that_meet_every_objective() {
    // TTFT 5.1 and 5.1 ms, TPOT 5.11115 and, of a single token, 0.
    let requests = [(0, 10, 3), (100, 10, 1)];
    for (slo, good) in [
        (Slo { ttft_ms: Some(5.1), ..Slo::default() }, 2),
        (Slo { ttft_ms: Some(5.099), ..Slo::default() }, 0),
        (Slo { ttft_ms: Some(5.1), tpot_ms: Some(5.0), e2el_ms: None }, 1),
        (Slo { e2el_ms: Some(15.3223), ..Slo::default() }, 2),
        (Slo { e2el_ms: Some(15.32), ..Slo::default() }, 1),
    ] {
        for detail in [RequestDetail::All, RequestDetail::Sampled] {
            let metrics = MetricsConfig { requests: detail, ..MetricsConfig::default() };
            let options = RecordOptions { metrics, slo, ..RecordOptions::default() };
            let (_, summary) = run(&sim_config(), &requests, options);
            let goodput = summary.goodput.unwrap();
            assert_eq!(goodput.requests, good, "{slo:?}");
            assert_near(goodput.percent, 50.0 * good as f64);
            assert_near(goodput.requests_per_s, good as f64 / 0.1051);
        }
    }
    let (_, summary) = run(&sim_config(), &requests, RecordOptions::default());
    assert_eq!(summary.goodput, None);
}

#[test]
fn batches_have_distributions() {
    // One prompt of 10, then beside the decode a prompt of 20, then two decodes.
    let (recorder, summary) =
        run(&sim_config(), &[(0, 10, 3), (1, 20, 2)], RecordOptions::default());
    let b = &summary.batches;
    assert_eq!(recorder.num_batches, 3);
    let of = |d: Option<Distribution>| {
        let d = d.unwrap();
        (d.min, d.p50, d.max)
    };
    assert_eq!(of(b.batch_size), (1.0, 2.0, 2.0));
    assert_eq!(of(b.batch_num_tokens), (2.0, 10.0, 21.0));
    assert_eq!(of(b.batch_num_prefill_tokens), (0.0, 10.0, 20.0));
    assert_eq!(of(b.batch_num_decode_tokens), (0.0, 1.0, 2.0));
    assert_near(b.batch_execution_time_ms.unwrap().min, 5.1);
    // Two decodes with contexts of 12 and 21 tokens.
    assert_near(summary.latency.itl_ms.unwrap().min, 5.0 + 0.02 + 0.2 + 1e-4 * 33.0);
}

#[test]
fn operator_times_add_up_to_the_busy_time() {
    let cost = LinearCost { stages: 2 };
    let config = sim_config();
    let mut both = (Recorder::new(1, false), OperatorTimes::new(&cost, false));
    sim::run(&config, &cost, &workload(&[(0, 300, 20), (5, 40, 9)]), &mut both).unwrap();
    let shares = both.1.shares();
    assert_eq!(shares.len(), 1);
    assert_eq!(shares[0].operator, Op::MlpUpProj);
    assert_eq!(shares[0].percent, 100.0);
    let rounding = 1e-6 * both.0.num_batches as f64;
    assert!((shares[0].total_ms - both.0.busy.as_ms()).abs() <= rounding);
}

#[test]
fn too_many_spans_are_none() {
    let options = |max_spans| RecordOptions { max_spans, ..RecordOptions::default() };
    let (kept, _) = run(&sim_config(), &ALONE, options(3));
    assert_eq!((kept.spans.len(), kept.spans_dropped), (3, false));
    let (dropped, _) = run(&sim_config(), &ALONE, options(2));
    assert_eq!((dropped.spans.len(), dropped.spans_dropped), (0, true));
}

fn within(sketch: Option<Distribution>, exact: Option<Distribution>) -> Result<(), TestCaseError> {
    prop_assert_eq!(sketch.is_some(), exact.is_some());
    let (Some(s), Some(e)) = (sketch, exact) else { return Ok(()) };
    prop_assert_eq!(s.count, e.count);
    // A half bucket, and the rounding of a quotient to a nanosecond.
    let near = |a: f64, b: f64| (a - b).abs() <= 0.0005 * b + 1e-6;
    for (a, b) in [(s.p50, e.p50), (s.p90, e.p90), (s.p95, e.p95), (s.p99, e.p99)] {
        prop_assert!(near(a, b), "{} {}", a, b);
    }
    for (a, b) in [(s.mean, e.mean), (s.min, e.min), (s.max, e.max)] {
        prop_assert!((a - b).abs() <= 1e-6, "{} {}", a, b);
    }
    prop_assert!((s.std - e.std).abs() <= 1e-5 * (1.0 + e.std), "{} {}", s.std, e.std);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_sampled_run_agrees_with_the_exact_one_in_fixed_memory(
        rows in prop::collection::vec((0u64..40, 1u32..300, 1u32..40), 1..150),
        dialect in prop::sample::select(vec![
            Dialect::Vllm, Dialect::Guidellm, Dialect::GenaiPerf, Dialect::Vidur,
        ]),
    ) {
        let mut now = 0;
        let requests: Vec<_> = rows
            .into_iter()
            .map(|(gap, prompt, output)| {
                now += gap;
                (now, prompt, output)
            })
            .collect();
        // Little cache, so that requests start again.
        let config = SimConfig { kv_blocks: 60, watermark_blocks: 0, ..sim_config() };
        let slo = Slo { ttft_ms: Some(200.0), tpot_ms: Some(7.0), e2el_ms: None };
        let exact = RecordOptions { slo, ..options(dialect) };
        let mut sampled = exact.clone();
        sampled.metrics.requests = RequestDetail::Sampled;
        let (exact_recorder, exact) = run(&config, &requests, exact);
        let exact_records = &exact_recorder.requests;
        let (recorder, sketched) = run(&config, &requests, sampled);
        let (s, e) = (&sketched.latency, &exact.latency);
        within(s.ttft_ms, e.ttft_ms)?;
        within(s.tpot_ms, e.tpot_ms)?;
        within(s.itl_ms, e.itl_ms)?;
        within(s.e2e_ms, e.e2e_ms)?;
        within(s.queueing_ms, e.queueing_ms)?;
        within(s.ttst_ms, e.ttst_ms)?;
        prop_assert_eq!(sketched.throughput, exact.throughput);
        prop_assert_eq!(sketched.goodput, exact.goodput);
        prop_assert_eq!(&sketched.replicas, &exact.replicas);
        prop_assert_eq!(&sketched.batches, &exact.batches);
        prop_assert_eq!(sketched.num_requests, requests.len() as u64);
        // Kept: from the oldest request in flight on.
        let span = |i: usize| {
            let arrived = exact_records[i].arrived_at;
            let oldest = exact_records.iter().position(|r| r.completed_at >= arrived);
            i + 1 - oldest.unwrap_or(i).min(i)
        };
        let most = (0..exact_records.len()).map(span).max().unwrap_or(0);
        let live = recorder.sampled.as_ref().unwrap().most_live();
        prop_assert!(live <= most, "{live} records, {most} since the oldest in flight");
        prop_assert!(recorder.requests.is_empty() && recorder.token_gaps.is_empty());
    }
}
