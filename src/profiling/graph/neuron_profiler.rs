//! Device time of a NEFF: captured by neuron-explorer (neuron-profile on older SDKs) on the second
//! execution, and read from its summary. Times are seconds and shares are fractions, whatever the
//! names say. Source: AWS Neuron documentation, neuron-explorer and profile-schema-reference
//! (SDK 2.32).

use super::inspect;
use super::nrt_benchmark::Nrtpy;
use crate::dataset::graph::COUNTERS;
use crate::dataset::network::Times;
use crate::profiling::tool::Tools;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The tools, the newer one first; flags are the same.
const PROGRAMS: [&str; 2] = ["neuron-explorer", "neuron-profile"];

/// A graph as it ran on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceProfile {
    /// Milliseconds on the device, gaps included, host excluded.
    pub times: Times,
    /// How it was measured.
    pub route: String,
    /// Of [`COUNTERS`], those that were there.
    pub counters: BTreeMap<String, f64>,
}

/// Captures the second execution of `neff` and reads its summary. Where that fails, the runtime's own
/// benchmark; where that fails too, the capture that the runtime made by itself when the graph first
/// ran, if the environment had it make one.
///
/// # Errors
/// One line: no tool, or what each said.
pub fn device_time(
    tools: &Tools,
    nrtpy: &Nrtpy<'_>,
    neff: &Path,
    folder: &Path,
) -> Result<DeviceProfile, String> {
    let program = PROGRAMS.into_iter().find(|name| tools.find(name).is_some());
    let captured = match program {
        None => Err("neither neuron-explorer nor neuron-profile is on the PATH".to_owned()),
        Some(program) => Profiler { tools, program }.device_time(neff, folder),
    };
    captured
        .or_else(|why| benchmark(nrtpy, neff).map_err(|nrtpy| format!("{why}; {nrtpy}")))
        .or_else(|why| {
            let dir = tools.inspect.as_deref().filter(|_| program.is_some());
            let (neff, ntff) = dir.and_then(|dir| inspect::capture(dir, neff)).ok_or(&why)?;
            let tool = Profiler { tools, program: program.ok_or(&why)? };
            let route = "the runtime's capture of the first execution (NEURON_RT_INSPECT)";
            tool.view(&neff, &ntff, route.into())
        })
}

/// By the runtime's benchmark, which has no counters.
fn benchmark(nrtpy: &Nrtpy<'_>, neff: &Path) -> Result<DeviceProfile, String> {
    let ms = nrtpy.milliseconds(neff)?;
    Ok(DeviceProfile {
        times: Times::of(&ms).ok_or("nrtpy: no run was timed")?,
        route: "nrtpy benchmark on the device".into(),
        counters: BTreeMap::new(),
    })
}

/// Either program.
struct Profiler<'a> {
    tools: &'a Tools,
    program: &'static str,
}

impl Profiler<'_> {
    fn run(&self, args: &[&str]) -> Result<String, String> {
        let program = self.program;
        let output = self.tools.run(program, args).map_err(|e| format!("{program}: {e}"))?;
        output.success().map_err(|e| format!("{program} {}: {e}", args[0]))
    }

    fn device_time(&self, neff: &Path, folder: &Path) -> Result<DeviceProfile, String> {
        let ntff = self.capture(neff, folder)?;
        self.view(neff, &ntff, format!("{} capture of the second execution", self.program))
    }

    /// The profile of the second execution.
    fn capture(&self, neff: &Path, folder: &Path) -> Result<PathBuf, String> {
        let (neff, session) = (neff.display().to_string(), folder.join("profile.ntff"));
        let file = session.display().to_string();
        let twice = ["--num-exec", "2", "--profile-nth-exec", "2"];
        self.run(&[&["capture", "-n", &neff, "-s", &file], &twice[..]].concat())?;
        // Executions and ranks get names of their own beside the one that was asked for.
        let names = ["profile_exec_2", "profile_rank_0_exec_2", "profile", "profile_rank_0"];
        let places = names.iter().map(|name| folder.join(format!("{name}.ntff")));
        places.into_iter().find(|path| path.is_file()).ok_or_else(|| {
            format!("{} capture left no profile in {}", self.program, folder.display())
        })
    }

    /// The summary of a profile, as JSON or, where the program has none, as text.
    fn view(&self, neff: &Path, ntff: &Path, route: String) -> Result<DeviceProfile, String> {
        let (neff, ntff) = (neff.display().to_string(), ntff.display().to_string());
        let of =
            |format: &str| self.run(&["view", "-n", &neff, "-s", &ntff, "--output-format", format]);
        let summary = of("summary-json")
            .and_then(|text| summary(&text))
            .or_else(|why| of("summary-text").ok().and_then(|text| summary_text(&text)).ok_or(why));
        let summary = summary.map_err(|e| format!("{} view: {e}", self.program))?;
        let figure = |name: &str| summary.get(name).and_then(number);
        let seconds =
            figure("total_time").filter(|s| *s > 0.0).ok_or("its summary has no total_time")?;
        let counters = COUNTERS.iter().filter_map(|name| Some(((*name).to_owned(), figure(name)?)));
        let times = Times::average(seconds * 1e3);
        Ok(DeviceProfile { times, route, counters: counters.collect() })
    }
}

/// The first block of a `summary-text`: a line with the name of the run, then a key and a value on
/// each line that is indented. `None` when it has no `total_time`.
pub fn summary_text(text: &str) -> Option<Map<String, Value>> {
    let mut map = Map::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // The next run begins.
            _ if !line.starts_with(char::is_whitespace) && map.contains_key("total_time") => break,
            [key, value] if line.starts_with(char::is_whitespace) => {
                map.insert(key.to_owned(), value.into());
            }
            _ => {}
        }
    }
    map.contains_key("total_time").then_some(map)
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

    const TEXT: &str = "\
n_e378c855a4f6486b3d3bb00d39fad58ee9b175_90860660587470
    total_time                                     0.014276642922
    dma_active_time_percent                        0.2798723112170025
    instance_type                                  trn1.2xlarge
n_2
    total_time                                     1.5
";

    #[test]
    fn the_text_holds_the_same_and_its_first_run_counts() {
        let entry = summary_text(TEXT).unwrap();
        assert_eq!(entry.get("total_time").and_then(number), Some(0.014276642922));
        assert_eq!(entry.get("dma_active_time_percent").and_then(number), Some(0.2798723112170025));
        assert_eq!(entry.get("instance_type").and_then(number), None);
        for text in ["", "n_1\n", "total_time 3\n", "    total_time\n"] {
            assert_eq!(summary_text(text), None, "{text}");
        }
    }

    const NO_PYTHON: &str = "nrtpy: cannot be started: No such file or directory (os error 2)";

    /// An interpreter that is not there.
    fn no_nrtpy() -> Nrtpy<'static> {
        let deadline = std::time::Duration::from_secs(20);
        Nrtpy { python: Path::new("/nowhere/python3"), lnc: None, runs: 3, deadline }
    }

    #[cfg(unix)]
    #[test]
    fn ranks_text_and_the_runtimes_own_capture_stand_in() {
        use crate::profiling::tool::testing::script;
        let dir = tempfile::tempdir().unwrap();
        let mut tools = Tools::only(dir.path(), dir.path());
        let neff = dir.path().join("graph.neff");
        std::fs::write(&neff, "graph").unwrap();
        let time = |tools: &Tools| device_time(tools, &no_nrtpy(), &neff, dir.path());
        // An older program: a name for each rank, text only.
        let body = format!(
            "case $1 in\ncapture) shift; while [ $# -gt 0 ]; do [ $1 = -s ] && d=$(dirname $2); shift; done; touch $d/profile_rank_0.ntff $d/profile_rank_1.ntff;;\n\
             view) case \"$*\" in *profile_rank_0.ntff*summary-text*) cat <<'END'\n{TEXT}\nEND\n;; *) echo 'unknown format' >&2; exit 2;; esac;;\nesac"
        );
        script(dir.path(), "neuron-profile", &body);
        assert_eq!(time(&tools).unwrap().times.median, 14.276642922);
        // No capture, but the runtime made one.
        let body = format!(
            "case $1 in\ncapture) echo 'device busy' >&2; exit 1;;\n\
             view) case \"$*\" in *neff_7.neff*7_instid_0_vnc_0.ntff*summary-json*) cat <<'END'\n{SUMMARY}\nEND\n;; *) exit 3;; esac;;\nesac"
        );
        script(dir.path(), "neuron-profile", &body);
        std::fs::remove_file(dir.path().join("profile_rank_0.ntff")).unwrap();
        let busy = format!("neuron-profile capture: device busy (exit code 1); {NO_PYTHON}");
        assert_eq!(time(&tools).unwrap_err(), busy);
        tools.inspect = Some(dir.path().join("inspect"));
        assert_eq!(time(&tools).unwrap_err(), busy, "nothing was captured");
        let session = dir.path().join("inspect/i-0125_pid_9");
        std::fs::create_dir_all(&session).unwrap();
        std::fs::write(session.join("neff_7.neff"), "graph").unwrap();
        assert_eq!(time(&tools).unwrap_err(), busy, "a graph that never ran");
        std::fs::write(session.join("7_instid_0_vnc_0.ntff"), "").unwrap();
        let profile = time(&tools).unwrap();
        assert_eq!(profile.times.median, 14.2766);
        assert!(profile.route.contains("NEURON_RT_INSPECT"), "{}", profile.route);
    }

    #[cfg(unix)]
    #[test]
    fn both_names_of_the_tool_work_and_its_failures_are_told() {
        use crate::profiling::tool::testing::script;
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools::only(dir.path(), dir.path());
        let neff = dir.path().join("graph.neff");
        let time = || device_time(&tools, &no_nrtpy(), &neff, dir.path());
        assert!(time().unwrap_err().contains("neither"));
        let body = format!(
            "case $1 in\ncapture) shift; while [ $# -gt 0 ]; do [ $1 = -s ] && d=$(dirname $2); shift; done; touch $d/profile_exec_2.ntff;;\n\
             view) case \"$*\" in *profile_exec_2.ntff*summary-json*) cat <<'END'\n{SUMMARY}\nEND\n;; *) exit 3;; esac;;\nesac"
        );
        for name in ["neuron-profile", "neuron-explorer"] {
            script(dir.path(), name, &body);
            let profile = time().unwrap();
            assert_eq!(profile.times.median, 14.2766);
            assert!(profile.route.starts_with(name), "{}", profile.route);
            assert_eq!(profile.counters["tensor_engine_active_time_percent"], 0.2747);
        }
        script(dir.path(), "neuron-explorer", "echo 'no device' >&2; exit 1");
        let both = format!("neuron-explorer capture: no device (exit code 1); {NO_PYTHON}");
        assert_eq!(time().unwrap_err(), both);
    }

    /// nrtpy and numpy as a graph's benchmark uses them: inputs by name, a run's times as they are.
    const NRTPY: &str = "
class Info:
    def __init__(self, size): self.size = size
class NrtpyTensor:
    @classmethod
    def from_numpy(cls, array, name=None, core_id=0): return (name, len(array))
class Result:
    def __init__(self, n): self.durations_ms = [14.5] * (n - 1) + [20.0]
class NrtpyModel:
    input_tensors_info = {'x': Info(128), 'start': Info(8)}
    @classmethod
    def load_from_neff(cls, path): assert open(path).read() == 'graph', path; return cls()
    def benchmark(self, inputs, warmup_iter, benchmark_iter, mode):
        assert inputs == {'x': ('x', 128), 'start': ('start', 8)} and mode == 'device', inputs
        return Result(benchmark_iter)
def configure(visible_cores=None): print('nrt: a line of the runtime')
";

    #[cfg(unix)]
    #[test]
    fn without_a_profiler_the_runtime_times_the_graph_itself() {
        use crate::profiling::tool::testing::script;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("graph.neff"), "graph").unwrap();
        std::fs::write(at("other.neff"), "rubbish").unwrap();
        std::fs::write(at("nrtpy.py"), NRTPY).unwrap();
        std::fs::write(at("numpy.py"), "uint8 = 1\ndef zeros(n, dtype): return bytes(n)\n")
            .unwrap();
        let body = format!("PYTHONPATH={} exec python3 \"$@\"", dir.path().display());
        script(dir.path(), "python", &body);
        let (python, tools) = (at("python"), Tools::only(dir.path(), dir.path()));
        let nrtpy = Nrtpy { python: &python, runs: 5, ..no_nrtpy() };
        let time = |neff| device_time(&tools, &nrtpy, &at(neff), dir.path());
        let profile = time("graph.neff").unwrap();
        assert_eq!((profile.times.median, profile.times.max), (14.5, Some(20.0)));
        assert_eq!(profile.route, "nrtpy benchmark on the device");
        let both = time("other.neff").unwrap_err();
        assert!(both.contains("neither") && both.contains("nrtpy: AssertionError"), "{both}");
        std::fs::remove_file(at("nrtpy.py")).unwrap();
        assert!(time("graph.neff").unwrap_err().ends_with("No module named 'nrtpy'"));
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
