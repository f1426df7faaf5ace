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
    /// Parts that frameworks count as devices of their own, each with an equal share of everything:
    /// a Neuron chip's (logical) NeuronCores. A tensor-parallel degree counts them. 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
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

impl DeviceSku {
    /// Parts that frameworks count as devices, at least 1.
    pub fn num_cores(&self) -> u32 {
        self.cores.unwrap_or(1).max(1)
    }

    /// What one tensor-parallel worker runs on: the device itself, or one of its cores with an equal
    /// share of memory, bandwidth, arithmetic and power. The link stays whole: a ring through all
    /// cores of a node leaves a chip by one of them at a time.
    #[must_use]
    pub fn worker(mut self) -> DeviceSku {
        let n = self.num_cores();
        let share = 1.0 / f64::from(n);
        self.memory_bytes /= u64::from(n);
        self.memory_bandwidth_bytes_per_s *= share;
        self.peak_flops_per_s.values_mut().for_each(|flops| *flops *= share);
        self.power_w = self.power_w.map(|watts| watts * share);
        self.cores = None;
        self
    }

    /// Its name and its other names.
    pub fn names(&self) -> Vec<&str> {
        std::iter::once(&self.name).chain(&self.aliases).map(String::as_str).collect()
    }

    /// Peak arithmetic in `dtype`, in operations per second. Where only one of the two 16-bit
    /// formats is stated it stands for both: they run on the same units at the same rate.
    pub fn peak(&self, dtype: Dtype) -> Option<f64> {
        let other = match dtype {
            Dtype::F16 => Dtype::Bf16,
            Dtype::Bf16 => Dtype::F16,
            same => same,
        };
        self.peak_flops_per_s.get(&dtype).or_else(|| self.peak_flops_per_s.get(&other)).copied()
    }

    /// The number format that a model stored as `own` runs in: its own where the device computes
    /// in it, else the widest that the device has.
    pub fn compute_dtype(&self, own: Dtype) -> Dtype {
        if self.peak_flops_per_s.contains_key(&own) {
            return own;
        }
        self.peak_flops_per_s.keys().max_by_key(|d| d.bits()).copied().unwrap_or(own)
    }

    /// Checks that every figure is a positive, finite number and says where it comes from.
    ///
    /// # Errors
    /// One line that names the field, its value and what was expected.
    pub fn check(&self) -> Result<(), String> {
        for name in std::iter::once(&self.name).chain(&self.aliases) {
            check_name(name)?;
        }
        if self.memory_bytes == 0 {
            return Err("memory_bytes is 0; expected at least 1".into());
        }
        positive("memory_bandwidth_bytes_per_s", self.memory_bandwidth_bytes_per_s)?;
        if self.peak_flops_per_s.is_empty() {
            return Err("peak_flops_per_s is empty; expected at least one number format".into());
        }
        for (dtype, flops) in &self.peak_flops_per_s {
            positive(&format!("peak_flops_per_s.{dtype:?}").to_lowercase(), *flops)?;
        }
        if let Some(link) = self.link_bytes_per_s {
            positive("link_bytes_per_s", link)?;
        }
        if let Some(power) = self.power_w {
            positive("power_w", power)?;
        }
        if self.cores == Some(0) {
            return Err("cores is 0; expected at least 1, or leave it out".into());
        }
        check_sources(&self.sources)
    }
}

impl NodeSku {
    /// The price to reckon with: the newest on demand, else the newest of any kind.
    pub fn price(&self) -> Option<&Price> {
        let on_demand = |price: &&Price| price.kind == PriceKind::OnDemand;
        self.prices.iter().find(on_demand).or_else(|| self.prices.first())
    }

    /// Checks that every figure is a positive, finite number and says where it comes from.
    ///
    /// # Errors
    /// One line that names the field, its value and what was expected.
    pub fn check(&self) -> Result<(), String> {
        check_name(&self.name)?;
        check_name(&self.device).map_err(|problem| format!("device: {problem}"))?;
        if self.num_devices == 0 {
            return Err("num_devices is 0; expected at least 1".into());
        }
        if let Some(network) = &self.network_device {
            check_name(network).map_err(|problem| format!("network_device: {problem}"))?;
        } else if self.num_devices > 1 {
            return Err(format!(
                "network_device is missing; expected how the {} devices are wired",
                self.num_devices
            ));
        }
        if self.host_memory_bytes == Some(0) {
            return Err("host_memory_bytes is 0; leave it out where unknown".into());
        }
        for (index, price) in self.prices.iter().enumerate() {
            positive(&format!("prices[{index}].usd_per_hour"), price.usd_per_hour)?;
            if !is_date(&price.date) {
                return Err(format!(
                    "prices[{index}].date is `{}`; expected YYYY-MM-DD",
                    price.date
                ));
            }
        }
        if self.prices.windows(2).any(|pair| matches!(pair, [a, b] if a.date < b.date)) {
            return Err("prices are not in order; expected the newest first".into());
        }
        check_sources(&self.sources)
    }
}

impl PriceKind {
    /// As people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            PriceKind::OnDemand => "on demand",
            PriceKind::Spot => "spot",
            PriceKind::CapacityBlock => "capacity block",
        }
    }
}

/// Names become folders: letters, digits, dot, dash and underscore, starting with a letter or digit.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let starts_well = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if starts_well && name.chars().all(allowed) && !name.contains("..") {
        return Ok(());
    }
    Err(format!(
        "`{name}` is no name; expected letters, digits, `.`, `_` and `-` without `..`, starting with a letter or digit"
    ))
}

fn positive(field: &str, value: f64) -> Result<(), String> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(format!("{field} is {value}; expected a number above 0"))
}

fn check_sources(sources: &[String]) -> Result<(), String> {
    if sources.iter().any(|source| !source.trim().is_empty()) {
        return Ok(());
    }
    Err("sources is empty; expected where the figures come from".into())
}

/// Whether `text` has the shape of a calendar date, YYYY-MM-DD.
fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    let in_range = |part: Option<&str>, most: u32| {
        part.and_then(|digits| digits.parse().ok()).is_some_and(|n: u32| n >= 1 && n <= most)
    };
    bytes.len() == 10
        && bytes
            .iter()
            .enumerate()
            .all(|(i, b)| if i == 4 || i == 7 { *b == b'-' } else { b.is_ascii_digit() })
        && in_range(text.get(5..7), 12)
        && in_range(text.get(8..10), 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> DeviceSku {
        DeviceSku {
            name: "toy".into(),
            aliases: Vec::new(),
            full_name: "Toy".into(),
            vendor: "Nobody".into(),
            memory_bytes: 1,
            memory_bandwidth_bytes_per_s: 1.0,
            peak_flops_per_s: BTreeMap::from([(Dtype::Bf16, 3.0)]),
            link_bytes_per_s: None,
            power_w: None,
            cores: None,
            sources: vec!["made up".into()],
        }
    }

    fn node(prices: &[(f64, PriceKind, &str)]) -> NodeSku {
        let price = |(usd_per_hour, kind, date): &(f64, PriceKind, &str)| Price {
            usd_per_hour: *usd_per_hour,
            kind: *kind,
            region: "here".into(),
            date: (*date).into(),
            source: "made up".into(),
        };
        NodeSku {
            name: "toy.1x".into(),
            device: "toy".into(),
            num_devices: 1,
            network_device: None,
            host_memory_bytes: None,
            prices: prices.iter().map(price).collect(),
            sources: vec!["made up".into()],
        }
    }

    #[test]
    fn figures_that_are_not_positive_and_finite_are_refused_by_field() {
        assert_eq!(device().check(), Ok(()));
        let broken = DeviceSku { power_w: Some(0.0), ..device() };
        assert_eq!(broken.check(), Err("power_w is 0; expected a number above 0".into()));
        let peaks = BTreeMap::from([(Dtype::Fp8, f64::INFINITY)]);
        let problem = DeviceSku { peak_flops_per_s: peaks, ..device() }.check().unwrap_err();
        assert!(problem.starts_with("peak_flops_per_s.fp8 is inf"), "{problem}");
        let problem = node(&[(f64::NAN, PriceKind::Spot, "2026-01-21")]).check().unwrap_err();
        assert!(problem.starts_with("prices[0].usd_per_hour is NaN"), "{problem}");
    }

    #[test]
    fn several_devices_without_wiring_and_dates_that_are_none_are_refused() {
        let problem = NodeSku { num_devices: 8, ..node(&[]) }.check().unwrap_err();
        assert!(problem.starts_with("network_device is missing"), "{problem}");
        for date in ["2026", "21-01-2026", "2026-13-01", "2026-01-00", "2026/01/21"] {
            let problem = node(&[(1.0, PriceKind::Spot, date)]).check().unwrap_err();
            assert!(problem.contains("expected YYYY-MM-DD"), "{date}: {problem}");
        }
    }

    #[test]
    fn the_price_on_demand_goes_before_a_newer_one_on_spot() {
        let both =
            node(&[(1.0, PriceKind::Spot, "2026-11-09"), (4.0, PriceKind::OnDemand, "2026-01-21")]);
        assert_eq!(both.price().map(|p| p.usd_per_hour), Some(4.0));
        let spot = node(&[(1.0, PriceKind::Spot, "2026-11-09")]);
        assert_eq!(spot.price().map(|p| p.usd_per_hour), Some(1.0));
        assert_eq!(node(&[]).price(), None);
    }

    #[test]
    fn one_16_bit_peak_stands_for_both() {
        assert_eq!(device().peak(Dtype::F16), Some(3.0));
        assert_eq!(device().peak(Dtype::Fp8), None);
    }
}
