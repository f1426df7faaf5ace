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

/// The words of a row of the table: its 13 fields, or 9 where it was cut off behind the first time.
fn row(line: &str) -> Option<Vec<&str>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    // Anything else between the rows is the library talking.
    let counts = words.len() >= 9 && words[..2].iter().all(|word| word.parse::<u64>().is_ok());
    counts.then_some(words)
}

/// Reads the table; `collective` decides between in place and out of place. Rows without a time become
/// notes.
///
/// # Errors
/// When it holds runs of different numbers of workers.
pub fn from_text(text: &str, collective: Collective) -> Result<Readings, String> {
    let mut readings = Readings { tool: "nccl-tests".into(), ..Readings::default() };
    let (mut ranks, mut runs) = (0, Vec::new());
    for (number, line) in text.lines().enumerate() {
        if let Some(comment) = line.trim_start().strip_prefix('#') {
            let comment = comment.trim();
            if let Some(rest) = comment.strip_prefix("nccl-tests version ") {
                let version = rest.split_whitespace().next().unwrap_or_default();
                readings.tool = format!("nccl-tests {version}");
            } else if comment.starts_with("Collective test starting:") {
                readings.collective = collective_of(comment);
            } else if comment.starts_with("Using devices") {
                runs.push(std::mem::take(&mut ranks));
            } else if comment.starts_with("Rank ") {
                ranks += 1;
            } else if let Some(rest) = comment.strip_prefix("Out of bounds values :")
                && !rest.contains("OK")
            {
                readings.notes.push(format!("the tool found wrong results: {comment}"));
            }
            continue;
        }
        let Some(words) = row(line) else { continue };
        let bandwidths =
            |at: usize| Some((words.get(at)?.to_string(), words.get(at + 1)?.to_string()));
        readings.claims.push(Claim {
            place: format!("line {}", number + 1),
            redop: words[3].to_owned(),
            bandwidths: [6, 10].into_iter().filter_map(bandwidths).collect(),
        });
        let figure = |at: usize| words.get(at).and_then(|word| word.parse::<f64>().ok());
        let (out, inside) = ((figure(5), figure(8)), (figure(9), figure(12)));
        let time = choose(collective, out, inside);
        let bytes = words[0].parse::<u64>().unwrap_or(0);
        match (time, words.len()) {
            (Some((us, errors)), 9 | 13..) => {
                check_wrong(&mut readings, bytes, errors);
                readings.push(bytes, Times::average(ms(us)));
            }
            (None, 9 | 13..) => {
                readings.notes.push(format!("line {}: no time for {bytes} bytes", number + 1));
            }
            (_, columns) => readings.notes.push(format!(
                "line {}: {columns} columns; expected 13 as nccl-tests prints them",
                number + 1
            )),
        }
    }
    runs.push(ranks);
    runs.retain(|&ranks| ranks > 0);
    readings.workers = runs.first().copied();
    match runs.iter().find(|&&ranks| Some(ranks) != readings.workers) {
        Some(other) => Err(format!(
            "runs of {} and of {other} workers in one file; give a file of each",
            runs[0]
        )),
        None => Ok(readings),
    }
}

/// What a row says of its collective without naming it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Where the row stands.
    place: String,
    /// The operation that it adds up with, or `none`.
    redop: String,
    /// Bandwidth and bus bandwidth of each way, as printed.
    bandwidths: Vec<(String, String)>,
}

/// Whether the rows can be of `collective`: their operation, and, where the file does not name its
/// program, their bus bandwidth over bandwidth, which is a number of the collective's.
///
/// # Errors
/// One line that names the row that contradicts.
pub fn check(readings: &Readings, collective: Collective) -> Result<(), String> {
    let name = collective.name();
    for Claim { place, redop, bandwidths } in &readings.claims {
        let wrong = |why: String| Err(format!("{place} is not of {name}: {why}"));
        match (collective, redop == "none") {
            (Collective::AllReduce | Collective::ReduceScatter, true) => {
                return wrong(format!("its redop is none, and {name} adds up"));
            }
            (Collective::AllGather | Collective::AllToAll, false) => {
                return wrong(format!("its redop is {redop}, and {name} adds nothing up"));
            }
            // sendrecv_perf prints `sum`, which it does not do.
            _ => {}
        }
        let (None, Some(workers)) = (readings.collective, readings.workers) else { continue };
        let factor = collective.bus_factor(workers);
        for (own, bus) in bandwidths {
            let (Some(own_is), Some(bus_is)) = (bounds(own), bounds(bus)) else { continue };
            // 1 % more than rounding explains.
            if bus_is.0 > 1.01 * factor * own_is.1 || bus_is.1 < 0.99 * factor * own_is.0 {
                return wrong(format!(
                    "its busbw {bus} is not {factor:.3} times its algbw {own}, as {workers} workers have it"
                ));
            }
        }
    }
    Ok(())
}

/// The numbers that are printed as `word`.
fn bounds(word: &str) -> Option<(f64, f64)> {
    let value: f64 = word.parse().ok().filter(|value: &f64| value.is_finite())?;
    let (digits, exponent) = word.split_once('e').unwrap_or((word, "0"));
    let decimals = digits.split_once('.').map_or(0, |(_, decimals)| decimals.len() as i32);
    let half = 0.5 * 10_f64.powi(exponent.parse::<i32>().ok()?.checked_sub(decimals)?);
    Some(((value - half).max(0.0), value + half))
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
        let bandwidths = |name: &str| -> Option<(String, String)> {
            let figure = |key: &str| row.get(name)?.get(key).and_then(number);
            Some((figure("alg_bw")?.to_string(), figure("bus_bw")?.to_string()))
        };
        if let Some(redop) = row.get("redop").and_then(Value::as_str) {
            readings.claims.push(Claim {
                place: format!("results[{i}]"),
                redop: redop.trim().to_owned(),
                bandwidths: ["out_of_place", "in_place"]
                    .into_iter()
                    .filter_map(bandwidths)
                    .collect(),
            });
        }
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
