//! What a device can be asked: prepare a shard of a model, time one shape. Everything above this
//! trait is the same for every device.

pub mod cpu;
pub mod scripted;
pub mod torch;

pub use crate::dataset::manifest::DeviceInfo;
use crate::spec::model::ModelSpec;
use crate::spec::ops::Op;
use crate::spec::parallel::Parallelism;
use std::fmt;
use std::time::Duration;

/// One point at which operators are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// The per-token operators on this many rows.
    Tokens(u64),
    /// One prompt chunk of `chunk` tokens after `kv` tokens in the cache.
    Prefill {
        /// Tokens of the chunk, at least 1.
        chunk: u64,
        /// Tokens already in the KV cache.
        kv: u64,
    },
    /// `batch` sequences that decode one token each, with `kv` tokens in the cache of each.
    Decode {
        /// Sequences, at least 1.
        batch: u64,
        /// Tokens in the KV cache of each sequence.
        kv: u64,
    },
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shape::Tokens(n) => write!(f, "{n} tokens"),
            Shape::Prefill { chunk, kv } => write!(f, "prefill of {chunk} tokens after {kv}"),
            Shape::Decode { batch, kv } => write!(f, "decode of {batch} sequences after {kv}"),
        }
    }
}

/// A batch for whole layers: prompt chunks first, then decoding sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerBatch {
    /// `(chunk, kv)` of each prompt chunk: its tokens, and the tokens already in its cache.
    pub prefills: Vec<(u64, u64)>,
    /// Tokens in the KV cache of each decoding sequence.
    pub decodes: Vec<u64>,
}

impl LayerBatch {
    /// Tokens that pass through the layer.
    pub fn num_tokens(&self) -> u64 {
        self.prefills.iter().map(|p| p.0).sum::<u64>() + self.decodes.len() as u64
    }
}

/// The part of a model that one device holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// The whole model.
    pub model: ModelSpec,
    /// Devices that share each layer.
    pub tensor_parallel: u32,
}

impl Shard {
    /// The split as `spec` writes it: tensor parallel only.
    pub fn parallelism(&self) -> Parallelism {
        Parallelism { tensor_parallel: self.tensor_parallel, pipeline_parallel: 1 }
    }
}

/// What a shard is prepared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// [`Shape::Tokens`].
    Mlp,
    /// [`Shape::Prefill`] and [`Shape::Decode`].
    Attention,
    /// [`Backend::measure_layers`]; the others work too.
    Layers,
}

/// How long to measure one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Samples of every operator, at least 1.
    pub repeats: u32,
    /// Keep sampling this long even when there are enough samples: cheap shapes are noisy.
    pub min_time: Duration,
    /// Stop here if every operator has a sample, even when there are too few.
    pub max_time: Duration,
}

impl Default for Effort {
    fn default() -> Self {
        Effort {
            repeats: 5,
            min_time: Duration::from_millis(300),
            max_time: Duration::from_secs(10),
        }
    }
}

impl Effort {
    /// The share of one of `rounds` rounds, so that all of them together cost about as much as
    /// `self` at once: a round has at least one sample.
    pub fn over(self, rounds: u32) -> Effort {
        let rounds = rounds.max(1);
        Effort {
            repeats: self.repeats.div_ceil(rounds),
            min_time: self.min_time / rounds,
            max_time: self.max_time / rounds,
        }
    }
}

/// Times of one operator in one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct OpSamples {
    /// The operator.
    pub op: Op,
    /// Milliseconds, in the order in which they were taken; at least one.
    pub ms: Vec<f64>,
}

/// Peaks of the device, as measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Arithmetic of a large matrix product, operations per second; a multiply-add counts as two.
    pub flops_per_s: f64,
    /// Bytes read plus bytes written per second by a copy that no cache holds.
    pub bytes_per_s: f64,
}

/// Why a measurement gave no times.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// This shape cannot be measured here; others may.
    #[error("{0}")]
    Shape(String),
    /// The device or its worker is gone: nothing more can be measured.
    #[error("{0}")]
    Lost(String),
}

/// A device that times operators.
///
/// Failures are values: a backend never panics because a shape is too large, a worker died or
/// memory ran out.
pub trait Backend {
    /// The device. Postcondition: the same for the life of the backend.
    fn device(&self) -> &DeviceInfo;

    /// Measures the peaks in less than about a second. Postcondition: both are above zero.
    ///
    /// # Errors
    /// [`BackendError`] when the device does not answer.
    fn peaks(&mut self) -> Result<Peaks, BackendError>;

    /// Lays out the weights of `shard`, in place of those of any earlier shard.
    /// Precondition: `Parallelism::check` accepts the shard.
    ///
    /// # Errors
    /// [`BackendError::Shape`] when the shard does not fit.
    fn prepare(&mut self, shard: &Shard, purpose: Purpose) -> Result<(), BackendError>;

    /// Times every operator that belongs to `shape`, under the cache conditions of a model that is
    /// larger than the caches. Precondition: a shard is prepared for that purpose. Postcondition:
    /// at least one operator; every operator has at least one sample, each finite and not negative.
    ///
    /// # Errors
    /// [`BackendError`]; after [`BackendError::Shape`] the next shape may be asked.
    fn measure(&mut self, shape: Shape, effort: Effort) -> Result<Vec<OpSamples>, BackendError>;

    /// What `attention_backend` is in the rows of attention.csv. Postcondition: a cell that needs no
    /// quotes, the same for the life of the backend.
    fn attention_kernel(&self) -> &str {
        "cpu"
    }

    /// Shapes that are measured at the same time, on as many devices.
    fn lanes(&self) -> usize {
        1
    }

    /// What happened since this was asked last that people should know: a device that is left out.
    fn take_notes(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// Measures each of `shapes`, up to [`Backend::lanes`] at a time, and tells `done` the index and
    /// the result of each as soon as it is there.
    fn measure_all(
        &mut self,
        shapes: &[Shape],
        effort: Effort,
        done: &mut dyn FnMut(usize, Result<Vec<OpSamples>, BackendError>),
    ) {
        for (i, &shape) in shapes.iter().enumerate() {
            done(i, self.measure(shape, effort));
        }
    }

    /// Milliseconds of one whole decoder layer for `batch`, without timers inside the layer. The
    /// code that runs is the one that [`Backend::measure`] times, operator by operator.
    /// Precondition: a shard is prepared for [`Purpose::Layers`] and the batch is not empty.
    ///
    /// # Errors
    /// [`BackendError`], as for [`Backend::measure`].
    fn measure_layers(
        &mut self,
        batch: &LayerBatch,
        effort: Effort,
    ) -> Result<Vec<f64>, BackendError>;
}
