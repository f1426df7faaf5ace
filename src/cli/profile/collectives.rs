//! `vidur profile collectives`: time what devices do together, or read what others timed.

mod done;
mod from_files;
mod measure;
mod node;
mod two_nodes;

pub(super) use done::{Done, noise_cell};

use super::super::Failure;
use super::super::table;
use super::Common;
use super::command_line;
use crate::dataset::network::{Collective, NetworkRun};
use crate::profiling::detect::Detection;
use clap::ValueEnum;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to time.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [CollectiveArg::AllReduce, CollectiveArg::SendRecv], value_name = "NAME,NAME")]
    collective: Vec<CollectiveArg>,
    /// Workers on each node [default: 2, 4, 8 and so on, as far as the devices go].
    #[arg(long, value_delimiter = ',', value_name = "N,N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    num_workers_per_node: Vec<u32>,
    /// Nodes that the workers are spread over: of a file given with --from, or where the same
    /// command runs on each (torch; CPUs without it for send_recv between two).
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    num_nodes: u32,
    /// Number of this node, from 0; node 0 writes the file.
    #[arg(long, default_value_t = 0, value_name = "N")]
    node_rank: u32,
    /// Address of node 0 and a port that is free there.
    #[arg(long, value_name = "HOST:PORT")]
    master_addr: Option<String>,
    /// How long nodes wait for each other.
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = crate::cli::profile::parse_limit)]
    meet_timeout: Duration,
    /// GPUs that may take part, by number [default: all].
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    devices: Vec<u32>,
    /// Python interpreter that has torch.
    #[arg(long, default_value = "python3", value_name = "PATH")]
    python: PathBuf,
    /// Read these files of nccl-tests or nccom-test (text or JSON) instead of measuring.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    from: Vec<PathBuf>,
    /// What to measure with [default: the vendor's tool for the devices that are here].
    #[arg(long, value_enum)]
    backend: Option<BackendArg>,
    /// Name of the wiring, the folder to write to [default: as the catalogue calls it].
    #[arg(long, value_name = "NAME")]
    network_device: Option<String>,
    /// Devices of a node [default: as detected, or as many as the most workers].
    #[arg(long, value_name = "N")]
    devices_per_node: Option<u32>,
    /// Smallest message.
    #[arg(long, default_value = "1KiB", value_name = "SIZE", value_parser = parse_size)]
    min_size: u64,
    /// Largest message.
    #[arg(long, default_value = "64MiB", value_name = "SIZE", value_parser = parse_size)]
    max_size: u64,
    /// Samples of every size, at least.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeats: u32,
    /// Folder to write to.
    #[arg(long, short, default_value = "data/profiling", value_name = "DIR")]
    pub(super) output_dir: PathBuf,
    /// Folder of devices and nodes that go before the built-in ones [default: data, where it exists].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Measure anew what is there already; with --from, replace it.
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum CollectiveArg {
    AllReduce,
    AllGather,
    ReduceScatter,
    AllToAll,
    SendRecv,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BackendArg {
    /// Threads of this machine, through shared memory.
    Cpu,
    /// nccl-tests (`all_reduce_perf` and its sisters on the PATH).
    NcclTests,
    /// nccom-test, of the Neuron tools.
    NccomTest,
    /// torch.distributed: NCCL on GPUs, gloo on CPUs.
    Torch,
}

impl From<CollectiveArg> for Collective {
    fn from(arg: CollectiveArg) -> Collective {
        match arg {
            CollectiveArg::AllReduce => Collective::AllReduce,
            CollectiveArg::AllGather => Collective::AllGather,
            CollectiveArg::ReduceScatter => Collective::ReduceScatter,
            CollectiveArg::AllToAll => Collective::AllToAll,
            CollectiveArg::SendRecv => Collective::SendRecv,
        }
    }
}

/// `64MiB`, `1KiB`, `4096`: powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(format!("unknown unit `{unit}`; give for example 4096, 64KiB or 64MiB")),
    };
    let number: u64 = number.parse().map_err(|_| "expected a number such as 64MiB".to_owned())?;
    number
        .checked_mul(1 << shift)
        .filter(|&bytes| bytes > 0 && bytes <= 1 << 40)
        .ok_or_else(|| "expected between 1 byte and 1024 GiB".into())
}

/// What `vidur profile all` measures: all-reduce and hand-over among the devices of this node.
fn args_for_all(common: &Common, network_device: Option<&str>, cpu: bool) -> Args {
    Args {
        collective: vec![CollectiveArg::AllReduce, CollectiveArg::SendRecv],
        num_workers_per_node: Vec::new(),
        num_nodes: 1,
        node_rank: 0,
        master_addr: None,
        meet_timeout: Duration::from_secs(300),
        // The workers of a CPU are not numbered.
        devices: if cpu { Vec::new() } else { common.device.devices.clone() },
        python: common.device.python.clone(),
        from: Vec::new(),
        backend: cpu.then_some(BackendArg::Cpu),
        network_device: network_device.map(str::to_owned),
        devices_per_node: None,
        min_size: 1 << 10,
        max_size: 64 << 20,
        repeats: 20,
        output_dir: common.output_dir.clone(),
        data_dir: common.data_dir.clone(),
        force: common.force,
    }
}

/// Measures for `vidur profile all`; with --dry-run says what it would. `None` where there is one device
/// only, which has nobody to talk to.
pub(super) fn for_all(
    common: &Common,
    network_device: Option<&str>,
    cpu: bool,
    found: &Detection,
) -> Result<Option<Vec<Done>>, Failure> {
    let args = args_for_all(common, network_device, cpu);
    if node::Devices::choose(&args, found)?.count < 2 {
        return Ok(None);
    }
    if common.dry_run {
        table::print(&measure::plan(&args, found)?)?;
        return Ok(Some(Vec::new()));
    }
    measure::measured(&args, found).map(Some)
}

/// Runs `vidur profile collectives`.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.min_size > args.max_size {
        return Err(Failure::user("--min-size is larger than --max-size; exchange them"));
    }
    if !args.from.is_empty() {
        return from_files::import(args);
    }
    let found = node::detect(args)?;
    let done = measure::measured(args, &found)?;
    // Node 0 has the file.
    if args.node_rank == 0 && done.iter().any(|done| done.rows() > 0) {
        done::print_tables(&done)?;
    }
    done::verdict(&done)
}

fn network_run(tool: String, rows: usize, notes: Vec<String>) -> NetworkRun {
    let finished = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    NetworkRun { command: command_line(), finished, tool, rows, files: Vec::new(), notes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("1k"), Ok(1024));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "MiB", "1TB", "0", "-1", "99999999999GiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
