//! Which device to measure on, and how: the flags that every profile of operators shares.

use super::Failure;
use crate::cli::devices;
use crate::profiling::backend::Backend;
use crate::profiling::backend::cpu::CpuBackend;
use crate::profiling::backend::torch::{TorchBackend, TorchConfig};
use crate::profiling::detect::{self, Kind};
use crate::profiling::host::Host;
use crate::profiling::tool::Tools;
use crate::spec::model::Dtype;
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Clone, Debug, clap::Args)]
pub struct DeviceArgs {
    /// What to measure with.
    #[arg(long, value_enum, default_value_t = BackendKind::Auto)]
    pub backend: BackendKind,
    /// Devices to measure on at the same time, one worker each (torch) [default: 0].
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    pub devices: Vec<u32>,
    /// Python interpreter that has torch.
    #[arg(long, default_value = "python3", value_name = "PATH")]
    pub python: PathBuf,
    /// Number format of weights and activations (torch) [default: bf16 on accelerators, f32 on CPUs].
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub dtype: Option<DtypeArg>,
    /// Use torch's own kernels only, also where flashinfer, flash-attn or vLLM are installed.
    #[arg(long)]
    pub plain_kernels: bool,
    /// How long one answer of a worker may take, compiling and laying out included.
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = crate::cli::profile::parse_limit)]
    pub worker_timeout: Duration,
    /// Threads of the kernels on CPUs [default: one per physical core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Seed of weights, tokens and block tables.
    #[arg(long, default_value_t = 42, value_name = "N")]
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendKind {
    /// The best device that is here: NVIDIA or AMD through torch, else the CPU.
    Auto,
    /// The CPU, with kernels of our own.
    Cpu,
    /// Torch, on the GPU where there is one, else on the CPU.
    Torch,
    /// Neuron devices, through torch-neuronx: whole graphs only.
    Neuron,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    F32,
    Bf16,
    F16,
}

impl From<DtypeArg> for Dtype {
    fn from(arg: DtypeArg) -> Dtype {
        match arg {
            DtypeArg::F32 => Dtype::F32,
            DtypeArg::Bf16 => Dtype::Bf16,
            DtypeArg::F16 => Dtype::F16,
        }
    }
}

/// A device, ready to measure, and the name that its profiles get.
pub struct Chosen {
    pub backend: Box<dyn Backend>,
    pub sku: String,
}

/// Finds the device and starts what measures on it.
pub fn open(args: &DeviceArgs, data_dir: Option<&Path>, host: &Host) -> Result<Chosen, Failure> {
    let found = match args.backend {
        BackendKind::Cpu => None,
        _ => {
            let catalog = devices::open(data_dir)?;
            let found = detect::detect(&Tools::system(), &catalog, None).map_err(Failure::user)?;
            Some(found)
        }
    };
    let kind = found.as_ref().map_or(Kind::Cpu, |found| found.backend);
    match (args.backend, kind) {
        (BackendKind::Neuron, _) | (BackendKind::Auto, Kind::Neuron) => Err(Failure::user(
            "Neuron devices run whole graphs, not single operators: use `vidur profile graph`, or \
             --backend cpu for the host's processor",
        )),
        (BackendKind::Cpu, _) | (BackendKind::Auto, Kind::Cpu) => native(args, host),
        (_, Kind::Cuda | Kind::Rocm) => {
            let sku = found.and_then(|found| found.store_as).unwrap_or_else(|| "gpu".into());
            torch(args, host, "cuda", sku)
        }
        (_, Kind::Cpu | Kind::Neuron) => {
            let sku = host.sku(args.threads.unwrap_or(host.cores));
            torch(args, host, "cpu", format!("{sku}-torch"))
        }
    }
}

fn native(args: &DeviceArgs, host: &Host) -> Result<Chosen, Failure> {
    let backend = CpuBackend::new(host, args.threads, args.seed).map_err(Failure::user)?;
    let sku = host.sku(backend.device().threads);
    Ok(Chosen { backend: Box::new(backend), sku })
}

fn torch(args: &DeviceArgs, host: &Host, kind: &str, sku: String) -> Result<Chosen, Failure> {
    let config = torch_config(args, host, kind);
    let backend = TorchBackend::new(config, host).map_err(Failure::user)?;
    Ok(Chosen { backend: Box::new(backend), sku })
}

/// How workers of `kind` (`cpu`, `cuda`, `neuron`) are run.
pub fn torch_config(args: &DeviceArgs, host: &Host, kind: &str) -> TorchConfig {
    let numbers = if args.devices.is_empty() { &[0][..] } else { &args.devices };
    let device = |n: &u32| match kind {
        "cuda" => format!("cuda:{n}"),
        other => other.to_owned(),
    };
    let workers = numbers.len() as u32;
    let threads = args.threads.unwrap_or((host.cores / workers).max(1));
    TorchConfig {
        python: args.python.clone(),
        devices: numbers.iter().map(device).collect(),
        dtype: args.dtype.map(Dtype::from),
        threads: (kind != "cuda").then_some(threads),
        cache_bytes: host.last_level_cache_bytes,
        plain_kernels: args.plain_kernels,
        limit: args.worker_timeout,
        seed: args.seed,
        lnc: None,
    }
}
