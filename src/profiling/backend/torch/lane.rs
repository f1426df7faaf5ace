//! One device and the worker that owns it: started when needed, started again after it died.

use super::messages;
use super::{PROGRAM, PROTOCOL, TorchConfig};
use crate::profiling::backend::{BackendError, Effort, OpSamples, Purpose, Shape, Shard};
use crate::profiling::worker::{CallError, Worker};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Deaths in a row without an answer in between, after which the device counts as lost.
const MOST_DEATHS: u32 = 4;

/// See the module.
pub struct Lane {
    device: String,
    config: TorchConfig,
    worker: Option<Worker>,
    prepared: Option<(Shard, Purpose)>,
    /// Deaths since the last answer.
    deaths: u32,
    /// Why it is not asked again.
    lost: Option<String>,
}

impl Lane {
    /// For `device` as the worker knows it: `cpu`, `cuda:0`, `neuron`.
    pub fn new(device: String, config: TorchConfig) -> Lane {
        Lane { device, config, worker: None, prepared: None, deaths: 0, lost: None }
    }

    /// Starts the worker, if it is not running, and introduces us. Torch takes its time to load, and
    /// kernels may compile at their first use.
    ///
    /// # Errors
    /// [`CallError`], also when the worker speaks another protocol.
    pub fn hello(&mut self) -> Result<Value, CallError> {
        let mut worker = Worker::start(&self.config.python, PROGRAM, self.config.lnc)?;
        let request = json!({
            "do": "hello",
            "protocol": PROTOCOL,
            "device": self.device,
            "dtype": self.config.dtype.map(messages::dtype),
            "threads": self.config.threads,
            "cache_bytes": self.config.cache_bytes,
            "kernels": if self.config.plain_kernels { "plain" } else { "auto" },
            "seed": self.config.seed,
        });
        let reply = worker.call(request, self.config.limit)?;
        if reply["protocol"] != PROTOCOL {
            return Err(CallError::Refused {
                kind: "protocol".into(),
                message: format!(
                    "the worker speaks protocol {}, not {PROTOCOL}",
                    reply["protocol"]
                ),
            });
        }
        self.worker = Some(worker);
        Ok(reply)
    }

    /// Ends the worker, which gives its device free; the next question starts another.
    pub fn rest(&mut self) {
        self.worker = None;
    }

    /// The interpreter.
    pub fn python(&self) -> &std::path::Path {
        &self.config.python
    }

    /// The device, as the worker knows it.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Why it is not asked again; `None` as long as it is.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Whether shapes can be measured on it.
    pub fn is_ready(&self) -> bool {
        self.lost.is_none() && self.prepared.is_some()
    }

    /// Asks something, starting and preparing the worker again first if it died.
    fn ask(&mut self, request: Value, limit: Duration) -> Result<Value, BackendError> {
        if let Some(reason) = &self.lost {
            return Err(BackendError::Lost(format!("{} is lost: {reason}", self.device)));
        }
        if self.worker.is_none() {
            self.hello().map_err(|e| self.failed(e))?;
            if let Some((shard, purpose)) = self.prepared.clone() {
                self.call(prepare_request(&shard, purpose), self.config.limit)?;
            }
        }
        self.call(request, limit)
    }

    fn call(&mut self, request: Value, limit: Duration) -> Result<Value, BackendError> {
        let Some(worker) = &mut self.worker else {
            return Err(BackendError::Shape("the worker is not running".into()));
        };
        let answer = worker.call(request, limit);
        answer.inspect(|_| self.deaths = 0).map_err(|e| self.failed(e))
    }

    /// What a failure means for the run: the shape, unless the worker keeps dying.
    fn failed(&mut self, error: CallError) -> BackendError {
        let lost = match error {
            CallError::Refused { kind, message } => {
                self.deaths = 0;
                match kind.as_str() {
                    "torch" | "device" | "protocol" => message,
                    "memory" => return BackendError::Shape(format!("out of memory: {message}")),
                    _ => return BackendError::Shape(message),
                }
            }
            CallError::Dead(reason) => {
                self.worker = None;
                self.deaths += 1;
                if self.deaths < MOST_DEATHS {
                    return BackendError::Shape(reason);
                }
                format!("{reason}, for the {MOST_DEATHS}th time in a row")
            }
        };
        self.lost = Some(lost.clone());
        BackendError::Lost(lost)
    }

    /// Lays out the weights.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn prepare(&mut self, shard: &Shard, purpose: Purpose) -> Result<(), BackendError> {
        self.prepared = None;
        self.ask(prepare_request(shard, purpose), self.config.limit)?;
        self.prepared = Some((shard.clone(), purpose));
        Ok(())
    }

    /// Times one shape.
    ///
    /// # Errors
    /// [`BackendError`]; an answer that makes no sense is the shape's failure.
    pub fn measure(
        &mut self,
        shape: Shape,
        effort: Effort,
    ) -> Result<Vec<OpSamples>, BackendError> {
        let Some((shard, _)) = self.prepared.clone() else {
            return Err(BackendError::Shape("no shard is prepared".into()));
        };
        let request = messages::measure(shape, effort);
        let begin = Instant::now();
        let reply = self.ask(request, self.limit(effort))?;
        messages::samples(&reply, &shard.model, shape, begin.elapsed()).map_err(BackendError::Shape)
    }

    /// Any other request.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn request(&mut self, request: Value, limit: Duration) -> Result<Value, BackendError> {
        self.ask(request, limit)
    }

    /// How long an answer may take: samples, and what is around them.
    pub fn limit(&self, effort: Effort) -> Duration {
        self.config.limit.saturating_add(effort.max_time)
    }
}

fn prepare_request(shard: &Shard, purpose: Purpose) -> Value {
    let purpose = match purpose {
        Purpose::Mlp => "mlp",
        Purpose::Attention => "attention",
        Purpose::Layers => "layers",
    };
    json!({"do": "prepare", "purpose": purpose, "shard": messages::shard(shard)})
}
