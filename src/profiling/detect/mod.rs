//! What this machine is: its accelerators, their names in our catalogue, and how they are wired.
//! Neuron goes first, then NVIDIA, AMD and the CPU. What cannot be told is said, never guessed.

pub mod amd;
pub mod neuron;
pub mod nvidia;
pub mod topology;

use super::host::Host;
use super::tool::{ToolError, Tools};
use crate::spec::catalog::{Catalog, CatalogError};
use crate::spec::device::NodeSku;
use serde::Serialize;
use topology::Topology;

/// Kinds of device, in the order in which they are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// AWS Inferentia and Trainium.
    Neuron,
    /// NVIDIA.
    Cuda,
    /// AMD.
    Rocm,
    /// The host itself.
    Cpu,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Detection {
    /// The kind of device that profiles would be taken on.
    pub backend: Kind,
    /// The devices.
    pub devices: Vec<Device>,
    /// Their name in the catalogue.
    pub sku: Option<String>,
    /// The name that profiles are stored under unless another is given.
    pub store_as: Option<String>,
    /// How they are wired, where a tool tells.
    pub topology: Option<Topology>,
    /// The name of the wiring in the catalogue.
    pub network_device: Option<String>,
    /// Nodes of the catalogue with as many of these devices.
    pub nodes: Vec<String>,
    /// What is not known, and what to do about it.
    pub unknown: Vec<String>,
    /// What was asked, in order, and what it answered.
    pub asked: Vec<Asked>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Device {
    /// Its number.
    pub index: u64,
    /// What its driver calls it, where it has a name.
    pub name: Option<String>,
    /// Memory in bytes, as the driver reports it.
    pub memory_bytes: Option<u64>,
    /// (Logical) NeuronCores, or CPU cores.
    pub cores: Option<u32>,
    /// Physical cores to a logical NeuronCore, where neuron-ls tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logical_core_config: Option<u32>,
    /// Version of the driver.
    pub driver: Option<String>,
}

/// A source of knowledge and what it said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// Tool or path.
    pub source: String,
    /// What came of it.
    pub answer: String,
}

/// Looks at this machine through `tools`; only for `kind`, if one is given.
///
/// # Errors
/// When the catalogue is broken, or the kind that was asked for is not there.
pub fn detect(
    tools: &Tools,
    catalog: &Catalog,
    kind: Option<Kind>,
) -> Result<Detection, DetectError> {
    let mut asked = Vec::new();
    let wanted = |this: Kind| kind.is_none_or(|kind| kind == this);
    let mut found = None;
    if wanted(Kind::Neuron) {
        found = neuron_devices(tools, &mut asked);
    }
    if found.is_none() && wanted(Kind::Cuda) {
        found = nvidia_devices(tools, &mut asked);
    }
    if found.is_none() && wanted(Kind::Rocm) {
        found = amd_devices(tools, &mut asked);
    }
    if found.is_none() && wanted(Kind::Cpu) {
        found = Some(cpu());
    }
    let Some(found) = found else {
        let answers = asked.iter().map(|a| format!("{}: {}", a.source, a.answer));
        return Err(DetectError::Nothing(answers.collect::<Vec<_>>().join("; ")));
    };
    found.finish(catalog, asked)
}

/// Why nothing is known.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// The catalogue cannot be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// No device of the kind that was asked for.
    #[error("no such device here ({0}); leave --backend out to see what there is")]
    Nothing(String),
}

/// Devices before they are looked up in the catalogue.
struct Found {
    backend: Kind,
    devices: Vec<Device>,
    sku: Result<String, String>,
    store_as: Option<String>,
    topology: Option<Topology>,
    instance: Option<String>,
    unknown: Vec<String>,
}

/// neuron-monitor prints its first record after one period, 5 s unless configured.
const MONITOR_LIMIT: std::time::Duration = std::time::Duration::from_secs(12);

fn neuron_devices(tools: &Tools, asked: &mut Vec<Asked>) -> Option<Found> {
    let listed = match tools.run("neuron-ls", &["-j"]) {
        Err(e) => Err(e.to_string()),
        Ok(output) if !output.status.success() && output.stdout.trim().is_empty() => {
            Err(format!("no devices: {output}"))
        }
        Ok(output) => neuron::parse(&output.stdout),
    };
    let (devices, source) = match listed {
        Ok(devices) if !devices.is_empty() => (devices, "neuron-ls"),
        other => {
            let answer = other.err().unwrap_or_else(|| "no devices".into());
            asked.push(Asked { source: "neuron-ls -j".into(), answer });
            (neuron::from_sysfs(&tools.sys), "the kernel")
        }
    };
    if devices.is_empty() {
        return None;
    }
    let answer = format!("{} devices", devices.len());
    asked.push(Asked { source: source.into(), answer });
    let mut devices = devices;
    if devices[0].instance_type.is_none() && tools.find("neuron-monitor").is_some() {
        // Old SDKs tell it here only.
        let record = tools.watch("neuron-monitor", MONITOR_LIMIT, neuron::monitored_instance);
        let answer = record.as_ref().map_or_else(ToString::to_string, String::clone);
        asked.push(Asked { source: "neuron-monitor".into(), answer });
        devices[0].instance_type = record.ok();
    }
    let sku = neuron::sku(&devices).map(str::to_owned);
    let instance = devices[0].instance_type.clone();
    let devices = devices.iter().map(|device| Device {
        index: device.index,
        name: instance.as_ref().map(|instance| format!("Neuron device of {instance}")),
        memory_bytes: device.memory_bytes,
        cores: Some(device.cores),
        logical_core_config: device.logical_core_config,
        driver: None,
    });
    let devices = devices.collect();
    let (store_as, topology, unknown) = (None, None, Vec::new());
    Some(Found { backend: Kind::Neuron, devices, sku, store_as, topology, instance, unknown })
}

fn nvidia_devices(tools: &Tools, asked: &mut Vec<Asked>) -> Option<Found> {
    let query = |columns: &str| -> Result<Vec<nvidia::Gpu>, String> {
        let args = [format!("--query-gpu={columns}"), "--format=csv".into()];
        let output = tools.run("nvidia-smi", &args).map_err(|e: ToolError| e.to_string())?;
        nvidia::parse(&output.success()?)
    };
    let gpus = query(nvidia::QUERY).or_else(|first| match first.contains("not a valid field") {
        true => query(nvidia::OLD_QUERY),
        false => Err(first),
    });
    let answer = match &gpus {
        Ok(gpus) => format!("{} devices", gpus.len()),
        Err(e) => e.clone(),
    };
    asked.push(Asked { source: "nvidia-smi --query-gpu".into(), answer });
    let gpus = gpus.ok().filter(|gpus| !gpus.is_empty())?;
    let mut unknown = Vec::new();
    let name = gpus[0].name.clone();
    if let Some(other) = gpus.iter().find(|gpu| gpu.name != name) {
        unknown.push(format!(
            "the devices differ: {name} and {}; profile each kind with --devices and its own --sku",
            other.name
        ));
    }
    let sku = nvidia::sku(&name).map(str::to_owned).ok_or_else(|| {
        format!("`{name}` is not in the catalogue; profiles of it work all the same")
    });
    let topology = match gpus.len() {
        1 => Some(Topology::Single),
        _ => {
            let matrix = match tools.run("nvidia-smi", &["topo", "-m"]) {
                Ok(output) => output.success().and_then(|text| topology::parse(&text)),
                Err(e) => Err(e.to_string()),
            };
            if let Err(e) = &matrix {
                asked.push(Asked { source: "nvidia-smi topo -m".into(), answer: e.clone() });
                unknown
                    .push(format!("how the devices are wired ({e}): say it with --network-device"));
            }
            matrix.ok()
        }
    };
    let store_as = Some(nvidia::slug(&name));
    let devices = gpus.into_iter().map(|gpu| Device {
        index: u64::from(gpu.index),
        name: Some(gpu.name),
        memory_bytes: gpu.memory_bytes,
        cores: None,
        logical_core_config: None,
        driver: gpu.driver,
    });
    let devices = devices.collect();
    Some(Found { backend: Kind::Cuda, devices, sku, store_as, topology, instance: None, unknown })
}

fn amd_devices(tools: &Tools, asked: &mut Vec<Asked>) -> Option<Found> {
    let gpus = amd::from_sysfs(&tools.sys);
    let answer = format!("{} devices", gpus.len());
    asked.push(Asked { source: "the kernel's list of AMD devices".into(), answer });
    let first = *gpus.first()?;
    let sku = amd::sku(first).map(str::to_owned).ok_or_else(|| {
        format!(
            "AMD device {:#06x} is not in the catalogue; profiles of it work all the same",
            first.device_id
        )
    });
    let devices = gpus.iter().enumerate().map(|(index, gpu)| Device {
        index: index as u64,
        name: Some(format!("AMD device {:#06x}", gpu.device_id)),
        memory_bytes: gpu.memory_bytes,
        cores: None,
        logical_core_config: None,
        driver: None,
    });
    let devices = devices.collect();
    let store_as = Some(format!("amd_{:04x}", first.device_id));
    let unknown = match gpus.len() {
        1 => Vec::new(),
        _ => vec!["how the devices are wired: say it with --network-device".to_owned()],
    };
    Some(Found {
        backend: Kind::Rocm,
        devices,
        sku,
        store_as,
        topology: None,
        instance: None,
        unknown,
    })
}

fn cpu() -> Found {
    let host = Host::detect();
    let sku = host.sku(host.cores);
    let device = Device {
        index: 0,
        name: Some(host.cpu_model.clone()),
        memory_bytes: Some(host.memory_bytes),
        cores: Some(host.cores),
        logical_core_config: None,
        driver: Some(host.os.clone()),
    };
    Found {
        backend: Kind::Cpu,
        devices: vec![device],
        sku: Err(format!("a CPU is in the catalogue once it is profiled; it is stored as {sku}")),
        store_as: Some(sku),
        topology: Some(Topology::Single),
        instance: None,
        unknown: Vec::new(),
    }
}

impl Detection {
    /// Tensor-parallel workers that fit on this machine: devices, of Neuron cores, of a CPU one.
    pub fn num_workers(&self) -> u32 {
        match self.backend {
            Kind::Neuron => self.devices.iter().filter_map(|device| device.cores).sum(),
            _ => self.devices.len() as u32,
        }
    }
}

impl Found {
    fn finish(self, catalog: &Catalog, asked: Vec<Asked>) -> Result<Detection, DetectError> {
        let Found { backend, devices, sku, store_as, topology, instance, mut unknown } = self;
        let sku = match sku {
            Ok(sku) => Some(sku),
            Err(_) if backend == Kind::Cpu => None,
            Err(why) => {
                unknown.push(why);
                None
            }
        };
        let mut like: Vec<NodeSku> = Vec::new();
        let mut same_part: Vec<NodeSku> = Vec::new();
        if let Some(sku) = &sku {
            let nodes = catalog.nodes()?;
            same_part = nodes.into_iter().filter(|node| node.device == *sku).collect();
            like = same_part
                .iter()
                .filter(|n| n.num_devices as usize == devices.len())
                .cloned()
                .collect();
        }
        if let Some(instance) = &instance {
            // The machine has told its name: no other node is meant.
            like.retain(|node| node.name == *instance);
            if like.is_empty() {
                unknown.push(format!("instance type {instance} is not in the catalogue of nodes"));
            }
        }
        let mut network_device = None;
        if devices.len() > 1 {
            let names = if like.is_empty() && instance.is_none() { &same_part } else { &like };
            network_device = network_name(names, topology, devices.len());
            // A wiring that contradicts the node's name makes it another node.
            if let (Some(name), None) = (&network_device, &instance) {
                like.retain(|node| node.network_device.as_ref() == Some(name));
            }
            if network_device.is_none() {
                let part = sku.clone().or_else(|| store_as.clone()).unwrap_or_default();
                let name = format!(
                    "{part}_{}",
                    suffixes(topology, devices.len()).first().unwrap_or(&"network")
                );
                unknown.push(format!(
                    "no wiring of this kind is in the catalogue: name it yourself, for example \
                     --network-device {name}"
                ));
            }
        }
        let store_as = sku.clone().or(store_as);
        let nodes = like.into_iter().map(|node| node.name).collect();
        Ok(Detection {
            backend,
            devices,
            sku,
            store_as,
            topology,
            network_device,
            nodes,
            unknown,
            asked,
        })
    }
}

/// The endings that the catalogue's network devices have for a topology, the likeliest first.
fn suffixes(topology: Option<Topology>, devices: usize) -> &'static [&'static str] {
    match topology {
        // Two linked devices are a bridge on PCIe cards and part of a switched node otherwise.
        Some(Topology::Dgx { .. }) if devices == 2 => &["pairwise_nvlink", "pair", "dgx"],
        Some(Topology::Dgx { .. }) => &["dgx"],
        Some(Topology::PairwiseNvlink { .. }) => &["pairwise_nvlink", "pair"],
        Some(Topology::Mesh) => &["mesh"],
        Some(Topology::Pcie { .. }) => &["pcie"],
        Some(Topology::Single) => &[],
        None => &["neuronlink"],
    }
}

/// The network device of `nodes` that fits the topology; `None` unless there is exactly one.
fn network_name(nodes: &[NodeSku], topology: Option<Topology>, devices: usize) -> Option<String> {
    let mut names: Vec<&str> = nodes.iter().filter_map(|n| n.network_device.as_deref()).collect();
    names.sort_unstable();
    names.dedup();
    for suffix in suffixes(topology, devices) {
        let fits: Vec<&&str> =
            names.iter().filter(|name| name.ends_with(&format!("_{suffix}"))).collect();
        match fits.as_slice() {
            [] => {}
            [name] => return Some((**name).to_string()),
            _ => return None,
        }
    }
    None
}

#[cfg(all(test, unix))]
#[path = "detect_tests.rs"]
mod tests;
