//! The stream of neuron-monitor (a JSON object per line): its latencies with and without the host.
//! `total_latency` is that of a whole execution, `device_latency` the device's part of it, both in
//! seconds and both null while nothing ran. Source: Neuron documentation,
//! tools/neuron-sys-tools/neuron-monitor-user-guide.rst, `execution_stats`.

use crate::dataset::cpu_file::OverheadRow;
use serde_json::Value;
use std::io::{BufRead, Read};

/// The longest record: thousands of times what 16 devices of 8 cores print.
const LONGEST_LINE: u64 = 64 << 20;

/// Medians of each period in which something ran, as steps of `batch_size`; every runtime on the
/// node counts.
///
/// # Errors
/// One line that names the line and field at fault.
pub fn read(mut text: impl BufRead, batch_size: u32) -> Result<OverheadRow, String> {
    let mut row = OverheadRow { batch_size, ..OverheadRow::default() };
    let mut line = Vec::new();
    // The stream never ends by itself: its last line may be half a record.
    let mut half = None;
    for at in 1.. {
        line.clear();
        let in_line = |what: String| format!("line {at}: {what}");
        (&mut text)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)
            .map_err(|e| in_line(e.to_string()))?;
        if line.is_empty() {
            break;
        }
        if line.len() as u64 == LONGEST_LINE {
            return Err(in_line("longer than 64 MiB; expected a JSON object a line".into()));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        if let Some(fault) = half {
            return Err(fault);
        }
        let record: Value = match serde_json::from_slice(&line) {
            Ok(record) => record,
            Err(e) => {
                let fault = in_line(format!("not JSON: {e}"));
                if !e.is_eof() {
                    return Err(fault);
                }
                half = Some(fault);
                continue;
            }
        };
        for runtime in record["neuron_runtime_data"].as_array().map_or(&[][..], Vec::as_slice) {
            let stats = match runtime.get("report") {
                Some(report) => &report["execution_stats"],
                None => &runtime["execution_stats"],
            };
            let median = |name: &str| -> Result<Option<f64>, String> {
                match &stats["latency_stats"][name]["p50"] {
                    Value::Null => Ok(None),
                    value => value
                        .as_f64()
                        .filter(|s| s.is_finite() && *s >= 0.0)
                        .map(|s| Some(s * 1e3))
                        .ok_or_else(|| in_line(format!("{name}.p50 is {value}, expected seconds"))),
                }
            };
            if let (Some(total), Some(device)) =
                (median("total_latency")?, median("device_latency")?)
            {
                row.device_ms.push(device);
                row.gap_ms.push((total - device).max(0.0));
            }
        }
    }
    match row.gap_ms.is_empty() {
        true => Err("no period with latencies of executions; run the model while neuron-monitor watches, with \
                     `execution_stats` among its metrics"
            .into()),
        false => Ok(row),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(total: &str, device: &str) -> String {
        format!(
            r#"{{"neuron_runtime_data":[{{"pid":7,"report":{{"execution_stats":{{"period":1.03,"execution_summary":{{"completed":123}},"latency_stats":{{"total_latency":{total},"device_latency":{device}}},"error":""}}}}}}],"system_data":{{}}}}"#
        )
    }

    #[test]
    fn the_host_is_what_the_device_is_not_and_empty_periods_do_not_count() {
        let text = [
            record("null", "null"),
            record(r#"{"p0":0.01,"p50":0.0125,"p99":0.1}"#, r#"{"p50":0.01}"#),
            "{\"neuron_runtime_data\":[]}".into(),
            record(r#"{"p50":0.013}"#, r#"{"p50":0.0105}"#),
            "{\"neuron_runt".into(),
        ];
        let row = read(text.join("\n").as_bytes(), 4).unwrap();
        assert_eq!((row.batch_size, &row.device_ms), (4, &vec![10.0, 10.5]));
        assert!(row.gap_ms.iter().all(|ms| (ms - 2.5).abs() < 1e-9), "{:?}", row.gap_ms);
    }

    #[test]
    fn faults_name_line_and_field() {
        let bad = record(r#"{"p50":"x"}"#, r#"{"p50":1}"#);
        for (text, words) in [
            (String::new(), "no period"),
            (record("null", "null"), "no period"),
            ("{\"a\":1}\nnonsense".into(), "line 2: not JSON"),
            ("{\n{}".into(), "line 1: not JSON"),
            (bad, "line 1: total_latency.p50 is \"x\""),
        ] {
            let message = read(text.as_bytes(), 1).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }
}
