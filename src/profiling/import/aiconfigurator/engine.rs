//! The three engines of the package: how each is called there, which number formats its tables use,
//! and what it merges into one kernel.

use crate::spec::model::{Dtype, ModelSpec};
use crate::spec::ops::Op;
use crate::spec::precision::{InputScales, WeightFormat};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// A serving engine whose operators were timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// TensorRT-LLM, its PyTorch flow.
    Trtllm,
}

impl Engine {
    /// All of them.
    pub const ALL: [Engine; 3] = [Engine::Vllm, Engine::Sglang, Engine::Trtllm];

    /// The name of its folders in the package, and ours.
    pub const fn name(self) -> &'static str {
        match self {
            Engine::Vllm => "vllm",
            Engine::Sglang => "sglang",
            Engine::Trtllm => "trtllm",
        }
    }

    /// Which rows of an all-reduce table the engine runs in serving: those inside a CUDA graph where
    /// the table tells them from eager ones (whose 20 to 40 µs are the launch, which the engine hides
    /// behind the kernels before).
    pub(super) fn all_reduce_row(self, kernel_source: &str) -> bool {
        !kernel_source.ends_with("_eager")
    }

    /// Operators of ours that take no time of their own, and the operator that does their work.
    ///
    /// Residual additions: all three run one kernel that adds and normalises. KV cache: the attention
    /// that the package times writes the new keys and values itself. Rotary embedding: TensorRT-LLM's
    /// attention applies it.
    pub(super) fn fused(self) -> &'static [(Op, &'static str)] {
        const ADD: (Op, &str) = (Op::Add, "input_layernorm and post_attention_layernorm");
        const KV: (Op, &str) = (Op::AttnKvCacheSave, "attn_prefill and attn_decode");
        match self {
            Engine::Vllm | Engine::Sglang => &[ADD, KV],
            Engine::Trtllm => &[ADD, KV, (Op::AttnRope, "attn_prefill and attn_decode")],
        }
    }

    /// Whether the engine quantises the input of `op` in the kernel that produces it, when the scale
    /// is known beforehand, instead of in a pass of its own.
    ///
    /// vLLM: its compiler merges static quantisation into norms and activation; the input of the
    /// output projection comes from the attention kernel, which is not compiled. TensorRT-LLM: the
    /// attention kernel writes 8-bit output, and the all-reduce with norm quantises; the activation
    /// does not. SGLang: none.
    pub(super) fn quantizes_before(self, op: Op, tensor_parallel: u32) -> bool {
        match self {
            Engine::Vllm => matches!(op, Op::AttnPreProj | Op::MlpUpProj | Op::MlpDownProj),
            Engine::Trtllm => match op {
                Op::AttnPostProj => true,
                Op::AttnPreProj | Op::MlpUpProj => tensor_parallel > 1,
                _ => false,
            },
            Engine::Sglang => false,
        }
    }

    /// The formats `(attention, KV cache)` of the rows of the context attention table that the engine
    /// runs for `model`, the preferred one first.
    pub(super) fn context_formats(
        self,
        model: &ModelSpec,
    ) -> &'static [(&'static str, &'static str)] {
        let fp8_cache = model.kv_cache_dtype(model.dtype) == Dtype::Fp8;
        match (self, fp8_cache) {
            (_, false) => &[("bfloat16", "bfloat16")],
            (Engine::Vllm, true) => &[("bfloat16", "fp8"), ("fp8", "fp8")],
            // Both attend in 8 bits when the cache holds 8 bits.
            (Engine::Sglang | Engine::Trtllm, true) => &[("fp8", "fp8"), ("bfloat16", "fp8")],
        }
    }

    /// The format of the KV cache in the rows of the generation attention table.
    pub(super) fn generation_format(model: &ModelSpec) -> &'static str {
        if model.kv_cache_dtype(model.dtype) == Dtype::Fp8 { "fp8" } else { "bfloat16" }
    }
}

/// The format of the rows of the GEMM table for `op` of `model`, and whether the scales of its input
/// are known beforehand (the table's `fp8` rows find them for every batch).
pub(super) fn gemm_format(model: &ModelSpec, op: Op) -> (&'static str, bool) {
    let format =
        if op.is_layer_projection() { model.weight_format() } else { WeightFormat::Unquantized };
    let static_scales = model.quantization.is_some_and(|q| q.input_scales == InputScales::Static);
    match format {
        WeightFormat::Unquantized => ("bfloat16", false),
        WeightFormat::Fp8 => ("fp8", static_scales),
        WeightFormat::Fp8Block => ("fp8_block", false),
        WeightFormat::Nvfp4 => ("nvfp4", false),
    }
}

/// Orders versions as their makers do: numbers by value, `rc` before the release, `post` after it.
pub(super) fn by_version(a: &str, b: &str) -> Ordering {
    let (a, b) = (parts(a), parts(b));
    let length = a.len().max(b.len());
    let at = |parts: &[(i8, u64)], i: usize| parts.get(i).copied().unwrap_or((0, 0));
    (0..length).map(|i| at(&a, i).cmp(&at(&b, i))).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
}

/// `1.3.0rc20` → (1,1) (1,3) (1,0) (-1,20): kind of the part, then its number.
fn parts(version: &str) -> Vec<(i8, u64)> {
    let mut parts = Vec::new();
    let mut rest = version;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits > 0 {
            parts.push((1, rest[..digits].parse().unwrap_or(u64::MAX)));
            rest = &rest[digits..];
            continue;
        }
        let word = rest.len() - rest.trim_start_matches(|c: char| !c.is_ascii_digit()).len();
        let kind = match rest[..word].trim_matches(['.', '-', '_', '+']) {
            "" => None,
            "rc" | "a" | "b" | "dev" => Some(-1),
            _ => Some(2),
        };
        rest = &rest[word..];
        if let Some(kind) = kind {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            parts.push((kind, rest[..digits].parse().unwrap_or(0)));
            rest = &rest[digits..];
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_their_makers_mean_them() {
        let mut versions =
            ["1.3.0", "1.3.0rc20", "1.2.0rc5", "1.3.0rc10", "0.5.6.post2", "0.5.14", "0.5.6"];
        versions.sort_by(|a, b| by_version(a, b));
        assert_eq!(
            versions,
            ["0.5.6", "0.5.6.post2", "0.5.14", "1.2.0rc5", "1.3.0rc10", "1.3.0rc20", "1.3.0"]
        );
    }
}
