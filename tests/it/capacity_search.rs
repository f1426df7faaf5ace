//! The search against exhaustive search, and its early answers against those of whole runs.

use proptest::prelude::*;
use vidur::capacity::{Broken, Evaluated, Grid, Key, Plan, ResultCache, Row, Study, Task, rank};
use vidur::predictor::TableCache;
use vidur::spec::catalog::Catalog;

const SKUS: [&str; 6] = ["h100_sxm", "h200_sxm", "a100_sxm", "l40s", "l4", "a10g"];
const SCHEDULERS: [&str; 4] = [
    "sarathi: {chunk_size: [256, 1024], max_num_seqs: 32}",
    "vllm: {max_num_seqs: [8, 64]}",
    "sarathi: {chunk_size: 512, max_num_seqs: [4, 128]}",
    "orca: {max_num_seqs: 16, max_request_tokens: 2048}",
];
const SLOS: [&str; 6] = [
    "ttft_ms: {p90: 500}",
    "ttft_ms: {p90: 1500}\n  itl_ms: {p99: 80}",
    "tpot_ms: {mean: 40}\n  e2e_ms: {p95: 8000}",
    "goodput: {percent: 90, ttft_ms: 800, tpot_ms: 60}",
    "queueing_ms: {p99: 2000}",
    "vidur_queueing_delay: {at_most_s: 1}",
];

/// A small space: every index makes another one.
fn plan(index: usize, requests: u32) -> Plan {
    let pick = |from: &[&'static str], i: usize| from[i % from.len()].to_owned();
    let text = format!(
        "run:
  model: meta-llama/Llama-3.1-8B
  seed: {index}
  predictor: {{roofline: {{}}}}
  workload:
    synthetic:
      num_requests: {requests}
      arrivals: {{{arrivals}}}
      lengths: {{uniform: {{prefill_tokens: {{min: 32, max: {longest}}}, decode_tokens: {{min: 1, max: 80}}}}}}
space:
  skus: [{a}, {b}, {c}]
  tensor_parallel: [1, 2]
  schedulers: [{{{scheduler}}}]
search: {{requests: {requests}, precision_percent: 5}}
confirm: {{top: 0}}
slo:
  {slo}
",
        arrivals = match index % 3 {
            0 => "poisson: {requests_per_s: 1}",
            1 => "gamma: {requests_per_s: 1, cv: 1.5}",
            _ => "fixed_rate: {requests_per_s: 1}",
        },
        longest = [400, 1500][index % 2],
        a = pick(&SKUS, index),
        b = pick(&SKUS, index + 1),
        c = pick(&SKUS, index + 3),
        scheduler = pick(&SCHEDULERS, index / 2),
        slo = pick(&SLOS, index),
    );
    Plan::load(&text, "plan.yml").unwrap()
}

fn study(catalog: &Catalog, plan: Plan) -> Study<'_> {
    Study::new(plan, catalog, TableCache::off(), ResultCache::off()).unwrap()
}

/// The highest rate of the grid that passes, found by running every rate to its end.
fn exhaustive(study: &Study<'_>, task: &Task, row: &Row) -> Option<f64> {
    let run = study.run_of(&task.candidate, Some(study.drawn())).ok()?;
    let subject = study.subject(&run, &study.rules[task.rule].1).unwrap();
    let grid = Grid::new(study.plan.search.precision_percent);
    let (n, warmup, around) = (row.requests?, row.warmup_requests?, row.requests_per_s?);
    let places = grid.place(around / 8.0)..=grid.place(around * 4.0);
    let passes = |place: &i32| {
        subject.probe_after(warmup, grid.rate(*place), n, false).unwrap().0.verdict().is_none()
    };
    places.rev().find(passes).map(|place| grid.rate(place))
}

#[test]
fn the_choice_is_that_of_exhaustive_search() {
    let catalog = Catalog::open(None);
    let mut spaces = 0;
    let (mut rates, mut equal) = (0, 0);
    for index in 0..24 {
        let study = study(&catalog, plan(index, 400));
        let tasks = study.tasks().unwrap();
        let mut rows = study.rows(&tasks, &|| {});
        let groups = rank(&mut rows, study.plan.objective);
        let best = groups[0].best.expect("every space has an answer");
        // The same rows with the capacities of exhaustive search.
        let mut other = rows.clone();
        for ((task, row), found) in tasks.iter().zip(&mut other).zip(&rows) {
            let Some(rate) = found.requests_per_s else { continue };
            let exact = exhaustive(&study, task, found).expect("some rate passes");
            rates += 1;
            equal += usize::from(exact == rate);
            let share = exact / rate;
            row.requests_per_s = Some(exact);
            row.requests_per_s_per_device = row.requests_per_s_per_device.map(|v| v * share);
            row.usd_per_million_output_tokens =
                row.usd_per_million_output_tokens.map(|v| v / share);
        }
        let groups = rank(&mut other, study.plan.objective);
        let key = Key::of(study.plan.objective, &other);
        let cost = |id: Option<usize>| key.cost(&other[id.unwrap()]).unwrap();
        assert_eq!(
            groups[0].best,
            Some(best),
            "space {index}: {} against {}",
            cost(groups[0].best),
            cost(Some(best))
        );
        spaces += 1;
    }
    assert!(spaces >= 20);
    // A rate may pass above one that fails, where few requests decide: seldom.
    assert!(equal * 100 >= rates * 95, "{equal} of {rates} capacities are equal");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn an_early_answer_is_that_of_the_whole_run(
        index in 0usize..48, place in 0usize..12, factor in 0.3..2.0f64
    ) {
        let catalog = Catalog::open(None);
        let study = study(&catalog, plan(index, 120));
        let tasks = study.tasks().unwrap();
        let task = &tasks[place % tasks.len()];
        let Ok(run) = study.run_of(&task.candidate, Some(120)) else { return Ok(()) };
        let rule = &study.rules[0].1;
        let subject = study.subject(&run, rule).unwrap();
        let rate = match subject.evaluate() {
            Ok(Evaluated::Capacity(capacity)) => capacity.requests_per_s * factor,
            _ => return Ok(()),
        };
        let (early, _) = subject.probe(rate, 120, true).unwrap();
        let (whole, _) = subject.probe(rate, 120, false).unwrap();
        prop_assert_eq!(early.verdict().is_none(), whole.verdict().is_none());
        // The whole run was complete, and its verdict is what its figures say.
        prop_assert!(whole.is_complete());
        let missed = rule.terms.iter().any(|term| {
            let reached = whole.reached(term).unwrap_or(0.0);
            match term {
                vidur::capacity::Term::Bound { limit_ms, .. } => reached > *limit_ms,
                vidur::capacity::Term::Good { percent, .. } => reached < *percent - 1e-9,
            }
        });
        let grows = whole.verdict() == Some(Broken::QueueGrows);
        prop_assert_eq!(whole.verdict().is_some(), missed || grows);
    }
}
