//! Finding what no source states, on the runs of one GPU system only: the engine's time on the host, its
//! front end, and how many requests each client of an unpublished protocol sends.
//!
//! One setup at a time, one constant at a time, each tried at the values of a fixed list, until no
//! change helps: the same input gives the same constants. What is made small is
//! `mean min(|ln(TTFT ratio)|, 1) + 2 · mean min(|ln(TPOT ratio)|, 1)` over the rows that fit.

use super::predict::{Bench, Times};
use super::setups::{Setup, Setups};
use crate::sim::{HostTime, SchedulerConfig};

/// The only system that constants are found on.
pub const SYSTEM: &str = "h100_sxm";

/// Rounds over all constants of a setup.
const MOST_ROUNDS: usize = 6;

/// A constant: its name, the values that are tried, and where it stands.
struct Constant {
    name: &'static str,
    values: &'static [u32],
    place: fn(&mut Setup) -> Option<&mut u32>,
}

fn host(setup: &mut Setup) -> Option<&mut HostTime> {
    match &mut setup.scheduler {
        SchedulerConfig::VllmV1(c) => Some(&mut c.host),
        SchedulerConfig::Sglang(c) => Some(&mut c.host),
        SchedulerConfig::Trtllm(c) => Some(&mut c.host),
        _ => None,
    }
}

/// The tokens of a step.
fn budget(setup: &mut Setup) -> Option<&mut u32> {
    if !setup.calibrate_protocol || setup.step_beyond_prompt.is_some() {
        return None;
    }
    match &mut setup.scheduler {
        SchedulerConfig::VllmV1(c) => Some(c.max_num_batched_tokens.get_or_insert(8192)),
        SchedulerConfig::Sglang(c) => Some(c.chunked_prefill_size.get_or_insert(8192)),
        SchedulerConfig::Trtllm(c) => Some(&mut c.max_num_tokens),
        _ => None,
    }
}

const CONSTANTS: [Constant; 13] = [
    Constant {
        name: "host.gap_us",
        values: &[0, 100, 200, 300, 400, 500, 700, 1000, 1300, 1600, 2000, 2500, 3000, 4000],
        place: |s| host(s).map(|h| &mut h.gap_us),
    },
    Constant {
        name: "host.step_us",
        values: &[0, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 10_000, 12_000],
        place: |s| host(s).map(|h| &mut h.step_us),
    },
    Constant {
        name: "host.sequence_ns",
        values: &[0, 5000, 10_000, 20_000, 30_000, 40_000, 60_000, 80_000, 120_000],
        place: |s| host(s).map(|h| &mut h.sequence_ns),
    },
    Constant {
        name: "beyond.prompt_step_percent",
        values: &[100, 103, 106, 109, 112, 115, 118, 121, 125, 130, 135],
        place: |s| Some(&mut s.beyond.prompt_step_percent),
    },
    Constant {
        name: "beyond.decode_step_percent",
        values: &[100, 102, 104, 106, 108, 110, 113, 116],
        place: |s| Some(&mut s.beyond.decode_step_percent),
    },
    Constant {
        name: "beyond.all_reduce_ns",
        values: &[0, 1000, 2000, 3000, 4000, 6000, 8000, 10_000, 13_000],
        place: |s| Some(&mut s.beyond.all_reduce_ns),
    },
    Constant {
        name: "beyond.reserved_mb",
        values: &[0, 1000, 2000, 3000, 4000, 5000, 6000, 8000],
        place: |s| Some(&mut s.beyond.reserved_mb),
    },
    Constant {
        name: "think_us",
        values: &[0, 1000, 3000, 5000, 10_000, 15_000, 20_000, 30_000],
        place: |s| Some(&mut s.protocol.think_us),
    },
    Constant {
        name: "tokens of a step",
        values: &[2048, 4096, 8192, 16_384, 32_768],
        place: budget,
    },
    Constant {
        name: "latency_us",
        values: &[0, 2000, 5000, 10_000, 15_000, 20_000, 30_000, 40_000, 60_000],
        place: |s| Some(&mut s.protocol.latency_us),
    },
    Constant {
        name: "request_us",
        values: &[0, 200, 500, 1000, 2000, 3000, 5000, 8000],
        place: |s| Some(&mut s.protocol.request_us),
    },
    Constant {
        name: "token_ns",
        values: &[0, 200, 500, 1000, 2000, 3000, 5000],
        place: |s| Some(&mut s.protocol.token_ns),
    },
    Constant {
        name: "prompts_per_client",
        values: &[2, 4, 6, 8, 10, 12, 16, 20, 50],
        place: |s| s.calibrate_protocol.then_some(&mut s.protocol.prompts_per_client),
    },
];

/// How a constant was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The setup's name.
    pub setup: String,
    /// The constant's name.
    pub constant: &'static str,
    /// Its value before.
    pub before: u32,
    /// Its value now.
    pub after: u32,
    /// Runs that it was found on.
    pub rows: usize,
}

/// Finds the constants of every setup that has runs on [`SYSTEM`], and says what changed.
pub fn calibrate(bench: &Bench<'_>, setups: &Setups) -> (Setups, Vec<Found>) {
    let mut setups = setups.clone();
    let mut found = Vec::new();
    for at in 0..setups.setups.len() {
        let rows: Vec<usize> = (0..bench.rows().len())
            .filter(|&i| {
                bench.rows()[i].system == SYSTEM && setups.of(&bench.rows()[i]) == Some(at)
            })
            .collect();
        if rows.is_empty() {
            continue;
        }
        let before = setups.setups[at].clone();
        let after = descend(bench, &rows, before.clone());
        for constant in &CONSTANTS {
            let value = |setup: &Setup| (constant.place)(&mut setup.clone()).copied();
            if let (Some(before), Some(after_value)) = (value(&before), value(&after)) {
                found.push(Found {
                    setup: after.name.clone(),
                    constant: constant.name,
                    before,
                    after: after_value,
                    rows: rows.len(),
                });
            }
        }
        setups.setups[at] = after;
    }
    (setups, found)
}

fn descend(bench: &Bench<'_>, rows: &[usize], mut best: Setup) -> Setup {
    let mut least = loss(bench, rows, &best);
    for _ in 0..MOST_ROUNDS {
        let mut better = false;
        for constant in &CONSTANTS {
            let start = best.clone();
            for &value in constant.values {
                let mut tried = start.clone();
                let Some(place) = (constant.place)(&mut tried) else { break };
                if *place == value {
                    continue;
                }
                *place = value;
                let loss = loss(bench, rows, &tried);
                if loss < least {
                    (least, best, better) = (loss, tried, true);
                }
            }
        }
        if !better {
            break;
        }
    }
    best
}

fn loss(bench: &Bench<'_>, rows: &[usize], setup: &Setup) -> f64 {
    let off = |measured: f64, said: f64| (said / measured).ln().abs().min(1.0);
    let each = bench.simulate(rows, setup).into_iter().zip(rows).map(|(said, &i)| {
        let row = &bench.rows()[i];
        match said {
            Ok(Times { ttft_ms, tpot_ms }) => {
                off(row.ttft_ms, ttft_ms) + 2.0 * off(row.tpot_ms, tpot_ms)
            }
            Err(_) => 3.0,
        }
    });
    each.sum::<f64>() / rows.len().max(1) as f64
}
