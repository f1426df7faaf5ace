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
use std::collections::BTreeSet;
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
    /// Why the CPU may not be what is meant: tools of accelerators are here and show none.
    #[serde(skip)]
    pub doubt: Option<String>,
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
    /// Whether that says that something is broken: the tool is here, and shows no device.
    #[serde(skip)]
    broken: bool,
}

impl Asked {
    /// What came of asking an installed tool, or of looking.
    fn new(source: &str, answer: impl Into<String>) -> Asked {
        Asked { source: source.into(), answer: answer.into(), broken: false }
    }

    /// What a tool that may not be installed said when it showed no device.
    fn without_device(tools: &Tools, tool: &str, arguments: &str, answer: String) -> Asked {
        let broken = tools.find(tool).is_some();
        Asked { source: format!("{tool} {arguments}"), answer, broken }
    }
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
    /// Or why it cannot be told.
    topology: Result<Topology, String>,
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
            asked.push(Asked::without_device(tools, "neuron-ls", "-j", answer));
            (neuron::from_sysfs(&tools.sys), "the kernel")
        }
    };
    if devices.is_empty() {
        return None;
    }
    asked.push(Asked::new(source, format!("{} devices", devices.len())));
    let mut devices = devices;
    if devices[0].instance_type.is_none() && tools.find("neuron-monitor").is_some() {
        // Old SDKs tell it here only.
        let record = tools.watch("neuron-monitor", MONITOR_LIMIT, neuron::monitored_instance);
        let answer = record.as_ref().map_or_else(ToString::to_string, String::clone);
        asked.push(Asked::new("neuron-monitor", answer));
        devices[0].instance_type = record.ok();
    }
    let sku = neuron::sku(&devices).map(str::to_owned);
    let instance = devices[0].instance_type.clone();
    let devices = devices.iter().map(|device| Device {
        index: device.index,
        name: Some(match &instance {
            Some(instance) => format!("Neuron device of {instance}"),
            None => "Neuron device".into(),
        }),
        memory_bytes: device.memory_bytes,
        cores: Some(device.cores),
        logical_core_config: device.logical_core_config,
        driver: None,
    });
    let devices: Vec<Device> = devices.collect();
    let topology = Ok(if devices.len() == 1 { Topology::Single } else { Topology::Neuronlink });
    let (store_as, unknown) = (None, Vec::new());
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
    let gpus = match gpus {
        Ok(gpus) if !gpus.is_empty() => gpus,
        other => {
            let answer = other.err().unwrap_or_else(|| "0 devices".into());
            asked.push(Asked::without_device(tools, "nvidia-smi", "--query-gpu", answer));
            return None;
        }
    };
    asked.push(Asked::new("nvidia-smi --query-gpu", format!("{} devices", gpus.len())));
    let mut unknown = Vec::new();
    let name = gpus[0].name.clone();
    if let Some(other) = gpus.iter().find(|gpu| gpu.name != name) {
        unknown.push(format!(
            "the devices differ: {name} and {}; profile each kind in a run of its own, with --devices",
            other.name
        ));
    }
    let sku = nvidia::sku(&name).map(str::to_owned).ok_or_else(|| {
        format!("`{name}` is not in the catalogue; profiles of it work all the same")
    });
    let topology = match gpus.len() {
        1 => Ok(Topology::Single),
        _ => {
            let matrix = match tools.run("nvidia-smi", &["topo", "-m"]) {
                Ok(output) => output.success().and_then(|text| topology::parse(&text)),
                Err(e) => Err(e.to_string()),
            };
            matrix.inspect_err(|e| asked.push(Asked::new("nvidia-smi topo -m", e.clone())))
        }
    };
    let store_as = Some(nvidia::store_as(&name));
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
    asked.push(Asked::new("the kernel's list of AMD devices", answer));
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
    let topology = match gpus.len() {
        1 => Ok(Topology::Single),
        _ => Err("the kernel does not tell".to_owned()),
    };
    let (instance, unknown) = (None, Vec::new());
    Some(Found { backend: Kind::Rocm, devices, sku, store_as, topology, instance, unknown })
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
        topology: Ok(Topology::Single),
        instance: None,
        unknown: Vec::new(),
    }
}

impl Detection {
    /// Whether all devices are of one kind.
    pub fn is_alike(&self) -> bool {
        is_alike(&self.devices)
    }

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
        let doubt = match backend {
            Kind::Cpu => doubt(&asked),
            _ => None,
        };
        let cure = "mend it, or profile with --backend cpu if the CPU is meant";
        unknown.extend(doubt.iter().map(|doubt| format!("{doubt}; {cure}")));
        let mut nodes: Vec<NodeSku> = Vec::new();
        if let (Some(sku), true) = (&sku, is_alike(&devices)) {
            nodes = catalog.nodes()?;
            nodes.retain(|node| node.device == *sku);
        }
        if let Some(instance) = &instance {
            // The machine has told its name: no other node is meant.
            nodes.retain(|node| node.name == *instance);
            if nodes.is_empty() {
                unknown.push(format!("instance type {instance} is not in the catalogue of nodes"));
            }
        }
        let mut network_device = None;
        if devices.len() > 1 {
            let part = sku.as_deref().or(store_as.as_deref()).unwrap_or("name");
            match network_name(&nodes, &topology, devices.len(), part) {
                Ok(name) => network_device = Some(name),
                Err(why) => unknown.push(why),
            }
        }
        nodes.retain(|node| node.num_devices as usize == devices.len());
        if let (Ok(topology), None) = (&topology, &instance) {
            nodes.retain(|node| fits(node, *topology, devices.len(), network_device.as_deref()));
        }
        let store_as = sku.clone().or(store_as);
        let topology = topology.ok();
        let nodes = nodes.into_iter().map(|node| node.name).collect();
        Ok(Detection {
            backend,
            devices,
            sku,
            store_as,
            topology,
            network_device,
            nodes,
            unknown,
            doubt,
            asked,
        })
    }
}

fn is_alike(devices: &[Device]) -> bool {
    devices.windows(2).all(|pair| pair[0].name == pair[1].name)
}

/// What speaks against the CPU, as the tools said it.
fn doubt(asked: &[Asked]) -> Option<String> {
    let broken = asked.iter().filter(|asked| asked.broken);
    let words = broken.map(|asked| {
        let tool = asked.source.split(' ').next().unwrap_or_default();
        format!("{tool} is here but says: {}", asked.answer)
    });
    let words: Vec<String> = words.collect();
    (!words.is_empty()).then(|| words.join("; "))
}

/// Whether the wiring of this machine, by its name if it has one, may be that of `node`.
fn fits(node: &NodeSku, topology: Topology, devices: usize, name: Option<&str>) -> bool {
    let theirs = node.network_device.as_deref();
    match name {
        Some(_) => theirs == name,
        None if devices == 1 => true,
        None => theirs.is_some_and(|theirs| ending(topology, devices, theirs).is_some()),
    }
}

/// The endings that the catalogue's network devices have for a topology, the likeliest first.
fn suffixes(topology: Topology, devices: usize) -> &'static [&'static str] {
    match topology {
        // Two linked devices are a bridge on PCIe cards and part of a switched node otherwise.
        Topology::Dgx { .. } if devices == 2 => &["pairwise_nvlink", "pair", "dgx"],
        Topology::Dgx { .. } => &["dgx"],
        Topology::PairwiseNvlink { .. } => &["pairwise_nvlink", "pair"],
        Topology::Mesh => &["mesh"],
        Topology::Neuronlink => &["neuronlink"],
        Topology::Pcie { .. } => &["pcie"],
        Topology::Single => &[],
    }
}

/// The place among them of the ending of `name`.
fn ending(topology: Topology, devices: usize, name: &str) -> Option<usize> {
    let ends = |suffix: &&str| name.strip_suffix(*suffix).is_some_and(|start| start.ends_with('_'));
    suffixes(topology, devices).iter().position(ends)
}

/// The network device among those of `nodes`, which have the same `part`, that the wiring says.
///
/// # Errors
/// What is not known, and the flag that tells it.
fn network_name(
    nodes: &[NodeSku],
    topology: &Result<Topology, String>,
    devices: usize,
    part: &str,
) -> Result<String, String> {
    let of = |wanted: &dyn Fn(&NodeSku) -> bool| {
        let names =
            nodes.iter().filter(|node| wanted(node)).filter_map(|n| n.network_device.clone());
        names.collect::<BTreeSet<String>>()
    };
    let list = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(" or ");
    let topology = match topology {
        Ok(topology) => *topology,
        Err(why) => {
            let alike = list(of(&|node| node.num_devices as usize == devices));
            let example = if alike.is_empty() { alike } else { format!(", such as {alike}") };
            return Err(format!(
                "how the devices are wired ({why}): say it with --network-device{example}"
            ));
        }
    };
    let mut names = of(&|_| true);
    let likeliest = names.iter().filter_map(|name| ending(topology, devices, name)).min();
    names.retain(|name| likeliest.is_some() && ending(topology, devices, name) == likeliest);
    // Wirings of one kind are told apart by the size of the node.
    if names.len() > 1 {
        let whole = of(&|node| node.num_devices as usize == devices);
        if names.iter().any(|name| whole.contains(name)) {
            names.retain(|name| whole.contains(name));
        }
    }
    match names.len() {
        1 => names.pop_first().ok_or_else(String::new),
        0 => Err(format!(
            "no wiring of this kind is in the catalogue: name it yourself, for example \
             --network-device {part}_{}",
            suffixes(topology, devices).first().unwrap_or(&"network")
        )),
        _ => Err(format!(
            "which wiring of the catalogue this is: say it with --network-device {}",
            list(names)
        )),
    }
}

#[cfg(all(test, unix))]
#[path = "detect_tests.rs"]
mod tests;
