//! How devices are wired; for NVIDIA's, from the matrix of `nvidia-smi topo -m`.
//!
//! The header may carry terminal styling even into a pipe; NIC columns and rows may follow the
//! GPUs, and affinity columns whose cells hold commas. NVLinked pairs need not be neighbours.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The wiring of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Topology {
    /// One device.
    Single,
    /// Every pair on NVLink, through switches or all to all.
    Dgx {
        /// Bonded links of a pair, the fewest.
        links: u32,
    },
    /// Each device has one partner on NVLink.
    PairwiseNvlink {
        /// Bonded links of a pair, the fewest.
        links: u32,
    },
    /// Some pairs have NVLink, in another pattern (the hybrid cube of the V100).
    Mesh,
    /// Neuron devices of one node.
    Neuronlink,
    /// No NVLink.
    Pcie {
        /// The longest way between two devices.
        worst: PciePath,
    },
}

/// Ways over PCIe, the shortest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PciePath {
    /// At most one bridge.
    Pix,
    /// Several bridges.
    Pxb,
    /// The host bridge.
    Phb,
    /// Between host bridges of a NUMA node.
    Node,
    /// Between NUMA nodes.
    Sys,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Nvlink(u32),
    Pcie(PciePath),
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Topology::Single => f.write_str("one device"),
            Topology::Dgx { links } => write!(f, "every pair on NVLink (NV{links})"),
            Topology::PairwiseNvlink { links } => write!(f, "pairs on NVLink (NV{links})"),
            Topology::Mesh => f.write_str("some pairs on NVLink"),
            Topology::Neuronlink => f.write_str("NeuronLink"),
            Topology::Pcie { worst } => {
                write!(f, "PCIe only ({} at worst)", format!("{worst:?}").to_uppercase())
            }
        }
    }
}

/// The text without terminal escapes (`ESC [ … letter`) and carriage returns.
pub fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                if chars.next_if_eq(&'[').is_some() {
                    while chars.next_if(|c| !c.is_ascii_alphabetic()).is_some() {}
                }
                chars.next();
            }
            '\r' => {}
            c => plain.push(c),
        }
    }
    plain
}

/// Reads the matrix.
///
/// # Errors
/// One line that says what is missing.
pub fn parse(text: &str) -> Result<Topology, String> {
    let text = without_escapes(text);
    let mut lines = text.lines();
    let header: Vec<&str> = lines
        .by_ref()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.first() == Some(&"GPU0") && words.get(1) != Some(&"X"))
        .ok_or("no line of GPU0, GPU1, …; expected the matrix of `nvidia-smi topo -m`")?;
    // The names of columns end where `CPU Affinity` begins.
    let columns: Vec<Option<usize>> =
        header.iter().take_while(|word| **word != "CPU").map(|word| gpu(word)).collect();
    let n = columns.iter().flatten().count();
    let mut cells: BTreeMap<(usize, usize), Cell> = BTreeMap::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(row) = words.first().and_then(|word| gpu(word)).filter(|&row| row < n) else {
            continue;
        };
        for (word, column) in words[1..].iter().zip(&columns) {
            if let Some(column) = column.filter(|&column| column != row && column < n) {
                let cell = cell(word).ok_or_else(|| {
                    format!("GPU{row} to GPU{column} is `{word}`; expected NV#, PIX, PXB, PHB, NODE or SYS")
                })?;
                cells.insert((row.min(column), row.max(column)), cell);
            }
        }
    }
    classify(n, &cells)
}

fn classify(n: usize, cells: &BTreeMap<(usize, usize), Cell>) -> Result<Topology, String> {
    if n == 1 {
        return Ok(Topology::Single);
    }
    // Each pair stands twice in the matrix: one row may be missing.
    for a in 0..n {
        for b in a + 1..n {
            if !cells.contains_key(&(a, b)) {
                return Err(format!("no cell for GPU{a} and GPU{b}; was the output cut off?"));
            }
        }
    }
    let mut partners = vec![0_usize; n];
    let (mut links, mut worst) = (u32::MAX, PciePath::Pix);
    for (&(a, b), cell) in cells {
        match cell {
            Cell::Nvlink(count) => {
                links = links.min(*count);
                partners[a] += 1;
                partners[b] += 1;
            }
            Cell::Pcie(path) => worst = worst.max(*path),
        }
    }
    Ok(if partners.iter().all(|&p| p + 1 == n) {
        Topology::Dgx { links }
    } else if partners.iter().all(|&p| p == 1) {
        Topology::PairwiseNvlink { links }
    } else if partners.iter().any(|&p| p > 0) {
        Topology::Mesh
    } else {
        Topology::Pcie { worst }
    })
}

fn gpu(word: &str) -> Option<usize> {
    word.strip_prefix("GPU")?.parse().ok()
}

fn cell(word: &str) -> Option<Cell> {
    Some(match word {
        "PIX" => Cell::Pcie(PciePath::Pix),
        "PXB" => Cell::Pcie(PciePath::Pxb),
        "PHB" => Cell::Pcie(PciePath::Phb),
        "NODE" => Cell::Pcie(PciePath::Node),
        "SYS" => Cell::Pcie(PciePath::Sys),
        _ => Cell::Nvlink(word.strip_prefix("NV")?.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix from the links of each pair: `link(a, b)`.
    fn matrix(n: usize, nics: usize, link: impl Fn(usize, usize) -> &'static str) -> String {
        let mut text = String::from("\u{1b}[4m");
        for i in 0..n {
            text += &format!("\tGPU{i}");
        }
        for i in 0..nics {
            text += &format!("\tNIC{i}");
        }
        text += "\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\u{1b}[0m\n";
        for a in 0..n {
            text += &format!("GPU{a}");
            for b in 0..n {
                text += &format!("\t{}", if a == b { " X " } else { link(a.min(b), a.max(b)) });
            }
            text += &"\tPXB".repeat(nics);
            text += "\t0-23,48-71\t0\t\tN/A\n";
        }
        for i in 0..nics {
            text += &format!("NIC{i}{}\n", "\tSYS".repeat(n + nics));
        }
        text + "\nLegend:\n\n  X    = Self\n  NV#  = Connection traversing a bonded set of # NVLinks\n\nNIC Legend:\n\n  NIC0: mlx5_0\n"
    }

    #[test]
    fn switched_nodes_are_dgx_with_and_without_network_cards() {
        for nics in [0, 12] {
            assert_eq!(parse(&matrix(8, nics, |_, _| "NV18")), Ok(Topology::Dgx { links: 18 }));
        }
    }

    #[test]
    fn pairs_need_not_be_neighbours() {
        let far = [(0, 5), (1, 2), (3, 4), (6, 7)];
        let link = |a, b| if far.contains(&(a, b)) { "NV12" } else { "SYS" };
        assert_eq!(parse(&matrix(8, 1, link)), Ok(Topology::PairwiseNvlink { links: 12 }));
        let azure = "        GPU0    GPU1    GPU2    GPU3    CPU Affinity    NUMA Affinity\n\
                     GPU0     X      NV12    SYS     SYS     0-23    0\n\
                     GPU1    NV12     X      SYS     SYS     24-47   1\n\
                     GPU2    SYS     SYS      X      NV12    48-71   2\n\
                     GPU3    SYS     SYS     NV12     X      72-95   3\n";
        assert_eq!(parse(azure), Ok(Topology::PairwiseNvlink { links: 12 }));
    }

    #[test]
    fn a_cube_is_a_mesh_and_no_nvlink_is_pcie() {
        let cube = |a: usize, b: usize| if (a / 4 == b / 4) || a + 4 == b { "NV1" } else { "SYS" };
        assert_eq!(parse(&matrix(8, 0, cube)), Ok(Topology::Mesh));
        let pcie = |a, b| if a / 4 == b / 4 { "NODE" } else { "SYS" };
        assert_eq!(parse(&matrix(8, 1, pcie)), Ok(Topology::Pcie { worst: PciePath::Sys }));
        assert_eq!(parse(&matrix(2, 0, |_, _| "PIX")), Ok(Topology::Pcie { worst: PciePath::Pix }));
        assert_eq!(parse(&matrix(1, 0, |_, _| "")), Ok(Topology::Single));
    }

    #[test]
    fn half_a_matrix_is_refused() {
        assert!(parse("").is_err());
        let whole = matrix(4, 0, |_, _| "NV12");
        let cut: String = whole.lines().take(2).map(|line| format!("{line}\n")).collect();
        assert!(parse(&cut).unwrap_err().contains("cut off"));
        assert!(parse(&whole.replace("NV12", "NVx")).unwrap_err().contains("GPU0 to GPU1"));
    }

    #[test]
    fn escapes_of_any_shape_are_cut_out() {
        assert_eq!(without_escapes("\u{1b}[4ma\u{1b}[0;1mb\u{1b}"), "ab");
    }
}
