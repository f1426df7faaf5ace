//! AMD devices: the list that the kernel's compute driver keeps under
//! `/sys/class/kfd/kfd/topology/nodes/<n>/properties`, a line `name value` each. CPUs are nodes
//! too, without SIMD units. Source: Linux, drivers/gpu/drm/amd/amdkfd/kfd_topology.c.

use std::path::Path;

/// PCI vendor of AMD.
const AMD: u64 = 0x1002;
/// PCI device of the parts in our catalogue. Source: pci.ids, vendor 1002.
const PARTS: [(u64, &str); 1] = [(0x74a1, "mi300x")];

/// One GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AmdGpu {
    /// PCI device.
    pub device_id: u64,
    /// Device memory in bytes, where the kernel tells.
    pub memory_bytes: Option<u64>,
}

/// The GPUs of the list under `sys`, in its order.
pub fn from_sysfs(sys: &Path) -> Vec<AmdGpu> {
    let nodes = sys.join("class/kfd/kfd/topology/nodes");
    let Ok(entries) = std::fs::read_dir(nodes) else { return Vec::new() };
    let mut found: Vec<(u32, AmdGpu)> = entries
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let text = std::fs::read_to_string(entry.path().join("properties")).ok()?;
            let bank = entry.path().join("mem_banks/0/properties");
            let bank = std::fs::read_to_string(bank).unwrap_or_default();
            Some((number, parse(&text, &bank)?))
        })
        .collect();
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, gpu)| gpu).collect()
}

/// The GPU that a node's properties and those of its first memory describe; `None` of a CPU.
pub fn parse(node: &str, bank: &str) -> Option<AmdGpu> {
    if property(node, "vendor_id")? != AMD || property(node, "simd_count")? == 0 {
        return None;
    }
    let memory_bytes = property(bank, "size_in_bytes").filter(|&bytes| bytes > 0);
    Some(AmdGpu { device_id: property(node, "device_id")?, memory_bytes })
}

fn property(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}

/// The catalogue's name of the part.
pub fn sku(gpu: AmdGpu) -> Option<&'static str> {
    PARTS.iter().find(|(id, _)| *id == gpu.device_id).map(|(_, sku)| *sku)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_told_from_cpus_and_come_in_order() {
        let sys = tempfile::tempdir().unwrap();
        for (node, text) in [
            ("0", "cpu_cores_count 96\nsimd_count 0\nvendor_id 0\ndevice_id 0\n"),
            ("10", "simd_count 1216\nvendor_id 4098\ndevice_id 29857\n"),
            ("2", "simd_count 440\nvendor_id 4098\ndevice_id 29704\n"),
            ("3", "broken"),
        ] {
            let folder = sys.path().join("class/kfd/kfd/topology/nodes").join(node);
            std::fs::create_dir_all(folder.join("mem_banks/0")).unwrap();
            std::fs::write(folder.join("properties"), text).unwrap();
            let bank = "heap_type 1\nsize_in_bytes 206141652992\n";
            std::fs::write(folder.join("mem_banks/0/properties"), bank).unwrap();
        }
        let gpus = from_sysfs(sys.path());
        assert_eq!(gpus.iter().map(|gpu| sku(*gpu)).collect::<Vec<_>>(), [None, Some("mi300x")]);
        assert_eq!(gpus[1].memory_bytes, Some(206_141_652_992));
        assert!(from_sysfs(Path::new("/nonexistent")).is_empty());
    }
}
