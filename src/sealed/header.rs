//! The header: one lock for each way to the file key, and a MAC over all of it by the file key.
//!
//! ```text
//! age-encryption.org/v1
//! -> KIND ARGUMENT ARGUMENT...
//! the lock's body in base64 without padding, 64 to a line; the last line is shorter and may be empty
//! --- the MAC, in base64
//! ```
//!
//! Locks of a kind that nobody here knows are kept out of the way: another lock may open the file.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::hmac;

use super::{FileKey, SealError};

pub(super) struct Header {
    pub locks: Vec<Lock>,
    /// The bytes that the MAC is about: up to and with `---`.
    pub covered: Vec<u8>,
    pub mac: Vec<u8>,
}

pub(super) struct Lock {
    pub kind: String,
    pub arguments: Vec<String>,
    pub body: Vec<u8>,
}

impl Header {
    /// The header, and how many bytes it takes.
    pub fn parse(sealed: &[u8]) -> Result<(Self, usize), SealError> {
        let mut lines = Lines { bytes: sealed, at: 0 };
        if !sealed.starts_with(FIRST_LINE) {
            return Err(SealError::NotSealed);
        }
        lines.at = FIRST_LINE.len();
        let mut locks = Vec::new();
        loop {
            let start = lines.at;
            let line = lines.next()?;
            if let Some(mac) = line.strip_prefix("--- ") {
                let mac = decode(mac)?;
                return Ok((Self { locks, covered: sealed[..start + 3].to_vec(), mac }, lines.at));
            }
            let words = line.strip_prefix("-> ").ok_or(SealError::Damaged("its header is cut short"))?;
            if locks.len() == MOST_LOCKS {
                return Err(SealError::Damaged("it has too many recipients"));
            }
            locks.push(lock(words, &mut lines)?);
        }
    }

    pub fn write(locks: &[Lock], file_key: &FileKey) -> Result<Vec<u8>, SealError> {
        let mut text = FIRST_LINE.to_vec();
        for lock in locks {
            let body = STANDARD_NO_PAD.encode(&lock.body);
            text.extend_from_slice(format!("-> {} {}\n", lock.kind, lock.arguments.join(" ")).as_bytes());
            for line in body.as_bytes().chunks(COLUMNS) {
                text.extend_from_slice(line);
                text.push(b'\n');
            }
            if body.len().is_multiple_of(COLUMNS) {
                text.push(b'\n');
            }
        }
        text.extend_from_slice(b"---");
        let mac = hmac::sign(&file_key.mac_key()?, &text);
        text.extend_from_slice(format!(" {}\n", STANDARD_NO_PAD.encode(mac)).as_bytes());
        Ok(text)
    }
}

impl Lock {
    pub fn new(kind: &str, arguments: Vec<String>, body: Vec<u8>) -> Self {
        Self { kind: kind.to_owned(), arguments, body }
    }
}

fn lock(words: &str, lines: &mut Lines<'_>) -> Result<Lock, SealError> {
    let mut words = words.split(' ').map(str::to_owned);
    let kind = words.next().unwrap_or_default();
    let arguments: Vec<String> = words.collect();
    let is_word = |word: &String| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_word(&kind) || !arguments.iter().all(is_word) {
        return Err(SealError::Damaged("a lock of its header is not one"));
    }
    let mut body = String::new();
    loop {
        let line = lines.next()?;
        if line.len() > COLUMNS || body.len() > LONGEST_BODY {
            return Err(SealError::Damaged("a line of its header is too long"));
        }
        body.push_str(line);
        if line.len() < COLUMNS {
            return Ok(Lock { kind, arguments, body: decode(&body)? });
        }
    }
}

struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<&'a str, SealError> {
        let rest = &self.bytes[self.at..];
        let length = memchr::memchr(b'\n', rest).ok_or(SealError::Damaged("its header is cut short"))?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| SealError::Damaged("its header is not text"))
    }
}

fn decode(text: &str) -> Result<Vec<u8>, SealError> {
    STANDARD_NO_PAD.decode(text).map_err(|_| SealError::Damaged("its header is not base64"))
}

pub(super) const FIRST_LINE: &[u8] = b"age-encryption.org/v1\n";
const COLUMNS: usize = 64;
const MOST_LOCKS: usize = 64;
/// In base64. No lock that is opened here has more than 43; others may be of a later kind.
const LONGEST_BODY: usize = 8 * 1024;
