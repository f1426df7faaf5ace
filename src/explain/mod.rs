//! Why a run is as fast as it is: where each millisecond of its latencies went, what its devices are
//! short of, and which one change would help most.

mod changes;
mod ledger;
mod parts;
mod resource;

pub use changes::{Change, Outcome, Tried, try_changes};
pub use ledger::{Account, Ledger};
pub use parts::{Part, Parts};
pub use resource::{Resource, Wear};

use crate::metrics::{RecordOptions, Recorder, Summary};
use crate::run::Run;
use crate::sim::{self, Observer, SimError};
use serde::Serialize;

/// Where the time of a latency goes, on average over requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Breakdown {
    /// Requests that it is the mean of.
    pub requests: usize,
    /// The mean latency, milliseconds: the sum of the parts.
    pub total_ms: f64,
    /// Milliseconds of each part, in the order of [`Part::ALL`].
    pub parts_ms: Vec<(Part, f64)>,
}

/// Where the time of a run goes.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Arrival to first token.
    pub ttft: Breakdown,
    /// The same of the slowest tenth of the requests.
    pub ttft_slowest_tenth: Breakdown,
    /// Per token after the first.
    pub tpot: Breakdown,
    /// Arrival to last token.
    pub e2e: Breakdown,
    /// The same of the slowest tenth of the requests.
    pub e2e_slowest_tenth: Breakdown,
    /// Shares of the time in which devices were busy by what bounds the operator that runs.
    pub resources: Vec<(Resource, f64)>,
    /// In one word and in one sentence.
    pub binding: Binding,
    /// The figures of the run.
    #[serde(skip)]
    pub summary: Summary,
}

/// What holds a run back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Binding {
    /// The resource.
    pub resource: &'static str,
    /// Why we say so.
    pub because: String,
}

/// Simulates `run` once more and books every nanosecond of every request; tells a recorder that
/// keeps what `options` say, and `observer`, the same facts.
///
/// # Errors
/// When the workload cannot be served by this configuration.
pub fn explain<O: Observer>(
    run: &Run,
    options: RecordOptions,
    observer: O,
) -> Result<(Explanation, Recorder, O), SimError> {
    let recorder = Recorder::with(run.sim.num_replicas, options);
    let wear = Wear::new(&*run.cost, &run.model, &run.device, run.parallelism(), run.dtype());
    let mut observers = ((recorder, observer), (Ledger::new(&*run.cost), wear));
    let outcome = sim::run(&run.sim, &*run.cost, &run.workload, &mut observers)?;
    let ((recorder, observer), (ledger, wear)) = observers;
    let summary = Summary::of(&recorder, run.cost.num_stages(), outcome.end);
    let accounts: Vec<&Account> = ledger.done().collect();
    let to_first = |a: &Account| a.to_first.unwrap_or_default();
    let resources = wear.shares();
    let binding = binding(&summary, &resources);
    let explanation = Explanation {
        ttft: mean(&accounts, to_first),
        ttft_slowest_tenth: mean(&slowest_tenth(&accounts, to_first), to_first),
        tpot: per_token(&accounts),
        e2e: mean(&accounts, |a| a.all),
        e2e_slowest_tenth: mean(&slowest_tenth(&accounts, |a| a.all), |a| a.all),
        resources,
        binding,
        summary,
    };
    Ok((explanation, recorder, observer))
}

fn slowest_tenth<'a>(accounts: &[&'a Account], of: impl Fn(&Account) -> Parts) -> Vec<&'a Account> {
    let mut sorted = accounts.to_vec();
    // Stable, so that requests that took equally long keep their order.
    sorted.sort_by_key(|a| std::cmp::Reverse(of(a).total()));
    sorted.truncate(accounts.len().div_ceil(10));
    sorted
}

fn breakdown(requests: usize, ms_of: impl Fn(Part) -> f64) -> Breakdown {
    let parts_ms: Vec<(Part, f64)> = Part::ALL.into_iter().map(|p| (p, ms_of(p))).collect();
    let total_ms = parts_ms.iter().map(|p| p.1).sum();
    Breakdown { requests, total_ms, parts_ms }
}

fn mean(accounts: &[&Account], of: impl Fn(&Account) -> Parts) -> Breakdown {
    let mut sum = [0_u128; Part::ALL.len()];
    for account in accounts {
        let parts = of(account);
        for part in Part::ALL {
            sum[part as usize] += u128::from(parts[part]);
        }
    }
    let n = accounts.len().max(1) as f64;
    breakdown(accounts.len(), |part| sum[part as usize] as f64 / n * 1e-6)
}

/// As TPOT is averaged: over requests, each over its tokens after the first.
fn per_token(accounts: &[&Account]) -> Breakdown {
    let several: Vec<&&Account> = accounts.iter().filter(|a| a.tokens > 1).collect();
    let n = several.len().max(1) as f64;
    breakdown(several.len(), |part| {
        let of = |a: &&&Account| a.after_first()[part] as f64 / f64::from(a.tokens - 1);
        several.iter().map(of).sum::<f64>() / n * 1e-6
    })
}

/// Names what holds the run back.
fn binding(summary: &Summary, resources: &[(Resource, f64)]) -> Binding {
    let kv = &summary.kv_cache;
    let busy = summary.busy_percent;
    if summary.preemptions > 0 || kv.peak_percent >= 99.0 {
        return Binding {
            resource: "KV cache",
            because: format!(
                "it was {:.0} % full at its peak, with {} preemptions",
                kv.peak_percent, summary.preemptions
            ),
        };
    }
    if busy < 60.0 {
        return Binding {
            resource: "the load",
            because: format!(
                "devices are busy {busy:.0} % of the time; latency is mostly that of single steps"
            ),
        };
    }
    let (resource, share) = resources.first().copied().unwrap_or((Resource::Unknown, 0.0));
    let what = match resource {
        Resource::Neither => "graphs that take more than twice as long as both allow",
        _ => "operators that it bounds",
    };
    Binding {
        resource: resource.name(),
        because: format!(
            "devices are busy {busy:.0} % of the time, {:.0} % of that in {what}",
            100.0 * share
        ),
    }
}
