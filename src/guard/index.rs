//! Keyed fingerprints of forms, and the search for them in one pass over a text.
//!
//! Of a form this keeps its length, 32 bits of a keyed hash of some windows of eight bytes, and 128 bits of a keyed digest of all of it.
//! The keys lie in locked memory. So there is no value here, and nothing that a value could be made of; and a value can be found after it
//! has been wiped.
//!
//! A text is looked at in windows at a fixed stride. A form of at least 15 bytes has the fingerprints of eight windows that follow each
//! other in the table, so that a stride of eight meets one of them wherever the form begins. Shorter forms have a table of their own with
//! a shorter stride. A table of marks says for nearly every window that there is nothing.

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
    /// The upper bits of the product, which depend on every bit of the window.
    fn tag(self, window: u64) -> u32 {
        ((window ^ self.mask).wrapping_mul(self.factor) >> 32) as u32
    }

    fn tag_at(self, text: &[u8], at: usize) -> Option<u32> {
        window_at(text, at).map(|window| self.tag(window))
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

/// Fingerprints of windows, in order, behind a table that says for nearly every window that there is none.
#[derive(Default)]
struct Table {
    stride: usize,
    entries: Vec<Entry>,
    /// A power of two of bytes. The upper bits of a tag say which one is a window's, the lowest three which bit of it.
    marks: Box<[u8]>,
}

impl Table {
    fn new(stride: usize, mut entries: Vec<Entry>) -> Self {
        if entries.is_empty() {
            return Self::default();
        }
        entries.sort_by_key(|entry| entry.tag);
        // With a long stride a mark in vain costs less a byte of text.
        let room = entries.len() * if stride == STRIDE { 16 } else { 64 };
        let mut marks = vec![0_u8; room.next_power_of_two().clamp(FEWEST_MARKS, MOST_MARKS)].into_boxed_slice();
        let shift = shift_for(marks.len());
        for entry in &entries {
            marks[(entry.tag >> shift) as usize] |= bit_of(entry.tag);
        }
        Self { stride, entries, marks }
    }

    fn scan(&self, windows: Windows, text: &[u8], mut hit: impl FnMut(&Entry, usize)) {
        let (marks, shift) = (&*self.marks, shift_for(self.marks.len()));
        let mark = |bytes: &[u8; WINDOW]| {
            // The mask changes nothing, which the compiler cannot know.
            marks[(windows.tag(u64::from_le_bytes(*bytes)) >> shift) as usize & (marks.len() - 1)]
        };
        let mut look = |bytes: &[u8; WINDOW], at: usize, mark: u8| {
            let tag = windows.tag(u64::from_le_bytes(*bytes));
            if mark & bit_of(tag) != 0 {
                self.entries_of(tag).for_each(|entry| hit(entry, at));
            }
        };
        if self.stride == STRIDE {
            for (number, bytes) in text.as_chunks::<WINDOW>().0.iter().enumerate() {
                let mark = mark(bytes);
                if mark != 0 {
                    look(bytes, number * WINDOW, mark);
                }
            }
            return;
        }
        let (stride, mut at) = (self.stride, 0);
        // Four windows at a time, with one branch.
        while let Some([one, two, three, four]) = four_windows(text, at, stride) {
            if mark(one) | mark(two) | mark(three) | mark(four) != 0 {
                for (number, bytes) in [one, two, three, four].into_iter().enumerate() {
                    look(bytes, at + number * stride, mark(bytes));
                }
            }
            at += 4 * stride;
        }
        while let Some(bytes) = text.get(at..).and_then(|rest| rest.first_chunk()) {
            look(bytes, at, mark(bytes));
            at += stride;
        }
    }

    fn entries_of(&self, tag: u32) -> impl Iterator<Item = &Entry> {
        let from = self.entries.partition_point(|entry| entry.tag < tag);
        self.entries[from..].iter().take_while(move |entry| entry.tag == tag)
    }
}

fn four_windows(text: &[u8], at: usize, stride: usize) -> Option<[&[u8; WINDOW]; 4]> {
    let block = text.get(at..at + 3 * stride + WINDOW)?;
    let window = |number: usize| block.get(number * stride..)?.first_chunk();
    Some([window(0)?, window(1)?, window(2)?, window(3)?])
}

/// Which of the marks is a tag's, its upper bits say.
fn shift_for(marks: usize) -> u32 {
    u32::BITS - marks.trailing_zeros()
}

fn bit_of(tag: u32) -> u8 {
    1 << (tag % 8)
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
/// They stay in the nearest cache.
const FEWEST_MARKS: usize = 32 * 1024;
const MOST_MARKS: usize = 1024 * 1024;
const LOOKED_AT: usize = 256;
