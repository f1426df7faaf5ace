//! vLLM's offline engine, driven step by step in a Python process of its own: the driver generates
//! with dummy weights, times each step on the host and, by a clock around the engine's own methods,
//! its parts. A driver that dies, hangs or prints rubbish costs the batch size at hand and is
//! started again.

use crate::dataset::cpu_file::OverheadRow;
use crate::profiling::worker::{CallError, Worker};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// Version of the messages; see docs/worker-protocol.md.
pub const PROTOCOL: u64 = 1;

/// The driver's program.
const PROGRAM: &str = include_str!("vllm_driver.py");

/// Deaths in a row without an answer in between, after which nothing more is tried: each start of an
/// engine takes minutes.
const MOST_DEATHS: u32 = 3;

/// The parts of a step that are the host's, in the order of [`OverheadRow`], and the device's.
const PARTS: [&str; 5] =
    ["schedule", "sampler", "prepare_inputs", "process_outputs", "model_execution"];

/// How to run the engine.
#[derive(Clone, Debug)]
pub struct OfflineConfig {
    /// The Python interpreter that has vLLM.
    pub python: PathBuf,
    /// What vLLM reads the model's config.json from: a folder, or a name on Hugging Face.
    pub model: String,
    /// Tensor-parallel degree.
    pub tensor_parallel: u32,
    /// Without CUDA graphs and compilation.
    pub enforce_eager: bool,
    /// Number format; the checkpoint's when `None`.
    pub dtype: Option<String>,
    /// Most requests at the same time.
    pub max_num_seqs: u32,
    /// Longest sequence; the model's own when `None`.
    pub max_model_len: Option<u32>,
    /// Further arguments of `vllm.LLM`.
    pub engine_args: serde_json::Map<String, Value>,
    /// Tokens of each prompt.
    pub prompt_tokens: u32,
    /// Steps to time at each batch size.
    pub steps: u32,
    /// How long starting the engine, or one batch size, may take.
    pub limit: Duration,
    /// Seed of the weights.
    pub seed: u64,
}

/// Why a batch size, or everything, was not measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfflineError {
    /// No vLLM by this interpreter.
    #[error("{0}")]
    Absent(String),
    /// This batch size; others may go.
    #[error("{0}")]
    Batch(String),
    /// Nothing more can be measured.
    #[error("{0}")]
    Lost(String),
}

/// What the driver says of the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineInfo {
    /// Name and version.
    pub engine: String,
    /// The device it runs on.
    pub device: String,
    /// Methods that are timed, by part.
    pub methods: Vec<(String, Vec<String>)>,
    /// Parts that this version gives no method for: they are inside the gap.
    pub missing: Vec<String>,
}

/// See the module.
pub struct OfflineEngine {
    config: OfflineConfig,
    worker: Option<Worker>,
    info: EngineInfo,
    deaths: u32,
}

impl OfflineEngine {
    /// Nothing is started yet.
    pub fn new(config: OfflineConfig) -> OfflineEngine {
        OfflineEngine { config, worker: None, info: EngineInfo::default(), deaths: 0 }
    }

    /// Name and version of the vLLM that the interpreter imports, without starting an engine.
    ///
    /// # Errors
    /// [`OfflineError::Absent`] when there is none.
    pub fn probe(&self) -> Result<String, OfflineError> {
        let mut worker = Worker::start(&self.config.python, PROGRAM, None)
            .map_err(|e| OfflineError::Absent(e.to_string()))?;
        let request = json!({"do": "hello", "protocol": PROTOCOL, "probe": true});
        let reply = worker.call(request, self.config.limit).map_err(|e| match e {
            CallError::Refused { kind, message } if kind == "vllm" => OfflineError::Absent(message),
            other => OfflineError::Lost(other.to_string()),
        })?;
        reply["engine"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| OfflineError::Lost("the driver's greeting names no engine".into()))
    }

    /// What the engine is, once it has started.
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// Times steps in which `batch_size` requests decode; starts the engine where it does not run.
    ///
    /// # Errors
    /// [`OfflineError`].
    pub fn measure(&mut self, batch_size: u32) -> Result<OverheadRow, OfflineError> {
        self.start()?;
        let request = json!({
            "do": "drive",
            "batch_size": batch_size,
            "prompt_tokens": self.config.prompt_tokens,
            "steps": self.config.steps,
        });
        let Some(worker) = &mut self.worker else {
            return Err(OfflineError::Lost("the engine does not run".into()));
        };
        let answer = worker.call(request, self.config.limit);
        let reply = answer.map_err(|e| self.failed(e))?;
        self.deaths = 0;
        row(batch_size, &reply).map_err(OfflineError::Batch)
    }

    fn start(&mut self) -> Result<(), OfflineError> {
        if self.worker.is_some() {
            return Ok(());
        }
        let config = &self.config;
        let request = json!({
            "do": "hello",
            "protocol": PROTOCOL,
            "model": config.model,
            "enforce_eager": config.enforce_eager,
            "tensor_parallel": config.tensor_parallel,
            "dtype": config.dtype,
            "max_num_seqs": config.max_num_seqs,
            "max_model_len": config.max_model_len,
            "engine_args": config.engine_args,
            "seed": config.seed,
        });
        let limit = config.limit;
        let started = Worker::start(&config.python, PROGRAM, None)
            .and_then(|mut worker| worker.call(request, limit).map(|reply| (worker, reply)));
        let (worker, reply) = started.map_err(|e| match self.failed(e) {
            // An engine that never started has no batch size to blame.
            OfflineError::Batch(reason) if self.info == EngineInfo::default() => {
                OfflineError::Lost(reason)
            }
            other => other,
        })?;
        if reply["protocol"] != PROTOCOL {
            let theirs = &reply["protocol"];
            return Err(OfflineError::Lost(format!(
                "the driver speaks protocol {theirs}, not {PROTOCOL}"
            )));
        }
        self.info = info(&reply);
        self.worker = Some(worker);
        Ok(())
    }

    /// What a failure means: the batch size, unless nothing helps.
    fn failed(&mut self, error: CallError) -> OfflineError {
        match error {
            CallError::Refused { kind, message } => {
                self.deaths = 0;
                match kind.as_str() {
                    "vllm" => OfflineError::Absent(message),
                    "engine" | "protocol" => OfflineError::Lost(message),
                    "memory" => OfflineError::Batch(format!("out of memory: {message}")),
                    _ => OfflineError::Batch(message),
                }
            }
            CallError::Dead(reason) => {
                self.worker = None;
                self.deaths += 1;
                match self.deaths {
                    MOST_DEATHS => {
                        OfflineError::Lost(format!("{reason}, {MOST_DEATHS} times in a row"))
                    }
                    _ => OfflineError::Batch(reason),
                }
            }
        }
    }
}

fn info(reply: &Value) -> EngineInfo {
    let words = |list: &Value| -> Vec<String> {
        list.as_array().map_or(Vec::new(), |l| {
            l.iter().filter_map(|w| w.as_str().map(str::to_owned)).collect()
        })
    };
    let parts = reply["parts"].as_object();
    EngineInfo {
        engine: reply["engine"].as_str().unwrap_or("vllm").to_owned(),
        device: reply["device"].as_str().unwrap_or("unknown").to_owned(),
        methods: parts
            .map_or(Vec::new(), |p| p.iter().map(|(part, m)| (part.clone(), words(m))).collect()),
        missing: words(&reply["missing"]),
    }
}

/// Steps as a row: what is in none of the parts is the gap.
///
/// # Errors
/// One line that names the step and the figure at fault.
pub fn row(batch_size: u32, reply: &Value) -> Result<OverheadRow, String> {
    let steps = reply["steps"].as_array().filter(|steps| !steps.is_empty());
    let steps = steps.ok_or("the driver's answer has no steps")?;
    let mut row = OverheadRow { batch_size, ..OverheadRow::default() };
    for (at, step) in steps.iter().enumerate() {
        let time = |name: &str| -> Result<Option<f64>, String> {
            match &step[name] {
                Value::Null => Ok(None),
                value => value.as_f64().filter(|ms| ms.is_finite() && *ms >= 0.0).map(Some).ok_or_else(
                    || format!("the driver's answer, step {at}: {name} is {value}, expected milliseconds"),
                ),
            }
        };
        let whole =
            time("step")?.ok_or_else(|| format!("the driver's answer, step {at}: no time"))?;
        let lists = [
            &mut row.schedule_ms,
            &mut row.sampler_ms,
            &mut row.prepare_inputs_ms,
            &mut row.process_outputs_ms,
            &mut row.device_ms,
        ];
        let mut gap = whole;
        for (name, list) in PARTS.into_iter().zip(lists) {
            if let Some(ms) = time(name)? {
                gap -= ms;
                list.push(ms);
            }
        }
        row.gap_ms.push(gap.max(0.0));
    }
    match row.device_ms.len() == row.gap_ms.len() {
        true => Ok(row),
        false => Err("the driver's answer has steps without the device's part".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_in_no_part_is_the_gap() {
        let reply = json!({"steps": [
            {"step": 20.0, "schedule": 1.0, "prepare_inputs": 2.0, "model_execution": 10.0, "process_outputs": 3.0},
            {"step": 9.0, "schedule": 1.0, "prepare_inputs": 2.0, "model_execution": 10.0, "process_outputs": 3.0},
        ]});
        let row = row(8, &reply).unwrap();
        assert_eq!((row.batch_size, row.gap_ms), (8, vec![4.0, 0.0]));
        assert_eq!((row.schedule_ms, row.device_ms), (vec![1.0; 2], vec![10.0; 2]));
        assert!(row.sampler_ms.is_empty());
    }

    #[test]
    fn answers_that_make_no_sense_are_refused_with_step_and_figure() {
        for (steps, words) in [
            (json!([]), "no steps"),
            (json!([{"schedule": 1.0}]), "step 0: no time"),
            (json!([{"step": "x"}]), "step is \"x\", expected milliseconds"),
            (json!([{"step": 3.0}]), "without the device's part"),
            (json!([{"step": 3.0, "model_execution": -1.0}]), "model_execution is -1.0"),
        ] {
            let message = row(1, &json!({ "steps": steps })).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }

    proptest! {
        #![proptest_config(crate::profiling::network::tests::cases())]

        #[test]
        fn no_answer_makes_it_panic(text in "\\PC{0,60}", ms in any::<f64>()) {
            let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
            let _ = row(1, &value);
            let _ = row(1, &json!({"steps": [value, {"step": ms, "model_execution": ms}]}));
        }
    }
}
