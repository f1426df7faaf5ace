//! The CPU as a device, in 32-bit floats: faer for matrix products, kernels of our own around it.
//!
//! Cache conditions are those of a real model. An operator repeated alone would find its weights
//! in the caches; in a model it streams them from memory, because its neighbours ran in between.
//! So operators are timed where they stand: layer after layer of a stack whose weights together
//! exceed twice the last-level cache, with real data flowing through. KV caches rotate likewise.

pub mod attention;
pub mod gemm;
pub mod kv_cache;
pub mod layer;
mod measure;
#[cfg(test)]
mod testing;
pub mod threads;
pub mod vector;
#[cfg(test)]
mod vector_tests;
pub mod weights;

use super::{
    Backend, BackendError, DeviceInfo, Effort, LayerBatch, OpSamples, Peaks, Purpose, Shape, Shard,
};
use crate::profiling::host::{Host, available_memory_bytes};
use crate::spec::model::Dtype;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef};
use measure::Prepared;
use rayon::prelude::*;
use std::time::{Duration, Instant};
use threads::Threads;
use weights::Dims;

/// Weights and KV caches together exceed the last-level cache by this factor.
const CACHE_FACTOR: u64 = 2;
/// Share of the available memory that the stack of layers may take.
const STACK_SHARE: f64 = 0.25;
/// Share of the available memory that one preparation or shape may take in all.
const MEMORY_SHARE: f64 = 0.6;

/// Our own kernels. The number rises when a change makes them faster or slower, so that old and
/// new times are never mixed.
const OWN_KERNELS: &str = "vidur-cpu-kernels 1";

/// See the module.
pub struct CpuBackend {
    device: DeviceInfo,
    last_level_cache_bytes: u64,
    threads: Threads,
    seed: u64,
    prepared: Option<Prepared>,
}

impl CpuBackend {
    /// This machine's CPU, with `threads` threads (default: one per physical core).
    ///
    /// # Errors
    /// When the system refuses to start the threads.
    pub fn new(host: &Host, threads: Option<u32>, seed: u64) -> Result<CpuBackend, BackendError> {
        let count = threads.unwrap_or(host.cores).max(1);
        Ok(CpuBackend {
            device: DeviceInfo {
                backend: "cpu".into(),
                name: host.cpu_model.clone(),
                vendor: host.cpu_vendor.clone(),
                cores: host.cores,
                threads: count,
                memory_bytes: host.memory_bytes,
                kernels: ["faer", "private-gemm-x86", "pulp", "rayon"]
                    .into_iter()
                    .filter_map(locked_version)
                    .chain([OWN_KERNELS.to_owned()])
                    .collect(),
                dtype: Dtype::F32,
            },
            last_level_cache_bytes: host.last_level_cache_bytes,
            threads: Threads::new(count)?,
            seed,
            prepared: None,
        })
    }

    /// Bytes that must pass through the caches before anything is used again.
    fn working_set_bytes(&self) -> u64 {
        let memory = (available_memory_bytes() as f64 * STACK_SHARE) as u64;
        (CACHE_FACTOR * self.last_level_cache_bytes).min(memory)
    }
}

/// `name version` as locked when this program was built.
fn locked_version(name: &str) -> Option<String> {
    let lock = include_str!("../../../../Cargo.lock");
    let at = lock.find(&format!("name = \"{name}\"\nversion = \""))?;
    let version = lock[at..].lines().nth(1)?.strip_prefix("version = \"")?.strip_suffix('"')?;
    Some(format!("{name} {version}"))
}

/// `Ok` if `bytes` may be taken from the memory that is free now.
fn check_memory(bytes: u64, what: &str) -> Result<(), BackendError> {
    let available = available_memory_bytes();
    if bytes as f64 <= available as f64 * MEMORY_SHARE {
        return Ok(());
    }
    let gib = |b: u64| b as f64 / f64::from(1 << 30);
    Err(BackendError::Shape(format!(
        "{what} needs {:.1} GiB, more than {:.0} % of the {:.1} GiB of memory available",
        gib(bytes),
        MEMORY_SHARE * 100.0,
        gib(available)
    )))
}

impl Backend for CpuBackend {
    fn device(&self) -> &DeviceInfo {
        &self.device
    }

    fn peaks(&mut self) -> Result<Peaks, BackendError> {
        Ok(Peaks {
            flops_per_s: gemm_flops_per_s(&self.threads),
            bytes_per_s: copy_bytes_per_s(&self.threads, self.working_set_bytes()),
        })
    }

    fn prepare(&mut self, shard: &Shard, purpose: Purpose) -> Result<(), BackendError> {
        // Gives the memory of the last shard back before asking for more.
        self.prepared = None;
        let dims = Dims::of(shard);
        if !dims.heads.q_heads.is_multiple_of(dims.heads.kv_heads) {
            return Err(BackendError::Shape(format!(
                "{} query heads per device are not a multiple of {} key-value heads; take another \
                 tensor_parallel than {}",
                dims.heads.q_heads, dims.heads.kv_heads, shard.tensor_parallel
            )));
        }
        let working_set = self.working_set_bytes();
        let prepared = Prepared::new(&self.threads, shard, purpose, working_set, self.seed)?;
        self.prepared = Some(prepared);
        Ok(())
    }

    fn measure(&mut self, shape: Shape, effort: Effort) -> Result<Vec<OpSamples>, BackendError> {
        let (threads, prepared) = (&self.threads, prepared(&mut self.prepared)?);
        match shape {
            Shape::Tokens(tokens) => prepared.per_token(threads, tokens, effort),
            Shape::Prefill { chunk, kv } => {
                let batch = LayerBatch { prefills: vec![(chunk, kv)], decodes: Vec::new() };
                prepared.attention(threads, &batch, effort)
            }
            Shape::Decode { batch, kv } => {
                let batch = LayerBatch { prefills: Vec::new(), decodes: vec![kv; batch as usize] };
                prepared.attention(threads, &batch, effort)
            }
        }
    }

    fn measure_layers(
        &mut self,
        batch: &LayerBatch,
        effort: Effort,
    ) -> Result<Vec<f64>, BackendError> {
        prepared(&mut self.prepared)?.whole_layers(&self.threads, batch, effort)
    }
}

fn prepared(prepared: &mut Option<Prepared>) -> Result<&mut Prepared, BackendError> {
    prepared.as_mut().ok_or_else(|| BackendError::Shape("no shard is prepared".into()))
}

/// How long each of the two calibrations may take.
const CALIBRATION: Duration = Duration::from_millis(250);

/// The best of repeated products of two square matrices.
fn gemm_flops_per_s(threads: &Threads) -> f64 {
    const N: usize = 1024;
    let (mut a, mut b, mut c) = (vec![0.0; N * N], vec![0.0; N * N], vec![0.0_f32; N * N]);
    let best = threads.install(|| {
        weights::fill(&mut a, 1, 1.0);
        weights::fill(&mut b, 2, 1.0);
        best_of(|| {
            let a = MatRef::from_row_major_slice(&a, N, N);
            let b = MatRef::from_row_major_slice(&b, N, N);
            let c = MatMut::from_row_major_slice_mut(&mut c, N, N);
            matmul(c, Accum::Replace, a, b, 1.0_f32, threads.par());
        })
    });
    2.0 * (N * N * N) as f64 / best
}

/// The best of repeated copies between two buffers of `working_set` bytes together.
fn copy_bytes_per_s(threads: &Threads, working_set: u64) -> f64 {
    let len = (working_set / 8).max(1 << 16) as usize;
    let (mut from, mut to) = (vec![0.0_f32; len], vec![0.0_f32; len]);
    let best = threads.install(|| {
        weights::fill(&mut from, 3, 1.0);
        let piece = len.div_ceil(threads.count());
        best_of(|| {
            to.par_chunks_mut(piece)
                .zip(from.par_chunks(piece))
                .for_each(|(to, from)| to.copy_from_slice(from));
        })
    });
    8.0 * len as f64 / best
}

/// Seconds of the fastest run; at least two runs, the first of which is for warming up.
fn best_of(mut f: impl FnMut()) -> f64 {
    let begin = Instant::now();
    f();
    let mut best = f64::INFINITY;
    loop {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64().max(1e-9));
        if begin.elapsed() >= CALIBRATION {
            return best;
        }
    }
}
