//! Collectives through torch.distributed: a worker for each device of this node, and the same
//! command on the other node where there are two.

use crate::dataset::network::{Collective, Times};
use crate::profiling::backend::torch::{TorchBackend, milliseconds};
use crate::profiling::backend::{BackendError, Effort};
use serde_json::{Value, json};
use std::time::Duration;

/// Who takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Workers on each node; this node has a device for each.
    pub per_node: u32,
    /// Nodes.
    pub nodes: u32,
    /// Number of this node, from 0.
    pub node_rank: u32,
    /// Where the first worker of the first node listens, `host:port`.
    pub master: String,
}

/// Measures `collective` at each of `sizes` bytes, by the clock of this node's first worker, and tells
/// `each` as soon as it is measured. Workers wait `limit` for each other: the other node's command may be
/// typed by hand. Gives the tool's name.
///
/// # Errors
/// One line: what the first worker that failed said.
pub fn measure(
    backend: &mut TorchBackend,
    collective: Collective,
    group: &Group,
    sizes: &[u64],
    effort: (u32, Duration),
    each: &mut dyn FnMut(u64, Times),
) -> Result<String, String> {
    let (repeats, limit) = effort;
    let request = |local: u32, bytes: u64, more: bool| -> Value {
        json!({
            "do": "collective",
            "name": collective.name(),
            "rank": group.node_rank * group.per_node + local,
            "world": group.per_node * group.nodes,
            "init": format!("tcp://{}", group.master),
            "bytes": [bytes],
            "repeats": repeats,
            "timeout_s": limit.as_secs().max(1),
            // The group need not meet again for the next size.
            "stay": more,
        })
    };
    let mut tool = String::from("torch.distributed");
    for (at, &bytes) in sizes.iter().enumerate() {
        let more = at + 1 < sizes.len();
        let requests = (0..group.per_node).map(|local| request(local, bytes, more)).collect();
        let answers =
            backend.request_each(requests, Effort { max_time: limit, ..Effort::default() });
        if answers.len() < group.per_node as usize {
            return Err(format!("{} devices for {} workers", answers.len(), group.per_node));
        }
        let answers = answers.into_iter().collect::<Result<Vec<Value>, BackendError>>();
        let answers = answers.map_err(|e| format!("{bytes} bytes: {e}"))?;
        let Some(first) = answers.first() else { return Err("no worker".into()) };
        let ms = milliseconds(&first["points"][0]["ms"]);
        let ms = ms.map_err(|e| format!("the worker's answer for {bytes} bytes: {e}"))?;
        let times = Times::of(&ms).ok_or("the worker measured nothing")?;
        each(bytes, times);
        if let Some(name) = first["tool"].as_str() {
            name.clone_into(&mut tool);
        }
    }
    Ok(tool)
}

/// A port that is free now, for workers of one node to meet at.
///
/// # Errors
/// When the system gives none.
pub fn local_master() -> Result<String, String> {
    let listener =
        std::net::TcpListener::bind("127.0.0.1:0").map_err(|e| format!("no free port: {e}"))?;
    listener.local_addr().map(|address| address.to_string()).map_err(|e| e.to_string())
}
