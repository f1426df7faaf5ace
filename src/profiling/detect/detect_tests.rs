//! Whole machines made of stand-in tools.

use super::*;
use crate::profiling::tool::testing::script;
use std::path::Path;
use tempfile::TempDir;

struct Machine {
    bin: TempDir,
    sys: TempDir,
}

impl Machine {
    fn new() -> Machine {
        Machine { bin: tempfile::tempdir().unwrap(), sys: tempfile::tempdir().unwrap() }
    }

    /// `nvidia-smi` that knows these lines and this matrix.
    fn nvidia(self, csv: &str, matrix: &str) -> Machine {
        let body = format!(
            "case \"$1\" in\ntopo) cat <<'END'\n{matrix}END\n;;\n--query-gpu*) cat <<'END'\n{csv}END\n;;\n*) exit 2;;\nesac"
        );
        script(self.bin.path(), "nvidia-smi", &body);
        self
    }

    fn neuron_ls(self, body: &str) -> Machine {
        script(self.bin.path(), "neuron-ls", body);
        self
    }

    fn detect(&self, kind: Option<Kind>) -> Result<Detection, DetectError> {
        let catalog = Catalog::open(Some(Path::new("no-such-folder")));
        detect(&Tools::only(self.bin.path(), self.sys.path()), &catalog, kind)
    }
}

fn gpus(n: usize, name: &str) -> String {
    let rows: String = (0..n)
        .map(|i| format!("{i}, {name}, GPU-{i}, 00000000:0{i}:00.0, 81559 MiB, 580.1, 9.0\n"))
        .collect();
    format!(
        "index, name, uuid, pci.bus_id, memory.total [MiB], driver_version, compute_cap\n{rows}"
    )
}

fn matrix(n: usize, link: impl Fn(usize, usize) -> &'static str) -> String {
    let header: String = (0..n).map(|i| format!("\tGPU{i}")).collect();
    let row = |a: usize| {
        let cells: String = (0..n)
            .map(|b| format!("\t{}", if a == b { "X" } else { link(a.min(b), a.max(b)) }))
            .collect();
        format!("GPU{a}{cells}\t0-47\t0\n")
    };
    format!("{header}\tCPU Affinity\tNUMA Affinity\n{}", (0..n).map(row).collect::<String>())
}

#[test]
fn eight_switched_h100_are_a_p5_or_its_like() {
    let machine =
        Machine::new().nvidia(&gpus(8, "NVIDIA H100 80GB HBM3"), &matrix(8, |_, _| "NV18"));
    let found = machine.detect(None).unwrap();
    assert_eq!((found.backend, found.devices.len()), (Kind::Cuda, 8));
    assert_eq!(found.sku.as_deref(), Some("h100_sxm"));
    assert_eq!(found.network_device.as_deref(), Some("h100_dgx"));
    assert_eq!(found.nodes, ["ND96isr_H100_v5", "h100_dgx", "p5.48xlarge"]);
    assert_eq!(found.unknown, Vec::<String>::new());
    assert_eq!(found.devices[7].memory_bytes, Some(81_559 << 20));
}

#[test]
fn pairs_cards_and_single_devices_get_their_wiring() {
    let pairs = |a: usize, b: usize| if a / 2 == b / 2 { "NV12" } else { "SYS" };
    let four = Machine::new().nvidia(&gpus(4, "NVIDIA A100 80GB PCIe"), &matrix(4, pairs));
    let found = four.detect(None).unwrap();
    assert_eq!(found.network_device.as_deref(), Some("a100_pairwise_nvlink"));
    assert_eq!(found.nodes, ["NC96ads_A100_v4"]);
    let two = Machine::new().nvidia(&gpus(2, "NVIDIA H100 NVL"), &matrix(2, |_, _| "NV12"));
    assert_eq!(two.detect(None).unwrap().network_device.as_deref(), Some("h100_nvl_pair"));
    let cards = Machine::new().nvidia(&gpus(8, "NVIDIA L40S"), &matrix(8, |_, _| "NODE"));
    let found = cards.detect(None).unwrap();
    assert_eq!(found.network_device.as_deref(), Some("l40s_pcie"));
    assert_eq!(found.nodes, ["g6e.48xlarge"]);
    let one = Machine::new().nvidia(&gpus(1, "NVIDIA H200"), "").detect(None).unwrap();
    assert_eq!((one.topology, one.network_device), (Some(Topology::Single), None));
    assert_eq!(one.sku.as_deref(), Some("h200_sxm"));
}

#[test]
fn the_wiring_decides_the_name_and_nodes_only_refine_it() {
    let detect = |n: usize, name: &str, link: &dyn Fn(usize, usize) -> &'static str| {
        Machine::new().nvidia(&gpus(n, name), &matrix(n, link)).detect(None).unwrap()
    };
    // Half of a switched node; the catalogue's node of four is paired.
    for (name, wiring) in
        [("NVIDIA H100 80GB HBM3", "h100_dgx"), ("NVIDIA A100-SXM4-80GB", "a100_dgx")]
    {
        let found = detect(4, name, &|_, _| "NV12");
        assert_eq!(found.network_device.as_deref(), Some(wiring));
        assert_eq!((found.nodes, found.unknown), (Vec::new(), Vec::<String>::new()));
    }
    let alone = detect(4, "NVIDIA H100 80GB HBM3", &|_, _| "SYS");
    assert_eq!((alone.network_device, alone.nodes), (None, Vec::new()));
    // The last of four is another part.
    let mixed =
        gpus(4, "NVIDIA A100-SXM4-80GB").replace("3, NVIDIA A100-SXM4-80GB", "3, NVIDIA L4");
    let pairs = |a: usize, b: usize| if a / 2 == b / 2 { "NV12" } else { "SYS" };
    let mixed = Machine::new().nvidia(&mixed, &matrix(4, pairs)).detect(None).unwrap();
    assert!(!mixed.is_alike() && mixed.nodes.is_empty() && mixed.network_device.is_none());
    // No matrix: the nodes are an example, no answer.
    let machine = Machine::new().nvidia(&gpus(8, "NVIDIA H100 80GB HBM3"), "");
    let found = machine.detect(None).unwrap();
    assert_eq!((found.network_device, found.unknown.len()), (None, 1));
    assert!(
        found.unknown[0].ends_with("--network-device, such as h100_dgx"),
        "{:?}",
        found.unknown
    );
    // Two instances of sixteen Trainium1 are wired differently.
    let one = r#"{"neuron_device":0,"nc_count":2,"memory_size":34359738368,"connected_to":[1]}"#;
    let machine = Machine::new().neuron_ls(&format!("echo '[{}]'", [one; 16].join(",")));
    let found = machine.detect(None).unwrap();
    assert_eq!(found.nodes, ["trn1.32xlarge", "trn1n.32xlarge"]);
    assert!(
        found.unknown[0].ends_with("trn1_neuronlink or trn1n_neuronlink"),
        "{:?}",
        found.unknown
    );
}

#[test]
fn what_the_catalogue_lacks_is_said() {
    let machine =
        Machine::new().nvidia(&gpus(2, "NVIDIA GeForce RTX 3090"), &matrix(2, |_, _| "PHB"));
    let found = machine.detect(None).unwrap();
    assert_eq!(found.sku, None);
    assert_eq!(found.store_as.as_deref(), Some("nvidia_geforce_rtx_3090"));
    assert!(found.unknown[0].contains("not in the catalogue"), "{:?}", found.unknown);
    assert!(
        found.unknown[1].contains("--network-device nvidia_geforce_rtx_3090_pcie"),
        "{:?}",
        found.unknown
    );
    // Pairs of H200: the part is known, this wiring of it is not.
    let pairs = |a: usize, b: usize| if a / 2 == b / 2 { "NV18" } else { "SYS" };
    let found =
        Machine::new().nvidia(&gpus(4, "NVIDIA H200"), &matrix(4, pairs)).detect(None).unwrap();
    assert_eq!(found.network_device, None);
    assert!(found.unknown[0].contains("h200_sxm_pairwise_nvlink"), "{:?}", found.unknown);
}

#[test]
fn a_driver_that_does_not_answer_is_no_device() {
    let machine = Machine::new();
    let words = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.";
    script(machine.bin.path(), "nvidia-smi", &format!("echo \"{words}\"; exit 9"));
    let found = machine.detect(None).unwrap();
    assert_eq!(found.backend, Kind::Cpu);
    let doubt = found.doubt.unwrap();
    assert_eq!(doubt, format!("nvidia-smi is here but says: {words} (exit code 9)"));
    assert!(found.unknown[0].starts_with(&doubt), "{:?}", found.unknown);
    assert_eq!(machine.detect(Some(Kind::Cpu)).unwrap().doubt, None);
    assert_eq!(Machine::new().detect(None).unwrap().doubt, None);
    assert!(
        found.asked.iter().any(|a| a.answer == format!("{words} (exit code 9)")),
        "{:?}",
        found.asked
    );
    let refused = machine.detect(Some(Kind::Cuda)).unwrap_err().to_string();
    assert!(refused.contains(words), "{refused}");
}

#[test]
fn a_driver_without_the_newest_column_is_asked_again() {
    let machine = Machine::new();
    let body = "case \"$1\" in\n*compute_cap*) echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2;;\n\
                *) printf 'index, name, memory.total [MiB]\\n0, Tesla T4, 15360 MiB\\n';;\nesac";
    script(machine.bin.path(), "nvidia-smi", body);
    let found = machine.detect(None).unwrap();
    assert_eq!((found.backend, found.devices.len()), (Kind::Cuda, 1));
}

const TRN2: &str = r#"[{"instance_type":"trn2.3xlarge","instance_id":"i-1","neuron_device":0,"bdf":"0000:33:00.0","numa_node":"0","connected_to":null,"nc_count":4,"logical_neuroncore_config":2,"memory_size":103079215104,"neuroncore_ids":[0,1,2,3],"neuron_processes":[]}]"#;

#[test]
fn neuron_goes_before_nvidia_unless_another_is_asked_for() {
    let machine = Machine::new()
        .neuron_ls(&format!("printf '%s' '{TRN2}'"))
        .nvidia(&gpus(1, "NVIDIA L4"), "");
    let found = machine.detect(None).unwrap();
    assert_eq!((found.backend, found.sku.as_deref()), (Kind::Neuron, Some("trainium2")));
    assert_eq!(found.nodes, ["trn2.3xlarge"]);
    assert_eq!(found.devices[0].cores, Some(4));
    assert_eq!(machine.detect(Some(Kind::Cuda)).unwrap().sku.as_deref(), Some("l4"));
    assert_eq!(machine.detect(Some(Kind::Cpu)).unwrap().backend, Kind::Cpu);
}

#[test]
fn an_old_sdk_is_asked_for_the_instance_through_its_endless_monitor() {
    let old = r#"[{"neuron_device":0,"nc_count":2,"memory_size":34359738368,"connected_to":null}]"#;
    let machine = Machine::new().neuron_ls(&format!("echo '{old}'"));
    assert_eq!(machine.detect(None).unwrap().sku, None);
    let record = r#"{"neuron_runtime_data":[],"instance_info":{"instance_type":"inf2.xlarge"}}"#;
    let body = format!("echo starting; while :; do echo '{record}'; sleep 0.05; done");
    script(machine.bin.path(), "neuron-monitor", &body);
    let found = machine.detect(None).unwrap();
    assert_eq!(
        (found.sku.as_deref(), found.nodes),
        (Some("inferentia2"), vec!["inf2.xlarge".to_owned()])
    );
}

#[test]
fn a_whole_inferentia_node_has_its_wiring() {
    let one = r#"{"instance_type":"inf2.48xlarge","neuron_device":0,"nc_count":2,"memory_size":34359738368,"connected_to":[1,11],"numa_node":"-1"}"#;
    let machine = Machine::new().neuron_ls(&format!("echo '[{}]'", [one; 12].join(",")));
    let found = machine.detect(None).unwrap();
    assert_eq!(found.network_device.as_deref(), Some("inf2_neuronlink"));
    assert_eq!(found.nodes, ["inf2.48xlarge"]);
}

#[test]
fn without_neuron_ls_the_kernel_is_asked() {
    for body in ["exit 1", "echo 'unknown flag `j'\nexit 1", "sleep 0; echo nonsense"] {
        let machine = Machine::new().neuron_ls(body);
        assert_eq!(machine.detect(None).unwrap().backend, Kind::Cpu, "{body}");
        let folder = machine.sys.path().join("devices/virtual/neuron_device/neuron0");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("core_count"), "2\n").unwrap();
        let found = machine.detect(None).unwrap();
        assert_eq!((found.backend, found.devices[0].cores), (Kind::Neuron, Some(2)), "{body}");
        assert!(found.unknown[0].contains("--sku"), "{:?}", found.unknown);
    }
}
