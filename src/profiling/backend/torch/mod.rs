//! Devices through torch: a worker process for each, written in Python, which owns the device while
//! this side owns plan, repeats, resume and files. A worker that dies, hangs, runs out of memory or
//! prints rubbish costs the shape at hand and is started again.

mod lane;
pub mod messages;
#[cfg(all(test, unix))]
#[path = "torch_tests.rs"]
mod tests;

pub use messages::milliseconds;

use super::{
    Backend, BackendError, DeviceInfo, Effort, LayerBatch, OpSamples, Peaks, Purpose, Shape, Shard,
};
use crate::dataset::graph::GraphKey;
use crate::profiling::worker::{CallError, Script};
use crate::spec::model::Dtype;
use lane::Lane;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// Version of the messages; see docs/worker-protocol.md.
pub const PROTOCOL: u64 = 1;

/// The worker's program.
const PROGRAM: &str = include_str!("worker.py");

/// A graph that a worker traced and ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Traced {
    /// Milliseconds of whole calls, by the host's clock.
    pub ms: Vec<f64>,
    /// Seconds that tracing and compiling took.
    pub compile_s: f64,
    /// How the calls were timed.
    pub route: String,
    /// The compiled program, on Neuron.
    pub neff: Option<PathBuf>,
}

/// How to run workers.
#[derive(Clone, Debug)]
pub struct TorchConfig {
    /// The Python interpreter.
    pub python: PathBuf,
    /// Devices as the worker knows them, one worker each: `cpu`, `cuda:0`, `neuron`.
    pub devices: Vec<String>,
    /// Number format; `None` is f32 on CPUs and bf16 elsewhere.
    pub dtype: Option<Dtype>,
    /// Threads of each worker on the CPU.
    pub threads: Option<u32>,
    /// Bytes of the CPU's largest cache.
    pub cache_bytes: u64,
    /// Torch's own kernels only.
    pub plain_kernels: bool,
    /// How long an answer may take beside the time that sampling takes.
    pub limit: Duration,
    /// Seed of weights and tokens.
    pub seed: u64,
    /// Physical cores to a logical NeuronCore (1 or 2), for runtime and compiler alike; `None` is what
    /// both take by themselves.
    pub lnc: Option<u32>,
}

/// See the module.
pub struct TorchBackend {
    device: DeviceInfo,
    attention: String,
    script: Script,
    lanes: Vec<Lane>,
    lnc: Option<u32>,
}

impl TorchBackend {
    /// Starts a worker for every device. `host` fills in what torch does not know of a CPU.
    ///
    /// # Errors
    /// One line: no interpreter, no torch, no such device, or another protocol.
    pub fn new(
        config: TorchConfig,
        host: &crate::profiling::host::Host,
    ) -> Result<TorchBackend, BackendError> {
        let lost = |e: CallError| {
            BackendError::Lost(match e {
                CallError::Refused { kind, message } if kind == "torch" => {
                    format!(
                        "{message}; install it there, or name another interpreter with --python"
                    )
                }
                other => other.to_string(),
            })
        };
        let script = Script::new(PROGRAM).map_err(lost)?;
        let lane = |device: &String| Lane::new(device.clone(), config.clone());
        let mut lanes: Vec<Lane> = config.devices.iter().map(lane).collect();
        let mut replies = Vec::new();
        for lane in &mut lanes {
            replies.push(lane.hello(&script).map_err(lost)?);
        }
        let Some(reply) = replies.first() else {
            return Err(BackendError::Lost("no device; give --devices".into()));
        };
        if let Some(other) = replies.iter().find(|r| r["device"]["name"] != reply["device"]["name"])
        {
            return Err(BackendError::Lost(format!(
                "the devices differ ({} and {}); profile each kind in a run of its own",
                reply["device"]["name"], other["device"]["name"]
            )));
        }
        let device = device_info(reply, &config, host)?;
        let attention =
            reply["attention"].as_str().unwrap_or("torch").replace([',', '"', '\n'], " ");
        Ok(TorchBackend { device, attention, script, lanes, lnc: config.lnc })
    }

    /// Traces and runs the graph of `key` on the first device; the compiler works in `folder`.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn graph(
        &mut self,
        shard: &Shard,
        key: GraphKey,
        effort: Effort,
        folder: &Path,
    ) -> Result<Traced, BackendError> {
        let reply = self.request(messages::graph(shard, key, effort, folder, self.lnc), effort)?;
        let odd =
            |what: String| BackendError::Shape(format!("the worker's answer for a graph: {what}"));
        Ok(Traced {
            ms: messages::milliseconds(&reply["ms"]).map_err(odd)?,
            compile_s: reply["compile_s"].as_f64().filter(|s| s.is_finite()).unwrap_or(0.0),
            route: reply["route"].as_str().unwrap_or("wall clock").to_owned(),
            neff: reply["neff"].as_str().map(PathBuf::from),
        })
    }

    /// Lets go of the first device until the next request: Neuron's runtime gives a core to one process
    /// at a time.
    pub fn rest(&mut self) {
        if let Some(lane) = self.lanes.first_mut() {
            lane.rest();
        }
    }

    /// The interpreter of the workers.
    ///
    /// # Errors
    /// When there are none.
    pub fn python(&self) -> Result<&Path, BackendError> {
        self.lanes.first().map(Lane::python).ok_or_else(no_lane)
    }

    /// As in [`TorchConfig::lnc`].
    pub fn lnc(&self) -> Option<u32> {
        self.lnc
    }

    /// One request for each of the first devices, all at the same time.
    pub fn request_each(
        &mut self,
        requests: Vec<Value>,
        effort: Effort,
    ) -> Vec<Result<Value, BackendError>> {
        let script = &self.script;
        std::thread::scope(|scope| {
            let pairs = self.lanes.iter_mut().zip(requests);
            let threads: Vec<_> = pairs
                .map(|(lane, request)| scope.spawn(move || lane.request(script, request, effort)))
                .collect();
            let end = |thread: std::thread::ScopedJoinHandle<'_, Result<Value, BackendError>>| {
                thread.join().unwrap_or_else(|_| Err(no_lane()))
            };
            threads.into_iter().map(end).collect()
        })
    }

    /// Any other request, to the first device.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn request(&mut self, request: Value, effort: Effort) -> Result<Value, BackendError> {
        let script = &self.script;
        self.lanes.first_mut().ok_or_else(no_lane)?.request(script, request, effort)
    }
}

fn no_lane() -> BackendError {
    BackendError::Lost("there is no worker".into())
}

fn device_info(
    reply: &Value,
    config: &TorchConfig,
    host: &crate::profiling::host::Host,
) -> Result<DeviceInfo, BackendError> {
    let odd = |what: &str| BackendError::Lost(format!("the worker's greeting has no {what}"));
    let info = &reply["device"];
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let kernels = reply["kernels"].as_array().ok_or_else(|| odd("kernels"))?;
    let kind = config.devices.first().map_or("cpu", |d| d.split(':').next().unwrap_or("cpu"));
    let dtype =
        reply["dtype"].as_str().and_then(messages::parse_dtype).ok_or_else(|| odd("dtype"))?;
    let count = |value: &Value, default: u64| value.as_u64().filter(|&n| n > 0).unwrap_or(default);
    Ok(DeviceInfo {
        backend: format!("torch-{kind}"),
        name: text(&info["name"]).unwrap_or_else(|| host.cpu_model.clone()),
        vendor: text(&info["vendor"]).unwrap_or_else(|| host.cpu_vendor.clone()),
        cores: count(&info["cores"], u64::from(host.cores)) as u32,
        threads: count(&reply["threads"], 1) as u32,
        memory_bytes: count(&info["memory_bytes"], host.memory_bytes),
        // Cores of another size are another device: their rows share no file.
        kernels: kernels
            .iter()
            .filter_map(text)
            .chain(config.lnc.map(|lnc| format!("logical-core-config {lnc}")))
            .collect(),
        dtype,
    })
}

impl Backend for TorchBackend {
    fn device(&self) -> &DeviceInfo {
        &self.device
    }

    fn attention_kernel(&self) -> &str {
        &self.attention
    }

    fn peaks(&mut self) -> Result<Peaks, BackendError> {
        let reply = self.request(json!({"do": "peaks"}), Effort::default())?;
        let figure = |name: &str| {
            reply[name]
                .as_f64()
                .filter(|x| x.is_finite() && *x > 0.0)
                .ok_or_else(|| BackendError::Lost(format!("the worker measured no {name}")))
        };
        Ok(Peaks { flops_per_s: figure("flops_per_s")?, bytes_per_s: figure("bytes_per_s")? })
    }

    fn prepare(&mut self, shard: &Shard, purpose: Purpose) -> Result<(), BackendError> {
        let script = &self.script;
        let prepared: Vec<_> = std::thread::scope(|scope| {
            let start = |lane| scope.spawn(move || Lane::prepare(lane, script, shard, purpose));
            let threads: Vec<_> = self.lanes.iter_mut().map(start).collect();
            let end = |thread: std::thread::ScopedJoinHandle<'_, Result<(), BackendError>>| {
                thread.join().unwrap_or_else(|_| Err(no_lane()))
            };
            threads.into_iter().map(end).collect()
        });
        prepared.into_iter().collect()
    }

    fn measure(&mut self, shape: Shape, effort: Effort) -> Result<Vec<OpSamples>, BackendError> {
        let script = &self.script;
        self.lanes.first_mut().ok_or_else(no_lane)?.measure(script, shape, effort)
    }

    fn lanes(&self) -> usize {
        self.lanes.len()
    }

    fn measure_all(
        &mut self,
        shapes: &[Shape],
        effort: Effort,
        done: &mut dyn FnMut(usize, Result<Vec<OpSamples>, BackendError>),
    ) {
        let (script, next) = (&self.script, AtomicUsize::new(0));
        let (sender, results) = mpsc::channel();
        // A device that is lost leaves its share to the others; the last one ends the run.
        let mut lanes: Vec<&mut Lane> =
            self.lanes.iter_mut().filter(|lane| !lane.is_lost()).collect();
        let left = AtomicUsize::new(lanes.len());
        if lanes.is_empty() && !shapes.is_empty() {
            return done(0, Err(BackendError::Lost("every worker is lost".into())));
        }
        std::thread::scope(|scope| {
            for lane in &mut lanes {
                let (sender, next, left) = (sender.clone(), &next, &left);
                scope.spawn(move || {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(&shape) = shapes.get(i) else { break };
                        let mut result = lane.measure(script, shape, effort);
                        let lost = matches!(result, Err(BackendError::Lost(_)));
                        if let Err(BackendError::Lost(reason)) = &result
                            && left.fetch_sub(1, Ordering::Relaxed) > 1
                        {
                            result = Err(BackendError::Shape(reason.clone()));
                        }
                        if sender.send((i, result)).is_err() || lost {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for (i, result) in results {
                done(i, result);
            }
        });
    }

    fn measure_layers(
        &mut self,
        batch: &LayerBatch,
        effort: Effort,
    ) -> Result<Vec<f64>, BackendError> {
        let reply = self.request(messages::layers(batch, effort), effort)?;
        messages::milliseconds(&reply["ms"]).map_err(BackendError::Shape)
    }
}
