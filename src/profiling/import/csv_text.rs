//! CSV files in the making: text, and times as people read them.

use std::fmt::Write;

/// A CSV file in the making.
pub(super) struct Csv {
    pub(super) text: String,
    pub(super) rows: usize,
}

impl Csv {
    pub(super) fn new(columns: &[impl AsRef<str>]) -> Csv {
        let mut csv = Csv { text: String::new(), rows: 0 };
        csv.line(columns);
        csv
    }

    pub(super) fn push(&mut self, cells: &[impl AsRef<str>]) {
        self.line(cells);
        self.rows += 1;
    }

    fn line(&mut self, cells: &[impl AsRef<str>]) {
        for (i, cell) in cells.iter().enumerate() {
            if i > 0 {
                self.text.push(',');
            }
            self.text.push_str(cell.as_ref());
        }
        self.text.push('\n');
    }
}

/// Milliseconds with five significant digits: a tenth of a per mille, finer than any measurement.
pub(super) fn number(ms: f64) -> String {
    if ms <= 0.0 || !ms.is_finite() {
        return "0".into();
    }
    let digits = (4.0 - ms.log10().floor()).clamp(0.0, 9.0) as usize;
    let mut text = String::with_capacity(12);
    // Writing into a String cannot fail.
    let _ = write!(text, "{ms:.digits$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_five_digits() {
        assert_eq!(number(0.012_345_678), "0.012346");
        assert_eq!(number(1234.5678), "1234.6");
        assert_eq!(number(2.0), "2");
        assert_eq!(number(123_456.7), "123457");
        assert_eq!(number(0.0), "0");
    }
}
