//! What a profiler recorded of an engine's steps, as rows.

use super::{Args, print_parts, this_run, write};
use crate::cli::Failure;
use crate::dataset::cpu_file::OverheadRow;
use crate::dataset::manifest::Hashing;
use crate::profiling::cpu_overhead::files::{self, Kind};
use std::collections::BTreeMap;

/// How host and device are told apart.
const METHOD: &str =
    "a step's time in which no kernel or copy ran on the device, by what the host did meanwhile";
const MONITOR_METHOD: &str =
    "median latency of executions less the device's part of it, period by period";

/// Reads files and adds what they hold.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.network_device.is_none() {
        return Err(Failure::user(
            "--from needs to know where it was recorded; give --network-device, such as h100_dgx",
        ));
    }
    let batch_size = match args.batch_sizes.as_slice() {
        [] => None,
        [n] => Some(*n),
        _ => {
            return Err(Failure::user(
                "--from takes one --batch-sizes; leave it out for all that a trace tells of",
            ));
        }
    };
    let mut rows: BTreeMap<u32, OverheadRow> = BTreeMap::new();
    let (mut kind, mut sums, mut notes) = (None::<Kind>, Vec::new(), Vec::new());
    for path in &args.from {
        let in_file = |message: String| Failure::user(format!("{}: {message}", path.display()));
        let file =
            std::fs::File::open(path).map_err(|e| in_file(format!("cannot be read: {e}")))?;
        let mut file = Hashing::new(file);
        let (is, steps) = files::read(&mut file, batch_size).map_err(in_file)?;
        let sha256 = file.finish().map_err(|e| in_file(format!("cannot be read: {e}")))?;
        if let Some(other) = kind.filter(|&other| other != is) {
            return Err(in_file(format!(
                "holds {}, the files before it {}; read them one kind at a time",
                is.name(),
                other.name()
            )));
        }
        kind = Some(is);
        for row in steps.rows {
            add(rows.entry(row.batch_size).or_default(), row);
        }
        for note in steps.notes {
            eprintln!("note: {}: {note}", path.display());
            notes.push(format!("{}: {note}", path.display()));
        }
        sums.push(format!("{} {sha256}", path.display()));
    }
    let Some(kind) = kind else { return Err(Failure::user("--from: no file")) };
    let rows: Vec<OverheadRow> = rows.into_values().collect();
    let mut file = args.open(kind.name())?;
    for row in &rows {
        file.put(row).map_err(Failure::user)?;
    }
    print_parts(&rows)?;
    let method = match kind {
        Kind::Trace => METHOD,
        Kind::NeuronMonitor => MONITOR_METHOD,
    };
    let mut run = this_run(method, Vec::new(), notes);
    run.files = sums;
    write(file, run)
}

/// Steps of the same batch size in several files are pooled.
fn add(row: &mut OverheadRow, more: OverheadRow) {
    row.batch_size = more.batch_size;
    row.schedule_ms.extend(more.schedule_ms);
    row.sampler_ms.extend(more.sampler_ms);
    row.prepare_inputs_ms.extend(more.prepare_inputs_ms);
    row.process_outputs_ms.extend(more.process_outputs_ms);
    row.device_ms.extend(more.device_ms);
    row.gap_ms.extend(more.gap_ms);
}
