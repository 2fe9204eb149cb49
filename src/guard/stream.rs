//! The guard over bytes that come in chunks: a value that is cut in two by the border of a chunk is found like any other.
//!
//! Invariants: what comes out, put together, is what `Guard::redact` makes of the whole; no more is held back than twice the longest
//! form, and what is held back is in memory that is wiped.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::{Guard, Match, mark};

pub struct Stream {
    guard: Arc<Guard>,
    held: Zeroizing<Vec<u8>>,
}

impl Stream {
    pub fn new(guard: Arc<Guard>) -> Self {
        Self { guard, held: Zeroizing::default() }
    }

    /// Takes a chunk and appends to `out` what can go on, with the values in it replaced. What was found.
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Vec<Match> {
        let longest = self.guard.longest();
        if longest == 0 && self.held.is_empty() {
            out.extend_from_slice(chunk);
            return Vec::new();
        }
        self.hold(chunk);
        let matches = self.guard.find(&self.held);
        // A form that begins before this has also ended, with the characters of base64 around it.
        let mut cut = self.held.len().saturating_sub(longest + AROUND);
        if let Some(across) = matches.iter().find(|found| found.range.start < cut && cut < found.range.end) {
            let long = self.held.len() - across.range.start > 2 * (longest + AROUND);
            cut = if long { across.range.end } else { across.range.start };
        }
        self.give(cut, matches, out)
    }

    /// Nothing more comes: appends what was held back.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Vec<Match> {
        let matches = self.guard.find(&self.held);
        self.give(self.held.len(), matches, out)
    }

    /// Growing would leave copies behind: what is held moves as a whole.
    fn hold(&mut self, chunk: &[u8]) {
        let needed = self.held.len() + chunk.len();
        if needed > self.held.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed.next_power_of_two()));
            larger.extend_from_slice(&self.held);
            self.held = larger;
        }
        self.held.extend_from_slice(chunk);
    }

    fn give(&mut self, cut: usize, mut matches: Vec<Match>, out: &mut Vec<u8>) -> Vec<Match> {
        matches.retain(|found| found.range.end <= cut);
        let mut at = 0;
        for found in &matches {
            out.extend_from_slice(&self.held[at..found.range.start]);
            out.extend_from_slice(mark(&found.item).as_bytes());
            at = found.range.end;
        }
        out.extend_from_slice(&self.held[at..cut]);
        self.held.copy_within(cut.., 0);
        let left = self.held.len() - cut;
        // `Vec::truncate` leaves the bytes where they are.
        zeroize::Zeroize::zeroize(&mut self.held[left..]);
        self.held.truncate(left);
        matches
    }
}

/// One character of base64 before a form, and three after it.
const AROUND: usize = 4;
