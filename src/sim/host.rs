//! The engine's own time on the host around a step, as a property of the engine and its version.

use crate::cost::StepCost;
use crate::units::SimDuration;
use serde::{Deserialize, Serialize};

/// What an engine's process does for every step: schedule, prepare inputs, sample, hand tokens out.
/// 0 by default: what a predictor takes from `cpu_overheads.csv` is the same time, measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostTime {
    /// Microseconds of every step in which the device waits, whatever runs ahead.
    pub gap_us: u32,
    /// Microseconds of work for a step; beside the step before where the engine runs ahead.
    pub step_us: u32,
    /// Nanoseconds of such work for each sequence in the batch.
    pub sequence_ns: u32,
}

/// [`HostTime`] of an engine that runs ahead, or does not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Host {
    pub(super) time: HostTime,
    /// The work for a step is done while the device is busy with the one before.
    pub(super) ahead: bool,
}

impl Host {
    /// Adds the host's time to a step of `sequences` sequences.
    pub(super) fn charge(&self, mut cost: StepCost, sequences: usize) -> StepCost {
        let us = |us: u32| SimDuration::from_ns(u64::from(us) * 1000);
        let each = u64::from(self.time.sequence_ns) * sequences as u64;
        let work = us(self.time.step_us) + SimDuration::from_ns(each);
        // `-` stops at zero: work that the device's own time hides costs nothing.
        let waits = if self.ahead { work - cost.duration } else { work };
        let waits = waits + us(self.time.gap_us);
        cost.duration += waits;
        cost.host += waits;
        cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ns(host: Host, duration: u64, sequences: usize) -> (u64, u64) {
        let cost = StepCost { duration: SimDuration::from_ns(duration), ..StepCost::default() };
        let cost = host.charge(cost, sequences);
        (cost.duration.as_ns(), cost.host.as_ns())
    }

    #[test]
    fn work_is_hidden_behind_the_step_before_only_when_running_ahead() {
        let time = HostTime { gap_us: 1, step_us: 10, sequence_ns: 500 };
        let ahead = Host { time, ahead: true };
        assert_eq!(ns(ahead, 50_000, 4), (51_000, 1_000));
        assert_eq!(ns(ahead, 5_000, 4), (13_000, 8_000));
        let after = Host { time, ahead: false };
        assert_eq!(ns(after, 50_000, 4), (63_000, 13_000));
        assert_eq!(ns(Host::default(), 7, 9), (7, 0));
    }
}
