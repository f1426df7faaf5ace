//! `vidur profile collectives`: time what devices do together, or read what others timed.

use super::super::Failure;
use super::super::devices;
use super::super::table::{self, number, render, text, window_width};
use super::{command_line, shown};
use crate::dataset::manifest::sha256_hex;
use crate::dataset::network::{Collective, NetworkKey, NetworkRun, NetworkTable, Times};
use crate::profiling::detect::{self, Detection, Kind};
use crate::profiling::network::tools::{Sizes, Tool};
use crate::profiling::network::{self, Readings, ring};
use crate::profiling::tool::Tools;
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
    /// Nodes that the workers of a file given with --from were spread over.
    #[arg(long, default_value_t = 1, value_name = "N", requires = "from", value_parser = clap::value_parser!(u32).range(1..=4096))]
    num_nodes: u32,
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

/// Runs `vidur profile collectives`.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.min_size > args.max_size {
        return Err(Failure::user("--min-size is larger than --max-size; exchange them"));
    }
    match args.from.is_empty() {
        true => measure(args),
        false => import(args),
    }
}

/// Reads files and adds what they hold.
fn import(args: &Args) -> Result<(), Failure> {
    let &[collective] = args.collective.as_slice() else {
        return Err(Failure::user("--from needs to know what was measured; give one --collective"));
    };
    let collective = Collective::from(collective);
    let name = args.network_device.as_deref().ok_or_else(|| {
        Failure::user(
            "--from needs to know where it was measured; give --network-device, such as h100_dgx",
        )
    })?;
    let stated = match args.num_workers_per_node.as_slice() {
        [] => None,
        [n] => Some(*n),
        _ => {
            return Err(Failure::user(
                "--from takes one --num-workers-per-node; read the files one by one",
            ));
        }
    };
    let mut table =
        NetworkTable::open(&args.output_dir, name, collective).map_err(Failure::user)?;
    let mut rows = Vec::new();
    let mut files = Vec::new();
    let mut notes = Vec::new();
    let mut tool = String::new();
    for path in &args.from {
        let bytes = std::fs::read(path)
            .map_err(|e| Failure::user(format!("{}: cannot be read: {e}", path.display())))?;
        let readings = network::read(&String::from_utf8_lossy(&bytes), collective)
            .map_err(|e| Failure::user(format!("{}: {e}", path.display())))?;
        let in_file = |message: String| Failure::user(format!("{}: {message}", path.display()));
        if let Some(other) = readings.collective.filter(|&other| other != collective) {
            return Err(in_file(format!("holds {}, not {}", other.name(), collective.name())));
        }
        let per_node = workers_per_node(&readings, stated, args.num_nodes).map_err(in_file)?;
        let workers = per_node * args.num_nodes;
        for &(bytes, times) in &readings.points {
            let key = NetworkKey { workers, per_node, bytes };
            table.put(key, times, args.devices_per_node.unwrap_or(per_node));
            rows.push(key);
        }
        files.push(format!("{} {}", path.display(), sha256_hex(&bytes)));
        notes.extend(readings.notes.iter().map(|note| format!("{}: {note}", path.display())));
        tool = readings.tool;
    }
    rows.sort_unstable();
    rows.dedup();
    notes.iter().for_each(|note| eprintln!("note: {note}"));
    let run = NetworkRun { files, ..network_run(tool, rows.len(), notes) };
    table.finish(run).map_err(Failure::user)?;
    let mut groups: Vec<(u32, u32)> = rows.iter().map(|key| (key.workers, key.per_node)).collect();
    groups.dedup();
    print_tables(&[Done { collective, table, groups }])
}

/// Workers of each node, from what the file tells and what the user says.
fn workers_per_node(readings: &Readings, stated: Option<u32>, nodes: u32) -> Result<u32, String> {
    match (readings.workers, stated) {
        (None, None) => {
            Err("does not tell how many workers took part; give --num-workers-per-node".into())
        }
        (None, Some(stated)) => Ok(stated),
        (Some(all), None) if all % nodes == 0 => Ok(all / nodes),
        (Some(all), None) => {
            Err(format!("has {all} workers, which {nodes} nodes do not share evenly"))
        }
        (Some(all), Some(stated)) if all == stated * nodes => Ok(stated),
        (Some(all), Some(stated)) => Err(format!(
            "has {all} workers; --num-workers-per-node {stated} on {nodes} nodes is another number"
        )),
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
    Tool(Tool),
}

fn measure(args: &Args) -> Result<(), Failure> {
    let catalog = devices::open(args.data_dir.as_deref())?;
    let mut tools = Tools::system();
    tools.deadline = TOOL_DEADLINE;
    let kind = args.backend.map(|backend| match backend {
        BackendArg::Cpu => Kind::Cpu,
        BackendArg::NcclTests => Kind::Cuda,
        BackendArg::NccomTest => Kind::Neuron,
    });
    let found = detect::detect(&Tools::system(), &catalog, kind).map_err(Failure::user)?;
    let means = match found.backend {
        Kind::Cpu => Means::Ring,
        Kind::Cuda => Means::Tool(Tool::NcclTests),
        Kind::Neuron => Means::Tool(Tool::NccomTest),
        Kind::Rocm => {
            return Err(Failure::user(
                "collectives of AMD devices cannot be run from here; read a file of rccl-tests with --from",
            ));
        }
    };
    let name = network_device(args.network_device.as_deref(), &found)?;
    let devices = match found.backend {
        // Cores are the devices of a CPU; Neuron's collectives run between cores.
        Kind::Cpu | Kind::Neuron => found.devices.iter().filter_map(|d| d.cores).sum(),
        _ => found.devices.len() as u32,
    };
    let node = args.devices_per_node.unwrap_or(devices);
    let mut done = Vec::new();
    for &arg in &args.collective {
        let collective = Collective::from(arg);
        let mut table =
            NetworkTable::open(&args.output_dir, &name, collective).map_err(Failure::user)?;
        let mut groups = Vec::new();
        for workers in worker_counts(args, collective, devices)? {
            measure_group(args, &means, &tools, collective, workers, node, &mut table)?;
            groups.push((workers, workers));
        }
        done.push(Done { collective, table, groups });
    }
    print_tables(&done)
}

/// The folder to write to.
fn network_device(asked: Option<&str>, found: &Detection) -> Result<String, Failure> {
    if let Some(name) = asked {
        return Ok(name.to_owned());
    }
    match (found.backend, &found.network_device, &found.store_as) {
        (Kind::Cpu, _, Some(sku)) => Ok(format!("{sku}-shm")),
        (_, Some(name), _) => Ok(name.clone()),
        _ => Err(Failure::user(
            "the catalogue has no name for the wiring of this node; give --network-device (`vidur devices --detect` tells more)",
        )),
    }
}

fn worker_counts(args: &Args, collective: Collective, devices: u32) -> Result<Vec<u32>, Failure> {
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
        false => asked.iter().copied().filter(|&n| n > 1).collect(),
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
    means: &Means,
    tools: &Tools,
    collective: Collective,
    workers: u32,
    node: u32,
    table: &mut NetworkTable,
) -> Result<(), Failure> {
    let sizes = Sizes { min: args.min_size, max: args.max_size };
    let key = |bytes| NetworkKey { workers, per_node: workers, bytes };
    let missing: Vec<u64> = sizes
        .list()
        .into_iter()
        .filter(|&bytes| args.force || !table.contains(key(bytes)))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("{} of {workers} workers: {} sizes", collective.name(), missing.len());
    let (tool, rows, notes) = match means {
        Means::Ring => {
            for &bytes in &missing {
                let effort =
                    ring::Effort { repeats: args.repeats, min_time: Duration::from_millis(50) };
                let ms =
                    ring::measure(collective, workers, bytes, effort).map_err(Failure::user)?;
                if let Some(times) = Times::of(&ms) {
                    table.put(key(bytes), times, node);
                    // Each row is on disk as soon as it is measured.
                    table.save().map_err(Failure::user)?;
                }
            }
            (ring::NAME.to_owned(), missing.len(), Vec::new())
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

    #[test]
    fn the_number_of_workers_comes_from_the_file_or_the_user_and_must_agree() {
        let readings = |workers| Readings { workers, ..Readings::default() };
        assert_eq!(workers_per_node(&readings(Some(8)), None, 1), Ok(8));
        assert_eq!(workers_per_node(&readings(Some(16)), Some(8), 2), Ok(8));
        assert_eq!(workers_per_node(&readings(None), Some(4), 1), Ok(4));
        assert!(workers_per_node(&readings(None), None, 1).is_err());
        assert!(workers_per_node(&readings(Some(8)), Some(4), 1).is_err());
    }
}
