//! What the Neuron runtime captures by itself under `NEURON_RT_INSPECT_*`: the first execution of every
//! NEFF on every core, in `<folder>/i-<instance>_pid_<pid>/` as `neff_<hash>.neff` and
//! `<hash>_instid_<i>_vnc_<n>.ntff`. Source: AWS Neuron documentation, neuron-explorer
//! environment-variables.rst (SDK 2.32) and the guide of Neuron Profiler 2.0.

use std::path::{Path, PathBuf};

/// The folder that the runtime captures to, where the environment has it capture devices:
/// `NEURON_RT_INSPECT_ENABLE=1` is the master switch, device profiles need `…_DEVICE_PROFILE=1` or
/// `model`. `NEURON_PROFILE`, of the first generation's SDK, captures nothing any more.
pub fn folder(variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let is = |name: &str, values: &[&str]| {
        variable(name).is_some_and(|value| values.contains(&value.trim()))
    };
    let on = is("NEURON_RT_INSPECT_ENABLE", &["1"])
        && is("NEURON_RT_INSPECT_DEVICE_PROFILE", &["1", "model"]);
    let named = variable("NEURON_RT_INSPECT_OUTPUT_DIR").filter(|name| !name.is_empty());
    on.then(|| named.unwrap_or_else(|| "output".into()).into())
}

/// The capture of `neff` below `folder`, of the lowest core: its NEFF there and its NTFF. Graphs that
/// were compiled but never ran have none.
pub fn capture(folder: &Path, neff: &Path) -> Option<(PathBuf, PathBuf)> {
    let wanted = std::fs::read(neff).ok()?;
    let mut sessions = entries(folder);
    sessions.retain(|path| name(path).starts_with("i-") && path.is_dir());
    // The newest process last: its captures are of this run.
    sessions.sort_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok());
    sessions.iter().rev().find_map(|session| {
        let files = entries(session);
        let same = files.iter().find(|path| {
            let size = path.metadata().map_or(0, |meta| meta.len());
            name(path).ends_with(".neff")
                && size == wanted.len() as u64
                && std::fs::read(path).is_ok_and(|bytes| bytes == wanted)
        })?;
        let hash = name(same).strip_prefix("neff_")?.strip_suffix(".neff")?.to_owned();
        let ours = files.iter().filter(|path| {
            let rest = name(path).strip_prefix(hash.as_str());
            rest.is_some_and(|rest| rest.starts_with("_instid_") && rest.ends_with(".ntff"))
        });
        let core = |path: &&PathBuf| -> Option<u32> {
            name(path).strip_suffix(".ntff")?.rsplit_once("_vnc_")?.1.parse().ok()
        };
        let first = ours.min_by_key(|path| core(path).unwrap_or(u32::MAX))?;
        Some((same.clone(), first.clone()))
    })
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_or(Vec::new(), |list| list.flatten().map(|entry| entry.path()).collect());
    paths.sort();
    paths
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_switches_are_needed_and_the_old_one_does_nothing() {
        let with = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> =
                set.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            folder(move |name| set.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
        };
        let (on, device) = ("NEURON_RT_INSPECT_ENABLE", "NEURON_RT_INSPECT_DEVICE_PROFILE");
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[("NEURON_PROFILE", "/tmp/p")]), None);
        assert_eq!(with(&[(on, "1")]), None);
        assert_eq!(with(&[(on, "1"), (device, "0")]), None);
        assert_eq!(with(&[(device, "1")]), None);
        assert_eq!(with(&[(on, "1"), (device, "session")]), None);
        assert_eq!(with(&[(on, "1"), (device, "1")]), Some("output".into()));
        let out = ("NEURON_RT_INSPECT_OUTPUT_DIR", "/tmp/p");
        assert_eq!(with(&[(on, "1"), (device, "model"), out]), Some("/tmp/p".into()));
    }

    #[test]
    fn captures_are_paired_by_hash_and_graphs_that_never_ran_have_none() {
        let dir = tempfile::tempdir().unwrap();
        let session = dir.path().join("i-012590440bb9fd263_pid_98399");
        std::fs::create_dir_all(&session).unwrap();
        let write = |name: &str, bytes: &str| std::fs::write(session.join(name), bytes).unwrap();
        for file in ["cpu_util.pb", "host_mem.pb", "ntrace.pb", "trace_info.pb"] {
            write(file, "");
        }
        write("neff_14382885777943380728.neff", "ours");
        write("neff_1014068936860577.neff", "mute");
        write("14382885777943380728_instid_0_vnc_10.ntff", "");
        write("14382885777943380728_instid_0_vnc_2.ntff", "");
        write("322059935237836_instid_0_vnc_0.ntff", "");
        let neff = |bytes: &str| {
            let path = dir.path().join("graph.neff");
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let (graph, ntff) = capture(dir.path(), &neff("ours")).unwrap();
        assert_eq!(name(&graph), "neff_14382885777943380728.neff");
        assert_eq!(name(&ntff), "14382885777943380728_instid_0_vnc_2.ntff");
        assert_eq!(capture(dir.path(), &neff("mute")), None);
        assert_eq!(capture(dir.path(), &neff("other")), None);
        assert_eq!(capture(&dir.path().join("nothing"), &neff("ours")), None);
    }
}
