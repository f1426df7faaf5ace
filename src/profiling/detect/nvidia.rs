//! NVIDIA devices: the CSV of `nvidia-smi --query-gpu=… --format=csv`, by header name. NVIDIA does
//! not promise its layout; units stand in brackets in the header and behind each value, and what
//! is not supported is `[N/A]`. Source: nvidia-smi(1).

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number.
    pub index: u32,
    /// What the driver calls it.
    pub name: String,
    /// Memory that the driver reports, in bytes.
    pub memory_bytes: Option<u64>,
    /// Version of the driver.
    pub driver: Option<String>,
    /// CUDA compute capability, such as 9.0.
    pub compute_capability: Option<String>,
}

/// Columns to ask for. Old drivers do not know the last.
pub const QUERY: &str = "index,name,uuid,pci.bus_id,memory.total,driver_version,compute_cap";

/// The same without what old drivers do not know.
pub const OLD_QUERY: &str = "index,name,uuid,pci.bus_id,memory.total,driver_version";

/// Reads the CSV, header line included.
///
/// # Errors
/// One line that names the line and the column.
pub fn parse(text: &str) -> Result<Vec<Gpu>, String> {
    let text = super::topology::without_escapes(text);
    let mut reader =
        csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|e| e.to_string())?.clone();
    // `memory.total [MiB]` is the column `memory.total` in MiB.
    let place =
        |name: &str| header.iter().position(|column| column.split(" [").next() == Some(name));
    let names = place("name").ok_or_else(|| {
        let found: Vec<&str> = header.iter().take(3).collect();
        format!("line 1: no column `name` (found: {})", found.join(", "))
    })?;
    let memory = place("memory.total");
    let unit = memory.and_then(|at| header.get(at)?.split_once(" [")?.1.strip_suffix(']'));
    let mut gpus = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| e.to_string())?;
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |at: Option<usize>| {
            at.and_then(|at| record.get(at)).filter(|cell| !is_missing(cell)).map(str::to_owned)
        };
        let name = cell(Some(names)).ok_or_else(|| format!("line {line}: column name is empty"))?;
        let index = match cell(place("index")) {
            None => gpus.len() as u32,
            Some(text) => text
                .parse()
                .map_err(|_| format!("line {line}: column index is `{text}`; expected a number"))?,
        };
        let memory_bytes = match cell(memory) {
            None => None,
            Some(text) => Some(bytes(&text, unit).ok_or_else(|| {
                format!("line {line}: column memory.total is `{text}`; expected a size such as `81920 MiB`")
            })?),
        };
        let (driver, compute_capability) =
            (cell(place("driver_version")), cell(place("compute_cap")));
        gpus.push(Gpu { index, name, memory_bytes, driver, compute_capability });
    }
    Ok(gpus)
}

fn is_missing(cell: &str) -> bool {
    let inner = cell.trim_start_matches('[').trim_end_matches(']');
    inner.is_empty() || ["N/A", "Not Supported", "Unknown Error"].contains(&inner)
}

/// `46068 MiB`, or `46068` where the header has the unit.
fn bytes(text: &str, unit: Option<&str>) -> Option<u64> {
    let mut words = text.split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    let shift = match words.next().or(unit).unwrap_or("MiB") {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// What drivers call the parts in our catalogue. Names as seen in public logs; `NVIDIA` and `Tesla`
/// in front do not count.
const NAMES: [(&str, &str); 17] = [
    ("A100-SXM4-80GB", "a100_sxm"),
    ("A100-SXM4-40GB", "a100_40gb_sxm"),
    ("A100 80GB PCIe", "a100_pcie"),
    ("A100-PCIE-80GB", "a100_pcie"),
    ("A100-PCIE-40GB", "a100_40gb_pcie"),
    ("A30", "a30"),
    ("A40", "a40"),
    ("A10G", "a10g"),
    ("H100 80GB HBM3", "h100_sxm"),
    ("H100 PCIe", "h100_pcie"),
    ("H100 NVL", "h100_nvl"),
    ("H200", "h200_sxm"),
    ("B200", "b200_sxm"),
    ("GB200", "gb200"),
    ("GB300", "gb300"),
    ("L4", "l4"),
    ("L40S", "l40s"),
];

/// The catalogue's name of the part that the driver calls `name`.
pub fn sku(name: &str) -> Option<&'static str> {
    let plain = plain(name);
    NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(plain)).map(|(_, sku)| *sku)
}

fn plain(name: &str) -> &str {
    let name = name.trim();
    let name = name.strip_prefix("NVIDIA ").unwrap_or(name);
    name.strip_prefix("Tesla ").unwrap_or(name).trim()
}

/// The name that profiles of the part are stored under.
pub fn store_as(name: &str) -> String {
    sku(name).map_or_else(|| slug(name), str::to_owned)
}

/// A name for the profiles of a part that the catalogue lacks: `nvidia_geforce_rtx_3090`.
pub fn slug(name: &str) -> String {
    let mut slug = String::from("nvidia");
    for word in plain(name).split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()) {
        slug.push('_');
        slug.push_str(&word.to_lowercase());
    }
    slug
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_name_and_units_are_cut_off() {
        let gpus = parse(
            "index, name, pci.bus_id, memory.total [MiB], driver_version\n\
             0, NVIDIA L40S, 00000000:03:00.0, 46068 MiB, 580.178.04\n\
             1, NVIDIA L40S, 00000000:04:00.0, 46068 MiB, 580.178.04\n",
        )
        .unwrap();
        assert_eq!(gpus.len(), 2);
        assert_eq!(gpus[1].index, 1);
        assert_eq!(gpus[1].memory_bytes, Some(46_068 << 20));
        assert_eq!(gpus[1].driver.as_deref(), Some("580.178.04"));
        assert_eq!(gpus[1].compute_capability, None);
        assert_eq!(sku(&gpus[1].name), Some("l40s"));
        // Another order, no units behind values.
        let gpus =
            parse("compute_cap, memory.total [MiB], name\n8.6, 24576, NVIDIA GeForce RTX 3090\n")
                .unwrap();
        assert_eq!(gpus[0].memory_bytes, Some(24_576 << 20));
        assert_eq!(gpus[0].compute_capability.as_deref(), Some("8.6"));
        assert_eq!(sku(&gpus[0].name), None);
        assert_eq!(slug(&gpus[0].name), "nvidia_geforce_rtx_3090");
    }

    #[test]
    fn what_is_not_supported_is_absent() {
        let gpus = parse("index, name, memory.total [MiB]\n0, Tesla T4, [N/A]\n1, Tesla T4, N/A\n")
            .unwrap();
        assert!(gpus.iter().all(|gpu| gpu.memory_bytes.is_none()));
    }

    #[test]
    fn form_factors_are_told_apart() {
        for (name, expected) in [
            ("NVIDIA A100-SXM4-80GB", Some("a100_sxm")),
            ("NVIDIA A100 80GB PCIe", Some("a100_pcie")),
            ("NVIDIA H100 80GB HBM3", Some("h100_sxm")),
            ("NVIDIA H100 NVL", Some("h100_nvl")),
            ("NVIDIA H200", Some("h200_sxm")),
            ("NVIDIA H200 NVL", None),
            ("Tesla V100-SXM2-32GB", None),
        ] {
            assert_eq!(sku(name), expected, "{name}");
        }
    }

    #[test]
    fn every_part_that_is_named_is_in_the_catalogue() {
        let catalog =
            crate::spec::catalog::Catalog::open(Some(std::path::Path::new("no-such-folder")));
        for (_, sku) in NAMES {
            assert!(catalog.device(sku).is_ok(), "{sku}");
        }
    }

    #[test]
    fn broken_tables_are_refused_with_line_and_column() {
        assert!(parse("").is_err());
        assert!(parse("No devices were found\n").unwrap_err().contains("no column `name`"));
        let message = parse("name, memory.total [MiB]\nL4, many MiB\n").unwrap_err();
        assert!(message.starts_with("line 2: column memory.total is `many MiB`"), "{message}");
    }
}
