//! The engine's time on the host: what a step takes beyond the device's part of it.
//!
//! A client sees steps from outside: while `n` requests decode together, each gets a token per
//! step, so the time between tokens is the period of a step. The engine's own log of iterations
//! says what the device's part of it was. The difference is the host's: scheduling, preparing
//! inputs, handing out results. It cannot be split from outside and is stored as `host_gap`.

pub mod client;
pub mod drive;
pub mod files;
pub mod iteration_log;
pub mod neuron_monitor;
pub mod offline;
pub mod trace;

use crate::stats;
use iteration_log::Iteration;

/// What is known of the steps at one batch size.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTimes {
    /// Requests that decoded together.
    pub batch_size: u32,
    /// Milliseconds between tokens, over all requests and steps.
    pub period_ms: Vec<f64>,
    /// Milliseconds that the engine logged for each step of this batch, while it was driven.
    pub device_ms: Vec<f64>,
}

/// A step with less than this share of its period in the log was not timed to its end: engines
/// that schedule ahead log the launch only.
const LAUNCH_ONLY: f64 = 0.05;

impl StepTimes {
    /// Host time of each step, in ascending order of the steps' periods: every period less the
    /// median of the device's part, none below 0.
    ///
    /// # Errors
    /// One sentence that says what is missing.
    pub fn host_gaps(&self) -> Result<Vec<f64>, String> {
        let n = self.batch_size;
        let period = stats::median(&self.period_ms).ok_or("no steps were seen")?;
        let device = stats::median(&self.device_ms)
            .ok_or_else(|| format!("the log has no step of {n} generation requests"))?;
        if device < LAUNCH_ONLY * period {
            return Err(format!(
                "the log says {device:.2} ms of a step of {period:.2} ms: the engine logs \
                 launches, not steps; start it without asynchronous scheduling (vLLM: \
                 --no-async-scheduling)"
            ));
        }
        Ok(self.period_ms.iter().map(|period| (period - device).max(0.0)).collect())
    }
}

/// Logged milliseconds of the steps in which exactly `batch_size` requests decoded and none read
/// its prompt.
pub fn decode_steps(log: &[Iteration], batch_size: u32) -> Vec<f64> {
    let steps =
        log.iter().filter(|i| i.context_requests == 0 && i.generation_requests == batch_size);
    steps.map(|i| i.elapsed_ms).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_the_period_less_the_devices_part() {
        let times = |device: f64| StepTimes {
            batch_size: 4,
            period_ms: vec![10.0, 12.0, 11.0],
            device_ms: vec![device],
        };
        assert_eq!(times(8.0).host_gaps(), Ok(vec![2.0, 4.0, 3.0]));
        assert_eq!(times(11.0).host_gaps(), Ok(vec![0.0, 1.0, 0.0]));
        let launches = times(0.03).host_gaps().unwrap_err();
        assert!(launches.contains("--no-async-scheduling"), "{launches}");
        let none = StepTimes { device_ms: Vec::new(), ..times(1.0) };
        assert!(none.host_gaps().unwrap_err().contains("no step of 4 generation requests"));
    }
}
