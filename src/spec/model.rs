//! A decoder-only transformer as data: the numbers that fix its operators' shapes.

use super::precision::Quantization;
use serde::{Deserialize, Serialize};

/// One model, as a file under `data/model_configs/<org>/<model>.yml` describes it. Field names
/// follow Hugging Face's config.json where it has one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Hugging Face id, `org/model`.
    pub name: String,
    /// Other ids that profiles of this model are stored under.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Where the numbers come from.
    pub source: String,
    /// Decoder layers.
    pub num_layers: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width of the feed-forward layer (each of gate and up when gated).
    pub intermediate_size: u32,
    /// Query heads.
    pub num_attention_heads: u32,
    /// Key and value heads.
    pub num_key_value_heads: u32,
    /// Width of one head; not always `hidden_size / num_attention_heads`.
    pub head_dim: u32,
    /// Rows of the embedding.
    pub vocab_size: u32,
    /// Longest context that the model was made for, in tokens.
    pub max_position_embeddings: u32,
    /// Whether the feed-forward layer has a gate projection beside up and down.
    pub gated_mlp: bool,
    /// Non-linearity of the feed-forward layer.
    pub activation: Activation,
    /// Kind of every normalisation.
    pub norm: Norm,
    /// Where the norms sit around attention and feed-forward.
    #[serde(default)]
    pub layer_layout: LayerLayout,
    /// Queries and keys are normalised per head before the rotary embedding (Qwen3).
    #[serde(default)]
    pub qk_norm: bool,
    /// Bias on the query, key and value projections.
    #[serde(default)]
    pub qkv_bias: bool,
    /// Bias on the output projection and the feed-forward layer.
    #[serde(default)]
    pub linear_bias: bool,
    /// The LM head is the embedding: no weights of its own.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Share of each head that is rotated.
    #[serde(default = "one")]
    pub partial_rotary_factor: f64,
    /// Attention looks back this far only; `None` is the whole context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<SlidingWindow>,
    /// Type in which engines hold weights and KV cache: as published, save that checkpoints
    /// published as float32 are served in bfloat16.
    #[serde(default)]
    pub dtype: Dtype,
    /// What the checkpoint stores in fewer bits; absent when nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
}

fn one() -> f64 {
    1.0
}

/// Non-linearity of the feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// Gaussian error linear unit, exact or by its tanh approximation.
    Gelu,
}

/// Kind of normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Root mean square, one weight per channel.
    RmsNorm,
    /// Mean and variance, weight and bias per channel.
    LayerNorm,
}

/// How a layer strings its parts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerLayout {
    /// Norm, attention, add, norm, feed-forward, add (Llama, Qwen, Mistral).
    #[default]
    PreNorm,
    /// One norm feeds attention and feed-forward side by side (phi-2).
    Parallel,
    /// Norms before and after both attention and feed-forward: four a layer (Gemma 2).
    Sandwich,
}

/// Attention that looks back a fixed number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlidingWindow {
    /// Tokens that a query sees at most.
    pub tokens: u32,
    /// Every how many layers one is windowed: 1 is all of them, 2 every other.
    pub every: u32,
}

/// Number formats of weights, activations and peaks.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// Brain float, 16 bits.
    #[default]
    Bf16,
    /// IEEE half, 16 bits.
    F16,
    /// 8-bit float.
    Fp8,
    /// 8-bit integer.
    Int8,
    /// 4-bit float.
    Fp4,
}

impl Dtype {
    /// Bits that one element occupies.
    pub const fn bits(self) -> u32 {
        match self {
            Dtype::F32 => 32,
            Dtype::Bf16 | Dtype::F16 => 16,
            Dtype::Fp8 | Dtype::Int8 => 8,
            Dtype::Fp4 => 4,
        }
    }

    /// Bytes that one element occupies (half a byte for fp4).
    pub fn bytes(self) -> f64 {
        f64::from(self.bits()) / 8.0
    }
}

impl ModelSpec {
    /// The name without its organisation.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }

    /// Every id that profiles of this model may be stored under, its own first.
    pub fn names(&self) -> Vec<&str> {
        [self.name.as_str()].into_iter().chain(self.aliases.iter().map(String::as_str)).collect()
    }

    /// Width of all query heads together; equals `hidden_size` in most models, not in Qwen3-0.6B.
    pub fn q_size(&self) -> u64 {
        u64::from(self.num_attention_heads) * u64::from(self.head_dim)
    }

    /// Width of all key heads together.
    pub fn kv_size(&self) -> u64 {
        u64::from(self.num_key_value_heads) * u64::from(self.head_dim)
    }

    /// Norms over the residual stream in one layer.
    pub fn norms_per_layer(&self) -> u64 {
        match self.layer_layout {
            LayerLayout::Parallel => 1,
            LayerLayout::PreNorm => 2,
            LayerLayout::Sandwich => 4,
        }
    }

    /// Parameters of one decoder layer, biases and norms included.
    pub fn params_per_layer(&self) -> u64 {
        let h = u64::from(self.hidden_size);
        let ffn = u64::from(self.intermediate_size);
        let qkv = self.q_size() + 2 * self.kv_size();
        let up_and_gate = if self.gated_mlp { 2 * ffn } else { ffn };
        let mut params = self.projection_params_per_layer();
        params += self.norms_per_layer() * self.norm_params(h);
        if self.qk_norm {
            params += 2 * u64::from(self.head_dim);
        }
        if self.qkv_bias {
            params += qkv;
        }
        if self.linear_bias {
            params += h + up_and_gate + h;
        }
        params
    }

    /// Parameters of the whole model, embeddings included; a tied LM head counts once.
    pub fn params(&self) -> u64 {
        let h = u64::from(self.hidden_size);
        let embedding = u64::from(self.vocab_size) * h;
        let head = match (self.tie_word_embeddings, self.linear_bias) {
            (true, _) => 0,
            (false, false) => embedding,
            (false, true) => embedding + u64::from(self.vocab_size),
        };
        embedding
            + u64::from(self.num_layers) * self.params_per_layer()
            + self.norm_params(h)
            + head
    }

    /// Weights of the projections of one decoder layer: what a quantised checkpoint stores in fewer
    /// bits. Biases and norms are not among them.
    pub fn projection_params_per_layer(&self) -> u64 {
        let h = u64::from(self.hidden_size);
        let ffn = u64::from(self.intermediate_size);
        let up_and_gate = if self.gated_mlp { 2 * ffn } else { ffn };
        h * (self.q_size() + 2 * self.kv_size()) + self.q_size() * h + h * up_and_gate + ffn * h
    }

    /// Bytes of all weights.
    ///
    /// `projections · bytes of their format + other parameters · bytes of dtype`  in bytes
    pub fn weight_bytes(&self) -> f64 {
        let projections = u64::from(self.num_layers) * self.projection_params_per_layer();
        let others = self.params() - projections;
        projections as f64 * self.projection_bytes(self.dtype) + others as f64 * self.dtype.bytes()
    }

    /// Bytes of keys and values that one token occupies over all layers.
    ///
    /// `2 (K and V) · layers · kv_heads · head_dim · bytes per element`  [bytes / token]
    pub fn kv_bytes_per_token(&self) -> f64 {
        2.0 * f64::from(self.num_layers)
            * self.kv_size() as f64
            * self.kv_cache_dtype(self.dtype).bytes()
    }

    fn norm_params(&self, width: u64) -> u64 {
        match self.norm {
            Norm::RmsNorm => width,
            Norm::LayerNorm => 2 * width,
        }
    }

    /// Checks that the numbers make a model.
    ///
    /// # Errors
    /// One line that names the field, its value and what was expected.
    pub fn check(&self) -> Result<(), String> {
        for (field, value, most) in [
            ("num_layers", self.num_layers, 1 << 12),
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 12),
            ("vocab_size", self.vocab_size, 1 << 24),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 30),
        ] {
            // The upper ends leave every model room and keep counts of parameters within 64 bits.
            if value == 0 || value > most {
                return Err(format!("{field} is {value}; expected 1 to {most}"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if !(self.partial_rotary_factor > 0.0 && self.partial_rotary_factor <= 1.0) {
            return Err(format!(
                "partial_rotary_factor is {}; expected above 0 and at most 1",
                self.partial_rotary_factor
            ));
        }
        if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) {
            return Err(format!("rope_theta is {}; expected a number above 0", self.rope_theta));
        }
        if self.sliding_window.is_some_and(|w| w.tokens == 0 || w.every == 0) {
            return Err("sliding_window.tokens and .every must be at least 1".into());
        }
        Ok(())
    }
}
