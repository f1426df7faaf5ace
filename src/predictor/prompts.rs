//! What a kernel saves when it attends to several prompts at a time, where that was measured.
//!
//! Several chunks are priced one by one, each as if all were like it: a chunk of c tokens among n costs
//! `t(n, c) / n`, its time alone times [`PromptGain::share`]. That is exact for equal prompts, and the
//! measured times say how far short prompts fill the device together that none fills alone. On the
//! public H100 timings of vLLM (32 query and 8 key-value heads of 128), pricing them as one prompt of
//! the same number of pairs instead is 50 % too low for 16 prompts of 512 tokens, 29 % for 8 of 1024 and
//! 16 % for 4 of 2048.

use super::{OpModels, Prediction};
use crate::dataset::attention::PromptBatch;
use crate::spec::ops::{Op, OpInput};
use std::collections::BTreeMap;

/// Time of one of n prompts together over its time alone.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptGain {
    /// Ascending by number of prompts: `(ln n, [(ln tokens, ln share)])`.
    curves: Vec<(f64, Vec<(f64, f64)>)>,
}

impl PromptGain {
    /// From measured batches and the model of single prompts among `models`; `None` where nothing was
    /// measured.
    pub fn new(batches: &[PromptBatch], models: &OpModels) -> Option<PromptGain> {
        let (_, single) = models.iter().find(|(op, _)| *op == Op::AttnPrefill)?;
        let mut shares: BTreeMap<(u64, u64), Vec<f64>> = BTreeMap::new();
        for b in batches {
            let chunk = OpInput::Prefill { kv: 0.0, chunk: b.tokens as f64 };
            let Prediction { ms: alone, .. } = single.predict(chunk);
            let share = b.ms / (b.prompts as f64 * alone);
            if share > 0.0 && share.is_finite() {
                shares.entry((b.prompts, b.tokens)).or_default().push(share.ln());
            }
        }
        let mut curves: Vec<(f64, Vec<(f64, f64)>)> = Vec::new();
        for ((prompts, tokens), logs) in shares {
            let point = ((tokens as f64).ln(), crate::stats::mean(&logs)?);
            let n = (prompts as f64).ln();
            match curves.last_mut() {
                Some((last, points)) if *last == n => points.push(point),
                _ => curves.push((n, vec![point])),
            }
        }
        (!curves.is_empty()).then_some(PromptGain { curves })
    }

    /// By what factor one of `count` prompt chunks of `tokens` tokens takes less (or more) time than
    /// alone. Between measured numbers and lengths in logarithms, beyond them as at the edge.
    pub fn share(&self, count: f64, tokens: f64) -> f64 {
        let (n, x) = (count.max(1.0).ln(), tokens.max(1.0).ln());
        let after = self.curves.partition_point(|(curve, _)| *curve <= n);
        let at = |i: usize| along(&self.curves[i].1, x);
        // One prompt saves nothing: a curve of zeros at ln 1.
        let (low, a) = match after.checked_sub(1) {
            Some(i) => (self.curves[i].0, at(i)),
            None => (0.0, 0.0),
        };
        let log = match self.curves.get(after) {
            Some((high, _)) => a + (at(after) - a) * ((n - low) / (high - low)),
            None => a,
        };
        log.exp()
    }
}

/// Linear between points, flat beyond them.
fn along(points: &[(f64, f64)], x: f64) -> f64 {
    let after = points.partition_point(|p| p.0 <= x);
    match (after.checked_sub(1).and_then(|i| points.get(i)), points.get(after)) {
        (Some(a), Some(b)) => a.1 + (b.1 - a.1) * ((x - a.0) / (b.0 - a.0)),
        (Some(p), None) | (None, Some(p)) => p.1,
        (None, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predictor::OpModel;
    use proptest::prelude::*;

    /// 10 µs, and a microsecond for each 1000 pairs.
    struct Alone;

    fn together(prompts: f64, tokens: f64) -> f64 {
        0.01 + prompts * tokens * tokens * 1e-6
    }

    impl OpModel for Alone {
        fn predict(&self, input: OpInput) -> Prediction {
            let OpInput::Prefill { chunk, .. } = input else { return Prediction::default() };
            Prediction { ms: together(1.0, chunk), extrapolated: false }
        }
    }

    fn gain() -> PromptGain {
        let mut batches = Vec::new();
        for prompts in [2, 4, 16] {
            for tokens in [16, 64, 256, 1024] {
                let ms = together(prompts as f64, tokens as f64);
                batches.push(PromptBatch { prompts, tokens, ms });
            }
        }
        let models: OpModels = vec![(Op::AttnPrefill, Box::new(Alone))];
        PromptGain::new(&batches, &models).unwrap()
    }

    #[test]
    fn measured_batches_come_out_as_measured() {
        for (n, c) in [(2.0, 16.0), (4.0, 1024.0), (16.0, 64.0)] {
            let priced = n * together(1.0, c) * gain().share(n, c);
            assert!((priced / together(n, c) - 1.0).abs() < 1e-12);
        }
        assert_eq!(gain().share(1.0, 64.0), 1.0);
        assert!(PromptGain::new(&[], &vec![(Op::AttnPrefill, Box::new(Alone) as _)]).is_none());
    }

    proptest! {
        #[test]
        fn launches_are_shared_and_work_is_not(n in 1u32..64, c in 1u32..8192) {
            let share = gain().share(f64::from(n), f64::from(c));
            prop_assert!(share <= 1.0 + 1e-12 && share > 0.0);
            let more = gain().share(f64::from(n), f64::from(c) * 1.1);
            prop_assert!(more >= share - 1e-12);
        }
    }
}
