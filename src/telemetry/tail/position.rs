//! How far a file was read, and how it is known again: what a checkpoint of the spool holds.
//!
//! ```text
//! version 1 · flags 1 · id 8 · generation 4 · offset 8 · head length 2 · head 8 · tail length 2 · tail 8 · read at 8 · path
//! ```
//!
//! Numbers are little-endian. `head` is a digest of the file's first bytes, `tail` of those just before the offset: a file is the same one,
//! or a copy of it, when both agree. Of the contents there is nothing here but the digests. `id` is made of device, inode, generation and
//! the beginning of the file, as soon as a first line is there, so it is the same however often the file is read from its beginning.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use crate::telemetry::lines::Cursor;

/// Device and inode.
pub type Key = (u64, u64);

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Position {
    /// 0: no record of it was read.
    pub id: u64,
    /// How often the file was written anew in its place.
    pub generation: u32,
    pub offset: u64,
    pub head: Print,
    pub tail: Print,
    pub cursor: Cursor,
    /// When it was last read, in nanoseconds since 1970 by the clock of the file system.
    pub read_at: u64,
}

/// A digest of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Print {
    pub length: u16,
    pub digest: u64,
}

impl Print {
    pub fn of(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::default();
        }
        Self { length: u16::try_from(bytes.len()).unwrap_or(u16::MAX), digest: digest(&[bytes]) }
    }

    pub fn length(self) -> usize {
        usize::from(self.length)
    }
}

/// The name of a file's checkpoint.
pub fn source_name(key: Key) -> String {
    format!("{PREFIX}{:x}:{:x}", key.0, key.1)
}

pub fn key_of(source: &str) -> Option<Key> {
    let (device, inode) = source.strip_prefix(PREFIX)?.split_once(':')?;
    Some((u64::from_str_radix(device, 16).ok()?, u64::from_str_radix(inode, 16).ok()?))
}

impl Position {
    /// The one after this, when the file was written anew.
    pub fn next_generation(&self) -> Self {
        Self { generation: self.generation + 1, ..Self::default() }
    }

    /// Makes the id, once the file's first line, or so much of it as counts, is there.
    pub fn identify(&mut self, key: Key, beginning: &[u8]) {
        let line = memchr::memchr(b'\n', beginning).map_or(beginning.len(), |at| at + 1);
        let line = &beginning[..line.min(HEAD)];
        let numbers = [key.0, key.1, u64::from(self.generation)].map(u64::to_le_bytes).concat();
        // 0 stands for none.
        self.id = digest(&[&numbers, line]).max(1);
    }

    /// Takes note of what stands before the offset, `read` being the bytes up to it.
    pub fn advance(&mut self, offset: u64, read: &[u8]) {
        self.offset = offset;
        self.read_at = file_clock();
        self.tail = Print::of(&read[read.len().saturating_sub(TAIL)..]);
    }

    /// Whether the bytes in `contents` are those that this position is of, as far as they were read.
    pub fn is_of(&self, contents: &impl Contents) -> io::Result<Likeness> {
        let mut bytes = [0; HEAD];
        let head = &mut bytes[..self.head.length()];
        let count = contents.read_at(head, 0)?;
        if count < head.len() {
            return Ok(Likeness::Unknown);
        }
        if Print::of(head) != self.head {
            return Ok(Likeness::Other);
        }
        let tail = &mut bytes[..self.tail.length().min(HEAD)];
        let at = self.offset - tail.len() as u64;
        if contents.read_at(tail, at)? < tail.len() {
            return Ok(Likeness::Shorter);
        }
        Ok(if Print::of(tail) == self.tail { Likeness::Same } else { Likeness::Other })
    }

    pub fn encode(&self, path: &Path) -> Vec<u8> {
        let flags = u8::from(self.cursor.is_skipping) | u8::from(self.cursor.in_key) << 1;
        let mut out = vec![VERSION, flags];
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        for print in [self.head, self.tail] {
            out.extend_from_slice(&print.length.to_le_bytes());
            out.extend_from_slice(&print.digest.to_le_bytes());
        }
        out.extend_from_slice(&self.read_at.to_le_bytes());
        let path = path.as_os_str().as_bytes();
        out.extend_from_slice(&path[..path.len().min(MOST_PATH)]);
        out
    }

    /// `None` for what another version has written.
    pub fn decode(bytes: &[u8]) -> Option<(Self, PathBuf)> {
        let (front, path) = bytes.split_at_checked(FRONT)?;
        let long = |at: usize| Some(u64::from_le_bytes(*front.get(at..)?.first_chunk()?));
        let short = |at: usize| Some(u16::from_le_bytes(*front.get(at..)?.first_chunk()?));
        if front[0] != VERSION {
            return None;
        }
        let mut cursor = Cursor::default();
        (cursor.is_skipping, cursor.in_key) = (front[1] & 1 != 0, front[1] & 2 != 0);
        let position = Self {
            id: long(2)?,
            generation: u32::from_le_bytes(*front[10..].first_chunk()?),
            offset: long(14)?,
            head: Print { length: short(22)?, digest: long(24)? },
            tail: Print { length: short(32)?, digest: long(34)? },
            cursor,
            read_at: long(42)?,
        };
        let fits = position.head.length() <= HEAD
            && position.tail.length() <= TAIL
            && position.tail.length() as u64 <= position.offset;
        fits.then(|| (position, PathBuf::from(std::ffi::OsStr::from_bytes(path))))
    }
}

/// What two files have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    Same,
    /// The beginning is the same, but there is not all that was read.
    Shorter,
    /// There is too little to tell.
    Unknown,
    Other,
}

/// Bytes that can be read from any place.
pub trait Contents {
    /// Fewer than asked for only at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl Contents for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match FileExt::read_at(self, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

/// The clock that the times of files are taken from, which is a little behind.
pub fn file_clock() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// The first eight bytes of a SHA-256.
fn digest(parts: &[&[u8]]) -> u64 {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// So many bytes at the beginning tell a file from others.
pub const HEAD: usize = 256;
/// So many bytes before the offset are looked at again.
pub const TAIL: usize = 64;
const VERSION: u8 = 1;
const FRONT: usize = 50;
const MOST_PATH: usize = 1024;
const PREFIX: &str = "file:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_back_and_knows_its_file_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let text = "first line\nsecond line\n".repeat(20);
        std::fs::write(&path, &text).unwrap();
        let file = File::open(&path).unwrap();
        let mut position = Position { generation: 3, ..Position::default() };
        position.identify((1, 2), text.as_bytes());
        position.head = Print::of(&text.as_bytes()[..100]);
        position.advance(100, &text.as_bytes()[..100]);
        position.cursor.in_key = true;
        assert_eq!(Position::decode(&position.encode(&path)), Some((position.clone(), path.clone())));
        assert_eq!(Position::decode(b"\x02"), None);
        assert_eq!(key_of(&source_name((0xab, 7))), Some((0xab, 7)));
        assert_eq!(position.is_of(&file).unwrap(), Likeness::Same);
        std::fs::write(&path, &text[..99]).unwrap();
        assert_eq!(position.is_of(&file).unwrap(), Likeness::Unknown);
        std::fs::write(&path, text.replace("second line", "another one")).unwrap();
        assert_eq!(position.is_of(&file).unwrap(), Likeness::Other);
        let mut again = position.clone();
        again.identify((1, 2), b"first line\nand other things");
        assert_eq!(again.id, position.id);
        again.generation += 1;
        again.identify((1, 2), text.as_bytes());
        assert_ne!(again.id, position.id);
    }
}
