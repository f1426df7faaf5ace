//! Prompt chunks that one kernel processes, as the single chunk that costs the same.

use crate::cost::PrefillChunk;

/// `(kv, chunk)` of the one chunk with the work of all `prefills`; `None` when there are none.
///
/// A chunk of c tokens after k cached ones compares c (k + c / 2) query-key pairs. Together:
/// `chunk = √Σ cᵢ²` and `kv = Σ kᵢ cᵢ / chunk` have `chunk (kv + chunk / 2) = Σ cᵢ (kᵢ + cᵢ / 2)`.
/// (Vidur adds the caches up, `kv = Σ kᵢ`, which overstates the work.)
pub fn equivalent_chunk(prefills: &[PrefillChunk], window: Option<u32>) -> Option<(f64, f64)> {
    match prefills {
        [] => None,
        [one] => Some(windowed(one, window)),
        _ => {
            let (mut squares, mut products) = (0.0, 0.0);
            for p in prefills {
                let (kv, chunk) = windowed(p, window);
                squares += chunk * chunk;
                products += kv * chunk;
            }
            let chunk = f64::sqrt(squares);
            Some(if chunk > 0.0 { (products / chunk, chunk) } else { (0.0, 0.0) })
        }
    }
}

/// `(kv, chunk)` of the chunk without a window that compares as many pairs as `p` does when a
/// query sees at most `window` tokens.
fn windowed(p: &PrefillChunk, window: Option<u32>) -> (f64, f64) {
    let (kv, chunk) = (f64::from(p.kv_tokens), f64::from(p.chunk_tokens));
    let Some(window) = window.map(f64::from).filter(|w| kv + chunk > *w) else {
        return (kv, chunk);
    };
    // The first tokens see all that comes before them, the others a whole window.
    let growing = (window - kv).clamp(0.0, chunk);
    let pairs = growing * kv + growing * (growing + 1.0) / 2.0 + (chunk - growing) * window;
    let kv = pairs / chunk - (chunk + 1.0) / 2.0;
    if kv >= 0.0 {
        (kv, chunk)
    } else {
        // A chunk longer than two windows: the shorter chunk on an empty cache.
        (0.0, (f64::sqrt(1.0 + 8.0 * pairs) - 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk(kv_tokens: u32, chunk_tokens: u32) -> PrefillChunk {
        PrefillChunk { kv_tokens, chunk_tokens, completes: false }
    }

    #[test]
    fn one_chunk_is_itself() {
        assert_eq!(equivalent_chunk(&[chunk(100, 33)], None), Some((100.0, 33.0)));
        assert_eq!(equivalent_chunk(&[chunk(100, 33)], Some(4096)), Some((100.0, 33.0)));
        assert_eq!(equivalent_chunk(&[], None), None);
    }

    #[test]
    fn chunks_on_empty_caches_combine_as_vidur_combines_them() {
        let (kv, c) = equivalent_chunk(&[chunk(0, 300), chunk(0, 400)], None).unwrap();
        assert_eq!((kv, c), (0.0, 500.0));
    }

    proptest! {
        #[test]
        fn the_work_of_several_chunks_is_kept(
            chunks in prop::collection::vec((0u32..10_000, 1u32..5_000), 1..8)
        ) {
            let all: Vec<PrefillChunk> = chunks.iter().map(|(k, c)| chunk(*k, *c)).collect();
            let work = |kv: f64, c: f64| c * (kv + c / 2.0);
            let want: f64 = chunks.iter().map(|(k, c)| work(f64::from(*k), f64::from(*c))).sum();
            let (kv, c) = equivalent_chunk(&all, None).unwrap();
            prop_assert!((work(kv, c) / want - 1.0).abs() < 1e-12);
        }

        #[test]
        fn a_window_keeps_the_pairs_that_are_seen(
            kv in 0u32..3_000, c in 1u32..3_000, window in 1u32..2_000
        ) {
            let seen: f64 = (1..=c).map(|i| f64::from((kv + i).min(window))).sum();
            let (k, n) = equivalent_chunk(&[chunk(kv, c)], Some(window)).unwrap();
            let pairs = n * (k + (n + 1.0) / 2.0);
            prop_assert!((pairs / seen - 1.0).abs() < 1e-9, "{pairs} {seen}");
        }
    }
}
