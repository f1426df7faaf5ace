//! Small runs whose every number can be worked out by hand.

use crate::support::{LinearCost, sim_config, workload};
use vidur::cost::{BatchShape, CostModel, OpTime, StepCost};
use vidur::ids::StageId;
use vidur::metrics::{Recorder, Summary};
use vidur::sim::{
    self, HostTime, RouterConfig, SarathiConfig, SchedulerConfig, SglangConfig, SimConfig,
    SimError, TrtllmConfig, VllmConfig, VllmNeuronConfig, VllmV1Config,
};
use vidur::units::SimDuration;
use vidur::workload::{Clients, FrontEnd, Prefixes};

fn run(config: &SimConfig, requests: &[(u64, u32, u32)], stages: u32) -> Recorder {
    let mut recorder = Recorder::new(config.num_replicas, true);
    sim::run(config, &LinearCost { stages }, &workload(requests), &mut recorder).unwrap();
    recorder
}

/// The cost of a step in nanoseconds: 5 ms + 10 us a token + 100 us a decode + 0.1 us a token of context.
fn step(tokens: u64, decodes: u64, context: u64) -> u64 {
    5_000_000 + 10_000 * tokens + 100_000 * decodes + 100 * context
}

#[test]
fn one_request_alone_prefills_in_chunks_and_then_decodes() {
    let recorder = run(&sim_config(), &[(3, 250, 3)], 1);
    let r = &recorder.requests[0];
    let prefill = step(100, 0, 0) + step(100, 0, 100) + step(50, 0, 200);
    assert_eq!(r.scheduled_at.as_ns(), 3_000_000);
    assert_eq!(r.first_token_at.as_ns(), 3_000_000 + prefill);
    let decode = step(1, 1, 251) + step(1, 1, 252);
    assert_eq!(r.completed_at.as_ns(), 3_000_000 + prefill + decode);
    assert_eq!(r.execution.as_ns(), prefill + decode);
    assert_eq!(recorder.num_batches, 5);
}

#[test]
fn sarathi_decodes_beside_a_prompt_and_vllm_stops_decoding_for_it() {
    let requests = [(0, 10, 50), (20, 400, 2)];
    let chunked = run(&sim_config(), &requests, 1);
    let config = SimConfig {
        scheduler: SchedulerConfig::Vllm(VllmConfig {
            max_num_seqs: 8,
            max_num_batched_tokens: 1000,
        }),
        ..sim_config()
    };
    let whole = run(&config, &requests, 1);
    let longest_gap = |r: &Recorder| r.token_gaps.iter().map(|g| g.0).max().unwrap();
    // Sarathi: at most one chunk between two tokens; vLLM: the whole prompt of 400.
    // It is the fourth chunk, of 99 tokens beside one decode: 297 are cached and the other has 17.
    assert_eq!(longest_gap(&chunked), step(100, 1, 297 + 17));
    assert!(longest_gap(&whole) >= step(400, 0, 0) + step(1, 1, 0));
    assert!(whole.requests[1].first_token_at < chunked.requests[1].first_token_at);
}

#[test]
fn requests_that_arrive_together_share_the_first_batch() {
    let recorder = run(&sim_config(), &[(0, 10, 1), (0, 20, 1), (0, 30, 1)], 1);
    assert_eq!(recorder.num_batches, 1);
    assert!(recorder.requests.iter().all(|r| r.completed_at.as_ns() == step(60, 0, 0)));
}

#[test]
fn without_room_the_youngest_starts_again_and_still_gets_its_tokens() {
    let config = SimConfig { kv_blocks: 8, block_size: 4, watermark_blocks: 0, ..sim_config() };
    let recorder = run(&config, &[(0, 12, 16), (0, 12, 16)], 1);
    assert_eq!(recorder.requests[0].restarts, 0);
    assert!(recorder.requests[1].restarts >= 1);
    assert!(recorder.requests[0].completed_at < recorder.requests[1].completed_at);
    let tokens: u32 = recorder.token_gaps.iter().map(|g| g.1).sum();
    assert_eq!(tokens, 2 * 15);
}

#[test]
fn a_pipeline_overlaps_batches_of_different_requests() {
    let requests: Vec<_> = (0..4).map(|_| (0, 100, 1)).collect();
    let recorder = run(&sim_config(), &requests, 2);
    // Four batches of one chunk each: stage 0 takes 6 ms, stage 1 takes 7 ms, one after the other.
    let (first, second) = (step(100, 0, 0), step(100, 0, 0) + 1_000_000);
    assert_eq!(recorder.requests[3].completed_at.as_ns(), first + 4 * second);
    let overlapping = recorder.spans.windows(2).any(|w| {
        w[0].stage != w[1].stage && w[1].start.as_ns() < w[0].start.as_ns() + w[0].duration.as_ns()
    });
    assert!(overlapping);
}

#[test]
fn what_could_never_finish_is_refused_before_anything_runs() {
    let config = SimConfig { kv_blocks: 10, watermark_blocks: 1, ..sim_config() };
    let run = |config: &SimConfig, requests: &[(u64, u32, u32)]| {
        sim::run(config, &LinearCost { stages: 1 }, &workload(requests), &mut sim::Silent)
            .map(|o| o.num_batches)
    };
    assert!(run(&config, &[(0, 100, 44)]).is_ok());
    let error = run(&config, &[(0, 100, 44), (1, 100, 45)]).unwrap_err();
    assert!(matches!(error, SimError::RequestTooLong { needed: 10, .. }), "{error}");
    let config = SimConfig {
        scheduler: SchedulerConfig::Vllm(VllmConfig {
            max_num_seqs: 8,
            max_num_batched_tokens: 99,
        }),
        ..sim_config()
    };
    assert!(run(&config, &[(0, 90, 9)]).is_ok());
    assert!(matches!(run(&config, &[(0, 90, 10)]), Err(SimError::RequestOverLimit { .. })));
}

/// Every step takes a year.
struct Slow;

impl CostModel for Slow {
    fn num_stages(&self) -> u32 {
        1
    }

    fn stage_cost(&self, _: StageId, _: &BatchShape) -> StepCost {
        StepCost { duration: SimDuration::from_ms(3.2e10), ..StepCost::default() }
    }

    fn stage_breakdown(&self, _: StageId, _: &BatchShape) -> Vec<OpTime> {
        Vec::new()
    }
}

#[test]
fn a_clock_that_passes_a_hundred_years_ends_the_run() {
    for output in [50, 200] {
        let mut recorder = Recorder::new(1, false);
        let result = sim::run(&sim_config(), &Slow, &workload(&[(0, 9, output)]), &mut recorder);
        assert_eq!(result.err(), (output == 200).then_some(SimError::TooLong { left: 1 }));
    }
}

#[test]
fn prompts_wait_while_decodes_use_up_the_chunk_budget() {
    let config = SimConfig {
        scheduler: SchedulerConfig::Sarathi(SarathiConfig { chunk_size: 2, max_num_seqs: 8 }),
        ..sim_config()
    };
    let recorder = run(&config, &[(0, 1, 30), (0, 1, 20), (0, 1, 5)], 1);
    let r = &recorder.requests;
    assert_eq!(r[2].scheduled_at, r[1].completed_at);
    assert!(r[2].completed_at < r[0].completed_at);
}

#[test]
fn closed_loop_clients_send_when_the_last_request_is_done_and_thought_about() {
    let mut load = workload(&[(0, 10, 1), (0, 10, 1), (0, 10, 1), (0, 10, 1), (0, 10, 1)]);
    load.clients = Some(Clients { concurrency: 2, think_time: SimDuration::from_ns(1_000_000) });
    let mut recorder = Recorder::new(1, false);
    sim::run(&sim_config(), &LinearCost { stages: 1 }, &load, &mut recorder).unwrap();
    let r = &recorder.requests;
    let pair = step(20, 0, 0);
    assert_eq!(r[1].completed_at.as_ns(), pair);
    assert_eq!(r[2].arrived_at.as_ns(), pair + 1_000_000);
    assert_eq!(r[3].arrived_at, r[2].arrived_at);
    assert_eq!(r[4].arrived_at.as_ns(), 2 * (pair + 1_000_000));
}

#[test]
fn a_request_is_routed_by_what_ended_at_the_same_time() {
    // Who is done sends at once, to the replica that it has just left and not to the busy one.
    let lengths: Vec<_> = (0..40).map(|i| (0, 10, 3 + i % 7)).collect();
    let mut load = workload(&lengths);
    load.clients = Some(Clients { concurrency: 2, think_time: SimDuration::ZERO });
    for router in [RouterConfig::LeastOutstanding, RouterConfig::LeastKv] {
        let config = SimConfig { num_replicas: 2, router, ..sim_config() };
        let mut recorder = Recorder::new(2, false);
        sim::run(&config, &LinearCost { stages: 1 }, &load, &mut recorder).unwrap();
        assert_eq!(recorder.batch_requests, recorder.num_batches, "{router:?}: shared a batch");
        assert!(recorder.replicas.iter().all(|r| r.requests > 15), "{router:?}");
    }
}

#[test]
fn least_kv_spreads_a_burst_that_holds_nothing_yet() {
    let config = SimConfig { num_replicas: 4, router: RouterConfig::LeastKv, ..sim_config() };
    let mut recorder = Recorder::new(4, false);
    let load = workload(&[(0, 50, 4); 32]);
    sim::run(&config, &LinearCost { stages: 1 }, &load, &mut recorder).unwrap();
    assert!(recorder.replicas.iter().all(|r| r.requests == 8));
}

#[test]
fn a_long_output_is_the_same_in_one_go_and_step_by_step() {
    let load = workload(&[(0, 10, 5000), (3, 30, 3000)]);
    for num_replicas in [1, 2] {
        let config = SimConfig { num_replicas, ..sim_config() };
        let summary = |spans| {
            let mut recorder = Recorder::new(num_replicas, spans);
            let end =
                sim::run(&config, &LinearCost { stages: 1 }, &load, &mut recorder).unwrap().end;
            (Summary::of(&recorder, 1, end), recorder.num_batches)
        };
        assert_eq!(summary(false), summary(true), "{num_replicas} replicas");
    }
}

fn v1(change: impl FnOnce(&mut VllmV1Config)) -> SimConfig {
    let mut config = VllmV1Config {
        max_num_seqs: Some(8),
        max_num_batched_tokens: Some(100),
        async_scheduling: false,
        ..VllmV1Config::default()
    };
    change(&mut config);
    SimConfig { scheduler: SchedulerConfig::VllmV1(config), ..sim_config() }
}

#[test]
fn vllm_v1_shares_one_budget_between_decodes_and_prompts() {
    // The second prompt gets what the first one's decode leaves of the budget.
    let recorder = run(&v1(|_| {}), &[(0, 10, 5), (1, 250, 2)], 1);
    let first = step(10, 0, 0);
    assert_eq!(recorder.requests[0].first_token_at.as_ns(), first);
    let chunks = step(100, 1, 11) + step(100, 1, 99 + 12) + step(53, 1, 198 + 13);
    assert_eq!(recorder.requests[1].first_token_at.as_ns(), first + chunks);
    // No prompt may have more than 20 tokens of a step.
    let pieces = run(&v1(|c| c.long_prefill_token_threshold = 20), &[(0, 100, 1)], 1);
    assert_eq!(pieces.num_batches, 5);
}

#[test]
fn an_engine_that_runs_ahead_sees_an_arrival_one_step_later() {
    let requests = [(0, 10, 50), (7, 10, 2)];
    let waits = |ahead| {
        let recorder = run(&v1(|c| c.async_scheduling = ahead), &requests, 1);
        recorder.requests[1].scheduled_at.as_ns()
    };
    let (prompt, decode) = (step(10, 0, 0), step(1, 1, 11));
    assert_eq!(waits(false), prompt + decode);
    assert_eq!(waits(true), prompt + decode + step(1, 1, 12));
}

#[test]
fn the_host_takes_its_time_before_every_step_or_beside_it() {
    let host = HostTime { gap_us: 100, step_us: 2_000, sequence_ns: 1_000_000 };
    let end = |ahead| {
        let config = v1(|c| (c.host, c.async_scheduling) = (host, ahead));
        run(&config, &[(0, 10, 3)], 1).requests[0].completed_at.as_ns()
    };
    let device = step(10, 0, 0) + step(1, 1, 11) + step(1, 1, 12);
    assert_eq!(end(true), device + 3 * 100_000);
    assert_eq!(end(false), device + 3 * 3_100_000);
}

#[test]
fn a_prompt_that_begins_like_an_earlier_one_is_computed_from_where_they_part() {
    let mut load = workload(&[(0, 80, 1), (50, 80, 1), (100, 64, 1)]);
    let mut prefixes = Prefixes::new(16);
    prefixes.push(&[1, 2, 3, 4, 5]);
    prefixes.push(&[1, 2, 3, 14, 15]);
    prefixes.push(&[1, 2, 3, 4]);
    load.prefixes = prefixes;
    let times = |caching| {
        let mut recorder = Recorder::new(1, false);
        let config = v1(|c| c.enable_prefix_caching = caching);
        sim::run(&config, &LinearCost { stages: 1 }, &load, &mut recorder).unwrap();
        let took = |i: usize| {
            let r = &recorder.requests[i];
            r.completed_at.as_ns() - r.arrived_at.as_ns()
        };
        [took(0), took(1), took(2)]
    };
    assert_eq!(times(false), [step(80, 0, 0), step(80, 0, 0), step(64, 0, 0)]);
    // At least the last token is computed, and whole blocks only.
    assert_eq!(times(true), [step(80, 0, 0), step(32, 0, 48), step(16, 0, 48)]);
}

#[test]
fn a_preempted_request_finds_what_is_left_of_its_own_blocks() {
    let config = |caching| SimConfig {
        kv_blocks: 15,
        block_size: 4,
        watermark_blocks: 0,
        ..v1(|c| c.enable_prefix_caching = caching)
    };
    let requests = [(0, 24, 16), (0, 24, 16)];
    let (with, without) = (run(&config(true), &requests, 1), run(&config(false), &requests, 1));
    assert_eq!((with.requests[1].restarts, without.requests[1].restarts), (1, 1));
    assert!(with.requests[1].completed_at < without.requests[1].completed_at);
}

#[test]
fn sglang_stops_decoding_for_prompts_and_trtllm_takes_whole_ones_beside() {
    let requests = [(0, 10, 50), (7, 150, 2)];
    let config = |scheduler| SimConfig { scheduler, ..sim_config() };
    let sglang = SchedulerConfig::Sglang(SglangConfig {
        chunked_prefill_size: Some(100),
        overlap_schedule: false,
        ..SglangConfig::default()
    });
    let longest_gap = |r: &Recorder| r.token_gaps.iter().map(|g| g.0).max().unwrap();
    let r = run(&config(sglang), &requests, 1);
    assert_eq!(longest_gap(&r), step(100, 0, 0) + step(50, 0, 100) + step(2, 2, 12 + 151));
    let trtllm = TrtllmConfig { max_num_tokens: 151, overlap: false, ..TrtllmConfig::default() };
    let r = run(&config(SchedulerConfig::Trtllm(trtllm)), &requests, 1);
    assert_eq!(longest_gap(&r), step(151, 1, 12));
    let short = TrtllmConfig { max_num_tokens: 149, ..trtllm };
    let load = workload(&requests);
    let refused = sim::run(
        &config(SchedulerConfig::Trtllm(short)),
        &LinearCost { stages: 1 },
        &load,
        &mut sim::Silent,
    );
    assert_eq!(
        refused.unwrap_err().to_string(),
        "request 1 has a prompt of 150 tokens, more than scheduler.trtllm.max_num_tokens 149, and \
         prompts are not cut: it could never start; raise the setting, or turn chunked prefill on"
    );
}

#[test]
fn trtllm_admits_only_whom_it_can_serve_to_the_end() {
    let config = SimConfig {
        scheduler: SchedulerConfig::Trtllm(TrtllmConfig::default()),
        kv_blocks: 11,
        block_size: 4,
        ..sim_config()
    };
    let config = SimConfig { watermark_blocks: 0, ..config };
    let recorder = run(&config, &[(0, 12, 12), (0, 12, 12)], 1);
    assert_eq!(recorder.requests[1].restarts, 0);
    assert_eq!(recorder.requests[1].scheduled_at, recorder.requests[0].completed_at);
}

#[test]
fn a_front_end_takes_requests_one_after_the_other() {
    let mut load = workload(&[(0, 100, 1), (0, 50, 1)]);
    let us = |n: u64| SimDuration::from_ns(n * 1000);
    load.front_end = FrontEnd { per_request: us(1000), per_token: us(10), latency: us(500) };
    for clients in [None, Some(Clients { concurrency: 2, think_time: SimDuration::ZERO })] {
        load.clients = clients;
        let mut recorder = Recorder::new(1, false);
        sim::run(&sim_config(), &LinearCost { stages: 1 }, &load, &mut recorder).unwrap();
        let r = &recorder.requests;
        assert_eq!((r[0].arrived_at.as_ns(), r[0].scheduled_at.as_ns()), (0, 2_500_000));
        // It gets there at 4 ms, while the first prompt runs.
        assert_eq!(r[1].arrived_at.as_ns(), 0);
        assert_eq!(r[1].scheduled_at.as_ns(), 2_500_000 + step(100, 0, 0));
    }
}

#[test]
fn vllm_neuron_reads_one_prompt_a_step_before_all_decodes_and_reserves_whole_seats() {
    let config = SimConfig {
        scheduler: SchedulerConfig::VllmNeuron(VllmNeuronConfig {
            max_num_seqs: 2,
            max_model_len: 64,
            host: HostTime::default(),
        }),
        ..sim_config()
    };
    let recorder = run(&config, &[(0, 10, 3), (0, 20, 2), (0, 30, 1)], 1);
    let r = &recorder.requests;
    // Two prompts one after the other, then decodes together; the third has no seat until then.
    let first = step(10, 0, 0);
    let second = first + step(20, 0, 0);
    assert_eq!(r[0].first_token_at.as_ns(), first);
    assert_eq!(r[1].first_token_at.as_ns(), second);
    let both = second + step(2, 2, 11 + 21);
    assert_eq!(r[1].completed_at.as_ns(), both);
    // Its prompt goes before the decode of the first.
    let third = both + step(30, 0, 0);
    assert_eq!((r[2].scheduled_at.as_ns(), r[2].completed_at.as_ns()), (both, third));
    assert_eq!(r[0].completed_at.as_ns(), third + step(1, 1, 12));
    // Cache for two seats of 64 tokens is four blocks of 16 each; a third seat finds none.
    let SchedulerConfig::VllmNeuron(seats) = config.scheduler.clone() else { unreachable!() };
    let seats = VllmNeuronConfig { max_num_seqs: 3, ..seats };
    let scheduler = SchedulerConfig::VllmNeuron(seats);
    let tight = SimConfig { scheduler, kv_blocks: 11, watermark_blocks: 0, ..config.clone() };
    let recorder = run(&tight, &[(0, 10, 3), (0, 20, 2), (0, 30, 1)], 1);
    assert_eq!(recorder.requests[2].scheduled_at.as_ns(), both);
    let refused =
        sim::run(&config, &LinearCost { stages: 1 }, &workload(&[(0, 60, 5)]), &mut sim::Silent);
    assert!(refused.unwrap_err().to_string().contains("scheduler.vllm_neuron.max_model_len 64"));
}
