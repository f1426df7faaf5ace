//! Carrying out a plan: every configuration of the space becomes a row.

use super::cache::ResultCache;
use super::evaluate::Subject;
use super::plan::{Constraints, Plan, PlanError};
use super::pricing::PriceList;
use super::row::{Cause, Row};
use super::slo::Rule;
use super::space::Candidate;
use crate::predictor::{PredictorConfig, TableCache};
use crate::run::{Pool, Run, RunConfig};
use crate::spec::catalog::Catalog;
use crate::workload::RateTemplate;
use rayon::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Requests are drawn so many times over: warm-ups may get longer than their share.
const DRAWN: u32 = 4;

/// A plan with everything that it needs.
pub struct Study<'a> {
    /// The plan.
    pub plan: Plan,
    /// The objectives by name.
    pub rules: Vec<(String, Rule)>,
    /// Prices.
    pub prices: PriceList,
    /// Models, devices, nodes.
    pub catalog: &'a Catalog,
    tables: TableCache,
    results: ResultCache,
    pool: Arc<Pool>,
    kept: Arc<AtomicUsize>,
    searched: Arc<AtomicUsize>,
}

/// A search that is to be done: a configuration under one set of objectives.
#[derive(Clone, Debug)]
pub struct Task {
    /// The configuration.
    pub candidate: Candidate,
    /// The place of its objectives in [`Study::rules`].
    pub rule: usize,
}

impl<'a> Study<'a> {
    /// Everything that `plan` needs, looked up.
    ///
    /// # Errors
    /// When objectives or prices make no sense, or the catalogue is broken.
    pub fn new(
        plan: Plan,
        catalog: &'a Catalog,
        tables: TableCache,
        results: ResultCache,
    ) -> Result<Study<'a>, PlanError> {
        let rules = plan.rules().map_err(PlanError::Plan)?;
        let nodes = catalog.nodes().map_err(|e| PlanError::Plan(e.to_string()))?;
        let devices = catalog.devices().map_err(|e| PlanError::Plan(e.to_string()))?;
        let own = plan.prices.clone().with_file().map_err(PlanError::Plan)?;
        Ok(Study {
            rules,
            prices: PriceList::new(own, nodes, &devices),
            plan,
            catalog,
            tables,
            results,
            pool: Arc::new(Pool::new()),
            kept: Arc::default(),
            searched: Arc::default(),
        })
    }

    /// The same study of another plan over the same catalogue and prices. Objectives that make no sense
    /// are left as they are.
    #[must_use]
    pub fn with_plan(&self, plan: Plan) -> Study<'a> {
        Study {
            rules: plan.rules().unwrap_or_else(|_| self.rules.clone()),
            plan,
            prices: self.prices.clone(),
            catalog: self.catalog,
            tables: self.tables.clone(),
            results: self.results.clone(),
            pool: Arc::clone(&self.pool),
            kept: Arc::clone(&self.kept),
            searched: Arc::clone(&self.searched),
        }
    }

    /// Every search of the plan, in a fixed order.
    ///
    /// # Errors
    /// When a list makes no sense.
    pub fn tasks(&self) -> Result<Vec<Task>, PlanError> {
        let candidates =
            self.plan.space.expand(&self.plan.run, self.catalog).map_err(PlanError::Plan)?;
        let of = |candidate: Candidate| {
            (0..self.rules.len()).map(move |rule| Task { candidate: candidate.clone(), rule })
        };
        Ok(candidates.into_iter().flat_map(of).collect())
    }

    /// Searches that were kept from earlier runs, and searches done.
    pub fn counts(&self) -> (usize, usize) {
        (self.kept.load(Ordering::Relaxed), self.searched.load(Ordering::Relaxed))
    }

    /// A row for every task, in their order, on all cores. `done` is told of each.
    pub fn rows(&self, tasks: &[Task], done: &(dyn Fn() + Sync)) -> Vec<Row> {
        // Forests are fitted on all cores: not from within a thread that others wait for.
        if matches!(self.plan.run.predictor, PredictorConfig::Forest(_)) {
            for task in tasks {
                let _ = self.run_of(&task.candidate, None);
            }
        }
        let row = |task: &Task| {
            let row = self.row(&task.candidate, task.rule);
            done();
            row
        };
        tasks.par_iter().with_max_len(1).map(row).collect()
    }

    /// The row of one configuration.
    pub fn row(&self, candidate: &Candidate, rule: usize) -> Row {
        self.row_under(candidate, rule, &self.plan.constraints)
    }

    /// The row of one configuration under constraints other than the plan's.
    pub fn row_under(&self, candidate: &Candidate, rule: usize, limits: &Constraints) -> Row {
        let (name, rule) = &self.rules[rule];
        let row = Row::new(candidate, name);
        let row = match self.constrain(row, candidate, limits) {
            Ok(row) => row,
            Err(excluded) => return *excluded,
        };
        let run = match self.run_of(candidate, Some(self.drawn())) {
            Ok(run) => run,
            Err(reason) => return row.excluded(cause_of(&reason), reason),
        };
        match self.evaluate(&run, rule) {
            Err(reason) => row.excluded(cause_of(&reason), reason),
            Ok(evaluated) => {
                let offer = row.offer.clone();
                let row = row.evaluated(&run, evaluated).priced(offer);
                match (limits.min_requests_per_s, row.requests_per_s) {
                    (Some(least), Some(rate)) if rate < least => {
                        let reason =
                            format!("{rate} requests/s, fewer than min_requests_per_s {least}");
                        row.excluded(Cause::Rate, reason)
                    }
                    _ => row,
                }
            }
        }
    }

    fn evaluate(&self, run: &Run, rule: &Rule) -> Result<super::evaluate::Evaluated, String> {
        let subject = self.subject(run, rule)?;
        let (evaluated, kept) = self.results.get(&subject, || subject.evaluate())?;
        let counter = if kept { &self.kept } else { &self.searched };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(evaluated)
    }

    /// `run` as it is searched.
    ///
    /// # Errors
    /// When its requests have no rate.
    pub fn subject<'r>(&self, run: &'r Run, rule: &'r Rule) -> Result<Subject<'r>, String> {
        let config = &run.config;
        let template = RateTemplate::of(&config.workload, config.seed, run.workload.clone())
            .map_err(|e| e.to_string())?;
        Ok(Subject { run, template, rule, search: self.plan.search })
    }

    /// The run of a configuration, with at most `requests` requests.
    ///
    /// # Errors
    /// The first thing that does not hold, in a line.
    pub fn run_of(&self, candidate: &Candidate, requests: Option<u32>) -> Result<Run, String> {
        let mut config = candidate.config.clone();
        if let Some(n) = requests {
            config.workload = config.workload.with_requests(n);
        }
        let cluster = &mut config.cluster;
        if cluster.network_device.is_none()
            && let Ok(device) = self.catalog.device(&cluster.sku)
        {
            let n = cluster.tensor_parallel.saturating_mul(cluster.pipeline_parallel);
            let network = self.prices.network_of(&device.name, n).filter(|_| n > 1);
            cluster.network_device = network.map(str::to_owned);
        }
        Run::resolve_in(config, self.catalog, &self.tables, Some(&self.pool))
            .map_err(|e| e.to_string())
    }

    /// Requests that are drawn for a search: more than it needs, for longer warm-ups.
    pub fn drawn(&self) -> u32 {
        self.plan.search.requests.saturating_mul(DRAWN)
    }

    /// The config that simulates a configuration as it was searched, at a rate, with so many requests.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn config_at(
        &self,
        task: &Task,
        requests_per_s: f64,
        requests: usize,
    ) -> Result<RunConfig, String> {
        let run = self.run_of(&task.candidate, Some(self.drawn()))?;
        let (_, rule) = &self.rules[task.rule];
        let workload = self.subject(&run, rule)?.template.config_at(requests_per_s);
        let requests = u32::try_from(requests).unwrap_or(u32::MAX);
        Ok(RunConfig { workload: workload.with_requests(requests), ..run.config })
    }

    /// Checks what can be told without simulating, and adds price and power. The error is the row of an
    /// excluded configuration.
    fn constrain(
        &self,
        mut row: Row,
        candidate: &Candidate,
        limits: &Constraints,
    ) -> Result<Row, Box<Row>> {
        let cluster = &candidate.config.cluster;
        let out = |row: Row, cause, reason| Err(Box::new(row.excluded(cause, reason)));
        if let Some(most) = limits.max_devices.filter(|most| row.devices > *most) {
            let reason = format!("{} devices, more than max_devices {most}", row.devices);
            return out(row, Cause::Devices, reason);
        }
        // A device that lies beside its profiles has neither price nor node; looking it up fails later,
        // with the reason, if it lies nowhere.
        let Ok(device) = self.catalog.device(&cluster.sku) else { return Ok(row) };
        let device = device.worker();
        row.sku.clone_from(&device.name);
        let per_replica = cluster.tensor_parallel.saturating_mul(cluster.pipeline_parallel).max(1);
        if limits.within_node
            && let Some(node) = self.prices.largest_node(&device.name)
            && node.num_devices < per_replica
        {
            let reason = format!(
                "a replica has {per_replica} devices, and the largest node with {} has {} ({})",
                device.name, node.num_devices, node.name
            );
            return out(row, Cause::NodeSize, reason);
        }
        let offers = self.prices.offers(&device.name, per_replica);
        let whole = |o: &super::pricing::Offer| {
            !limits.within_node
                || o.node.as_ref().is_none_or(|name| {
                    let mut nodes = self.prices.nodes_of(&device.name);
                    nodes.any(|n| n.name == *name && n.num_devices >= per_replica)
                })
        };
        let offer = offers.into_iter().find(whole);
        row.power_w = device.power_w.map(|w| w * f64::from(row.devices));
        row = row.priced(offer);
        if let Some(most) = limits.max_usd_per_hour {
            match row.usd_per_hour {
                Some(usd) if usd <= most => {}
                Some(usd) => {
                    let reason = format!("{usd:.2} USD/h, more than max_usd_per_hour {most}");
                    return out(row, Cause::Budget, reason);
                }
                None => {
                    let reason = format!(
                        "no price is known for {}, and max_usd_per_hour asks for one; give it under \
                         prices: {{devices: {{{}: …}}}}",
                        device.name, device.name
                    );
                    return out(row, Cause::Budget, reason);
                }
            }
        }
        if let Some(most) = limits.max_power_w {
            match row.power_w {
                Some(watts) if watts <= most => {}
                Some(watts) => {
                    let reason = format!("{watts} W, more than max_power_w {most}");
                    return out(row, Cause::Power, reason);
                }
                None => {
                    let reason = format!(
                        "no power is published for {}, and max_power_w asks for it",
                        device.name
                    );
                    return out(row, Cause::Power, reason);
                }
            }
        }
        Ok(row)
    }
}

/// What an error of resolving or simulating is about.
fn cause_of(reason: &str) -> Cause {
    let memory = ["does not fit", "KV blocks", "memory rule"];
    if memory.iter().any(|m| reason.contains(m)) { Cause::Memory } else { Cause::Other }
}
