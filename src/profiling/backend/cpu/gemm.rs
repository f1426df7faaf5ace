//! Matrix products: faer, and a matrix-vector product of our own for one row, where faer is slow.

use super::threads::Threads;
use super::vector;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// A linear layer, weights `[inputs, outputs]` row-major: the vectors of faer's kernels run along
/// the outputs, so that small batches need no transposition.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Weights, `[inputs, outputs]`.
    pub weight: Vec<f32>,
    /// One offset per output.
    pub bias: Option<Vec<f32>>,
    /// Columns of the input.
    pub inputs: usize,
    /// Columns of the output.
    pub outputs: usize,
}

impl Linear {
    /// `output = input * weight + bias`, for `rows` rows.
    pub fn apply(&self, threads: &Threads, input: &[f32], output: &mut [f32], rows: usize) {
        let (k, n) = (self.inputs, self.outputs);
        let (input, output) = (&input[..rows * k], &mut output[..rows * n]);
        if rows == 1 {
            matrix_vector(threads, &self.weight, input, output);
        } else {
            let weight = MatRef::from_row_major_slice(&self.weight, k, n);
            product(threads.par(), input, weight, output, rows);
        }
        if let Some(bias) = &self.bias {
            vector::add_bias(threads, output, bias);
        }
    }
}

/// `output = input * table^T`: the LM head over an embedding table `[vocabulary, width]`.
pub fn project_to_table(
    threads: &Threads,
    input: &[f32],
    table: &[f32],
    output: &mut [f32],
    rows: usize,
    width: usize,
) {
    let entries = table.len() / width;
    let table = MatRef::from_column_major_slice(table, width, entries);
    product(threads.par(), &input[..rows * width], table, &mut output[..rows * entries], rows);
}

fn product(par: Par, input: &[f32], weight: MatRef<'_, f32>, output: &mut [f32], rows: usize) {
    let input = MatRef::from_row_major_slice(input, rows, weight.nrows());
    let output = MatMut::from_row_major_slice_mut(output, rows, weight.ncols());
    matmul(output, Accum::Replace, input, weight, 1.0_f32, par);
}

/// Columns that one task sums at a time: their sums stay in the first-level cache while the
/// weights stream past, and each row of weights is read in long runs.
const COLUMNS: usize = 2048;

struct MatrixVector<'a> {
    weight: &'a [f32],
    x: &'a [f32],
    /// First column of `y`, and columns of the whole matrix.
    from: usize,
    columns: usize,
    y: &'a mut [f32],
}

impl WithSimd for MatrixVector<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let len = self.y.len();
        let row = |k: usize| &self.weight[k * self.columns + self.from..][..len];
        self.y.fill(0.0);
        let fours = self.x.chunks_exact(4);
        let tail = fours.remainder();
        for (i, x) in fours.enumerate() {
            let (a, b, c, d) = (row(4 * i), row(4 * i + 1), row(4 * i + 2), row(4 * i + 3));
            for j in 0..len {
                let first = x[0].mul_add(a[j], self.y[j]);
                let second = x[1].mul_add(b[j], first);
                let third = x[2].mul_add(c[j], second);
                self.y[j] = x[3].mul_add(d[j], third);
            }
        }
        for (i, &x) in tail.iter().enumerate() {
            let a = row(self.x.len() - tail.len() + i);
            for (y, &a) in self.y.iter_mut().zip(a) {
                *y = x.mul_add(a, *y);
            }
        }
    }
}

/// `y = x * weight`, weight `[x.len(), y.len()]` row-major.
fn matrix_vector(threads: &Threads, weight: &[f32], x: &[f32], y: &mut [f32]) {
    let columns = y.len();
    let share = columns.div_ceil(threads.count()).next_multiple_of(16).min(COLUMNS);
    y.par_chunks_mut(share).enumerate().for_each(|(i, y)| {
        Arch::new().dispatch(MatrixVector { weight, x, from: i * share, columns, y });
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, noise, threads};
    use super::*;

    fn reference(x: &[f32], w: &[f32], rows: usize, k: usize, n: usize) -> Vec<f64> {
        let at = |i: usize| {
            let (r, c) = (i / n, i % n);
            (0..k).map(|j| f64::from(x[r * k + j]) * f64::from(w[j * n + c])).sum()
        };
        (0..rows * n).map(at).collect()
    }

    #[test]
    fn one_row_and_many_rows_are_the_same_product() {
        for (k, n) in [(7, 5), (64, 48), (33, 4100)] {
            for rows in [1, 2, 3] {
                for count in [1, 2] {
                    let threads = threads(count);
                    let layer = Linear {
                        weight: noise(k * n, 1),
                        bias: Some(noise(n, 2)),
                        inputs: k,
                        outputs: n,
                    };
                    let x = noise(rows * k, 3);
                    let mut y = vec![f32::NAN; rows * n];
                    threads.install(|| layer.apply(&threads, &x, &mut y, rows));
                    let mut expected = reference(&x, &layer.weight, rows, k, n);
                    for (i, e) in expected.iter_mut().enumerate() {
                        *e += f64::from(layer.bias.as_ref().unwrap()[i % n]);
                    }
                    close(&y, &expected, 1e-4);
                }
            }
        }
    }

    #[test]
    fn the_lm_head_multiplies_by_the_transposed_table() {
        let (rows, width, entries) = (3, 16, 21);
        let (x, table) = (noise(rows * width, 4), noise(entries * width, 5));
        let mut y = vec![f32::NAN; rows * entries];
        project_to_table(&threads(1), &x, &table, &mut y, rows, width);
        let at = |i: usize| {
            let (r, e) = (i / entries, i % entries);
            let pair = |j| f64::from(x[r * width + j]) * f64::from(table[e * width + j]);
            (0..width).map(pair).sum()
        };
        let expected: Vec<f64> = (0..rows * entries).map(at).collect();
        close(&y, &expected, 1e-4);
    }
}
