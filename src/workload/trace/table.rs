//! CSV: a header line, then one request a line. A quoted cell may hold commas and doubled quotes,
//! but no line break.

use super::layout::{
    Clock, EXPECTED_TOKENS, Layout, Need, Row, Sink, Stamp, expected_time, recognise, tokens,
    unrecognised, wrong,
};
use super::{Source, TraceError, timestamp};
use std::borrow::Cow;

/// Where time, prompt and output stand in a line; no time where it is not asked for.
struct Columns {
    /// How many the header names.
    count: usize,
    time: Option<(usize, Clock)>,
    prefill: usize,
    decode: usize,
}

pub(super) fn read(
    mut source: Source,
    asked: Option<&'static Layout>,
    need: Need,
    sink: &mut Sink<'_>,
) -> Result<(), TraceError> {
    let file = source.file.clone();
    let error = |line, message| TraceError::Line { file: file.clone(), line, message };
    let Some((header, line)) = source.next_line()? else { return Ok(()) };
    let cells = split(header).map_err(|message| error(line, message))?;
    let names: Vec<_> = cells.iter().map(|c| String::from_utf8_lossy(c)).collect();
    let layout = asked
        .or_else(|| recognise(false, |name| names.iter().any(|n| n == name)))
        .ok_or_else(|| unrecognised(&file, line, &String::from_utf8_lossy(header)))?;
    let columns = find(layout, need, &names).map_err(|message| error(line, message))?;
    while let Some((text, line)) = source.next_line()? {
        let row = columns.row(layout, text).map_err(|message| error(line, message))?;
        if sink(layout, row).map_err(|message| error(line, message))?.is_break() {
            break;
        }
    }
    Ok(())
}

fn find(layout: &Layout, need: Need, names: &[Cow<'_, str>]) -> Result<Columns, String> {
    let position = |name: &str| {
        let found = || names.iter().map(|n| n.escape_debug().to_string()).collect::<Vec<_>>();
        let mut places = (0..names.len()).filter(|&at| names[at] == name);
        let at = places.next();
        let at = at.ok_or_else(|| format!("no column {name}; found {}", found().join(", ")))?;
        match places.next() {
            Some(_) => Err(format!("the header names {name} twice; expected one such column")),
            None => Ok(at),
        }
    };
    let time = layout.time.filter(|_| need == Need::Requests);
    Ok(Columns {
        count: names.len(),
        time: time.map(|(name, clock)| Ok::<_, String>((position(name)?, clock))).transpose()?,
        prefill: position(layout.prefill)?,
        decode: position(layout.decode)?,
    })
}

impl Columns {
    /// A line may end with commas, but not say more than the header has names for.
    fn within(&self, at: usize, cell: &[u8]) -> Result<(), String> {
        if at < self.count || cell.is_empty() {
            return Ok(());
        }
        let expected = format!("expected {} cells, as the header has", self.count);
        Err(wrong(&format!("cell {}", at + 1), &show(cell), &expected))
    }

    fn row(&self, layout: &Layout, line: &[u8]) -> Result<Row, String> {
        let cells: Cells<'_> = if line.contains(&b'"') {
            let cells = split(line)?;
            cells.iter().enumerate().try_for_each(|(at, cell)| self.within(at, cell))?;
            let mut cells = cells.into_iter().map(Some).collect::<Vec<_>>();
            let mut take = |at: usize| cells.get_mut(at).and_then(Option::take).unwrap_or_default();
            let time = self.time.map_or_else(Cow::default, |(at, _)| take(at));
            [time, take(self.prefill), take(self.decode)]
        } else {
            let mut found: Cells<'_> = Default::default();
            let wanted = [self.time.map_or(usize::MAX, |(at, _)| at), self.prefill, self.decode];
            for (at, cell) in line.split(|&b| b == b',').enumerate() {
                if let Some(slot) = wanted.iter().position(|&w| w == at) {
                    // A position among three is below three.
                    found[slot] = Cow::Borrowed(cell.trim_ascii());
                }
                self.within(at, cell.trim_ascii())?;
            }
            found
        };
        let [time, prefill, decode] = &cells;
        let time = match self.time {
            None => Stamp::Seconds(0.0),
            Some((_, clock)) => self::time(layout, clock, time)?,
        };
        let prefill = count(layout.prefill, prefill)?;
        Ok(Row { time, prefill, decode: count(layout.decode, decode)?, hashes: Vec::new() })
    }
}

type Cells<'a> = [Cow<'a, [u8]>; 3];

/// The trimmed cells of a line.
fn split(line: &[u8]) -> Result<Vec<Cow<'_, [u8]>>, String> {
    let mut cells = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        let cell;
        (cell, rest) = match rest.split_first() {
            Some((b'"', quoted)) => unquote(quoted, cells.len() + 1)?,
            _ => {
                let end = rest.iter().position(|&b| b == b',').unwrap_or(rest.len());
                let (cell, rest) = rest.split_at(end);
                (Cow::Borrowed(cell.trim_ascii()), rest)
            }
        };
        cells.push(cell);
        match rest.split_first() {
            None => return Ok(cells),
            Some((_, after_comma)) => rest = after_comma,
        }
    }
}

/// A quoted cell whose opening quote is taken, and what follows its closing quote: nothing, or a
/// comma first.
fn unquote(quoted: &[u8], number: usize) -> Result<(Cow<'_, [u8]>, &[u8]), String> {
    let mut cell = Vec::new();
    let mut rest = quoted;
    loop {
        let Some(end) = rest.iter().position(|&b| b == b'"') else {
            return Err(format!("cell {number} has no closing quote; expected it on this line"));
        };
        let (text, tail) = rest.split_at(end);
        cell.extend_from_slice(text);
        match tail {
            [b'"', b'"', more @ ..] => {
                cell.push(b'"');
                rest = more;
            }
            [_, more @ ..] => {
                let more = more.trim_ascii_start();
                if more.first().is_some_and(|&b| b != b',') {
                    return Err(format!("cell {number} goes on after its closing quote"));
                }
                return Ok((Cow::Owned(cell.trim_ascii().to_vec()), more));
            }
            [] => return Ok((Cow::Owned(cell), tail)),
        }
    }
}

fn time(layout: &Layout, clock: Clock, cell: &[u8]) -> Result<Stamp, String> {
    let name = layout.time.map_or("", |(name, _)| name);
    let fail = |expected: &str| wrong(name, &show(cell), expected);
    let stamp = match clock {
        Clock::Date => timestamp::parse(cell).map(Stamp::Absolute),
        _ => clock.stamp(number(cell).ok_or_else(|| fail("expected a number"))?),
    };
    stamp.ok_or_else(|| fail(&expected_time(layout)))
}

fn count(name: &str, cell: &[u8]) -> Result<u32, String> {
    // Nearly every cell is a few digits.
    if (1..=9).contains(&cell.len()) && cell.iter().all(u8::is_ascii_digit) {
        return Ok(cell.iter().fold(0, |n, b| n * 10 + u32::from(b - b'0')));
    }
    let n = number(cell).ok_or_else(|| wrong(name, &show(cell), "expected a number"))?;
    tokens(n).ok_or_else(|| wrong(name, &show(cell), EXPECTED_TOKENS))
}

fn number(cell: &[u8]) -> Option<f64> {
    std::str::from_utf8(cell).ok()?.parse().ok()
}

/// A cell for a message.
fn show(cell: &[u8]) -> String {
    String::from_utf8_lossy(cell).chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(line: &str) -> Result<Vec<String>, String> {
        let cells = split(line.as_bytes())?;
        Ok(cells.iter().map(|c| String::from_utf8_lossy(c).into_owned()).collect())
    }

    #[test]
    fn cells_are_split_at_commas_outside_quotes() {
        assert_eq!(cells("a, b ,,c").unwrap(), ["a", "b", "", "c"]);
        assert_eq!(cells(r#""a,b" , "say ""x""",c,"#).unwrap(), ["a,b", "say \"x\"", "c", ""]);
        assert_eq!(cells("").unwrap(), [""]);
        assert!(cells(r#"a,"b"#).unwrap_err().contains("cell 2 has no closing quote"));
        assert!(cells(r#""a"b,c"#).unwrap_err().contains("cell 1 goes on"));
    }
}
