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
    /// GPUs to measure on at the same time, one worker each [default: 0].
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
    /// How long one answer of a worker may take beside the time that sampling takes; starting,
    /// compiling and laying out included [default: 10m; 1h to compile a graph].
    #[arg(long, value_name = "TIME", value_parser = crate::cli::profile::parse_limit)]
    pub worker_timeout: Option<Duration>,
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
    /// The CPU, with kernels of our own; graphs through torch.
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

/// How long an answer may take unless told otherwise: kernels may compile at their first use.
const WORKER_LIMIT: Duration = Duration::from_secs(600);

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
    if let Some(doubt) = found.as_ref().and_then(|found| found.doubt.as_deref()) {
        about_doubt(args.backend, doubt)?;
    }
    match (args.backend, kind) {
        (BackendKind::Neuron, _) | (BackendKind::Auto, Kind::Neuron) => Err(Failure::user(
            "Neuron devices run whole graphs, not single operators: use `vidur profile graph`, or \
             --backend cpu for the host's processor",
        )),
        (BackendKind::Cpu, _) | (BackendKind::Auto, Kind::Cpu) => native(args, host),
        (_, Kind::Cuda | Kind::Rocm) => {
            let sku = found.as_ref().and_then(|found| found.store_as.clone());
            let mut chosen = torch(args, host, "cuda", sku.unwrap_or_else(|| "gpu".into()))?;
            if found.is_some_and(|found| !found.is_alike()) {
                // CUDA counts devices in another order than the driver's tool.
                chosen.sku = detect::nvidia::store_as(&chosen.backend.device().name);
            }
            Ok(chosen)
        }
        (_, Kind::Cpu | Kind::Neuron) => {
            let sku = host.sku(args.threads.unwrap_or(host.cores));
            torch(args, host, "cpu", format!("{sku}-torch"))
        }
    }
}

/// The CPU stands in for an accelerator only where it is asked for.
///
/// # Errors
/// When whoever typed the command may have meant another device.
pub fn about_doubt(backend: BackendKind, doubt: &str) -> Result<(), Failure> {
    match backend {
        BackendKind::Auto => Err(Failure::user(format!(
            "{doubt}; mend it, or give --backend cpu if you mean the CPU"
        ))),
        BackendKind::Torch => {
            eprintln!("note: {doubt}; measuring on the CPU");
            Ok(())
        }
        BackendKind::Cpu | BackendKind::Neuron => Ok(()),
    }
}

fn native(args: &DeviceArgs, host: &Host) -> Result<Chosen, Failure> {
    numbers(args, "cpu")?;
    let backend = CpuBackend::new(host, args.threads, args.seed).map_err(Failure::user)?;
    let sku = host.sku(backend.device().threads);
    Ok(Chosen { backend: Box::new(backend), sku })
}

fn torch(args: &DeviceArgs, host: &Host, kind: &str, sku: String) -> Result<Chosen, Failure> {
    let config = torch_config(args, host, kind)?;
    let backend = TorchBackend::new(config, host).map_err(Failure::user)?;
    Ok(Chosen { backend: Box::new(backend), sku })
}

/// The numbers of the devices to measure on.
fn numbers<'a>(args: &'a DeviceArgs, kind: &str) -> Result<&'a [u32], Failure> {
    let numbers = match args.devices.as_slice() {
        [] => &[0],
        given => given,
    };
    if kind != "cuda" && numbers != [0] {
        return Err(Failure::user("--devices numbers GPUs, and this is none; leave it out"));
    }
    let twice = numbers.iter().enumerate().find(|(i, n)| numbers[..*i].contains(n));
    match twice {
        Some((_, n)) => Err(Failure::user(format!(
            "--devices names {n} twice: two workers on one device would slow each other down"
        ))),
        None => Ok(numbers),
    }
}

/// How workers of `kind` (`cpu`, `cuda`, `neuron`) are run.
pub fn torch_config(args: &DeviceArgs, host: &Host, kind: &str) -> Result<TorchConfig, Failure> {
    let numbers = numbers(args, kind)?;
    let device = |n: &u32| match kind {
        "cuda" => format!("cuda:{n}"),
        other => other.to_owned(),
    };
    Ok(TorchConfig {
        python: args.python.clone(),
        devices: numbers.iter().map(device).collect(),
        dtype: args.dtype.map(Dtype::from),
        threads: (kind != "cuda").then_some(args.threads.unwrap_or(host.cores)),
        cache_bytes: host.last_level_cache_bytes,
        plain_kernels: args.plain_kernels,
        limit: args.worker_timeout.unwrap_or(WORKER_LIMIT),
        seed: args.seed,
        lnc: None,
    })
}
