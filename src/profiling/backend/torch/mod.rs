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
use crate::profiling::worker::CallError;
use crate::spec::model::Dtype;
use lane::Lane;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

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
    /// How long an answer, the greeting included, may take beside the time that sampling takes.
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
    lanes: Vec<Lane>,
    /// Devices that did not answer the greeting, and why.
    absent: Vec<String>,
    notes: Vec<String>,
    lnc: Option<u32>,
}

impl TorchBackend {
    /// Starts a worker for every device; those that do not start are left out, with a note. `host`
    /// fills in what torch does not know of a CPU.
    ///
    /// # Errors
    /// One line when none is left: no interpreter, no torch, no such device, or another protocol.
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
        let (mut lanes, mut replies, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for device in &config.devices {
            let mut lane = Lane::new(device.clone(), config.clone());
            match lane.hello() {
                Ok(reply) => {
                    lanes.push(lane);
                    replies.push(reply);
                }
                Err(e) => failed.push((device, lost(e))),
            }
        }
        let absent: Vec<String> = failed.iter().map(|(device, e)| left_out(device, e)).collect();
        let Some(reply) = replies.first() else {
            let nothing = || BackendError::Lost("no device; give --devices".into());
            return Err(failed.into_iter().next().map_or_else(nothing, |(_, e)| e));
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
        let notes = absent.clone();
        Ok(TorchBackend { device, attention, lanes, absent, notes, lnc: config.lnc })
    }

    /// Traces and runs the graph of `key` on the first device; the compiler works in `folder`, for
    /// `limit` at most.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn graph(
        &mut self,
        shard: &Shard,
        key: GraphKey,
        effort: Effort,
        folder: &Path,
        limit: Duration,
    ) -> Result<Traced, BackendError> {
        let request = messages::graph(shard, key, effort, folder, self.lnc);
        let begin = Instant::now();
        let reply = self.first()?.request(request, limit.saturating_add(effort.max_time))?;
        let odd =
            |what: String| BackendError::Shape(format!("the worker's answer for a graph: {what}"));
        Ok(Traced {
            ms: messages::times(&reply["ms"], begin.elapsed()).map_err(odd)?,
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

    /// One request for each of the first devices, all at the same time; none, when there are too few:
    /// they would wait for each other.
    pub fn request_each(
        &mut self,
        requests: Vec<Value>,
        effort: Effort,
    ) -> Vec<Result<Value, BackendError>> {
        if requests.len() > self.lanes.len() {
            let why = self.absent.first().cloned();
            let why = why.unwrap_or_else(|| "there are fewer devices than workers".into());
            return requests.iter().map(|_| Err(BackendError::Lost(why.clone()))).collect();
        }
        let mut pairs: Vec<(&mut Lane, Value)> = self.lanes.iter_mut().zip(requests).collect();
        at_once(&mut pairs, |(lane, request)| {
            let limit = lane.limit(effort);
            lane.request(request.take(), limit)
        })
    }

    /// Any other request, to the first device.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn request(&mut self, request: Value, effort: Effort) -> Result<Value, BackendError> {
        let lane = self.first()?;
        let limit = lane.limit(effort);
        lane.request(request, limit)
    }

    /// The first device that is ready, else the first that is not lost.
    fn first(&mut self) -> Result<&mut Lane, BackendError> {
        let ready = self.lanes.iter().position(Lane::is_ready);
        let at = ready.or_else(|| self.lanes.iter().position(|lane| lane.lost().is_none()));
        self.lanes.get_mut(at.unwrap_or(0)).ok_or_else(no_lane)
    }
}

/// What `ask` gives for each of `items`, all at the same time.
fn at_once<I: Send, T: Send>(
    items: &mut [I],
    ask: impl Fn(&mut I) -> Result<T, BackendError> + Sync,
) -> Vec<Result<T, BackendError>> {
    let ask = &ask;
    std::thread::scope(|scope| {
        let start = |item| scope.spawn(move || ask(item));
        let threads: Vec<_> = items.iter_mut().map(start).collect();
        let end = |thread: std::thread::ScopedJoinHandle<'_, Result<T, BackendError>>| {
            thread.join().unwrap_or_else(|_| Err(no_lane()))
        };
        threads.into_iter().map(end).collect()
    })
}

fn left_out(device: &str, why: &BackendError) -> String {
    format!("{device} is left out: {why}")
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
        let mut last = no_lane();
        let mut reply = Value::Null;
        // A device that cannot answer is no reason to leave the others idle.
        for lane in &mut self.lanes {
            let limit = lane.limit(Effort::default());
            match lane.request(json!({"do": "peaks"}), limit) {
                Ok(answer) => {
                    reply = answer;
                    break;
                }
                Err(e) => last = e,
            }
        }
        if reply.is_null() {
            return Err(last);
        }
        let figure = |name: &str| {
            reply[name]
                .as_f64()
                .filter(|x| x.is_finite() && *x > 0.0)
                .ok_or_else(|| BackendError::Lost(format!("the worker measured no {name}")))
        };
        Ok(Peaks { flops_per_s: figure("flops_per_s")?, bytes_per_s: figure("bytes_per_s")? })
    }

    fn prepare(&mut self, shard: &Shard, purpose: Purpose) -> Result<(), BackendError> {
        let mut lanes: Vec<&mut Lane> =
            self.lanes.iter_mut().filter(|lane| lane.lost().is_none()).collect();
        let results = at_once(&mut lanes, |lane| lane.prepare(shard, purpose));
        let failed: Vec<(&str, BackendError)> = lanes
            .iter()
            .zip(results)
            .filter_map(|(lane, result)| Some((lane.device(), result.err()?)))
            .collect();
        if failed.len() == lanes.len() {
            // While a device answers, other shards may still go.
            let answers = failed.iter().position(|(_, e)| matches!(e, BackendError::Shape(_)));
            let error = failed.into_iter().nth(answers.unwrap_or(0));
            return Err(error.map_or_else(no_lane, |(_, e)| e));
        }
        self.notes.extend(failed.iter().map(|(device, e)| left_out(device, e)));
        Ok(())
    }

    fn measure(&mut self, shape: Shape, effort: Effort) -> Result<Vec<OpSamples>, BackendError> {
        self.first()?.measure(shape, effort)
    }

    fn lanes(&self) -> usize {
        self.lanes.iter().filter(|lane| lane.is_ready()).count()
    }

    fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    fn measure_all(
        &mut self,
        shapes: &[Shape],
        effort: Effort,
        done: &mut dyn FnMut(usize, Result<Vec<OpSamples>, BackendError>),
    ) {
        let next = AtomicUsize::new(0);
        let (sender, results) = mpsc::channel();
        // A device that is lost leaves its share to the others; the last one ends the run.
        let mut lanes: Vec<&mut Lane> =
            self.lanes.iter_mut().filter(|lane| lane.is_ready()).collect();
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
                        let mut result = lane.measure(shape, effort);
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
        let lost = lanes.iter().filter_map(|lane| Some((lane.device(), lane.lost()?)));
        self.notes.extend(lost.map(|(device, why)| format!("{device} is lost: {why}")));
    }

    fn measure_layers(
        &mut self,
        batch: &LayerBatch,
        effort: Effort,
    ) -> Result<Vec<f64>, BackendError> {
        let begin = Instant::now();
        let reply = self.request(messages::layers(batch, effort), effort)?;
        messages::times(&reply["ms"], begin.elapsed()).map_err(BackendError::Shape)
    }
}
