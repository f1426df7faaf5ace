//! Measuring on this machine: with which tool, among which devices, group by group.

use super::done::{Done, Group};
use super::node::{self, Devices};
use super::{Args, BackendArg, network_run, two_nodes};
use crate::cli::Failure;
use crate::dataset::network::{Collective, NetworkError, NetworkKey, NetworkTable, Times};
use crate::profiling::backend::torch::{TorchBackend, TorchConfig};
use crate::profiling::detect::{Detection, Kind};
use crate::profiling::host::Host;
use crate::profiling::network::distributed;
use crate::profiling::network::ring;
use crate::profiling::network::tcp;
use crate::profiling::network::tools::{Question, Sizes, Tool};
use crate::profiling::tool::Tools;
use std::time::Duration;

/// The largest messages of a slow network take seconds each.
const TOOL_DEADLINE: Duration = Duration::from_secs(600);

/// A way to measure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Ring,
    Tcp,
    /// With workers on `cpu` or `cuda`.
    Torch(&'static str),
    Tool(Tool),
}

impl Way {
    fn choose(args: &Args, found: &Detection, tools: &Tools) -> Result<Way, Failure> {
        let torch = args.backend == Some(BackendArg::Torch);
        let native = two_nodes::native(args, found.backend, torch)?;
        // nccl-tests is the exact way on GPUs; without it torch, which is there for the operators.
        let nccl =
            tools.find("all_reduce_perf").is_some() || args.backend == Some(BackendArg::NcclTests);
        Ok(match found.backend {
            Kind::Neuron if torch => {
                return Err(Failure::user(
                    "Neuron's collectives are measured by nccom-test; leave --backend out",
                ));
            }
            Kind::Neuron => Way::Tool(Tool::NccomTest),
            Kind::Cuda if nccl && !torch => Way::Tool(Tool::NcclTests),
            Kind::Cuda | Kind::Rocm => Way::Torch("cuda"),
            Kind::Cpu if native => Way::Tcp,
            Kind::Cpu if torch => Way::Torch("cpu"),
            Kind::Cpu => Way::Ring,
        })
    }

    /// How wirings of CPUs end that have no other name.
    fn suffix(self) -> &'static str {
        match self {
            Way::Tcp => "tcp",
            Way::Torch(_) => "gloo",
            Way::Ring | Way::Tool(_) => "shm",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Way::Ring => ring::NAME,
            Way::Tcp => tcp::NAME,
            Way::Torch(_) => "torch.distributed",
            Way::Tool(Tool::NcclTests) => "nccl-tests",
            Way::Tool(Tool::NccomTest) => "nccom-test",
        }
    }
}

/// What measures, once it runs.
enum Means {
    Ring,
    Torch(Box<TorchBackend>),
    Tool(Tool),
    Tcp(tcp::Link),
}

/// One run of the command.
struct Run<'a> {
    args: &'a Args,
    tools: Tools,
    devices: Devices,
    way: Way,
    means: Means,
    /// Devices of a node, those that do not take part included.
    node: u32,
}

/// What a dry run says.
pub fn plan(args: &Args, found: &Detection) -> Result<String, Failure> {
    let way = Way::choose(args, found, &Tools::system())?;
    let name = node::network_device(args.network_device.as_deref(), found, way.suffix())?;
    let devices = Devices::choose(args, found)?;
    let sizes = Sizes { min: args.min_size, max: args.max_size }.list().len();
    let mut text = format!("collectives on {name}, by {}:\n", way.name());
    for collective in args.collective.iter().copied().map(Collective::from) {
        let counts = node::worker_counts(args, collective, devices.count)?;
        let counts: Vec<String> = counts.iter().map(u32::to_string).collect();
        text.push_str(&format!(
            "  {} of {} workers, {sizes} sizes from {} to {} bytes\n",
            collective.name(),
            counts.join(", "),
            args.min_size,
            args.max_size
        ));
    }
    Ok(text + "  nothing was written\n")
}

/// Measures what was asked for. What fails is told in the answer, and ends nothing else.
pub fn measured(args: &Args, found: &Detection) -> Result<Vec<Done>, Failure> {
    let mut tools = Tools::system();
    tools.deadline = TOOL_DEADLINE;
    let way = Way::choose(args, found, &tools)?;
    let name = node::network_device(args.network_device.as_deref(), found, way.suffix())?;
    let devices = Devices::choose(args, found)?;
    let mut collectives: Vec<Collective> =
        args.collective.iter().copied().map(Collective::from).collect();
    collectives.sort_unstable();
    collectives.dedup();
    let open = |&collective: &Collective| {
        let table = NetworkTable::open(&args.output_dir, &name, collective);
        Ok(Done { collective, table: table.map_err(Failure::user)?, groups: Vec::new() })
    };
    // Files that cannot be added to are found before anything is measured.
    let mut all = collectives.iter().map(open).collect::<Result<Vec<Done>, Failure>>()?;
    let means = match way {
        Way::Ring => Means::Ring,
        Way::Tcp if args.node_rank == 1 => {
            two_nodes::serve(args)?;
            return Ok(Vec::new());
        }
        Way::Tcp => Means::Tcp(two_nodes::wait(args)?),
        Way::Torch(kind) => Means::Torch(Box::new(workers(args, &devices, kind)?)),
        Way::Tool(tool) => Means::Tool(tool),
    };
    let node = args.devices_per_node.unwrap_or(match found.backend {
        Kind::Cpu => devices.count,
        _ => found.num_workers(),
    });
    let mut run = Run { args, tools, devices, way, means, node };
    for done in &mut all {
        if run.collective(done) && args.num_nodes > 1 {
            eprintln!("nothing more is tried: the nodes may be out of step");
            return Ok(all);
        }
    }
    if let Means::Tcp(link) = &mut run.means {
        link.finish().map_err(Failure::user)?;
    }
    Ok(all)
}

/// A torch worker for each device that takes part, as far as workers are asked for.
fn workers(args: &Args, devices: &Devices, kind: &str) -> Result<TorchBackend, Failure> {
    let host = Host::detect();
    let most = args.num_workers_per_node.iter().copied().max().unwrap_or(devices.count);
    let names = |n: &u32| if kind == "cpu" { "cpu".to_owned() } else { format!("{kind}:{n}") };
    let config = TorchConfig {
        python: args.python.clone(),
        devices: devices.numbers.iter().take(most.max(2) as usize).map(names).collect(),
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

impl Run<'_> {
    /// Measures all groups of one collective; whether one of them failed.
    fn collective(&mut self, done: &mut Done) -> bool {
        let (collective, nodes) = (done.collective, self.args.num_nodes);
        let counts = match self.counts(collective) {
            Ok(counts) => counts,
            Err(failure) => {
                eprintln!("{} failed: {}", collective.name(), failure.words());
                done.groups.push(Group { workers: 0, per_node: 0, new: 0, failed: Some(failure) });
                return true;
            }
        };
        for per_node in counts {
            let (new, failed) = self.group(&mut done.table, collective, per_node);
            let workers = per_node * nodes;
            if let Some(failure) = &failed {
                eprintln!("{} of {workers} workers failed: {}", collective.name(), failure.words());
            }
            done.groups.push(Group { workers, per_node, new, failed });
            // Nodes that have lost each other's step would measure nonsense.
            if nodes > 1 && done.groups.iter().any(|group| group.failed.is_some()) {
                break;
            }
        }
        done.groups.iter().any(|group| group.failed.is_some())
    }

    fn counts(&self, collective: Collective) -> Result<Vec<u32>, Failure> {
        if let Means::Tool(tool) = &self.means {
            let program = tool.program(collective);
            self.tools.command(program).map_err(|e| Failure::user(format!("{program}: {e}")))?;
        }
        node::worker_counts(self.args, collective, self.devices.count)
    }

    /// Measures one number of workers; what is there already stays, unless forced. Gives the rows that
    /// are new, and what failed.
    fn group(
        &mut self,
        table: &mut NetworkTable,
        collective: Collective,
        per_node: u32,
    ) -> (usize, Option<Failure>) {
        if per_node > self.devices.count {
            let failure = format!(
                "--num-workers-per-node {per_node}: this node has {} devices to take part",
                self.devices.count
            );
            return (0, Some(Failure::user(failure)));
        }
        let (args, workers) = (self.args, per_node * self.args.num_nodes);
        let sizes = Sizes { min: args.min_size, max: args.max_size }.list();
        let here = |&bytes: &u64| table.contains(NetworkKey { workers, per_node, bytes });
        let mut to_go: Vec<u64> = sizes.clone();
        to_go.retain(|bytes| args.force || !here(bytes));
        // The other node of a group cannot know what is here: it is met in any case, for the same sizes.
        if args.num_nodes > 1 && matches!(self.means, Means::Torch(_)) {
            to_go = sizes;
        }
        if to_go.is_empty() {
            return (0, None);
        }
        eprintln!("{} of {workers} workers: {} sizes", collective.name(), to_go.len());
        let mut said = Said { tool: self.way.name().to_owned(), notes: Vec::new() };
        let (node, silent) = (self.node, args.node_rank > 0);
        let mut rows = Rows { table, workers, per_node, node, silent, new: 0, trouble: None };
        let measured = self.ask(collective, per_node, &to_go, &mut rows, &mut said);
        let (new, trouble) = (rows.new, rows.trouble.take());
        let mut failed = trouble.map(Failure::user).or(measured.err());
        if silent {
            eprintln!("node 0 writes the file; this node is done");
        } else if new > 0 {
            said.notes.extend(failed.iter().map(|failure| failure.words().to_owned()));
            let finished = table.finish(network_run(said.tool, new, said.notes));
            failed = failed.or(finished.err().map(Failure::user));
        }
        (new, failed)
    }

    /// Has the group measured; rows are kept as they come.
    fn ask(
        &mut self,
        collective: Collective,
        per_node: u32,
        sizes: &[u64],
        rows: &mut Rows<'_>,
        said: &mut Said,
    ) -> Result<(), Failure> {
        let args = self.args;
        let effort = ring::Effort { repeats: args.repeats, min_time: Duration::from_millis(50) };
        match &mut self.means {
            Means::Ring => {
                for &bytes in sizes {
                    let ms = ring::measure(collective, per_node, bytes, effort);
                    rows.put_samples(bytes, &ms.map_err(Failure::user)?);
                }
            }
            Means::Tcp(link) => {
                for &bytes in sizes {
                    let ms = link.measure(bytes, effort).map_err(Failure::user)?;
                    rows.put_samples(bytes, &ms);
                }
            }
            Means::Torch(backend) => {
                let alone = args.num_nodes == 1;
                let master = match alone {
                    true => distributed::local_master().map_err(Failure::user)?,
                    false => two_nodes::master(args)?.to_owned(),
                };
                let group = distributed::Group {
                    per_node,
                    nodes: args.num_nodes,
                    node_rank: args.node_rank,
                    master,
                };
                let effort = (args.repeats, args.meet_timeout);
                let each = &mut |bytes, times| rows.put(bytes, times);
                let tool = distributed::measure(backend, collective, &group, sizes, effort, each);
                // That nodes do not meet is for their users to mend.
                said.tool = tool.map_err(if alone { Failure::machine } else { Failure::user })?;
            }
            Means::Tool(tool) => {
                let question = Question {
                    collective,
                    workers: per_node,
                    sizes: Sizes { min: sizes[0], max: args.max_size },
                    repeats: args.repeats,
                    visible: self.devices.visible.clone(),
                };
                let each = &mut |bytes, times| rows.put(bytes, times);
                let readings =
                    tool.measure(&self.tools, &question, each).map_err(Failure::machine)?;
                readings.notes.iter().for_each(|note| eprintln!("note: {note}"));
                said.tool = readings.tool;
                said.notes = readings.notes;
                if let Some(why) = readings.failure {
                    return Err(Failure::machine(why));
                }
            }
        }
        Ok(())
    }
}

/// What a tool says of itself and its rows.
struct Said {
    tool: String,
    notes: Vec<String>,
}

/// The rows of one group: each is on disk as soon as it is measured.
struct Rows<'a> {
    table: &'a mut NetworkTable,
    workers: u32,
    per_node: u32,
    node: u32,
    /// Another node writes them.
    silent: bool,
    new: usize,
    /// Why one could not be kept.
    trouble: Option<NetworkError>,
}

impl Rows<'_> {
    fn put(&mut self, bytes: u64, times: Times) {
        if self.silent {
            return;
        }
        let key = NetworkKey { workers: self.workers, per_node: self.per_node, bytes };
        self.table.put(key, times, self.node);
        self.new += 1;
        if let Err(e) = self.table.save() {
            self.trouble.get_or_insert(e);
        }
    }

    fn put_samples(&mut self, bytes: u64, ms: &[f64]) {
        if let Some(times) = Times::of(ms) {
            self.put(bytes, times);
        }
    }
}
