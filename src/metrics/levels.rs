//! The course of a run: requests waiting and running, and KV blocks in use, all replicas together.

use super::series::Series;
use crate::ids::{ReplicaId, RequestId};
use crate::sim::{KvBlocks, Observer, Request};
use crate::units::SimTime;

/// What one replica holds.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    waiting: u32,
    blocks: u32,
}

/// An observer that keeps the course of three levels in fixed memory.
#[derive(Debug, Default)]
pub struct Levels {
    replicas: Vec<Held>,
    now: Held,
    in_flight: u32,
    since: SimTime,
    /// Requests that wait for admission.
    pub waiting: Series,
    /// Requests that have been admitted and are not complete.
    pub running: Series,
    /// KV blocks in use.
    pub blocks: Series,
}

impl Levels {
    /// Levels of `num_replicas` replicas.
    pub fn new(num_replicas: u32) -> Self {
        Levels { replicas: vec![Held::default(); num_replicas as usize], ..Levels::default() }
    }

    /// Books what has been since the last change.
    fn advance(&mut self, now: SimTime) {
        let (from, to) = (self.since.as_ns(), now.as_ns());
        if to > from {
            self.waiting.add(from, to, self.now.waiting);
            self.running.add(from, to, self.in_flight.saturating_sub(self.now.waiting));
            self.blocks.add(from, to, self.now.blocks);
            self.since = now;
        }
    }
}

impl Observer for Levels {
    fn arrived(&mut self, now: SimTime, _: RequestId, _: &Request, _: ReplicaId) {
        self.advance(now);
        self.in_flight += 1;
    }

    fn completed(&mut self, now: SimTime, _: RequestId, _: &Request) {
        self.advance(now);
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    fn settled(&mut self, now: SimTime, replica: ReplicaId, kv: &KvBlocks, waiting: usize) {
        self.advance(now);
        let held = Held { waiting: waiting as u32, blocks: kv.used() };
        let before = std::mem::replace(&mut self.replicas[replica.index()], held);
        let moved = |sum: u32, before: u32, after: u32| sum - before + after;
        self.now.waiting = moved(self.now.waiting, before.waiting, held.waiting);
        self.now.blocks = moved(self.now.blocks, before.blocks, held.blocks);
    }

    fn ended(&mut self, now: SimTime) {
        self.advance(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_summed_over_replicas() {
        let ms = |ms: u64| SimTime::from_ns(ms * 1_000_000);
        let request = Request::new(ms(0), 10, 5);
        let kv = KvBlocks::new(10, 16, 0);
        let mut levels = Levels::new(2);
        for (id, replica, at) in [(0, 0, 0), (1, 1, 2), (2, 1, 2)] {
            levels.arrived(ms(at), RequestId(id), &request, ReplicaId(replica));
        }
        levels.settled(ms(2), ReplicaId(1), &kv, 2);
        levels.settled(ms(4), ReplicaId(1), &kv, 0);
        levels.completed(ms(5), RequestId(0), &request);
        levels.ended(ms(6));
        let means = |s: &Series| s.points().map(|p| p.mean).collect::<Vec<_>>();
        assert_eq!(means(&levels.waiting), [0.0, 0.0, 2.0, 2.0, 0.0, 0.0]);
        assert_eq!(means(&levels.running), [1.0, 1.0, 1.0, 1.0, 3.0, 2.0]);
    }
}
