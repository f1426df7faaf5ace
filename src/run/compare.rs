//! Cases side by side: the product of several values of several fields, and how sure the differences are.
//!
//! All cases see the same requests. Where the seed decides about these, every case runs with several
//! seeds, and the differences to the first case, seed by seed, give an interval of their mean by
//! Student's t. Where it does not, as with a trace, the requests are cut into batches by order of arrival
//! and the batches take the place of the seeds.

use super::config::RunConfig;
use super::overrides::ConfigError;
use super::pool::Pool;
use super::resolve::Run;
use crate::metrics::{RequestRecord, Totals};
use crate::predictor::TableCache;
use crate::sim::Silent;
use crate::spec::catalog::Catalog;
use crate::stats;
use crate::yaml;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

/// Cases beyond which a product is refused.
const MOST: usize = 1000;
/// Batches that take the place of seeds.
const BATCHES: usize = 10;
/// Confidence of the intervals, per cent.
pub const LEVEL_PERCENT: f64 = 95.0;

/// The figures that are compared: their names, and whether more is better.
pub const FIGURES: [(&str, bool); 6] = [
    ("TTFT mean ms", false),
    ("TTFT P99 ms", false),
    ("TPOT mean ms", false),
    ("TPOT P99 ms", false),
    ("E2E mean ms", false),
    ("tokens/s", true),
];

/// One case.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The fields that differ, and their values.
    pub label: String,
    /// The whole config.
    pub config: RunConfig,
}

/// What a case came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseResult {
    /// The fields that differ, and their values.
    pub case: String,
    /// By [`FIGURES`], over all seeds; none where it cannot run.
    pub figures: Vec<Option<f64>>,
    /// The differences to the first case, per cent of it, in the same order; empty of the first.
    pub differences: Vec<Option<Difference>>,
    /// Why it cannot run.
    pub error: Option<String>,
}

/// A difference to the first case.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Per cent of the first case's figure.
    pub percent: f64,
    /// Half the width of its interval, per cent.
    pub plus_minus_percent: f64,
}

/// Several cases, compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Names of the figures.
    pub figures: Vec<&'static str>,
    /// How the intervals were made, in words.
    pub method: String,
    /// The cases; differences are to the first.
    pub cases: Vec<CaseResult>,
}

/// The product of `compared`, each `path=a,b,…` with values in YAML.
///
/// # Errors
/// When a path or a value is none, named as typed.
pub fn cases(base: &RunConfig, compared: &[String]) -> Result<Vec<Case>, ConfigError> {
    let mut cases = vec![Case { label: String::new(), config: base.clone() }];
    for typed in compared {
        let wrong =
            |message: &str| ConfigError::Set { set: typed.clone(), message: message.to_owned() };
        let (path, list) =
            typed.split_once('=').ok_or_else(|| wrong("expected path=a,b, such as seed=1,2"))?;
        let values: Vec<Value> = yaml::from_str(&format!("[{list}]"), "the values")
            .map_err(|e| wrong(&e.to_string()))?;
        if values.is_empty() {
            return Err(wrong("expected values after the `=`, separated by commas"));
        }
        if cases.len().saturating_mul(values.len()) > MOST {
            return Err(wrong("more than 1000 cases; compare fewer values"));
        }
        let name = path.trim().rsplit('.').next().unwrap_or(path);
        let mut product = Vec::with_capacity(cases.len() * values.len());
        for case in &cases {
            for value in &values {
                let config = case.config.with(&format!("{path}={value}"))?;
                let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let label = format!("{} {name}={shown}", case.label).trim_start().to_owned();
                product.push(Case { label, config });
            }
        }
        cases = product;
    }
    Ok(cases)
}

/// The figures of some requests, by [`FIGURES`].
fn figures(records: &[RequestRecord]) -> Option<[f64; FIGURES.len()]> {
    let sorted = |of: &dyn Fn(&RequestRecord) -> Option<f64>| {
        let mut values: Vec<f64> = records.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let ttft = sorted(&|r| Some(r.ttft_ms()));
    let tpot = sorted(&|r| r.tpot_ms());
    let e2e = sorted(&|r| Some(r.e2e_ms()));
    let mut totals = Totals::default();
    records.iter().for_each(|r| totals.add(r, &crate::metrics::Slo::default()));
    let first = records.iter().map(|r| r.arrived_at).min()?;
    let last = records.iter().map(|r| r.completed_at).max()?;
    let seconds = last.since(first).as_seconds().max(1e-9);
    // Requests of a single token have no TPOT.
    Some([
        stats::mean(&ttft)?,
        stats::quantile_sorted(&ttft, 0.99)?,
        stats::mean(&tpot).unwrap_or(0.0),
        stats::quantile_sorted(&tpot, 0.99).unwrap_or(0.0),
        stats::mean(&e2e)?,
        totals.output_tokens as f64 / seconds,
    ])
}

/// What one run gives: its figures, and those of its batches.
struct Sample {
    whole: [f64; FIGURES.len()],
    batches: Vec<[f64; FIGURES.len()]>,
}

fn sample(run: &Run) -> Result<Sample, String> {
    let (_, recorder, Silent) = run.execute(false, Silent).map_err(|e| e.to_string())?;
    let records = &recorder.requests;
    let none = || "no requests were kept; set metrics.requests to all".to_owned();
    let size = records.len().div_ceil(BATCHES).max(1);
    Ok(Sample {
        whole: figures(records).ok_or_else(none)?,
        batches: records.chunks(size).filter_map(figures).collect(),
    })
}

/// Runs every case with `seeds` seeds and compares it with the first.
///
/// # Errors
/// When the first case cannot run; the others say so in their place.
pub fn compare(
    cases: &[Case],
    seeds: u32,
    catalog: &Catalog,
    cache: &TableCache,
) -> Result<Comparison, String> {
    let pool = Pool::new();
    let run_of = |case: &Case, seed: u32| {
        let mut config = case.config.clone();
        config.seed = config.seed.wrapping_add(u64::from(seed));
        config.metrics.requests = crate::metrics::RequestDetail::All;
        Run::resolve_in(config, catalog, cache, Some(&pool)).map_err(|e| e.to_string())
    };
    let first = cases.first().ok_or("no cases; expected at least one --compare")?;
    let drawn =
        seeds > 1 && run_of(first, 0)?.workload.requests != run_of(first, 1)?.workload.requests;
    let seeds = if drawn { seeds } else { 1 };
    // Fitting runs on all cores by itself: not from within threads that wait for each other.
    for case in cases {
        let _ = run_of(case, 0);
    }
    let work: Vec<(usize, u32)> =
        (0..cases.len()).flat_map(|c| (0..seeds).map(move |s| (c, s))).collect();
    let samples: Vec<Result<Sample, String>> = work
        .par_iter()
        .with_max_len(1)
        .map(|(case, seed)| sample(&run_of(&cases[*case], *seed)?))
        .collect();
    let mut by_case: Vec<Result<Vec<Sample>, String>> = Vec::with_capacity(cases.len());
    let mut samples = samples.into_iter();
    for _ in cases {
        by_case.push(samples.by_ref().take(seeds as usize).collect());
    }
    let observed = |samples: &[Sample]| -> Vec<[f64; FIGURES.len()]> {
        match samples {
            [one] => one.batches.clone(),
            several => several.iter().map(|s| s.whole).collect(),
        }
    };
    let base: Vec<_> = match by_case.first() {
        Some(Ok(samples)) => observed(samples),
        Some(Err(e)) => return Err(format!("{}: {e}", first.label)),
        None => return Err("no cases".into()),
    };
    let results = cases.iter().zip(&by_case).enumerate().map(|(i, (case, samples))| {
        let (figures, differences, error) = match samples {
            Err(e) => (vec![None; FIGURES.len()], Vec::new(), Some(e.clone())),
            Ok(samples) => {
                let mean = |f: usize| {
                    let values: Vec<f64> = samples.iter().map(|s| s.whole[f]).collect();
                    stats::mean(&values)
                };
                let those = observed(samples);
                let difference = |f: usize| difference(&base, &those, f);
                let all = 0..FIGURES.len();
                let differences =
                    if i == 0 { Vec::new() } else { all.clone().map(difference).collect() };
                (all.map(mean).collect(), differences, None)
            }
        };
        CaseResult { case: case.label.clone(), figures, differences, error }
    });
    let method = match drawn {
        true => format!(
            "differences are to the first case, with {LEVEL_PERCENT} % confidence from {seeds} seeds"
        ),
        false => format!(
            "differences are to the first case, with {LEVEL_PERCENT} % confidence from {} batches of \
             the same requests",
            base.len()
        ),
    };
    Ok(Comparison {
        figures: FIGURES.iter().map(|f| f.0).collect(),
        method,
        cases: results.collect(),
    })
}

/// The mean of the paired differences of figure `f`, per cent of the mean of `base`.
fn difference(
    base: &[[f64; FIGURES.len()]],
    those: &[[f64; FIGURES.len()]],
    f: usize,
) -> Option<Difference> {
    let pairs: Vec<f64> = base.iter().zip(those).map(|(a, b)| b[f] - a[f]).collect();
    let whole: Vec<f64> = base.iter().map(|a| a[f]).collect();
    let whole = stats::mean(&whole).filter(|w| *w > 0.0)?;
    Some(Difference {
        percent: 100.0 * stats::mean(&pairs)? / whole,
        plus_minus_percent: 100.0 * stats::mean_half_width(&pairs, LEVEL_PERCENT)? / whole,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(compared: &[&str]) -> Result<Vec<Case>, String> {
        let compared: Vec<String> = compared.iter().map(|s| (*s).to_owned()).collect();
        cases(&RunConfig::default(), &compared).map_err(|e| e.to_string())
    }

    #[test]
    fn cases_are_the_product_in_the_order_typed() {
        let all = typed(&["scheduler.sarathi.chunk_size=64,128", "seed=1,2,3"]).unwrap();
        assert_eq!(all.len(), 6);
        assert_eq!(all[0].label, "chunk_size=64 seed=1");
        assert_eq!(all[4].label, "chunk_size=128 seed=2");
        assert_eq!(all[4].config.seed, 2);
        let whole = typed(&["scheduler={vllm: {max_num_seqs: 8}},{sarathi: {}}"]).unwrap();
        assert_eq!(whole[0].config.scheduler.name(), "vllm");
        assert_eq!(whole[1].config.scheduler.name(), "sarathi");
    }

    #[test]
    fn what_is_no_comparison_is_named_as_typed() {
        for (text, expected) in [
            ("seed", "--set seed: expected path=a,b"),
            ("seed=", "--set seed=: expected values after"),
            ("sed=1,2", "--set sed=1: unknown field `sed`; did you mean `seed`?"),
        ] {
            let error = typed(&[text]).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn paired_differences_do_not_see_what_both_have() {
        // Seeds differ by a factor, the cases by a tenth of each.
        let base = [[10.0; 6], [20.0; 6], [30.0; 6]];
        let those = [[11.0; 6], [22.0; 6], [33.0; 6]];
        let d = difference(&base, &those, 0).unwrap();
        assert!((d.percent - 10.0).abs() < 1e-12);
        // Differences 1, 2, 3: deviation 1, t = 4.3027, over the root of 3, of a mean of 20.
        assert!((d.plus_minus_percent - 12.4207).abs() < 1e-3, "{}", d.plus_minus_percent);
    }
}
