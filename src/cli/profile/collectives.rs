//! `vidur profile collectives`: time what devices do together, or read what others timed.

mod from_files;
mod two_nodes;

use super::super::Failure;
use super::super::devices;
use super::super::table::{self, number, render, text, window_width};
use super::{command_line, shown};
use crate::dataset::network::{Collective, NetworkKey, NetworkRun, NetworkTable, Times};
use crate::profiling::backend::torch::{TorchBackend, TorchConfig};
use crate::profiling::detect::{self, Detection, Kind};
use crate::profiling::host::Host;
use crate::profiling::network::distributed::{self, Group};
use crate::profiling::network::ring;
use crate::profiling::network::tcp;
use crate::profiling::network::tools::{Sizes, Tool};
use crate::profiling::tool::Tools;
use crate::run::lookup;
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
    /// Measure anew what is there already.
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

/// What `vidur profile all` measures: all-reduce and hand-over among the devices of this node. Gives
/// path and rows of each file.
pub(super) fn for_all(
    output_dir: &std::path::Path,
    data_dir: Option<&std::path::Path>,
    network_device: Option<&str>,
    python: &std::path::Path,
    cpu: bool,
    force: bool,
) -> Result<Vec<(PathBuf, usize)>, Failure> {
    let args = Args {
        collective: vec![CollectiveArg::AllReduce, CollectiveArg::SendRecv],
        num_workers_per_node: Vec::new(),
        num_nodes: 1,
        node_rank: 0,
        master_addr: None,
        meet_timeout: Duration::from_secs(300),
        python: python.to_owned(),
        from: Vec::new(),
        backend: cpu.then_some(BackendArg::Cpu),
        network_device: network_device.map(str::to_owned),
        devices_per_node: None,
        min_size: 1 << 10,
        max_size: 64 << 20,
        repeats: 20,
        output_dir: output_dir.to_owned(),
        data_dir: data_dir.map(std::path::Path::to_owned),
        force,
    };
    let rows =
        |done: &Done| done.groups.iter().map(|&(n, each)| done.table.medians(n, each).len()).sum();
    Ok(measured(&args)?.iter().map(|done| (done.table.path().to_owned(), rows(done))).collect())
}

/// Runs `vidur profile collectives`.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.min_size > args.max_size {
        return Err(Failure::user("--min-size is larger than --max-size; exchange them"));
    }
    match args.from.is_empty() {
        true => measure(args),
        false => from_files::import(args),
    }
}

fn network_run(tool: String, rows: usize, notes: Vec<String>) -> NetworkRun {
    let finished = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    NetworkRun { command: command_line(), finished, tool, rows, files: Vec::new(), notes }
}

/// The largest messages of a slow network take seconds each.
const TOOL_DEADLINE: Duration = Duration::from_secs(600);

/// What to measure with.
enum Means {
    Ring,
    Torch(Box<TorchBackend>),
    Tool(Tool),
    Tcp(tcp::Link),
}

fn measure(args: &Args) -> Result<(), Failure> {
    let done = measured(args)?;
    // Node 0 has the file.
    if args.node_rank > 0 { Ok(()) } else { print_tables(&done) }
}

/// Measures on this machine.
fn measured(args: &Args) -> Result<Vec<Done>, Failure> {
    let catalog = devices::open(args.data_dir.as_deref())?;
    let mut tools = Tools::system();
    tools.deadline = TOOL_DEADLINE;
    let kind = args.backend.map(|backend| match backend {
        BackendArg::Cpu => Some(Kind::Cpu),
        BackendArg::NcclTests => Some(Kind::Cuda),
        BackendArg::NccomTest => Some(Kind::Neuron),
        BackendArg::Torch => None,
    });
    let found =
        detect::detect(&Tools::system(), &catalog, kind.flatten()).map_err(Failure::user)?;
    let torch = args.backend == Some(BackendArg::Torch);
    let native = two_nodes::native(args, found.backend, torch)?;
    // nccl-tests is the exact way on GPUs; without it torch, which is there for the operators.
    let nccl =
        tools.find("all_reduce_perf").is_some() || args.backend == Some(BackendArg::NcclTests);
    let mut means = match found.backend {
        Kind::Neuron if !torch => Means::Tool(Tool::NccomTest),
        Kind::Cuda if nccl && !torch => Means::Tool(Tool::NcclTests),
        Kind::Cuda => Means::Torch(Box::new(workers(args, &found, "cuda")?)),
        Kind::Cpu if native && args.node_rank == 1 => {
            two_nodes::serve(args)?;
            return Ok(Vec::new());
        }
        Kind::Cpu if native => Means::Tcp(two_nodes::wait(args)?),
        Kind::Cpu if !torch => Means::Ring,
        Kind::Cpu => Means::Torch(Box::new(workers(args, &found, "cpu")?)),
        Kind::Neuron => {
            return Err(Failure::user(
                "Neuron's collectives are measured by nccom-test; leave --backend out",
            ));
        }
        Kind::Rocm => Means::Torch(Box::new(workers(args, &found, "cuda")?)),
    };
    let way = if torch { "gloo" } else { "shm" };
    let way = if native { "tcp" } else { way };
    let name = network_device(args.network_device.as_deref(), &found, way)?;
    let devices = match found.backend {
        // Threads of a CPU sum among its cores.
        Kind::Cpu => found.devices.iter().filter_map(|d| d.cores).sum(),
        _ => found.num_workers(),
    };
    let node = args.devices_per_node.unwrap_or(devices);
    let mut done = Vec::new();
    for &arg in &args.collective {
        let collective = Collective::from(arg);
        let mut table =
            NetworkTable::open(&args.output_dir, &name, collective).map_err(Failure::user)?;
        let mut groups = Vec::new();
        for workers in worker_counts(args, collective, devices)? {
            measure_group(args, &mut means, &tools, collective, workers, node, &mut table)?;
            groups.push((workers * args.num_nodes, workers));
        }
        done.push(Done { collective, table, groups });
    }
    if let Means::Tcp(link) = &mut means {
        link.finish().map_err(Failure::user)?;
    }
    Ok(done)
}

/// A torch worker for each device of this node, as far as workers are asked for.
fn workers(args: &Args, found: &Detection, kind: &str) -> Result<TorchBackend, Failure> {
    let host = Host::detect();
    let devices = match found.backend {
        Kind::Cpu => host.cores,
        _ => found.devices.len() as u32,
    };
    let most = args.num_workers_per_node.iter().copied().max().unwrap_or(devices);
    let names = |n: u32| if kind == "cpu" { "cpu".to_owned() } else { format!("{kind}:{n}") };
    let config = TorchConfig {
        python: args.python.clone(),
        devices: (0..most.max(2).min(devices)).map(names).collect(),
        dtype: None,
        threads: (kind == "cpu").then_some(1),
        cache_bytes: host.last_level_cache_bytes,
        plain_kernels: true,
        limit: TOOL_DEADLINE,
        seed: 42,
        lnc: None,
    };
    TorchBackend::new(config, &host).map_err(Failure::user)
}

/// The folder to write to.
fn network_device(asked: Option<&str>, found: &Detection, way: &str) -> Result<String, Failure> {
    if let Some(name) = asked {
        return Ok(name.to_owned());
    }
    match (found.backend, &found.network_device, &found.store_as) {
        (Kind::Cpu, _, Some(sku)) => Ok(format!("{sku}-{way}")),
        (_, Some(name), _) => Ok(name.clone()),
        // The cores of one chip.
        (Kind::Neuron, None, Some(sku)) if found.devices.len() == 1 => Ok(lookup::chip(sku)),
        _ => Err(Failure::user(
            "the catalogue has no name for the wiring of this node; give --network-device (`vidur devices --detect` tells more)",
        )),
    }
}

fn worker_counts(args: &Args, collective: Collective, devices: u32) -> Result<Vec<u32>, Failure> {
    if collective == Collective::SendRecv && args.num_nodes == 2 {
        return Ok(vec![1]);
    }
    if collective == Collective::SendRecv {
        return match devices {
            0 | 1 => Err(Failure::user("send_recv needs two devices on this node; there is one")),
            _ => Ok(vec![2]),
        };
    }
    let asked = &args.num_workers_per_node;
    if let Some(&many) = asked.iter().find(|&&n| n > devices) {
        return Err(Failure::user(format!(
            "--num-workers-per-node {many}: this node has {devices} devices"
        )));
    }
    // One worker has nobody to talk to: the list of Vidur's users begins with it all the same.
    let counts: Vec<u32> = match asked.is_empty() {
        false => asked.iter().copied().filter(|&n| n * args.num_nodes > 1).collect(),
        true => {
            std::iter::successors(Some(2), |n| Some(n * 2)).take_while(|&n| n <= devices).collect()
        }
    };
    match counts.is_empty() {
        true => Err(Failure::user("a collective needs at least 2 workers, and as many devices")),
        false => Ok(counts),
    }
}

/// Measures one number of workers; what is there already stays, unless forced.
fn measure_group(
    args: &Args,
    means: &mut Means,
    tools: &Tools,
    collective: Collective,
    workers: u32,
    node: u32,
    table: &mut NetworkTable,
) -> Result<(), Failure> {
    let sizes = Sizes { min: args.min_size, max: args.max_size };
    let key = |bytes| NetworkKey { workers: workers * args.num_nodes, per_node: workers, bytes };
    let missing: Vec<u64> = sizes
        .list()
        .into_iter()
        .filter(|&bytes| args.force || !table.contains(key(bytes)))
        .collect();
    // The other node of a group cannot know what is here: it is met in any case.
    let met = args.num_nodes > 1 && matches!(means, Means::Torch(_));
    if missing.is_empty() && !met {
        return Ok(());
    }
    let sizes_to_go = if met { sizes.list().len() } else { missing.len() };
    eprintln!("{} of {} workers: {sizes_to_go} sizes", collective.name(), key(0).workers);
    let (tool, rows, notes) = match means {
        Means::Ring => {
            for &bytes in &missing {
                let ms = ring::measure(collective, workers, bytes, effort(args))
                    .map_err(Failure::user)?;
                if let Some(times) = Times::of(&ms) {
                    table.put(key(bytes), times, node);
                    // Each row is on disk as soon as it is measured.
                    table.save().map_err(Failure::user)?;
                }
            }
            (ring::NAME.to_owned(), missing.len(), Vec::new())
        }
        Means::Tcp(link) => {
            for &bytes in &missing {
                let ms = link.measure(bytes, effort(args)).map_err(Failure::user)?;
                if let Some(times) = Times::of(&ms) {
                    table.put(key(bytes), times, node);
                    table.save().map_err(Failure::user)?;
                }
            }
            (tcp::NAME.to_owned(), missing.len(), Vec::new())
        }
        Means::Torch(backend) => {
            let master = match args.num_nodes {
                2.. => two_nodes::master(args)?.to_owned(),
                _ => distributed::local_master().map_err(Failure::user)?,
            };
            let group = Group {
                per_node: workers,
                nodes: args.num_nodes,
                node_rank: args.node_rank,
                master,
            };
            // Both nodes must ask for the same sizes, whatever one of them has.
            let all = if met { sizes.list() } else { missing };
            let readings = distributed::measure(
                backend,
                collective,
                &group,
                &all,
                args.repeats,
                args.meet_timeout,
            )
            .map_err(Failure::user)?;
            if args.node_rank > 0 {
                eprintln!("node 0 writes the file; this node is done");
                return Ok(());
            }
            for &(bytes, times) in &readings.points {
                table.put(key(bytes), times, node);
            }
            (readings.tool, readings.points.len(), readings.notes)
        }
        Means::Tool(tool) => {
            let sizes = Sizes { min: missing[0], ..sizes };
            let readings = tool
                .measure(tools, collective, workers, sizes, args.repeats)
                .map_err(Failure::user)?;
            for &(bytes, times) in &readings.points {
                table.put(key(bytes), times, node);
            }
            readings.notes.iter().for_each(|note| eprintln!("note: {note}"));
            (readings.tool, readings.points.len(), readings.notes)
        }
    };
    table.finish(network_run(tool, rows, notes)).map_err(Failure::user)
}

/// A file that was added to.
struct Done {
    collective: Collective,
    table: NetworkTable,
    /// Workers in all and on each node.
    groups: Vec<(u32, u32)>,
}

/// What is in the files now.
fn print_tables(done: &[Done]) -> Result<(), Failure> {
    let columns = [
        text("collective"),
        number("workers"),
        number("rows"),
        text("bytes"),
        number("us at smallest"),
        number("us at largest"),
        number("bus GB/s"),
    ];
    let mut rows = Vec::new();
    let mut paths = String::new();
    for Done { collective, table, groups } in done {
        for &(workers, per_node) in groups {
            let medians = table.medians(workers, per_node);
            let (Some(first), Some(last)) = (medians.first(), medians.last()) else { continue };
            rows.push(vec![
                collective.name().to_owned(),
                workers.to_string(),
                medians.len().to_string(),
                format!("{} to {}", first.0, last.0),
                format!("{:.1}", first.1 * 1e3),
                format!("{:.1}", last.1 * 1e3),
                format!("{:.2}", collective.bus_bandwidth(workers, last.0, last.1) / 1e9),
            ]);
        }
        paths.push_str(&format!("{}\n", shown(table.path())));
    }
    table::print(&format!("{}\n{paths}", render(&columns, &rows, window_width())))
}

/// How long to measure one size.
fn effort(args: &Args) -> ring::Effort {
    ring::Effort { repeats: args.repeats, min_time: Duration::from_millis(50) }
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
