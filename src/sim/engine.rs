//! The event loop.

use super::arrivals::Arrivals;
use super::batch::Batch;
use super::check::{SimError, check_lengths};
use super::demand::Demand;
use super::kv_blocks::KvBlocks;
use super::observer::{Observer, PUNCTUALITY};
use super::request::Request;
use super::router::{Load, Router, RouterConfig};
use super::scheduler::{self, Defects, Scheduler, SchedulerConfig};
use super::stretch::{self, Ahead, Bound, Pace};
use crate::cost::CostModel;
use crate::ids::{ReplicaId, RequestId, StageId};
use crate::units::SimTime;
use crate::workload::{Prefixes, Workload};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// What is simulated, beside cost model and workload.
#[derive(Clone, Debug, PartialEq)]
pub struct SimConfig {
    /// Copies of the model.
    pub num_replicas: u32,
    /// How requests are spread over them.
    pub router: RouterConfig,
    /// How each of them forms batches.
    pub scheduler: SchedulerConfig,
    /// KV blocks of each replica.
    pub kv_blocks: u32,
    /// Tokens that a KV block holds.
    pub block_size: u32,
    /// Blocks that stay free when a new request is admitted.
    pub watermark_blocks: u32,
    /// Where to do as Vidur does although it is wrong.
    pub defects: Defects,
    /// Seed of what the simulator itself draws (random routers).
    pub seed: u64,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Every request in its final state, by id.
    pub requests: Vec<Request>,
    /// Batches formed, on all replicas.
    pub num_batches: u64,
    /// When the last event happened.
    pub end: SimTime,
    /// Whether the observer had enough before every request was served.
    pub cut_short: bool,
}

/// Simulates `workload` to its end and tells `observer` what happens.
///
/// # Errors
/// When some request could never finish; before anything is simulated where that can be told.
pub fn run<O: Observer>(
    config: &SimConfig,
    cost: &dyn CostModel,
    workload: &Workload,
    observer: &mut O,
) -> Result<Outcome, SimError> {
    check_lengths(config, workload)?;
    let mut engine = Engine::new(config, cost, workload, observer);
    engine.run();
    engine.finish()
}

/// A batch under way, by its place in [`Engine::batches`].
type Slot = usize;

/// One pipeline stage of a replica.
#[derive(Default)]
struct Stage {
    running: Option<Slot>,
    queue: VecDeque<Slot>,
    /// Parts of a nanosecond that past steps took and the clock has not shown yet, in 2⁻³² ns.
    fraction: u32,
}

struct ReplicaState {
    scheduler: Box<dyn Scheduler>,
    kv: KvBlocks,
    stages: Vec<Stage>,
    /// Batches in the pipeline, at most one a stage.
    in_flight: usize,
    outstanding: u32,
    /// What the batch on its only stage does beyond the step that is under way.
    ahead: Ahead,
    /// The end of its only stage that counts: what arrived may have brought it forward.
    end: u64,
    /// Something happened that may let it form a batch.
    dirty: bool,
}

/// The end of a stage. The second field counts stage starts and breaks ties.
type StageEnd = Reverse<(SimTime, u64, ReplicaId, StageId)>;

/// No run goes beyond: a hundred years. Times past it come of inputs that are wrong by orders of
/// magnitude, and would soon not fit the clock.
const HORIZON: SimTime = SimTime::from_ns(100 * 365 * 24 * 3600 * 1_000_000_000);

/// Steps that a replica runs ahead of the next arrival among several replicas: about as many as
/// there are between two requests that one of them gets under load. More would mostly be taken back.
const AHEAD: usize = 16;

struct Engine<'a, O> {
    pace: Pace<'a>,
    config: &'a SimConfig,
    prefixes: &'a Prefixes,
    arrivals: Arrivals<'a>,
    observer: &'a mut O,
    now: SimTime,
    requests: Vec<Request>,
    router: Box<dyn Router>,
    replicas: Vec<ReplicaState>,
    ends: BinaryHeap<StageEnd>,
    num_starts: u64,
    num_batches: u64,
    batches: Vec<Batch>,
    free_slots: Vec<Slot>,
    dirty: Vec<ReplicaId>,
    restarted: Vec<RequestId>,
    /// What waits for blocks, where the router looks at caches.
    demand: Option<Demand>,
    /// Who got a token, and who is complete, in the batch that ends.
    emitted: Vec<RequestId>,
    completed: Vec<RequestId>,
    /// End of the step that was just started on a replica's only stage.
    only_end: Option<SimTime>,
    /// Whether batches that repeat are run in one go.
    stretches: bool,
    /// Whether they may run beyond the next arrival.
    runs_ahead: bool,
    /// When every replica last told what it had run ahead.
    caught_up_at: SimTime,
    /// A request lost its cache when the last batch was formed.
    disturbed: bool,
    /// The observer had enough.
    cut_short: bool,
}

impl<'a, O: Observer> Engine<'a, O> {
    fn new(
        config: &'a SimConfig,
        cost: &'a dyn CostModel,
        workload: &'a Workload,
        observer: &'a mut O,
    ) -> Self {
        let stages = cost.num_stages();
        let takes_repeats = observer.takes_repeats();
        let alone = config.num_replicas == 1;
        let replica = || ReplicaState {
            scheduler: config.scheduler.build(stages, config.defects),
            kv: config.scheduler.cache(
                config.kv_blocks,
                config.block_size,
                config.watermark_blocks,
            ),
            stages: (0..stages).map(|_| Stage::default()).collect(),
            in_flight: 0,
            outstanding: 0,
            ahead: Ahead::default(),
            end: 0,
            dirty: false,
        };
        Engine {
            pace: Pace { cost, host: config.scheduler.host() },
            config,
            prefixes: &workload.prefixes,
            arrivals: Arrivals::of(workload),
            observer,
            now: SimTime::ZERO,
            requests: Vec::with_capacity(workload.requests.len()),
            router: config.router.build(config.num_replicas, config.seed),
            replicas: (0..config.num_replicas).map(|_| replica()).collect(),
            ends: BinaryHeap::new(),
            num_starts: 0,
            num_batches: 0,
            batches: Vec::new(),
            free_slots: Vec::new(),
            dirty: Vec::new(),
            restarted: Vec::new(),
            demand: config.router.sees_kv().then(|| Demand::new(config.num_replicas)),
            emitted: Vec::new(),
            completed: Vec::new(),
            only_end: None,
            // Among several replicas, a client that is done with one may send to another at a time
            // that nobody knows beforehand; the router must not see then what is ahead of its time.
            stretches: takes_repeats
                && (alone || workload.clients.is_none() || !config.router.sees_kv()),
            runs_ahead: takes_repeats && !alone && !config.router.sees_kv(),
            caught_up_at: SimTime::ZERO,
            disturbed: false,
            cut_short: false,
        }
    }

    fn run(&mut self) {
        while let Some(now) = self.next_instant() {
            if self.observer.enough() {
                self.cut_short = true;
                return;
            }
            if now > HORIZON {
                return;
            }
            self.now = now;
            if self.runs_ahead && now.since(self.caught_up_at) >= PUNCTUALITY {
                self.caught_up_at = now;
                (0..self.config.num_replicas).for_each(|r| self.catch_up(ReplicaId(r), now));
            }
            while let Some((time, replica, stage)) = self.next_end() {
                if time > now {
                    break;
                }
                self.ends.pop();
                self.end_stage(replica, stage);
            }
            while let Some(spec) = self.arrivals.take(now) {
                self.arrive(Request::new(spec.arrived_at, spec.prefill_tokens, spec.decode_tokens));
            }
            self.dirty.sort_unstable();
            for i in 0..self.dirty.len() {
                self.settle(self.dirty[i]);
            }
            self.dirty.clear();
        }
    }

    /// When something happens next.
    fn next_instant(&mut self) -> Option<SimTime> {
        let arrival = self.arrivals.peek();
        let end = self.next_end().map(|(time, ..)| time);
        match (arrival, end) {
            (Some(a), Some(e)) => Some(a.min(e)),
            (a, e) => a.or(e),
        }
    }

    /// The next end of a stage; those that something brought forward are dropped.
    fn next_end(&mut self) -> Option<(SimTime, ReplicaId, StageId)> {
        while let Some(&Reverse((time, number, replica, stage))) = self.ends.peek() {
            if !self.runs_ahead || self.replicas[replica.index()].end <= number {
                return Some((time, replica, stage));
            }
            self.ends.pop();
        }
        None
    }

    fn arrive(&mut self, request: Request) {
        let id = RequestId(self.requests.len() as u32);
        let replica = self.router.route();
        self.interrupt(replica);
        self.observer.arrived(self.now, id, &request, replica);
        self.requests.push(request);
        let state = &mut self.replicas[replica.index()];
        state.scheduler.enqueue(id);
        state.outstanding += 1;
        self.want(replica, id);
        self.touch(replica);
        self.report_load(replica);
    }

    /// `id` waits for the blocks of all that it has to compute.
    fn want(&mut self, replica: ReplicaId, id: RequestId) {
        if let Some(demand) = &mut self.demand {
            let tokens = self.requests[id.index()].prefill_target;
            demand.waits(replica, id, self.replicas[replica.index()].kv.blocks_for(tokens));
        }
    }

    fn touch(&mut self, replica: ReplicaId) {
        let state = &mut self.replicas[replica.index()];
        if !state.dirty {
            state.dirty = true;
            self.dirty.push(replica);
        }
    }

    fn report_load(&mut self, replica: ReplicaId) {
        let state = &self.replicas[replica.index()];
        let load = Load {
            outstanding: state.outstanding,
            waiting: state.scheduler.num_waiting() as u32,
            kv_used: state.kv.used() + self.demand.as_ref().map_or(0, |d| d.of(replica)),
        };
        self.router.update(replica, load);
    }

    /// Fills the pipeline of a replica to which something happened.
    fn settle(&mut self, replica: ReplicaId) {
        self.replicas[replica.index()].dirty = false;
        while self.form_batch(replica) {}
        self.report_load(replica);
        let state = &self.replicas[replica.index()];
        self.observer.settled(self.now, replica, &state.kv, state.scheduler.num_waiting());
        if let Some(end) = self.only_end.take() {
            let end = self.stretch(replica, end);
            self.push_end(end, replica, StageId(0));
        }
    }

    fn form_batch(&mut self, replica: ReplicaId) -> bool {
        let state = &mut self.replicas[replica.index()];
        if state.in_flight == state.stages.len() {
            return false;
        }
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.batches.push(Batch::default());
            self.batches.len() - 1
        });
        let batch = &mut self.batches[slot];
        state.scheduler.next_batch(
            &mut scheduler::Replica {
                requests: &mut self.requests,
                kv: &mut state.kv,
                restarted: &mut self.restarted,
                prefixes: self.prefixes,
            },
            batch,
        );
        // Whoever lost its cache just now may have been refused while others still held theirs.
        self.disturbed = !self.restarted.is_empty();
        for i in 0..self.restarted.len() {
            let id = self.restarted[i];
            self.observer.restarted(self.now, id, &self.requests[id.index()]);
            self.want(replica, id);
        }
        self.restarted.clear();
        let batch = &mut self.batches[slot];
        if batch.is_empty() {
            self.free_slots.push(slot);
            return false;
        }
        if let Some(demand) = &mut self.demand {
            demand.runs(replica, batch);
        }
        let state = &mut self.replicas[replica.index()];
        batch.shape.padding = self.config.scheduler.padding(batch);
        batch.id = self.num_batches;
        self.num_batches += 1;
        self.observer.batch_formed(self.now, replica, batch, &state.kv);
        state.in_flight += 1;
        state.stages[0].queue.push_back(slot);
        self.start_stage(replica, StageId(0));
        true
    }

    /// Starts the next queued batch of a stage if the stage is idle.
    fn start_stage(&mut self, replica: ReplicaId, stage: StageId) {
        let state = &mut self.replicas[replica.index()].stages[stage.index()];
        if state.running.is_some() {
            return;
        }
        let Some(slot) = state.queue.pop_front() else { return };
        state.running = Some(slot);
        let batch = &self.batches[slot];
        let mut cost =
            stretch::carry(&mut state.fraction, self.pace.cost.stage_cost(stage, &batch.shape));
        if stage.0 == 0 {
            cost = self.pace.host.charge(cost, batch.len());
        }
        self.observer.stage_started(self.now, replica, stage, batch, cost);
        let end = self.now + cost.duration;
        // The only stage's end is known when it is clear how often its batch repeats.
        match self.replicas[replica.index()].stages.len() {
            1 => self.only_end = Some(end),
            _ => self.push_end(end, replica, stage),
        }
    }

    fn push_end(&mut self, end: SimTime, replica: ReplicaId, stage: StageId) {
        if self.runs_ahead && self.replicas[replica.index()].stages.len() == 1 {
            self.replicas[replica.index()].end = self.num_starts;
        }
        self.ends.push(Reverse((end, self.num_starts, replica, stage)));
        self.num_starts += 1;
    }

    /// Lets the batch that `replica` has just started on its only stage, and that ends at `end`,
    /// repeat while nothing can change it. Gives the time at which its last repeat ends.
    fn stretch(&mut self, replica: ReplicaId, end: SimTime) -> SimTime {
        let state = &mut self.replicas[replica.index()];
        let Some(slot) = state.stages[0].running else { return end };
        let batch = &mut self.batches[slot];
        if !self.stretches
            || self.disturbed
            || !batch.shape.prefills.is_empty()
            || !state.scheduler.repeats()
        {
            return end;
        }
        let sure_until = match self.arrivals.peek() {
            // Nobody knows when a client that another replica serves sends next.
            _ if self.runs_ahead && self.arrivals.is_closed_loop() => self.now,
            next => next.unwrap_or(SimTime::NEVER),
        };
        let bound = Bound { sure_until, beyond: if self.runs_ahead { AHEAD } else { 0 } };
        if end >= bound.sure_until && bound.beyond == 0 {
            return end;
        }
        let fraction = &mut state.stages[0].fraction;
        let most = stretch::most_repeats(batch, &self.requests, &state.kv);
        let end = state.ahead.run(batch, most, &self.pace, fraction, end, bound);
        if !self.runs_ahead {
            self.catch_up(replica, SimTime::NEVER);
            self.report_load(replica);
        }
        end
    }

    /// Tells the steps that `replica` has run ahead, as far as they begin before `now`.
    fn catch_up(&mut self, replica: ReplicaId, now: SimTime) {
        let state = &mut self.replicas[replica.index()];
        let Some(slot) = state.stages[0].running else { return };
        let batch = &mut self.batches[slot];
        let repeats = state.ahead.catch_up(now, batch, &mut self.requests, &mut state.kv);
        if !repeats.is_empty() {
            self.num_batches += repeats.len() as u64;
            state.scheduler.repeated(repeats.len() as u64);
            self.observer.repeated(replica, batch, &self.requests, repeats);
        }
    }

    /// Something reaches `replica` now: what it has run ahead of the clock does not happen.
    fn interrupt(&mut self, replica: ReplicaId) {
        if !self.runs_ahead || self.replicas[replica.index()].ahead.is_empty() {
            return;
        }
        self.catch_up(replica, self.now);
        let state = &mut self.replicas[replica.index()];
        let end = state.ahead.take_back(self.now, &mut state.stages[0].fraction);
        state.ahead.clear();
        match end {
            Some(end) if end > self.now => self.push_end(end, replica, StageId(0)),
            Some(_) => {
                // Whatever end is still to come is not this one.
                state.end = u64::MAX;
                self.end_stage(replica, StageId(0));
            }
            None => {}
        }
    }

    fn end_stage(&mut self, replica: ReplicaId, stage: StageId) {
        self.catch_up(replica, SimTime::NEVER);
        let state = &mut self.replicas[replica.index()];
        state.ahead.clear();
        let Some(slot) = state.stages[stage.index()].running.take() else { return };
        self.start_stage(replica, stage);
        let next = StageId(stage.0 + 1);
        match self.replicas[replica.index()].stages.get_mut(next.index()) {
            Some(stage) => {
                stage.queue.push_back(slot);
                self.start_stage(replica, next);
            }
            None => self.end_batch(replica, slot),
        }
    }

    fn end_batch(&mut self, replica: ReplicaId, slot: Slot) {
        let state = &mut self.replicas[replica.index()];
        let batch = &mut self.batches[slot];
        self.emitted.clear();
        self.completed.clear();
        for entry in &batch.entries {
            let progress = self.requests[entry.request.index()].advance(entry.tokens);
            if progress.emitted {
                self.emitted.push(entry.request);
            }
            if progress.completed {
                self.completed.push(entry.request);
            }
        }
        self.observer.batch_ended(self.now, replica, batch, &self.emitted, &self.requests);
        for &id in &self.completed {
            state.outstanding -= 1;
            self.arrivals.completed(self.now);
            self.observer.completed(self.now, id, &self.requests[id.index()]);
        }
        state.scheduler.batch_ended(
            batch,
            &mut scheduler::Replica {
                requests: &mut self.requests,
                kv: &mut state.kv,
                restarted: &mut self.restarted,
                prefixes: self.prefixes,
            },
        );
        state.in_flight -= 1;
        batch.clear();
        self.free_slots.push(slot);
        self.touch(replica);
        if !self.completed.is_empty() {
            // What arrives at this very time is routed by what this batch left.
            self.report_load(replica);
        }
    }

    fn finish(mut self) -> Result<Outcome, SimError> {
        let unfinished = self.requests.iter().filter(|r| !r.is_complete()).count();
        let left = unfinished + self.arrivals.left();
        if left > 0 && !self.cut_short {
            return Err(match self.next_instant() {
                Some(_) => SimError::TooLong { left },
                None => SimError::Stuck { left },
            });
        }
        self.observer.ended(self.now);
        Ok(Outcome {
            requests: self.requests,
            num_batches: self.num_batches,
            end: self.now,
            cut_short: self.cut_short,
        })
    }
}
