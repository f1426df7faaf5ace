//! What the kernel tests share.

use super::threads::Threads;

/// Reproducible values in [-1, 1).
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; len];
    super::weights::fill(&mut values, seed, 1.0);
    values
}

pub fn threads(count: u32) -> Threads {
    Threads::new(count).unwrap()
}

/// Each of `actual` within `tolerance` of `expected`, absolute for small and relative for large.
#[track_caller]
pub fn close(actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(a) - e).abs() / e.abs().max(1.0);
        assert!(error <= tolerance, "element {i}: {a} instead of {e}");
    }
}
