//! The lines of a text file, numbered.

use std::io::{BufRead, Read};

use super::field::Fault;
use super::formats::not_a_trace;

/// The longest line, in bytes: token ids by the million fit, and a large file without line ends
/// does not fill the memory.
const MAX_LINE: u64 = 64 << 20;

/// Reads a file line by line. LF, CRLF, a missing end of the last line and a UTF-8 byte order mark
/// are all the same to it; blank lines are skipped.
pub(super) struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    number: usize,
    /// How many lines have been read.
    read: usize,
    /// Whether a line goes on where a quote is open at its end.
    quotes: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, line: Vec::new(), number: 0, read: 0, quotes: false }
    }

    /// From here on a line goes on where a quote is open at its end.
    pub(super) fn join_quoted(&mut self) {
        self.quotes = true;
    }

    /// The number of the line last returned or found at fault, from 1.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// The next line that is not blank, without the white space around it; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<&str>, Fault> {
        while self.fill()? {
            if !self.line.trim_ascii().is_empty() {
                return match str::from_utf8(self.line.trim_ascii()) {
                    Ok(line) => Ok(Some(line)),
                    // Whatever begins like this was never meant to be a trace.
                    Err(_) if self.number == 1 => Err(not_a_trace()),
                    Err(_) => Err(Fault::Line("not UTF-8 text".to_owned())),
                };
            }
        }
        Ok(None)
    }

    /// Reads one line into the buffer, or all that a quote holds together; false at the end of the
    /// file.
    fn fill(&mut self) -> Result<bool, Fault> {
        const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
        self.line.clear();
        self.number = self.read + 1;
        let mut open = false;
        loop {
            self.read += 1;
            let start = self.line.len();
            let mut bounded = self.reader.by_ref().take(MAX_LINE - start as u64);
            let read = bounded
                .read_until(b'\n', &mut self.line)
                .map_err(|error| Fault::Line(error.to_string()))?;
            if self.quotes && self.line[start..].contains(&b'"') {
                let quotes = self.line[start..].iter().filter(|&&byte| byte == b'"').count();
                open ^= quotes % 2 == 1;
            }
            let too_long = self.line.len() as u64 == MAX_LINE;
            if open && (read == 0 || too_long) {
                let reason = "a quote of this row is not closed: close or remove it";
                return Err(Fault::Line(reason.to_owned()));
            }
            if too_long {
                return Err(Fault::Line(format!("longer than {} MiB", MAX_LINE >> 20)));
            }
            if !open {
                break;
            }
        }
        if self.number == 1 && self.line.starts_with(BYTE_ORDER_MARK) {
            self.line.drain(..BYTE_ORDER_MARK.len());
        }
        Ok(!self.line.is_empty())
    }
}
