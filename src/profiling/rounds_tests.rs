//! Several rounds over the shapes: pooled samples, budgets that end in between, failures, progress.

use super::super::backend::scripted::ScriptedBackend;
use super::super::backend::{OpSamples, Purpose};
use super::tests::{job, run_plainly, run_with};
use super::*;
use std::path::Path;

/// Twelve shapes of mlp.csv for one degree, each a tenth of a second per round.
fn three_rounds(root: &Path) -> (Job, ScriptedBackend) {
    let mut backend = ScriptedBackend::default();
    backend.takes = Duration::from_millis(100);
    backend.drift = 0.1;
    let mut job = Job { rounds: 3, degrees: vec![1], ..job(root, TableKind::Mlp) };
    job.effort = Effort { repeats: 6, min_time: 3 * backend.takes, ..job.effort };
    (job, backend)
}

/// The row of `shape` after `rounds` rounds of [`three_rounds`].
fn expected_row(job: &Job, shape: Shape, rounds: usize) -> Vec<String> {
    let mut backend = three_rounds(Path::new("unused")).1;
    let shard = Shard { model: job.model.clone(), tensor_parallel: 1 };
    backend.prepare(&shard, Purpose::Mlp).unwrap();
    let mut pool: Vec<OpSamples> = backend.measure(shape, job.effort_per_round()).unwrap();
    for _ in 1..rounds {
        let more = backend.measure(shape, job.effort_per_round()).unwrap();
        pool.iter_mut().zip(more).for_each(|(old, new)| old.ms.extend(new.ms));
    }
    assert!(pool.iter().all(|s| s.ms.len() == 2 * rounds));
    compute::row(&shard, shape, &pool, job.max_model_len, "cpu")
}

fn expected_table(job: &Job, rounds: impl Fn(usize) -> usize) -> Table {
    let mut table = Table::new(job.kind);
    for (i, &shape) in job.shapes.iter().enumerate() {
        table.insert(expected_row(job, shape, rounds(i))).unwrap();
    }
    table
}

#[test]
fn a_row_has_the_statistics_of_the_samples_of_all_rounds() {
    let root = tempfile::tempdir().unwrap();
    let (job, mut backend) = three_rounds(root.path());
    let outcome = run_with(&job, &mut backend).unwrap();
    assert_eq!(outcome.table, expected_table(&job, |_| 3));
    assert_eq!(outcome.measured, job.shapes.len());
    assert_eq!(Table::read(job.kind, &job.files.csv()).unwrap(), Some(outcome.table));
    // Spread over time: every shape once before any shape again, in the same order.
    let order: Vec<Shape> = backend.measured.iter().map(|m| m.1).collect();
    assert_eq!(order, job.shapes.repeat(3));
    let manifest = Manifest::read(&job.files.manifest()).unwrap().unwrap();
    assert_eq!(manifest.runs[0].rounds, 3);
}

#[test]
fn one_round_measures_everything_once_at_full_effort() {
    let root = tempfile::tempdir().unwrap();
    let (mut job, mut backend) = three_rounds(root.path());
    job.rounds = 1;
    assert_eq!(job.effort_per_round(), job.effort);
    run_with(&job, &mut backend).unwrap();
    let order: Vec<Shape> = backend.measured.iter().map(|m| m.1).collect();
    assert_eq!(order, job.shapes);
}

#[test]
fn rounds_share_the_effort_and_each_has_a_sample() {
    let effort = Effort::default();
    let third = effort.over(3);
    assert_eq!((third.repeats, third.min_time), (2, Duration::from_millis(100)));
    assert_eq!(effort.over(20).repeats, 1);
    assert_eq!(effort.over(0), effort);
}

#[test]
fn a_budget_that_ends_within_a_round_keeps_the_rows_of_the_earlier_one() {
    let root = tempfile::tempdir().unwrap();
    let (mut job, mut backend) = three_rounds(root.path());
    let shapes = job.shapes.len();
    let budget = backend.takes * (shapes as u32 + 5) + backend.takes / 2;
    job.budget = Some(budget);
    let outcome = run_with(&job, &mut backend).unwrap();
    assert!((backend.clock())() <= budget);
    assert_eq!(backend.measured.len(), shapes + 5);
    assert_eq!(outcome.table, expected_table(&job, |i| if i < 5 { 2 } else { 1 }));
    assert_eq!((outcome.skipped, outcome.failed), (0, Vec::new()));
    // Every shape has a row: the same command has nothing more to do.
    let mut again = ScriptedBackend::default();
    assert_eq!(run_with(&job, &mut again).unwrap().already, shapes);
    assert_eq!(again.measured, []);
}

#[test]
fn every_degree_has_its_rounds_within_its_share() {
    let root = tempfile::tempdir().unwrap();
    let (mut job, mut backend) = three_rounds(root.path());
    job.degrees = vec![1, 2];
    job.shapes.truncate(2);
    job.budget = Some(7 * backend.takes + backend.takes / 2);
    run_with(&job, &mut backend).unwrap();
    let (a, b) = (job.shapes[0], job.shapes[1]);
    let expected = [(1, a), (1, b), (1, a), (2, a), (2, b), (2, a), (2, b)];
    assert_eq!(backend.measured, expected);
}

#[test]
fn a_run_killed_in_a_later_round_is_finished_by_the_same_command() {
    let root = tempfile::tempdir().unwrap();
    let (job, mut backend) = three_rounds(root.path());
    let shapes = job.shapes.len();
    backend.lost_after = Some(shapes + 5);
    let error = run_with(&job, &mut backend).unwrap_err();
    assert!(matches!(error, RunError::Lost { rows, .. } if rows == shapes), "{error}");
    let mut again = three_rounds(root.path()).1;
    let outcome = run_with(&job, &mut again).unwrap();
    assert_eq!(again.measured, []);
    assert_eq!(outcome.table, expected_table(&job, |i| if i < 5 { 2 } else { 1 }));
}

#[test]
fn further_rounds_are_for_the_shapes_of_this_process() {
    let root = tempfile::tempdir().unwrap();
    let (job, mut backend) = three_rounds(root.path());
    backend.lost_after = Some(5);
    run_with(&job, &mut backend).unwrap_err();
    let mut again = three_rounds(root.path()).1;
    let outcome = run_with(&job, &mut again).unwrap();
    let order: Vec<Shape> = again.measured.iter().map(|m| m.1).collect();
    assert_eq!(order, job.shapes[5..].repeat(3));
    assert_eq!(outcome.table, expected_table(&job, |i| if i < 5 { 1 } else { 3 }));
}

#[test]
fn a_failure_in_a_later_round_leaves_the_row_and_ends_the_shape() {
    let root = tempfile::tempdir().unwrap();
    let (job, mut backend) = three_rounds(root.path());
    let shapes = job.shapes.len();
    backend.failing.insert(job.shapes[3]);
    backend.failing_from = shapes;
    let outcome = run_with(&job, &mut backend).unwrap();
    assert_eq!(backend.measured.len(), 3 * shapes - 1);
    assert_eq!(outcome.failed, []);
    assert_eq!(outcome.table, expected_table(&job, |i| if i == 3 { 1 } else { 3 }));
}

#[derive(Default)]
struct Told(Vec<Progress>);

impl Observer for Told {
    fn progress(&mut self, progress: &Progress) {
        self.0.push(progress.clone());
    }
}

#[test]
fn progress_counts_every_round_and_ends_at_the_total() {
    let root = tempfile::tempdir().unwrap();
    let (mut job, mut backend) = three_rounds(root.path());
    let shapes = job.shapes.len();
    backend.failing.insert(job.shapes[3]);
    let (clock, mut told) = (backend.clock(), Told::default());
    let peaks = backend.peaks().unwrap();
    run(&job, &mut backend, peaks, &clock, &mut told).unwrap();
    let first = &told.0[0];
    assert_eq!((first.round, first.position, first.total), (1, 1, 3 * shapes));
    let rest = backend.takes * (3 * shapes as u32 - 1);
    assert!(first.left.abs_diff(rest) < rest / 20, "{:?}, not about {rest:?}", first.left);
    assert!(told.0.windows(2).all(|w| w[0].position < w[1].position));
    assert!(told.0.windows(2).all(|w| w[0].left > w[1].left && w[0].round <= w[1].round));
    let last = told.0.last().unwrap();
    assert_eq!((last.round, last.position, last.left), (3, 3 * shapes, Duration::ZERO));

    // What the budget leaves out counts too, and no more time is left than the budget has.
    let other = tempfile::tempdir().unwrap();
    (job, backend) = three_rounds(other.path());
    job.budget = Some(backend.takes * 5);
    let (clock, mut told) = (backend.clock(), Told::default());
    run(&job, &mut backend, peaks, &clock, &mut told).unwrap();
    assert!(told.0.iter().all(|p| p.left <= backend.takes * 5));
    assert_eq!(told.0.last().map(|p| p.position), Some(3 * shapes));
}

#[test]
fn equal_samples_give_equal_figures_however_many_rounds_there_are() {
    let csv = |rounds| {
        let root = tempfile::tempdir().unwrap();
        let mut job = Job { rounds, ..job(root.path(), TableKind::Attention) };
        job.effort.repeats = 1;
        run_plainly(&job);
        fs::read(job.files.csv()).unwrap()
    };
    // Powers of two: the sum of that many equal numbers is exact.
    assert_eq!(csv(1), csv(2));
}
