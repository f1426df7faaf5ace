//! Decoding sequences whose attention runs in one kernel with prompt chunks, where that was measured.
//!
//! Engines put prompt chunks and decoding sequences of a batch into one call. Where the kernel is laid out
//! for the chunks, sequences with one query each fill its tiles badly: on an RTX 4090 (LLMServingSim's
//! timings, vLLM 0.19, 8,448 mixed batches) the sum of both alone is 30 % below the measured time in the
//! median. What the decodes add to the chunk's time depends on their number and length, and little on the
//! chunk: the median over all chunks as a surface of its own, in place of the one of decodes alone, is
//! 5.8 % off (median of absolute errors).

use super::interpolate::Interpolation;
use super::roofline::Roofline;
use super::{OpModel, OpModels, Prediction};
use crate::dataset::attention::MixedAttention;
use crate::dataset::read::Sample;
use crate::spec::ops::{Op, OpInput};

/// What decoding sequences add to the attention of a batch with prompt chunks.
#[derive(Clone, Debug)]
pub struct BesidePrompts(Interpolation);

impl BesidePrompts {
    /// From mixed batches and the model of prompts alone among `models`; `None` where none was measured.
    pub fn new(
        mixed: &[MixedAttention],
        models: &OpModels,
        roofline: Roofline,
    ) -> Option<BesidePrompts> {
        let (_, prompts) = models.iter().find(|(op, _)| *op == Op::AttnPrefill)?;
        let samples: Vec<Sample> = mixed
            .iter()
            .map(|m| {
                let chunk = OpInput::Prefill { kv: m.kv as f64, chunk: m.chunk as f64 };
                let input = OpInput::Decode { batch: m.decodes, kv: m.decode_kv as f64 };
                Sample { input, ms: (m.ms - prompts.predict(chunk).ms).max(0.0), line: m.line }
            })
            .collect();
        Interpolation::fit(&samples, roofline).map(BesidePrompts)
    }

    /// Milliseconds that the decodes at `input` add.
    pub fn predict(&self, input: OpInput) -> Prediction {
        self.0.predict(input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predictor::roofline::RooflineContext;
    use crate::predictor::test_support::{device, model};
    use crate::spec::parallel::Parallelism;

    struct Prompts;

    impl OpModel for Prompts {
        fn predict(&self, input: OpInput) -> Prediction {
            let OpInput::Prefill { kv, chunk } = input else { return Prediction::default() };
            Prediction { ms: 0.001 * (kv + chunk), extrapolated: false }
        }
    }

    #[test]
    fn the_median_over_chunks_is_what_decodes_add() {
        let mut mixed = Vec::new();
        for (chunk, extra) in [(16, 0.0), (64, 0.1), (256, 0.4)] {
            for decodes in [1, 8] {
                let ms = 0.001 * (100 + chunk) as f64 + 0.5 * decodes as f64 + extra;
                mixed.push(MixedAttention { kv: 100, chunk, decodes, decode_kv: 512, ms, line: 2 });
            }
        }
        let context = RooflineContext::new(&model(), Parallelism::SINGLE, &device());
        let roofline = Roofline::new(Op::AttnDecode, &context);
        let models: OpModels = vec![(Op::AttnPrefill, Box::new(Prompts))];
        let beside = BesidePrompts::new(&mixed, &models, roofline.clone()).unwrap();
        let ms = beside.predict(OpInput::Decode { batch: 8, kv: 512.0 }).ms;
        assert!((ms - 4.1).abs() < 1e-12, "{ms}");
        assert!(BesidePrompts::new(&[], &models, roofline).is_none());
    }
}
