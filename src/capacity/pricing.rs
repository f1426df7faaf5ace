//! What devices cost: on-demand prices of nodes from the catalogue, or prices of the user's own.

use crate::spec::device::{DeviceSku, NodeSku};
use crate::yaml;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The user's own prices. They go before those of the catalogue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prices {
    /// A YAML file with `devices` and `nodes` as here; what stands here goes before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Device to US dollars per device and hour.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, f64>,
    /// Node to US dollars per node and hour.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<String, f64>,
}

/// A price file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PriceFile {
    devices: BTreeMap<String, f64>,
    nodes: BTreeMap<String, f64>,
}

/// One way to rent the devices of a replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// The node that is rented; none where a price is given by device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Replicas that share a node.
    pub replicas_per_node: u32,
    /// US dollars per hour of the node; without a node, of one replica.
    pub usd_per_hour: f64,
    /// Where the price comes from, on which terms, as of when.
    pub source: String,
}

/// Prices by device.
#[derive(Clone, Debug)]
pub struct PriceList {
    own: Prices,
    nodes: Vec<NodeSku>,
}

impl Prices {
    /// Whether the user gave none.
    pub fn is_empty(&self) -> bool {
        *self == Prices::default()
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// One line that names the entry and what was expected.
    pub fn check(&self) -> Result<(), String> {
        for (name, usd) in self.devices.iter().chain(&self.nodes) {
            if !(usd.is_finite() && *usd > 0.0) {
                return Err(format!(
                    "prices: {name} is {usd}; expected US dollars per hour above 0"
                ));
            }
        }
        Ok(())
    }

    /// These prices and those of the file that they name.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else.
    pub fn with_file(mut self) -> Result<Prices, String> {
        let Some(path) = self.file.take() else { return Ok(self) };
        let name = path.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|e| {
            format!("prices.file: {name}: {e}; expected devices and nodes with prices")
        })?;
        let file: PriceFile = yaml::from_str(&text, &name).map_err(|e| e.to_string())?;
        for (own, read) in [(&mut self.devices, file.devices), (&mut self.nodes, file.nodes)] {
            for (key, usd) in read {
                own.entry(key).or_insert(usd);
            }
        }
        self.check().map_err(|e| format!("{name}: {e}"))?;
        Ok(self)
    }
}

impl PriceList {
    /// The prices `own` of the user and those of `nodes`. Devices whose cores count as devices are
    /// counted by core from here on: prices are given for whole ones.
    pub fn new(mut own: Prices, mut nodes: Vec<NodeSku>, devices: &[DeviceSku]) -> PriceList {
        for device in devices.iter().filter(|device| device.num_cores() > 1) {
            let cores = device.num_cores();
            for node in nodes.iter_mut().filter(|node| node.device == device.name) {
                node.num_devices = node.num_devices.saturating_mul(cores);
            }
            if let Some(usd) = own.devices.get_mut(&device.name) {
                *usd /= f64::from(cores);
            }
        }
        PriceList { own, nodes }
    }

    /// The same with the price of `device` multiplied by `factor`.
    #[must_use]
    pub fn with_times(&self, device: &str, factor: f64) -> PriceList {
        let mut list = self.clone();
        if let Some(usd) = list.own.devices.get_mut(device) {
            *usd *= factor;
        }
        for node in list.nodes.iter_mut().filter(|n| n.device == device) {
            if let Some(usd) = list.own.nodes.get_mut(&node.name) {
                *usd *= factor;
            }
            node.prices.iter_mut().for_each(|price| price.usd_per_hour *= factor);
        }
        list
    }

    /// The nodes that hold `device`.
    pub fn nodes_of(&self, device: &str) -> impl Iterator<Item = &NodeSku> {
        self.nodes.iter().filter(move |node| node.device == device)
    }

    /// The most devices of this kind that one node holds; `None` where no node is known.
    pub fn largest_node(&self, device: &str) -> Option<&NodeSku> {
        self.nodes_of(device).max_by_key(|node| node.num_devices)
    }

    /// How the devices of the cheapest node are wired that holds a whole replica.
    pub fn network_of(&self, device: &str, devices_per_replica: u32) -> Option<&str> {
        let fits = |n: &&NodeSku| n.num_devices >= devices_per_replica;
        let priced = self.offers(device, devices_per_replica);
        let by_name = |name: &str| self.nodes.iter().find(|n| n.name == name);
        let cheapest = priced.iter().filter_map(|o| by_name(o.node.as_deref()?)).find(fits);
        let any = || {
            let wired = self.nodes_of(device).filter(fits);
            wired.min_by_key(|n| n.num_devices).or_else(|| self.largest_node(device))
        };
        cheapest.or_else(any)?.network_device.as_deref()
    }

    /// Every way to rent `devices_per_replica` devices, the cheapest per replica first.
    ///
    /// A node is shared by as many whole replicas as fit; a replica larger than a node pays for its
    /// share of several.
    pub fn offers(&self, device: &str, devices_per_replica: u32) -> Vec<Offer> {
        let own = self.own.devices.get(device).map(|usd| Offer {
            node: None,
            replicas_per_node: 1,
            usd_per_hour: usd * f64::from(devices_per_replica),
            source: "own price per device".into(),
        });
        if own.is_some() {
            return own.into_iter().collect();
        }
        let mut offers: Vec<Offer> = self
            .nodes_of(device)
            .filter_map(|node| self.offer(node, devices_per_replica))
            .collect();
        offers.sort_by(|a, b| {
            a.per_replica().total_cmp(&b.per_replica()).then_with(|| a.node.cmp(&b.node))
        });
        offers
    }

    fn offer(&self, node: &NodeSku, devices_per_replica: u32) -> Option<Offer> {
        let (usd, source) = match self.own.nodes.get(&node.name) {
            Some(usd) => (*usd, "own price per node".to_owned()),
            None => {
                let p = node.price()?;
                let terms = format!("{}, {}, {}, {}", p.kind.as_str(), p.region, p.date, p.source);
                (p.usd_per_hour, terms)
            }
        };
        let held = node.num_devices / devices_per_replica;
        let nodes = f64::from(devices_per_replica) / f64::from(node.num_devices);
        Some(Offer {
            node: Some(node.name.clone()),
            replicas_per_node: held.max(1),
            usd_per_hour: if held > 0 { usd } else { usd * nodes.ceil() },
            source,
        })
    }
}

impl Offer {
    /// US dollars per hour of one replica when nodes are filled with replicas.
    pub fn per_replica(&self) -> f64 {
        self.usd_per_hour / f64::from(self.replicas_per_node)
    }

    /// US dollars per hour of the whole nodes that `replicas` replicas need.
    pub fn whole(&self, replicas: u32) -> f64 {
        f64::from(self.nodes(replicas)) * self.usd_per_hour
    }

    /// Nodes that `replicas` replicas need.
    pub fn nodes(&self, replicas: u32) -> u32 {
        replicas.div_ceil(self.replicas_per_node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::catalog::Catalog;

    fn list(own: Prices) -> PriceList {
        let catalog = Catalog::open(None);
        PriceList::new(own, catalog.nodes().unwrap(), &catalog.devices().unwrap())
    }

    #[test]
    fn a_chip_of_several_cores_is_rented_whole_and_used_core_by_core() {
        // inf2.xlarge: one Inferentia2 chip with two NeuronCores at 0.7582 USD/h.
        let offers = list(Prices::default()).offers("inferentia2", 2);
        assert_eq!(offers[0].node.as_deref(), Some("inf2.xlarge"));
        assert_eq!((offers[0].replicas_per_node, offers[0].per_replica()), (1, 0.7582));
        let one = list(Prices::default()).offers("inferentia2", 1);
        assert_eq!((one[0].replicas_per_node, one[0].per_replica()), (2, 0.3791));
        let own = Prices { devices: [("inferentia2".to_owned(), 0.5)].into(), ..Prices::default() };
        assert_eq!(list(own).offers("inferentia2", 2)[0].per_replica(), 0.5);
    }

    #[test]
    fn a_replica_pays_its_share_of_the_node_that_it_fills() {
        let offers = list(Prices::default()).offers("h100_sxm", 8);
        // p5.48xlarge, 8 devices at 55.04 USD/h.
        assert_eq!(offers[0].node.as_deref(), Some("p5.48xlarge"));
        assert_eq!((offers[0].per_replica(), offers[0].whole(2)), (55.04, 110.08));
        // Three devices leave two of eight idle: two replicas to a node.
        let three = list(Prices::default()).offers("h100_sxm", 3);
        let p5 = three.iter().find(|o| o.node.as_deref() == Some("p5.48xlarge")).unwrap();
        assert_eq!((p5.replicas_per_node, p5.per_replica()), (2, 27.52));
        assert_eq!((p5.whole(3), p5.nodes(3)), (110.08, 2));
        // 16 devices are two nodes.
        let sixteen = list(Prices::default()).offers("h100_sxm", 16);
        assert_eq!(sixteen[0].per_replica(), 110.08);
    }

    #[test]
    fn own_prices_go_first_and_may_move() {
        let own = Prices { devices: [("h100_sxm".to_owned(), 2.5)].into(), ..Prices::default() };
        let offers = list(own.clone()).offers("h100_sxm", 2);
        assert_eq!((offers.len(), offers[0].per_replica()), (1, 5.0));
        let moved = list(own).with_times("h100_sxm", 0.5).offers("h100_sxm", 2);
        assert_eq!(moved[0].per_replica(), 2.5);
        let catalogue = list(Prices::default()).with_times("h100_sxm", 0.5);
        assert_eq!(catalogue.offers("h100_sxm", 8)[0].per_replica(), 27.52);
    }

    #[test]
    fn a_price_file_is_read_strictly() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "devices: {l4: 0.4}\nnodes: {p5.48xlarge: 40}\n").unwrap();
        let prices = Prices { file: Some(file.path().into()), ..Prices::default() };
        let read = prices.clone().with_file().unwrap();
        assert_eq!((read.devices["l4"], read.nodes["p5.48xlarge"]), (0.4, 40.0));
        std::fs::write(file.path(), "devices: {l4: -1}\n").unwrap();
        assert!(prices.clone().with_file().unwrap_err().contains("l4 is -1"));
        std::fs::write(file.path(), "device: {l4: 1}\n").unwrap();
        assert!(prices.with_file().unwrap_err().contains("did you mean `devices`?"));
    }

    #[test]
    fn the_wiring_is_that_of_the_cheapest_node() {
        let list = list(Prices::default());
        assert_eq!(list.network_of("h100_sxm", 4), Some("h100_dgx"));
        assert_eq!(list.largest_node("h100_sxm").unwrap().num_devices, 8);
    }
}
