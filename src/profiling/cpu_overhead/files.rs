//! Files that others recorded of an engine's steps; which kind it is, is told by its contents.

use super::trace::{self, Steps};
use super::{iteration_log, neuron_monitor};
use flate2::read::MultiGzDecoder;
use std::io::{BufRead, BufReader, Read};

/// Bytes at the beginning by which kinds are told apart.
const GLANCE: usize = 1 << 16;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Chrome trace of torch's profiler.
    Trace,
    /// The stream of neuron-monitor.
    NeuronMonitor,
}

impl Kind {
    /// For manifests: rows of one degree come from one kind.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Trace => "traces of torch's profiler",
            Kind::NeuronMonitor => "records of neuron-monitor",
        }
    }
}

/// Reads a file, compressed by gzip or not. `batch_size` is that of files that do not tell.
///
/// # Errors
/// One line: what is wrong with it, or what it is instead.
pub fn read(file: impl Read, batch_size: Option<u32>) -> Result<(Kind, Steps), String> {
    let mut file = BufReader::with_capacity(GLANCE, file);
    let packed = file.fill_buf().map_err(|e| e.to_string())?.starts_with(&[0x1f, 0x8b]);
    match packed {
        true => read_plain(BufReader::with_capacity(GLANCE, MultiGzDecoder::new(file)), batch_size),
        false => read_plain(file, batch_size),
    }
}

fn read_plain(mut text: impl BufRead, batch_size: Option<u32>) -> Result<(Kind, Steps), String> {
    let mark = "\u{feff}".as_bytes();
    if text.fill_buf().map_err(|e| e.to_string())?.starts_with(mark) {
        text.consume(mark.len());
    }
    let start = String::from_utf8_lossy(text.fill_buf().map_err(|e| e.to_string())?).into_owned();
    let first = start.trim_start().chars().next();
    if matches!(first, Some('{')) && start.contains("\"neuron_runtime_data\"") {
        let batch = batch_size.ok_or(
            "neuron-monitor does not tell how many requests ran together; give it with --batch-sizes N",
        )?;
        let row = neuron_monitor::read(text, batch)?;
        return Ok((Kind::NeuronMonitor, Steps { rows: vec![row], notes: Vec::new() }));
    }
    if matches!(first, Some('{' | '[')) {
        let steps = trace::read(text).and_then(|kept| trace::steps(kept, batch_size))?;
        return Ok((Kind::Trace, steps));
    }
    if !iteration_log::parse(&start).is_empty() {
        return Err("this is vLLM's log of iterations, which tells the device's part of a step only; drive the engine \
                    while it writes, with --engine-log and --endpoint"
            .into());
    }
    Err("expected a trace of torch's profiler (JSON, also gzip) or the stream of neuron-monitor"
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const TRACE: &str = r#"{"traceEvents":[
        {"ph":"X","cat":"user_annotation","name":"execute_new_0_cached_2","pid":1,"tid":1,"ts":0,"dur":10},
        {"ph":"X","cat":"kernel","name":"k","pid":0,"tid":7,"ts":10,"dur":60},
        {"ph":"X","cat":"user_annotation","name":"execute_new_0_cached_2","pid":1,"tid":1,"ts":100,"dur":10}]}"#;

    #[test]
    fn kinds_are_told_by_their_contents_and_compression_by_its_mark() {
        let (kind, steps) = read(TRACE.as_bytes(), None).unwrap();
        assert_eq!((kind, &steps.rows[0].gap_ms), (Kind::Trace, &vec![0.04]));
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(TRACE.as_bytes()).unwrap();
        let packed = packed.finish().unwrap();
        assert_eq!(read(packed.as_slice(), None).unwrap().1, steps);
        assert!(read(&packed[..packed.len() / 2], None).is_err());
        let monitor = r#"{"neuron_runtime_data":[{"report":{"execution_stats":{"latency_stats":{"total_latency":{"p50":0.002},"device_latency":{"p50":0.0015}}}}}]}"#;
        let (kind, steps) = read(monitor.as_bytes(), Some(8)).unwrap();
        assert_eq!((kind, steps.rows[0].batch_size), (Kind::NeuronMonitor, 8));
        assert!(read(monitor.as_bytes(), None).unwrap_err().contains("--batch-sizes N"));
        // A byte-order mark, as some editors leave it, is no part of the text.
        assert!(read(format!("\u{feff}{TRACE}").as_bytes(), None).is_ok());
        assert!(read(format!("\u{feff}{monitor}").as_bytes(), Some(8)).is_ok());
        let log = "INFO Iteration(3): 0 context requests, 0 context tokens, 8 generation requests, 8 generation tokens, iteration elapsed time: 12.34 ms\n";
        assert!(read(log.as_bytes(), None).unwrap_err().contains("--engine-log"));
        for text in ["", "hello", "\u{feff}"] {
            assert!(
                read(text.as_bytes(), None).unwrap_err().contains("expected a trace"),
                "{text}"
            );
        }
    }
}
