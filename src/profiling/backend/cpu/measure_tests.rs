//! The CPU backend on a tiny model: which operators come back, and that layers run end to end.

use super::super::super::{Backend, BackendError, Effort, LayerBatch, Purpose, Shape, Shard};
use super::super::CpuBackend;
use super::super::testing::threads;
use super::*;
use crate::profiling::compute::ops_of;
use crate::profiling::host::Host;
use crate::profiling::runner::testing::model;
use crate::spec::model::{Activation, LayerLayout, ModelSpec, Norm};
use std::time::Duration;

const QUICK: Effort =
    Effort { repeats: 2, min_time: Duration::ZERO, max_time: Duration::from_millis(50) };

fn backend() -> CpuBackend {
    let host = Host { last_level_cache_bytes: 64 << 10, ..Host::detect() };
    CpuBackend::new(&host, Some(1), 42).unwrap()
}

fn models() -> Vec<ModelSpec> {
    let phi = ModelSpec {
        layer_layout: LayerLayout::Parallel,
        norm: Norm::LayerNorm,
        gated_mlp: false,
        activation: Activation::Gelu,
        qk_norm: false,
        qkv_bias: true,
        linear_bias: true,
        partial_rotary_factor: 0.5,
        ..model()
    };
    let gemma = ModelSpec {
        layer_layout: LayerLayout::Sandwich,
        activation: Activation::Gelu,
        qk_norm: false,
        ..model()
    };
    vec![model(), phi, gemma]
}

#[test]
fn every_operator_of_a_shape_is_timed_and_no_other() {
    for model in models() {
        for tensor_parallel in [1, 2, 4] {
            let shard = Shard { model: model.clone(), tensor_parallel };
            let mut cpu = backend();
            for shape in [
                Shape::Tokens(1),
                Shape::Tokens(5),
                Shape::Prefill { chunk: 20, kv: 0 },
                Shape::Prefill { chunk: 3, kv: 30 },
                Shape::Decode { batch: 3, kv: 17 },
            ] {
                let purpose = match shape {
                    Shape::Tokens(_) => Purpose::Mlp,
                    _ => Purpose::Attention,
                };
                cpu.prepare(&shard, purpose).unwrap();
                let samples = cpu.measure(shape, QUICK).unwrap();
                let mut timed: Vec<Op> = samples.iter().map(|s| s.op).collect();
                let mut expected: Vec<Op> =
                    ops_of(&model, shape).into_iter().map(|(op, _)| op).collect();
                timed.sort();
                expected.sort();
                assert_eq!(timed, expected, "{shape}");
                for s in samples {
                    assert!(!s.ms.is_empty() && s.ms.iter().all(|ms| *ms >= 0.0), "{}", s.op);
                }
            }
        }
    }
}

#[test]
fn whole_layers_run_chunks_and_decodes_together() {
    for model in models() {
        let mut cpu = backend();
        let shard = Shard { model, tensor_parallel: 1 };
        cpu.prepare(&shard, Purpose::Layers).unwrap();
        let batch = LayerBatch { prefills: vec![(7, 0), (4, 19)], decodes: vec![3, 40] };
        let ms = cpu.measure_layers(&batch, QUICK).unwrap();
        assert!(!ms.is_empty() && ms.iter().all(|ms| *ms > 0.0 && ms.is_finite()));
    }
}

#[test]
fn timed_and_untimed_layers_compute_the_same_numbers() {
    let shard = Shard { model: model(), tensor_parallel: 1 };
    let threads = threads(1);
    let batch = LayerBatch { prefills: vec![(9, 5)], decodes: vec![21] };
    let compute = |timed: bool| {
        let mut p = Prepared::new(&threads, &shard, Purpose::Layers, 1 << 16, 1).unwrap();
        let places = p.place(&threads, &batch).unwrap();
        p.room_for(&batch).unwrap();
        let Prepared { dims, layers, activations, rotary, cache, .. } = &mut p;
        activations.resize(dims, 10, 0);
        weights::fill(&mut activations.x, 9, 1.0);
        let positions = positions_of(&batch);
        let context = Context { threads: &threads, dims: *dims, rotary, positions: &positions };
        let cache = cache.as_mut().unwrap();
        let mut attend = Attend { cache, batch: &places[0], prefills: 1 };
        let attend = Some(&mut attend);
        if timed {
            context.layer(&mut OpTimer::default(), &layers[0], activations, attend);
        } else {
            context.layer(&mut NoTimer, &layers[0], activations, attend);
        }
        std::mem::take(&mut activations.x)
    };
    let timed = compute(true);
    assert_eq!(timed, compute(false));
    assert!(timed.iter().all(|x| x.is_finite()) && timed.iter().any(|x| *x != timed[0]));
}

#[test]
fn the_stack_exceeds_the_caches_and_shrinks_with_the_shard() {
    let threads = threads(1);
    let layers = |tensor_parallel, working_set| {
        let shard = Shard { model: model(), tensor_parallel };
        let p = Prepared::new(&threads, &shard, Purpose::Mlp, working_set, 1).unwrap();
        (p.layers.len() as u64, p.dims.layer_bytes(), p.table.len())
    };
    let (copies, bytes, table) = layers(1, 1 << 20);
    assert!(copies * bytes >= 1 << 20, "{copies} x {bytes}");
    assert_eq!(table, 101 * 48);
    let (_, half, table) = layers(2, 1 << 20);
    assert_eq!((half * 2, table), (bytes, 51 * 48));
    assert_eq!(layers(1, 1).0, 1, "one layer at least");
}

#[test]
fn sequences_never_share_a_block() {
    let threads = threads(1);
    let shard = Shard { model: model(), tensor_parallel: 1 };
    let mut p = Prepared::new(&threads, &shard, Purpose::Attention, 1 << 18, 1).unwrap();
    let batch = LayerBatch { prefills: vec![(17, 16)], decodes: vec![15, 16, 0] };
    let places = p.place(&threads, &batch).unwrap();
    assert!(places.len() > 1, "caches rotate");
    let mut blocks: Vec<u32> =
        places.iter().flatten().flat_map(|s| s.blocks.iter().copied()).collect();
    let all = blocks.len();
    blocks.sort_unstable();
    blocks.dedup();
    assert_eq!(blocks.len(), all);
    assert_eq!(all, places.len() * (3 + 1 + 2 + 1));
}

#[test]
fn what_does_not_fit_is_a_value_and_not_the_end() {
    let mut cpu = backend();
    let shard = Shard { model: model(), tensor_parallel: 1 };
    cpu.prepare(&shard, Purpose::Attention).unwrap();
    let shape = Shape::Decode { batch: 1 << 12, kv: 1 << 20 };
    let error = cpu.measure(shape, QUICK).unwrap_err();
    assert!(matches!(&error, BackendError::Shape(m) if m.contains("GiB")), "{error}");
    assert!(cpu.measure(Shape::Decode { batch: 1, kv: 1 }, QUICK).is_ok());
}

#[test]
fn peaks_are_positive_and_kernels_have_versions() {
    let mut cpu = backend();
    let peaks = cpu.peaks().unwrap();
    assert!(peaks.flops_per_s > 0.0 && peaks.bytes_per_s > 0.0);
    let kernels = &cpu.device().kernels;
    assert!(kernels.iter().any(|k| k.starts_with("faer 0.24")), "{kernels:?}");
}
