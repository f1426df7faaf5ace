//! What a run leaves behind, and what of it failed.

use crate::cli::Failure;
use crate::cli::profile::shown;
use crate::cli::table::{self, number, render, text, window_width};
use crate::dataset::network::{Collective, NetworkTable};

/// The file of one collective.
pub struct Done {
    pub collective: Collective,
    pub table: NetworkTable,
    pub groups: Vec<Group>,
}

/// One number of workers.
pub struct Group {
    /// In all, and on each node; 0 where the collective was not tried at all.
    pub workers: u32,
    pub per_node: u32,
    /// Rows that this run added.
    pub new: usize,
    pub failed: Option<Failure>,
}

impl Done {
    /// Rows that the file has of the groups.
    pub fn rows(&self) -> usize {
        let of = |group: &Group| self.table.medians(group.workers, group.per_node).len();
        self.groups.iter().map(of).sum()
    }

    /// Rows that this run added.
    pub fn new_rows(&self) -> usize {
        self.groups.iter().map(|group| group.new).sum()
    }

    /// Relative spread of the noisiest group; `None` where the tool told averages only.
    pub fn noise(&self) -> Option<f64> {
        let of = |group: &Group| self.table.noise(group.workers, group.per_node);
        self.groups.iter().filter_map(of).reduce(f64::max)
    }

    /// What failed, each with its name.
    pub fn failures(&self) -> impl Iterator<Item = Failure> {
        let name = self.collective.name();
        self.groups.iter().filter_map(move |group| {
            let failed = group.failed.as_ref()?;
            Some(match group.workers {
                0 => failed.said_of(name),
                workers => failed.said_of(&format!("{name} of {workers} workers")),
            })
        })
    }
}

/// The failure that stands for all of them.
pub fn verdict(done: &[Done]) -> Result<(), Failure> {
    Failure::of_several(done.iter().flat_map(Done::failures).collect())
}

/// What is in the files now, and what failed.
pub fn print_tables(done: &[Done]) -> Result<(), Failure> {
    let columns = [
        text("collective"),
        number("workers"),
        number("rows"),
        text("bytes"),
        number("us at smallest"),
        number("us at largest"),
        number("bus GB/s"),
        number("noise").expendable(1),
        text("this run").expendable(2),
    ];
    let rows =
        done.iter().flat_map(|done| done.groups.iter().filter_map(|group| cells(done, group)));
    let mut out = render(&columns, &rows.collect::<Vec<_>>(), window_width());
    out.push('\n');
    for failure in done.iter().flat_map(Done::failures) {
        out.push_str(&format!("failed: {}\n", failure.words()));
    }
    for done in done.iter().filter(|done| done.rows() > 0) {
        out.push_str(&format!("{}\n", shown(done.table.path())));
    }
    table::print(&out)
}

/// A group's line; one of which nothing is known and nothing failed has none.
fn cells(Done { collective, table, .. }: &Done, group: &Group) -> Option<Vec<String>> {
    let medians = table.medians(group.workers, group.per_node);
    let state = match (&group.failed, group.new) {
        (None, 0) => String::new(),
        (None, new) => format!("{new} new"),
        (Some(_), 0) => "failed".into(),
        (Some(_), new) => format!("{new} new, failed"),
    };
    let workers = match group.workers {
        0 => "-".to_owned(),
        workers => workers.to_string(),
    };
    let (Some(first), Some(last)) = (medians.first(), medians.last()) else {
        let none = || "-".to_owned();
        let cells = [
            collective.name().into(),
            workers,
            "0".into(),
            none(),
            none(),
            none(),
            none(),
            none(),
            state,
        ];
        return group.failed.as_ref().map(|_| cells.into());
    };
    Some(vec![
        collective.name().to_owned(),
        workers,
        medians.len().to_string(),
        format!("{} to {}", first.0, last.0),
        format!("{:.1}", first.1 * 1e3),
        format!("{:.1}", last.1 * 1e3),
        format!("{:.2}", collective.bus_bandwidth(group.workers, last.0, last.1) / 1e9),
        noise_cell(table.noise(group.workers, group.per_node)),
        state,
    ])
}

/// A relative spread, as tables show it.
pub fn noise_cell(noise: Option<f64>) -> String {
    noise.map_or("-".into(), |spread| format!("{:.1} %", 100.0 * spread))
}
