//! How one replica of a model is spread over devices.

use super::model::ModelSpec;
use serde::{Deserialize, Serialize};

/// Tensor and pipeline parallel degrees of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Parallelism {
    /// Devices that share each layer.
    pub tensor_parallel: u32,
    /// Stages that the layers are split into.
    pub pipeline_parallel: u32,
}

impl Parallelism {
    /// One device.
    pub const SINGLE: Parallelism = Parallelism { tensor_parallel: 1, pipeline_parallel: 1 };

    /// Devices that one replica occupies.
    pub fn num_devices(self) -> u32 {
        self.tensor_parallel * self.pipeline_parallel
    }

    /// Layers of `stage`: as even as can be, the first stages take the remainder.
    pub fn layers_in_stage(self, num_layers: u32, stage: u32) -> u32 {
        num_layers / self.pipeline_parallel + u32::from(stage < num_layers % self.pipeline_parallel)
    }

    /// Checks that `model` can be split this way.
    ///
    /// # Errors
    /// One line that names the number that does not divide, and degrees that do.
    pub fn check(self, model: &ModelSpec) -> Result<(), String> {
        let tp = self.tensor_parallel;
        if tp == 0 || self.pipeline_parallel == 0 {
            return Err("tensor_parallel and pipeline_parallel must be at least 1".into());
        }
        for (what, n) in [
            ("attention heads", model.num_attention_heads),
            ("columns of the feed-forward layer (intermediate_size)", model.intermediate_size),
        ] {
            if n % tp != 0 {
                let fits: Vec<String> = (1..=64)
                    .filter(|d| {
                        model.num_attention_heads.is_multiple_of(*d)
                            && model.intermediate_size.is_multiple_of(*d)
                    })
                    .map(|d: u32| d.to_string())
                    .collect();
                return Err(format!(
                    "{} has {n} {what}, which tensor_parallel {tp} does not divide; degrees that fit: {}",
                    model.name,
                    fits.join(", ")
                ));
            }
        }
        if self.pipeline_parallel > model.num_layers {
            return Err(format!(
                "{} has {} layers, too few for pipeline_parallel {}",
                model.name, model.num_layers, self.pipeline_parallel
            ));
        }
        Ok(())
    }

    /// Key-value heads that each device holds: `ceil(kv_heads / tensor_parallel)`; when there are
    /// fewer heads than devices, heads are replicated.
    pub fn kv_heads_per_device(self, model: &ModelSpec) -> u32 {
        model.num_key_value_heads.div_ceil(self.tensor_parallel)
    }
}
