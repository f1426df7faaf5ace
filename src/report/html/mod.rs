//! One self-contained HTML page: no network, light and dark, readable on a phone and in print. What
//! stands in it is the caller's; here are its building blocks.

pub mod charts;

use std::fmt::Write as _;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// A page under construction.
#[derive(Debug, Default)]
pub struct Page {
    title: String,
    body: String,
    tables: usize,
}

/// One cell of a [`Table`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    text: String,
    /// What the row is sorted by; the text where there is no number.
    value: Option<f64>,
    long: bool,
}

/// A table. Its first row is the headings, `true` for columns of numbers.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Headings, and whether numbers stand below.
    pub columns: Vec<(String, bool)>,
    /// Cells, and the id by which charts find the row.
    pub rows: Vec<(Option<String>, Vec<Cell>)>,
    /// A click on a heading sorts.
    pub sortable: bool,
    /// A field above the table filters its rows.
    pub filter: bool,
}

/// A stretch of a stacked bar: its name, its share of the whole bar's scale, and its colour, 0 to 10.
#[derive(Clone, Debug, PartialEq)]
pub struct Stretch {
    /// What it is.
    pub name: String,
    /// Of the longest bar, 0 to 1.
    pub share: f64,
    /// Which colour of the palette.
    pub colour: usize,
    /// What the mouse shows.
    pub tip: String,
}

/// `text` with the characters escaped that mean something in HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

impl Cell {
    /// A cell of text.
    pub fn text(text: impl Into<String>) -> Self {
        Cell { text: text.into(), ..Cell::default() }
    }

    /// A cell of text that may take several lines.
    pub fn long(text: impl Into<String>) -> Self {
        Cell { text: text.into(), long: true, ..Cell::default() }
    }

    /// A whole number.
    pub fn count(n: u64) -> Self {
        Cell { text: n.to_string(), value: Some(n as f64), long: false }
    }

    /// A number as people read it; a dash where there is none, which sorts last.
    pub fn number(value: Option<f64>) -> Self {
        let text = value.map_or_else(|| "-".into(), crate::report::text::number);
        Cell { text, value: Some(value.unwrap_or(f64::NAN)), long: false }
    }
}

impl Page {
    /// A page with a headline and a line below it.
    pub fn new(title: &str, subtitle: &str) -> Self {
        let mut page = Page { title: title.to_owned(), ..Page::default() };
        let _ = writeln!(
            page.body,
            "<header><h1>{}</h1><p class=\"soft\">{}</p></header>",
            escape(title),
            escape(subtitle)
        );
        page
    }

    /// A heading.
    pub fn heading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escape(text));
    }

    /// A paragraph.
    pub fn paragraph(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escape(text));
    }

    /// A paragraph that wants attention.
    pub fn warning(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p class=\"warn\">{}</p>", escape(text));
    }

    /// Figures in a row: what, and how much.
    pub fn tiles(&mut self, tiles: &[(String, String)]) {
        self.body.push_str("<div class=\"tiles\">");
        for (name, value) in tiles {
            let _ = write!(
                self.body,
                "<div class=\"tile\">{}<b>{}</b></div>",
                escape(name),
                escape(value)
            );
        }
        self.body.push_str("</div>\n");
    }

    /// Charts beside each other, each with what it shows; the SVG is put in as it is.
    pub fn charts(&mut self, charts: &[(String, String)]) {
        self.body.push_str("<div class=\"charts\">");
        for (svg, caption) in charts {
            let _ = writeln!(
                self.body,
                "<figure>{svg}<figcaption>{}</figcaption></figure>",
                escape(caption)
            );
        }
        self.body.push_str("</div>\n");
    }

    /// A table.
    pub fn table(&mut self, table: &Table) {
        self.tables += 1;
        let id = format!("t{}", self.tables);
        if table.filter {
            let _ = writeln!(
                self.body,
                "<input class=\"filter no-print\" data-for=\"{id}\" type=\"search\" \
                 placeholder=\"filter rows\" aria-label=\"filter rows\">"
            );
        }
        let class = if table.sortable { " class=\"sortable\"" } else { "" };
        let _ = write!(self.body, "<div class=\"scroll\"><table id=\"{id}\"{class}><thead><tr>");
        for (name, number) in &table.columns {
            let class = if *number { " class=\"n\"" } else { "" };
            let _ = write!(self.body, "<th{class}>{}</th>", escape(name));
        }
        self.body.push_str("</tr></thead><tbody>\n");
        for (id, cells) in &table.rows {
            match id {
                Some(id) => {
                    let _ = write!(self.body, "<tr id=\"{}\">", escape(id));
                }
                None => self.body.push_str("<tr>"),
            }
            for cell in cells {
                let class = match (cell.value, cell.long) {
                    (Some(_), _) => " class=\"n\"",
                    (None, true) => " class=\"long\"",
                    (None, false) => "",
                };
                let value = cell.value.map_or(String::new(), |v| format!(" data-v=\"{v}\""));
                let _ = write!(self.body, "<td{class}{value}>{}</td>", escape(&cell.text));
            }
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</tbody></table></div>\n");
    }

    /// Stacked bars below each other, with a key of the names.
    pub fn bars(&mut self, bars: &[(String, Vec<Stretch>)]) {
        self.body.push_str("<div class=\"scroll\"><table><tbody>");
        let mut key: Vec<&Stretch> = Vec::new();
        for (name, stretches) in bars {
            let _ = write!(
                self.body,
                "<tr><td>{}</td><td style=\"width:100%\"><div class=\"bar\">",
                escape(name)
            );
            for stretch in stretches {
                let _ = write!(
                    self.body,
                    "<i style=\"width:{:.3}%;background:var(--p{})\" data-tip=\"{}\"></i>",
                    100.0 * stretch.share,
                    stretch.colour,
                    escape(&stretch.tip)
                );
                if !key.iter().any(|k| k.name == stretch.name) {
                    key.push(stretch);
                }
            }
            self.body.push_str("</div></td></tr>\n");
        }
        self.body.push_str("</tbody></table></div><div class=\"key\">");
        key.sort_by_key(|stretch| stretch.colour);
        for stretch in key {
            let _ = write!(
                self.body,
                "<span><i style=\"background:var(--p{})\"></i>{}</span>",
                stretch.colour,
                escape(&stretch.name)
            );
        }
        self.body.push_str("</div>\n");
    }

    /// Text that opens on a click.
    pub fn details(&mut self, summary: &str, text: &str) {
        let _ = writeln!(
            self.body,
            "<details><summary>{}</summary><pre>{}</pre></details>",
            escape(summary),
            escape(text)
        );
    }

    /// The whole document.
    pub fn finish(self) -> String {
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta \
             name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta \
             name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n<style>\n{STYLE}\
             </style>\n</head>\n<body>\n{}<div id=\"tip\"></div>\n<script>\n{SCRIPT}</script>\n\
             </body>\n</html>\n",
            escape(&self.title),
            self.body
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_is_escaped() {
        let mut page = Page::new("<script>alert(1)</script>", "a & b");
        page.table(&Table {
            columns: vec![("x\"".into(), true)],
            rows: vec![(Some("r'1".into()), vec![Cell::text("<b>"), Cell::number(None)])],
            ..Table::default()
        });
        page.details("config", "</pre><script>");
        let html = page.finish();
        assert_eq!(html.matches("<script>").count(), 1, "only our own");
        assert!(html.contains("&lt;b&gt;") && html.contains("a &amp; b"));
        assert!(html.contains("data-v=\"NaN\""));
    }

    #[test]
    fn nothing_is_fetched() {
        let html = Page::new("t", "s").finish();
        for outside in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }
}
