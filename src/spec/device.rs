//! Devices and the nodes that hold them, as data sheets and price lists state them.

use super::model::Dtype;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One accelerator (or CPU) part, as a file under `data/device_skus/` describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSku {
    /// Short name, also the folder of its profiles: `data/profiling/compute/<name>/`.
    pub name: String,
    /// Other names that profiles are stored under.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// What the maker calls it.
    pub full_name: String,
    /// Who makes it.
    pub vendor: String,
    /// Device memory in bytes.
    pub memory_bytes: u64,
    /// Peak memory bandwidth in bytes per second.
    pub memory_bandwidth_bytes_per_s: f64,
    /// Peak dense arithmetic by number format, in operations per second.
    pub peak_flops_per_s: BTreeMap<Dtype, f64>,
    /// Link to other devices of the node, bytes per second in one direction; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_bytes_per_s: Option<f64>,
    /// Board or chip power in watts; absent where the maker does not publish it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<f64>,
    /// Where each figure comes from, or how it was measured.
    pub sources: Vec<String>,
}

/// A machine to rent or buy, as a file under `data/node_skus/` describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSku {
    /// Instance or product name.
    pub name: String,
    /// Name of its devices in `data/device_skus/`.
    pub device: String,
    /// How many of them.
    pub num_devices: u32,
    /// How they are wired, the folder of its network profiles:
    /// `data/profiling/network/<network_device>/`; absent for a single device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_device: Option<String>,
    /// Host memory in bytes, where published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_memory_bytes: Option<u64>,
    /// Prices, the newest first.
    #[serde(default)]
    pub prices: Vec<Price>,
    /// Where the figures come from.
    pub sources: Vec<String>,
}

/// What a node costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// US dollars per hour for the whole node.
    pub usd_per_hour: f64,
    /// On demand, spot, capacity block.
    pub kind: PriceKind,
    /// Provider and region.
    pub region: String,
    /// The day on which the source stated it, YYYY-MM-DD.
    pub date: String,
    /// Who stated it.
    pub source: String,
}

/// Terms of a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PriceKind {
    /// List price, by the hour, no commitment.
    OnDemand,
    /// Spare capacity, may be taken away.
    Spot,
    /// Reserved for a time.
    CapacityBlock,
}
