//! Comparing predictions with measurements.

use super::predict::Times;
use super::rows::Row;
use crate::stats;
use std::collections::BTreeMap;

/// Errors of a group of rows, as shares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// Rows that were answered.
    pub rows: usize,
    /// Rows that were refused.
    pub refused: usize,
    /// Median absolute error of the time per further token.
    pub tpot_median: f64,
    /// Mean absolute error of it.
    pub tpot_mean: f64,
    /// Median absolute error of the time to first token.
    pub ttft_median: f64,
    /// Mean absolute error of it.
    pub ttft_mean: f64,
    /// Median of predicted over measured time per further token, less 1: negative is too fast.
    pub tpot_bias: f64,
    /// The same of the time to first token.
    pub ttft_bias: f64,
}

impl Errors {
    /// Of pairs of a row and what was predicted of it.
    pub fn of<'a>(pairs: impl Iterator<Item = Pair<'a>>) -> Errors {
        let mut errors = Errors::default();
        let (mut tpot, mut ttft) = (Vec::new(), Vec::new());
        for (row, predicted) in pairs {
            match predicted {
                Ok(times) => {
                    tpot.push(times.tpot_ms / row.tpot_ms - 1.0);
                    ttft.push(times.ttft_ms / row.ttft_ms - 1.0);
                }
                Err(_) => errors.refused += 1,
            }
        }
        let absolute = |v: &[f64]| v.iter().map(|e| e.abs()).collect::<Vec<_>>();
        let median = |v: &[f64]| stats::median(v).unwrap_or(f64::NAN);
        let mean = |v: &[f64]| stats::mean(v).unwrap_or(f64::NAN);
        errors.rows = tpot.len();
        errors.tpot_median = median(&absolute(&tpot));
        errors.tpot_mean = mean(&absolute(&tpot));
        errors.ttft_median = median(&absolute(&ttft));
        errors.ttft_mean = mean(&absolute(&ttft));
        errors.tpot_bias = median(&tpot);
        errors.ttft_bias = median(&ttft);
        errors
    }
}

/// A row and what was predicted of it.
type Pair<'a> = (&'a Row, &'a Result<Times, String>);

/// Errors by group, groups in the order of their names.
pub fn by<'a, K: Ord>(
    rows: &'a [Row],
    predicted: &[&'a Result<Times, String>],
    group: impl Fn(&Row) -> K,
) -> BTreeMap<K, Errors> {
    let mut groups: BTreeMap<K, Vec<Pair<'_>>> = BTreeMap::new();
    for (row, times) in rows.iter().zip(predicted) {
        groups.entry(group(row)).or_default().push((row, times));
    }
    groups.into_iter().map(|(k, pairs)| (k, Errors::of(pairs.into_iter()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profiling::import::aiconfigurator::Engine;
    use crate::spec::precision::WeightFormat;
    use crate::validate::silicon::rows::Benchmark;

    fn row(system: &str) -> Row {
        Row {
            id: "r".into(),
            benchmark: Benchmark::Grid,
            engine: Engine::Vllm,
            engine_version: String::new(),
            system: system.into(),
            model: "m".into(),
            weights: WeightFormat::Fp8,
            isl: 1,
            osl: 1,
            concurrency: 1,
            tensor_parallel: 1,
            ttft_ms: 100.0,
            tpot_ms: 10.0,
        }
    }

    #[test]
    fn errors_are_shares_of_what_was_measured() {
        let rows = [row("a"), row("a"), row("a"), row("b")];
        let good = |ttft_ms, tpot_ms| Ok(Times { ttft_ms, tpot_ms });
        let said = [good(150.0, 11.0), good(90.0, 8.0), Err("no".to_owned()), good(100.0, 10.0)];
        let said: Vec<_> = said.iter().collect();
        let groups = by(&rows, &said, |r| r.system.clone());
        let a = groups["a"];
        assert_eq!((a.rows, a.refused), (2, 1));
        assert!((a.ttft_median - 0.3).abs() < 1e-12 && (a.ttft_bias - 0.2).abs() < 1e-12);
        assert!((a.tpot_mean - 0.15).abs() < 1e-12 && (a.tpot_bias + 0.05).abs() < 1e-12);
        assert_eq!(groups["b"].ttft_median, 0.0);
    }
}
