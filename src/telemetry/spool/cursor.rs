//! A cursor: how far one destination has one lane, in a file of two slots that are written in turn.
//!
//! ```text
//! offset size   of each slot, at 0 and at 32
//!      0    4    "MSC1": the marker, and in its last character the version of the format
//!      4    4    CRC-32 of what follows
//!      8    8    how often a cursor was written before this one; its slot is this number modulo 2
//!     16    8    the number of the first record that was not acknowledged
//! ```
//!
//! Of the slots that can be read the newer one counts, so a torn write costs one step back: a batch that is sent twice, and none lost.

use std::io;
use std::sync::Arc;

use super::disk::{DiskFile, Folder};
use super::frame::MOST_NUMBER;

pub struct Cursor {
    file: Option<Arc<dyn DiskFile>>,
    turn: u64,
}

impl Cursor {
    /// Opens the cursor of `name` and tells where it stands. `None`: nowhere yet.
    pub fn open(folder: &dyn Folder, name: &str) -> io::Result<(Self, Option<u64>)> {
        let file = folder.open(&file_name(name), true)?;
        let mut bytes = [0; 2 * SLOT];
        file.read_at(&mut bytes, 0)?;
        let newest = bytes.chunks_exact(SLOT).filter_map(parse).max();
        let (turn, number) = newest.map_or((0, None), |(turn, number)| (turn + 1, Some(number)));
        Ok((Self { file: Some(file), turn }, number))
    }

    /// One that is nowhere on the disk, since it cannot be.
    pub fn unwritten() -> Self {
        Self { file: None, turn: 0 }
    }

    /// It is with the kernel when this returns. Losing it with the power costs duplicates only, so it is not synced.
    pub fn write(&mut self, number: u64) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut slot = [0; SLOT];
        slot[8..16].copy_from_slice(&self.turn.to_le_bytes());
        slot[16..24].copy_from_slice(&number.to_le_bytes());
        let sum = crc32fast::hash(&slot[8..]);
        slot[..4].copy_from_slice(MARKER);
        slot[4..8].copy_from_slice(&sum.to_le_bytes());
        file.write_at(&slot, (self.turn % 2) * SLOT as u64)?;
        self.turn += 1;
        Ok(())
    }
}

/// The names that have a cursor in `folder`.
pub fn names(folder: &dyn Folder) -> io::Result<Vec<String>> {
    let files = folder.list()?;
    Ok(files.iter().filter_map(|(file, _)| file.strip_suffix(SUFFIX).map(str::to_owned)).collect())
}

pub fn remove(folder: &dyn Folder, name: &str) -> io::Result<()> {
    folder.remove(&file_name(name))
}

fn file_name(name: &str) -> String {
    format!("{name}{SUFFIX}")
}

/// The turn and the number.
fn parse(slot: &[u8]) -> Option<(u64, u64)> {
    let sum = u32::from_le_bytes(*slot[4..].first_chunk()?);
    if !slot.starts_with(MARKER) || crc32fast::hash(&slot[8..]) != sum {
        return None;
    }
    let (turn, number) =
        (u64::from_le_bytes(*slot[8..].first_chunk()?), u64::from_le_bytes(*slot[16..].first_chunk()?));
    (turn <= MOST_NUMBER && number <= MOST_NUMBER).then_some((turn, number))
}

const SLOT: usize = 32;
const MARKER: &[u8; 4] = b"MSC1";
const SUFFIX: &str = ".cursor";
