//! nccl-tests: the table that `all_reduce_perf` and its sisters print, and the file of `-J`.
//!
//! A row has 13 fields: size, count, type, redop, root, then time, algbw, busbw and `#wrong` out of
//! place and in place. Source of the JSON: nccl-tests, src/util.cu, JSON_FILE_VERSION 3: booleans
//! are strings, NaN is `"nan"`, `out_of_place` is null when only in-place runs were made, and
//! `devices` holds the first rank only without MPI.

use super::{Readings, in_place, ms, number};
use crate::dataset::network::{Collective, Times};
use serde_json::Value;

/// Names of the programs.
const PROGRAMS: [(&str, Collective); 5] = [
    ("all_reduce_perf", Collective::AllReduce),
    ("all_gather_perf", Collective::AllGather),
    ("reduce_scatter_perf", Collective::ReduceScatter),
    ("alltoall_perf", Collective::AllToAll),
    ("sendrecv_perf", Collective::SendRecv),
];

/// The program that measures `collective`.
pub fn program(collective: Collective) -> &'static str {
    PROGRAMS.iter().find(|(_, c)| *c == collective).map_or("", |(name, _)| name)
}

fn collective_of(words: &str) -> Option<Collective> {
    PROGRAMS.iter().find(|(name, _)| words.contains(name)).map(|(_, c)| *c)
}

/// Reads the table; `collective` decides between in place and out of place.
///
/// # Errors
/// One line that names the line at fault.
pub fn from_text(text: &str, collective: Collective) -> Result<Readings, String> {
    let mut readings = Readings { tool: "nccl-tests".into(), ..Readings::default() };
    let mut ranks = 0;
    for (number, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(comment) = line.trim_start().strip_prefix('#') {
            let comment = comment.trim();
            if let Some(rest) = comment.strip_prefix("nccl-tests version ") {
                let version = rest.split_whitespace().next().unwrap_or_default();
                readings.tool = format!("nccl-tests {version}");
            } else if comment.starts_with("Collective test starting:") {
                readings.collective = collective_of(comment);
            } else if comment.starts_with("Rank ") {
                ranks += 1;
            } else if let Some(rest) = comment.strip_prefix("Out of bounds values :")
                && !rest.contains("OK")
            {
                readings.notes.push(format!("the tool found wrong results: {comment}"));
            }
            continue;
        }
        // Anything else between the rows is the library talking.
        let Some(bytes) = words.first().and_then(|word| word.parse::<u64>().ok()) else { continue };
        if words.len() < 9 || words[1].parse::<u64>().is_err() {
            continue;
        }
        let time = |at: usize| words.get(at).and_then(|word| word.parse::<f64>().ok());
        let wrong = |at: usize| words.get(at).and_then(|word| word.parse::<f64>().ok());
        let (out, inside) = ((time(5), wrong(8)), (time(9), wrong(12)));
        let (us, errors) = choose(collective, out, inside).ok_or_else(|| {
            format!("line {}: no time; expected 13 columns as nccl-tests prints them", number + 1)
        })?;
        check_wrong(&mut readings, bytes, errors);
        readings.push(bytes, Times::average(ms(us)));
    }
    if ranks > 0 {
        readings.workers = Some(ranks);
    }
    Ok(readings)
}

type Way = (Option<f64>, Option<f64>);

/// The time to take and its count of wrong elements.
fn choose(collective: Collective, out: Way, inside: Way) -> Option<(f64, Option<f64>)> {
    let (first, second) = if in_place(collective) { (inside, out) } else { (out, inside) };
    [first, second].into_iter().find_map(|(time, wrong)| {
        time.filter(|us| us.is_finite() && *us > 0.0).map(|us| (us, wrong))
    })
}

fn check_wrong(readings: &mut Readings, bytes: u64, wrong: Option<f64>) {
    if let Some(count) = wrong.filter(|&count| count > 0.0) {
        readings.notes.push(format!("{count} wrong elements at {bytes} bytes"));
    }
}

/// Reads the rows of a `-J` file.
///
/// # Errors
/// One line that names the row at fault.
pub fn from_json(
    json: &Value,
    results: &[Value],
    collective: Collective,
) -> Result<Readings, String> {
    let mut readings = Readings { tool: "nccl-tests".into(), ..Readings::default() };
    if let Some(version) = json.get("nccl_version").and_then(number) {
        readings.tool = format!("nccl-tests, NCCL {version}");
    }
    let program = json.get("args").and_then(|args| args.get(0)).and_then(Value::as_str);
    readings.collective = program.and_then(collective_of);
    readings.workers = workers(json);
    for (i, row) in results.iter().enumerate() {
        let bytes =
            row.get("size").and_then(number).filter(|&bytes| bytes >= 0.0).ok_or_else(|| {
                format!("results[{i}].size is missing; expected the bytes of a message")
            })?;
        let way = |name: &str| -> Way {
            let Some(way) = row.get(name).filter(|way| way.is_object()) else {
                return (None, None);
            };
            let time = way.get("time").or_else(|| way.get("cpu_time")).and_then(number);
            (time, way.get("nwrong").and_then(number))
        };
        let (out, inside) = (way("out_of_place"), way("in_place"));
        let Some((us, wrong)) = choose(collective, out, inside) else {
            readings.notes.push(format!("results[{i}] has no time"));
            continue;
        };
        check_wrong(&mut readings, bytes as u64, wrong);
        let mut times = Times::average(ms(us));
        // With -I every iteration was timed: of the buffers whose average was taken.
        let inside_taken = inside.0 == Some(us) && (in_place(collective) || out.0.is_none());
        let key = if inside_taken { "in_place_per_iter" } else { "out_of_place_per_iter" };
        if let Some(each) = row.get(key) {
            let figure = |name: &str| each.get(name).and_then(number).map(ms);
            times.min = figure("min_us");
            times.max = figure("max_us");
            times.mean = figure("avg_us").or(times.mean);
            times.median = figure("p50_us").filter(|&p50| p50 > 0.0).unwrap_or(times.median);
            times.std = figure("stdev_us");
        }
        readings.push(bytes as u64, times);
    }
    Ok(readings)
}

/// Threads times devices of one process; `None` when several processes may have taken part.
fn workers(json: &Value) -> Option<u32> {
    let config = json.get("config")?;
    let count = |name: &str| config.get(name).and_then(number);
    let own = count("nthreads")? * count("ngpus")?;
    let listed = config.get("devices").and_then(Value::as_array).map_or(0, Vec::len);
    // One record stands for all ranks of a run without MPI, or for one of several processes.
    ((2.0..=4096.0).contains(&own) && listed <= own as usize).then_some(own as u32)
}
