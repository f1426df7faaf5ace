//! `vidur devices`: list the devices and nodes in the catalogue, show one, or say what is here.

use super::Failure;
use super::table::{self, number, text};
use crate::profiling::detect::{self, Detection, Device, Kind};
use crate::profiling::tool::Tools;
use crate::spec::catalog::{Catalog, CatalogError};
use crate::spec::device::{DeviceSku, NodeSku, PriceKind};
use crate::spec::model::Dtype;
use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Arguments of `vidur devices`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Say which devices this machine has, how they are wired, and what the catalogue calls them.
    #[arg(long)]
    detect: bool,
    /// Look for this kind of device only [default: Neuron, NVIDIA, AMD, CPU, the first that is there].
    #[arg(long, value_enum, requires = "detect")]
    backend: Option<DeviceKind>,
    /// Folder whose files go before the built-in ones [default: data, where it exists].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print one device or node as YAML, with its sources.
    Show {
        /// Its name, an alias, or a .yml file of a device.
        name: String,
        /// Folder whose files go before the built-in ones [default: data, where it exists].
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
}

/// Kinds of device, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum DeviceKind {
    /// AWS Inferentia and Trainium.
    Neuron,
    /// NVIDIA.
    Cuda,
    /// AMD.
    Rocm,
    /// The host's processor.
    Cpu,
}

impl From<DeviceKind> for Kind {
    fn from(kind: DeviceKind) -> Kind {
        match kind {
            DeviceKind::Neuron => Kind::Neuron,
            DeviceKind::Cuda => Kind::Cuda,
            DeviceKind::Rocm => Kind::Rocm,
            DeviceKind::Cpu => Kind::Cpu,
        }
    }
}

/// Runs `vidur devices`.
pub fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        None if args.detect => {
            let catalog = open(args.data_dir.as_deref())?;
            let found = detect::detect(&Tools::system(), &catalog, args.backend.map(Kind::from))
                .map_err(Failure::user)?;
            match args.json {
                true => table::print_json(&found),
                false => table::print(&detected(&found)),
            }
        }
        None => list(&open(args.data_dir.as_deref())?, args.json),
        Some(Command::Show { name, data_dir }) => show(&open(data_dir.as_deref())?, &name),
    }
}

/// Opens the catalogue; a folder that the user named must be there.
pub(super) fn open(data_dir: Option<&Path>) -> Result<Catalog, Failure> {
    match data_dir {
        Some(dir) if !dir.is_dir() => Err(Failure::user(format!(
            "--data-dir {}: no such folder; leave it out for the built-in catalogue",
            dir.display()
        ))),
        _ => Ok(Catalog::open(data_dir)),
    }
}

fn show(catalog: &Catalog, name: &str) -> Result<(), Failure> {
    match catalog.device(name) {
        Ok(device) => table::print_yaml(&device),
        // Some wirings are nodes by the same kind of name: try those before giving up.
        Err(unknown @ CatalogError::Unknown { .. }) => match catalog.node(name) {
            Ok(node) => table::print_yaml(&node),
            Err(node @ CatalogError::Unknown { suggestion: Some(_), .. })
                if matches!(unknown, CatalogError::Unknown { suggestion: None, .. }) =>
            {
                Err(Failure::user(node))
            }
            Err(CatalogError::Unknown { .. }) => Err(Failure::user(unknown)),
            Err(broken) => Err(Failure::user(broken)),
        },
        Err(broken) => Err(Failure::user(broken)),
    }
}

/// What was found, a line each.
fn detected(found: &Detection) -> String {
    let count = found.devices.len();
    let first = found.devices.first();
    let kind = match found.backend {
        Kind::Neuron => "neuron",
        Kind::Cuda => "cuda",
        Kind::Rocm => "rocm",
        Kind::Cpu => "cpu",
    };
    let mut lines = vec![
        ("backend", kind.to_owned()),
        ("devices", kinds(&found.devices)),
        ("driver", or_dash(first.and_then(|d| d.driver.clone()))),
        ("sku", found.sku.clone().unwrap_or_else(|| "not in the catalogue".into())),
        (
            "profiles",
            match &found.store_as {
                Some(name) => format!("data/profiling/compute/{name}/"),
                None => "data/profiling/compute/, by the name that --sku gives".into(),
            },
        ),
    ];
    if let Some(topology) = found.topology {
        lines.push(("wiring", topology.to_string()));
    }
    if count > 1 {
        lines.push(("network", or_dash(found.network_device.clone())));
    }
    if !found.nodes.is_empty() {
        lines.push(("nodes", found.nodes.join(", ")));
    }
    lines.extend(found.unknown.iter().map(|what| ("unknown", what.clone())));
    lines.extend(found.asked.iter().map(|a| ("asked", format!("{}: {}", a.source, a.answer))));
    lines.iter().map(|(what, text)| format!("{what:<9}{text}\n")).collect()
}

/// How many there are of each kind, and what they are.
fn kinds(devices: &[Device]) -> String {
    let mut kinds: Vec<(usize, &Device)> = Vec::new();
    for device in devices {
        match kinds.iter_mut().find(|(_, other)| other.name == device.name) {
            Some((count, _)) => *count += 1,
            None => kinds.push((1, device)),
        }
    }
    let shown = kinds.into_iter().map(|(count, device)| {
        let mut facts = vec![device.name.clone().unwrap_or_else(|| "device without a name".into())];
        if let Some(bytes) = device.memory_bytes {
            facts.push(format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)));
        }
        if let Some(cores) = device.cores {
            facts.push(format!("{cores} {}", if cores == 1 { "core" } else { "cores" }));
        }
        format!("{count} x {}", facts.join(", "))
    });
    shown.collect::<Vec<_>>().join("; ")
}

#[derive(Serialize)]
struct Listing {
    devices: Vec<DeviceSku>,
    nodes: Vec<NodeSku>,
}

fn list(catalog: &Catalog, json: bool) -> Result<(), Failure> {
    let devices = catalog.devices().map_err(Failure::user)?;
    let nodes = catalog.nodes().map_err(Failure::user)?;
    if json {
        return table::print_json(&Listing { devices, nodes });
    }
    let width = table::window_width();
    table::print(&format!("{}\n{}", device_table(&devices, width), node_table(&nodes, width)))
}

fn device_table(devices: &[DeviceSku], width: Option<usize>) -> String {
    let columns = [
        text("device"),
        text("alias").expendable(1),
        number("memory GiB"),
        number("GB/s"),
        number("bf16 TFLOP/s"),
        number("W"),
    ];
    let rows: Vec<Vec<String>> = devices
        .iter()
        .map(|d| {
            let peak = d.peak(Dtype::Bf16).map(|flops| flops / 1e12);
            vec![
                d.name.clone(),
                d.aliases.join(", "),
                format!("{:.1}", d.memory_bytes as f64 / f64::from(1 << 30)),
                format!("{:.0}", d.memory_bandwidth_bytes_per_s / 1e9),
                or_dash(peak.map(|tflops| format!("{tflops:.1}"))),
                or_dash(d.power_w.map(|watts| format!("{watts:.0}"))),
            ]
        })
        .collect();
    table::render(&columns, &rows, width)
}

fn node_table(nodes: &[NodeSku], width: Option<usize>) -> String {
    let columns = [
        text("node"),
        text("devices"),
        text("network device").expendable(2),
        number("USD/h"),
        number("per device"),
        text("stated").expendable(1),
    ];
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|n| {
            let price = n.price();
            let terms = price.map(|p| match p.kind {
                PriceKind::OnDemand => p.date.clone(),
                other => format!("{} {}", p.date, other.as_str()),
            });
            let per_device = price.map(|p| p.usd_per_hour / f64::from(n.num_devices));
            vec![
                n.name.clone(),
                format!("{} x {}", n.num_devices, n.device),
                or_dash(n.network_device.clone()),
                or_dash(price.map(|p| format!("{:.3}", p.usd_per_hour))),
                or_dash(per_device.map(|usd| format!("{usd:.3}"))),
                or_dash(terms),
            ]
        })
        .collect();
    table::render(&columns, &rows, width)
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built_in() -> Catalog {
        Catalog::open(Some(Path::new("no-such-folder")))
    }

    #[test]
    fn both_lists_fit_a_window_of_80_characters() {
        let devices = device_table(&built_in().devices().unwrap(), Some(80));
        let nodes = node_table(&built_in().nodes().unwrap(), Some(80));
        for line in devices.lines().chain(nodes.lines()) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn a_price_on_spot_is_told_apart_and_none_is_a_dash() {
        let nodes = node_table(&built_in().nodes().unwrap(), None);
        let line = |name: &str| nodes.lines().find(|line| line.contains(name)).unwrap().to_owned();
        assert!(line("trn2.48xlarge").ends_with("2026-01-21 spot"), "{nodes}");
        assert!(line("p5e.48xlarge").ends_with('-'), "{nodes}");
        let p5: Vec<String> = line("p5.48xlarge").split_whitespace().map(str::to_owned).collect();
        assert_eq!(
            p5,
            ["p5.48xlarge", "8", "x", "h100_sxm", "h100_dgx", "55.040", "6.880", "2026-11-09"]
        );
    }

    #[test]
    fn an_unknown_name_is_answered_from_devices_and_nodes_alike() {
        let message = |name: &str| match show(&built_in(), name) {
            Err(failure) => failure.words().to_owned(),
            Ok(()) => panic!("{name} is known"),
        };
        assert!(message("h100_sxn").contains("did you mean `h100_sxm`?"));
        assert!(message("p5.48xlrge").contains("did you mean `p5.48xlarge`?"));
    }

    #[test]
    fn a_data_folder_that_is_not_there_is_an_error() {
        assert!(open(Some(Path::new("no-such-folder"))).is_err());
        assert!(open(None).is_ok());
    }
}
