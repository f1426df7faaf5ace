//! Collectives through torch.distributed: a worker for each device of this node, and the same
//! command on the other node where there are two.

use super::Readings;
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

/// Measures `collective` at each of `sizes` bytes, by the clock of this node's first worker. Workers
/// wait `limit` for each other: the other node's command may be typed by hand.
///
/// # Errors
/// One line: what the first worker that failed said.
pub fn measure(
    backend: &mut TorchBackend,
    collective: Collective,
    group: &Group,
    sizes: &[u64],
    repeats: u32,
    limit: Duration,
) -> Result<Readings, String> {
    let world = group.per_node * group.nodes;
    let request = |local: u32| -> Value {
        json!({
            "do": "collective",
            "name": collective.name(),
            "rank": group.node_rank * group.per_node + local,
            "world": world,
            "init": format!("tcp://{}", group.master),
            "bytes": sizes,
            "repeats": repeats,
            "timeout_s": limit.as_secs().max(1),
        })
    };
    let requests: Vec<Value> = (0..group.per_node).map(request).collect();
    let effort = Effort { max_time: limit, ..Effort::default() };
    let answers = backend.request_each(requests, effort);
    if answers.len() < group.per_node as usize {
        return Err(format!("{} devices for {} workers", answers.len(), group.per_node));
    }
    let answers = answers.into_iter().collect::<Result<Vec<Value>, BackendError>>();
    let answers = answers.map_err(|e| format!("{}: {e}", collective.name()))?;
    let Some(first) = answers.first() else { return Err("no worker".into()) };
    let mut readings = Readings {
        tool: first["tool"].as_str().unwrap_or("torch.distributed").to_owned(),
        collective: Some(collective),
        workers: Some(world),
        ..Readings::default()
    };
    for point in first["points"].as_array().map_or(&[][..], Vec::as_slice) {
        let bytes =
            point["bytes"].as_u64().ok_or("the worker's answer has a point without bytes")?;
        let ms = milliseconds(&point["ms"]).map_err(|e| format!("{bytes} bytes: {e}"))?;
        if let Some(times) = Times::of(&ms) {
            readings.push(bytes, times);
        }
    }
    match readings.points.is_empty() {
        true => Err("the worker measured nothing".into()),
        false => Ok(readings),
    }
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
