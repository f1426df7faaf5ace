//! What several tests need.

use vidur::cost::{BatchShape, CostModel, OpTime, StepCost};
use vidur::ids::StageId;
use vidur::sim::{Defects, RouterConfig, SarathiConfig, SchedulerConfig, SimConfig};
use vidur::spec::ops::Op;
use vidur::units::{SimDuration, SimTime};
use vidur::workload::{RequestSpec, Workload};

/// A step costs a constant and a little per token, per sequence and per token of context.
pub struct LinearCost {
    pub stages: u32,
}

impl CostModel for LinearCost {
    fn num_stages(&self) -> u32 {
        self.stages
    }

    fn stage_cost(&self, stage: StageId, batch: &BatchShape) -> StepCost {
        let ms = self.stage_breakdown(stage, batch)[0].ms;
        StepCost { duration: SimDuration::from_ms(ms), ..StepCost::default() }
    }

    fn stage_breakdown(&self, stage: StageId, batch: &BatchShape) -> Vec<OpTime> {
        let context: u64 = batch.prefills.iter().map(|p| u64::from(p.kv_tokens)).sum();
        let ms = 5.0
            + f64::from(stage.0)
            + 0.01 * batch.num_tokens() as f64
            + 0.1 * f64::from(batch.num_decodes)
            + 1e-4 * (context + batch.decode_kv_tokens) as f64;
        vec![OpTime { op: Op::MlpUpProj, ms, extrapolated: false }]
    }
}

/// One replica with room, and defaults.
pub fn sim_config() -> SimConfig {
    SimConfig {
        num_replicas: 1,
        router: RouterConfig::RoundRobin,
        scheduler: SchedulerConfig::Sarathi(SarathiConfig { chunk_size: 100, max_num_seqs: 8 }),
        kv_blocks: 1000,
        block_size: 16,
        watermark_blocks: 10,
        defects: Defects::default(),
        seed: 1,
    }
}

/// Requests given as (arrival in ms, prompt tokens, output tokens).
pub fn workload(requests: &[(u64, u32, u32)]) -> Workload {
    let spec = |&(ms, prefill_tokens, decode_tokens): &(u64, u32, u32)| RequestSpec {
        arrived_at: SimTime::from_ns(ms * 1_000_000),
        prefill_tokens,
        decode_tokens,
    };
    Workload {
        requests: requests.iter().map(spec).collect(),
        description: "test".into(),
        ..Workload::default()
    }
}

/// A Python that has torch's `module`: VIDUR_TORCH_PYTHON, or the usual places.
pub fn torch_python(module: &str) -> Option<String> {
    let named = std::env::var("VIDUR_TORCH_PYTHON").ok();
    named.into_iter().chain(["python3".into(), "/usr/bin/python3".into()]).find(|python| {
        let import =
            std::process::Command::new(python).args(["-c", &format!("import {module}")]).output();
        import.is_ok_and(|output| output.status.success())
    })
}
