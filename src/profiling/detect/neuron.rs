//! AWS Neuron devices: `neuron-ls -j`, and the kernel's own list where that tool is missing.
//!
//! The array of `neuron-ls` differs between SDKs: `connected_to` may be null, `numa_node` is a
//! string, `neuroncore_ids`, `logical_neuroncore_config` and `instance_type` came later. Without
//! devices it ends with code 1 and prints nothing. Source: AWS Neuron documentation,
//! tools/neuron-sys-tools/neuron-ls.rst (SDK 2.32).

use serde_json::Value;
use std::path::Path;

/// One chip.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NeuronDevice {
    /// Its number.
    pub index: u64,
    /// Logical NeuronCores that it offers.
    pub cores: u32,
    /// Device memory in bytes; the kernel's list does not tell.
    pub memory_bytes: Option<u64>,
    /// Chips that it is wired to.
    pub connected_to: Vec<u64>,
    /// NUMA node of the host; `None` where there is only one, or none is stated.
    pub numa_node: Option<u32>,
    /// Physical cores to a logical one (`NEURON_LOGICAL_NC_CONFIG`); not stated before Trainium2.
    pub logical_core_config: Option<u32>,
    /// EC2 instance type, where the SDK tells.
    pub instance_type: Option<String>,
}

/// Reads what `neuron-ls -j` prints.
///
/// # Errors
/// One line that says what is wrong, and with which device.
pub fn parse(text: &str) -> Result<Vec<NeuronDevice>, String> {
    // Log lines may come first.
    let start = text.find('[').ok_or("no JSON array; expected the output of `neuron-ls -j`")?;
    let mut stream = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
    let array = match stream.next() {
        Some(Ok(Value::Array(array))) => array,
        Some(Err(e)) => return Err(format!("not the JSON of `neuron-ls -j`: {e}")),
        _ => return Err("no JSON array; expected the output of `neuron-ls -j`".into()),
    };
    array.iter().enumerate().map(|(i, entry)| device(i, entry)).collect()
}

fn device(position: usize, entry: &Value) -> Result<NeuronDevice, String> {
    let field = |name: &str| entry.get(name).filter(|value| !value.is_null());
    let count = |name: &str| field(name).and_then(number);
    let cores = match field("neuroncore_ids").and_then(Value::as_array) {
        Some(ids) if !ids.is_empty() => Some(ids.len() as u64),
        _ => count("nc_count"),
    };
    let cores = cores
        .and_then(|n| u32::try_from(n).ok())
        .filter(|&n| n > 0)
        .ok_or_else(|| format!("entry {position} has neither neuroncore_ids nor nc_count"))?;
    let connected = field("connected_to").and_then(Value::as_array);
    Ok(NeuronDevice {
        index: count("neuron_device").unwrap_or(position as u64),
        cores,
        memory_bytes: count("memory_size").filter(|&bytes| bytes > 0),
        connected_to: connected.map_or(Vec::new(), |ids| ids.iter().filter_map(number).collect()),
        // "-1" is a machine with one node.
        numa_node: count("numa_node").and_then(|n| u32::try_from(n).ok()),
        logical_core_config: count("logical_neuroncore_config").and_then(|n| u32::try_from(n).ok()),
        instance_type: field("instance_type").and_then(Value::as_str).map(str::to_owned),
    })
}

/// The instance type from a record of `neuron-monitor`, which prints one as a line of JSON every few
/// seconds for ever; its latency objects are null where nothing ran.
pub fn monitored_instance(line: &str) -> Option<String> {
    let record: Value = serde_json::from_str(line.trim()).ok()?;
    let name = record.get("instance_info")?.get("instance_type")?.as_str()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// A whole number, also as a string.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// The devices under `<sys>/devices/virtual/neuron_device`, by number. The driver puts a file
/// `core_count` into the folder of each; its place has moved between versions, so it is also looked
/// for one level down.
pub fn from_sysfs(sys: &Path) -> Vec<NeuronDevice> {
    let root = sys.join("devices/virtual/neuron_device");
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    let mut devices: Vec<NeuronDevice> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let index = name.strip_prefix("neuron")?.parse().ok()?;
            let cores = core_count(&entry.path())?;
            Some(NeuronDevice { index, cores, ..NeuronDevice::default() })
        })
        .collect();
    devices.sort_by_key(|device| device.index);
    devices
}

fn core_count(folder: &Path) -> Option<u32> {
    let read = |path: &Path| -> Option<u32> {
        std::fs::read_to_string(path.join("core_count"))
            .ok()?
            .trim()
            .parse()
            .ok()
            .filter(|&n| n > 0)
    };
    read(folder).or_else(|| {
        let below = std::fs::read_dir(folder).ok()?.flatten();
        below.filter_map(|entry| read(&entry.path())).next()
    })
}

/// The catalogue's name of the chip, or why it cannot be told.
///
/// # Errors
/// One sentence with what is missing.
pub fn sku(devices: &[NeuronDevice]) -> Result<&'static str, String> {
    let first = devices.first().ok_or("no device")?;
    if let Some(instance) = &first.instance_type {
        let family = instance.split('.').next().unwrap_or_default();
        return match family {
            "inf2" => Ok("inferentia2"),
            "trn1" | "trn1n" => Ok("trainium1"),
            f if f.starts_with("trn2") => Ok("trainium2"),
            f if f.starts_with("trn3") => Ok("trainium3"),
            _ => Err(format!("no device of instance type {instance} is in the catalogue")),
        };
    }
    match (first.memory_bytes.map(|bytes| bytes >> 30), devices.len()) {
        // Memory sizes and chips per instance: data/device_skus, data/node_skus.
        (Some(32), 6 | 12) => Ok("inferentia2"),
        (Some(32), 16) => Ok("trainium1"),
        (Some(32), _) => {
            Err("32 GiB a chip are Inferentia2 or Trainium1, and this neuron-ls does not tell the \
             instance type: say which with --sku inferentia2 or --sku trainium1 (of collectives with \
             --network-device inferentia2_chip or trainium1_chip)"
                .into())
        }
        (Some(96), _) => Ok("trainium2"),
        (Some(144), _) => Ok("trainium3"),
        (Some(gib), _) => Err(format!("no Neuron chip with {gib} GiB is in the catalogue")),
        (None, _) => {
            Err("the kernel's list names neither chip nor memory: say which with --sku".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// trn1.2xlarge, an SDK that does not tell the instance type.
    const TRN1: &str = r#"[{"neuron_device":0,"bdf":"0000:00:1e.0","cpu_affinity":"0-7","numa_node":"-1","connected_to":null,"nc_count":2,"memory_size":34359738368,"neuroncore_ids":[0,1],"neuron_processes":[]}]"#;

    #[test]
    fn null_neighbours_and_numa_nodes_in_strings_are_read() {
        let devices = parse(TRN1).unwrap();
        assert_eq!(devices.len(), 1);
        assert_eq!(devices[0].cores, 2);
        assert_eq!(devices[0].memory_bytes, Some(34_359_738_368));
        assert_eq!((devices[0].numa_node, devices[0].connected_to.len()), (None, 0));
        assert!(sku(&devices).unwrap_err().contains("--sku trainium1"));
    }

    #[test]
    fn the_instance_type_names_the_chip() {
        let text = r#"log line
            [{"instance_type":"trn2.3xlarge","neuron_device":0,"numa_node":"0","connected_to":[12,3,4,1],
              "nc_count":4,"logical_neuroncore_config":2,"memory_size":103079215104,"neuroncore_ids":[0,1,2,3]}]"#;
        let devices = parse(text).unwrap();
        assert_eq!(devices[0].connected_to, [12, 3, 4, 1]);
        assert_eq!((devices[0].logical_core_config, devices[0].numa_node), (Some(2), Some(0)));
        assert_eq!(sku(&devices), Ok("trainium2"));
    }

    #[test]
    fn an_old_sdk_without_core_ids_or_instance_type_is_enough() {
        let one =
            r#"{"neuron_device":0,"nc_count":2,"memory_size":34359738368,"connected_to":[1]}"#;
        let twelve = format!("[{}]", [one; 12].join(","));
        let devices = parse(&twelve).unwrap();
        assert_eq!(devices.iter().map(|d| d.cores).sum::<u32>(), 24);
        assert_eq!(sku(&devices), Ok("inferentia2"));
        assert_eq!(sku(&parse(&format!("[{}]", [one; 16].join(","))).unwrap()), Ok("trainium1"));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in
            ["", "unknown flag -j", "[{\"neuron_device\":0}]", "[1]", "[{\"nc_count\":0}]", "[{"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("[]"), Ok(Vec::new()));
    }

    #[test]
    fn a_record_of_the_monitor_names_the_instance() {
        let record = r#"{"neuron_runtime_data":[{"report":{"execution_stats":{"latency_stats":{"total_latency":null,"device_latency":null}}}}],"instance_info":{"instance_type":"trn1.2xlarge","error":""}}"#;
        assert_eq!(monitored_instance(record).as_deref(), Some("trn1.2xlarge"));
        for line in ["", "{}", r#"{"instance_info":{"instance_type":""}}"#, "starting"] {
            assert_eq!(monitored_instance(line), None, "{line}");
        }
    }

    #[test]
    fn the_kernels_list_stands_in() {
        let sys = tempfile::tempdir().unwrap();
        for (folder, cores) in [("neuron1", "2\n"), ("neuron0", "2"), ("neuronx", "2")] {
            let path = sys.path().join("devices/virtual/neuron_device").join(folder);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("core_count"), cores).unwrap();
        }
        let devices = from_sysfs(sys.path());
        assert_eq!(
            devices.iter().map(|d| (d.index, d.cores)).collect::<Vec<_>>(),
            [(0, 2), (1, 2)]
        );
        assert!(sku(&devices).is_err());
    }
}
