//! The engine's time on the host, where there is an engine to ask: vLLM, driven offline.

use super::{Args, Report};
use crate::cli::Failure;
use crate::cli::profile::cpu_overhead;
use crate::cli::profile::device::BackendKind;
use crate::profiling::detect::{Detection, Kind};
use crate::profiling::tool;
use crate::spec::model::ModelSpec;
use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Finds vLLM without importing it, which takes half a minute.
const PROBE: &str = "import importlib.util as u; print('vllm' if u.find_spec('vllm') else 'none')";

/// `vidur profile cpu-overhead`, as it is typed.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: cpu_overhead::Args,
}

/// Measures what can be, and lists the rest.
pub fn measure(args: &Args, models: &[ModelSpec], found: &Detection, report: &mut Report) {
    let host =
        args.network_device.as_ref().or(found.network_device.as_ref()).or(found.store_as.as_ref());
    let host = host.map_or("NAME", String::as_str);
    let vllm = is_engine_free(args, found) && has_vllm(&args.common.device.python);
    for model in models {
        let path = csv(args, host, model);
        let held = super::degrees_on_disk(&path, "tensor_parallel_degree");
        if !vllm {
            if held.is_empty() {
                report.missing.push(format!(
                    "the engine's time on the host, which needs vLLM (--python) or a running engine: \
                     {}vidur profile cpu-overhead --models {} --network-device {host}",
                    visible(args),
                    model.name
                ));
            }
            continue;
        }
        let what = format!("the engine's time on the host of {}", model.name);
        if args.common.dry_run {
            eprintln!("{what}: by vLLM, step by step");
            continue;
        }
        for &degree in &args.common.tensor_parallel {
            let here = !args.common.force && held.contains(&degree);
            if here || degree > found.num_workers() {
                continue;
            }
            eprintln!("{what} at tensor parallel {degree}");
            if let Err(failure) = drive(args, host, model, degree) {
                report.fail(failure.said_of(&what));
            }
        }
        if let Ok(text) = std::fs::read_to_string(&path) {
            let rows = text.lines().count().saturating_sub(1).to_string();
            report.written.push(vec![super::shown(&path), rows, String::new()]);
        }
    }
}

/// Where the rows of `model` lie.
fn csv(args: &Args, host: &str, model: &ModelSpec) -> PathBuf {
    let folder = args.common.output_dir.join("cpu_overhead").join(host).join(&model.name);
    folder.join("cpu_overheads.csv")
}

/// Whether an engine would run on what the user gave: it takes the first devices that it sees.
fn is_engine_free(args: &Args, found: &Detection) -> bool {
    let device = &args.common.device;
    let gpus_kept_out = device.backend == BackendKind::Cpu && found.backend == Kind::Cpu;
    let most = args.common.tensor_parallel.iter().copied().max().unwrap_or(1);
    let firsts = device.devices.iter().copied().zip(0..).take(most as usize).all(|(a, b)| a == b);
    let enough = device.devices.is_empty() || device.devices.len() >= most as usize;
    !gpus_kept_out && firsts && enough
}

/// What has to go before a command that shall see the chosen devices only.
fn visible(args: &Args) -> String {
    let devices: Vec<String> = args.common.device.devices.iter().map(u32::to_string).collect();
    match devices.is_empty() {
        true => String::new(),
        false => format!("CUDA_VISIBLE_DEVICES={} ", devices.join(",")),
    }
}

fn has_vllm(python: &Path) -> bool {
    let mut command = Command::new(python);
    command.args(["-c", PROBE]);
    let output = tool::run(command, Duration::from_secs(60));
    output.is_ok_and(|output| output.stdout.trim() == "vllm")
}

fn drive(args: &Args, host: &str, model: &ModelSpec, degree: u32) -> Result<(), Failure> {
    let common = &args.common;
    let mut words: Vec<std::ffi::OsString> = vec!["cpu-overhead".into()];
    let mut flag = |name: &str, value: std::ffi::OsString| words.extend([name.into(), value]);
    flag("--models", model.name.clone().into());
    flag("--python", common.device.python.clone().into());
    flag("--network-device", host.into());
    flag("--tensor-parallel", degree.to_string().into());
    flag("--output-dir", common.output_dir.clone().into());
    if let Some(folder) = &common.data_dir {
        flag("--data-dir", folder.clone().into());
    }
    if common.force {
        words.push("--force".into());
    }
    let line = Line::try_parse_from(words).map_err(Failure::internal)?;
    cpu_overhead::run(line.args)
}
