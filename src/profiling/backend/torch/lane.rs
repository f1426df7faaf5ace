//! One device and the worker that owns it: started when needed, started again after it died.

use super::messages;
use super::{PROTOCOL, TorchConfig};
use crate::profiling::backend::{BackendError, Effort, OpSamples, Purpose, Shape, Shard};
use crate::profiling::worker::{CallError, Script, Worker};
use serde_json::{Value, json};
use std::time::Duration;

/// Deaths in a row without an answer in between, after which the device counts as lost.
const MOST_DEATHS: u32 = 4;

/// Starting Python and torch, with kernels that compile at their first use.
const HELLO_LIMIT: Duration = Duration::from_secs(600);

/// See the module.
pub struct Lane {
    device: String,
    config: TorchConfig,
    worker: Option<Worker>,
    prepared: Option<(Shard, Purpose)>,
    /// Deaths since the last answer.
    deaths: u32,
}

impl Lane {
    /// For `device` as the worker knows it: `cpu`, `cuda:0`, `neuron`.
    pub fn new(device: String, config: TorchConfig) -> Lane {
        Lane { device, config, worker: None, prepared: None, deaths: 0 }
    }

    /// Starts the worker, if it is not running, and introduces us.
    ///
    /// # Errors
    /// [`CallError`], also when the worker speaks another protocol.
    pub fn hello(&mut self, script: &Script) -> Result<Value, CallError> {
        let mut worker = Worker::start(&self.config.python, script, self.config.lnc)?;
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
        let reply = worker.call(request, HELLO_LIMIT)?;
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

    /// Whether it died too often to be asked again.
    pub fn is_lost(&self) -> bool {
        self.deaths >= MOST_DEATHS
    }

    /// Asks something, starting and preparing the worker again first if it died.
    fn ask(
        &mut self,
        script: &Script,
        request: Value,
        limit: Duration,
    ) -> Result<Value, BackendError> {
        if self.is_lost() {
            return Err(BackendError::Lost(format!(
                "the worker of {} died {MOST_DEATHS} times in a row",
                self.device
            )));
        }
        if self.worker.is_none() {
            self.hello(script).map_err(|e| self.failed(e))?;
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
        match error {
            CallError::Refused { kind, message } => {
                self.deaths = 0;
                match kind.as_str() {
                    "torch" | "device" | "protocol" => BackendError::Lost(message),
                    "memory" => BackendError::Shape(format!("out of memory: {message}")),
                    _ => BackendError::Shape(message),
                }
            }
            CallError::Dead(reason) => {
                self.worker = None;
                self.deaths += 1;
                match self.deaths {
                    MOST_DEATHS => BackendError::Lost(format!(
                        "{reason}, for the {MOST_DEATHS}th time in a row"
                    )),
                    _ => BackendError::Shape(reason),
                }
            }
        }
    }

    /// Lays out the weights.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn prepare(
        &mut self,
        script: &Script,
        shard: &Shard,
        purpose: Purpose,
    ) -> Result<(), BackendError> {
        self.prepared = None;
        self.ask(script, prepare_request(shard, purpose), self.config.limit)?;
        self.prepared = Some((shard.clone(), purpose));
        Ok(())
    }

    /// Times one shape.
    ///
    /// # Errors
    /// [`BackendError`]; an answer that makes no sense is the shape's failure.
    pub fn measure(
        &mut self,
        script: &Script,
        shape: Shape,
        effort: Effort,
    ) -> Result<Vec<OpSamples>, BackendError> {
        let Some((shard, _)) = self.prepared.clone() else {
            return Err(BackendError::Shape("no shard is prepared".into()));
        };
        let request = messages::measure(shape, effort);
        let reply = self.ask(script, request, self.limit(effort))?;
        messages::samples(&reply, &shard.model, shape).map_err(BackendError::Shape)
    }

    /// Any other request.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn request(
        &mut self,
        script: &Script,
        request: Value,
        effort: Effort,
    ) -> Result<Value, BackendError> {
        self.ask(script, request, self.limit(effort))
    }

    /// How long an answer may take: samples, and what is around them.
    fn limit(&self, effort: Effort) -> Duration {
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
