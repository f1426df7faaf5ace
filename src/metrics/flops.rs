//! The arithmetic of a batch, for model FLOPs utilisation (MFU).

use crate::cost::{BatchShape, PrefillChunk};
use crate::spec::model::ModelSpec;
use crate::spec::ops::{Feature, LayerSum, OpInput, stage_ops};
use crate::spec::parallel::Parallelism;

/// Floating-point operations of one pipeline stage on each of its devices, as a function of the
/// batch: every operator of [`stage_ops`], the LM head included, a multiply-add as two. What
/// tensor-parallel devices do twice counts twice, and work that a restart repeats counts again.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageFlops {
    per_token: f64,
    per_sampled_token: f64,
    /// Per token that a token attends to, in layers that see the whole context.
    per_pair: f64,
    /// The same in layers that see a window.
    per_windowed_pair: f64,
    window: u32,
}

impl StageFlops {
    /// Those of `stage`, counted from 0.
    pub fn of(model: &ModelSpec, parallel: Parallelism, stage: u32) -> Self {
        let mut flops = StageFlops::default();
        for o in stage_ops(model, parallel, stage, LayerSum::Engine) {
            let times = f64::from(o.repeats);
            let work = |input| o.op.work(model, parallel, model.dtype, input).flops * times;
            match (o.op.feature(), o.window) {
                (Feature::Tokens, _) => flops.per_token += work(OpInput::Tokens(1)),
                (Feature::SampledTokens, _) => flops.per_sampled_token += work(OpInput::Tokens(1)),
                // Prefill and decode compare a pair at the same price: once for both.
                (Feature::Decode, None) => {
                    flops.per_pair += work(OpInput::Decode { batch: 1, kv: 0.0 });
                }
                (Feature::Decode, Some(window)) => {
                    flops.per_windowed_pair += work(OpInput::Decode { batch: 1, kv: 0.0 });
                    flops.window = window;
                }
                (Feature::Prefill, _) => {}
            }
        }
        flops
    }

    /// Those of one batch.
    pub fn of_batch(&self, batch: &BatchShape) -> f64 {
        let mut flops = self.per_token * batch.num_tokens() as f64
            + self.per_sampled_token * batch.num_sampled() as f64
            + self.per_pair * pairs(batch, u64::MAX);
        if self.per_windowed_pair > 0.0 {
            flops += self.per_windowed_pair * pairs(batch, u64::from(self.window));
        }
        flops
    }
}

/// Tokens attended to, summed over the tokens of the batch, when each sees at most `window`.
/// Decoding sequences count as if all had their mean length.
fn pairs(batch: &BatchShape, window: u64) -> f64 {
    let prefill: u64 = batch.prefills.iter().map(|p| chunk_pairs(p, window)).sum();
    let most = u64::from(batch.num_decodes).saturating_mul(window);
    (prefill + batch.decode_kv_tokens.min(most)) as f64
}

/// Σ min(kv + i, window) over the tokens i = 1 … chunk.
fn chunk_pairs(p: &PrefillChunk, window: u64) -> u64 {
    let (kv, chunk) = (u64::from(p.kv_tokens), u64::from(p.chunk_tokens));
    let growing = window.saturating_sub(kv).min(chunk);
    growing * kv + growing * (growing + 1) / 2 + (chunk - growing) * window.min(kv + chunk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::catalog::Catalog;
    use proptest::prelude::*;

    fn model() -> ModelSpec {
        Catalog::open(None).model("meta-llama/Llama-2-7b-hf").unwrap()
    }

    fn chunk(kv_tokens: u32, chunk_tokens: u32, completes: bool) -> PrefillChunk {
        PrefillChunk { kv_tokens, chunk_tokens, completes }
    }

    #[test]
    fn a_token_costs_two_operations_per_weight_and_attention_on_top() {
        let m = model();
        let flops = StageFlops::of(&m, Parallelism::SINGLE, 0);
        let batch = BatchShape::decodes(1, 1000);
        let weights = f64::from(m.num_layers) * m.params_per_layer() as f64
            + f64::from(m.vocab_size) * f64::from(m.hidden_size);
        let attention = 4.0 * m.q_size() as f64 * 1000.0 * f64::from(m.num_layers);
        let least = 2.0 * weights + attention;
        // Norms, activations and residuals add less than one percent.
        let ratio = flops.of_batch(&batch) / least;
        assert!((1.0 - 1e-4..1.01).contains(&ratio), "{ratio}");
    }

    #[test]
    fn stages_and_devices_share_the_work() {
        let m = model();
        let batch =
            BatchShape { prefills: vec![chunk(0, 100, true)], ..BatchShape::decodes(3, 200) };
        let whole = StageFlops::of(&m, Parallelism::SINGLE, 0).of_batch(&batch);
        let split = Parallelism { tensor_parallel: 1, pipeline_parallel: 2 };
        let parts: f64 = (0..2).map(|s| StageFlops::of(&m, split, s).of_batch(&batch)).sum();
        assert!((parts / whole - 1.0).abs() < 1e-12);
        let tensor = Parallelism { tensor_parallel: 2, pipeline_parallel: 1 };
        let half = StageFlops::of(&m, tensor, 0).of_batch(&batch);
        assert!((0.5..0.51).contains(&(half / whole)));
    }

    proptest! {
        #[test]
        fn pairs_are_what_each_token_sees(kv in 0u32..300, c in 1u32..300, window in 1u64..400) {
            let seen = |w: u64| (1..=u64::from(c)).map(|i| (u64::from(kv) + i).min(w)).sum::<u64>();
            prop_assert_eq!(chunk_pairs(&chunk(kv, c, false), window), seen(window));
            prop_assert_eq!(chunk_pairs(&chunk(kv, c, false), u64::MAX), seen(u64::MAX));
        }
    }
}
