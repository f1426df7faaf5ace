//! Kernels that stream: norms, residual additions, non-linearities, rotary embedding. Each is a
//! struct whose body `pulp` compiles once per instruction set and picks at run time; loops are
//! written so that the compiler vectorises them. Matrices are row-major.

use super::threads::Threads;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Independent partial sums of a reduction: floating-point addition may not be reordered by the
/// compiler, so the lanes are spelled out.
const LANES: usize = 16;

/// e^x for finite x, relative error below 3e-7; flushes below e^-87 and saturates above e^88.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, a polynomial for `e^r`, and `2^n` by its exponent bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts: the first has few bits, so that `n * LN2_HIGH` is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let biased = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = biased - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let p = r.mul_add(1.0 / 720.0, 1.0 / 120.0);
    let p = r.mul_add(p, 1.0 / 24.0);
    let p = r.mul_add(p, 1.0 / 6.0);
    let p = r.mul_add(p, 0.5);
    let p = r.mul_add(p, 1.0);
    let p = r.mul_add(p, 1.0);
    p * f32::from_bits((biased.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// x * sigmoid(x).
#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The tanh approximation of the Gaussian error linear unit.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let inner = 0.797_884_6 * x * (0.044_715 * x).mul_add(x, 1.0);
    // 0.5 x (1 + tanh y) = x (1 - 1 / (e^2y + 1))
    x * (1.0 - 1.0 / (exp(2.0 * inner) + 1.0))
}

/// Sum over `a[i]`, mapped by `f`, in `LANES` partial sums.
#[inline(always)]
fn lane_sum(a: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let chunks = a.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = f(v, *lane);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(tail) {
        *lane = f(v, *lane);
    }
    lanes.iter().sum()
}

/// Greatest of `a`; minus infinity of nothing.
#[inline(always)]
pub fn lane_max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = a.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    let all = lanes.iter().chain(tail);
    all.fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
}

/// Replaces each score by `e^(score - max)` and returns their sum.
#[inline(always)]
pub fn exp_and_sum(scores: &mut [f32], max: f32) -> f32 {
    for s in scores.iter_mut() {
        *s = exp(*s - max);
    }
    lane_sum(scores, |v, sum| sum + v)
}

/// Weights of a normalisation.
#[derive(Clone, Debug, Default)]
pub struct NormWeights {
    /// One factor per channel.
    pub weight: Vec<f32>,
    /// One offset per channel: a layer norm. Without it: a root-mean-square norm.
    pub bias: Option<Vec<f32>>,
}

const EPSILON: f32 = 1e-6;

struct NormRow<'a> {
    input: &'a [f32],
    norm: &'a NormWeights,
    output: &'a mut [f32],
}

impl WithSimd for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let width = self.norm.weight.len();
        for (x, y) in self.input.chunks_exact(width).zip(self.output.chunks_exact_mut(width)) {
            match &self.norm.bias {
                None => {
                    let squares = lane_sum(x, |v, sum| v.mul_add(v, sum));
                    let scale = 1.0 / (squares / width as f32 + EPSILON).sqrt();
                    for ((y, &x), &w) in y.iter_mut().zip(x).zip(&self.norm.weight) {
                        *y = x * scale * w;
                    }
                }
                Some(bias) => {
                    let mean = lane_sum(x, |v, sum| sum + v) / width as f32;
                    let squares = lane_sum(x, |v, sum| (v - mean).mul_add(v - mean, sum));
                    let scale = 1.0 / (squares / width as f32 + EPSILON).sqrt();
                    let weights = self.norm.weight.iter().zip(bias);
                    for ((y, &x), (&w, &b)) in y.iter_mut().zip(x).zip(weights) {
                        *y = ((x - mean) * scale).mul_add(w, b);
                    }
                }
            }
        }
    }
}

/// Normalises each row of `input` into `output`; both are whole rows as wide as the weights.
pub fn norm(threads: &Threads, input: &[f32], norm: &NormWeights, output: &mut [f32]) {
    let width = norm.weight.len();
    let task = threads.rows_per_task(input.len() / width, width) * width;
    output.par_chunks_mut(task).zip(input.par_chunks(task)).for_each(|(output, input)| {
        Arch::new().dispatch(NormRow { input, norm, output });
    });
}

struct AddTo<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
}

impl WithSimd for AddTo<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        for (x, &y) in self.x.iter_mut().zip(self.y) {
            *x += y;
        }
    }
}

/// `x += y`, element by element.
pub fn add(threads: &Threads, x: &mut [f32], y: &[f32]) {
    let task = threads.rows_per_task(x.len(), 1);
    x.par_chunks_mut(task).zip(y.par_chunks(task)).for_each(|(x, y)| {
        Arch::new().dispatch(AddTo { x, y });
    });
}

/// Adds `bias` to every row of `x`.
pub fn add_bias(threads: &Threads, x: &mut [f32], bias: &[f32]) {
    let width = bias.len();
    let task = threads.rows_per_task(x.len() / width, width) * width;
    x.par_chunks_mut(task).for_each(|rows| {
        for row in rows.chunks_exact_mut(width) {
            Arch::new().dispatch(AddTo { x: row, y: bias });
        }
    });
}

/// Non-linearity of the feed-forward layer: which function, and whether a gate multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// silu(gate) * up.
    SiluGated,
    /// gelu(gate) * up.
    GeluGated,
    /// silu(x).
    Silu,
    /// gelu(x).
    Gelu,
}

struct ActRows<'a> {
    act: Act,
    input: &'a [f32],
    output: &'a mut [f32],
    width: usize,
}

#[inline(always)]
fn gated(row: &[f32], output: &mut [f32], f: impl Fn(f32) -> f32) {
    let (gate, up) = row.split_at(output.len());
    for ((y, &g), &u) in output.iter_mut().zip(gate).zip(up) {
        *y = f(g) * u;
    }
}

#[inline(always)]
fn plain(row: &[f32], output: &mut [f32], f: impl Fn(f32) -> f32) {
    for (y, &x) in output.iter_mut().zip(row) {
        *y = f(x);
    }
}

impl WithSimd for ActRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let columns = if self.act.is_gated() { 2 * self.width } else { self.width };
        let rows = self.input.chunks_exact(columns).zip(self.output.chunks_exact_mut(self.width));
        for (row, output) in rows {
            match self.act {
                Act::SiluGated => gated(row, output, silu),
                Act::GeluGated => gated(row, output, gelu),
                Act::Silu => plain(row, output, silu),
                Act::Gelu => plain(row, output, gelu),
            }
        }
    }
}

impl Act {
    /// Whether the input holds a gate beside up.
    pub fn is_gated(self) -> bool {
        matches!(self, Act::SiluGated | Act::GeluGated)
    }
}

/// Rows of `input` (`width` columns, or gate and up of `width` columns each) to rows of `output`.
pub fn activate(threads: &Threads, act: Act, input: &[f32], output: &mut [f32], width: usize) {
    let columns = if act.is_gated() { 2 * width } else { width };
    let rows = threads.rows_per_task(output.len() / width, columns);
    let tasks = output.par_chunks_mut(rows * width).zip(input.par_chunks(rows * columns));
    tasks.for_each(|(output, input)| {
        Arch::new().dispatch(ActRows { act, input, output, width });
    });
}

/// Cosines and sines of the rotary embedding, `[position, rotated / 2]` each.
#[derive(Clone, Debug)]
pub struct Rotary {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rotary {
    /// Tables for `positions` positions of heads of which `rotated` channels turn (an even number).
    pub fn new(positions: usize, rotated: usize, theta: f64) -> Rotary {
        let half = rotated / 2;
        let angle = |i: usize| {
            let (position, channel) = (i / half, i % half);
            position as f64 * theta.powf(-2.0 * channel as f64 / rotated as f64)
        };
        let angles: Vec<f64> = (0..positions * half).map(angle).collect();
        Rotary {
            cos: angles.iter().map(|a| a.cos() as f32).collect(),
            sin: angles.iter().map(|a| a.sin() as f32).collect(),
            half,
        }
    }

    /// Positions in the tables.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }
}

/// Where heads lie in the rows of the query-key-value matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// Query heads of this device, at the start of the row.
    pub q_heads: usize,
    /// Key heads of this device, after the queries; as many value heads follow.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

impl HeadLayout {
    /// Columns of a row: queries, keys, values.
    pub fn columns(self) -> usize {
        (self.q_heads + 2 * self.kv_heads) * self.head_dim
    }
}

struct RotateRows<'a> {
    qkv: &'a mut [f32],
    positions: &'a [u32],
    heads: HeadLayout,
    rotary: &'a Rotary,
}

impl WithSimd for RotateRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let half = self.rotary.half;
        let dim = self.heads.head_dim;
        let turned = (self.heads.q_heads + self.heads.kv_heads) * dim;
        let rows = self.qkv.chunks_exact_mut(self.heads.columns());
        for (row, &position) in rows.zip(self.positions) {
            let at = position as usize * half;
            let (cos, sin) = (&self.rotary.cos[at..at + half], &self.rotary.sin[at..at + half]);
            for head in row[..turned].chunks_exact_mut(dim) {
                let (first, rest) = head.split_at_mut(half);
                let second = &mut rest[..half];
                for i in 0..half {
                    let (a, b) = (first[i], second[i]);
                    first[i] = a * cos[i] - b * sin[i];
                    second[i] = b * cos[i] + a * sin[i];
                }
            }
        }
    }
}

/// Turns queries and keys of each row by its position. Precondition: positions are in the tables.
pub fn rotate(
    threads: &Threads,
    qkv: &mut [f32],
    positions: &[u32],
    heads: HeadLayout,
    rotary: &Rotary,
) {
    let rows = threads.rows_per_task(positions.len(), heads.columns());
    let tasks = qkv.par_chunks_mut(rows * heads.columns()).zip(positions.par_chunks(rows));
    tasks.for_each(|(qkv, positions)| {
        Arch::new().dispatch(RotateRows { qkv, positions, heads, rotary });
    });
}

struct NormHeads<'a> {
    qkv: &'a mut [f32],
    heads: HeadLayout,
    q: &'a [f32],
    k: &'a [f32],
}

impl WithSimd for NormHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let dim = self.heads.head_dim;
        let normed = self.heads.q_heads + self.heads.kv_heads;
        for row in self.qkv.chunks_exact_mut(self.heads.columns()) {
            for (i, head) in row.chunks_exact_mut(dim).take(normed).enumerate() {
                let weight = if i < self.heads.q_heads { self.q } else { self.k };
                let squares = lane_sum(head, |v, sum| v.mul_add(v, sum));
                let scale = 1.0 / (squares / dim as f32 + EPSILON).sqrt();
                for (x, &w) in head.iter_mut().zip(weight) {
                    *x *= scale * w;
                }
            }
        }
    }
}

/// Root-mean-square norm of every query head by `q` and every key head by `k`, in place.
pub fn norm_heads(threads: &Threads, qkv: &mut [f32], heads: HeadLayout, q: &[f32], k: &[f32]) {
    let columns = heads.columns();
    let task = threads.rows_per_task(qkv.len() / columns, columns) * columns;
    qkv.par_chunks_mut(task).for_each(|qkv| {
        Arch::new().dispatch(NormHeads { qkv, heads, q, k });
    });
}
