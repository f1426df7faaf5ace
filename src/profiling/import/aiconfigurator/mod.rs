//! NVIDIA's published operator timings, in the PyPI package `aiconfigurator-core` (Apache-2.0): matrix
//! products, attention and collectives of vLLM, SGLang and TensorRT-LLM on 14 GPU systems, as profiles of
//! any model whose shapes are known.
//!
//! ```text
//! Package::open(wheel) ─► Tables::load(system, engine) ─► profiles(model, TP degrees) ─► into_root()
//! ```
//!
//! | what | from | how |
//! |---|---|---|
//! | projections, LM head | gemm | [`gemm`]: interpolated between the grid's n and k, at every m |
//! | attention | context and generation attention | [`attention`]: as measured; chunks after a prefix derived |
//! | all-reduce | the engine's own, inside a CUDA graph | as measured |
//! | norms, rotary embedding, activation | quantize | [`streaming`]: by bytes moved |
//! | send/receive | NCCL | half an exchange of two devices |

pub mod attention;
mod engine;
mod frame;
pub mod gemm;
mod manifest;
mod network;
mod profile;
mod source;
pub mod streaming;
mod tables;
#[cfg(test)]
mod tests;

pub use engine::Engine;
pub use source::Package;
pub use tables::{TableFile, Tables};

/// The tensor-parallel degrees that the package's collectives were timed for, and one device.
pub const DEGREES: [u32; 4] = [1, 2, 4, 8];
