use super::*;
use crate::dataset::cpu::{CpuOverhead, read_cpu_overheads};
use crate::dataset::location::ProfileFile;

fn open(root: &Path, tp: u32, source: &str, force: bool) -> Result<OverheadFile, OverheadError> {
    OverheadFile::open(root, "box", "org/m", tp, source, force)
}

fn row(batch_size: u32, gap: f64) -> OverheadRow {
    OverheadRow {
        batch_size,
        gap_ms: vec![gap, gap + 2.0, gap + 1.0],
        device_ms: vec![20.0],
        transport_ms: vec![0.5],
        ..OverheadRow::default()
    }
}

fn run() -> OverheadRun {
    OverheadRun {
        command: "vidur".into(),
        finished: "2026-11-22T00:00:00Z".into(),
        source: String::new(),
        method: "test".into(),
        tensor_parallel: 0,
        batch_sizes: Vec::new(),
        failed: vec![FailedBatch { batch_size: 64, reason: "it died".into() }],
        files: Vec::new(),
        notes: Vec::new(),
    }
}

fn totals(root: &Path, tp: u32) -> Vec<(u64, f64)> {
    let csv = fs::read(root.join("cpu_overhead/box/org/m/cpu_overheads.csv")).unwrap();
    let rows = read_cpu_overheads(&ProfileFile::from_bytes("cpu", csv), &["org/m"], tp).unwrap();
    rows.iter().map(|r: &CpuOverhead| (r.batch_size, r.total_ms())).collect()
}

#[test]
fn a_gap_stands_for_the_parts_that_are_not_known_and_parts_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = open(dir.path(), 2, "engine 1", false).unwrap();
    file.put(&row(8, 5.0)).unwrap();
    file.put(&row(1, 3.0)).unwrap();
    let parts = OverheadRow {
        schedule_ms: vec![1.0],
        sampler_ms: vec![2.0],
        prepare_inputs_ms: vec![4.0],
        process_outputs_ms: vec![8.0],
        ..row(16, 15.0)
    };
    assert_eq!(parts.host_ms(), 31.0);
    file.put(&parts).unwrap();
    file.finish(run()).unwrap();
    assert_eq!(totals(dir.path(), 2), [(1, 4.0), (8, 6.0), (16, 31.0)]);
    // Without a gap the parts are needed.
    let mut file = open(dir.path(), 4, "engine 1", false).unwrap();
    file.put(&OverheadRow { gap_ms: Vec::new(), ..row(1, 3.0) }).unwrap();
    file.finish(run()).unwrap();
    let csv = fs::read(dir.path().join("cpu_overhead/box/org/m/cpu_overheads.csv")).unwrap();
    let refused = read_cpu_overheads(&ProfileFile::from_bytes("cpu", csv), &["org/m"], 4);
    assert!(refused.unwrap_err().to_string().contains("schedule_median"));
    // Rows of the other degree are still there.
    assert_eq!(totals(dir.path(), 2).len(), 3);
}

#[test]
fn what_a_killed_run_measured_is_taken_over_by_its_own_kind_only() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), 1, "engine 1", false).unwrap().put(&row(8, 5.0)).unwrap();
    assert!(!open(dir.path(), 1, "engine 2", false).unwrap().contains(8));
    assert!(!open(dir.path(), 2, "engine 1", false).unwrap().contains(8));
    assert!(!open(dir.path(), 1, "engine 1", true).unwrap().contains(8));
    let mut file = open(dir.path(), 1, "engine 1", false).unwrap();
    assert!(file.contains(8));
    file.put(&row(1, 3.0)).unwrap();
    file.finish(run()).unwrap();
    assert_eq!(totals(dir.path(), 1).len(), 2);
    // What a later run measured before it was killed is there, and yet not in the file.
    let mut file = open(dir.path(), 1, "engine 1", false).unwrap();
    assert!(file.is_finished());
    file.put(&row(16, 4.0)).unwrap();
    let file = open(dir.path(), 1, "engine 1", false).unwrap();
    assert!(file.contains(16) && !file.is_finished());
    file.finish(run()).unwrap();
    assert_eq!(totals(dir.path(), 1).len(), 3);
    let folder = dir.path().join("cpu_overhead/box/org/m");
    assert!(!folder.join("cpu_overheads.partial.json").exists());
    let json = fs::read_to_string(folder.join("cpu_overheads.manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(manifest["runs"][0]["batch_sizes"], serde_json::json!([1, 8]));
    assert_eq!(manifest["runs"][0]["failed"][0]["reason"], "it died");
}

#[test]
fn rows_of_two_sources_are_not_mixed_unless_forced() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = open(dir.path(), 1, "engine 1", false).unwrap();
    file.put(&row(8, 5.0)).unwrap();
    file.finish(run()).unwrap();
    let message = open(dir.path(), 1, "engine 2", false).unwrap_err().to_string();
    assert!(message.contains("(engine 1; this run: engine 2); --force"), "{message}");
    assert!(open(dir.path(), 1, "engine 1", false).unwrap().contains(8));
    assert!(open(dir.path(), 2, "engine 2", false).unwrap().is_empty());
    assert!(open(dir.path(), 1, "engine 2", true).unwrap().is_empty());
}
