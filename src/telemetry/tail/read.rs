//! One file that is followed: its bytes from where it was read to, a chunk at a time, whether packed or not.
//!
//! Invariant: before a byte is read the bytes in front of it are looked at again. If they changed, the file was written anew, and nothing
//! of it is taken for the continuation.

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::position::{Contents, HEAD, Key, Position, Print, TAIL};
use super::rotated::is_gzip;

pub enum Source {
    Plain(File),
    /// Finished when it was packed. `held`: unpacked, and not done with.
    Packed {
        decoder: Box<MultiGzDecoder<BufReader<File>>>,
        held: Vec<u8>,
        at: u64,
    },
}

/// What a look at the file brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Filled {
    /// So many bytes stand in the buffer, from `TAIL` on.
    Bytes { count: usize, is_end: bool },
    /// Others stand where it was read before.
    Rewritten,
}

pub fn key_at(meta: &Metadata) -> Key {
    (meta.dev(), meta.ino())
}

impl Source {
    pub fn open(path: &Path) -> io::Result<(Self, Key)> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let key = key_at(&meta);
        let source = if is_gzip(path) {
            Self::Packed { decoder: Box::new(MultiGzDecoder::new(BufReader::new(file))), held: Vec::new(), at: 0 }
        } else {
            Self::Plain(file)
        };
        Ok((source, key))
    }

    fn file(&self) -> &File {
        match self {
            Self::Plain(file) => file,
            Self::Packed { decoder, .. } => decoder.get_ref().get_ref(),
        }
    }

    pub fn is_packed(&self) -> bool {
        matches!(self, Self::Packed { .. })
    }

    /// Size and number of names.
    pub fn stat(&self) -> io::Result<(u64, u64)> {
        let meta = self.file().metadata()?;
        Ok((meta.len(), meta.nlink()))
    }

    /// Reads from the position into `buffer`, behind room for the bytes before it.
    pub fn fill(&mut self, position: &Position, buffer: &mut [u8]) -> io::Result<Filled> {
        match self {
            Self::Plain(file) => fill_plain(file, position, buffer),
            Self::Packed { decoder, held, at } => {
                // Up to the position: what was done with, and at first all that was read before.
                let done = usize::try_from(position.offset.saturating_sub(*at)).unwrap_or(usize::MAX).min(held.len());
                held.drain(..done);
                *at += done as u64;
                if *at < position.offset {
                    *at += io::copy(&mut decoder.by_ref().take(position.offset - *at), &mut io::sink())?;
                }
                let room = buffer.len() - TAIL;
                let wanted = room.saturating_sub(held.len()) as u64;
                let read = decoder.by_ref().take(wanted).read_to_end(held)?;
                let count = held.len().min(room);
                buffer[TAIL..TAIL + count].copy_from_slice(&held[..count]);
                Ok(Filled::Bytes { count, is_end: (read as u64) < wanted })
            }
        }
    }

    /// The first bytes, as many as tell it from others.
    pub fn beginning(&self, buffer: &mut [u8; HEAD]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read_at(buffer, 0),
            Self::Packed { held, at: 0, .. } => {
                let count = held.len().min(HEAD);
                buffer[..count].copy_from_slice(&held[..count]);
                Ok(count)
            }
            Self::Packed { .. } => Ok(0),
        }
    }
}

fn fill_plain(file: &File, position: &Position, buffer: &mut [u8]) -> io::Result<Filled> {
    let known = position.tail.length();
    let from = TAIL - known;
    let read = file.read_at(&mut buffer[from..], position.offset - known as u64)?;
    if read < known || Print::of(&buffer[from..TAIL]) != position.tail {
        return Ok(Filled::Rewritten);
    }
    Ok(Filled::Bytes { count: read - known, is_end: from + read < buffer.len() })
}

/// Whether the name leads to this file now.
pub fn leads_to(path: &Path, key: Key) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| key_at(&meta) == key)
}

/// The position behind all that is there. What follows the last end of a line began before, and is left out.
pub fn at_end(path: &Path) -> io::Result<Position> {
    let (source, key) = Source::open(path)?;
    let Source::Plain(file) = source else { return Ok(Position::default()) };
    let size = file.metadata()?.len();
    let mut position = Position::default();
    let (mut head, mut tail) = ([0; HEAD], [0; TAIL]);
    let count = file.read_at(&mut head, 0)?;
    let before = size.min(TAIL as u64);
    // Of `TAIL` bytes at most.
    let tail = &mut tail[..before as usize];
    let read = file.read_at(tail, size - before)?;
    if count == 0 || read < tail.len() {
        return Ok(position);
    }
    position.identify(key, &head[..count]);
    position.head = Print::of(&head[..count]);
    position.advance(size, tail);
    position.cursor.is_skipping = tail.last() != Some(&b'\n');
    Ok(position)
}
