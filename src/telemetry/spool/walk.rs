//! Walking through a segment, frame by frame, over what is damaged. Reads a window at a time and no more than is there.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::DiskFile;
use super::frame::{self, Found, Frame};

pub struct Walk {
    file: Arc<dyn DiskFile>,
    /// Where `window` begins in the file.
    at: u64,
    window: Bytes,
    /// Places that could not be read, so far.
    pub damaged: u64,
}

impl Walk {
    pub fn new(file: Arc<dyn DiskFile>) -> Self {
        Self { file, at: 0, window: Bytes::new(), damaged: 0 }
    }

    /// Where the next frame begins.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next good frame before `end`. `from`: what comes after a damaged place has this number or a later one.
    pub fn next(&mut self, end: u64, from: u64) -> io::Result<Option<Frame>> {
        while self.at < end {
            match frame::read(&self.window) {
                Found::Frame(frame) => {
                    self.skip(frame.length);
                    return Ok(Some(frame));
                }
                Found::Short(needed) if self.at + needed as u64 <= end => self.fill(needed.max(WINDOW), end)?,
                Found::Short(_) | Found::Damaged => self.skip_damage(end, from)?,
            }
        }
        Ok(None)
    }

    fn skip_damage(&mut self, end: u64, from: u64) -> io::Result<()> {
        self.damaged += 1;
        self.fill(usize::try_from(end - self.at).unwrap_or(usize::MAX), end)?;
        match frame::next_good(&self.window, from) {
            Some(skip) => {
                self.skip(skip);
                // Of what may be a whole segment, keep only what a window holds.
                self.window = Bytes::copy_from_slice(&self.window[..self.window.len().min(WINDOW)]);
            }
            None => {
                self.at = end;
                self.window = Bytes::new();
            }
        }
        Ok(())
    }

    fn skip(&mut self, count: usize) {
        let _ = self.window.split_to(count);
        self.at += count as u64;
    }

    /// Makes the window `wanted` bytes long, or as long as there is something before `end`.
    fn fill(&mut self, wanted: usize, end: u64) -> io::Result<()> {
        let there = usize::try_from(end - self.at).unwrap_or(usize::MAX);
        let wanted = wanted.min(there);
        let mut window = vec![0; wanted];
        let kept = self.window.len().min(wanted);
        window[..kept].copy_from_slice(&self.window[..kept]);
        let read = self.file.read_at(&mut window[kept..], self.at + kept as u64)?;
        if kept + read < wanted {
            // The file ends sooner than it did when it was written: somebody cut it. What is missing reads as damage.
            window[kept + read..].fill(0);
        }
        self.window = window.into();
        Ok(())
    }
}

const WINDOW: usize = 256 * 1024;
