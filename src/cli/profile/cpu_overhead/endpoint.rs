//! An engine seen from outside: tokens that a client sees, and the engine's own log of iterations.

use super::{Args, this_run, write};
use crate::cli::Failure;
use crate::cli::table::{self, number, render, window_width};
use crate::dataset::cpu_file::{FailedBatch, OverheadFile, OverheadRow};
use crate::profiling::cpu_overhead::client::Endpoint;
use crate::profiling::cpu_overhead::drive::{Drive, periods};
use crate::profiling::cpu_overhead::iteration_log::{self, Iteration};
use crate::profiling::cpu_overhead::{StepTimes, decode_steps};
use crate::stats;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Where vLLM listens unless told otherwise.
const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:8000";

/// Questions that tell what transport takes.
const ROUND_TRIPS: usize = 9;

/// How host and device are told apart.
const METHOD: &str = "period of decoding steps, seen by a streaming client, less the time that the engine logged for them";

/// Drives the engine and reads its log.
pub fn run(args: &Args) -> Result<(), Failure> {
    // A key, where the engine wants one, is no argument: arguments are recorded.
    let key = std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty());
    let address = args.endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT);
    let endpoint = Endpoint::open(address, args.served_model.as_deref(), key, args.timeout)
        .map_err(|e| {
            Failure::user(format!("{e}; give the address of a running engine with --endpoint"))
        })?;
    let mut log = args.engine_log.as_deref().map(LogTail::open).transpose()?;
    let source =
        format!("{} at an endpoint, {} words of prompt", endpoint.model(), args.prompt_tokens);
    // Names and sources are checked before the engine is driven for minutes.
    let mut file = args.open(&source)?;
    let Some(sizes) = args.to_go(&file)? else { return Ok(()) };
    let transport_ms = (0..ROUND_TRIPS)
        .map(|_| endpoint.round_trip_ms())
        .collect::<Result<Vec<f64>, String>>()
        .map_err(Failure::machine)?;
    let mut next =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let mut drive = |batch_size: u32, log: Option<&mut LogTail>| -> Result<_, Failure> {
        let drive = Drive {
            batch_size,
            prompt_words: args.prompt_tokens,
            output_tokens: args.output_tokens,
            first_number: next,
        };
        next += u64::from(batch_size);
        let driven = periods(&endpoint, drive);
        // Read in any case: the next batch's part begins where this one's ends.
        let iterations = log.map_or(Ok(Vec::new()), LogTail::new_iterations)?;
        Ok(driven.map(|driven| (driven, decode_steps(&iterations, batch_size))))
    };
    // Once for nothing: the engine compiles and warms up.
    drive(1, log.as_mut())?.map_err(|e| Failure::machine(format!("{e}; nothing was measured")))?;
    let mut all = Measured::default();
    for &batch_size in &sizes {
        let (driven, device_ms) = match drive(batch_size, log.as_mut())? {
            Ok(driven) => driven,
            Err(reason) => {
                eprintln!("batch {batch_size} failed: {reason}");
                all.failed.push(FailedBatch { batch_size, reason });
                continue;
            }
        };
        let times = StepTimes { batch_size, period_ms: driven.period_ms, device_ms };
        all.add(times, driven.note, &transport_ms, &mut file)?;
    }
    print_periods(&all.seen)?;
    if args.engine_log.is_none() && !all.seen.is_empty() {
        return Err(Failure::user(
            "an endpoint alone does not tell the device's time from the host's: start vLLM with \
             --enable-logging-iteration-details --no-async-scheduling, and give its log with --engine-log; \
             nothing was written",
        ));
    }
    all.write(file)
}

/// What came of all batch sizes, beside the rows.
#[derive(Default)]
struct Measured {
    seen: Vec<StepTimes>,
    /// The engine did not answer.
    failed: Vec<FailedBatch>,
    /// The log does not say what it has to.
    unlogged: Vec<FailedBatch>,
    notes: Vec<String>,
}

impl Measured {
    /// Tells about the steps of one batch size, and makes a row of them.
    fn add(
        &mut self,
        times: StepTimes,
        note: Option<String>,
        transport_ms: &[f64],
        file: &mut OverheadFile,
    ) -> Result<(), Failure> {
        let batch_size = times.batch_size;
        eprintln!(
            "batch {batch_size}: {} steps seen, {} in the log",
            times.period_ms.len() / batch_size as usize,
            times.device_ms.len()
        );
        if let Some(note) = note {
            eprintln!("note: batch {batch_size}: {note}");
            self.notes.push(format!("batch {batch_size}: {note}"));
        }
        match times.host_gaps() {
            Ok(gap_ms) => {
                let row = OverheadRow {
                    batch_size,
                    gap_ms,
                    device_ms: times.device_ms.clone(),
                    transport_ms: transport_ms.to_vec(),
                    ..OverheadRow::default()
                };
                file.put(&row).map_err(Failure::user)?;
            }
            Err(reason) => self.unlogged.push(FailedBatch { batch_size, reason }),
        }
        self.seen.push(times);
        Ok(())
    }

    /// Writes what there is.
    ///
    /// # Errors
    /// When there is nothing: how the engine was started is the user's to mend, what it then does is not.
    fn write(mut self, file: OverheadFile) -> Result<(), Failure> {
        let nothing = |batch: &FailedBatch| {
            format!("batch {}: {}; nothing was written", batch.batch_size, batch.reason)
        };
        match (file.is_empty(), self.unlogged.first(), self.failed.first()) {
            (true, Some(batch), _) => return Err(Failure::user(nothing(batch))),
            (true, None, Some(batch)) => return Err(Failure::machine(nothing(batch))),
            _ => self.failed.append(&mut self.unlogged),
        }
        write(file, this_run(METHOD, self.failed, self.notes))
    }
}

fn print_periods(seen: &[StepTimes]) -> Result<(), Failure> {
    let columns = [
        number("batch"),
        number("steps"),
        number("period ms"),
        number("device ms"),
        number("host gap ms"),
        number("noise"),
    ];
    let shown = |ms: Option<f64>| ms.map_or("-".into(), |ms| format!("{ms:.3}"));
    let cells = |times: &StepTimes| {
        let gaps = times.host_gaps();
        let gap = gaps.as_ref().ok().and_then(|gaps| stats::median(gaps));
        let mean = stats::mean(&times.period_ms).unwrap_or(0.0);
        let noise =
            stats::std_dev(&times.period_ms).map(|std| format!("{:.1} %", 100.0 * std / mean));
        vec![
            times.batch_size.to_string(),
            (times.period_ms.len() / times.batch_size as usize).to_string(),
            shown(stats::median(&times.period_ms)),
            shown(stats::median(&times.device_ms)),
            shown(gap),
            noise.unwrap_or_default(),
        ]
    };
    let cells: Vec<Vec<String>> = seen.iter().map(cells).collect();
    table::print(&render(&columns, &cells, window_width()))
}

/// The part of a growing file that has not been read.
struct LogTail {
    path: PathBuf,
    at: u64,
}

impl LogTail {
    /// From the end of what is there now.
    fn open(path: &Path) -> Result<LogTail, Failure> {
        let at = std::fs::metadata(path)
            .map_err(|e| Failure::user(format!("--engine-log {}: {e}", path.display())))?
            .len();
        Ok(LogTail { path: path.to_owned(), at })
    }

    /// The iterations of the lines that came since; a line that is being written waits.
    fn new_iterations(&mut self) -> Result<Vec<Iteration>, Failure> {
        // The engine logs a step after its tokens went out.
        std::thread::sleep(Duration::from_millis(200));
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = std::fs::File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.at))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|e| Failure::user(format!("{}: {e}", self.path.display())))?;
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
        self.at += whole as u64;
        Ok(iteration_log::parse(&String::from_utf8_lossy(&bytes[..whole])))
    }
}
