//! Number formats of a quantised checkpoint. Such a checkpoint is a model of its own: it has its own
//! file in the catalogue, its own weights in memory and its own timings.

use super::model::{Dtype, ModelSpec};
use super::ops::Op;
use serde::{Deserialize, Serialize};

/// What a quantised checkpoint stores in fewer bits than [`ModelSpec::dtype`]. Embeddings, norms and
/// the LM head stay in `dtype`, as in the checkpoints that ModelOpt and llm-compressor write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// Format of the projections of attention and feed-forward, weights and inputs.
    pub weights: WeightFormat,
    /// When the scales of the inputs are found.
    #[serde(default)]
    pub input_scales: InputScales,
    /// Format of the KV cache; that of [`ModelSpec::dtype`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<Dtype>,
}

/// How the weights of a projection are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightFormat {
    /// As [`ModelSpec::dtype`] says: only the KV cache is quantised.
    Unquantized,
    /// 8-bit float, one scale per tensor or row.
    Fp8,
    /// 8-bit float, a 32-bit scale for each block of 128 by 128 weights.
    Fp8Block,
    /// 4-bit float, an 8-bit scale for each 16 weights.
    Nvfp4,
}

/// When the scale that an input is quantised by is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputScales {
    /// In the checkpoint, found beforehand on sample data (ModelOpt): quantising is one pass, which
    /// engines merge into the operator before it.
    #[default]
    Static,
    /// Of each batch as it comes: one more pass over the input.
    Dynamic,
}

impl WeightFormat {
    /// Bytes that one weight occupies, scales included; `None` where the model's own format counts.
    ///
    /// `fp8: 1,  fp8_block: 1 + 4 / 128²,  nvfp4: 1/2 + 1/16`  [bytes]
    pub fn bytes(self) -> Option<f64> {
        match self {
            WeightFormat::Unquantized => None,
            WeightFormat::Fp8 => Some(1.0),
            WeightFormat::Fp8Block => Some(1.0 + 4.0 / (128.0 * 128.0)),
            WeightFormat::Nvfp4 => Some(0.5 + 1.0 / 16.0),
        }
    }

    /// The format that such weights are multiplied in; `None` where the model's own counts.
    pub const fn compute(self) -> Option<Dtype> {
        match self {
            WeightFormat::Unquantized => None,
            WeightFormat::Fp8 | WeightFormat::Fp8Block => Some(Dtype::Fp8),
            WeightFormat::Nvfp4 => Some(Dtype::Fp4),
        }
    }

    /// The name in files.
    pub const fn name(self) -> &'static str {
        match self {
            WeightFormat::Unquantized => "unquantized",
            WeightFormat::Fp8 => "fp8",
            WeightFormat::Fp8Block => "fp8_block",
            WeightFormat::Nvfp4 => "nvfp4",
        }
    }
}

impl ModelSpec {
    /// How the weights of the layers' projections are stored.
    pub fn weight_format(&self) -> WeightFormat {
        self.quantization.map_or(WeightFormat::Unquantized, |q| q.weights)
    }

    /// Bytes of one weight of a layer's projection when the rest of the model is held in `dtype`.
    pub fn projection_bytes(&self, dtype: Dtype) -> f64 {
        self.weight_format().bytes().unwrap_or(dtype.bytes())
    }

    /// Format of the KV cache when the model is computed in `dtype`.
    pub fn kv_cache_dtype(&self, dtype: Dtype) -> Dtype {
        self.quantization.and_then(|q| q.kv_cache).unwrap_or(dtype)
    }

    /// The format that `op` calculates in when the rest of the model is computed in `dtype`.
    pub fn compute_dtype(&self, op: Op, dtype: Dtype) -> Dtype {
        let quantized = op.is_layer_projection().then(|| self.weight_format().compute()).flatten();
        quantized.unwrap_or(dtype)
    }

    /// This model with its projections and KV cache in other formats, under its own name.
    pub fn quantized(&self, quantization: Quantization) -> ModelSpec {
        ModelSpec { quantization: Some(quantization), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::catalog::Catalog;

    fn llama() -> ModelSpec {
        Catalog::open(None).model("meta-llama/Llama-3.1-8B").unwrap()
    }

    fn fp8() -> ModelSpec {
        llama().quantized(Quantization {
            weights: WeightFormat::Fp8,
            input_scales: InputScales::Static,
            kv_cache: Some(Dtype::Fp8),
        })
    }

    #[test]
    fn projections_and_cache_shrink_and_the_rest_stays() {
        let (whole, small) = (llama(), fp8());
        // Embedding, LM head and norms: 2 * 128256 * 4096 + 65 * 4096 parameters of 2 bytes.
        let rest = 2.0 * (2.0 * 128_256.0 * 4096.0 + 65.0 * 4096.0);
        assert_eq!(small.weight_bytes() - rest, (whole.weight_bytes() - rest) / 2.0);
        assert_eq!(small.kv_bytes_per_token() * 2.0, whole.kv_bytes_per_token());
    }

    #[test]
    fn only_projections_of_the_layers_calculate_in_fewer_bits() {
        let model = fp8();
        assert_eq!(model.compute_dtype(Op::MlpUpProj, Dtype::Bf16), Dtype::Fp8);
        assert_eq!(model.compute_dtype(Op::LmHead, Dtype::Bf16), Dtype::Bf16);
        assert_eq!(model.compute_dtype(Op::AttnDecode, Dtype::Bf16), Dtype::Bf16);
        assert_eq!(llama().compute_dtype(Op::MlpUpProj, Dtype::Bf16), Dtype::Bf16);
    }

    #[test]
    fn a_file_without_quantization_has_none_and_one_with_it_survives() {
        let text = serde_json::to_string(&fp8()).unwrap();
        assert_eq!(serde_json::from_str::<ModelSpec>(&text).unwrap(), fp8());
        assert!(!serde_json::to_string(&llama()).unwrap().contains("quantization"));
    }
}
