//! How an operator's time grows where it was not measured: in proportion to its roofline.

use super::features::point_of;
use crate::spec::device::DeviceSku;
use crate::spec::model::{Dtype, ModelSpec};
use crate::spec::ops::{Feature, Op, OpInput};
use crate::spec::parallel::Parallelism;
use std::sync::Arc;

/// The engine's time on the host is a fixed part and a part per sequence; the fixed part is as long
/// as what so many sequences add. Least squares through the public measurements of vLLM (A100,
/// tensor parallel 1: Llama-2-7b 0.94 ms + 0.049 ms a sequence, phi-2 0.99 ms + 0.048 ms).
const HOST_FIXED_SEQUENCES: f64 = 20.0;

/// The least time that an operator can take on a device: the larger of arithmetic over peak
/// arithmetic, and traffic over peak bandwidth. Only ratios between two inputs of the same
/// operator are used, so an efficiency common to both cancels.
#[derive(Clone, Debug)]
pub struct Roofline {
    op: Op,
    context: Arc<RooflineContext>,
}

/// What the rooflines of all operators of a model share.
#[derive(Clone, Debug)]
pub struct RooflineContext {
    model: ModelSpec,
    parallel: Parallelism,
    ms_per_flop: f64,
    /// That of the layers' projections, which a quantised checkpoint calculates in fewer bits.
    projection_ms_per_flop: f64,
    ms_per_byte: f64,
    /// Whether the peak is published for the model's own number format.
    peak_is_exact: bool,
}

impl RooflineContext {
    /// Least time of the arithmetic alone in milliseconds; `None` where no peak is published for
    /// the model's number format.
    pub fn arithmetic_ms(&self, op: Op, input: OpInput) -> Option<f64> {
        let work = op.work(&self.model, self.parallel, self.model.dtype, input);
        (self.peak_is_exact && !op.is_collective()).then_some(work.flops * self.ms_per_flop(op))
    }

    /// Milliseconds of one operation of `op` at peak.
    fn ms_per_flop(&self, op: Op) -> f64 {
        if op.is_layer_projection() { self.projection_ms_per_flop } else { self.ms_per_flop }
    }

    /// A device without a published peak for the model's number format is taken at its 16-bit
    /// peak, or its largest.
    pub fn new(model: &ModelSpec, parallel: Parallelism, device: &DeviceSku) -> Arc<Self> {
        let peaks = &device.peak_flops_per_s;
        let peak = [model.dtype, Dtype::Bf16, Dtype::F16]
            .iter()
            .find_map(|dtype| peaks.get(dtype).copied())
            .or_else(|| peaks.values().copied().max_by(f64::total_cmp));
        let ms_per_flop = peak.filter(|p| *p > 0.0).map_or(0.0, |p| 1e3 / p);
        let quantized = model.weight_format().compute().and_then(|d| peaks.get(&d).copied());
        Arc::new(RooflineContext {
            model: model.clone(),
            parallel,
            ms_per_flop,
            projection_ms_per_flop: quantized.filter(|p| *p > 0.0).map_or(ms_per_flop, |p| 1e3 / p),
            peak_is_exact: peaks.get(&model.dtype).is_some_and(|p| *p > 0.0),
            ms_per_byte: 1e3 / device.memory_bandwidth_bytes_per_s,
        })
    }
}

impl Roofline {
    /// The roofline of `op`.
    pub fn new(op: Op, context: &Arc<RooflineContext>) -> Roofline {
        Roofline { op, context: Arc::clone(context) }
    }

    /// The operator.
    pub fn op(&self) -> Op {
        self.op
    }

    /// Least time at a point of the operator's features (see [`super::features`]), milliseconds.
    pub fn ms(&self, row: f64, x: f64) -> f64 {
        // A message takes time in proportion to its bytes, whatever the link.
        if self.op.is_collective() {
            return x * self.context.ms_per_byte;
        }
        if self.op == Op::Host {
            return HOST_FIXED_SEQUENCES + x;
        }
        let c = &self.context;
        let work =
            |row| self.op.work(&c.model, c.parallel, c.model.dtype, point_of(self.op, row, x));
        let (flops, bytes) = match self.op.feature() {
            // Proportional to the batch, which may be fractional here: that of one sequence.
            Feature::Decode => (work(1.0).flops * row, work(1.0).bytes * row),
            _ => (work(row).flops, work(row).bytes),
        };
        (flops * c.ms_per_flop(self.op)).max(bytes * c.ms_per_byte)
    }

    /// By what factor the least time grows from one point to another; 1 where there is no work
    /// to compare.
    pub fn growth(&self, from: (f64, f64), to: (f64, f64)) -> f64 {
        let (from, to) = (self.ms(from.0, from.1), self.ms(to.0, to.1));
        let growth = to / from;
        if from > 0.0 && growth.is_finite() { growth } else { 1.0 }
    }
}
