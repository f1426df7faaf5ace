//! The runner against the scripted backend: kills, budgets, failures, locks. One round, but for the
//! kills; see `rounds_tests` for more.

use super::super::backend::scripted::ScriptedBackend;
use super::super::plan::{Grid, Limits, attention_shapes, mlp_shapes};
use super::testing::model;
use super::*;
use std::collections::BTreeSet;
use std::path::Path;

const LIMITS: Limits = Limits { max_tokens: 64, max_batch_size: 4, max_context: 128 };

pub(super) fn job(root: &Path, kind: TableKind) -> Job {
    Job {
        kind,
        model: model(),
        degrees: vec![1, 2],
        shapes: match kind {
            TableKind::Mlp => mlp_shapes(Grid::Log, LIMITS),
            TableKind::Attention => attention_shapes(Grid::Log, LIMITS),
        },
        effort: Effort::default(),
        rounds: 1,
        budget: None,
        force: false,
        sku: "test-sku".into(),
        files: ProfileFiles::new(root, "test-sku", "test/tiny", kind).unwrap(),
        max_model_len: 128,
        command: "vidur profile".into(),
        host_os: "test".into(),
    }
}

pub(super) fn run_with(job: &Job, backend: &mut ScriptedBackend) -> Result<Outcome, RunError> {
    let clock = backend.clock();
    let peaks = backend.peaks().unwrap();
    run(job, backend, peaks, &clock, &mut ())
}

pub(super) fn run_plainly(job: &Job) -> Outcome {
    run_with(job, &mut ScriptedBackend::default()).unwrap()
}

/// What the journal holds just before the run would finish.
fn whole_journal(job: &Job) -> Vec<u8> {
    let total = job.shapes.len() * job.degrees.len();
    let mut backend = ScriptedBackend::default();
    backend.lost_after = Some(total * job.rounds as usize - 1);
    let error = run_with(job, &mut backend).unwrap_err();
    let kept = if job.rounds == 1 { total - 1 } else { total };
    assert!(matches!(error, RunError::Lost { rows, .. } if rows == kept), "{error}");
    fs::read(job.files.partial()).unwrap()
}

#[test]
fn a_finished_run_leaves_csv_and_manifest_and_nothing_else() {
    for kind in [TableKind::Mlp, TableKind::Attention] {
        let root = tempfile::tempdir().unwrap();
        let job = job(root.path(), kind);
        let outcome = run_plainly(&job);
        assert_eq!(outcome.measured, job.shapes.len() * 2);
        let csv = fs::read(job.files.csv()).unwrap();
        let manifest = Manifest::read(&job.files.manifest()).unwrap().unwrap();
        assert_eq!(manifest.sha256, sha256_hex(&csv));
        assert_eq!(manifest.rows, outcome.table.len());
        assert_eq!(manifest.runs.len(), 1);
        assert_eq!(manifest.runs[0].rounds, 1);
        assert!(manifest.noise.values().all(|n| *n > 0.0 && *n < 0.02), "{:?}", manifest.noise);
        assert_eq!(fs::read_dir(job.files.directory()).unwrap().count(), 2);
        assert_eq!(Table::read(kind, &job.files.csv()).unwrap().unwrap(), outcome.table);
    }
}

#[test]
fn a_kill_at_any_byte_loses_no_finished_row_and_invents_none() {
    // Two rounds of one sample: the figures of the pool are then those of each round, to the bit.
    for (rounds, repeats) in [(1, 5), (2, 1)] {
        let reference = tempfile::tempdir().unwrap();
        let mut plain = job(reference.path(), TableKind::Attention);
        plain.shapes.truncate(3);
        plain.effort.repeats = repeats;
        run_plainly(&plain);
        let expected = fs::read(plain.files.csv()).unwrap();

        let root = tempfile::tempdir().unwrap();
        let mut job = Job { rounds, ..job(root.path(), TableKind::Attention) };
        job.shapes.truncate(3);
        job.effort.repeats = repeats;
        let journal = whole_journal(&job);
        let total = job.shapes.len() * job.degrees.len();
        for cut in 0..=journal.len() {
            fs::write(job.files.partial(), &journal[..cut]).unwrap();
            let whole = journal[..cut].iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
            let lines = std::str::from_utf8(&journal[..whole]).unwrap().lines().skip(2);
            let kept = lines.collect::<BTreeSet<&str>>().len();
            let mut backend = ScriptedBackend::default();
            let outcome = run_with(&job, &mut backend).unwrap();
            let anew = (total - kept) * rounds as usize;
            assert_eq!(backend.measured.len(), anew, "cut at byte {cut}, {rounds} rounds");
            assert_eq!(outcome.measured, total, "cut at byte {cut}, {rounds} rounds");
            let csv = fs::read(job.files.csv()).unwrap();
            assert_eq!(csv, expected, "cut at byte {cut}, {rounds} rounds");
            fs::remove_file(job.files.csv()).unwrap();
            fs::remove_file(job.files.manifest()).unwrap();
        }
    }
}

#[test]
fn a_kill_between_the_renames_is_mended_by_the_same_command() {
    let root = tempfile::tempdir().unwrap();
    let job = job(root.path(), TableKind::Attention);
    let journal = whole_journal(&job);
    run_plainly(&job);
    let expected = fs::read(job.files.csv()).unwrap();
    fs::write(job.files.partial(), journal).unwrap();
    fs::remove_file(job.files.manifest()).unwrap();
    let mut backend = ScriptedBackend::default();
    run_with(&job, &mut backend).unwrap();
    assert_eq!(backend.measured, []);
    assert_eq!(fs::read(job.files.csv()).unwrap(), expected);
    assert!(job.files.manifest().exists() && !job.files.partial().exists());
}

#[test]
fn a_complete_profile_is_left_alone_and_grows_only_by_what_is_missing() {
    let root = tempfile::tempdir().unwrap();
    let mut job = job(root.path(), TableKind::Mlp);
    run_plainly(&job);
    let before = fs::read(job.files.csv()).unwrap();
    let again = run_plainly(&job);
    assert_eq!((again.measured, again.already), (0, job.shapes.len() * 2));
    assert_eq!(fs::read(job.files.csv()).unwrap(), before);
    assert!(!job.files.partial().exists());

    job.degrees = vec![4];
    job.shapes = mlp_shapes(Grid::Log, Limits { max_tokens: 128, ..LIMITS });
    let mut backend = ScriptedBackend::default();
    let grown = run_with(&job, &mut backend).unwrap();
    assert_eq!(grown.table.len(), again.table.len() + job.shapes.len());
    job.degrees = vec![1];
    let mut backend = ScriptedBackend::default();
    run_with(&job, &mut backend).unwrap();
    assert_eq!(backend.measured.len(), 2, "96 and 128 tokens are new");
    let manifest = Manifest::read(&job.files.manifest()).unwrap().unwrap();
    assert_eq!(manifest.runs.len(), 3);
}

#[test]
fn the_budget_is_kept_and_what_fits_covers_the_range() {
    let root = tempfile::tempdir().unwrap();
    let mut job = job(root.path(), TableKind::Mlp);
    job.degrees = vec![1];
    job.budget = Some(Duration::from_millis(450));
    let mut backend = ScriptedBackend::default();
    backend.takes = Duration::from_millis(100);
    let outcome = run_with(&job, &mut backend).unwrap();
    assert!((backend.clock())() <= Duration::from_millis(450));
    assert!((3..=4).contains(&outcome.measured), "{}", outcome.measured);
    assert_eq!(outcome.measured + outcome.skipped, job.shapes.len());
    assert_eq!(backend.measured[..2], [(1, Shape::Tokens(1)), (1, Shape::Tokens(64))]);
    // The same command goes on with the rest.
    let mut backend = ScriptedBackend::default();
    job.budget = None;
    let rest = run_with(&job, &mut backend).unwrap();
    assert_eq!(rest.already, outcome.measured);
    assert_eq!(rest.table.len(), job.shapes.len());
}

#[test]
fn a_budget_of_nothing_still_measures_one_shape() {
    let root = tempfile::tempdir().unwrap();
    let mut job = job(root.path(), TableKind::Attention);
    job.budget = Some(Duration::from_nanos(1));
    assert_eq!(run_plainly(&job).measured, 1);
}

#[test]
fn every_degree_gets_its_share_of_the_budget() {
    let root = tempfile::tempdir().unwrap();
    let mut backend = ScriptedBackend::default();
    backend.takes = Duration::from_millis(100);
    let mut job = job(root.path(), TableKind::Mlp);
    // What the device takes for a shape is what the plan expects.
    job.effort.min_time = backend.takes;
    job.degrees = vec![1, 2, 4];
    job.budget = Some(10 * backend.takes + backend.takes / 2);
    run_with(&job, &mut backend).unwrap();
    let shares = job.degrees.iter().map(|&d| backend.measured.iter().filter(|m| m.0 == d).count());
    // A third of ten, half of the seven left, all of the four left; none of it is wasted.
    assert_eq!(shares.collect::<Vec<usize>>(), [3, 3, 4]);
}

#[test]
fn failed_shapes_are_recorded_and_the_others_measured() {
    let root = tempfile::tempdir().unwrap();
    let job = job(root.path(), TableKind::Mlp);
    let mut backend = ScriptedBackend::default();
    backend.failing.insert(Shape::Tokens(64));
    let outcome = run_with(&job, &mut backend).unwrap();
    assert_eq!(outcome.failed.len(), 2);
    assert_eq!(outcome.table.len(), job.shapes.len() * 2 - 2);
    let manifest = Manifest::read(&job.files.manifest()).unwrap().unwrap();
    assert_eq!(manifest.failed[0].shape, "64 tokens");
    assert_eq!(manifest.failed[0].reason, "scripted to fail");
    // They are tried again, and join when they work.
    let mut backend = ScriptedBackend::default();
    assert_eq!(run_with(&job, &mut backend).unwrap().table.len(), job.shapes.len() * 2);
    assert_eq!(backend.measured.len(), 2);
}

#[test]
fn a_run_in_which_everything_fails_leaves_nothing_that_looks_finished() {
    let root = tempfile::tempdir().unwrap();
    let job = job(root.path(), TableKind::Mlp);
    let mut backend = ScriptedBackend::default();
    backend.failing.extend(job.shapes.iter().copied());
    let error = run_with(&job, &mut backend).unwrap_err();
    assert_eq!(error.to_string(), "nothing could be measured: 1 tokens: scripted to fail");
    assert_eq!(fs::read_dir(job.files.directory()).unwrap().count(), 0);
}

#[test]
fn other_kernels_are_not_mixed_in_unless_forced() {
    let root = tempfile::tempdir().unwrap();
    let mut job = job(root.path(), TableKind::Mlp);
    run_plainly(&job);
    let mut newer = ScriptedBackend::default();
    newer.set_kernel("scripted 2");
    let error = run_with(&job, &mut newer).unwrap_err().to_string();
    assert!(error.contains("mlp.csv") && error.contains("--force"), "{error}");
    assert!(error.contains("kernels was scripted 1, is scripted 2"), "{error}");
    assert!(!job.files.partial().exists());

    // A forced run that dies goes on without --force, and replaces the old rows.
    job.force = true;
    newer.lost_after = Some(5);
    run_with(&job, &mut newer).unwrap_err();
    job.force = false;
    newer.lost_after = None;
    job.degrees = vec![1];
    let outcome = run_with(&job, &mut newer).unwrap();
    assert_eq!(outcome.table.len(), job.shapes.len());
    let manifest = Manifest::read(&job.files.manifest()).unwrap().unwrap();
    assert_eq!(manifest.fingerprint.kernels, ["scripted 2"]);
}

#[test]
fn forcing_under_the_same_conditions_keeps_the_other_degrees() {
    let root = tempfile::tempdir().unwrap();
    let mut job = job(root.path(), TableKind::Mlp);
    let rows = run_plainly(&job).table.len();
    job.degrees = vec![2];
    job.force = true;
    let mut backend = ScriptedBackend::default();
    assert_eq!(run_with(&job, &mut backend).unwrap().table.len(), rows);
    assert_eq!(backend.measured.len(), job.shapes.len());
}

#[test]
fn a_journal_of_other_conditions_is_an_error_that_names_the_cure() {
    let root = tempfile::tempdir().unwrap();
    let job = job(root.path(), TableKind::Mlp);
    let journal = whole_journal(&job);
    let mut newer = ScriptedBackend::default();
    newer.set_kernel("scripted 2");
    let error = run_with(&job, &mut newer).unwrap_err().to_string();
    assert!(error.contains("mlp.partial.csv") && error.contains("--force"), "{error}");
    assert_eq!(fs::read(job.files.partial()).unwrap(), journal, "the journal is as it was");
}

#[test]
fn a_mangled_journal_is_an_error_that_names_the_line() {
    let root = tempfile::tempdir().unwrap();
    let job = job(root.path(), TableKind::Mlp);
    let mut journal = whole_journal(&job);
    journal.extend_from_slice(b"1,2,3\n");
    fs::write(job.files.partial(), &journal).unwrap();
    let lines = journal.iter().filter(|&&b| b == b'\n').count();
    let error = run_with(&job, &mut ScriptedBackend::default()).unwrap_err().to_string();
    assert!(error.contains(&format!("line {lines}: 3 cells, expected")), "{error}");
}

#[test]
fn two_runs_on_one_profile_are_one_too_many() {
    let root = tempfile::tempdir().unwrap();
    let job = job(root.path(), TableKind::Mlp);
    fs::create_dir_all(job.files.directory()).unwrap();
    let device = ScriptedBackend::default();
    let fingerprint = Fingerprint::new(&job.sku, device.device(), &job.model);
    let held = Journal::open(&job.files.partial(), job.kind, &fingerprint, false).unwrap();
    let error = run_with(&job, &mut ScriptedBackend::default()).unwrap_err().to_string();
    assert!(error.contains("in use by another vidur profile"), "{error}");
    // The lock dies with its holder, the file stays: as after a kill.
    drop(held);
    assert!(job.files.partial().exists());
    run_plainly(&job);
}

#[test]
fn a_directory_that_cannot_be_written_is_one_clear_line() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("compute"), "a file where a folder should be").unwrap();
    let job = job(root.path(), TableKind::Mlp);
    let error = run_with(&job, &mut ScriptedBackend::default()).unwrap_err().to_string();
    assert!(error.starts_with("cannot make directory "), "{error}");
    assert!(!error.contains('\n'));
}
