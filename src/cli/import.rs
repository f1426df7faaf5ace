//! `vidur import`: timings that others published, as profiles of ours.

use super::Failure;
use super::table::{self, number, text};
use crate::profiling::import::aiconfigurator::{DEGREES, Engine, Package, Tables};
use crate::profiling::import::{Imported, llmservingsim, vidur};
use crate::run::lookup;
use crate::spec::catalog::Catalog;
use clap::Subcommand;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Turn timings that others measured and published into profiles.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    source: Source,
}

#[derive(Debug, Subcommand)]
enum Source {
    /// NVIDIA's timings of vLLM, SGLang and TensorRT-LLM on 14 GPU systems.
    ///
    /// They are in the PyPI package aiconfigurator-core (Apache-2.0, 80 MB): `pip download --no-deps
    /// aiconfigurator-core`, and give the wheel with --from.
    Aiconfigurator(Aiconfigurator),
    /// LLMServingSim's timings: a folder with profile/dense.csv and bench/meta.json.
    Llmservingsim(Llmservingsim),
    /// Profiles in microsoft/vidur's format, as they are.
    Vidur(Vidur),
}

#[derive(Debug, clap::Args)]
struct Aiconfigurator {
    /// The wheel, or the folder that it was unpacked into.
    #[arg(long, value_name = "WHEEL_OR_DIR")]
    from: PathBuf,
    /// GPU system, as the package calls it.
    #[arg(long, value_name = "NAME", default_value = "h100_sxm")]
    system: String,
    /// Engine whose kernels were timed.
    #[arg(long, value_enum, default_value_t = EngineName::Vllm)]
    engine: EngineName,
    /// Version of the engine [default: the newest in the package]
    #[arg(long, value_name = "VERSION")]
    engine_version: Option<String>,
    /// Models, as `vidur models` lists them; a quantised checkpoint is a model of its own.
    #[arg(long, value_name = "MODELS", value_delimiter = ',', required = true)]
    models: Vec<String>,
    /// Numbers of devices that share each layer.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = DEGREES)]
    tensor_parallel: Vec<u32>,
    /// Device to store them under [default: the one of the system's name]
    #[arg(long, value_name = "NAME")]
    sku: Option<String>,
    /// Wiring to store the all-reduce under [default: that of the device's nodes in the catalogue]
    #[arg(long, value_name = "NAME")]
    network_device: Option<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
struct Llmservingsim {
    /// The folder.
    dir: PathBuf,
    /// Model [default: the one that bench/meta.json names]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Device to store them under [default: the one of the name in bench/meta.json]
    #[arg(long, value_name = "NAME")]
    sku: Option<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
struct Vidur {
    /// The folder: Vidur's repository, or its data/profiling.
    dir: PathBuf,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
struct Target {
    /// Folder of profiles to write to.
    #[arg(long, short, value_name = "DIR", default_value = "data/profiling")]
    output_dir: PathBuf,
    /// Replace profiles that are there.
    #[arg(long)]
    force: bool,
    /// Folder of models and devices that take precedence over the built-in ones.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum EngineName {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// TensorRT-LLM.
    Trtllm,
}

impl From<EngineName> for Engine {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Vllm => Engine::Vllm,
            EngineName::Sglang => Engine::Sglang,
            EngineName::Trtllm => Engine::Trtllm,
        }
    }
}

pub fn run(args: Args) -> Result<(), Failure> {
    match args.source {
        Source::Aiconfigurator(args) => aiconfigurator(&args),
        Source::Llmservingsim(args) => llmservingsim(&args),
        Source::Vidur(args) => {
            let set = vidur::profiles(&args.dir).map_err(Failure::user)?;
            finish(&set, &args.target, None)
        }
    }
}

fn aiconfigurator(args: &Aiconfigurator) -> Result<(), Failure> {
    let catalog = Catalog::open(args.target.data_dir.as_deref());
    let sku = args.sku.as_deref().unwrap_or(&args.system);
    // Profiles of a device that no one knows could not be used.
    let device = catalog.device(sku).map_err(|e| Failure::user(format!("--sku: {e}")))?;
    let models = args.models.iter().map(|name| catalog.model(name).map_err(Failure::user));
    let models = models.collect::<Result<Vec<_>, _>>()?;
    let network = match &args.network_device {
        Some(name) => name.clone(),
        None => {
            let wiring = lookup::wiring(&device, &catalog).map_err(Failure::user)?;
            wiring.unwrap_or_else(|| args.system.clone())
        }
    };
    let package = Package::open(&args.from).map_err(Failure::user)?;
    let version = args.engine_version.as_deref();
    let tables =
        Tables::load(&package, &args.system, args.engine.into(), version).map_err(Failure::user)?;
    let mut set = Imported::default();
    for model in &models {
        let profiles = tables.model_profiles(model, &device.name, &args.tensor_parallel);
        set.extend(profiles.map_err(Failure::user)?);
    }
    set.extend(tables.network_profiles(&network).map_err(Failure::user)?);
    let next = models
        .first()
        .map(|model| format!("vidur simulate --model {} --sku {}", model.name, device.name));
    finish(&set, &args.target, next.as_deref())
}

fn llmservingsim(args: &Llmservingsim) -> Result<(), Failure> {
    let catalog = Catalog::open(args.target.data_dir.as_deref());
    let meta = llmservingsim::meta(&args.dir).map_err(Failure::user)?;
    let model = catalog.model(args.model.as_deref().unwrap_or(&meta.model));
    let model = model.map_err(|e| Failure::user(format!("--model: {e}")))?;
    let device = match &args.sku {
        Some(sku) => catalog.device(sku).map_err(|e| Failure::user(format!("--sku: {e}")))?,
        None => {
            let name = &meta.hardware.device_name;
            let devices = catalog.devices().map_err(Failure::user)?;
            let known = devices.into_iter().find(|d| {
                d.full_name == *name || name.ends_with(d.full_name.trim_start_matches("NVIDIA "))
            });
            known.ok_or_else(|| {
                Failure::user(format!(
                    "no device of the catalogue is called {name}; name one with --sku (`vidur \
                     devices` lists them)"
                ))
            })?
        }
    };
    let set = llmservingsim::profiles(&args.dir, &model, &device.name).map_err(Failure::user)?;
    let next = format!("vidur simulate --model {} --sku {}", model.name, device.name);
    finish(&set, &args.target, Some(&next))
}

/// Writes the set and says what it holds.
fn finish(set: &Imported, target: &Target, next: Option<&str>) -> Result<(), Failure> {
    set.write(&target.output_dir, target.force).map_err(Failure::user)?;
    let manifests: BTreeMap<&str, Value> = set
        .files
        .iter()
        .filter_map(|file| {
            let stem = file.path.strip_suffix(".manifest.json")?;
            Some((stem, serde_json::from_slice(&file.bytes).ok()?))
        })
        .collect();
    let columns = [
        text("profile"),
        number("rows"),
        number("measured"),
        number("interpolated"),
        number("derived"),
    ];
    let rows: Vec<Vec<String>> = manifests.iter().map(|(path, m)| row(path, m)).collect();
    table::print(&format!("{}\n", table::render(&columns, &rows, table::window_width())))?;
    for note in &set.notes {
        eprintln!("note: {note}");
    }
    let origin = manifests.values().next().map(source_of).unwrap_or_default();
    let held_out = manifests.values().find_map(held_out_of);
    let mut lines = format!("{origin}\nwritten to {}\n", shown(&target.output_dir));
    if let Some(error) = held_out {
        lines.push_str(&format!("{error}\n"));
    }
    if let Some(next) = next {
        let dir = if target.output_dir == Path::new("data/profiling") {
            String::new()
        } else {
            format!(" --profiling-dir {}", shown(&target.output_dir))
        };
        lines.push_str(&format!("next: {next}{dir}\n"));
    }
    table::print(&lines)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A profile's path, rows, and how its times were found.
fn row(path: &str, manifest: &Value) -> Vec<String> {
    let count = |kind: &str| -> String {
        let operators = manifest["operators"].as_object();
        let of = |op: &Value| op.get(kind).and_then(Value::as_u64).unwrap_or(0);
        operators.map_or_else(String::new, |ops| ops.values().map(of).sum::<u64>().to_string())
    };
    let rows = manifest["rows"].as_u64().unwrap_or(0).to_string();
    let mut cells = vec![path.to_owned(), rows];
    cells.extend(["measured", "interpolated", "derived"].map(count));
    cells
}

fn source_of(manifest: &Value) -> String {
    let origin = &manifest["origin"];
    let word = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut line = format!("from {}", word(&origin["source"]));
    for part in [word(&origin["version"]), word(&origin["license"])] {
        if !part.is_empty() {
            line.push_str(&format!(", {part}"));
        }
    }
    let (engine, version) = (word(&manifest["engine"]), word(&manifest["engine_version"]));
    if !engine.is_empty() {
        line.push_str(&format!("; {engine} {version} on {}", word(&manifest["system"])));
    }
    line
}

/// How far off shapes between grid points are.
fn held_out_of(manifest: &Value) -> Option<String> {
    let held = manifest.get("held_out")?;
    let percent = |key: &str| held.get(key).and_then(Value::as_f64);
    Some(format!(
        "matrix products between measured shapes: {:.1} % off (median), {:.1} % (mean) when each shape is \
         held out",
        percent("median")?,
        percent("mean")?
    ))
}
