//! Standard output, whose reader may go away.

use std::fmt::Display;
use std::io::{ErrorKind, Write, stdout};

use anyhow::Result;

/// Prints text at once. A reader that has gone is an error, as [`is_unread`] knows.
pub fn text(text: impl Display) -> Result<()> {
    write(&mut stdout().lock(), text)
}

/// The same with the end of a line.
pub fn line(line: impl Display) -> Result<()> {
    text(format_args!("{line}\n"))
}

/// Whether the reader of what is written is gone: no failure of the program's.
pub fn is_unread(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn write(out: &mut impl Write, text: impl Display) -> Result<()> {
    write!(out, "{text}")?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_goes_away_is_told_from_an_error() {
        let mut out = Vec::new();
        write(&mut out, "abc").unwrap();
        assert_eq!(out, b"abc");
        assert!(is_unread(&write(&mut Broken(ErrorKind::BrokenPipe), "abc").unwrap_err()));
        assert!(!is_unread(&write(&mut Broken(ErrorKind::StorageFull), "abc").unwrap_err()));
    }
}
