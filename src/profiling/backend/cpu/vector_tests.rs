//! Streaming kernels against plain references in double precision.

use super::testing::{close, noise, threads};
use super::vector::*;

#[test]
fn exp_is_exact_to_single_precision() {
    for i in -8700..=8800 {
        let x = i as f32 * 0.01;
        let expected = f64::from(x).exp();
        let error = (f64::from(exp(x)) - expected).abs() / expected;
        assert!(error < 1e-6, "exp({x}) is off by {error}");
    }
    assert!(exp(-1e4) < 1e-37);
    assert_eq!(exp(0.0), 1.0);
}

#[test]
fn norms_agree_with_the_definition() {
    let (rows, width) = (5, 37);
    let x = noise(rows * width, 1);
    let weight = noise(width, 2);
    for bias in [None, Some(noise(width, 3))] {
        let mut expected = Vec::new();
        for row in x.chunks(width) {
            let row: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
            let mean = match bias {
                Some(_) => row.iter().sum::<f64>() / width as f64,
                None => 0.0,
            };
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
            for (c, v) in row.iter().enumerate() {
                let offset = bias.as_ref().map_or(0.0, |b| f64::from(b[c]));
                let normed = (v - mean) / (variance + 1e-6).sqrt();
                expected.push(normed * f64::from(weight[c]) + offset);
            }
        }
        let mut y = vec![f32::NAN; rows * width];
        norm(&threads(1), &x, &NormWeights { weight: weight.clone(), bias }, &mut y);
        close(&y, &expected, 1e-5);
    }
}

#[test]
fn gates_multiply_and_plain_ones_do_not() {
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let gelu = |x: f64| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        0.5 * x * (1.0 + inner.tanh())
    };
    let (rows, width) = (3, 21);
    let acts: [(Act, &dyn Fn(f64) -> f64); 4] =
        [(Act::SiluGated, &silu), (Act::GeluGated, &gelu), (Act::Silu, &silu), (Act::Gelu, &gelu)];
    for (act, f) in acts {
        let columns = if act.is_gated() { 2 * width } else { width };
        let mut x = noise(rows * columns, 4);
        x.iter_mut().for_each(|v| *v *= 6.0);
        let mut expected = Vec::new();
        for row in x.chunks(columns) {
            for c in 0..width {
                let up = if act.is_gated() { f64::from(row[width + c]) } else { 1.0 };
                expected.push(f(f64::from(row[c])) * up);
            }
        }
        let mut y = vec![f32::NAN; rows * width];
        activate(&threads(2), act, &x, &mut y, width);
        close(&y, &expected, 1e-5);
    }
}

#[test]
fn rotary_turns_pairs_of_halves_and_leaves_the_rest() {
    let heads = HeadLayout { q_heads: 2, kv_heads: 1, head_dim: 10 };
    let rotated = 6;
    let theta: f64 = 1e4;
    let positions = [0, 3, 11];
    let qkv = noise(positions.len() * heads.columns(), 5);
    let mut expected: Vec<f64> = qkv.iter().map(|&v| f64::from(v)).collect();
    for (r, &position) in positions.iter().enumerate() {
        for head in 0..3 {
            for i in 0..rotated / 2 {
                let angle = f64::from(position) * theta.powf(-2.0 * i as f64 / rotated as f64);
                let at = r * heads.columns() + head * heads.head_dim + i;
                let (a, b) = (f64::from(qkv[at]), f64::from(qkv[at + rotated / 2]));
                expected[at] = a * angle.cos() - b * angle.sin();
                expected[at + rotated / 2] = b * angle.cos() + a * angle.sin();
            }
        }
    }
    let mut actual = qkv.clone();
    rotate(&threads(1), &mut actual, &positions, heads, &Rotary::new(12, rotated, theta));
    close(&actual, &expected, 1e-5);
}

#[test]
fn query_and_key_heads_are_normed_and_values_are_not() {
    let heads = HeadLayout { q_heads: 3, kv_heads: 2, head_dim: 9 };
    let qkv = noise(2 * heads.columns(), 6);
    let (q, k) = (noise(9, 7), noise(9, 8));
    let mut expected = Vec::new();
    for (i, head) in qkv.chunks(9).enumerate() {
        let squares = head.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        let scale = 1.0 / (squares / 9.0 + 1e-6).sqrt();
        for (c, &v) in head.iter().enumerate() {
            expected.push(match i % 7 {
                0..3 => f64::from(v) * scale * f64::from(q[c]),
                3..5 => f64::from(v) * scale * f64::from(k[c]),
                _ => f64::from(v),
            });
        }
    }
    let mut actual = qkv.clone();
    norm_heads(&threads(1), &mut actual, heads, &q, &k);
    close(&actual, &expected, 1e-5);
}

#[test]
fn sums_do_not_depend_on_the_cut() {
    let (mut x, y) = (noise(70_000, 9), noise(70_000, 10));
    let expected: Vec<f64> = x.iter().zip(&y).map(|(a, b)| f64::from(a + b)).collect();
    add(&threads(2), &mut x, &y);
    close(&x, &expected, 1e-6);
}
