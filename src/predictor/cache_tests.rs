//! Tests of kept tables: what makes another key, and that only whole files are read.

use super::cache::{Key, Sheet, TableCache};
use super::forest::ForestSettings;
use super::test_support::{device, model};
use super::{Limits, PredictorConfig, System, build, load};
use crate::cost::BatchShape;
use crate::dataset::location::ProfileRoot;
use crate::ids::StageId;
use crate::spec::parallel::Parallelism;
use std::path::Path;

const LIMITS: Limits = Limits { max_batch_tokens: 64, max_batch_size: 8 };
const MLP: &str = "compute/a30/org/tiny/mlp.csv";

fn config() -> PredictorConfig {
    PredictorConfig::Forest(ForestSettings { num_trees: 5, ..ForestSettings::default() })
}

/// Profiles of the tiny model, complete for the forest.
fn profiles(dir: &Path) {
    let ops = [
        "attn_pre_proj",
        "attn_post_proj",
        "attn_rope",
        "input_layernorm",
        "post_attention_layernorm",
        "mlp_up_proj",
        "mlp_act",
        "mlp_down_proj",
        "add",
    ];
    let columns: Vec<String> = ops.iter().map(|op| format!("time_stats.{op}.median")).collect();
    let mut mlp = format!(
        "n_head,n_kv_head,n_embd,n_expanded_embd,use_gated_mlp,num_tokens,\
         num_tensor_parallel_workers,{}\n",
        columns.join(",")
    );
    for tokens in [1, 8, 16, 32, 64] {
        let times: Vec<String> = (1..=ops.len())
            .map(|i| format!("{}", 0.01 * i as f64 + 0.001 * tokens as f64))
            .collect();
        mlp += &format!("8,2,64,128,True,{tokens},1,{}\n", times.join(","));
    }
    let mut attention = String::from(
        "n_embd,n_q_head,n_kv_head,num_tensor_parallel_workers,batch_size,prefill_chunk_size,\
         kv_cache_size,time_stats.attn_prefill.median,time_stats.attn_decode.median,\
         time_stats.attn_kv_cache_save.median\n",
    );
    for n in [1, 2, 4, 8] {
        for kv in [0, 64, 128, 500] {
            attention += &format!("64,8,2,1,1,{},{kv},0.{n}{kv:03},0,0.01\n", n * 8);
            attention += &format!("64,8,2,1,{n},0,{kv},0,0.{n}{kv:03},0.01\n");
        }
    }
    let path = dir.join(MLP);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, mlp).unwrap();
    std::fs::write(path.with_file_name("attention.csv"), attention).unwrap();
}

/// Calls `then` with a system over profiles in a fresh folder.
fn with_system<T>(then: impl FnOnce(&System<'_>, &Path) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    profiles(dir.path());
    let root = ProfileRoot::directory(dir.path()).unwrap();
    let (model, device) = (model(), device());
    let system = System {
        root: &root,
        model: &model,
        device: &device,
        network_device: None,
        parallel: Parallelism::SINGLE,
    };
    then(&system, dir.path())
}

fn key(config: &PredictorConfig, system: &System<'_>, limits: Limits) -> Key {
    Key::of(config, system, limits, &load(config, system).unwrap())
}

fn some_key() -> Key {
    with_system(|system, _| key(&config(), system, LIMITS))
}

fn sheets(value: f64) -> Vec<Sheet> {
    let rows = vec![vec![value, f64::MIN_POSITIVE, 0.1 + 0.2], Vec::new(), vec![value; 1000]];
    vec![Sheet { name: "attn_decode".into(), rows }, Sheet { name: "empty".into(), rows: vec![] }]
}

fn only_file(dir: &Path) -> std::path::PathBuf {
    let files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn what_is_kept_comes_back_bit_for_bit_and_only_under_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let cache = TableCache::in_dir(dir.path().join("made/on/demand"));
    let key_a = some_key();
    assert_eq!(cache.read(&key_a), None);
    cache.write(&key_a, &sheets(0.25));
    assert_eq!(cache.read(&key_a), Some(sheets(0.25)));
    let other =
        with_system(|system, _| key(&config(), system, Limits { max_batch_size: 9, ..LIMITS }));
    assert_eq!(cache.read(&other), None);
    // A file under another's name is not believed.
    let file = only_file(&dir.path().join("made/on/demand"));
    cache.write(&other, &sheets(0.5));
    let of_other = std::fs::read_dir(file.parent().unwrap()).unwrap();
    let of_other = of_other.map(|e| e.unwrap().path()).find(|p| *p != file).unwrap();
    std::fs::copy(&file, of_other).unwrap();
    assert_eq!(cache.read(&other), None);
}

#[test]
fn everything_that_goes_in_is_in_the_key() {
    with_system(|system, dir| {
        let first = key(&config(), system, LIMITS);
        assert_eq!(first, key(&config(), system, LIMITS));
        let mut keys = vec![first];
        for changed in [
            ForestSettings { num_trees: 6, ..ForestSettings::default() },
            ForestSettings { num_trees: 5, seed: 1, ..ForestSettings::default() },
            ForestSettings { num_trees: 5, max_depth: 3, ..ForestSettings::default() },
        ] {
            keys.push(key(&PredictorConfig::Forest(changed), system, LIMITS));
        }
        keys.push(key(&config(), system, Limits { max_batch_tokens: 65, ..LIMITS }));
        let mut model = model();
        model.vocab_size += 1;
        keys.push(key(&config(), &System { model: &model, ..*system }, LIMITS));
        let mut device = device();
        device.memory_bytes += 1;
        keys.push(key(&config(), &System { device: &device, ..*system }, LIMITS));
        // One byte of a profile, in a row that is used, and in one that is not.
        let path = dir.join(MLP);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("0.011", "0.012", 1)).unwrap();
        keys.push(key(&config(), system, LIMITS));
        std::fs::write(&path, format!("{text}\n")).unwrap();
        keys.push(key(&config(), system, LIMITS));
        for (i, a) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(a), "change {i} left the key as it was");
        }
    });
}

#[test]
fn damaged_files_are_ignored_and_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let cache = TableCache::in_dir(dir.path());
    let key = some_key();
    cache.write(&key, &sheets(1.5));
    let file = only_file(dir.path());
    let whole = std::fs::read(&file).unwrap();
    for cut in [0, 1, 31, 32, 33, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..cut]).unwrap();
        assert_eq!(cache.read(&key), None, "cut to {cut} bytes");
    }
    for at in [0, 20, 100, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert_eq!(cache.read(&key), None, "byte {at} changed");
    }
    cache.write(&key, &sheets(1.5));
    assert_eq!(cache.read(&key), Some(sheets(1.5)));
}

#[test]
fn two_writers_at_once_leave_a_whole_file() {
    let dir = tempfile::tempdir().unwrap();
    let cache = TableCache::in_dir(dir.path());
    let key = some_key();
    std::thread::scope(|scope| {
        for value in [1.0, 2.0] {
            let (cache, key) = (&cache, &key);
            scope.spawn(move || {
                for _ in 0..50 {
                    cache.write(key, &sheets(value));
                    let found = cache.read(key).expect("a whole file, once there is one");
                    assert!(found == sheets(1.0) || found == sheets(2.0));
                }
            });
        }
    });
    only_file(dir.path());
}

#[test]
fn a_folder_that_cannot_be_used_keeps_nothing_and_is_no_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let below = TableCache::in_dir(file.path().join("below/a/file"));
    for (cache, troubled) in [(TableCache::off(), false), (below, true)] {
        let key = some_key();
        cache.write(&key, &sheets(1.0));
        assert_eq!(cache.read(&key), None);
        let trouble = cache.trouble().unwrap_or_default();
        assert_eq!(trouble.contains("below/a/file: "), troubled, "{trouble}");
    }
}

#[test]
fn a_predictor_from_kept_tables_answers_as_the_one_that_was_fitted() {
    let dir = tempfile::tempdir().unwrap();
    let cache = TableCache::in_dir(dir.path());
    let batch = BatchShape {
        prefills: vec![crate::cost::PrefillChunk {
            kv_tokens: 70,
            chunk_tokens: 20,
            completes: true,
        }],
        ..BatchShape::decodes(5, 140)
    };
    with_system(|system, _| {
        let answer = |cache: &TableCache| {
            let (cost, _) = build(&config(), system, LIMITS, cache).unwrap();
            (cost.stage_cost(StageId(0), &batch), cost.stage_breakdown(StageId(0), &batch))
        };
        let fresh = answer(&TableCache::off());
        assert_eq!(fresh, answer(&cache));
        only_file(dir.path());
        assert_eq!(fresh, answer(&cache));
        let sum: f64 = fresh.1.iter().map(|t| t.ms).sum();
        assert!((sum / fresh.0.duration.as_ms() - 1.0).abs() < 1e-6);
    });
}
