//! Files of nccl-tests and nccom-test that people already have, as rows of a profile.

use super::done::{Done, Group, print_tables};
use super::{Args, network_run};
use crate::cli::Failure;
use crate::cli::profile::shown;
use crate::dataset::manifest::sha256_hex;
use crate::dataset::network::{Collective, NetworkKey, NetworkRun, NetworkTable, Times};
use crate::profiling::network::{self, Readings};
use std::collections::BTreeMap;

/// Reads files and adds what they hold.
pub fn import(args: &Args) -> Result<(), Failure> {
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
    let mut points: BTreeMap<NetworkKey, Vec<Times>> = BTreeMap::new();
    let (mut files, mut notes, mut tool) = (Vec::new(), Vec::new(), String::new());
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
            points.entry(NetworkKey { workers, per_node, bytes }).or_default().push(times);
        }
        files.push(format!("{} {}", path.display(), sha256_hex(&bytes)));
        notes.extend(readings.notes.iter().map(|note| format!("{}: {note}", path.display())));
        tool = readings.tool;
    }
    let pooled = points.values().filter(|runs| runs.len() > 1).count();
    if pooled > 0 {
        notes.push(format!(
            "{pooled} sizes were measured more than once: their rows are the medians of the runs"
        ));
    }
    notes.iter().for_each(|note| eprintln!("note: {note}"));
    let rows: BTreeMap<NetworkKey, Times> =
        points.iter().filter_map(|(key, runs)| Some((*key, Times::pool(runs)?))).collect();
    if !args.force {
        refuse_others(&table, &rows)?;
    }
    let mut groups: Vec<Group> = Vec::new();
    for (&key, &times) in &rows {
        table.put(key, times, args.devices_per_node.unwrap_or(key.per_node));
        match groups.last_mut().filter(|g| (g.workers, g.per_node) == (key.workers, key.per_node)) {
            Some(group) => group.new += 1,
            None => groups.push(Group {
                workers: key.workers,
                per_node: key.per_node,
                new: 1,
                failed: None,
            }),
        }
    }
    let run = NetworkRun { files, ..network_run(tool, rows.len(), notes) };
    table.finish(run).map_err(Failure::user)?;
    print_tables(&[Done { collective, table, groups }])
}

/// Rows that say otherwise are somebody's measurements: the same file may be read again, another may not
/// take their place unasked.
fn refuse_others(table: &NetworkTable, rows: &BTreeMap<NetworkKey, Times>) -> Result<(), Failure> {
    let differs = |(key, times): &(&NetworkKey, &Times)| table.differs(**key, **times);
    let others: Vec<&NetworkKey> = rows.iter().filter(differs).map(|(key, _)| key).collect();
    let Some(first) = others.first() else { return Ok(()) };
    Err(Failure::user(format!(
        "{} has other times for {} of these rows, the first {} bytes of {} workers; --force replaces them, \
         another --network-device keeps both (the manifest beside it tells where they come from)",
        shown(table.path()),
        others.len(),
        first.bytes,
        first.workers
    )))
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

#[cfg(test)]
mod tests {
    use super::*;

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
