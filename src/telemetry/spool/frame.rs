//! The frame: what a segment of the spool consists of, and nothing else. This is the on-disk format, version 1.
//!
//! ```text
//! offset size
//!      0    4  length of the payload
//!      4    4  CRC-32 (IEEE 802.3) of the four bytes of the length, then of the payload
//!      8       the payload:
//!      0    4    "MSP1": the marker, and in its last character the version of the format
//!      4    1    kind: 0 records, 1 checkpoints
//!      5    1    0
//!      6    2    length of the source's name; 0: no checkpoint
//!      8    2    length of the source's position
//!     10    2    0
//!     12    4    how many records are in the body
//!     16    8    the number of the first of them, counted in this lane from 0
//!     24    8    when it was appended, in milliseconds since 1970
//!     32         the source's name (UTF-8), its position, the body
//! ```
//!
//! All numbers are little-endian. The body of a frame of records is an encoded OTLP export request; it may be empty, when only the
//! position moves. The body of a frame of checkpoints is, for each source, the two lengths (2 bytes each), its name and its position.
//! An empty position takes a source out.
//!
//! Invariants: numbers grow from frame to frame, without a gap, so that a gap says how many records were in frames that cannot be read.
//! A frame whose sum is wrong is skipped: to where its length says the next one is, if there is one, and else to the next marker under
//! which a good frame lies. Nothing here does I/O.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use memchr::memmem;

/// Where a source of records stands, in its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint<'a> {
    /// The same after a restart: `file:DEVICE:INODE`. At most `MOST_SOURCE_BYTES`.
    pub source: &'a str,
    /// Everything before it is in the spool. Empty: the source is gone. At most `MOST_POSITION_BYTES`.
    pub position: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Records,
    Checkpoints,
}

/// A frame as it is read: slices of what was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub first: u64,
    pub records: u32,
    pub appended: SystemTime,
    pub source: Bytes,
    pub position: Bytes,
    pub body: Bytes,
    /// With its head.
    pub length: usize,
}

/// What is at a place where a frame should be.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Frame(Frame),
    /// This many bytes are needed to tell.
    Short(usize),
    Damaged,
}

/// Appends a frame of records to `out`.
pub fn write(out: &mut Vec<u8>, first: u64, records: u32, body: &[u8], checkpoint: Option<Checkpoint<'_>>) {
    let none = Checkpoint { source: "", position: &[] };
    let head = Head { kind: 0, first, records, checkpoint: checkpoint.unwrap_or(none) };
    head.write(out, |out| out.extend_from_slice(body));
}

/// Appends a frame that says where every source stands.
pub fn write_checkpoints<'a>(out: &mut Vec<u8>, next: u64, sources: impl Iterator<Item = Checkpoint<'a>>) {
    let head = Head { kind: 1, first: next, records: 0, checkpoint: Checkpoint { source: "", position: &[] } };
    head.write(out, |out| {
        for checkpoint in sources {
            out.extend_from_slice(&short(checkpoint.source.len()).to_le_bytes());
            out.extend_from_slice(&short(checkpoint.position.len()).to_le_bytes());
            out.extend_from_slice(checkpoint.source.as_bytes());
            out.extend_from_slice(checkpoint.position);
        }
    });
}

struct Head<'a> {
    kind: u8,
    first: u64,
    records: u32,
    checkpoint: Checkpoint<'a>,
}

impl Head<'_> {
    fn write(&self, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
        let start = out.len();
        out.extend_from_slice(&[0; PREFIX]);
        out.extend_from_slice(MARKER);
        out.extend_from_slice(&[self.kind, 0]);
        out.extend_from_slice(&short(self.checkpoint.source.len()).to_le_bytes());
        out.extend_from_slice(&short(self.checkpoint.position.len()).to_le_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&self.records.to_le_bytes());
        out.extend_from_slice(&self.first.to_le_bytes());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        out.extend_from_slice(&u64::try_from(now).unwrap_or(u64::MAX).to_le_bytes());
        out.extend_from_slice(self.checkpoint.source.as_bytes());
        out.extend_from_slice(self.checkpoint.position);
        body(out);
        // `MOST_PAYLOAD_BYTES` is checked before anything is written.
        let length = u32::try_from(out.len() - start - PREFIX).unwrap_or(u32::MAX).to_le_bytes();
        let sum = sum(length, &out[start + PREFIX..]);
        out[start..start + 4].copy_from_slice(&length);
        out[start + 4..start + PREFIX].copy_from_slice(&sum.to_le_bytes());
    }
}

/// How long the frame of such a record will be.
pub fn length_of(body: usize, checkpoint: Option<Checkpoint<'_>>) -> usize {
    PREFIX
        + PAYLOAD_HEAD
        + body
        + checkpoint.map_or(0, |checkpoint| checkpoint.source.len() + checkpoint.position.len())
}

/// Reads the frame at the beginning of `bytes`.
pub fn read(bytes: &Bytes) -> Found {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else { return Found::Short(PREFIX) };
    let [l0, l1, l2, l3, s0, s1, s2, s3] = *prefix;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if !(PAYLOAD_HEAD..=MOST_PAYLOAD_BYTES).contains(&length) {
        return Found::Damaged;
    }
    if bytes.len() < PREFIX + length {
        return Found::Short(PREFIX + length);
    }
    let payload = bytes.slice(PREFIX..PREFIX + length);
    if !payload.starts_with(MARKER) || sum([l0, l1, l2, l3], &payload) != u32::from_le_bytes([s0, s1, s2, s3]) {
        return Found::Damaged;
    }
    parse(&payload).map_or(Found::Damaged, Found::Frame)
}

fn parse(payload: &Bytes) -> Option<Frame> {
    let number = |at: usize| Some(u64::from_le_bytes(*payload.get(at..)?.first_chunk()?));
    let kind = match payload[4] {
        0 => Kind::Records,
        1 => Kind::Checkpoints,
        _ => return None,
    };
    let source_end = PAYLOAD_HEAD + usize::from(u16::from_le_bytes(*payload[6..].first_chunk()?));
    let position_end = source_end + usize::from(u16::from_le_bytes(*payload[8..].first_chunk()?));
    let first = number(16)?;
    if position_end > payload.len() || first > MOST_NUMBER {
        return None;
    }
    Some(Frame {
        kind,
        records: u32::from_le_bytes(*payload[12..].first_chunk()?),
        first,
        appended: UNIX_EPOCH.checked_add(Duration::from_millis(number(24)?)).unwrap_or(UNIX_EPOCH),
        source: payload.slice(PAYLOAD_HEAD..source_end),
        position: payload.slice(source_end..position_end),
        body: payload.slice(position_end..),
        length: PREFIX + payload.len(),
    })
}

/// The sources in the body of a frame of checkpoints, as far as they can be read.
pub fn checkpoints(body: &Bytes) -> impl Iterator<Item = (String, Bytes)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let lengths = body.get(at..)?.first_chunk::<4>()?;
        let source_end = at + 4 + usize::from(u16::from_le_bytes([lengths[0], lengths[1]]));
        let position_end = source_end + usize::from(u16::from_le_bytes([lengths[2], lengths[3]]));
        if position_end > body.len() {
            return None;
        }
        let source = String::from_utf8_lossy(&body[at + 4..source_end]).into_owned();
        at = position_end;
        Some((source, body.slice(source_end..position_end)))
    })
}

/// Where in `bytes`, which begin with a damaged frame, the next good one begins. Only those count whose number is `from` or more.
pub fn next_good(bytes: &Bytes, from: u64) -> Option<usize> {
    let good =
        |at: usize| at < bytes.len() && matches!(read(&bytes.slice(at..)), Found::Frame(frame) if frame.first >= from);
    if let Some(length) = bytes.first_chunk::<4>().map(|length| u32::from_le_bytes(*length) as usize)
        && length <= MOST_PAYLOAD_BYTES
        && good(PREFIX + length)
    {
        return Some(PREFIX + length);
    }
    memmem::find_iter(bytes, MARKER).filter_map(|at| at.checked_sub(PREFIX)).find(|at| *at > 0 && good(*at))
}

fn sum(length: [u8; 4], payload: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&length);
    sum.update(payload);
    sum.finalize()
}

/// Callers keep to `MOST_SOURCE_BYTES` and `MOST_POSITION_BYTES`, which fit.
fn short(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

/// Before the payload.
pub const PREFIX: usize = 8;
const PAYLOAD_HEAD: usize = 32;
const MARKER: &[u8; 4] = b"MSP1";
/// No record gets a greater number; what says so was not written here.
pub const MOST_NUMBER: u64 = 1 << 62;
/// One body: half a segment.
pub const MOST_BODY_BYTES: usize = 4 * 1024 * 1024;
pub const MOST_SOURCE_BYTES: usize = 512;
pub const MOST_POSITION_BYTES: usize = 2048;
/// A table of as many sources as are kept is larger than the largest body.
const MOST_PAYLOAD_BYTES: usize = 6 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> (Bytes, [usize; 2]) {
        let mut out = Vec::new();
        write(&mut out, 5, 2, b"first", Some(Checkpoint { source: "file:1:2", position: b"77" }));
        let second = out.len();
        write(&mut out, 7, 1, b"second", None);
        let third = out.len();
        write(&mut out, 8, 1, b"third", None);
        (out.into(), [second, third])
    }

    fn frame(bytes: &Bytes, at: usize) -> Frame {
        match read(&bytes.slice(at..)) {
            Found::Frame(frame) => frame,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let (bytes, [second, third]) = three();
        let first = frame(&bytes, 0);
        assert_eq!((first.kind, first.first, first.records, first.length), (Kind::Records, 5, 2, second));
        assert_eq!(
            (&first.source[..], &first.position[..], &first.body[..]),
            (&b"file:1:2"[..], &b"77"[..], &b"first"[..])
        );
        assert!(first.appended.elapsed().unwrap() < Duration::from_secs(60));
        assert_eq!(frame(&bytes, third).body, "third");
        assert_eq!(read(&bytes.slice(third..bytes.len() - 1)), Found::Short(bytes.len() - third));
    }

    #[test]
    fn a_table_of_sources_is_read_back() {
        let mut out = Vec::new();
        let sources = [("a", &b"1"[..]), ("b", &b""[..]), ("c", &b"333"[..])];
        write_checkpoints(&mut out, 9, sources.iter().map(|(source, position)| Checkpoint { source, position }));
        let table = frame(&out.into(), 0);
        assert_eq!((table.kind, table.first, table.records), (Kind::Checkpoints, 9, 0));
        let found: Vec<_> = checkpoints(&table.body).collect();
        assert_eq!(found.len(), 3);
        assert_eq!((found[2].0.as_str(), &found[2].1[..]), ("c", &b"333"[..]));
    }

    #[test]
    fn a_flipped_bit_costs_its_own_frame_at_most() {
        let (whole, [second, third]) = three();
        for bit in 0..second * 8 {
            let mut bytes = whole.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let bytes = Bytes::from(bytes);
            assert!(!matches!(read(&bytes), Found::Frame(_)), "bit {bit}");
            assert_eq!(next_good(&bytes, 0), Some(second), "bit {bit}");
            assert_eq!(next_good(&bytes, 8), Some(third), "bit {bit}");
        }
    }
}
