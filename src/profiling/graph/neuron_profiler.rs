//! Device time of a NEFF: captured by neuron-explorer (neuron-profile on older SDKs) on the second
//! execution, and read from its summary. Times are seconds and shares are fractions, whatever the
//! names say. Source: AWS Neuron documentation, neuron-explorer and profile-schema-reference
//! (SDK 2.32).

use crate::dataset::graph::COUNTERS;
use crate::profiling::tool::Tools;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The tools, the newer one first; flags are the same.
const PROGRAMS: [&str; 2] = ["neuron-explorer", "neuron-profile"];

/// One execution as the profiler saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceProfile {
    /// Milliseconds on the device, gaps included, host excluded.
    pub total_ms: f64,
    /// How it was measured.
    pub route: String,
    /// Of [`COUNTERS`], those that were there.
    pub counters: BTreeMap<String, f64>,
}

/// Captures the second execution of `neff` and reads its summary.
///
/// # Errors
/// One line: no tool, or what it said.
pub fn device_time(tools: &Tools, neff: &Path, folder: &Path) -> Result<DeviceProfile, String> {
    let program = PROGRAMS
        .into_iter()
        .find(|name| tools.find(name).is_some())
        .ok_or("neither neuron-explorer nor neuron-profile is on the PATH")?;
    let session = folder.join("profile.ntff");
    let path = |p: &Path| p.display().to_string();
    let run = |args: &[String]| -> Result<String, String> {
        let output = tools.run(program, args).map_err(|e| format!("{program}: {e}"))?;
        output.success().map_err(|e| format!("{program} {}: {e}", args[0]))
    };
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<String>>();
    let (neff, session_text) = (path(neff), path(&session));
    run(&words(&[
        "capture",
        "-n",
        &neff,
        "-s",
        &session_text,
        "--num-exec",
        "2",
        "--profile-nth-exec",
        "2",
    ]))?;
    // The second execution gets a name of its own beside the one that was asked for.
    let second = folder.join("profile_exec_2.ntff");
    let ntff = [second, session]
        .into_iter()
        .find(|p| p.is_file())
        .ok_or_else(|| format!("{program} capture left no profile in {}", folder.display()))?;
    let text =
        run(&words(&["view", "-n", &neff, "-s", &path(&ntff), "--output-format", "summary-json"]))?;
    let summary = summary(&text).map_err(|e| format!("{program} view: {e}"))?;
    let figure = |name: &str| summary.get(name).and_then(number);
    let seconds =
        figure("total_time").filter(|s| *s > 0.0).ok_or("its summary has no total_time")?;
    let counters = COUNTERS.iter().filter_map(|name| Some(((*name).to_owned(), figure(name)?)));
    Ok(DeviceProfile {
        total_ms: seconds * 1e3,
        route: format!("{program} capture of the second execution"),
        counters: counters.collect(),
    })
}

/// The first entry of a `summary-json`: flat, under the name of its NEFF or not. Log lines may come
/// before it.
///
/// # Errors
/// When there is none.
pub fn summary(text: &str) -> Result<Map<String, Value>, String> {
    let start = text.find('{').ok_or("no JSON in the summary")?;
    let mut stream = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
    let Some(Ok(Value::Object(map))) = stream.next() else {
        return Err("the summary is no JSON object".into());
    };
    if map.contains_key("total_time") {
        return Ok(map);
    }
    let first = map.into_iter().find_map(|(_, value)| match value {
        Value::Object(entry) => Some(entry),
        _ => None,
    });
    first.ok_or_else(|| "the summary is empty".into())
}

/// A number, also as a string.
fn number(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    number.is_finite().then_some(number)
}

/// A compiled graph in `folder` or below it.
pub fn find_neff(folder: &Path) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let neff = entries.iter().find(|path| path.extension().is_some_and(|e| e == "neff"));
    neff.cloned()
        .or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|dir| find_neff(dir)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SUMMARY: &str = r#"2026-11-22 INFO processing
{"n_0123abcd_1":{"total_time":0.0142766,"total_active_time":0.0138,"mfu_max_achievable_estimated_percent":1,
"tensor_engine_active_time_percent":0.2747,"hbm_read_bytes":"6582249472","instance_type":"trn1.2xlarge"},"n_2":{"total_time":1}}"#;

    #[test]
    fn the_first_entry_counts_and_strings_may_be_numbers() {
        let entry = summary(SUMMARY).unwrap();
        assert_eq!(entry.get("total_time").and_then(number), Some(0.0142766));
        assert_eq!(entry.get("hbm_read_bytes").and_then(number), Some(6_582_249_472.0));
        assert!(summary("{\"total_time\":2}").is_ok());
        for text in ["", "no", "{", "{}", "{\"a\":1}", "[]"] {
            assert!(summary(text).is_err(), "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn both_names_of_the_tool_work_and_its_failures_are_told() {
        use crate::profiling::tool::testing::script;
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools::only(dir.path(), dir.path());
        let neff = dir.path().join("graph.neff");
        let time = || device_time(&tools, &neff, dir.path());
        assert!(time().unwrap_err().contains("neither"));
        let body = format!(
            "case $1 in\ncapture) shift; while [ $# -gt 0 ]; do [ $1 = -s ] && d=$(dirname $2); shift; done; touch $d/profile_exec_2.ntff;;\n\
             view) case \"$*\" in *profile_exec_2.ntff*summary-json*) cat <<'END'\n{SUMMARY}\nEND\n;; *) exit 3;; esac;;\nesac"
        );
        for name in ["neuron-profile", "neuron-explorer"] {
            script(dir.path(), name, &body);
            let profile = time().unwrap();
            assert_eq!(profile.total_ms, 14.2766);
            assert!(profile.route.starts_with(name), "{}", profile.route);
            assert_eq!(profile.counters["tensor_engine_active_time_percent"], 0.2747);
        }
        script(dir.path(), "neuron-explorer", "echo 'no device' >&2; exit 1");
        assert_eq!(time().unwrap_err(), "neuron-explorer capture: no device (exit code 1)");
    }

    proptest! {
        #![proptest_config(crate::profiling::network::tests::cases())]

        #[test]
        fn no_summary_makes_it_panic(at in 0..300_usize, cut in 0..20_usize, new in "\\PC{0,8}") {
            let mut chars: Vec<char> = SUMMARY.chars().collect();
            let at = at.min(chars.len());
            let end = (at + cut).min(chars.len());
            chars.splice(at..end, new.chars());
            let _ = summary(&chars.into_iter().collect::<String>());
        }
    }
}
