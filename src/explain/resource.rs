//! Which resource of the devices a run wears out: arithmetic, memory bandwidth, links or the host.

use crate::cost::{BatchShape, CostModel, StepCost};
use crate::ids::{ReplicaId, StageId};
use crate::sim::{Batch, Observer};
use crate::spec::device::DeviceSku;
use crate::spec::model::{Dtype, ModelSpec};
use crate::spec::ops::{Feature, LayerSum, Op, OpInput, Work, stage_ops};
use crate::spec::parallel::Parallelism;
use crate::units::SimTime;
use serde::Serialize;

/// What bounds an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// The device's arithmetic.
    Compute,
    /// The bandwidth of the device's memory.
    MemoryBandwidth,
    /// Links between devices.
    Links,
    /// The host: the device waits.
    Host,
    /// Neither: a compiled graph that takes more than twice as long as both allow.
    Neither,
    /// The catalogue lacks the device's peaks.
    Unknown,
}

impl Resource {
    /// Every resource.
    pub const ALL: [Resource; 6] = [
        Resource::Compute,
        Resource::MemoryBandwidth,
        Resource::Links,
        Resource::Host,
        Resource::Neither,
        Resource::Unknown,
    ];

    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Resource::Compute => "compute",
            Resource::MemoryBandwidth => "memory bandwidth",
            Resource::Links => "links between devices",
            Resource::Host => "the host",
            Resource::Neither => "neither arithmetic nor memory bandwidth",
            Resource::Unknown => "unknown (no peaks in the catalogue)",
        }
    }
}

/// An observer that asks for the operators of every step and books their time by what bounds each:
/// the larger of its arithmetic over the peak and its traffic over the bandwidth.
pub struct Wear<'a> {
    cost: &'a dyn CostModel,
    model: &'a ModelSpec,
    parallel: Parallelism,
    dtype: Dtype,
    /// Operations and bytes per second.
    peaks: Option<(f64, f64)>,
    /// Milliseconds by `Resource as usize`.
    ms: [f64; Resource::ALL.len()],
}

impl<'a> Wear<'a> {
    /// One for steps that `cost` prices, on devices of the kind `device`.
    pub fn new(
        cost: &'a dyn CostModel,
        model: &'a ModelSpec,
        device: &DeviceSku,
        parallel: Parallelism,
        dtype: Dtype,
    ) -> Self {
        let bandwidth = device.memory_bandwidth_bytes_per_s;
        let peaks = device.peak(dtype).map(|flops_per_s| (flops_per_s, bandwidth));
        Wear { cost, model, parallel, dtype, peaks, ms: [0.0; Resource::ALL.len()] }
    }

    /// The share of each resource that bounds any time, largest first; the shares add up to 1.
    pub fn shares(&self) -> Vec<(Resource, f64)> {
        let whole: f64 = self.ms.iter().sum();
        let mut shares: Vec<_> = Resource::ALL
            .into_iter()
            .zip(self.ms)
            .filter(|(_, ms)| *ms > 0.0)
            .map(|(resource, ms)| (resource, ms / whole))
            .collect();
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        shares
    }

    /// What bounds `op`, of whose kind the step has `ms` milliseconds.
    fn resource(&self, op: Op, shape: &BatchShape, ms: f64) -> Resource {
        if op.is_collective() {
            return Resource::Links;
        }
        if op == Op::Host {
            return Resource::Host;
        }
        let Some((flops_per_s, bytes_per_s)) = self.peaks else { return Resource::Unknown };
        let work = self.work(op, shape);
        let least_ms = 1e3 * (work.flops / flops_per_s).max(work.bytes / bytes_per_s);
        if op.is_graph() && 2.0 * least_ms < ms {
            Resource::Neither
        } else if work.flops / flops_per_s > work.bytes / bytes_per_s {
            Resource::Compute
        } else {
            Resource::MemoryBandwidth
        }
    }

    /// Arithmetic and traffic of everything that a graph runs for its tokens.
    fn graph_work(&self, op: Op, shape: &BatchShape) -> Work {
        let half = match op {
            Op::TokenGraph => BatchShape { prefills: Vec::new(), ..shape.clone() },
            _ => BatchShape { prefills: shape.prefills.clone(), ..BatchShape::default() },
        };
        let ops = stage_ops(self.model, self.parallel, 0, LayerSum::Engine);
        let own = ops.iter().filter(|o| !o.op.is_collective());
        own.fold(Work::default(), |sum, o| {
            let (work, n) = (self.work(o.op, &half), f64::from(o.repeats));
            Work { flops: sum.flops + n * work.flops, bytes: sum.bytes + n * work.bytes }
        })
    }

    fn work(&self, op: Op, shape: &BatchShape) -> Work {
        if op.is_graph() {
            return self.graph_work(op, shape);
        }
        let of = |input| op.work(self.model, self.parallel, self.dtype, input);
        match op.feature() {
            Feature::Tokens => of(OpInput::Tokens(shape.num_rows())),
            Feature::SampledTokens => of(OpInput::Tokens(shape.num_sampled())),
            Feature::Decode => {
                let batch = u64::from(shape.num_decodes);
                let kv = shape.decode_kv_tokens as f64 / (batch as f64).max(1.0);
                of(OpInput::Decode { batch, kv })
            }
            Feature::Prefill => shape.prefills.iter().fold(Work::default(), |sum, p| {
                let (kv, chunk) = (f64::from(p.kv_tokens), f64::from(p.chunk_tokens));
                let work = of(OpInput::Prefill { kv, chunk });
                Work { flops: sum.flops + work.flops, bytes: sum.bytes + work.bytes }
            }),
        }
    }
}

impl Observer for Wear<'_> {
    fn stage_started(
        &mut self,
        _: SimTime,
        _: ReplicaId,
        stage: StageId,
        batch: &Batch,
        cost: StepCost,
    ) {
        let times = self.cost.stage_breakdown(stage, &batch.shape);
        let device: f64 = times.iter().filter(|t| t.op != Op::Host).map(|t| t.ms).sum();
        let prompts = |op| matches!(op, Op::ContextGraph | Op::GraphPadding);
        let reading: f64 = times.iter().filter(|t| prompts(t.op)).map(|t| t.ms).sum();
        for time in times.iter().filter(|t| t.op != Op::Host && t.ms > 0.0) {
            let kind = if prompts(time.op) { reading } else { time.ms };
            // A table's operators may add up to something else than its step.
            let step = (cost.duration - cost.host).as_ms();
            self.ms[self.resource(time.op, &batch.shape, kind) as usize] += time.ms / device * step;
        }
        self.ms[Resource::Host as usize] += cost.host.as_ms();
    }
}
