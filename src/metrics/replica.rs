//! How much of each replica is used: its KV cache and its stages.

use super::series::Series;
use crate::ids::StageId;
use crate::units::{SimDuration, SimTime};

/// The use of one replica.
#[derive(Clone, Debug, Default)]
pub struct ReplicaUse {
    /// Requests routed to it.
    pub requests: u64,
    /// Batches that it formed.
    pub batches: u64,
    /// Its KV cache.
    pub kv: KvTrack,
    /// Its stages that have run something, from stage 0.
    pub stages: Vec<StageUse>,
}

/// The use of one pipeline stage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageUse {
    /// Time in which it ran a batch.
    pub busy: SimDuration,
    /// Arithmetic on each of its devices, operations.
    pub flops: f64,
    /// The same of its fastest batch, per second.
    pub most_flops_per_s: f64,
}

/// KV blocks in use over time, from time zero.
#[derive(Clone, Debug, Default)]
pub struct KvTrack {
    used: u32,
    since: SimTime,
    /// Blocks times nanoseconds.
    area: u128,
    min: Option<u32>,
    max: u32,
    /// The course of it, where asked for.
    pub series: Option<Series>,
}

impl ReplicaUse {
    /// `stage` runs a batch of `flops` operations per device for `duration`.
    pub fn stage_ran(&mut self, stage: StageId, duration: SimDuration, flops: f64) {
        if stage.index() >= self.stages.len() {
            self.stages.resize(stage.index() + 1, StageUse::default());
        }
        let stage = &mut self.stages[stage.index()];
        stage.busy += duration;
        stage.flops += flops;
        let seconds = duration.as_seconds();
        if seconds > 0.0 {
            stage.most_flops_per_s = stage.most_flops_per_s.max(flops / seconds);
        }
    }
}

impl KvTrack {
    /// From `now` on `used` blocks are in use.
    pub fn set(&mut self, now: SimTime, used: u32) {
        let held = now.since(self.since).as_ns();
        if held > 0 {
            self.area += u128::from(self.used) * u128::from(held);
            self.min = Some(self.min.map_or(self.used, |m| m.min(self.used)));
            if let Some(series) = &mut self.series {
                series.add(self.since.as_ns(), now.as_ns(), self.used);
            }
        }
        self.max = self.max.max(used);
        (self.used, self.since) = (used, now);
    }

    /// Ends the record at `now`.
    pub fn end(&mut self, now: SimTime) {
        self.set(now, self.used);
    }

    /// Blocks times nanoseconds so far.
    pub fn area(&self) -> u128 {
        self.area
    }

    /// Fewest blocks in use for any length of time.
    pub fn min(&self) -> u32 {
        self.min.unwrap_or(0)
    }

    /// Most blocks in use.
    pub fn max(&self) -> u32 {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_counts_the_time_before_the_first_change() {
        let mut kv = KvTrack::default();
        kv.set(SimTime::from_ns(10), 4);
        kv.set(SimTime::from_ns(10), 6);
        kv.set(SimTime::from_ns(30), 1);
        kv.end(SimTime::from_ns(40));
        // 0 for 10 ns, 6 for 20 ns, 1 for 10 ns.
        assert_eq!(kv.area(), 130);
        assert_eq!((kv.min(), kv.max()), (0, 6));
    }

    #[test]
    fn what_lasts_no_time_is_no_minimum() {
        let mut kv = KvTrack::default();
        kv.set(SimTime::ZERO, 5);
        kv.set(SimTime::from_ns(7), 3);
        kv.end(SimTime::from_ns(9));
        assert_eq!((kv.area(), kv.min(), kv.max()), (41, 3, 5));
        assert_eq!(KvTrack::default().min(), 0);
    }
}
