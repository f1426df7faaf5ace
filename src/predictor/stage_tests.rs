//! Tests of [`StageCost`] against the plain sum over operators.

use super::config::HostStages;
use super::test_support::{Ramp, model};
use super::{AttentionBatchingOverhead, Limits, OpModel, StageCost, ops_of, stage::StageSettings};
use crate::cost::{BatchShape, CostModel, PrefillChunk};
use crate::ids::StageId;
use crate::spec::model::{ModelSpec, SlidingWindow};
use crate::spec::ops::{LayerSum, Op};
use crate::spec::parallel::Parallelism;
use crate::units::SimDuration;
use proptest::prelude::*;

const LIMITS: Limits = Limits { max_batch_tokens: 300, max_batch_size: 16 };

fn settings(layer_sum: LayerSum) -> StageSettings {
    StageSettings {
        layer_sum,
        attention_batching_overhead: AttentionBatchingOverhead::default(),
        all_reduce_launch_ms: 0.02,
        host_stages: HostStages::First,
        prompt_gain: None,
        beside_prompts: None,
        limits: LIMITS,
    }
}

/// Every operator an awkward multiple of the same ramp.
fn ramps(model: &ModelSpec, parallel: Parallelism, limit: f64) -> Vec<(Op, Box<dyn OpModel>)> {
    let ops = ops_of(model, parallel, LayerSum::Engine).into_iter();
    ops.map(|op| {
        let scale = 0.001_234_567_89 / (op as usize as f64 + 1.7);
        (op, Box::new(Ramp { scale, limit }) as Box<dyn OpModel>)
    })
    .collect()
}

fn stage_cost(model: &ModelSpec, parallel: Parallelism, s: StageSettings) -> StageCost {
    StageCost::new(ramps(model, parallel, 1e9), model, parallel, s)
}

fn windowed() -> ModelSpec {
    ModelSpec { sliding_window: Some(SlidingWindow { tokens: 128, every: 2 }), ..model() }
}

fn batch(prefills: &[(u32, u32)], num_decodes: u32, decode_kv_tokens: u64) -> BatchShape {
    let chunk = |(i, (kv_tokens, chunk_tokens)): (usize, &(u32, u32))| PrefillChunk {
        kv_tokens: *kv_tokens,
        chunk_tokens: *chunk_tokens,
        completes: i % 2 == 0,
    };
    let prefills = prefills.iter().enumerate().map(chunk).collect();
    BatchShape { prefills, num_decodes, decode_kv_tokens, ..BatchShape::default() }
}

fn ms_of(cost: &StageCost, op: Op, b: &BatchShape) -> f64 {
    let times = cost.stage_breakdown(StageId(0), b);
    times.iter().filter(|t| t.op == op).map(|t| t.ms).sum()
}

proptest! {
    #[test]
    fn a_stage_costs_the_sum_of_its_breakdown_rounded_once(
        prefills in prop::collection::vec((0u32..9_000, 1u32..200), 0..4),
        num_decodes in 0u32..24,
        kv in 0u64..100_000,
        parallel in prop::sample::select(vec![(1, 1), (2, 1), (2, 2), (1, 4)]),
        limit in prop::sample::select(vec![50.0, 1e9]),
        sum in prop::sample::select(vec![LayerSum::Engine, LayerSum::Vidur]),
    ) {
        prop_assume!(!prefills.is_empty() || num_decodes > 0);
        let parallel = Parallelism { tensor_parallel: parallel.0, pipeline_parallel: parallel.1 };
        let model = windowed();
        let cost =
            StageCost::new(ramps(&model, parallel, limit), &model, parallel, settings(sum));
        let b = batch(&prefills, num_decodes, if num_decodes > 0 { kv } else { 0 });
        for stage in (0..parallel.pipeline_parallel).map(StageId) {
            let times = cost.stage_breakdown(stage, &b);
            let total: f64 = times.iter().map(|t| t.ms).sum();
            let answer = cost.stage_cost(stage, &b);
            prop_assert_eq!((answer.duration, answer.fraction), SimDuration::split_ms(total));
            let backwards: f64 = times.iter().rev().map(|t| t.ms).sum();
            prop_assert_eq!(total.to_bits(), backwards.to_bits());
            prop_assert_eq!(answer.extrapolated, times.iter().any(|t| t.extrapolated));
        }
    }
}

#[test]
fn operators_repeat_as_often_as_the_stage_runs_them() {
    let cost = stage_cost(&model(), Parallelism::SINGLE, settings(LayerSum::Engine));
    let b = batch(&[], 2, 200);
    // 4 layers, scale * (1 + tokens) each; the norm once more before the LM head.
    let scale = |op: Op| 0.001_234_567_89 / (op as usize as f64 + 1.7);
    for (op, times, rows) in [
        (Op::MlpUpProj, 4.0, 2.0),
        (Op::InputLayernorm, 5.0, 2.0),
        (Op::Add, 8.0, 2.0),
        (Op::LmHead, 1.0, 2.0),
        (Op::AttnDecode, 4.0, 2.0 + 100.0),
    ] {
        let want = times * scale(op) * (1.0 + rows);
        assert!((ms_of(&cost, op, &b) - want).abs() < 1e-9, "{op}");
    }
    assert_eq!(ms_of(&cost, Op::AttnPrefill, &b), 0.0);
}

#[test]
fn the_lm_head_counts_only_sequences_that_are_sampled() {
    let cost = stage_cost(&model(), Parallelism::SINGLE, settings(LayerSum::Engine));
    let mut b = batch(&[(0, 100)], 0, 0);
    b.prefills[0].completes = false;
    assert_eq!(ms_of(&cost, Op::LmHead, &b), 0.0);
    b.prefills[0].completes = true;
    assert!(ms_of(&cost, Op::LmHead, &b) > 0.0);
}

#[test]
fn windowed_layers_see_no_further_than_the_window() {
    let s = settings(LayerSum::Engine);
    let plain = stage_cost(&model(), Parallelism::SINGLE, s.clone());
    let windowed = stage_cost(&windowed(), Parallelism::SINGLE, s.clone());
    let scale = 0.001_234_567_89 / (Op::AttnDecode as usize as f64 + 1.7);
    let b = batch(&[], 1, 1000);
    let saved = ms_of(&plain, Op::AttnDecode, &b) - ms_of(&windowed, Op::AttnDecode, &b);
    assert!((saved - 2.0 * scale * (1000.0 - 128.0)).abs() < 1e-9);
    let short = batch(&[], 1, 100);
    assert_eq!(ms_of(&plain, Op::AttnDecode, &short), ms_of(&windowed, Op::AttnDecode, &short));
}

#[test]
fn batching_overhead_is_for_grouped_queries_and_several_sequences() {
    let mut s = settings(LayerSum::Vidur);
    s.attention_batching_overhead = AttentionBatchingOverhead { prefill: 0.1, decode: 0.2 };
    let plain = stage_cost(&model(), Parallelism::SINGLE, settings(LayerSum::Vidur));
    let slowed = stage_cost(&model(), Parallelism::SINGLE, s.clone());
    let ratio = |b: &BatchShape, op| ms_of(&slowed, op, b) / ms_of(&plain, op, b);
    assert!((ratio(&batch(&[], 2, 64), Op::AttnDecode) - 1.2).abs() < 1e-6);
    assert!((ratio(&batch(&[(0, 8), (0, 8)], 0, 0), Op::AttnPrefill) - 1.1).abs() < 1e-6);
    assert_eq!(ratio(&batch(&[(0, 8)], 1, 64), Op::AttnDecode), 1.0);
    assert_eq!(ratio(&batch(&[(0, 8)], 1, 64), Op::AttnPrefill), 1.0);
    let multi_head = ModelSpec { num_key_value_heads: 8, ..model() };
    let slowed = stage_cost(&multi_head, Parallelism::SINGLE, s.clone());
    let b = batch(&[], 2, 64);
    assert_eq!(ms_of(&slowed, Op::AttnDecode, &b), ms_of(&plain, Op::AttnDecode, &b));
}

#[test]
fn collectives_are_asked_for_bytes_and_pay_their_launch() {
    let parallel = Parallelism { tensor_parallel: 2, pipeline_parallel: 2 };
    let cost = stage_cost(&model(), parallel, settings(LayerSum::Engine));
    let b = batch(&[(0, 10)], 0, 0);
    // 2 layers a stage, 2 sums a layer; 10 tokens of 64 channels of 2 bytes.
    let scale = |op: Op| 0.001_234_567_89 / (op as usize as f64 + 1.7);
    let want = 4.0 * (scale(Op::AllReduce) * (1.0 + 1280.0) + 0.02);
    assert!((ms_of(&cost, Op::AllReduce, &b) - want).abs() < 1e-9);
    let want = scale(Op::SendRecv) * (1.0 + 1280.0);
    assert!((ms_of(&cost, Op::SendRecv, &b) - want).abs() < 1e-9);
    let last = cost.stage_breakdown(StageId(1), &b);
    assert!(last.iter().all(|t| t.op != Op::SendRecv));
}

#[test]
fn operators_without_a_model_take_no_time_and_no_line() {
    let mut models = ramps(&model(), Parallelism::SINGLE, 1e9);
    models.retain(|(op, _)| *op != Op::LmHead && *op != Op::AttnKvCacheSave);
    let cost = StageCost::new(models, &model(), Parallelism::SINGLE, settings(LayerSum::Engine));
    let b = batch(&[(0, 8)], 1, 64);
    assert_eq!(ms_of(&cost, Op::LmHead, &b), 0.0);
    let times = cost.stage_breakdown(StageId(0), &b);
    assert!(times.iter().all(|t| t.ms > 0.0 && t.op != Op::AttnKvCacheSave));
}

#[test]
fn times_too_large_for_the_clock_stay_finite() {
    let models: Vec<(Op, Box<dyn OpModel>)> = vec![
        (Op::Add, Box::new(Ramp { scale: f64::MAX / 1e9, limit: 0.0 })),
        (Op::AttnDecode, Box::new(Ramp { scale: f64::MAX / 1e9, limit: 0.0 })),
    ];
    let cost = StageCost::new(models, &model(), Parallelism::SINGLE, settings(LayerSum::Engine));
    let answer = cost.stage_cost(StageId(0), &batch(&[], 1, 5));
    assert!(answer.extrapolated && answer.duration > SimDuration::from_ns(1 << 59));
}
