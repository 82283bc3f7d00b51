//! The text of a file, decompressed while it is read where that is needed.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::field::Fault;

/// Bytes that are read at once.
const BUFFER: usize = 1 << 16;
const GZIP: &[u8] = b"\x1F\x8B\x08";
const ZSTD: &[u8] = b"\x28\xB5\x2F\xFD";
/// What else people have, and what it begins with.
const OTHERS: [(&[u8], &str); 5] = [
    (b"\xFD7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),
    (b"\x04\x22\x4D\x18", "lz4"),
    (b"PAR1", "Parquet"),
];

/// The text in `bytes`. What it begins with says whether it is compressed.
pub(super) fn text<'a>(mut bytes: impl Read + 'a) -> Result<Box<dyn BufRead + 'a>, Fault> {
    let failed = |error: io::Error| Fault::File(error.to_string());
    let mut start = Vec::new();
    bytes.by_ref().take(8).read_to_end(&mut start).map_err(failed)?;
    let is = |magic: &[u8]| start.starts_with(magic);
    if let Some((_, name)) = OTHERS.iter().find(|(magic, _)| is(magic)) {
        let reason = format!(
            "{name} is not read: convert it to CSV or JSON lines, compressed with gzip or zstd or not"
        );
        return Err(Fault::File(reason));
    }
    let (gzip, zstd) = (is(GZIP), is(ZSTD) || is_skippable(&start));
    let bytes = BufReader::with_capacity(BUFFER, Cursor::new(start).chain(bytes));
    Ok(if gzip {
        let decoder = MultiGzDecoder::new(bytes);
        Box::new(BufReader::with_capacity(BUFFER, Named { decoder, name: "gzip" }))
    } else if zstd {
        let decoder = Zstd { source: bytes, frame: FrameDecoder::new() };
        Box::new(BufReader::with_capacity(BUFFER, Named { decoder, name: "zstd" }))
    } else {
        Box::new(bytes)
    })
}

/// Whether a zstd frame that holds no data begins here.
fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..])
}

/// A decoder whose errors say what could not be decompressed.
struct Named<R> {
    decoder: R,
    name: &'static str,
}

impl<R: Read> Read for Named<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buffer).map_err(|error| {
            let text = error.to_string();
            // zstd's decoder says so inside of its own errors.
            let ends =
                error.kind() == io::ErrorKind::UnexpectedEof || text.contains("UnexpectedEof");
            let reason = if ends { "the file ends early".to_owned() } else { text };
            io::Error::other(format!("cannot be decompressed as {}: {reason}", self.name))
        })
    }
}

/// All frames of a zstd file, one after the other: its decoder reads one.
struct Zstd<R> {
    source: R,
    frame: FrameDecoder,
}

impl<R: BufRead> Zstd<R> {
    /// Begins the next frame that holds data; false at the end of the file.
    fn next_frame(&mut self) -> io::Result<bool> {
        let sum = self.frame.get_checksum_from_data();
        if sum.is_some() && sum != self.frame.get_calculated_checksum() {
            return Err(io::Error::other("the checksum is wrong"));
        }
        while !self.source.fill_buf()?.is_empty() {
            match self.frame.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let mut skipped = self.source.by_ref().take(u64::from(length));
                    if io::copy(&mut skipped, &mut io::sink())? < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.frame.can_collect() == 0 {
            if !self.frame.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.frame.decode_blocks(&mut self.source, one).map_err(io::Error::other)?;
            } else if !self.next_frame()? {
                return Ok(0);
            }
        }
        self.frame.read(buffer)
    }
}
