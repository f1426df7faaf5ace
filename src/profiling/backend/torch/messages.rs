//! What is asked and answered, as JSON; docs/worker-protocol.md describes it.

use crate::dataset::graph::GraphKey;
use crate::profiling::backend::{Effort, LayerBatch, OpSamples, Shape, Shard};
use crate::profiling::compute::{LM_HEAD_MAX_ROWS, ops_of};
use crate::spec::model::{Activation, Dtype, LayerLayout, ModelSpec, Norm};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// Number formats that the worker computes in.
pub fn dtype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        _ => "bf16",
    }
}

/// The same, read back.
pub fn parse_dtype(name: &str) -> Option<Dtype> {
    [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().find(|&d| dtype(d) == name)
}

/// Widths of one device's share of the model.
pub fn shard(shard: &Shard) -> Value {
    let (model, tp) = (&shard.model, shard.tensor_parallel);
    let rotated = (f64::from(model.head_dim) * model.partial_rotary_factor) as u32;
    json!({
        "hidden": model.hidden_size,
        "ffn": model.intermediate_size / tp,
        "q_heads": model.num_attention_heads / tp,
        "kv_heads": shard.parallelism().kv_heads_per_device(model),
        "head_dim": model.head_dim,
        "rotated": (rotated & !1).max(2).min(model.head_dim & !1),
        "vocab": model.vocab_size.div_ceil(tp),
        "gated": model.gated_mlp,
        "activation": match model.activation { Activation::Silu => "silu", Activation::Gelu => "gelu" },
        "norm": match model.norm { Norm::RmsNorm => "rms_norm", Norm::LayerNorm => "layer_norm" },
        "layout": match model.layer_layout {
            LayerLayout::PreNorm => "pre_norm",
            LayerLayout::Parallel => "parallel",
            LayerLayout::Sandwich => "sandwich",
        },
        "qk_norm": model.qk_norm,
        "qkv_bias": model.qkv_bias,
        "linear_bias": model.linear_bias,
        "rope_theta": model.rope_theta,
    })
}

fn with_effort(mut request: Value, effort: Effort) -> Value {
    request["repeats"] = effort.repeats.into();
    request["min_time_s"] = effort.min_time.as_secs_f64().into();
    request["max_time_s"] = effort.max_time.as_secs_f64().into();
    request
}

/// The request for one shape.
pub fn measure(shape: Shape, effort: Effort) -> Value {
    let (shape, head) = match shape {
        Shape::Tokens(tokens) => (json!({"tokens": tokens}), tokens <= LM_HEAD_MAX_ROWS),
        Shape::Prefill { chunk, kv } => (json!({"prefill": {"chunk": chunk, "kv": kv}}), false),
        Shape::Decode { batch, kv } => (json!({"decode": {"batch": batch, "kv": kv}}), false),
    };
    with_effort(json!({"do": "measure", "shape": shape, "lm_head": head}), effort)
}

/// The request for whole layers.
pub fn layers(batch: &LayerBatch, effort: Effort) -> Value {
    let prefills: Vec<[u64; 2]> = batch.prefills.iter().map(|&(chunk, kv)| [chunk, kv]).collect();
    with_effort(json!({"do": "layers", "prefills": prefills, "decodes": batch.decodes}), effort)
}

/// The request for a graph; `lnc` as in [`super::TorchConfig::lnc`].
pub fn graph(of: &Shard, key: GraphKey, effort: Effort, folder: &Path, lnc: Option<u32>) -> Value {
    let request = json!({
        "do": "graph",
        "shard": shard(of),
        "phase": key.phase.name(),
        "bucket": key.bucket,
        "batch": key.batch,
        "layers": key.layers,
        "head": key.head,
        "workdir": folder.display().to_string(),
        "lnc": lnc,
    });
    with_effort(request, effort)
}

/// Times from the answer, which took `elapsed`: every operator of the shape, each with at least one
/// sample that is one.
///
/// # Errors
/// One line that names the operator.
pub fn samples(
    reply: &Value,
    model: &ModelSpec,
    shape: Shape,
    elapsed: Duration,
) -> Result<Vec<OpSamples>, String> {
    ops_of(model, shape)
        .into_iter()
        .map(|(op, _)| {
            let ms = times(&reply["samples"][op.name()], elapsed)
                .map_err(|e| format!("the worker's answer for {op}: {e}"))?;
            Ok(OpSamples { op, ms })
        })
        .collect()
}

/// A list of times that were taken within `elapsed`.
///
/// # Errors
/// When it is none, or one of them is longer than all of them together.
pub fn times(list: &Value, elapsed: Duration) -> Result<Vec<f64>, String> {
    let (ms, most) = (milliseconds(list)?, elapsed.as_secs_f64() * 1e3);
    match ms.iter().find(|&&ms| ms > most) {
        Some(ms) => Err(format!("a sample of {ms:e} ms, within a call of {most:.1} ms")),
        None => Ok(ms),
    }
}

/// A list of times.
///
/// # Errors
/// When it is none; nothing that ran took no time at all.
pub fn milliseconds(list: &Value) -> Result<Vec<f64>, String> {
    let list = list.as_array().filter(|list| !list.is_empty()).ok_or("no samples")?;
    list.iter()
        .map(|ms| ms.as_f64().filter(|ms| ms.is_finite() && *ms > 0.0))
        .collect::<Option<Vec<f64>>>()
        .ok_or_else(|| "a sample that is no time".into())
}
