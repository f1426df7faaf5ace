//! One row of the answer: a configuration under one set of objectives, with what it costs.

use super::evaluate::{Evaluated, Measure, Missed};
use super::pricing::Offer;
use super::space::{Candidate, scheduler_label};
use crate::run::Run;
use crate::sim::{RouterConfig, SchedulerConfig};
use serde::{Deserialize, Serialize};

/// What became of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Some rate keeps the objectives.
    Ok,
    /// No rate does.
    MissesSlo,
    /// It breaks a constraint, or cannot run.
    Excluded,
}

/// Why a configuration is excluded, for those who look for the nearest one that is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Weights, activations or a request's KV cache do not fit.
    Memory,
    /// More devices than a node has.
    NodeSize,
    /// More devices than allowed.
    Devices,
    /// More US dollars per hour than allowed, or no price known.
    Budget,
    /// More watts than allowed, or none known.
    Power,
    /// A lower rate than asked.
    Rate,
    /// Anything else: a degree that does not divide, a profile that is missing.
    Other,
}

/// A configuration under one set of objectives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The configuration's place in the space.
    pub id: usize,
    /// Place among the configurations of the same workload and objectives, from 1; none where no rate
    /// keeps them.
    pub rank: Option<u32>,
    /// The name of the workload.
    pub workload: String,
    /// The name of the objectives.
    pub slo: String,
    /// Model id.
    pub model: String,
    /// Device.
    pub sku: String,
    /// Devices that share each layer.
    pub tensor_parallel: u32,
    /// Pipeline stages.
    pub pipeline_parallel: u32,
    /// Copies of the model.
    pub replicas: u32,
    /// Devices in all.
    pub devices: u32,
    /// The scheduler and its settings in short.
    pub scheduler: String,
    /// In full.
    pub scheduler_config: SchedulerConfig,
    /// How requests are spread.
    pub router: RouterConfig,
    /// Every dimension that has more than one value, as name and value.
    pub labels: Vec<(String, String)>,
    /// What became of it.
    pub status: Status,
    /// Why it is excluded.
    pub cause: Option<Cause>,
    /// The same in words.
    pub reason: Option<String>,
    /// What is missed at the lowest rate.
    pub missed: Vec<Missed>,
    /// Highest rate that keeps the objectives, requests per second.
    pub requests_per_s: Option<f64>,
    /// The next rate that was tried, which fails.
    pub fails_at: Option<f64>,
    /// What fails there.
    pub limited_by: Option<String>,
    /// Requests of the runs that decided.
    pub requests: Option<usize>,
    /// The first of these, which did not count.
    pub warmup_requests: Option<usize>,
    /// Requests per second and device.
    pub requests_per_s_per_device: Option<f64>,
    /// Output tokens per second.
    pub output_tokens_per_s: Option<f64>,
    /// Prompt tokens per second.
    pub input_tokens_per_s: Option<f64>,
    /// How the devices are rented.
    pub offer: Option<Offer>,
    /// US dollars per hour of the devices, nodes filled with replicas.
    pub usd_per_hour: Option<f64>,
    /// Requests per US dollar.
    pub requests_per_usd: Option<f64>,
    /// US dollars per million output tokens.
    pub usd_per_million_output_tokens: Option<f64>,
    /// US dollars per million tokens, prompts included.
    pub usd_per_million_tokens: Option<f64>,
    /// Board power of the devices, watts.
    pub power_w: Option<f64>,
    /// Joules per output token at that power.
    pub joules_per_output_token: Option<f64>,
    /// Whether no other configuration is cheaper with a TTFT P90 as low.
    pub pareto_ttft_p90: bool,
    /// Whether no other configuration is cheaper with an ITL P99 as low.
    pub pareto_itl_p99: bool,
    /// Latencies and use at the rate.
    pub at: Option<Measure>,
    /// Step times in a few words.
    pub step_times: String,
}

impl Row {
    /// A row of `candidate` that knows nothing of its speed yet.
    pub fn new(candidate: &Candidate, slo: &str) -> Row {
        let cluster = &candidate.config.cluster;
        Row {
            id: candidate.id,
            rank: None,
            workload: candidate.workload.clone(),
            slo: slo.to_owned(),
            model: candidate.config.model.clone(),
            sku: cluster.sku.clone(),
            tensor_parallel: cluster.tensor_parallel,
            pipeline_parallel: cluster.pipeline_parallel,
            replicas: cluster.num_replicas,
            devices: cluster
                .tensor_parallel
                .saturating_mul(cluster.pipeline_parallel)
                .saturating_mul(cluster.num_replicas),
            scheduler: scheduler_label(&candidate.config.scheduler),
            scheduler_config: candidate.config.scheduler.clone(),
            router: cluster.router,
            labels: candidate.labels.clone(),
            status: Status::Excluded,
            cause: None,
            reason: None,
            missed: Vec::new(),
            requests_per_s: None,
            fails_at: None,
            limited_by: None,
            requests: None,
            warmup_requests: None,
            requests_per_s_per_device: None,
            output_tokens_per_s: None,
            input_tokens_per_s: None,
            offer: None,
            usd_per_hour: None,
            requests_per_usd: None,
            usd_per_million_output_tokens: None,
            usd_per_million_tokens: None,
            power_w: None,
            joules_per_output_token: None,
            pareto_ttft_p90: false,
            pareto_itl_p99: false,
            at: None,
            step_times: String::new(),
        }
    }

    /// The same, excluded.
    #[must_use]
    pub fn excluded(mut self, cause: Cause, reason: String) -> Row {
        (self.status, self.cause, self.reason) = (Status::Excluded, Some(cause), Some(reason));
        self
    }

    /// The same with what `run` came to.
    #[must_use]
    pub fn evaluated(mut self, run: &Run, evaluated: Evaluated) -> Row {
        self.step_times.clone_from(&run.provenance.description);
        self.model.clone_from(&run.model.name);
        self.sku.clone_from(&run.device.name);
        match evaluated {
            Evaluated::NoRate(no_rate) => {
                self.status = Status::MissesSlo;
                let missed: Vec<String> = no_rate
                    .missed
                    .iter()
                    .map(|m| format!("{} {:.4} against {}", m.objective, m.reached, m.limit))
                    .collect();
                self.reason = Some(format!("misses at the lowest rate: {}", missed.join(", ")));
                self.missed = no_rate.missed;
            }
            Evaluated::Capacity(capacity) => {
                let rate = capacity.requests_per_s;
                self.status = Status::Ok;
                self.requests_per_s = Some(rate);
                self.fails_at = capacity.fails_at;
                self.requests = Some(capacity.requests);
                self.warmup_requests = Some(capacity.warmup_requests);
                self.limited_by = capacity.limited_by;
                self.requests_per_s_per_device = Some(rate / f64::from(self.devices));
                self.output_tokens_per_s = Some(rate * capacity.at.output_tokens);
                self.input_tokens_per_s = Some(rate * capacity.at.input_tokens);
                self.at = Some(capacity.at);
            }
        }
        self
    }

    /// The same with what the devices cost by `offer`.
    #[must_use]
    pub fn priced(mut self, offer: Option<Offer>) -> Row {
        let replicas = f64::from(self.replicas);
        self.usd_per_hour = offer.as_ref().map(|o| o.per_replica() * replicas);
        self.offer = offer;
        let per = |amount: Option<f64>, tokens_per_s: Option<f64>| -> Option<f64> {
            Some(amount? / tokens_per_s?)
        };
        let usd_per_s = self.usd_per_hour.map(|usd| usd / 3600.0);
        let (output, input) = (self.output_tokens_per_s, self.input_tokens_per_s);
        let all = output.zip(input).map(|(o, i)| o + i);
        self.requests_per_usd = per(self.requests_per_s, usd_per_s);
        self.usd_per_million_output_tokens = per(usd_per_s, output).map(|usd| usd * 1e6);
        self.usd_per_million_tokens = per(usd_per_s, all).map(|usd| usd * 1e6);
        self.joules_per_output_token = per(self.power_w, output);
        self
    }

    /// The configuration in a few words: what it runs on, and how.
    pub fn short(&self) -> String {
        self.words(self.replicas)
    }

    /// The same of a single replica.
    pub fn short_of_one(&self) -> String {
        self.words(1)
    }

    fn words(&self, replicas: u32) -> String {
        let mut parts = vec![self.sku.clone()];
        let model = |(name, value): &(String, String)| (name == "model").then(|| value.clone());
        if let Some(name) = self.labels.iter().find_map(model) {
            let last = name.rsplit('/').next().unwrap_or(&name).to_owned();
            parts.insert(0, format!("{last} on"));
        }
        for (n, what) in
            [(self.tensor_parallel, "TP"), (self.pipeline_parallel, "PP"), (replicas, "x")]
        {
            if n > 1 {
                parts.push(format!("{what}{n}"));
            }
        }
        parts.push(self.scheduler.clone());
        for (name, value) in self.other_labels() {
            parts.push(format!("{}={value}", name.rsplit('.').next().unwrap_or(name)));
        }
        parts.join(" ")
    }

    /// The dimensions that no field of a row says, as name and value.
    pub fn other_labels(&self) -> impl Iterator<Item = &(String, String)> {
        const SAID: [&str; 7] = [
            "model",
            "sku",
            "tensor_parallel",
            "pipeline_parallel",
            "replicas",
            "scheduler",
            "workload",
        ];
        self.labels.iter().filter(|label| !SAID.contains(&label.0.as_str()))
    }

    /// The 90th percentile of the time to first token at the capacity, milliseconds.
    pub fn ttft_p90(&self) -> Option<f64> {
        self.at.as_ref()?.ttft_ms.map(|d| d.p90)
    }

    /// The 99th percentile of the gaps between tokens at the capacity, milliseconds.
    pub fn itl_p99(&self) -> Option<f64> {
        self.at.as_ref()?.itl_ms.map(|d| d.p99)
    }
}
