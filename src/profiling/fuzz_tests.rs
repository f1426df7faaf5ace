//! Every reader of what other programs print, on mangled copies of what they really print: none may
//! panic, whatever the bytes. `VIDUR_FUZZ_INPUTS=1000000 cargo test --lib --release fuzz -- --nocapture`
//! runs a million inputs through each; see docs/profiling-hardware.md.

use super::backend::torch::messages;
use super::cpu_overhead::{client, files, iteration_log, neuron_monitor, offline};
use super::detect::{amd, neuron, nvidia, topology};
use super::graph::{neuron_profiler, nrt_benchmark};
use super::{network, worker};
use crate::dataset::network::Collective;
use crate::rng::Rng;
use rand::RngExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Inputs of each reader, unless VIDUR_FUZZ_INPUTS says otherwise.
const INPUTS: u64 = 2000;

/// No input is longer.
const LONGEST: usize = 1 << 14;

struct Target {
    name: &'static str,
    samples: &'static [&'static str],
    read: fn(&str),
}

/// Words that readers look for, and numbers at the edge of their types.
const TOKENS: [&str; 40] = [
    "null",
    "true",
    "nan",
    "\"nan\"",
    "-1",
    "0",
    "1e308",
    "1e309",
    "-0.0",
    "18446744073709551615",
    "18446744073709551616",
    "4294967296",
    "-9223372036854775809",
    "0.0000001",
    "{",
    "}",
    "[",
    "]",
    "[[[[",
    "\"",
    ",",
    ":",
    "\\",
    "\\u0000",
    "\u{1b}[4m",
    "\u{1b}[",
    "\u{feff}",
    "\n",
    "\r\n",
    "\t",
    " ",
    "#",
    "GPU0",
    "NV12",
    "X",
    "MiB",
    "[N/A]",
    "(",
    ")",
    "é😀",
];

const NEURON_LS: &[&str] = &[
    r#"[{"instance_type":"trn2.3xlarge","instance_id":"i-1","neuron_device":0,"bdf":"0000:33:00.0","cpu_affinity":"0-11","numa_node":"0","connected_to":null,"nc_count":4,"logical_neuroncore_config":2,"memory_size":103079215104,"neuroncore_ids":[0,1,2,3],"neuron_processes":[]}]"#,
    r#"[{"neuron_device":0,"bdf":"cc:00.0","numa_node":"1","connected_to":[12,3,4,1],"nc_count":2,"memory_size":34359738368,"neuron_processes":[{"pid":113985,"command":"python","neuron_runtime_version":"2.0.0"}]},{"neuron_device":1,"nc_count":2,"memory_size":34359738368,"connected_to":[0]}]"#,
];
const MONITOR: &[&str] = &[
    "{\"neuron_runtime_data\":[{\"pid\":7,\"report\":{\"execution_stats\":{\"period\":1.03,\"execution_summary\":{\"completed\":123},\"latency_stats\":{\"total_latency\":{\"p0\":0.01,\"p50\":0.0125},\"device_latency\":{\"p50\":0.01}},\"error\":\"\"}}}],\"instance_info\":{\"instance_type\":\"trn1.2xlarge\"}}\n{\"neuron_runtime_data\":[],\"instance_info\":{\"instance_type\":\"trn1.2xlarge\"}}\n",
    "{\"neuron_runtime_data\":[{\"execution_stats\":{\"latency_stats\":{\"total_latency\":null,\"device_latency\":null}}}]}\n",
];
const SMI: &[&str] = &[
    "index, name, uuid, pci.bus_id, memory.total [MiB], driver_version, compute_cap\n0, NVIDIA H100 80GB HBM3, GPU-0, 00000000:03:00.0, 81559 MiB, 580.1, 9.0\n1, NVIDIA H100 80GB HBM3, GPU-1, 00000000:04:00.0, [N/A], 580.1, N/A\n",
    "index, name, memory.total [MiB]\n0, Tesla V100-SXM2-32GB, 32768 MiB\n",
];
const TOPO: &[&str] = &[
    "\u{1b}[4m\tGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\u{1b}[0m\nGPU0\t X \tNV12\tSYS\tSYS\tPXB\t0-23,48-71\t0-1\tN/A\nGPU1\tNV12\t X \tSYS\tSYS\tSYS\t0-23\t0\tN/A\nGPU2\tSYS\tSYS\t X \tNV12\tSYS\t24-47\t1\tN/A\nGPU3\tSYS\tSYS\tNV12\t X \tSYS\t24-47\t1\tN/A\nNIC0\tPXB\tSYS\tSYS\tSYS\t X \n\nLegend:\n\n  X    = Self\n",
    "\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tNV18\t0-47\nGPU1\tNV18\t X \t48-95\n",
];
const KFD: &[&str] = &[
    "cpu_cores_count 0\nsimd_count 1216\nmem_banks_count 1\nvendor_id 4098\ndevice_id 29857\nheap_type 1\nsize_in_bytes 206141652992\n",
    "cpu_cores_count 96\nsimd_count 0\nvendor_id 0\ndevice_id 0\n",
];
const NCCL: &[&str] = &[
    "# nThread 1 nGpus 2 minBytes 8 maxBytes 8\n# nccl-tests version 2.19.6 nccl-headers=22703\n# Collective test starting: all_reduce_perf\n# Using devices\n#  Rank  0 Group  0 Pid    622 on box device  0 [0x00] NVIDIA A100 80GB PCIe\n#  Rank  1 Group  0 Pid    622 on box device  1 [0x00] NVIDIA A100 80GB PCIe\n    33554432       2097152     float     sum      -1    973.2   34.48   25.86      0    969.7   34.60   25.95      0\n    67108864       2097152     float     sum      -1    1.2e+04   34.48   25.86    N/A    969.7   34.60   25.95    N/A\n# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 25.905\n",
    r#"{"version":3,"args":["all_reduce_perf","-b","8"],"env":[],"nccl_version":22703,"config":{"nthreads":1,"ngpus":4,"blocking_collectives":"false","devices":[{"rank":0,"device_info":"NVIDIA A100"}]},"results":[{"size":33554432,"count":2097152,"type":"float","redop":"sum","root":"    -1","out_of_place":null,"in_place":{"time":969.700000,"alg_bw":"nan","bus_bw":25.95,"nwrong":null},"in_place_per_iter":{"skipped_iterations":0,"min_us":900.0,"max_us":1200.0,"avg_us":970.0,"p50_us":950.0,"stdev_us":40.0},"actual_iterations":20}],"out_of_bounds":{"count":0,"okay":"true"},"errors":[]}"#,
];
const NCCOM: &[&str] = &[
    "       size(B)    count(elems)    type    time(us)    algbw(GB/s)    busbw(GB/s)\n          1024             256    fp32          58           0.02           0.02\n      33554432    Failure running neuron-bench - log file /tmp/nccom_test_log_7.log\nAvg bus bandwidth:      23.6671GB/s\n1 errors found - test failed\n",
    "    size(B)    count(elems)    type    time:avg(us)    time:p50(us)    time:p99(us)    algbw(GB/s)    busbw(GB/s)    algorithm\n       1024             256    fp32            10.0              10              12           0.10           0.09    mesh\n    Avg bus bandwidth:\t9.1966GB/s\n",
    r#"{"config":{"x":1},"results":[{"size(B)":1024,"count(elems)":256,"type":"fp32","algbw(GB/s)":0.165,"busbw(GB/s)":0.16,"time:avg(us)":6.19},{"size(B)":524288,"time:avg(us)":23.11,"time:p50(us)":22.0}]}"#,
];
const LOG: &[&str] = &[
    "(EngineCore_DP0 pid=7) INFO 09-27 11:17:17 [core.py:358] Iteration(12): 0 context requests, 0 context tokens, 8 generation requests, 8 generation tokens, iteration elapsed time: 12.34 ms\n\u{1b}[1;36m(EngineCore pid=7)\u{1b}[0;0m INFO [core.py:358] Iteration(13): 2 context requests, 64 context tokens, 6 generation requests, 6 generation tokens, iteration elapsed time: 41.84ms, GPU KV cache usage: 0.5%\n",
];
const SUMMARY: &[&str] = &[
    SUMMARY_TEXT,
    "2026-11-22 INFO processing\n{\"n_0123abcd_1\":{\"total_time\":0.0142766,\"total_active_time\":0.0138,\"mfu_max_achievable_estimated_percent\":1,\"hbm_read_bytes\":\"6582249472\",\"instance_type\":\"trn1.2xlarge\"},\"n_2\":{\"total_time\":1}}",
];
const SUMMARY_TEXT: &str = "n_e378c855_90860660587470\n    total_time                                     0.014276642922\n    mfu_estimated_percent                          0.044588405622639014\n";
const NRTPY: &[&str] = &[
    "2026-Nov-28 01:02:03.0405 7:7 INFO NRT:nrt_init\n{\"ms\": [1.25, 1.5, 2]}\n",
    "{\"error\": \"NrtError: NRT_RESOURCE\\nmore\"}\n",
];
const TRACE: &[&str] = &[
    r#"{"schemaVersion":1,"deviceProperties":[],"traceEvents":[{"ph":"M","name":"process_name","pid":7,"tid":0,"ts":0.5,"args":{"name":"python"}},{"ph":"X","cat":"user_annotation","name":"execute_new_0_cached_4","pid":7,"tid":7,"ts":1000,"dur":400.5,"args":{"External id":1}},{"ph":"X","cat":"user_annotation","name":"gpu_model_runner: preprocess","pid":7,"tid":7,"ts":1000,"dur":100},{"ph":"X","cat":"kernel","name":"gemm","pid":0,"tid":7,"ts":1100,"dur":600},{"ph":"X","cat":"python_function","name":"vllm/v1/core/sched/scheduler.py(216): schedule","pid":7,"tid":7,"ts":1800,"dur":50},{"ph":"X","cat":"user_annotation","name":"execute_new_0_cached_4","pid":7,"tid":7,"ts":2000,"dur":400},{"ph":"X","cat":"gpu_memcpy","name":"Memcpy DtoH","pid":0,"tid":7,"ts":2100,"dur":600},{"ph":"X","cat":"user_annotation","name":"execute_context_0(0)_generation_4(4)","pid":7,"tid":7,"ts":3000,"dur":1}],"traceName":"t"}"#,
    r#"[{"ph":"X","cat":"user_annotation","name":"ProfilerStep#3","pid":"7","tid":"7","ts":100,"dur":50},{"ph":"X","cat":"Kernel","name":"k","ts":"110","dur":"10"},{"name":"gpu_model_runner: forward","ph":"X","ts":1,"dur":2,"tid":1,"pid":"CPU functions","args":{}}]"#,
];
const ANSWER: &[&str] = &[
    r#"{"id": 7, "ok": {"samples": {"attn_prefill": [0.5, 0.25], "attn_decode": [1], "attn_kv_cache_save": [0.1]}, "ms": [5.0, 6.0]}}"#,
    r#"{"id": 7, "error": {"kind": "memory", "message": "CUDA out of memory. Tried to allocate 2 GiB"}}"#,
    r#"{"id": 7, "ok": {"steps": [{"step": 50.03, "schedule": 0.0785, "process_outputs": 0.0864, "prepare_inputs": 0.504, "model_execution": 47.94, "sampler": 0.75}]}}"#,
];
const STREAM: &[&str] = &[
    "data: {\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"choices\":[{\"index\":0,\"text\":\" one\",\"finish_reason\":null}],\"usage\":null}\n",
    "data: {\"error\":{\"message\":\"out of memory\",\"code\":500}}\n",
    "data: [DONE]\n",
];

fn targets() -> Vec<Target> {
    let collectives: fn(&str) = |text| {
        for collective in Collective::ALL {
            if let Ok(readings) = network::read(text, collective) {
                for (bytes, times) in readings.points {
                    assert!(bytes > 0 && times.median > 0.0 && times.median.is_finite());
                }
            }
        }
    };
    vec![
        Target {
            name: "neuron-ls",
            samples: NEURON_LS,
            read: |text| {
                if let Ok(devices) = neuron::parse(text) {
                    let _ = neuron::sku(&devices);
                }
            },
        },
        Target {
            name: "neuron-monitor",
            samples: MONITOR,
            read: |text| {
                text.lines().for_each(|line| drop(neuron::monitored_instance(line)));
                let _ = neuron_monitor::read(text.as_bytes(), 4);
            },
        },
        Target {
            name: "nvidia-smi",
            samples: SMI,
            read: |text| {
                for gpu in nvidia::parse(text).unwrap_or_default() {
                    let _ = (nvidia::sku(&gpu.name), nvidia::slug(&gpu.name));
                }
            },
        },
        Target { name: "nvidia-smi topo", samples: TOPO, read: |text| drop(topology::parse(text)) },
        Target {
            name: "amdkfd properties",
            samples: KFD,
            read: |text| {
                let (node, bank) = text.split_once("heap").unwrap_or((text, text));
                let _ = amd::parse(node, bank).map(amd::sku);
            },
        },
        Target { name: "nccl-tests", samples: NCCL, read: collectives },
        Target { name: "nccom-test", samples: NCCOM, read: collectives },
        Target {
            name: "vLLM's log",
            samples: LOG,
            read: |text| {
                assert!(iteration_log::parse(text).iter().all(|step| step.elapsed_ms >= 0.0));
            },
        },
        Target {
            name: "neuron-profile summary",
            samples: SUMMARY,
            read: |text| {
                let _ = (neuron_profiler::summary(text), neuron_profiler::summary_text(text));
            },
        },
        Target {
            name: "nrtpy's answer",
            samples: NRTPY,
            read: |text| {
                let times = nrt_benchmark::answer(text).unwrap_or_default();
                assert!(times.iter().all(|ms| ms.is_finite() && *ms > 0.0));
            },
        },
        Target {
            name: "profiler traces",
            samples: TRACE,
            read: |text| {
                for batch in [None, Some(8)] {
                    let Ok((_, steps)) = files::read(text.as_bytes(), batch) else { continue };
                    for row in steps.rows {
                        assert!(
                            row.gap_ms
                                .iter()
                                .chain(&row.device_ms)
                                .all(|ms| ms.is_finite() && *ms >= 0.0)
                        );
                    }
                }
            },
        },
        Target {
            name: "worker and driver answers",
            samples: ANSWER,
            read: |text| {
                if let Ok(Ok(reply)) = worker::answer(text, 7) {
                    let _ = messages::milliseconds(&reply["ms"]);
                    let _ = messages::milliseconds(&reply["samples"]["attn_prefill"]);
                    let _ = offline::row(4, &reply);
                }
            },
        },
        Target {
            name: "streamed tokens",
            samples: STREAM,
            read: |text| {
                text.lines().for_each(|line| drop(client::event(line)));
            },
        },
    ]
}

/// A sample with up to eight edits: bytes changed, cut out, doubled or exchanged for a piece of another
/// sample, tokens put in.
fn mangled(rng: &mut Rng, samples: &[&str]) -> String {
    let any = |rng: &mut Rng| samples[rng.random_range(0..samples.len())].as_bytes();
    let mut bytes = any(rng).to_vec();
    for _ in 0..rng.random_range(0..=8_u32) {
        let at = rng.random_range(0..=bytes.len());
        let end = (at + rng.random_range(0..24_usize)).min(bytes.len());
        match rng.random_range(0..7_u32) {
            0 if at < bytes.len() => bytes[at] = rng.random_range(0..=255_u8),
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8_u32),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece.repeat(rng.random_range(1..4_usize)));
            }
            4 => {
                let other = any(rng);
                let from = rng.random_range(0..=other.len());
                let to = (from + rng.random_range(0..200_usize)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            5 => bytes.truncate(at),
            _ => {
                let token = TOKENS[rng.random_range(0..TOKENS.len())];
                bytes.splice(at..end, token.bytes());
            }
        }
    }
    bytes.truncate(LONGEST);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn no_reader_panics_at_fuzz() {
    let inputs =
        std::env::var("VIDUR_FUZZ_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(INPUTS);
    for target in targets() {
        // What is right must be read, or the mangled copies test nothing.
        target.samples.iter().for_each(|sample| (target.read)(sample));
        let (mut rng, begin) = (crate::rng::stream(2026, target.name), Instant::now());
        for i in 0..inputs {
            let text = mangled(&mut rng, target.samples);
            let result = catch_unwind(AssertUnwindSafe(|| (target.read)(&text)));
            assert!(result.is_ok(), "{}: input {i} makes the reader panic:\n{text:?}", target.name);
        }
        eprintln!("{}: {inputs} inputs in {:.1} s", target.name, begin.elapsed().as_secs_f64());
    }
}

/// The samples are what the tools print: every reader takes them as they are.
#[test]
fn the_samples_of_fuzz_are_read() {
    assert!(NEURON_LS.iter().all(|text| neuron::parse(text).is_ok()));
    assert!(neuron_monitor::read(MONITOR[0].as_bytes(), 1).is_ok());
    assert!(SMI.iter().all(|text| nvidia::parse(text).is_ok()));
    assert!(TOPO.iter().all(|text| topology::parse(text).is_ok()));
    assert!(amd::parse(KFD[0], KFD[0]).is_some() && amd::parse(KFD[1], KFD[1]).is_none());
    for text in NCCL.iter().chain(NCCOM) {
        assert!(network::read(text, Collective::AllReduce).is_ok(), "{text}");
    }
    assert_eq!(iteration_log::parse(LOG[0]).len(), 2);
    assert!(neuron_profiler::summary_text(SUMMARY[0]).is_some());
    assert!(neuron_profiler::summary(SUMMARY[1]).is_ok());
    assert!(nrt_benchmark::answer(NRTPY[0]).is_ok() && nrt_benchmark::answer(NRTPY[1]).is_err());
    assert!(files::read(TRACE[0].as_bytes(), None).is_ok());
    assert!(files::read(TRACE[1].as_bytes(), Some(4)).is_ok());
    assert!(ANSWER.iter().all(|line| worker::answer(line, 7).is_ok()));
    assert_eq!(
        STREAM.iter().map(|line| client::event(line).is_ok()).collect::<Vec<_>>(),
        [true, false, true]
    );
}
