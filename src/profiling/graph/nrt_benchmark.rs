//! Device time of a NEFF by the runtime itself, without a profiler: nrtpy's benchmark, timed by
//! device-side events. Source: AWS Neuron documentation, neuron-runtime/nrtpy/model.rst (2026-07).

use crate::profiling::tool;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What runs in a process of its own: a process has one runtime.
const PROGRAM: &str = include_str!("nrt_benchmark.py");

/// Runs before those that count.
const WARM_UP: u32 = 2;

/// Where nrtpy may be.
#[derive(Clone, Copy, Debug)]
pub struct Nrtpy<'a> {
    /// The Python interpreter that may have it.
    pub python: &'a Path,
    /// As in [`crate::profiling::backend::torch::TorchConfig::lnc`].
    pub lnc: Option<u32>,
    /// Timed runs.
    pub runs: u32,
    /// How long all of it may take.
    pub deadline: Duration,
}

impl Nrtpy<'_> {
    /// Milliseconds of each run of `neff` on the device.
    ///
    /// # Errors
    /// One line: nrtpy is not there, or what it said.
    pub fn milliseconds(&self, neff: &Path) -> Result<Vec<f64>, String> {
        let mut command = Command::new(self.python);
        command.arg("-c").arg(PROGRAM).arg(neff);
        command.args([WARM_UP.to_string(), self.runs.to_string()]);
        if let Some(lnc) = self.lnc {
            tool::set_logical_cores(&mut command, lnc);
        }
        let output = tool::run(command, self.deadline).map_err(|e| format!("nrtpy: {e}"))?;
        let text = output.success().map_err(|e| format!("nrtpy: {e}"))?;
        answer(&text).map_err(|e| format!("nrtpy: {e}"))
    }
}

/// The times in what the program printed: its last line, whatever the runtime printed before.
pub(crate) fn answer(text: &str) -> Result<Vec<f64>, String> {
    let line = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let value: Value = serde_json::from_str(line).map_err(|_| "no answer".to_owned())?;
    if let Some(error) = value["error"].as_str() {
        return Err(error.lines().next().unwrap_or_default().to_owned());
    }
    let ms: Option<Vec<f64>> = value["ms"]
        .as_array()
        .map(|list| list.iter().filter_map(Value::as_f64).filter(|ms| *ms > 0.0).collect());
    ms.filter(|ms| !ms.is_empty()).ok_or_else(|| "no run was timed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_and_what_is_no_time_is_none() {
        assert_eq!(answer("log\n{\"ms\": [1.5, 2]}\n\n"), Ok(vec![1.5, 2.0]));
        assert_eq!(answer("{\"error\": \"NrtError: busy\\nmore\"}"), Err("NrtError: busy".into()));
        for none in ["", "{}", "[]", "{\"ms\": []}", "{\"ms\": [0, \"x\", -1]}", "{\"ms\": 3}"] {
            assert!(answer(none).is_err(), "{none}");
        }
    }
}
