//! Keyed fingerprints of forms, and the search for them in one pass over a text.
//!
//! Of a form this keeps its length, 32 bits of a keyed hash of some windows of eight bytes, and 128 bits of a keyed digest of all of it.
//! The keys lie in locked memory. So there is no value here, and nothing that a value could be made of; and a value can be found after it
//! has been wiped.
//!
//! A text is looked at in windows at a fixed stride. A form of at least 15 bytes has the fingerprints of eight windows that follow each
//! other in the table, so that a stride of eight meets one of them wherever the form begins. Shorter forms have a table of their own with
//! a shorter stride. A bitmap of keyed hashes says for nearly every window that there is nothing.

use std::ops::Range;
use std::sync::Arc;

use ring::digest::{Context, SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::GuardError;
use super::forms::{Encoding, Form, Spills, is_base64};
use crate::memory::with_wiped_stack;
use crate::secret::Secret;

/// The process's random keys.
pub(super) struct Keys(Secret);

impl Keys {
    pub fn random() -> Result<Self, GuardError> {
        let mut bytes = Zeroizing::new([0_u8; KEY_BYTES]);
        SystemRandom::new().fill(&mut *bytes).map_err(|_| GuardError::NoRandomness)?;
        Ok(Self(Secret::copy_from(&*bytes)))
    }

    fn windows(&self) -> Windows {
        let word = |at: usize| window_at(self.0.expose(), at).unwrap_or_default();
        Windows { mask: word(0), factor: word(8) | 1 }
    }

    /// A keyed digest of all of a form. The key comes first and has a fixed length, and the digest is never shown. It leaves the end of
    /// the text on the stack.
    fn digest(&self, text: &[u8]) -> [u8; 16] {
        let mut context = Context::new(&SHA256);
        context.update(&self.0.expose()[16..]);
        context.update(text);
        let mut digest = [0; 16];
        digest.copy_from_slice(&context.finish().as_ref()[..16]);
        digest
    }

    /// What is kept of a form. `None` for one that is too short to be looked for. The caller wipes the stack.
    pub fn print(&self, form: &Form<'_>) -> Option<Print> {
        let (text, windows) = (form.text, self.windows());
        let last = text.len().checked_sub(WINDOW)?;
        let from = if text.len() < LONG { 0 } else { most_varied(text) };
        let count = (last + 1 - from).min(STRIDE);
        let mut tags = [0; STRIDE];
        for (tag, at) in tags.iter_mut().zip(from..from + count) {
            *tag = windows.tag_at(text, at)?;
        }
        Some(Print {
            len: text.len(),
            from,
            tags,
            first: windows.tag_at(text, 0)?,
            last: windows.tag_at(text, last)?,
            digest: self.digest(text),
            encoding: form.encoding,
            spills: form.spills,
        })
    }
}

/// What is kept of a form.
#[derive(Clone)]
pub(super) struct Print {
    pub len: usize,
    /// Where the first of the windows begins whose fingerprints these are.
    from: usize,
    tags: [u32; STRIDE],
    first: u32,
    last: u32,
    pub digest: [u8; 16],
    encoding: Encoding,
    spills: Spills,
}

/// The keyed hash of a window.
#[derive(Clone, Copy)]
struct Windows {
    mask: u64,
    factor: u64,
}

impl Windows {
    fn hash(self, window: u64) -> u64 {
        let mixed = (window ^ self.mask).wrapping_mul(self.factor);
        mixed ^ (mixed >> 32)
    }

    fn tag_at(self, text: &[u8], at: usize) -> Option<u32> {
        window_at(text, at).map(|window| tag(self.hash(window)))
    }
}

/// Everything that is looked for at one moment.
#[derive(Default)]
pub(super) struct Index {
    prints: Vec<(Arc<str>, Print)>,
    long: Table,
    short: Table,
    /// The length of the longest form.
    pub longest: usize,
}

/// A place where a value was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    pub range: Range<usize>,
    pub item: Arc<str>,
    pub encoding: Encoding,
}

impl Index {
    pub fn new(prints: Vec<(Arc<str>, Print)>) -> Self {
        let shortest = prints.iter().map(|(_, print)| print.len).filter(|len| *len < LONG).min().unwrap_or(LONG);
        let stride = shortest + 1 - WINDOW;
        let entries = |long: bool, stride: usize| {
            let of_kind = prints.iter().enumerate().filter(move |(_, (_, print))| (print.len >= LONG) == long);
            of_kind.flat_map(move |(at, (_, print))| {
                let tags = print.tags.into_iter().take(stride).zip(print.from..);
                tags.map(move |(tag, offset)| Entry { tag, print: at as u32, offset: offset as u32 })
            })
        };
        let long = Table::new(STRIDE, entries(true, STRIDE).collect());
        let short = Table::new(stride, entries(false, stride).collect());
        let longest = prints.iter().map(|(_, print)| print.len).max().unwrap_or(0);
        Self { prints, long, short, longest }
    }

    pub fn is_empty(&self) -> bool {
        self.prints.is_empty()
    }

    /// All places, in order; those that overlap are one, named after the longest of them.
    pub fn find(&self, keys: &Keys, text: &[u8]) -> Vec<Match> {
        let mut found = Vec::new();
        for table in [&self.long, &self.short] {
            if !table.entries.is_empty() {
                table.scan(keys.windows(), text, |entry, at| found.extend(self.verified(keys, text, entry, at)));
            }
        }
        merged(found)
    }

    /// The whole of the form that a window may belong to, if it is there.
    fn verified(&self, keys: &Keys, text: &[u8], entry: &Entry, at: usize) -> Option<Match> {
        let (item, print) = self.prints.get(entry.print as usize)?;
        let start = at.checked_sub(entry.offset as usize)?;
        let end = start.checked_add(print.len).filter(|end| *end <= text.len())?;
        let windows = keys.windows();
        let alike = windows.tag_at(text, start) == Some(print.first)
            && windows.tag_at(text, end - WINDOW) == Some(print.last)
            && with_wiped_stack(|| keys.digest(&text[start..end])) == print.digest;
        let range = alike.then(|| spilled(text, start..end, print.spills))?;
        Some(Match { range, item: item.clone(), encoding: print.encoding })
    }
}

/// With the characters of base64 on both sides that have some bits of the value.
fn spilled(text: &[u8], Range { mut start, mut end }: Range<usize>, spills: Spills) -> Range<usize> {
    if spills.left && start > 0 && is_base64(text[start - 1]) {
        start -= 1;
    }
    if spills.right && text.get(end).copied().is_some_and(is_base64) {
        end += 1;
        end += text[end..].iter().take(2).take_while(|byte| **byte == b'=').count();
    }
    start..end
}

fn merged(mut found: Vec<Match>) -> Vec<Match> {
    found.sort_by_key(|one| (one.range.start, std::cmp::Reverse(one.range.end)));
    let mut apart: Vec<Match> = Vec::with_capacity(found.len());
    for next in found {
        match apart.last_mut().filter(|before| next.range.start < before.range.end) {
            Some(before) if next.range.end > before.range.end => {
                let joined = before.range.start..next.range.end;
                if next.range.len() > before.range.len() {
                    *before = next;
                }
                before.range = joined;
            }
            Some(_) => {}
            None => apart.push(next),
        }
    }
    apart
}

struct Entry {
    tag: u32,
    print: u32,
    offset: u32,
}

/// Fingerprints of windows, in order, behind a bitmap of them.
#[derive(Default)]
struct Table {
    stride: usize,
    entries: Vec<Entry>,
    bitmap: Box<[u64]>,
}

impl Table {
    fn new(stride: usize, mut entries: Vec<Entry>) -> Self {
        if entries.is_empty() {
            return Self::default();
        }
        entries.sort_by_key(|entry| entry.tag);
        let bits = (entries.len() * BITS_PER_ENTRY).next_power_of_two().clamp(FEWEST_BITS, MOST_BITS);
        let mut bitmap = vec![0_u64; bits / 64].into_boxed_slice();
        for entry in &entries {
            bitmap[word_of(entry.tag, bitmap.len())] |= 1 << (entry.tag % 64);
        }
        Self { stride, entries, bitmap }
    }

    fn scan(&self, windows: Windows, text: &[u8], mut hit: impl FnMut(&Entry, usize)) {
        let bitmap = &*self.bitmap;
        let mut look = |bytes: [u8; WINDOW], at: usize| {
            let tag = tag(windows.hash(u64::from_le_bytes(bytes)));
            if bitmap[word_of(tag, bitmap.len())] >> (tag % 64) & 1 != 0 {
                self.entries_of(tag).for_each(|entry| hit(entry, at));
            }
        };
        if self.stride == WINDOW {
            for (number, bytes) in text.as_chunks::<WINDOW>().0.iter().enumerate() {
                look(*bytes, number * WINDOW);
            }
        } else {
            let mut at = 0;
            while let Some(bytes) = text[at..].first_chunk::<WINDOW>() {
                look(*bytes, at);
                at += self.stride;
            }
        }
    }

    fn entries_of(&self, tag: u32) -> impl Iterator<Item = &Entry> {
        let from = self.entries.partition_point(|entry| entry.tag < tag);
        self.entries[from..].iter().take_while(move |entry| entry.tag == tag)
    }
}

/// Which word of a bitmap of `words`, a power of two, has the tag's bit; the six lowest bits of the tag say which bit it is.
fn word_of(tag: u32, words: usize) -> usize {
    (tag >> 6) as usize & (words - 1)
}

fn tag(hash: u64) -> u32 {
    hash as u32
}

fn window_at(text: &[u8], at: usize) -> Option<u64> {
    text.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Where the 15 bytes begin that vary most: `https://` in front of a value occurs in every other text.
fn most_varied(text: &[u8]) -> usize {
    let variety = |part: &[u8]| {
        let mut seen = [false; 256];
        part.iter().for_each(|byte| seen[usize::from(*byte)] = true);
        seen.iter().filter(|seen| **seen).count()
    };
    let parts = text.windows(LONG).take(LOOKED_AT).enumerate();
    // The first of the best would be the one at the front.
    parts.max_by_key(|(_, part)| variety(part)).map_or(0, |(at, _)| at)
}

/// Bytes of a window.
const WINDOW: usize = 8;
const STRIDE: usize = 8;
/// From here on, eight windows follow each other in a form.
const LONG: usize = WINDOW + STRIDE - 1;
/// Two words for windows, and the key of digests.
const KEY_BYTES: usize = 16 + 32;
const BITS_PER_ENTRY: usize = 128;
/// 8 KiB, which stay in the nearest cache.
const FEWEST_BITS: usize = 1 << 16;
const MOST_BITS: usize = 1 << 23;
const LOOKED_AT: usize = 256;
