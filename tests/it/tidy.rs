//! The house rules that a compiler does not check, read off the sources.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &str) -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") && !is_test(&path) {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    walk(&root.join(folder), &mut paths);
    paths.sort();
    assert!(!paths.is_empty(), "no sources in {folder}");
    let name = |p: &PathBuf| p.strip_prefix(root).unwrap().display().to_string();
    paths.iter().map(|p| (name(p), fs::read_to_string(p).unwrap())).collect()
}

/// Files that are compiled for tests only.
fn is_test(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_string_lossy();
    name.ends_with("tests")
        || name.ends_with("testing")
        || name == "test_support"
        || name == "properties"
}

/// The text without its unit tests and comments.
fn code(text: &str) -> String {
    let body = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    body.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn forbid(folder: &str, words: &[&str], why: &str) {
    for (name, text) in sources(folder) {
        let text = code(&text);
        for word in words {
            assert!(!text.contains(word), "{name} names `{word}`: {why}");
        }
    }
}

#[test]
fn the_simulator_knows_nothing_of_profiles_and_predictors() {
    let why = "the simulator asks only cost::CostModel";
    forbid("src/sim", &["predictor", "dataset", "profiling", "report::", "crate::run"], why);
}

#[test]
fn profiling_knows_nothing_of_the_simulator_and_predictors() {
    forbid("src/profiling", &["crate::sim", "crate::predictor", "crate::run"], "they meet in cli");
}

#[test]
fn specs_name_only_specs_and_units() {
    let why = "spec says what exists";
    forbid("src/spec", &["crate::sim", "crate::predictor", "crate::dataset", "crate::cli"], why);
}

#[test]
fn the_simulator_reads_no_clock_file_or_environment() {
    let why = "a run depends on its inputs alone";
    forbid(
        "src/sim",
        &["std::time", "std::fs", "std::env", "Instant", "println", "f64", "f32"],
        why,
    );
}

#[test]
fn only_the_command_line_prints_or_exits() {
    for (name, text) in sources("src") {
        if name.starts_with("src/cli/") {
            continue;
        }
        let text = code(&text);
        for word in ["println!", "eprintln!", "process::exit", "print!("] {
            assert!(!text.contains(word), "{name} uses {word}: only cli prints and exits");
        }
    }
}

#[test]
fn nothing_panics_outside_tests_without_saying_why_it_cannot() {
    for (name, text) in sources("src") {
        let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        for (number, line) in text.lines().enumerate() {
            let bare = line.split("//").next().unwrap_or_default();
            for word in
                [".unwrap()", ".expect(", "panic!(", "todo!(", "unimplemented!(", "unreachable!("]
            {
                assert!(
                    !bare.contains(word),
                    "{name}:{}: `{word}` outside tests; return an error",
                    number + 1
                );
            }
        }
    }
}

#[test]
fn the_architecture_names_every_room_and_every_dependency() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let architecture = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    for entry in fs::read_dir(root.join("src")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            architecture.contains(&format!("`{name}")),
            "ARCHITECTURE.md lacks the room {name}"
        );
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let section = |name: &str| {
        let start = manifest.find(&format!("[{name}]\n")).unwrap();
        let body = &manifest[start + name.len() + 2..];
        body.split("\n[").next().unwrap().to_owned()
    };
    for table in ["dependencies", "dev-dependencies"] {
        for line in section(table).lines().filter(|l| !l.starts_with('#')) {
            let Some((name, _)) = line.split_once(" =") else { continue };
            assert!(
                architecture.contains(&format!("`{name}`")),
                "ARCHITECTURE.md does not say why {name} is a dependency"
            );
        }
    }
}

#[test]
fn the_readme_and_ci_run_the_same_test_command() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let ci = fs::read_to_string(root.join(".ci/run")).unwrap();
    for command in ["cargo run --release -- simulate", "cargo test"] {
        assert!(readme.contains(command), "README.md lacks `{command}`");
        assert!(ci.contains(command), ".ci/run lacks `{command}`");
    }
}
