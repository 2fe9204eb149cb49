//! The chain that makes a changed audit file noticeable.
//!
//! Each line ends in `,"hash":"HEX"}`. HEX is SHA-256 over the 32 bytes of the hash of the record before it, followed by the line's own bytes
//! up to and not including `,"hash":`. Before the first record of all there are 32 zero bytes. A file that is begun anew begins with the event
//! `audit.opened`, which names the hash and the number of the last record before it, so that a file can be verified by itself too.
//!
//! The chain is not keyed: whoever may write the file can make a new one. That is what anchors are for, the hashes that leave the machine.

use std::fmt;

use ring::digest::{Context, SHA256};

/// The hash of one record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash([u8; 32]);

impl Hash {
    /// Before the first record.
    pub const START: Self = Self([0; 32]);

    /// Of a record whose line is `body` up to its own hash.
    pub fn after(self, body: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&self.0);
        context.update(body);
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        Self(hash)
    }

    pub fn parse(hex: &str) -> Option<Self> {
        let mut hash = [0; 32];
        let digits = hex.as_bytes();
        if digits.len() != HEX_DIGITS {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
        }
        Some(Self(hash))
    }

    pub fn write_hex(self, out: &mut Vec<u8>) {
        super::line::write_hex(out, &self.0);
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Ends a line that `line::write_line` has begun, and returns its hash.
pub fn seal(line: &mut Vec<u8>, before: Hash) -> Hash {
    let hash = before.after(line);
    line.extend_from_slice(FIELD);
    hash.write_hex(line);
    line.extend_from_slice(b"\"}\n");
    hash
}

/// The body and the hash of a line without its line feed; `None` when it does not end in a hash.
pub fn unseal(line: &[u8]) -> Option<(&[u8], Hash)> {
    let body = line.len().checked_sub(FIELD.len() + HEX_DIGITS + 2)?;
    let (body, end) = line.split_at(body);
    let hex = end.strip_prefix(FIELD)?.strip_suffix(b"\"}")?;
    Some((body, Hash::parse(std::str::from_utf8(hex).ok()?)?))
}

/// Lower case only, so that there is one way to write a hash.
fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

const FIELD: &[u8] = b",\"hash\":\"";
const HEX_DIGITS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_sha_256_as_documented() {
        let mut line = b"{\"seq\":1".to_vec();
        let hash = seal(&mut line, Hash::START);
        // printf '%064d' 0 | xxd -r -p | cat - <(printf '{"seq":1') | sha256sum
        assert_eq!(hash.to_string(), "9f186e4202fb2b3f60caaf20c0eab567a648a0bf63b6105e2794fa624c0dd11d");
        assert_eq!(unseal(line.trim_ascii_end()), Some((&b"{\"seq\":1"[..], hash)));
        assert_eq!(Hash::parse(&hash.to_string()), Some(hash));
        assert_eq!(Hash::parse(&hash.to_string().to_uppercase()), None);
        assert_eq!(unseal(b"{\"seq\":1}"), None);
    }
}
