//! What is asked of the fleet: when requests arrive and how long they are.

mod arrivals;
mod lengths;
mod prefixes;
mod rate;
mod trace;

pub use arrivals::ArrivalConfig;
pub use lengths::{LengthConfig, LongLengths, TokenRange};
pub use prefixes::Prefixes;
pub use rate::RateTemplate;
pub use trace::{Empty, TooLong, TraceConfig, TraceError, TraceFormat, read_lengths, read_trace};

use crate::rng;
use crate::units::{SimDuration, SimTime};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One request before it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestSpec {
    /// When it arrives.
    pub arrived_at: SimTime,
    /// Tokens of the prompt, at least 1.
    pub prefill_tokens: u32,
    /// Tokens to generate, at least 1.
    pub decode_tokens: u32,
}

/// The requests of one run, in order of arrival.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// In order of arrival; requests that arrive together keep the order of their source.
    pub requests: Vec<RequestSpec>,
    /// Where they come from, for people.
    pub description: String,
    /// What was left out or mended on the way, one line each, for people.
    pub notes: Vec<String>,
    /// Clients that send these requests one after the other, in place of their arrival times.
    pub clients: Option<Clients>,
    /// Which prompts begin alike, for prefix caching; empty where nothing is known.
    pub prefixes: Prefixes,
    /// What stands between a client and the engine's scheduler.
    pub front_end: FrontEnd,
}

/// The server in front of an engine's scheduler: it takes requests in and tokenises them one after
/// the other, and hands each on a while later. Nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrontEnd {
    /// Time that each request occupies it.
    pub per_request: SimDuration,
    /// Time that each token of a prompt occupies it.
    pub per_token: SimDuration,
    /// Time from there to the scheduler, for all requests alike.
    pub latency: SimDuration,
}

impl FrontEnd {
    /// How long a prompt of `tokens` tokens occupies it.
    pub fn service(self, tokens: u32) -> SimDuration {
        self.per_request + SimDuration::from_ns(self.per_token.as_ns() * u64::from(tokens))
    }
}

/// Closed-loop clients, as benchmark tools drive engines: each sends a request, waits for its last
/// token, thinks, and sends the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clients {
    /// How many.
    pub concurrency: u32,
    /// Time between a completion and the next request of the same client.
    pub think_time: SimDuration,
}

/// Where the requests of a run come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum WorkloadConfig {
    /// Drawn from distributions.
    Synthetic(SyntheticConfig),
    /// Replayed from a file of arrivals and lengths.
    Trace(TraceConfig),
}

/// Requests that a synthetic workload may have: all of them are held in memory.
const MOST_REQUESTS: u32 = 100_000_000;

/// Requests drawn from distributions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyntheticConfig {
    /// How many.
    pub num_requests: u32,
    /// When they arrive.
    pub arrivals: ArrivalConfig,
    /// How long they are.
    pub lengths: LengthConfig,
}

/// Why a workload cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// A number in the config makes no workload.
    #[error("workload.{path}: {message}")]
    Config {
        /// The field, below `workload`.
        path: String,
        /// Value and expectation.
        message: String,
    },
    /// A trace file cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl WorkloadConfig {
    /// The files that the workload is read from; they may name environment variables.
    pub fn files_mut(&mut self) -> Vec<&mut PathBuf> {
        match self {
            WorkloadConfig::Trace(trace) => vec![&mut trace.file],
            WorkloadConfig::Synthetic(s) => {
                let arrivals = match &mut s.arrivals {
                    ArrivalConfig::Trace { file, .. } => Some(file),
                    _ => None,
                };
                let lengths = match &mut s.lengths {
                    LengthConfig::Trace { file, .. } => Some(file),
                    _ => None,
                };
                arrivals.into_iter().chain(lengths).collect()
            }
        }
    }

    /// Makes the workload. The same config and seed give the same requests.
    ///
    /// # Errors
    /// A number out of range or a file that is no trace, by name.
    pub fn build(&self, seed: u64) -> Result<Workload, WorkloadError> {
        match self {
            WorkloadConfig::Trace(config) => Ok(read_trace(config)?),
            WorkloadConfig::Synthetic(config) => config.build(seed),
        }
    }
}

impl SyntheticConfig {
    fn build(&self, seed: u64) -> Result<Workload, WorkloadError> {
        if !(1..=MOST_REQUESTS).contains(&self.num_requests) {
            let message =
                format!("{}; expected at least 1 and at most {MOST_REQUESTS}", self.num_requests);
            return Err(WorkloadError::Config { path: "synthetic.num_requests".into(), message });
        }
        let n = self.num_requests as usize;
        let mut notes = Vec::new();
        let arrivals = self.arrivals.draw(n, &mut rng::stream(seed, "arrivals"), &mut notes)?;
        let lengths = self.lengths.draw(n, &mut rng::stream(seed, "lengths"), &mut notes)?;
        let requests = arrivals
            .into_iter()
            .zip(lengths)
            .map(|(arrived_at, (prefill_tokens, decode_tokens))| RequestSpec {
                arrived_at,
                prefill_tokens,
                decode_tokens,
            })
            .collect();
        let description = format!("{n} requests, {}, {}", self.arrivals, self.lengths);
        let clients = self.arrivals.clients(self.num_requests)?;
        Ok(Workload { requests, description, notes, clients, ..Workload::default() })
    }
}
