//! The machine we run on, as Linux describes it; elsewhere, what the standard library knows.

use std::collections::BTreeSet;
use std::fs;

/// What is known about this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// CPU model as the kernel names it.
    pub cpu_model: String,
    /// Who makes the CPU.
    pub cpu_vendor: String,
    /// Physical cores that this process may use.
    pub cores: u32,
    /// Memory of the machine in bytes.
    pub memory_bytes: u64,
    /// Bytes of the largest cache that a core sees.
    pub last_level_cache_bytes: u64,
    /// Operating system and its release.
    pub os: String,
}

/// Taken where the system does not say.
const DEFAULT_CACHE_BYTES: u64 = 32 << 20;
const DEFAULT_MEMORY_BYTES: u64 = 8 << 30;

impl Host {
    /// Reads /proc and /sys; what is missing there gets a cautious default.
    pub fn detect() -> Host {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let usable = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let physical = physical_cores(&cpuinfo).unwrap_or(usable);
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Host {
            cpu_model: field(&cpuinfo, "model name")
                .unwrap_or_else(|| format!("{} CPU", std::env::consts::ARCH)),
            cpu_vendor: match field(&cpuinfo, "vendor_id").as_deref() {
                Some("GenuineIntel") => "Intel".into(),
                Some("AuthenticAMD") => "AMD".into(),
                Some(other) => other.into(),
                None => "unknown".into(),
            },
            cores: usable.min(physical).max(1),
            memory_bytes: meminfo("MemTotal").unwrap_or(DEFAULT_MEMORY_BYTES),
            last_level_cache_bytes: last_level_cache().unwrap_or(DEFAULT_CACHE_BYTES),
            os: format!("{} {}", std::env::consts::OS, release.trim()).trim_end().to_owned(),
        }
    }

    /// A name for this machine's profiles: `cpu-<maker>-<family>-<cores>c`.
    pub fn sku(&self, threads: u32) -> String {
        sku_of(&self.cpu_model, threads)
    }
}

/// Bytes that can be had without swapping.
pub fn available_memory_bytes() -> u64 {
    meminfo("MemAvailable").unwrap_or(DEFAULT_MEMORY_BYTES / 2)
}

/// `cpu-intel-xeon-2c` from "Intel(R) Xeon(R) Processor" and 2.
fn sku_of(cpu_model: &str, cores: u32) -> String {
    let plain = cpu_model.split('@').next().unwrap_or_default().to_lowercase();
    let plain = plain.replace("(r)", " ").replace("(tm)", " ");
    let words = plain
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|w| !w.is_empty() && !["cpu", "processor", "core"].contains(w))
        .filter(|w| !w.ends_with("ghz"));
    let mut slug = String::from("cpu");
    for word in words {
        slug.push('-');
        slug.push_str(word);
    }
    format!("{slug}-{cores}c")
}

fn field(cpuinfo: &str, name: &str) -> Option<String> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name && !value.trim().is_empty()).then(|| value.trim().to_owned())
    })
}

/// Distinct (package, core) pairs; `None` where the kernel does not number them.
fn physical_cores(cpuinfo: &str) -> Option<u32> {
    let cores: BTreeSet<(String, String)> = cpuinfo
        .split("\n\n")
        .filter_map(|cpu| Some((field(cpu, "physical id")?, field(cpu, "core id")?)))
        .collect();
    u32::try_from(cores.len()).ok().filter(|&n| n > 0)
}

fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let value = field(&text, name)?;
    value.strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

fn last_level_cache() -> Option<u64> {
    (0..8)
        .filter_map(|i| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size");
            cache_size(fs::read_to_string(path).ok()?.trim())
        })
        .max()
}

/// "266240K" or "32M" in bytes.
fn cache_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok().map(|n| n << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sku_names_are_short_and_fit_for_folders() {
        assert_eq!(sku_of("Intel(R) Xeon(R) Processor", 2), "cpu-intel-xeon-2c");
        assert_eq!(sku_of("AMD EPYC 7B13 64-Core Processor", 8), "cpu-amd-epyc-7b13-64-8c");
        assert_eq!(sku_of("Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz", 6), "cpu-intel-i7-8700-6c");
    }

    #[test]
    fn hyperthreads_are_not_cores() {
        let cpu = |c: u32| format!("processor : 0\nphysical id\t: 0\ncore id\t\t: {c}\n");
        let text = [cpu(0), cpu(1), cpu(0), cpu(1)].join("\n");
        assert_eq!(physical_cores(&text), Some(2));
        assert_eq!(physical_cores("processor : 0\n"), None);
    }

    #[test]
    fn cache_sizes_have_suffixes() {
        assert_eq!(cache_size("266240K"), Some(272_629_760));
        assert_eq!(cache_size("32M"), Some(33_554_432));
        assert_eq!(cache_size("x"), None);
    }
}
