//! A small model, a device, and hand-made operator models for tests.

use super::{OpModel, Prediction};
use crate::predictor::features::axes;
use crate::spec::device::DeviceSku;
use crate::spec::model::ModelSpec;
use crate::spec::ops::OpInput;
use std::collections::BTreeMap;

pub(crate) fn model() -> ModelSpec {
    serde_saphyr::from_str(
        "{name: org/tiny, source: test, num_layers: 4, hidden_size: 64, intermediate_size: 128, \
          num_attention_heads: 8, num_key_value_heads: 2, head_dim: 8, vocab_size: 100, \
          max_position_embeddings: 4096, gated_mlp: true, activation: silu, norm: rms_norm, \
          rope_theta: 10000.0}",
    )
    .unwrap()
}

pub(crate) fn device() -> DeviceSku {
    DeviceSku {
        name: "a30".into(),
        aliases: vec!["a30-pcie".into()],
        full_name: "NVIDIA A30".into(),
        vendor: "NVIDIA".into(),
        memory_bytes: 24 << 30,
        memory_bandwidth_bytes_per_s: 933e9,
        peak_flops_per_s: BTreeMap::from([(crate::spec::model::Dtype::Bf16, 165e12)]),
        link_bytes_per_s: None,
        power_w: None,
        cores: None,
        sources: Vec::new(),
    }
}

/// `scale * (1 + row + x)`; extrapolated where `x` is above `limit`.
pub(crate) struct Ramp {
    pub scale: f64,
    pub limit: f64,
}

impl OpModel for Ramp {
    fn predict(&self, input: OpInput) -> Prediction {
        let (row, x) = axes(input);
        Prediction { ms: self.scale * (1.0 + row + x), extrapolated: x > self.limit }
    }
}
