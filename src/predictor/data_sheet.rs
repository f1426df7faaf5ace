//! The time of an operator from the device's data sheet alone: no profile, any model on any device
//! of the catalogue. Good to compare devices by, within a few tens of per cent of a real engine; every
//! result says that it was not measured.
//!
//! An operator takes the larger of its arithmetic at the peak of the number format and its traffic at
//! peak bandwidth, each at the share of the peak that kernels reach, and the launch of its kernel. A
//! collective takes its bytes over the link, and a latency.

use super::{OpModel, OpModels, Prediction, PredictorError, System};
use crate::spec::model::{Dtype, ModelSpec};
use crate::spec::ops::{Op, OpInput};
use crate::spec::parallel::Parallelism;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Settings of the `roofline` predictor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSheetSettings {
    /// Share of the peak arithmetic that kernels reach. 0.7: matrix products of 1024 tokens and
    /// more in microsoft/vidur's A100 profiles (Llama 2 and 3, CodeLlama) reach 0.66 to 0.75.
    pub compute_efficiency: f64,
    /// Share of the peak memory bandwidth that kernels reach. 0.8: NVIDIA aiconfigurator's
    /// `mem_bw_empirical_scaling_factor`; the same A100 profiles reach 0.66 to 0.80 at up to 32
    /// tokens, launch included.
    pub memory_efficiency: f64,
    /// Microseconds that every kernel takes beside its work. 3: aiconfigurator's
    /// `mem_empirical_constant_latency`.
    pub kernel_launch_us: f64,
    /// Share of the link's bandwidth that collectives reach. 0.8: taken as for memory; the data
    /// sheet's figure is without protocol.
    pub link_efficiency: f64,
    /// Microseconds that every collective takes beside its bytes. 10: aiconfigurator's
    /// `p2p_latency`.
    pub p2p_latency_us: f64,
}

impl Default for DataSheetSettings {
    fn default() -> Self {
        DataSheetSettings {
            compute_efficiency: 0.7,
            memory_efficiency: 0.8,
            kernel_launch_us: 3.0,
            link_efficiency: 0.8,
            p2p_latency_us: 10.0,
        }
    }
}

impl DataSheetSettings {
    /// Checks the numbers.
    ///
    /// # Errors
    /// One line that names the field, its value and what was expected.
    pub fn check(&self) -> Result<(), String> {
        for (name, share) in [
            ("compute_efficiency", self.compute_efficiency),
            ("memory_efficiency", self.memory_efficiency),
            ("link_efficiency", self.link_efficiency),
        ] {
            if !(share > 0.0 && share <= 1.0) {
                return Err(format!(
                    "predictor: roofline.{name} is {share}; expected above 0, at most 1"
                ));
            }
        }
        for (name, us) in
            [("kernel_launch_us", self.kernel_launch_us), ("p2p_latency_us", self.p2p_latency_us)]
        {
            if !(us.is_finite() && us >= 0.0) {
                return Err(format!("predictor: roofline.{name} is {us}; expected 0 or more"));
            }
        }
        Ok(())
    }
}

impl fmt::Display for DataSheetSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} % of peak arithmetic, {} % of memory bandwidth, {} us a kernel",
            percent(self.compute_efficiency),
            percent(self.memory_efficiency),
            self.kernel_launch_us
        )
    }
}

/// A share in per cent, without the noise of its last bits.
fn percent(share: f64) -> f64 {
    (share * 1e4).round() / 1e2
}

/// One operator's time from the data sheet.
#[derive(Clone, Debug)]
pub struct DataSheet {
    op: Op,
    rates: Arc<Rates>,
}

/// What all operators of a model on a device share. Times in milliseconds, efficiencies included.
#[derive(Debug)]
struct Rates {
    model: ModelSpec,
    parallel: Parallelism,
    dtype: Dtype,
    ms_per_flop: f64,
    /// That of the layers' projections, which a quantised checkpoint calculates in fewer bits.
    projection_ms_per_flop: f64,
    ms_per_byte: f64,
    launch_ms: f64,
    ms_per_link_byte: f64,
    latency_ms: f64,
}

impl DataSheet {
    /// A model of each of `ops` on the device of `system`.
    ///
    /// # Errors
    /// When the data sheet lacks a figure that they need.
    pub fn all(
        ops: &[Op],
        system: &System<'_>,
        settings: &DataSheetSettings,
    ) -> Result<OpModels, PredictorError> {
        let device = system.device;
        let dtype = device.compute_dtype(system.model.dtype);
        let lacks = |what: &str, cure: &str| {
            PredictorError::Setting(format!(
                "the data sheet of {} states no {what}, which the roofline predictor needs; {cure}",
                device.name
            ))
        };
        let peak = device.peak(dtype).ok_or_else(|| {
            lacks("peak_flops_per_s", "add it to the device's file in data/device_skus")
        })?;
        // Where the device cannot calculate in the format of the weights, they are unpacked first.
        let quantized = system.model.weight_format().compute();
        let projection_peak =
            quantized.and_then(|d| device.peak_flops_per_s.get(&d).copied()).unwrap_or(peak);
        let collective = ops.iter().find(|op| op.is_collective());
        let link = match (collective, device.link_bytes_per_s) {
            (_, Some(link)) => link,
            // Never asked for.
            (None, None) => f64::INFINITY,
            (Some(op), None) => {
                return Err(lacks(
                    &format!("link_bytes_per_s for {op}"),
                    "add it to the device's file in data/device_skus, or set \
                     cluster.tensor_parallel and cluster.pipeline_parallel to 1",
                ));
            }
        };
        let rates = Arc::new(Rates {
            model: system.model.clone(),
            parallel: system.parallel,
            dtype,
            ms_per_flop: 1e3 / (peak * settings.compute_efficiency),
            projection_ms_per_flop: 1e3 / (projection_peak * settings.compute_efficiency),
            ms_per_byte: 1e3 / (device.memory_bandwidth_bytes_per_s * settings.memory_efficiency),
            launch_ms: settings.kernel_launch_us * 1e-3,
            ms_per_link_byte: 1e3 / (link * settings.link_efficiency),
            latency_ms: settings.p2p_latency_us * 1e-3,
        });
        let model = |op: &Op| {
            let sheet = DataSheet { op: *op, rates: Arc::clone(&rates) };
            (*op, Box::new(sheet) as Box<dyn OpModel>)
        };
        Ok(ops.iter().map(model).collect())
    }

    fn ms(&self, input: OpInput) -> f64 {
        let r = &self.rates;
        if let (true, OpInput::Tokens(bytes)) = (self.op.is_collective(), input) {
            let n = f64::from(r.parallel.tensor_parallel);
            // A ring sends every byte to all but one device, once to add up and once to share.
            let rounds = if self.op == Op::AllReduce { 2.0 * (n - 1.0) / n } else { 1.0 };
            return rounds * bytes as f64 * r.ms_per_link_byte + r.latency_ms;
        }
        let work = self.op.work(&r.model, r.parallel, r.dtype, input);
        let ms_per_flop =
            if self.op.is_layer_projection() { r.projection_ms_per_flop } else { r.ms_per_flop };
        (work.flops * ms_per_flop).max(work.bytes * r.ms_per_byte) + r.launch_ms
    }
}

impl OpModel for DataSheet {
    /// Nothing was measured: every answer counts as outside the measured range.
    fn predict(&self, input: OpInput) -> Prediction {
        let ms = self.ms(input);
        let ms = if ms.is_finite() { ms.max(0.0) } else { f64::MAX };
        Prediction { ms, extrapolated: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::location::ProfileRoot;
    use crate::predictor::test_support::{device, model};
    use crate::spec::device::DeviceSku;

    fn predict(device: &DeviceSku, op: Op, tp: u32, input: OpInput) -> Result<f64, String> {
        let model = model();
        let parallel = Parallelism { tensor_parallel: tp, pipeline_parallel: 1 };
        let system = System {
            root: &ProfileRoot::BuiltIn,
            model: &model,
            device,
            network_device: None,
            parallel,
        };
        let models = DataSheet::all(&[op], &system, &DataSheetSettings::default());
        Ok(models.map_err(|e| e.to_string())?[0].1.predict(input).ms)
    }

    fn close(a: f64, b: f64) {
        assert!((a / b - 1.0).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn the_larger_of_arithmetic_and_traffic_and_a_launch() {
        // A [64, 64] weight: 8192 bytes, and 256 bytes a token in and out.
        let ms = predict(&device(), Op::AttnPostProj, 1, OpInput::Tokens(1)).unwrap();
        close(ms, (8192.0 + 256.0) / (933e9 * 0.8) * 1e3 + 0.003);
        // Wide enough that arithmetic rules: 256 MFLOP against 1.3 MB.
        let work =
            |n: f64| (2.0 * n * 4096.0 / (165e12 * 0.7), (8192.0 + 256.0 * n) / (933e9 * 0.8));
        let (flops, bytes) = work(1e6);
        let ms = predict(&device(), Op::AttnPostProj, 1, OpInput::Tokens(1_000_000)).unwrap();
        close(ms, flops.max(bytes) * 1e3 + 0.003);
    }

    #[test]
    fn an_all_reduce_is_a_ring_over_the_link() {
        let linked = DeviceSku { link_bytes_per_s: Some(32e9), ..device() };
        let ms = predict(&linked, Op::AllReduce, 4, OpInput::Tokens(1 << 20)).unwrap();
        close(ms, 1.5 * f64::from(1 << 20) / (32e9 * 0.8) * 1e3 + 0.010);
        let ms = predict(&linked, Op::SendRecv, 1, OpInput::Tokens(1 << 20)).unwrap();
        close(ms, f64::from(1 << 20) / (32e9 * 0.8) * 1e3 + 0.010);
    }

    #[test]
    fn a_device_without_a_link_cannot_share_a_layer_and_says_so() {
        assert_eq!(
            predict(&device(), Op::AllReduce, 2, OpInput::Tokens(1)).unwrap_err(),
            "the data sheet of a30 states no link_bytes_per_s for all_reduce, which the roofline \
             predictor needs; add it to the device's file in data/device_skus, or set \
             cluster.tensor_parallel and cluster.pipeline_parallel to 1"
        );
    }

    #[test]
    fn shares_above_one_are_refused_by_name() {
        let s = DataSheetSettings { memory_efficiency: 1.2, ..DataSheetSettings::default() };
        assert_eq!(
            s.check().unwrap_err(),
            "predictor: roofline.memory_efficiency is 1.2; expected above 0, at most 1"
        );
        let s = DataSheetSettings { p2p_latency_us: -1.0, ..DataSheetSettings::default() };
        assert!(s.check().unwrap_err().contains("p2p_latency_us is -1"));
    }
}
