//! Plain tables that fit the terminal: columns that matter least are left out where the window is
//! narrow, and a note says which.

use super::Failure;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{ErrorKind, Write};

/// One column of a table.
pub struct Column {
    /// Its heading.
    pub header: &'static str,
    /// Numbers stand flush right.
    pub right: bool,
    /// Where the window is too narrow the column with the highest value goes first; 0 always stays.
    pub expendable: u8,
}

/// A column of text that stays.
pub const fn text(header: &'static str) -> Column {
    Column { header, right: false, expendable: 0 }
}

/// A column of numbers that stays.
pub const fn number(header: &'static str) -> Column {
    Column { header, right: true, expendable: 0 }
}

impl Column {
    /// The same column, left out where space is short, the highest `order` first.
    pub const fn expendable(self, order: u8) -> Column {
        Column { expendable: order, ..self }
    }
}

/// Lays `rows` out in at most `width` characters a line; `None` is as wide as it takes.
pub fn render(columns: &[Column], rows: &[Vec<String>], width: Option<usize>) -> String {
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| {
            let cells =
                rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count());
            cells.chain([column.header.chars().count()]).max().unwrap_or(0)
        })
        .collect();
    // Each column has a space on either side.
    let total =
        |kept: &[usize]| kept.iter().filter_map(|i| widths.get(*i)).map(|w| w + 2).sum::<usize>();
    let order = |index: usize| columns.get(index).map_or(0, |column| column.expendable);
    let mut kept: Vec<usize> = (0..columns.len()).collect();
    while width.is_some_and(|width| total(&kept) > width) {
        let Some(worst) = kept.iter().copied().max_by_key(|i| order(*i)).filter(|i| order(*i) > 0)
        else {
            break;
        };
        kept.retain(|index| *index != worst);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(kept.iter().filter_map(|i| columns.get(*i)).map(|column| column.header));
    for row in rows {
        table.add_row(kept.iter().filter_map(|i| row.get(*i)));
    }
    for (at, index) in kept.iter().enumerate() {
        if let (Some(column), true) =
            (table.column_mut(at), columns.get(*index).is_some_and(|c| c.right))
        {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut out: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    let hidden: Vec<&str> = columns
        .iter()
        .enumerate()
        .filter(|(index, _)| !kept.contains(index))
        .map(|(_, column)| column.header)
        .collect();
    if !hidden.is_empty() {
        out.push_str(&format!(
            "\nLeft out for width: {}. --json has everything.\n",
            hidden.join(", ")
        ));
    }
    out
}

/// Characters to a line: what `COLUMNS` says, else the terminal; `None` where output is no terminal.
pub fn window_width() -> Option<usize> {
    let stated = std::env::var("COLUMNS").ok().and_then(|text| text.trim().parse().ok());
    stated.or_else(|| Table::new().width().map(usize::from))
}

/// Prints data. A reader that stops reading, such as `head`, is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::internal(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints `value` as indented JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::internal)?;
    print(&format!("{text}\n"))
}

/// Prints `value` as YAML.
pub fn print_yaml(value: &impl Serialize) -> Result<(), Failure> {
    print(&serde_saphyr::to_string(value).map_err(Failure::internal)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(width: Option<usize>) -> String {
        let columns = [text("name"), number("memory").expendable(1), number("power").expendable(2)];
        let rows = [
            vec!["a100".to_string(), "80".to_string(), "400".to_string()],
            vec!["inferentia2".to_string(), "32".to_string(), "-".to_string()],
        ];
        render(&columns, &rows, width)
    }

    #[test]
    fn a_wide_window_shows_every_column() {
        assert_eq!(
            table(None),
            " name         memory  power\n a100             80    400\n inferentia2      32      -\n"
        );
    }

    #[test]
    fn a_narrow_window_loses_the_most_expendable_columns_and_says_so() {
        let narrow = table(Some(22));
        assert!(narrow.starts_with(" name         memory\n"), "{narrow}");
        assert!(
            narrow.ends_with("Left out for width: power. --json has everything.\n"),
            "{narrow}"
        );
        let narrowest = table(Some(3));
        assert!(narrowest.starts_with(" name\n a100\n"), "{narrowest}");
    }
}
