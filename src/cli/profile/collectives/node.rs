//! This node: what it is called, which of its devices take part, and in which numbers.

use super::{Args, BackendArg};
use crate::cli::profile::device::{BackendKind, about_doubt};
use crate::cli::{Failure, devices};
use crate::dataset::network::Collective;
use crate::profiling::detect::{self, Detection, Kind};
use crate::profiling::tool::Tools;
use crate::run::lookup;

/// What this machine is, as far as `--backend` lets it.
pub fn detect(args: &Args) -> Result<Detection, Failure> {
    let catalog = devices::open(args.data_dir.as_deref())?;
    let kind = args.backend.and_then(|backend| match backend {
        BackendArg::Cpu => Some(Kind::Cpu),
        BackendArg::NcclTests => Some(Kind::Cuda),
        BackendArg::NccomTest => Some(Kind::Neuron),
        BackendArg::Torch => None,
    });
    let found = detect::detect(&Tools::system(), &catalog, kind).map_err(Failure::user)?;
    if let Some(doubt) = &found.doubt {
        about_doubt(args.backend.map_or(BackendKind::Auto, |_| BackendKind::Torch), doubt)?;
    }
    Ok(found)
}

/// The devices that take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// How many.
    pub count: u32,
    /// Their numbers, as torch counts them.
    pub numbers: Vec<u32>,
    /// What `CUDA_VISIBLE_DEVICES` must say for CUDA to see them alone; `None` where it sees nothing
    /// else anyway.
    pub visible: Option<String>,
}

impl Devices {
    /// Those of `--devices`; all unless given.
    pub fn choose(args: &Args, found: &Detection) -> Result<Devices, Failure> {
        let here: Vec<String> = match found.backend {
            Kind::Cpu | Kind::Neuron if !args.devices.is_empty() => {
                return Err(Failure::user(
                    "--devices names GPUs; on CPUs and Neuron devices give --num-workers-per-node",
                ));
            }
            // Threads of a CPU sum among its cores.
            Kind::Cpu => {
                let cores: u32 = found.devices.iter().filter_map(|device| device.cores).sum();
                (0..cores).map(|n| n.to_string()).collect()
            }
            Kind::Neuron => (0..found.num_workers()).map(|n| n.to_string()).collect(),
            // What is hidden already stays so, and the rest is numbered anew: CUDA does the same.
            Kind::Cuda => match std::env::var("CUDA_VISIBLE_DEVICES") {
                Ok(list) => list
                    .split(',')
                    .map(|name| name.trim().to_owned())
                    .filter(|n| !n.is_empty())
                    .collect(),
                Err(_) => found.devices.iter().map(|device| device.index.to_string()).collect(),
            },
            Kind::Rocm => found.devices.iter().map(|device| device.index.to_string()).collect(),
        };
        Devices::among(&args.devices, &here)
    }

    fn among(asked: &[u32], here: &[String]) -> Result<Devices, Failure> {
        let mut numbers: Vec<u32> = Vec::new();
        for &number in asked {
            if number as usize >= here.len() {
                return Err(Failure::user(format!(
                    "--devices {number}: this node has {}, numbered from 0",
                    here.len()
                )));
            }
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        }
        let names: Vec<&str> =
            numbers.iter().map(|&number| here[number as usize].as_str()).collect();
        let visible = (!names.is_empty()).then(|| names.join(","));
        if numbers.is_empty() {
            numbers = (0..here.len() as u32).collect();
        }
        Ok(Devices { count: numbers.len() as u32, numbers, visible })
    }
}

/// The folder to write to.
pub fn network_device(
    asked: Option<&str>,
    found: &Detection,
    way: &str,
) -> Result<String, Failure> {
    if let Some(name) = asked {
        return Ok(name.to_owned());
    }
    match (found.backend, &found.network_device, &found.store_as) {
        (Kind::Cpu, _, Some(sku)) => Ok(format!("{sku}-{way}")),
        (_, Some(name), _) => Ok(name.clone()),
        // The cores of one chip.
        (Kind::Neuron, None, Some(sku)) if found.devices.len() == 1 => Ok(lookup::chip(sku)),
        _ => Err(Failure::user(
            "the catalogue has no name for the wiring of this node; give --network-device (`vidur devices --detect` tells more)",
        )),
    }
}

/// The numbers of workers to measure; some of those asked for may be more than `devices`.
pub fn worker_counts(
    args: &Args,
    collective: Collective,
    devices: u32,
) -> Result<Vec<u32>, Failure> {
    if collective == Collective::SendRecv && args.num_nodes == 2 {
        return Ok(vec![1]);
    }
    if collective == Collective::SendRecv {
        return match devices {
            0 | 1 => Err(Failure::user("send_recv needs two devices on this node; there is one")),
            _ => Ok(vec![2]),
        };
    }
    let asked = &args.num_workers_per_node;
    // One worker has nobody to talk to: the list of Vidur's users begins with it all the same.
    let counts: Vec<u32> = match asked.is_empty() {
        false => asked.iter().copied().filter(|&n| n * args.num_nodes > 1).collect(),
        true => {
            std::iter::successors(Some(2), |n| Some(n * 2)).take_while(|&n| n <= devices).collect()
        }
    };
    match counts.is_empty() {
        true => Err(Failure::user("a collective needs at least 2 workers, and as many devices")),
        false => Ok(counts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_numbered_among_those_that_cuda_sees() {
        let here: Vec<String> = ["4", "5", "GPU-6"].map(str::to_owned).into();
        let two = Devices::among(&[2, 0, 2], &here).unwrap();
        assert_eq!((two.numbers, two.visible), (vec![2, 0], Some("GPU-6,4".into())));
        let all = Devices::among(&[], &here).unwrap();
        assert_eq!((all.count, all.numbers, all.visible), (3, vec![0, 1, 2], None));
        let refused = Devices::among(&[3], &here).unwrap_err();
        assert!(refused.words().contains("--devices 3: this node has 3"), "{refused:?}");
    }
}
