//! Random configurations and workloads through every scheduler, router and parallelism: the
//! invariants hold, observers change nothing, and the same input gives the same facts.

use crate::support::LinearCost;
use proptest::prelude::*;
use vidur::metrics::{Recorder, Summary};
use vidur::sim::{
    self, Defects, Invariants, LightllmConfig, OrcaConfig, RouterConfig, SarathiConfig,
    SchedulerConfig, Silent, SimConfig, SimError, VllmConfig,
};
use vidur::units::{SimDuration, SimTime};
use vidur::workload::{Clients, RequestSpec, Workload};

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
    (rows, clients).prop_map(|(rows, clients)| {
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
        Workload { requests, clients, ..Workload::default() }
    })
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
    ) {
        let cost = LinearCost { stages };
        let mut watched = (
            Invariants::new(config.scheduler.limits(stages)),
            Recorder::new(config.num_replicas, true),
        );
        match sim::run(&config, &cost, &workload, &mut watched) {
            Err(SimError::RequestTooLong { .. } | SimError::RequestOverLimit { .. }) => {}
            Err(error) => prop_assert!(false, "{error} with {config:?}"),
            Ok(outcome) => {
                // Vidur's restarts generate tokens twice, which the invariants rightly forbid.
                if !config.defects.forgetful_restart {
                    prop_assert_eq!(watched.0.violations(), &[] as &[String], "{:?}", config);
                }
                let again = sim::run(&config, &cost, &workload, &mut Silent).unwrap();
                prop_assert_eq!(&outcome.requests, &again.requests);
                prop_assert_eq!(outcome.end, again.end);
                prop_assert_eq!(outcome.num_batches, again.num_batches);
                // Told in stretches, the same run has the same figures.
                let mut brief = Recorder::new(config.num_replicas, false);
                sim::run(&config, &cost, &workload, &mut brief).unwrap();
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
