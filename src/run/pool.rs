//! What the configurations of a search have in common, made once: fitted step times and workloads.

use crate::cost::CostModel;
use crate::predictor::{self, Limits, PredictorConfig, Provenance, System, TableCache};
use crate::workload::{Workload, WorkloadConfig};
use rustc_hash::FxHashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Step times, and where they come from; or why there are none.
type Fitted = Result<(Arc<dyn CostModel>, Provenance), String>;
/// Requests, or why there are none.
type Drawn = Result<Arc<Workload>, String>;
/// One value by name, made by whoever asks first while the others wait.
type Shelf<T> = Mutex<FxHashMap<String, Arc<OnceLock<T>>>>;

/// Shared by the threads of a search. What is asked for twice is made once.
#[derive(Default)]
pub struct Pool {
    costs: Shelf<Fitted>,
    workloads: Shelf<Drawn>,
}

/// The value called `name` on `shelf`, made when nobody asked before.
fn once<T: Clone>(shelf: &Shelf<T>, name: String, make: impl FnOnce() -> T) -> T {
    // Whoever panicked left the map whole.
    let place = {
        let mut map = shelf.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(map.entry(name).or_default())
    };
    place.get_or_init(make).clone()
}

/// Times that are added up by number of tokens are worked out beforehand up to so many: 8192 is what
/// engines run in a step; more is answered too, only slower.
const MOST_TOKENS: u32 = 8192;

/// Limits that neighbouring configurations share: at least these, and powers of two. What is
/// predicted does not depend on them.
fn shared(limits: Limits) -> Limits {
    let up = |n: u32, least: u32, most: u32| {
        n.max(least).checked_next_power_of_two().unwrap_or(most).min(most)
    };
    Limits {
        max_batch_tokens: up(limits.max_batch_tokens, 1024, MOST_TOKENS),
        max_batch_size: up(limits.max_batch_size, 256, MOST_TOKENS),
    }
}

impl Pool {
    /// An empty one.
    pub fn new() -> Pool {
        Pool::default()
    }

    /// As [`predictor::build`], shared by every configuration that differs in batch limits only.
    ///
    /// # Errors
    /// As [`predictor::build`].
    pub(super) fn cost(
        &self,
        config: &PredictorConfig,
        system: &System<'_>,
        limits: Limits,
        cache: &TableCache,
    ) -> Fitted {
        // Forests predict into tables of just this size.
        let limits = match config {
            PredictorConfig::Forest(_) | PredictorConfig::Table(_) => limits,
            _ => shared(limits),
        };
        let of = (config, system.model, system.device, system.network_device, system.parallel);
        let name = serde_json::to_string(&(of, limits)).map_err(|e| e.to_string())?;
        once(&self.costs, format!("{:?} {name}", system.root), || {
            predictor::build(config, system, limits, cache)
                .map(|(cost, provenance)| (Arc::from(cost), provenance))
                .map_err(|e| e.to_string())
        })
    }

    /// As [`WorkloadConfig::build`].
    ///
    /// # Errors
    /// As [`WorkloadConfig::build`].
    pub fn workload(&self, config: &WorkloadConfig, seed: u64) -> Drawn {
        let name = serde_json::to_string(&(config, seed)).map_err(|e| e.to_string())?;
        once(&self.workloads, name, || config.build(seed).map(Arc::new).map_err(|e| e.to_string()))
    }
}
