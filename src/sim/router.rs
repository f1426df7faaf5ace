//! Routers: which replica a new request goes to.

use crate::ids::ReplicaId;
use crate::rng::{self, Rng};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};

/// How requests are spread over replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterConfig {
    /// Each in turn.
    RoundRobin,
    /// Any, with equal chance.
    Random,
    /// The one with the fewest requests that are not finished, running ones included.
    #[default]
    LeastOutstanding,
    /// The one with the fewest requests that wait for admission: Vidur's `lor`, which does not see
    /// running requests and fills replica 0 first.
    LeastWaiting,
    /// Of two drawn at random, the one with fewer outstanding requests.
    PowerOfTwoChoices,
    /// The one whose requests have the fewest KV blocks, those included that waiting ones will take.
    LeastKv,
}

/// What a router may know of a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Requests that arrived and are not finished.
    pub outstanding: u32,
    /// Of these, the ones that wait for admission.
    pub waiting: u32,
    /// KV blocks in use, and those that waiting requests will take.
    pub kv_used: u32,
}

/// Picks a replica for one request after the other. The engine tells it of every change of load.
pub(super) trait Router {
    /// Where the next request goes.
    fn route(&mut self) -> ReplicaId;

    /// `replica` now carries `load`.
    fn update(&mut self, replica: ReplicaId, load: Load);
}

impl RouterConfig {
    /// Whether where a request goes depends on the cache in use.
    pub(super) fn sees_kv(self) -> bool {
        self == RouterConfig::LeastKv
    }

    /// Builds the router for `num_replicas` idle replicas.
    pub(super) fn build(self, num_replicas: u32, seed: u64) -> Box<dyn Router> {
        let rng = rng::stream(seed, "router");
        let least = |key: fn(Load) -> u32| Least { key, tree: MinTree::new(num_replicas) };
        match self {
            RouterConfig::RoundRobin => Box::new(RoundRobin { next: 0, num_replicas }),
            RouterConfig::Random => Box::new(Random { rng, num_replicas }),
            RouterConfig::LeastOutstanding => Box::new(least(|load| load.outstanding)),
            RouterConfig::LeastWaiting => Box::new(least(|load| load.waiting)),
            RouterConfig::LeastKv => Box::new(least(|load| load.kv_used)),
            RouterConfig::PowerOfTwoChoices => {
                Box::new(TwoChoices { rng, outstanding: vec![0; num_replicas as usize] })
            }
        }
    }
}

struct RoundRobin {
    next: u32,
    num_replicas: u32,
}

impl Router for RoundRobin {
    fn route(&mut self) -> ReplicaId {
        let chosen = self.next;
        self.next = (chosen + 1) % self.num_replicas;
        ReplicaId(chosen)
    }

    fn update(&mut self, _: ReplicaId, _: Load) {}
}

struct Random {
    rng: Rng,
    num_replicas: u32,
}

impl Router for Random {
    fn route(&mut self) -> ReplicaId {
        ReplicaId(self.rng.random_range(0..self.num_replicas))
    }

    fn update(&mut self, _: ReplicaId, _: Load) {}
}

struct TwoChoices {
    rng: Rng,
    outstanding: Vec<u32>,
}

impl Router for TwoChoices {
    fn route(&mut self) -> ReplicaId {
        let n = self.outstanding.len();
        let (a, b) = (self.rng.random_range(0..n), self.rng.random_range(0..n));
        let chosen = if self.outstanding[b] < self.outstanding[a] { b } else { a };
        ReplicaId(chosen as u32)
    }

    fn update(&mut self, replica: ReplicaId, load: Load) {
        self.outstanding[replica.index()] = load.outstanding;
    }
}

struct Least {
    key: fn(Load) -> u32,
    tree: MinTree,
}

impl Router for Least {
    fn route(&mut self) -> ReplicaId {
        ReplicaId(self.tree.smallest())
    }

    fn update(&mut self, replica: ReplicaId, load: Load) {
        self.tree.set(replica.0, (self.key)(load));
    }
}

/// Keys by index, and the index of the smallest; the lowest index wins a tie. A tournament tree, so
/// that a thousand replicas cost ten comparisons per change and not a scan per request.
struct MinTree {
    leaves: usize,
    /// Node `i` holds the smaller of nodes `2i` and `2i + 1`; leaves start at `leaves`.
    nodes: Vec<(u32, u32)>,
}

impl MinTree {
    fn new(n: u32) -> Self {
        let leaves = (n as usize).next_power_of_two();
        let mut tree = MinTree { leaves, nodes: vec![(u32::MAX, u32::MAX); 2 * leaves] };
        for i in 0..n {
            tree.set(i, 0);
        }
        tree
    }

    fn set(&mut self, index: u32, key: u32) {
        let mut node = self.leaves + index as usize;
        if self.nodes[node] == (key, index) {
            return;
        }
        self.nodes[node] = (key, index);
        while node > 1 {
            node /= 2;
            self.nodes[node] = self.nodes[2 * node].min(self.nodes[2 * node + 1]);
        }
    }

    fn smallest(&self) -> u32 {
        self.nodes[1].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn waiting(n: u32) -> Load {
        Load { waiting: n, ..Load::default() }
    }

    #[test]
    fn round_robin_goes_round() {
        let mut r = RouterConfig::RoundRobin.build(3, 0);
        let order: Vec<u32> = (0..5).map(|_| r.route().0).collect();
        assert_eq!(order, [0, 1, 2, 0, 1]);
    }

    #[test]
    fn least_outstanding_sees_running_requests_and_least_waiting_does_not() {
        let busy = Load { outstanding: 5, waiting: 0, kv_used: 9 };
        let mut honest = RouterConfig::LeastOutstanding.build(2, 0);
        honest.update(ReplicaId(0), busy);
        assert_eq!(honest.route(), ReplicaId(1));
        let mut vidurs = RouterConfig::LeastWaiting.build(2, 0);
        vidurs.update(ReplicaId(0), busy);
        assert_eq!(vidurs.route(), ReplicaId(0));
    }

    #[test]
    fn one_replica_takes_everything() {
        for config in [
            RouterConfig::RoundRobin,
            RouterConfig::Random,
            RouterConfig::LeastOutstanding,
            RouterConfig::LeastWaiting,
            RouterConfig::PowerOfTwoChoices,
            RouterConfig::LeastKv,
        ] {
            assert_eq!(config.build(1, 7).route(), ReplicaId(0));
        }
    }

    proptest! {
        #[test]
        fn the_tournament_agrees_with_a_scan(
            n in 1u32..40,
            changes in prop::collection::vec((0u32..40, 0u32..6), 0..200),
        ) {
            let mut router = RouterConfig::LeastWaiting.build(n, 0);
            let mut keys = vec![0; n as usize];
            for (index, key) in changes {
                let index = index % n;
                keys[index as usize] = key;
                router.update(ReplicaId(index), waiting(key));
                let scan = (0..n).min_by_key(|&i| keys[i as usize]).unwrap();
                prop_assert_eq!(router.route().0, scan);
            }
        }
    }
}
