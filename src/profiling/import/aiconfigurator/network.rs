//! all_reduce.csv and send_recv.csv of a system.

use super::manifest::{Counts, Manifest};
use super::tables::Tables;
use crate::dataset::schema::time_column;
use crate::profiling::import::csv_text::{Csv, number};
use crate::profiling::import::{ImportError, Imported};
use crate::spec::ops::Op;

impl Tables {
    /// The network's profiles, stored under `network_device`: the engine's all-reduce by number of
    /// devices, and the hand-over between stages as half of NCCL's exchange of two devices.
    ///
    /// # Errors
    /// Never in practice: when a manifest cannot be put into words.
    pub fn network_profiles(&self, network_device: &str) -> Result<Imported, ImportError> {
        let mut set = Imported::default();
        let most = self.all_reduce.iter().map(|row| row.0).max().unwrap_or(2).max(2);
        for op in [Op::AllReduce, Op::SendRecv] {
            let time = time_column(op, "median");
            let mut csv = Csv::new(&[
                time.as_str(),
                "size",
                "num_workers",
                "devices_per_node",
                "max_devices_per_node",
            ]);
            let mut push = |devices: u32, bytes: u64, ms: f64| {
                let (devices, most) = (devices.to_string(), most.to_string());
                csv.push(&[number(ms), bytes.to_string(), devices.clone(), devices, most]);
            };
            match op {
                Op::AllReduce => {
                    self.all_reduce
                        .iter()
                        .for_each(|(devices, bytes, ms)| push(*devices, *bytes, *ms));
                }
                _ => self.exchange.iter().for_each(|(bytes, ms)| push(2, *bytes, *ms)),
            }
            if csv.rows == 0 {
                set.notes.push(format!("{} has no table for {op}", self.system));
                continue;
            }
            let mut counts = Counts::default();
            counts.network(op, csv.rows);
            let manifest = Manifest::network(self, op, network_device, counts, &csv);
            set.push(
                format!("network/{network_device}/{op}.csv"),
                csv.text.into_bytes(),
                &manifest,
            )?;
        }
        Ok(set)
    }
}
