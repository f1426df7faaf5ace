//! One configuration: the highest rate that keeps the objectives, and what it is like there.

use super::plan::Search;
use super::probe::{Broken, Probe};
use super::search::{Grid, Highest, highest};
use super::slo::{Rule, Term};
use crate::metrics::{Distribution, Figure};
use crate::run::Run;
use crate::sim::{self, Silent, SimError};
use crate::workload::RateTemplate;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Requests of the run that tells about where to search, all of them at once.
const GUESS_REQUESTS: usize = 400;
/// Runs with fewer requests are not worth a first search with an eighth of them.
const COARSE_FROM: usize = 1600;
/// A rate far above anything that is served: everything arrives within a moment.
const ALL_AT_ONCE: f64 = 1e7;
/// Rates are searched down to the guess over this, where requests hardly meet.
const DOWN: f64 = 5000.0;
/// And up to the guess times this.
const UP: f64 = 64.0;
/// Rates up to this factor above the one that is found have failed.
const AHEAD: f64 = 1.06;

/// The warm-up is at least so many times as long as a request is under way: an engine that starts empty
/// is full only after that.
const WARMUP_LIFETIMES: f64 = 2.0;

/// `percent` of `n`, cut.
fn share(n: usize, percent: f64) -> usize {
    (n as f64 * percent / 100.0).floor() as usize
}

/// Requests that arrive at a rate while a mean request is under way `lifetimes` times over.
pub fn in_flight(requests_per_s: f64, at: &Measure, lifetimes: f64) -> usize {
    let seconds = at.e2e_ms.map_or(0.0, |d| d.mean * 1e-3);
    (lifetimes * requests_per_s * seconds).ceil() as usize
}

/// What a configuration comes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evaluated {
    /// Rates up to this one keep the objectives.
    Capacity(Box<Capacity>),
    /// No rate does.
    NoRate(NoRate),
}

/// The highest rate that keeps the objectives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// Requests per second, all replicas together.
    pub requests_per_s: f64,
    /// The next rate that was tried, which fails; none where every rate passed.
    pub fails_at: Option<f64>,
    /// What fails there.
    pub limited_by: Option<String>,
    /// At the capacity.
    pub at: Measure,
    /// Simulations that it took.
    pub runs: u32,
    /// Requests of the runs that decided.
    pub requests: usize,
    /// The first of these, which did not count.
    pub warmup_requests: usize,
}

/// Not even the lowest rate keeps the objectives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoRate {
    /// That rate.
    pub lowest_requests_per_s: f64,
    /// What is missed there.
    pub missed: Vec<Missed>,
}

/// An objective that is missed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Missed {
    /// Which: `TTFT P90`.
    pub objective: String,
    /// Its field: `ttft_ms`.
    pub field: String,
    /// What it may come to: milliseconds, or per cent of requests.
    pub limit: f64,
    /// What it comes to.
    pub reached: f64,
}

/// Figures of one run over the requests that count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// Time to first token, milliseconds.
    pub ttft_ms: Option<Distribution>,
    /// Time per output token after the first, milliseconds.
    pub tpot_ms: Option<Distribution>,
    /// Gaps between tokens, milliseconds.
    pub itl_ms: Option<Distribution>,
    /// Arrival to last token, milliseconds.
    pub e2e_ms: Option<Distribution>,
    /// Arrival to first batch, milliseconds.
    pub queueing_ms: Option<Distribution>,
    /// Mean prompt tokens of a request.
    pub input_tokens: f64,
    /// Mean output tokens of a request.
    pub output_tokens: f64,
    /// Requests in a batch.
    pub mean_batch_size: f64,
    /// Most KV blocks in use on one replica, per cent.
    pub kv_peak_percent: f64,
    /// Times that a request lost its KV cache.
    pub preemptions: u64,
    /// Time in which stages ran a batch, per cent.
    pub busy_percent: f64,
    /// Share of the busy time predicted outside the measured range, per cent.
    pub extrapolated_percent: f64,
}

/// A configuration that can be simulated at any rate.
pub struct Subject<'a> {
    /// The configuration.
    pub run: &'a Run,
    /// Its requests.
    pub template: RateTemplate,
    /// The objectives.
    pub rule: &'a Rule,
    /// How to search.
    pub search: Search,
}

impl Subject<'_> {
    /// Requests at the beginning of a run of `n` that do not count, by their share.
    fn warmup(&self, n: usize) -> usize {
        if self.rule.vidur { 0 } else { share(n, self.search.warmup_percent) }
    }

    /// Simulates the first `n` requests at a rate; with `stops_early` only until the answer is certain.
    ///
    /// # Errors
    /// When the configuration cannot serve these requests.
    pub fn probe(&self, rate: f64, n: usize, stops_early: bool) -> Result<(Probe, f64), String> {
        self.probe_after(self.warmup(n), rate, n, stops_early)
    }

    /// As [`Subject::probe`], the first `warmup` requests not counted. Also gives the seconds from the
    /// first arrival to the end.
    ///
    /// # Errors
    /// When the configuration cannot serve these requests.
    pub fn probe_after(
        &self,
        warmup: usize,
        rate: f64,
        n: usize,
        stops_early: bool,
    ) -> Result<(Probe, f64), String> {
        let workload = self.template.at(rate, n).map_err(|e| e.to_string())?;
        let n = workload.requests.len();
        let after = if self.rule.vidur { 0 } else { share(n, self.search.cooldown_percent) };
        let mut probe = Probe::new(
            self.rule,
            &workload,
            warmup.min(n.saturating_sub(1))..(n - after).max(warmup + 1).min(n),
            self.run.sim.num_replicas,
            self.search.precision_percent / 100.0,
            stops_early,
        );
        let outcome = sim::run(&self.run.sim, &*self.run.cost, &workload, &mut probe)
            .map_err(|e: SimError| e.to_string())?;
        let first = workload.requests.first().map_or(0.0, |r| r.arrived_at.as_seconds());
        Ok((probe, outcome.end.as_seconds() - first))
    }

    /// Requests per second that are served when all arrive at once: near the highest rate at which the
    /// queue does not grow.
    fn guess(&self) -> Result<f64, String> {
        let workload = self.template.at(ALL_AT_ONCE, GUESS_REQUESTS).map_err(|e| e.to_string())?;
        let outcome = sim::run(&self.run.sim, &*self.run.cost, &workload, &mut Silent)
            .map_err(|e| e.to_string())?;
        Ok(workload.requests.len() as f64 / outcome.end.as_seconds().max(1e-9))
    }

    /// The figures of a probe whose run took `seconds`.
    pub fn measure(&self, probe: &Probe, seconds: f64) -> Measure {
        let all = &self.template.base().requests;
        let mean = |tokens: fn(&crate::workload::RequestSpec) -> u32| {
            all.iter().map(|r| f64::from(tokens(r))).sum::<f64>() / all.len().max(1) as f64
        };
        let percent = |part: f64, whole: f64| if whole > 0.0 { 100.0 * part / whole } else { 0.0 };
        let of = |figure| Distribution::of(probe.values(figure));
        let stages = f64::from(self.run.sim.num_replicas * self.run.cost.num_stages());
        Measure {
            ttft_ms: of(Figure::Ttft),
            tpot_ms: of(Figure::Tpot),
            itl_ms: Distribution::of_sketch(&probe.gaps, 1e-6),
            e2e_ms: of(Figure::E2e),
            queueing_ms: of(Figure::Queueing),
            input_tokens: mean(|r| r.prefill_tokens),
            output_tokens: mean(|r| r.decode_tokens),
            mean_batch_size: probe.batch_requests as f64 / probe.batches.max(1) as f64,
            kv_peak_percent: percent(f64::from(probe.kv_peak), f64::from(self.run.sim.kv_blocks)),
            preemptions: probe.restarts,
            busy_percent: percent(probe.busy_ns as f64 * 1e-9, seconds * stages),
            extrapolated_percent: percent(probe.extrapolated_ns as f64, probe.busy_ns as f64),
        }
    }

    /// Searches the highest rate that keeps the objectives.
    ///
    /// First with an eighth of the requests, to learn about where it lies; then with all of them, from
    /// there; and again with a longer warm-up where that was too short for the engine to fill. What is
    /// returned was decided by runs with all requests.
    ///
    /// # Errors
    /// When the configuration cannot serve these requests at all.
    pub fn evaluate(&self) -> Result<Evaluated, String> {
        let drawn = self.template.base().requests.len();
        let mut n = drawn.min(self.search.requests as usize);
        let mut warmup = self.warmup(n);
        let grid = Grid::new(self.search.precision_percent);
        let mut start = grid.place(self.guess()?);
        let range = (start - grid.steps(DOWN), start + grid.steps(UP));
        let mut step = grid.steps(1.15);
        let mut runs = 1;
        if n >= COARSE_FROM {
            let found = highest(start, step, 1, range, |place| {
                runs += 1;
                let (probe, _) = self.probe(grid.rate(place), n / 8, true)?;
                Ok::<_, String>(probe.verdict().is_none())
            })?;
            (start, step) = match found {
                Highest::At(place) => (place, 1),
                Highest::AtLeast(place) | Highest::None(place) => (place, step),
            };
        }
        loop {
            let Some((place, capacity)) = self.around(start, step, range, (warmup, n))? else {
                return Ok(Evaluated::NoRate(self.missed(grid.rate(range.0), n)?));
            };
            runs += capacity.runs;
            let wanted = in_flight(capacity.requests_per_s, &capacity.at, WARMUP_LIFETIMES);
            let longest = drawn.saturating_sub(n - warmup);
            if warmup == 0 || wanted <= warmup || longest <= warmup {
                return Ok(Evaluated::Capacity(Box::new(Capacity { runs, ..capacity })));
            }
            // As many requests count as before, after a warm-up with something to spare.
            let more = (wanted + wanted / 4).min(longest);
            n += more - warmup;
            (warmup, start, step) = (more, place, 1);
        }
    }

    /// The highest rate near `start`, decided by runs of `n` requests after a warm-up; and its place.
    fn around(
        &self,
        start: i32,
        step: i32,
        range: (i32, i32),
        (warmup, n): (usize, usize),
    ) -> Result<Option<(i32, Capacity)>, String> {
        let grid = Grid::new(self.search.precision_percent);
        let mut runs = 0;
        let mut best: Option<(i32, Probe, f64)> = None;
        let mut broken: BTreeMap<i32, Broken> = BTreeMap::new();
        let found = highest(start, step, grid.steps(AHEAD), range, |place| {
            runs += 1;
            let (probe, seconds) = self.probe_after(warmup, grid.rate(place), n, true)?;
            match probe.verdict() {
                None => {
                    if best.as_ref().is_none_or(|b| b.0 < place) {
                        best = Some((place, probe, seconds));
                    }
                    Ok::<_, String>(true)
                }
                Some(why) => {
                    broken.insert(place, why);
                    Ok(false)
                }
            }
        })?;
        let (Some((place, probe, seconds)), Highest::At(_) | Highest::AtLeast(_)) = (best, found)
        else {
            return Ok(None);
        };
        let failing = broken.split_off(&place).into_iter().next();
        let capacity = Capacity {
            requests_per_s: grid.rate(place),
            fails_at: failing.as_ref().map(|f| grid.rate(f.0)),
            limited_by: failing.map(|(_, why)| match why {
                Broken::Term(term) => term.short(),
                Broken::QueueGrows => "queue grows".to_owned(),
            }),
            at: self.measure(&probe, seconds),
            runs,
            requests: n,
            warmup_requests: warmup,
        };
        Ok(Some((place, capacity)))
    }

    /// What is missed at a rate.
    fn missed(&self, rate: f64, n: usize) -> Result<NoRate, String> {
        let (probe, _) = self.probe(rate, n, false)?;
        let missed = self.rule.terms.iter().filter_map(|term| {
            let reached = probe.reached(term)?;
            let (field, limit, misses) = match term {
                Term::Bound { measured, limit_ms, .. } => {
                    (measured.field(), *limit_ms, reached > *limit_ms)
                }
                Term::Good { percent, .. } => ("goodput", *percent, reached < *percent),
            };
            let objective = term.short();
            misses.then(|| Missed { objective, field: field.to_owned(), limit, reached })
        });
        Ok(NoRate { lowest_requests_per_s: rate, missed: missed.collect() })
    }
}
