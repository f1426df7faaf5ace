//! Two nodes that have nothing but a network between them: the same command on each.

use super::{Args, CollectiveArg};
use crate::cli::Failure;
use crate::profiling::detect::Kind;
use crate::profiling::network::tcp;

/// Whether this run is a hand-over between two nodes that needs no torch.
///
/// # Errors
/// What the flags ask for cannot be measured.
pub fn native(args: &Args, backend: Kind, torch: bool) -> Result<bool, Failure> {
    if args.node_rank >= args.num_nodes {
        return Err(Failure::user(format!(
            "--node-rank {}: --num-nodes {} are numbered 0 to {}",
            args.node_rank,
            args.num_nodes,
            args.num_nodes - 1
        )));
    }
    if args.num_nodes == 1 || torch {
        return Ok(false);
    }
    if backend != Kind::Cpu {
        return Err(Failure::user(
            "several nodes are measured by --backend torch; read files of other tools with --from",
        ));
    }
    if args.num_nodes != 2 || args.collective != [CollectiveArg::SendRecv] {
        return Err(Failure::user(
            "without torch CPUs measure --collective send_recv between --num-nodes 2; all else takes --backend torch",
        ));
    }
    if args.max_size > tcp::MOST_BYTES {
        return Err(Failure::user("--max-size: at most 1GiB between two nodes without torch"));
    }
    Ok(true)
}

/// Where nodes meet.
pub fn master(args: &Args) -> Result<&str, Failure> {
    args.master_addr.as_deref().ok_or_else(|| {
        Failure::user("several nodes need a place to meet; give --master-addr HOST:PORT of node 0")
    })
}

/// Node 0's end of the connection.
pub fn wait(args: &Args) -> Result<tcp::Link, Failure> {
    let master = master(args)?;
    eprintln!("waiting for node 1 at {master}");
    tcp::Link::listen(master, args.meet_timeout).map_err(Failure::user)
}

/// All that node 1 does.
pub fn serve(args: &Args) -> Result<(), Failure> {
    let master = master(args)?;
    let mut link = tcp::Link::connect(master, args.meet_timeout).map_err(Failure::user)?;
    link.echo().map_err(Failure::user)?;
    eprintln!("node 0 writes the file; this node is done");
    Ok(())
}
