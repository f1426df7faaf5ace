//! How the runs were made: what each benchmark's client does and how its engine is set. Read from
//! `data/validation/silicon.yml`, where every figure states its source.

use super::rows::{Benchmark, Row};
use crate::profiling::import::aiconfigurator::Engine;
use crate::sim::SchedulerConfig;
use crate::spec::model::Dtype;
use crate::units::SimDuration;
use crate::workload::{Clients, FrontEnd};
use crate::yaml;
use serde::{Deserialize, Serialize};

/// The file that is compiled into the program.
pub const BUILT_IN: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/data/validation/silicon.yml"));

/// All setups; the first that fits a row is its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setups {
    /// In order.
    pub setups: Vec<Setup>,
}

/// One way in which runs were made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// For people.
    pub name: String,
    /// Where the figures come from.
    pub sources: Vec<String>,
    /// Which rows it is for.
    pub when: When,
    /// What the client does.
    pub protocol: Protocol,
    /// How the engine is set.
    pub scheduler: SchedulerConfig,
    /// The engine runs as many requests at a time as there are clients (`--max-num-seqs $CONC`).
    #[serde(default)]
    pub seats_for_clients_only: bool,
    /// A step holds the row's prompt, a token for each client and so many tokens more; for `sglang`,
    /// `max_prefill_tokens` does without the clients.
    #[serde(default)]
    pub step_beyond_prompt: Option<u32>,
    /// The protocol is not published: `--calibrate` looks for the prompts per client and the engine's
    /// budget of tokens too.
    #[serde(default)]
    pub calibrate_protocol: bool,
    /// Tokens that a KV block holds.
    pub block_size: u32,
    /// The engine's share of the memory, by its own rule.
    pub memory_utilization: f64,
    /// Format of the KV cache; the model's own when absent.
    #[serde(default)]
    pub kv_cache: Option<Dtype>,
    /// What running engines take beyond what our arithmetic knows.
    #[serde(default)]
    pub beyond: Beyond,
}

/// What a running engine takes beyond the sum of its operators, timed one by one on a cool device, and
/// beyond the memory that its own arithmetic accounts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Beyond {
    /// Time of a step with prompts, per cent of the sum of its operators. Long matrix products heat the
    /// device and lower its clock; prompts run outside CUDA graphs.
    pub prompt_step_percent: u32,
    /// Time of a step of decodes, per cent of the sum of its operators.
    pub decode_step_percent: u32,
    /// Nanoseconds that each all-reduce takes beyond its timing: devices wait for the slowest.
    pub all_reduce_ns: u32,
    /// Megabytes (10⁶) of each device that are not to be had.
    pub reserved_mb: u32,
}

impl Default for Beyond {
    fn default() -> Self {
        Beyond {
            prompt_step_percent: 100,
            decode_step_percent: 100,
            all_reduce_ns: 0,
            reserved_mb: 0,
        }
    }
}

/// Conditions on a row; what is empty holds for all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// Whose protocol.
    pub benchmark: Benchmark,
    /// Engine.
    pub engine: Engine,
    /// GPU systems.
    #[serde(default)]
    pub systems: Vec<String>,
    /// Weight formats, by name.
    #[serde(default)]
    pub weights: Vec<String>,
    /// Prompt and output lengths.
    #[serde(default)]
    pub lengths: Vec<(u32, u32)>,
    /// Tensor parallelism below this.
    #[serde(default)]
    pub tensor_parallel_below: Option<u32>,
}

/// What a benchmark's client does: as many clients as the row's concurrency, all of which send at once,
/// and then again whenever their last request is done.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Requests of each client.
    pub prompts_per_client: u32,
    /// Lengths are uniform between this share of the row's and the row's.
    pub shortest_length: f64,
    /// What the row's figures are, of all requests.
    pub statistic: Statistic,
    /// Microseconds between the last token of a request and the next request of its client.
    pub think_us: u32,
    /// Microseconds that a request occupies the engine's front end.
    pub request_us: u32,
    /// Nanoseconds that each token of its prompt does.
    pub token_ns: u32,
    /// Microseconds between client and scheduler otherwise, both ways.
    pub latency_us: u32,
}

/// One figure of many requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// Arithmetic mean.
    Mean,
    /// Median.
    Median,
}

impl Setups {
    /// Reads `text` of `file`.
    ///
    /// # Errors
    /// One line with file, line, column and field.
    pub fn parse(text: &str, file: &str) -> Result<Setups, String> {
        yaml::from_str(text, file).map_err(|e| e.to_string())
    }

    /// The place of the setup of `row`.
    pub fn of(&self, row: &Row) -> Option<usize> {
        self.setups.iter().position(|s| s.when.holds(row))
    }
}

impl When {
    fn holds(&self, row: &Row) -> bool {
        let among = |list: &[String], name: &str| list.is_empty() || list.iter().any(|l| l == name);
        self.benchmark == row.benchmark
            && self.engine == row.engine
            && among(&self.systems, &row.system)
            && among(&self.weights, row.weights.name())
            && (self.lengths.is_empty() || self.lengths.contains(&(row.isl, row.osl)))
            && self.tensor_parallel_below.is_none_or(|tp| row.tensor_parallel < tp)
    }
}

impl Setup {
    /// The scheduler for the run of `row`.
    pub fn scheduler(&self, row: &Row) -> SchedulerConfig {
        let mut scheduler = self.scheduler.clone();
        let concurrency = row.concurrency;
        if let Some(more) = self.step_beyond_prompt {
            let tokens = row.isl + more;
            match &mut scheduler {
                SchedulerConfig::VllmV1(c) => c.max_num_batched_tokens = Some(tokens + concurrency),
                SchedulerConfig::Trtllm(c) => c.max_num_tokens = tokens + concurrency,
                SchedulerConfig::Sglang(c) => c.max_prefill_tokens = tokens,
                _ => {}
            }
        }
        if self.seats_for_clients_only {
            match &mut scheduler {
                SchedulerConfig::VllmV1(c) => c.max_num_seqs = Some(concurrency),
                SchedulerConfig::Trtllm(c) => c.max_batch_size = concurrency,
                SchedulerConfig::Sglang(c) => c.max_running_requests = concurrency,
                _ => {}
            }
        }
        scheduler
    }
}

impl Protocol {
    /// The clients of a run.
    pub fn clients(&self, concurrency: u32) -> Clients {
        Clients { concurrency, think_time: us(self.think_us) }
    }

    /// The engine's front end.
    pub fn front_end(&self) -> FrontEnd {
        FrontEnd {
            per_request: us(self.request_us),
            per_token: SimDuration::from_ns(u64::from(self.token_ns)),
            latency: us(self.latency_us),
        }
    }

    /// Lengths of the shortest and the longest request for `nominal` tokens.
    pub fn range(&self, nominal: u32) -> (u32, u32) {
        let shortest = (f64::from(nominal) * self.shortest_length) as u32;
        (shortest.clamp(1, nominal.max(1)), nominal.max(1))
    }
}

fn us(us: u32) -> SimDuration {
    SimDuration::from_ns(u64::from(us) * 1000)
}
