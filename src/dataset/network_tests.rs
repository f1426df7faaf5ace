//! Network profiles as files.

use super::*;
use crate::dataset::location::ProfileFile;
use crate::dataset::read::ProfileSet;

fn run() -> NetworkRun {
    NetworkRun {
        command: "vidur".into(),
        finished: "2026-11-22T00:00:00Z".into(),
        tool: "test".into(),
        rows: 1,
        files: Vec::new(),
        notes: Vec::new(),
    }
}

#[test]
fn rows_are_read_back_by_the_reader_of_profiles() {
    let root = tempfile::tempdir().unwrap();
    let open = || NetworkTable::open(root.path(), "box_dgx", Collective::AllReduce).unwrap();
    let mut table = open();
    let key = |workers, bytes| NetworkKey { workers, per_node: workers, bytes };
    table.put(key(8, 2048), Times::of(&[0.01, 0.03, 0.02]).unwrap(), 8);
    table.put(key(8, 1024), Times::average(0.005), 8);
    table.finish(run()).unwrap();
    let mut again = open();
    again.put(key(4, 1024), Times::average(0.004), 8);
    again.finish(run()).unwrap();
    assert!(open().contains(key(8, 2048)));
    assert_eq!(open().medians(8, 8), [(1024, 0.005), (2048, 0.02)]);
    let text = fs::read_to_string(again.path()).unwrap();
    assert!(text.starts_with("time_stats.all_reduce.min,"), "{text}");
    assert!(text.contains("\n,,0.005,0.005,,0,8,1024,all_reduce,8,8\n"), "{text}");
    let json = fs::read_to_string(again.path().with_extension("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (manifest["rows"].as_u64(), manifest["runs"].as_array().unwrap().len()),
        (Some(3), 2)
    );
    // What the simulator sees.
    let model = crate::profiling::runner::testing::model();
    let device =
        crate::spec::catalog::Catalog::open(Some(Path::new("none"))).device("h100_sxm").unwrap();
    let request = crate::dataset::read::Request {
        model: &model,
        device: &device,
        network_device: Some("box_dgx"),
        parallel: crate::spec::parallel::Parallelism { tensor_parallel: 8, pipeline_parallel: 1 },
        ops: &[crate::spec::ops::Op::AllReduce],
        missing_values: Default::default(),
        block_size: None,
    };
    let mut set = ProfileSet::default();
    let file = ProfileFile::from_bytes("all_reduce.csv", text);
    request.read_collective(crate::spec::ops::Op::AllReduce, &file, &mut set).unwrap();
    assert_eq!(set.ops[0].points.iter().map(|p| p.ms).collect::<Vec<_>>(), [0.005, 0.02]);
}

#[test]
fn vidurs_own_files_can_be_added_to() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("network/n");
    fs::create_dir_all(&folder).unwrap();
    let line = "0.007,0.038,0.0173,0.007,0.0146";
    let csv = format!(
        ",time_stats.all_reduce.min,time_stats.all_reduce.max,time_stats.all_reduce.mean,time_stats.all_reduce.median,time_stats.all_reduce.std,rank,num_workers,size,collective,devices_per_node,max_devices_per_node\n\
         0,{line},0,2,2048,all_reduce,2,4\n1,{line},1,2,2048,all_reduce,2,4\n"
    );
    fs::write(folder.join("all_reduce.csv"), csv).unwrap();
    let mut table = NetworkTable::open(root.path(), "n", Collective::AllReduce).unwrap();
    table.put(NetworkKey { workers: 4, per_node: 4, bytes: 64 }, Times::average(1.0), 4);
    table.save().unwrap();
    let text = fs::read_to_string(table.path()).unwrap();
    assert_eq!(text.lines().count(), 4);
    assert!(text.contains(&format!("{line},1,2,2048,all_reduce,2,4")), "{text}");
    fs::write(table.path(), "mine\n1\n").unwrap();
    let refused = NetworkTable::open(root.path(), "n", Collective::AllReduce).unwrap_err();
    assert!(refused.to_string().contains("unknown column `mine`"), "{refused}");
    assert!(NetworkTable::open(root.path(), "../n", Collective::AllReduce).is_err());
}

#[test]
fn bandwidth_on_the_bus_does_not_depend_on_the_number_of_workers() {
    // nccl-tests, 4 x A100: 33554432 bytes of all_gather in 973.2 us are 25.86 GB/s.
    let bus = Collective::AllGather.bus_bandwidth(4, 33_554_432, 0.9732) / 1e9;
    assert!((bus - 25.86).abs() < 0.01, "{bus}");
}

#[test]
fn rows_under_another_name_are_taken_along() {
    let root = tempfile::tempdir().unwrap();
    let open = || NetworkTable::open(root.path(), "n", Collective::AllReduce).unwrap();
    let key = |bytes| NetworkKey { workers: 2, per_node: 2, bytes };
    let mut table = open();
    table.put(key(1024), Times::average(1.0), 2);
    table.put(key(2048), Times::average(2.0), 2);
    table.save().unwrap();
    fs::rename(table.path(), table.path().with_file_name("allreduce.csv")).unwrap();
    let mut again = open();
    assert!(again.contains(key(1024)), "what simulations see is measured");
    again.put(key(2048), Times::average(3.0), 2);
    again.save().unwrap();
    assert_eq!(open().medians(2, 2), [(1024, 1.0), (2048, 3.0)]);
    assert!(open().differs(key(1024), Times::average(9.0)));
    assert!(!open().differs(key(1024), Times::average(1.0)));
    assert!(!open().differs(key(4096), Times::average(1.0)));
}

#[test]
fn runs_of_one_size_are_pooled_and_noise_is_told_where_it_is_known() {
    let mut table = NetworkTable::open(Path::new("none"), "n", Collective::AllReduce).unwrap();
    let key = |bytes| NetworkKey { workers: 2, per_node: 2, bytes };
    let averages = [1.0, 2.0, 6.0].map(Times::average);
    let pooled = Times::pool(&averages).unwrap();
    assert_eq!((pooled.median, pooled.mean, pooled.std), (2.0, Some(3.0), None));
    table.put(key(64), pooled, 2);
    assert_eq!(table.noise(2, 2), None);
    let runs = [Times::of(&[1.0, 3.0]).unwrap(), Times::of(&[3.0, 5.0]).unwrap()];
    let pooled = Times::pool(&runs).unwrap();
    assert_eq!((pooled.min, pooled.max, pooled.median), (Some(1.0), Some(5.0), 3.0));
    // As of the four samples.
    let whole = Times::of(&[1.0, 3.0, 3.0, 5.0]).unwrap();
    assert!((pooled.std.unwrap() - whole.std.unwrap()).abs() < 1e-12);
    table.put(key(128), pooled, 2);
    assert!((table.noise(2, 2).unwrap() - 2.0_f64.sqrt() / 3.0).abs() < 1e-12);
    assert_eq!(Times::pool(&[]), None);
}
