//! Journals on disk: later rows win, torn rows do not count.

use super::super::manifest::DeviceInfo;
use super::super::schema::{MLP_OPS, STATISTICS};
use super::*;
use crate::predictor::test_support::model;
use crate::spec::model::Dtype;

fn fingerprint() -> Fingerprint {
    let device = DeviceInfo {
        backend: "scripted".into(),
        name: "device".into(),
        vendor: "vendor".into(),
        cores: 1,
        threads: 1,
        memory_bytes: 1,
        kernels: Vec::new(),
        dtype: Dtype::F32,
    };
    Fingerprint::new("sku", &device, &model())
}

fn open(path: &Path) -> Journal {
    Journal::open(path, TableKind::Mlp, &fingerprint(), false).unwrap()
}

/// The row of `tokens` tokens, every time `ms`.
fn row(tokens: u64, ms: &str) -> Vec<String> {
    let mut cells = vec![ms.to_owned(); STATISTICS.len() * MLP_OPS.len()];
    cells.extend(["4", "2", "48", "96", "101", "True"].map(String::from));
    cells.extend([tokens.to_string(), "1".into()]);
    cells
}

fn first_cells(journal: &Journal) -> Vec<&str> {
    journal.rows().rows().map(|cells| cells[0].as_str()).collect()
}

#[test]
fn a_later_row_supersedes_an_earlier_one_unless_it_is_torn() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mlp.partial.csv");
    let mut journal = open(&path);
    for (tokens, ms) in [(1, "0.5"), (8, "0.75"), (1, "0.25")] {
        journal.append(row(tokens, ms)).unwrap();
    }
    assert_eq!(first_cells(&journal), ["0.25", "0.75"]);
    drop(journal);
    assert_eq!(first_cells(&open(&path)), ["0.25", "0.75"]);

    let bytes = fs::read(&path).unwrap();
    let last = line_of(&row(1, "0.25")).len();
    for torn in 1..=last {
        fs::write(&path, &bytes[..bytes.len() - torn]).unwrap();
        let mut journal = open(&path);
        assert_eq!(first_cells(&journal), ["0.5", "0.75"], "{torn} bytes short");
        // What is measured next stands on a line of its own.
        journal.append(row(8, "2")).unwrap();
        drop(journal);
        assert_eq!(first_cells(&open(&path)), ["0.5", "2"], "{torn} bytes short");
    }
}
