use super::*;
use std::fs;

/// Only what is compiled in: the folder holds nothing.
fn built_in() -> (tempfile::TempDir, Catalog) {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(Some(dir.path()));
    (dir, catalog)
}

fn write(dir: &Path, path: &str, text: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn every_shipped_file_is_read_and_makes_sense() {
    let (_dir, catalog) = built_in();
    assert_eq!(catalog.models().unwrap().len(), 24);
    assert_eq!(catalog.devices().unwrap().len(), 26);
    assert_eq!(catalog.nodes().unwrap().len(), 56);
}

#[test]
fn every_file_in_the_data_folder_is_compiled_in() {
    let on_disk = Catalog::open(Some(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data")));
    let (_dir, compiled) = built_in();
    let cure = "a new data file is compiled in when src/spec/catalog/entry.rs is: touch it";
    assert_eq!(on_disk.models().unwrap(), compiled.models().unwrap(), "{cure}");
    assert_eq!(on_disk.devices().unwrap(), compiled.devices().unwrap(), "{cure}");
    assert_eq!(on_disk.nodes().unwrap(), compiled.nodes().unwrap(), "{cure}");
}

#[test]
fn no_name_or_alias_is_used_twice() {
    let (_dir, catalog) = built_in();
    let mut seen = std::collections::BTreeSet::new();
    for model in catalog.models().unwrap() {
        for name in std::iter::once(&model.name).chain(&model.aliases) {
            assert!(seen.insert(name.clone()), "{name} twice");
        }
    }
    for device in catalog.devices().unwrap() {
        for name in std::iter::once(&device.name).chain(&device.aliases) {
            assert!(seen.insert(name.clone()), "{name} twice");
        }
    }
}

#[test]
fn every_node_holds_a_known_device_under_its_own_name() {
    let (_dir, catalog) = built_in();
    for node in catalog.nodes().unwrap() {
        let device = catalog.device(&node.device).unwrap();
        assert_eq!(device.name, node.device, "node {}", node.name);
    }
}

#[test]
fn every_device_of_a_node_with_several_states_its_link() {
    let (_dir, catalog) = built_in();
    for node in catalog.nodes().unwrap().iter().filter(|n| n.num_devices > 1) {
        assert!(catalog.device(&node.device).unwrap().link_bytes_per_s.is_some(), "{}", node.name);
    }
}

#[test]
fn parameters_are_as_many_as_published() {
    let (_dir, catalog) = built_in();
    for (name, params) in [
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("meta-llama/Meta-Llama-3-70B", 70_553_706_496),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B", 70_553_706_496),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("codellama/CodeLlama-34b-Instruct-hf", 33_743_970_304),
        ("internlm/internlm2-20b", 19_861_149_696),
        ("Qwen/Qwen-72B", 72_287_920_128),
        ("Qwen/Qwen2-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-72B", 72_706_203_648),
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("mistralai/Mistral-7B-v0.3", 7_248_023_552),
        ("google/gemma-2-9b", 9_241_705_984),
        ("microsoft/phi-2", 2_779_683_840),
    ] {
        assert_eq!(catalog.model(name).unwrap().params(), params, "{name}");
    }
}

#[test]
fn keys_and_values_of_a_token_are_as_large_as_published() {
    let (_dir, catalog) = built_in();
    // Llama-2-7b: 2 · 32 layers · 32 heads · 128 · 2 bytes = 512 KiB; Llama-3-8B a quarter.
    let bytes = |name| catalog.model(name).unwrap().kv_bytes_per_token();
    assert_eq!(bytes("meta-llama/Llama-2-7b-hf"), 524_288.0);
    assert_eq!(bytes("meta-llama/Meta-Llama-3-8B"), 131_072.0);
}

#[test]
fn aliases_find_what_they_stand_for() {
    let (_dir, catalog) = built_in();
    assert_eq!(catalog.model("Qwen/Qwen-2-7B").unwrap().name, "Qwen/Qwen2-7B");
    assert_eq!(catalog.device("a100").unwrap().name, "a100_sxm");
    assert_eq!(catalog.device("h100").unwrap().name, "h100_sxm");
    assert_eq!(catalog.device("inf2").unwrap().name, "inferentia2");
    assert_eq!(catalog.device("trn2").unwrap().memory_bytes, 96 << 30);
}

#[test]
fn an_unknown_name_is_answered_with_the_likeliest_and_the_command_that_lists() {
    let (_dir, catalog) = built_in();
    assert_eq!(
        catalog.model("meta-lama/Llama-2-7b").unwrap_err().to_string(),
        "unknown model `meta-lama/Llama-2-7b`; did you mean `meta-llama/Llama-2-7b-hf`? \
         `vidur models` lists them, `vidur models add config.json` adds one"
    );
    assert_eq!(
        catalog.device("h100_smx").unwrap_err().to_string(),
        "unknown device `h100_smx`; did you mean `h100_sxm`? `vidur devices` lists them"
    );
    assert_eq!(
        catalog.node("toaster").unwrap_err().to_string(),
        "unknown node `toaster`; `vidur devices` lists them"
    );
}

#[test]
fn names_with_path_traversal_reach_no_file() {
    let (dir, _) = built_in();
    write(dir.path(), "secret.yml", "name: secret");
    fs::create_dir_all(dir.path().join("data/device_skus")).unwrap();
    let catalog = Catalog::open(Some(&dir.path().join("data")));
    for name in ["../../secret", "a/../../../secret", "/etc/passwd", "..", "", "a\\b"] {
        for error in [catalog.device(name).unwrap_err(), catalog.model(name).unwrap_err()] {
            assert!(matches!(error, CatalogError::Unknown { .. }), "{name}: {error}");
        }
    }
}

#[test]
fn a_file_on_disk_goes_before_the_compiled_one() {
    let (dir, catalog) = built_in();
    let mut model = catalog.model("microsoft/phi-2").unwrap();
    model.num_layers = 7;
    let text = serde_saphyr::to_string(&model).unwrap();
    write(dir.path(), "model_configs/microsoft/phi-2.yml", &text);
    assert_eq!(catalog.model("microsoft/phi-2").unwrap().num_layers, 7);
    let all = catalog.models().unwrap();
    assert_eq!(all.len(), 24);
    assert_eq!(all.iter().find(|m| m.name == "microsoft/phi-2").unwrap().num_layers, 7);
}

#[test]
fn every_model_survives_being_written_and_read_again() {
    let (_dir, catalog) = built_in();
    for model in catalog.models().unwrap() {
        let text = serde_saphyr::to_string(&model).unwrap();
        assert_eq!(yaml::from_str::<ModelSpec>(&text, "again.yml").unwrap(), model);
    }
    for device in catalog.devices().unwrap() {
        let text = serde_saphyr::to_string(&device).unwrap();
        assert_eq!(yaml::from_str::<DeviceSku>(&text, "again.yml").unwrap(), device);
    }
    for node in catalog.nodes().unwrap() {
        let text = serde_saphyr::to_string(&node).unwrap();
        assert_eq!(yaml::from_str::<NodeSku>(&text, "again.yml").unwrap(), node);
    }
}

#[test]
fn a_path_to_a_file_is_a_name_too() {
    let (dir, catalog) = built_in();
    let text = serde_saphyr::to_string(&catalog.device("l4").unwrap()).unwrap();
    write(dir.path(), "mine.yml", &text);
    let path = dir.path().join("mine.yml").display().to_string();
    assert_eq!(catalog.device(&path).unwrap().name, "l4");
    let missing = catalog.device("nowhere/mine.yml").unwrap_err().to_string();
    assert!(missing.starts_with("nowhere/mine.yml: cannot be read"), "{missing}");
}

#[test]
fn a_broken_file_stops_nobody_who_asks_for_another_by_name() {
    let (dir, catalog) = built_in();
    write(dir.path(), "device_skus/broken.yml", "name: broken\nmemory: 3\n");
    assert!(catalog.device("l4").is_ok());
    let error = catalog.device("broken").unwrap_err().to_string();
    assert!(
        error.contains("broken.yml:2:1: unknown field `memory`; did you mean `memory_bytes`?"),
        "{error}"
    );
    assert!(catalog.devices().is_err());
}

#[test]
fn a_file_must_be_called_what_it_holds_and_hold_sensible_numbers() {
    let (dir, catalog) = built_in();
    let mut device = catalog.device("l4").unwrap();
    write(dir.path(), "device_skus/l5.yml", &serde_saphyr::to_string(&device).unwrap());
    let error = catalog.device("l5").unwrap_err().to_string();
    assert!(
        error.ends_with("l5.yml: name is `l4`; expected `l5`, as the file is called"),
        "{error}"
    );
    device.name = "l6".into();
    device.memory_bandwidth_bytes_per_s = -1.0;
    write(dir.path(), "device_skus/l6.yml", &serde_saphyr::to_string(&device).unwrap());
    let error = catalog.device("l6").unwrap_err().to_string();
    assert!(
        error.ends_with("memory_bandwidth_bytes_per_s is -1; expected a number above 0"),
        "{error}"
    );
}

#[test]
fn model_names_are_an_organisation_and_a_model_and_nothing_else() {
    for good in ["meta-llama/Llama-3.1-8B", "a/b", "01-ai/Yi_1.5"] {
        assert_eq!(check_model_name(good), Ok(()), "{good}");
    }
    for bad in [
        "b", "a/b/c", "/b", "a/", "../b", "a/..", "a/b..c", ".a/b", "a/b c", "a/b\0", "ä/b", "a/-b",
    ] {
        assert!(check_model_name(bad).is_err(), "{bad}");
    }
}
