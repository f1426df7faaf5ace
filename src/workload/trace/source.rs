//! A file as lines: decompressed, without byte order mark, blank lines left out, one line in
//! memory at a time.

use super::TraceError;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Cursor, Read};
use std::path::Path;

/// A longer line is an error: no format writes one, and a wrong file could fill the memory.
const LONGEST_LINE: u64 = 64 << 20;

/// An open file, decompressed.
pub(super) struct Source {
    reader: BufReader<Box<dyn Read>>,
    /// Its name, for messages.
    pub(super) file: String,
    /// Lines taken so far.
    lines: u64,
    buffer: Vec<u8>,
}

impl Source {
    /// Opens `path`; gzip and Zstandard are told by their first bytes, whatever the name.
    pub(super) fn open(path: &Path) -> Result<Self, TraceError> {
        let file = path.display().to_string();
        let io = |cause: String| TraceError::Io { file: file.clone(), cause };
        if path.is_dir() {
            return Err(io("is a directory; expected a CSV or JSON file".into()));
        }
        let handle = File::open(path).map_err(|e| io(e.to_string()))?;
        let reader = decompress(handle).map_err(|e| io(e.to_string()))?;
        let reader = BufReader::with_capacity(256 << 10, reader);
        let mut source = Source { reader, file, lines: 0, buffer: Vec::new() };
        if source.peek()?.starts_with(b"\xEF\xBB\xBF") {
            source.reader.consume(3);
        }
        Ok(source)
    }

    /// The first byte that is not white space, without taking it; `None` in an empty file. The
    /// white space before it is passed over.
    pub(super) fn first_byte(&mut self) -> Result<Option<u8>, TraceError> {
        loop {
            let bytes = self.peek()?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let found = bytes.iter().position(|b| !b.is_ascii_whitespace());
            let (blank, first) = match found {
                Some(at) => (at, bytes.get(at).copied()),
                None => (bytes.len(), None),
            };
            let newlines = bytes.iter().take(blank).filter(|&&b| b == b'\n').count();
            self.reader.consume(blank);
            self.lines += newlines as u64;
            if first.is_some() {
                return Ok(first);
            }
        }
    }

    /// The next line that is not blank, trimmed, and its number from 1; `None` at the end.
    pub(super) fn next_line(&mut self) -> Result<Option<(&[u8], u64)>, TraceError> {
        loop {
            self.buffer.clear();
            let mut limited = (&mut self.reader).take(LONGEST_LINE);
            let read = limited.read_until(b'\n', &mut self.buffer);
            let read = read.map_err(|e| broken(&self.file, self.lines, &e))?;
            if read == 0 {
                return Ok(None);
            }
            self.lines += 1;
            if read as u64 == LONGEST_LINE {
                let message = format!("longer than {LONGEST_LINE} bytes; expected a trace");
                return Err(TraceError::Line {
                    file: self.file.clone(),
                    line: self.lines,
                    message,
                });
            }
            if !self.buffer.trim_ascii().is_empty() {
                return Ok(Some((self.buffer.trim_ascii(), self.lines)));
            }
        }
    }

    /// The rest as a stream of bytes, and how many lines were taken before it.
    pub(super) fn rest(&mut self) -> (&mut BufReader<Box<dyn Read>>, u64) {
        (&mut self.reader, self.lines)
    }

    fn peek(&mut self) -> Result<&[u8], TraceError> {
        self.reader.fill_buf().map_err(|e| broken(&self.file, self.lines, &e))
    }
}

/// The system's or the decompressor's complaint.
pub(super) fn broken(file: &str, after_line: u64, error: &std::io::Error) -> TraceError {
    let cause = format!("cannot be read past line {after_line}: {error}");
    TraceError::Io { file: file.to_owned(), cause }
}

fn decompress(mut handle: File) -> std::io::Result<Box<dyn Read>> {
    let mut magic = Vec::with_capacity(4);
    handle.by_ref().take(4).read_to_end(&mut magic)?;
    let (gzip, zstandard) = (magic.starts_with(&[0x1f, 0x8b]), magic == [0x28, 0xb5, 0x2f, 0xfd]);
    let whole = BufReader::with_capacity(128 << 10, Cursor::new(magic).chain(handle));
    Ok(if gzip {
        Box::new(flate2::bufread::MultiGzDecoder::new(whole))
    } else if zstandard {
        Box::new(zstd::stream::read::Decoder::with_buffer(whole)?)
    } else {
        Box::new(whole.into_inner())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn lines(bytes: &[u8]) -> Result<Vec<(String, u64)>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let mut source = Source::open(file.path()).map_err(|e| e.to_string())?;
        source.first_byte().map_err(|e| e.to_string())?;
        let mut lines = Vec::new();
        while let Some((line, number)) = source.next_line().map_err(|e| e.to_string())? {
            lines.push((String::from_utf8_lossy(line).into_owned(), number));
        }
        Ok(lines)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn blank_lines_marks_and_line_ends_do_not_count_but_lines_do() {
        let text = b"\xEF\xBB\xBF\r\n a \r\n\n  \nb\n\r\nc";
        let expected = [("a".into(), 2), ("b".into(), 5), ("c".into(), 7)];
        assert_eq!(lines(text).unwrap(), expected);
        assert_eq!(lines(b"").unwrap(), []);
        assert_eq!(lines(b" \n\n ").unwrap(), []);
    }

    #[test]
    fn compressed_files_are_told_by_their_first_bytes() {
        let expected = lines(b"a\nb\n").unwrap();
        assert_eq!(lines(&gzip(b"a\nb\n")).unwrap(), expected);
        assert_eq!(lines(&[gzip(b"a\n"), gzip(b"b\n")].concat()).unwrap(), expected);
        assert_eq!(lines(&zstd::encode_all(&b"a\nb\n"[..], 0).unwrap()).unwrap(), expected);
        let frames = [zstd::encode_all(&b"a\n"[..], 0), zstd::encode_all(&b"b\n"[..], 0)];
        assert_eq!(lines(&frames.map(Result::unwrap).concat()).unwrap(), expected);
    }

    #[test]
    fn a_compressed_file_that_is_cut_short_is_an_error() {
        let mut bytes = gzip(b"a\nb\n");
        bytes.truncate(bytes.len() - 6);
        let error = lines(&bytes).unwrap_err();
        assert!(error.contains("cannot be read past line"), "{error}");
    }
}
