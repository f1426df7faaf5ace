//! A small model for the tests of this room.

use crate::spec::model::{Activation, Dtype, LayerLayout, ModelSpec, Norm};

/// Four query heads over two key heads, with everything that a layer can have but biases.
pub fn model() -> ModelSpec {
    ModelSpec {
        name: "test/tiny".into(),
        aliases: Vec::new(),
        source: "made up".into(),
        num_layers: 2,
        hidden_size: 48,
        intermediate_size: 96,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
        vocab_size: 101,
        max_position_embeddings: 4096,
        gated_mlp: true,
        activation: Activation::Silu,
        norm: Norm::RmsNorm,
        layer_layout: LayerLayout::PreNorm,
        qk_norm: true,
        qkv_bias: false,
        linear_bias: false,
        tie_word_embeddings: true,
        rope_theta: 1e6,
        partial_rotary_factor: 1.0,
        sliding_window: None,
        dtype: Dtype::Bf16,
        quantization: None,
    }
}
