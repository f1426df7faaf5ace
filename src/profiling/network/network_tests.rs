//! Readers on samples of what the tools print, and on rubbish.

use super::*;
use proptest::prelude::*;

/// The shape of nccl-tests 2.13 on four A100 PCIe.
const NCCL_TEXT: &str = "\
# nThread 1 nGpus 4 minBytes 33554432 maxBytes 67108864 step: 2(factor) warmup iters: 5 iters: 20 agg iters: 1 validation: 1 graph: 0
#
# Using devices
#  Rank  0 Group  0 Pid    622 on box device  0 [0x00] NVIDIA A100 80GB PCIe
#  Rank  1 Group  0 Pid    622 on box device  1 [0x00] NVIDIA A100 80GB PCIe
#  Rank  2 Group  0 Pid    622 on box device  2 [0x00] NVIDIA A100 80GB PCIe
#  Rank  3 Group  0 Pid    622 on box device  3 [0x00] NVIDIA A100 80GB PCIe
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
box:622:640 [0] NCCL INFO Channel 00/02 : 0 1 2 3
    33554432       2097152     float    none      -1    973.2   34.48   25.86      0    969.7   34.60   25.95      0
    67108864       4194304     float    none      -1  1.9e+03   34.48   25.86    N/A   1931.5   34.60   25.95    N/A
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 25.905
";

#[test]
fn the_table_of_nccl_tests_gives_times_and_ranks() {
    let readings = read(NCCL_TEXT, Collective::AllGather).unwrap();
    assert_eq!(readings.workers, Some(4));
    let medians: Vec<(u64, f64)> = readings.points.iter().map(|(b, t)| (*b, t.median)).collect();
    assert_eq!(medians, [(33_554_432, 0.9732), (67_108_864, 1.9)]);
    assert_eq!(readings.points[0].1.min, None, "an average says nothing of the shortest");
    assert_eq!(readings.notes, Vec::<String>::new());
    // Engines sum in place.
    let summed =
        NCCL_TEXT.replace("none", " sum").replace("25.86 ", "51.72 ").replace("25.95 ", "51.90 ");
    assert_eq!(read(&summed, Collective::AllReduce).unwrap().points[0].1.median, 0.9697);
    let newer = NCCL_TEXT.replace(
        "# nThread",
        "# nccl-tests version 2.19.6 nccl-headers=22703 nccl-library=22703\n# Collective test starting: all_gather_perf\n# nThread",
    );
    let readings = read(&newer.replace("[0x00]", "[0000:17:00]"), Collective::AllGather).unwrap();
    assert_eq!(readings.tool, "nccl-tests 2.19.6");
    assert_eq!(readings.collective, Some(Collective::AllGather));
    assert_eq!(readings.workers, Some(4));
}

#[test]
fn rows_of_another_collective_are_refused() {
    let refused = |text: &str, collective| read(text, collective).unwrap_err();
    let message = refused(NCCL_TEXT, Collective::AllReduce);
    assert!(message.contains("line 13 is not of all_reduce: its redop is none"), "{message}");
    let message = refused(NCCL_TEXT, Collective::SendRecv);
    assert!(message.contains("busbw 25.86 is not 1.000 times its algbw 34.48"), "{message}");
    let summed = NCCL_TEXT.replace("none", " sum");
    assert!(refused(&summed, Collective::AllReduce).contains("is not 1.500 times"));
    assert!(refused(&summed, Collective::AllGather).contains("its redop is sum"));
    assert!(read(&summed, Collective::ReduceScatter).is_ok());
    // A file that names its program is believed, but for an operation that the program never has.
    let row = r#"{"size":8,"redop":"none","in_place":{"time":9.7,"alg_bw":34.6,"bus_bw":25.95}}"#;
    assert!(refused(&nccl_json(row), Collective::AllReduce).contains("results[0] is not of"));
    // Small messages are all rounding.
    let small = NCCL_TEXT.replace("34.48", "0.01").replace("34.60", "0.01");
    let small = small.replace("25.86 ", "0.01 ").replace("25.95 ", "0.01 ");
    assert!(read(&small, Collective::AllGather).is_ok());
}

#[test]
fn rows_without_a_time_cost_themselves_only() {
    let text = NCCL_TEXT.replace("973.2 ", "  nan ").replace("969.7 ", "  nan ");
    let readings = read(&text, Collective::AllGather).unwrap();
    assert_eq!((readings.points.len(), readings.points[0].0), (1, 67_108_864));
    assert_eq!(readings.notes, ["line 13: no time for 33554432 bytes"]);
    // Tools that print no root have their times elsewhere.
    let older = NCCL_TEXT.replace(" -1 ", "    ");
    let message = read(&older, Collective::AllGather).unwrap_err();
    assert!(message.contains("line 13: 12 columns; expected 13"), "{message}");
    // What a run measures twice is there twice; two runs of different size are two files.
    let twice = format!("{NCCL_TEXT}{NCCL_TEXT}");
    let readings = read(&twice, Collective::AllGather).unwrap();
    assert_eq!((readings.points.len(), readings.workers), (4, Some(4)));
    let fewer = NCCL_TEXT.lines().filter(|line| !line.contains("Rank  3"));
    let both = format!("{NCCL_TEXT}{}", fewer.collect::<Vec<_>>().join("\n"));
    assert!(read(&both, Collective::AllGather).unwrap_err().contains("runs of 4 and of 3"));
}

#[test]
fn wrong_results_are_told() {
    let text = NCCL_TEXT
        .replace("25.86      0  ", "25.86      3  ")
        .replace("values : 0 OK", "values : 3 FAILED");
    let notes = read(&text, Collective::AllGather).unwrap().notes.join("; ");
    assert!(notes.contains("3 wrong elements at 33554432 bytes"), "{notes}");
    assert!(notes.contains("wrong results"), "{notes}");
}

fn nccl_json(row: &str) -> String {
    format!(
        r#"{{"version":3,"args":["all_reduce_perf","-b","8"],"env":[],"nccl_version":22703,
        "config":{{"nthreads":1,"ngpus":4,"blocking_collectives":"false","devices":[{{"rank":0,"device_info":"NVIDIA A100 80GB PCIe"}}]}},
        "results":[{row}],"out_of_bounds":{{"count":0,"okay":"true"}},"average_bus_bandwidth":{{"bandwidth":25.9,"okay":"unchecked"}},"errors":[]}}"#
    )
}

#[test]
fn the_json_of_nccl_tests_with_its_quirks() {
    let row = r#"{"size":33554432,"count":2097152,"type":"float","redop":"sum","root":"    -1",
        "out_of_place":{"time":973.200000,"alg_bw":34.48,"bus_bw":25.86,"nwrong":null},
        "in_place":{"time":969.700000,"alg_bw":"nan","bus_bw":25.95,"nwrong":0.000000},"actual_iterations":20}"#;
    let readings = read(&nccl_json(row), Collective::AllReduce).unwrap();
    assert_eq!((readings.workers, readings.collective), (Some(4), Some(Collective::AllReduce)));
    assert_eq!(readings.points[0].1.median, 0.9697);
    let alone = row
        .replace("{\"time\":973.200000,\"alg_bw\":34.48,\"bus_bw\":25.86,\"nwrong\":null}", "null");
    assert_eq!(read(&nccl_json(&alone), Collective::AllGather).unwrap().points[0].1.median, 0.9697);
    let each = row.replace(
        "\"actual_iterations\":20",
        r#""in_place_per_iter":{"skipped_iterations":0,"min_us":900.0,"max_us":1200.0,"avg_us":970.0,"p50_us":950.0,"stdev_us":40.0}"#,
    );
    let times = read(&nccl_json(&each), Collective::AllReduce).unwrap().points[0].1;
    assert_eq!((times.min, times.max, times.mean), (Some(0.9), Some(1.2), Some(0.97)));
    assert_eq!((times.median, times.std), (0.95, Some(0.04)));
    let nan = row.replace("973.200000", "\"nan\"").replace("969.700000", "\"nan\"");
    assert!(
        read(&nccl_json(&nan), Collective::AllReduce)
            .unwrap_err()
            .contains("results[0] has no time")
    );
}

const OLD_NCCOM: &str = "
       size(B)    count(elems)    type    time(us)    algbw(GB/s)    busbw(GB/s)
          1024             256    fp32          58           0.02           0.02
        262144           65536    fp32          60           4.07           4.07
      33554432    Failure running neuron-bench - log file /tmp/nccom_test_log_7.log
Avg bus bandwidth:      23.6671GB/s
1 errors found - test failed
";

const NEW_NCCOM: &str = "
    size(B)    count(elems)    type    time:avg(us)    time:p25(us)    time:p50(us)    time:p90(us)    time:p99(us)    algbw(GB/s)    busbw(GB/s)
       1024             256    fp32            10.0              10              10              11              12           0.10           0.09
     524288          131072    fp32           14.83              14              15              16              17          35.34          30.92
    Avg bus bandwidth:\t9.1966GB/s
";

#[test]
fn both_tables_of_nccom_test_are_read_and_failures_are_told() {
    let old = read(OLD_NCCOM, Collective::AllReduce).unwrap();
    let medians: Vec<(u64, f64)> = old.points.iter().map(|(b, t)| (*b, t.median)).collect();
    assert_eq!(medians, [(1024, 0.058), (262_144, 0.06)]);
    let notes = old.notes.join("; ");
    assert!(notes.contains("33554432 bytes: Failure running neuron-bench"), "{notes}");
    assert!(notes.contains("1 errors found") && !notes.contains("no time"), "{notes}");
    let dead = "Neuron DKMS Driver is not running! Read the troubleshooting guide";
    assert!(read(dead, Collective::AllReduce).unwrap_err().contains(dead));
    let new = read(NEW_NCCOM, Collective::AllGather).unwrap();
    assert_eq!(new.points[1].1.median, 0.015);
    assert_eq!(new.points[1].1.mean, Some(0.01483));
}

#[test]
fn the_json_of_nccom_test_needs_no_bandwidths() {
    let json = r#"{"config":{"ignored":1},"results":[
        {"size(B)":1024,"count(elems)":256,"type":"fp32","algbw(GB/s)":0.165,"busbw(GB/s)":0.16,"time:avg(us)":6.19},
        {"size(B)":524288,"time:avg(us)":23.11,"time:p50(us)":22.0}]}"#;
    let readings = read(json, Collective::AllGather).unwrap();
    assert_eq!(readings.points.iter().map(|p| p.1.median).collect::<Vec<_>>(), [0.00619, 0.022]);
    // 524288 bytes in 23.11 us: decimal gigabytes, as this generation prints them.
    let mean = readings.points[1].1.mean.unwrap();
    let bus = Collective::AllGather.bus_bandwidth(32, 524_288, mean) / 1e9;
    assert!((bus - 21.9798).abs() < 0.01, "{bus}");
}

#[test]
fn what_no_tool_wrote_is_refused_in_one_line() {
    for text in
        ["", "{}", "{\"results\":3}", "{\"results\":[{}]}", "hello\n", "{\"results\":[]}", "{"]
    {
        let message = read(text, Collective::AllReduce).unwrap_err();
        assert!(!message.contains('\n'), "{text}: {message}");
    }
}

#[cfg(unix)]
#[test]
fn rows_are_told_as_they_are_printed_and_outlive_the_tool() {
    use crate::profiling::tool::{Tools, testing::script};
    let folder = tempfile::tempdir().unwrap();
    let rows = "echo \"1024 1 half sum -1 9.0 1 1 N/A 8.0 1 1 N/A\"; \
        echo \"2048 1 half sum -1 9.0 1 1 N/A $CUDA_VISIBLE_DEVICES 1 1 N/A\"";
    let question = tools::Question {
        collective: Collective::AllReduce,
        workers: 2,
        sizes: tools::Sizes { min: 1024, max: 4096 },
        repeats: 1,
        visible: Some("7".into()),
    };
    let mut tools = Tools::only(folder.path(), std::path::Path::new("/nonexistent"));
    tools.deadline = std::time::Duration::from_millis(500);
    for (end, words) in [("echo gone >&2; exit 3", "gone (exit code 3)"), ("sleep 30", "no answer")]
    {
        script(folder.path(), "all_reduce_perf", &format!("{rows}; {end}"));
        let mut told = Vec::new();
        let each = &mut |bytes, times: Times| told.push((bytes, times.median));
        let readings = tools::Tool::NcclTests.measure(&tools, &question, each).unwrap();
        assert_eq!(told, [(1024, 0.008), (2048, 0.007)]);
        assert!(readings.failure.as_ref().unwrap().contains(words), "{readings:?}");
    }
}

/// Cases of each property: more with VIDUR_PROPTEST_CASES.
pub(crate) fn cases() -> ProptestConfig {
    let cases = std::env::var("VIDUR_PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    ProptestConfig::with_cases(cases.unwrap_or(256))
}

/// A sample with bytes overwritten, cut out and put in.
fn mangled(samples: &'static [&'static str]) -> impl Strategy<Value = String> {
    let edit =
        (any::<prop::sample::Index>(), 0..20_usize, "[ \\t\\n0-9a-zA-Z{}\\[\\]:\",.#\\-]{0,8}");
    (prop::sample::select(samples), prop::collection::vec(edit, 0..8)).prop_map(
        |(sample, edits)| {
            let mut bytes = sample.as_bytes().to_vec();
            for (at, cut, new) in edits {
                let at = at.index(bytes.len() + 1);
                let end = (at + cut).min(bytes.len());
                bytes.splice(at..end, new.bytes());
            }
            String::from_utf8_lossy(&bytes).into_owned()
        },
    )
}

static JSON: &str = r#"{"version":3,"args":["all_reduce_perf"],"config":{"nthreads":1,"ngpus":4,"devices":[{}]},"results":[{"size":8,"out_of_place":{"time":9.5,"nwrong":null},"in_place":{"time":9.1,"nwrong":0.0}},{"size(B)":1024,"time:avg(us)":6.19}]}"#;

static SAMPLES: &[&str] = &[NCCL_TEXT, OLD_NCCOM, NEW_NCCOM, JSON];

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn no_text_makes_the_readers_panic_or_give_times_that_are_none(
        text in mangled(SAMPLES), which in 0..5_usize
    ) {
        if let Ok(readings) = read(&text, Collective::ALL[which]) {
            prop_assert!(!readings.points.is_empty());
            for (bytes, times) in readings.points {
                prop_assert!(bytes > 0 && times.median > 0.0 && times.median.is_finite());
            }
        }
    }

    #[test]
    fn nor_do_arbitrary_strings(text in "\\PC{0,200}", which in 0..5_usize) {
        let _ = read(&text, Collective::ALL[which]);
        let _ = crate::profiling::detect::neuron::parse(&text);
        let _ = crate::profiling::detect::nvidia::parse(&text);
        let _ = crate::profiling::detect::topology::parse(&text);
    }
}
