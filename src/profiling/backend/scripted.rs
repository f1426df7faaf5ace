//! A device of paper: times follow a formula, shapes fail when told to, and a clock moves by
//! itself. Runner and file formats are tested against it, without a device and without waiting.

use super::{
    Backend, BackendError, DeviceInfo, Effort, LayerBatch, OpSamples, Peaks, Purpose, Shape, Shard,
};
use crate::spec::model::Dtype;
use crate::spec::ops::{Op, OpInput};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

/// See the module.
#[derive(Clone, Debug)]
pub struct ScriptedBackend {
    device: DeviceInfo,
    shard: Option<Shard>,
    /// Shapes that fail, every time from [`ScriptedBackend::failing_from`] on.
    pub failing: BTreeSet<Shape>,
    /// Measurements before the first that fails.
    pub failing_from: usize,
    /// Measurements after which the device is lost; `None` is never.
    pub lost_after: Option<usize>,
    /// What one measurement takes on [`ScriptedBackend::clock`].
    pub takes: Duration,
    /// Share by which a shape is slower each time that it is measured again.
    pub drift: f64,
    /// Shapes measured so far, in order.
    pub measured: Vec<(u32, Shape)>,
    clock: Rc<Cell<Duration>>,
}

/// Operations and bytes per second that the formula assumes.
const PEAKS: Peaks = Peaks { flops_per_s: 1e12, bytes_per_s: 1e11 };

impl Default for ScriptedBackend {
    fn default() -> Self {
        ScriptedBackend {
            device: DeviceInfo {
                backend: "scripted".into(),
                name: "Scripted device".into(),
                vendor: "vidur".into(),
                cores: 1,
                threads: 1,
                memory_bytes: 1 << 34,
                kernels: vec!["scripted 1".into()],
                dtype: Dtype::F32,
            },
            shard: None,
            failing: BTreeSet::new(),
            failing_from: 0,
            lost_after: None,
            takes: Duration::from_millis(10),
            drift: 0.0,
            measured: Vec::new(),
            clock: Rc::new(Cell::new(Duration::ZERO)),
        }
    }
}

impl ScriptedBackend {
    /// The clock that measurements move, to hand to the runner.
    pub fn clock(&self) -> impl Fn() -> Duration + use<> {
        let clock = Rc::clone(&self.clock);
        move || clock.get()
    }

    /// Changes the kernel's name, as an upgrade would.
    pub fn set_kernel(&mut self, kernel: &str) {
        self.device.kernels = vec![kernel.into()];
    }

    fn ms(shard: &Shard, op: Op, input: OpInput) -> f64 {
        let work = op.work(&shard.model, shard.parallelism(), Dtype::F32, input);
        1e3 * (work.flops / PEAKS.flops_per_s).max(work.bytes / PEAKS.bytes_per_s) + 1e-3
    }
}

impl Backend for ScriptedBackend {
    fn device(&self) -> &DeviceInfo {
        &self.device
    }

    fn peaks(&mut self) -> Result<Peaks, BackendError> {
        Ok(PEAKS)
    }

    fn prepare(&mut self, shard: &Shard, _purpose: Purpose) -> Result<(), BackendError> {
        self.shard = Some(shard.clone());
        Ok(())
    }

    fn measure(&mut self, shape: Shape, effort: Effort) -> Result<Vec<OpSamples>, BackendError> {
        let Some(shard) = &self.shard else {
            return Err(BackendError::Shape("no shard is prepared".into()));
        };
        if self.lost_after.is_some_and(|n| self.measured.len() >= n) {
            return Err(BackendError::Lost("the scripted device is gone".into()));
        }
        self.clock.set(self.clock.get() + self.takes);
        let this = (shard.tensor_parallel, shape);
        let before = self.measured.iter().filter(|&&measured| measured == this).count();
        let slower = 1.0 + self.drift * before as f64;
        self.measured.push(this);
        if self.failing.contains(&shape) && self.measured.len() > self.failing_from {
            return Err(BackendError::Shape("scripted to fail".into()));
        }
        let ops = super::super::compute::ops_of(&shard.model, shape);
        Ok(ops
            .into_iter()
            .map(|(op, input)| {
                let base = slower * Self::ms(shard, op, input);
                // A little spread, the same every time.
                let spread = |i: u32| base * (1.0 + 0.01 * f64::from(i % 3));
                OpSamples { op, ms: (0..effort.repeats.max(1)).map(spread).collect() }
            })
            .collect())
    }

    fn measure_layers(
        &mut self,
        batch: &LayerBatch,
        effort: Effort,
    ) -> Result<Vec<f64>, BackendError> {
        let Some(shard) = &self.shard else {
            return Err(BackendError::Shape("no shard is prepared".into()));
        };
        let tokens = OpInput::Tokens(batch.num_tokens());
        let model = &shard.model;
        let mut ms: f64 = super::super::compute::layer_ops(model)
            .into_iter()
            .map(|(op, repeats)| f64::from(repeats) * Self::ms(shard, op, tokens))
            .sum();
        for &(chunk, kv) in &batch.prefills {
            let input = OpInput::Prefill { kv: kv as f64, chunk: chunk as f64 };
            ms += Self::ms(shard, Op::AttnPrefill, input);
        }
        for &kv in &batch.decodes {
            let input = OpInput::Decode { batch: 1, kv: kv as f64 };
            ms += Self::ms(shard, Op::AttnDecode, input);
        }
        Ok(vec![ms; effort.repeats.max(1) as usize])
    }
}
