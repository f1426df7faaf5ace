//! Random configurations and workloads through every scheduler, router and parallelism: the
//! invariants hold, observers change nothing, and the same input gives the same facts.

use crate::support::{LinearCost, sim_config, workload};
use proptest::prelude::*;
use std::collections::BTreeMap;
use vidur::cost::CostModel;
use vidur::dataset::location::ProfileRoot;
use vidur::ids::{ReplicaId, RequestId};
use vidur::metrics::{Recorder, Summary};
use vidur::predictor::{self, GraphSettings, Limits, PredictorConfig, System, TableCache};
use vidur::sim::{
    self, Batch, Defects, HostTime, Invariants, KvBlocks, LightllmConfig, Observer, OrcaConfig,
    PUNCTUALITY, Repeat, Request, RouterConfig, SarathiConfig, SchedulerConfig, SglangConfig,
    Silent, SimConfig, SimError, TrtllmConfig, VllmConfig, VllmNeuronConfig, VllmV1Config,
};
use vidur::spec::catalog::Catalog;
use vidur::spec::parallel::Parallelism;
use vidur::units::{SimDuration, SimTime};
use vidur::workload::{Clients, FrontEnd, Prefixes, RequestSpec, Workload};

fn schedulers() -> impl Strategy<Value = SchedulerConfig> {
    let seats = 3u32..20;
    prop_oneof![
        (1u32..300, seats.clone()).prop_map(|(chunk_size, max_num_seqs)| {
            SchedulerConfig::Sarathi(SarathiConfig { chunk_size, max_num_seqs })
        }),
        (300u32..600, seats.clone()).prop_map(|(max_num_batched_tokens, max_num_seqs)| {
            SchedulerConfig::Vllm(VllmConfig { max_num_seqs, max_num_batched_tokens })
        }),
        seats.clone().prop_map(|max_num_seqs| {
            SchedulerConfig::Orca(OrcaConfig { max_num_seqs, max_request_tokens: 300 })
        }),
        seats.clone().prop_map(|max_num_seqs| {
            SchedulerConfig::FasterTransformer(OrcaConfig { max_num_seqs, max_request_tokens: 300 })
        }),
        todays_engines(),
        (seats.clone(), any::<bool>()).prop_map(|(max_num_seqs, host)| {
            let host = HostTime { gap_us: u32::from(host) * 700, ..HostTime::default() };
            let max_model_len = 300;
            SchedulerConfig::VllmNeuron(VllmNeuronConfig { max_num_seqs, max_model_len, host })
        }),
        (seats, 300u32..600, 0u32..12).prop_map(
            |(max_num_seqs, max_num_batched_tokens, max_waiting_iters)| {
                SchedulerConfig::Lightllm(LightllmConfig {
                    max_num_seqs,
                    max_num_batched_tokens,
                    max_waiting_iters,
                })
            }
        ),
    ]
}

/// The engines of today, with budgets so small that prompts are cut.
fn todays_engines() -> impl Strategy<Value = SchedulerConfig> {
    let host = (0u32..3, 0u32..9, 0u32..900).prop_map(|(gap, step, sequence_ns)| HostTime {
        gap_us: gap * 500,
        step_us: step * 1000,
        sequence_ns: sequence_ns * 1000,
    });
    (0..3, 1u32..20, 20u32..300, 0u32..60, any::<(bool, bool, bool)>(), host).prop_map(
        |(engine, seats, tokens, threshold, (ahead, caching, flag), host)| match engine {
            0 => SchedulerConfig::VllmV1(VllmV1Config {
                max_num_seqs: Some(seats.max(3)),
                max_num_batched_tokens: Some(tokens),
                long_prefill_token_threshold: threshold,
                reserve_full_prompt: flag,
                async_scheduling: ahead,
                enable_prefix_caching: caching,
                host,
                ..VllmV1Config::default()
            }),
            1 => SchedulerConfig::Sglang(SglangConfig {
                max_running_requests: seats.max(3),
                chunked_prefill_size: Some(tokens),
                max_prefill_tokens: tokens + threshold,
                enable_mixed_chunk: flag,
                overlap_schedule: ahead,
                radix_cache: caching,
                host,
                ..SglangConfig::default()
            }),
            _ => SchedulerConfig::Trtllm(TrtllmConfig {
                max_batch_size: seats.max(3),
                max_num_tokens: tokens,
                enable_chunked_prefill: flag,
                overlap: ahead,
                enable_block_reuse: caching,
                batch_wait_timeout_iters: threshold / 8,
                batch_wait_max_tokens_percent: 60,
                cuda_graph_padding: true,
                host,
                ..TrtllmConfig::default()
            }),
        },
    )
}

fn routers() -> impl Strategy<Value = RouterConfig> {
    prop::sample::select(vec![
        RouterConfig::RoundRobin,
        RouterConfig::Random,
        RouterConfig::LeastOutstanding,
        RouterConfig::LeastWaiting,
        RouterConfig::PowerOfTwoChoices,
        RouterConfig::LeastKv,
    ])
}

/// Small caches, so that preemption happens; arrivals in bursts, so that ties happen.
pub fn configs() -> impl Strategy<Value = (SimConfig, u32)> {
    (schedulers(), routers(), 1u32..4, 1u32..4, 20u32..80, 1u32..20, 0u32..3, any::<bool>())
        .prop_map(
            |(
                scheduler,
                router,
                num_replicas,
                stages,
                kv_blocks,
                block_size,
                watermark,
                forgetful,
            )| {
                // LightLLM manages tokens, on one stage.
                let (stages, kv_blocks, block_size) = match scheduler {
                    SchedulerConfig::Lightllm(_) => (1, kv_blocks * block_size, 1),
                    _ => (stages, kv_blocks, block_size),
                };
                let config = SimConfig {
                    num_replicas,
                    router,
                    scheduler,
                    kv_blocks,
                    block_size,
                    watermark_blocks: watermark,
                    defects: Defects { forgetful_restart: forgetful, ..Defects::default() },
                    seed: 5,
                };
                (config, stages)
            },
        )
}

pub fn workloads() -> impl Strategy<Value = Workload> {
    let clients = prop::option::weighted(0.3, (1u32..12, 0u64..20));
    let rows = prop::collection::vec((0u64..30, 1u32..150, 1u32..150), 1..60);
    let front_end = prop::option::weighted(0.2, 0u64..3);
    (rows, clients, any::<bool>(), front_end).prop_map(|(rows, clients, alike, front_end)| {
        let mut prefixes = Prefixes::new(16);
        if alike {
            for &(gap, prompt, _) in &rows {
                // Of four kinds, which begin alike and go on alike.
                let hashes = (0..u64::from(prompt / 16)).map(|at| gap % 4 + 4 * at);
                prefixes.push(&hashes.collect::<Vec<_>>());
            }
        }
        let front_end = front_end.map_or_else(FrontEnd::default, |ms| FrontEnd {
            per_request: SimDuration::from_ns(ms * 1_000_000),
            per_token: SimDuration::from_ns(3_000),
            latency: SimDuration::from_ns(ms * 700_000),
        });
        let mut now = 0;
        let requests = rows
            .into_iter()
            .map(|(gap, prefill_tokens, decode_tokens)| {
                // Every other gap is none: several requests arrive at one instant.
                now += if gap % 2 == 0 || clients.is_some() { 0 } else { gap * 7_000_000 };
                RequestSpec { arrived_at: SimTime::from_ns(now), prefill_tokens, decode_tokens }
            })
            .collect();
        let clients = clients.map(|(concurrency, ms)| Clients {
            concurrency,
            think_time: SimDuration::from_ns(ms * 1_000_000),
        });
        Workload { requests, clients, prefixes, front_end, ..Workload::default() }
    })
}

/// Step times of graphs with small buckets, so that contexts outgrow them in the middle of stretches.
fn graph_cost() -> Box<dyn CostModel> {
    let mut csv = "time_stats.graph.median,num_tensor_parallel_workers,phase,batch_size,bucket,\
                   num_layers,with_head\n"
        .to_owned();
    for bucket in [16, 40, 90, 150, 300, 700] {
        csv.push_str(&format!("{},1,context,1,{bucket},28,True\n", f64::from(bucket) * 0.0871));
        for batch in [1, 4, 20] {
            let ms = 1.37 + 0.011 * f64::from(bucket) + 0.173 * f64::from(batch);
            csv.push_str(&format!("{ms},1,token,{batch},{bucket},28,True\n"));
        }
    }
    let path = "compute/inferentia2/Qwen/Qwen3-0.6B/graph.csv".to_owned();
    let root = ProfileRoot::memory("test", BTreeMap::from([(path, csv.into_bytes())]));
    let catalog = Catalog::open(None);
    let (model, device) =
        (catalog.model("Qwen/Qwen3-0.6B").unwrap(), catalog.device("inferentia2").unwrap());
    let system = System {
        root: &root,
        model: &model,
        device: &device,
        network_device: None,
        parallel: Parallelism::SINGLE,
    };
    let limits = Limits { max_batch_tokens: 1, max_batch_size: 1 };
    let config = PredictorConfig::Graph(GraphSettings::default());
    predictor::build(&config, &system, limits, &TableCache::off()).unwrap().0
}

#[test]
fn a_stretch_pays_the_larger_bucket_from_the_step_on_that_outgrows_the_smaller() {
    let cost = graph_cost();
    let config = sim_config();
    let config = SimConfig {
        scheduler: SchedulerConfig::VllmNeuron(VllmNeuronConfig {
            max_num_seqs: 4,
            max_model_len: 300,
            host: HostTime::default(),
        }),
        ..config
    };
    // Contexts 36 to 45: four steps below 40, and six in the bucket of 90.
    let outcome = sim::run(&config, &*cost, &workload(&[(0, 35, 11)]), &mut Silent).unwrap();
    let decode = |bucket: f64| 1.37 + 0.011 * bucket + 0.173;
    let expected = 40.0 * 0.0871 + 4.0 * decode(40.0) + 6.0 * decode(90.0);
    let ms = outcome.end.since(SimTime::ZERO).as_ms();
    assert!((ms - expected).abs() < 1e-5, "{ms} against {expected}");
}

/// How late facts are told.
#[derive(Default)]
struct Lateness {
    now: SimTime,
    most: SimDuration,
}

impl Observer for Lateness {
    fn arrived(&mut self, now: SimTime, _: RequestId, _: &Request, _: ReplicaId) {
        self.now = self.now.max(now);
    }

    fn takes_repeats(&self) -> bool {
        true
    }

    fn repeated(&mut self, _: ReplicaId, _: &Batch, _: &[Request], repeats: &[Repeat]) {
        // Steps may also be told before their time.
        self.most = self.most.max(self.now.since(repeats[0].at.min(self.now)));
    }

    fn settled(&mut self, now: SimTime, _: ReplicaId, _: &KvBlocks, _: usize) {
        self.now = self.now.max(now);
    }
}

fn cases() -> u32 {
    // `VIDUR_PROPTEST_CASES=100000 cargo test sim_properties` looks further.
    std::env::var("VIDUR_PROPTEST_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(3000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_and_observers_change_nothing(
        (config, stages) in configs(),
        workload in workloads(),
        graphs_run in any::<bool>(),
    ) {
        // Every other run on graphs, whose time jumps when a context outgrows its bucket; as they
        // run prompts of a step one after the other and hold every layer, on one stage.
        let linear = LinearCost { stages };
        let graphs = graph_cost();
        let cost: &dyn CostModel = if graphs_run && stages == 1 { &*graphs } else { &linear };
        let mut watched = (
            Invariants::new(config.scheduler.limits(stages)),
            Recorder::new(config.num_replicas, true),
        );
        match sim::run(&config, cost, &workload, &mut watched) {
            Err(
                SimError::RequestTooLong { .. }
                | SimError::RequestOverLimit { .. }
                | SimError::PromptOverLimit { .. },
            ) => {}
            Err(error) => prop_assert!(false, "{error} with {config:?}"),
            Ok(outcome) => {
                // Vidur's restarts generate tokens twice, which the invariants rightly forbid.
                if !config.defects.forgetful_restart {
                    prop_assert_eq!(watched.0.violations(), &[] as &[String], "{:?}", config);
                }
                let again = sim::run(&config, cost, &workload, &mut Silent).unwrap();
                prop_assert_eq!(&outcome.requests, &again.requests);
                prop_assert_eq!(outcome.end, again.end);
                prop_assert_eq!(outcome.num_batches, again.num_batches);
                // Told in stretches, the same run has the same figures.
                let mut brief =
                    (Recorder::new(config.num_replicas, false), Lateness::default());
                sim::run(&config, cost, &workload, &mut brief).unwrap();
                let (brief, late) = brief;
                prop_assert!(late.most <= PUNCTUALITY, "told {:?} late", late.most);
                prop_assert_eq!(&brief.requests, &watched.1.requests);
                let summary = |r: &Recorder| Summary::of(r, stages, outcome.end);
                prop_assert_eq!(summary(&brief), summary(&watched.1));
                let records = &watched.1.requests;
                prop_assert_eq!(records.len(), workload.requests.len());
                for (r, spec) in records.iter().zip(&workload.requests) {
                    prop_assert!(workload.clients.is_some() || r.arrived_at == spec.arrived_at);
                    prop_assert!(r.arrived_at <= r.scheduled_at);
                    prop_assert!(r.scheduled_at < r.first_token_at);
                    prop_assert!(r.first_token_at <= r.completed_at);
                }
                let tokens: u64 =
                    watched.1.token_gaps.iter().map(|g| u64::from(g.1)).sum::<u64>() + records.len() as u64;
                let asked: u64 = workload.requests.iter().map(|r| u64::from(r.decode_tokens)).sum();
                if !config.defects.forgetful_restart {
                    prop_assert_eq!(tokens, asked);
                } else {
                    prop_assert!(tokens >= asked);
                }
            }
        }
    }
}

#[test]
fn steps_that_one_replica_runs_ahead_are_told_in_time() {
    // Each other request goes to replica 0, which soon decodes one of them alone for seconds while
    // replica 1 ends one about every half second.
    let mut requests = vec![(0, 10, 1000)];
    for output in [100, 200, 300, 400, 500, 600] {
        requests.extend([(0, 10, output), (0, 10, 1)]);
    }
    requests.push((4000, 10, 5));
    let config = SimConfig { num_replicas: 2, ..sim_config() };
    let cost = LinearCost { stages: 1 };
    let workload = workload(&requests);
    let recorder = |spans| Recorder::new(config.num_replicas, spans);
    let mut brief = (recorder(false), Lateness::default());
    let end = sim::run(&config, &cost, &workload, &mut brief).unwrap().end;
    let mut detailed = recorder(true);
    sim::run(&config, &cost, &workload, &mut detailed).unwrap();
    let (brief, late) = brief;
    assert!(late.most <= PUNCTUALITY, "told {} s late", late.most.as_seconds());
    assert!(late.most > SimDuration::ZERO, "nothing ran ahead");
    assert_eq!(Summary::of(&brief, 1, end), Summary::of(&detailed, 1, end));
}
