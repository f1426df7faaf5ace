//! Measurements that cannot be: faster than the device can calculate.

use super::PredictorError;
use super::roofline::RooflineContext;
use crate::dataset::read::ProfileSet;
use crate::dataset::schema::time_column;
use serde::{Deserialize, Serialize};

/// A time below this share of the arithmetic at peak is no measurement. Peaks on data sheets are
/// exact to a few per cent; the fastest true rows of the public A30 and A100 profiles take 1.15
/// times as long as the peak allows, the broken ones (76 rows of the A30's `attn_pre_proj`, a
/// profiler that attributed the wrong kernel) 0.05 times or less.
const LEAST_SHARE: f64 = 0.5;

/// What to do with a row whose time is shorter than the arithmetic takes at peak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Implausible {
    /// Stop, and name the file, the column and the first line.
    Refuse,
    /// Leave the row out, and warn.
    Skip,
    /// Use it all the same, as microsoft/vidur does, and warn.
    Keep,
}

/// Applies `policy` to the rows of `set` that are faster than arithmetic allows.
///
/// # Errors
/// When there are such rows and the policy is to refuse them.
pub(super) fn check(
    set: &mut ProfileSet,
    context: &RooflineContext,
    policy: Implausible,
) -> Result<(), PredictorError> {
    let ProfileSet { ops, warnings, .. } = set;
    for samples in ops {
        let op = samples.op;
        let impossible = |s: &crate::dataset::read::Sample| {
            context.arithmetic_ms(op, s.input).is_some_and(|least| s.ms < LEAST_SHARE * least)
        };
        let Some(first) = samples.points.iter().find(|s| impossible(s)).copied() else {
            continue;
        };
        let rows = samples.points.iter().filter(|s| impossible(s)).count();
        let column = time_column(op, "median");
        let least_ms = context.arithmetic_ms(op, first.input).unwrap_or(0.0);
        let example = format!("(line {}: {} ms, at peak {least_ms:.3} ms)", first.line, first.ms);
        let found = format!(
            "{}: {rows} rows of column {column} are faster than the device can calculate",
            samples.file
        );
        if policy == Implausible::Keep {
            warnings.push(format!("{found} and are used all the same {example}"));
            continue;
        }
        if policy == Implausible::Refuse || rows == samples.points.len() {
            let file = samples.file.clone();
            let (line, ms) = (first.line, first.ms);
            return Err(PredictorError::Implausible { file, line, column, ms, least_ms, rows });
        }
        samples.points.retain(|s| !impossible(s));
        warnings.push(format!("{found} and are left out {example}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::read::{OpSamples, Sample};
    use crate::predictor::test_support::{device, model};
    use crate::spec::ops::{Op, OpInput};
    use crate::spec::parallel::Parallelism;

    fn set(times: &[f64]) -> ProfileSet {
        let points = times.iter().enumerate().map(|(i, ms)| Sample {
            input: OpInput::Tokens(1_000_000),
            ms: *ms,
            line: i as u64 + 2,
        });
        let samples =
            OpSamples { op: Op::AttnPostProj, file: "mlp.csv".into(), points: points.collect() };
        ProfileSet { ops: vec![samples], ..ProfileSet::default() }
    }

    fn check_times(times: &[f64], policy: Implausible) -> Result<ProfileSet, String> {
        let context = RooflineContext::new(&model(), Parallelism::SINGLE, &device());
        let mut set = set(times);
        check(&mut set, &context, policy).map_err(|e| e.to_string())?;
        Ok(set)
    }

    // 2 * 10^6 * 64 * 64 operations at 165 TFLOP/s are 0.0496 ms.
    #[test]
    fn times_that_the_device_can_reach_are_kept() {
        let kept = check_times(&[0.05, 0.026], Implausible::Refuse).unwrap();
        assert_eq!(kept, set(&[0.05, 0.026]));
    }

    #[test]
    fn impossible_times_stop_or_are_left_out_as_asked() {
        assert_eq!(
            check_times(&[0.05, 0.02], Implausible::Refuse).unwrap_err(),
            "mlp.csv: line 3: column time_stats.attn_post_proj.median is 0.02 ms, and the device at its \
             peak needs 0.050 ms (1 such rows); measure them again, check the peak of the device, or \
             leave these rows out with `missing_values: skip` in the predictor config \
             (`--missing-values skip` for `vidur fit`)"
        );
        let kept = check_times(&[0.05, 0.02], Implausible::Skip).unwrap();
        assert_eq!(kept.ops, set(&[0.05]).ops);
        assert_eq!(kept.warnings.len(), 1);
        assert!(check_times(&[0.02], Implausible::Skip).is_err());
        let all = check_times(&[0.05, 0.02], Implausible::Keep).unwrap();
        assert_eq!((all.ops.clone(), all.warnings.len()), (set(&[0.05, 0.02]).ops, 1));
    }
}
