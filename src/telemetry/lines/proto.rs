//! The little of protobuf's wire format that a log record needs, written straight into a buffer.
//!
//! A message inside of another needs its length before it. It is written first and moved by the one byte or two that a longer length takes,
//! so that nothing is built twice and no tree of objects is made.

pub const FIXED64: u8 = 1;
pub const DELIMITED: u8 = 2;

/// The tag of a field whose number is below 16.
pub const fn tag(field: u8, wire: u8) -> u8 {
    (field << 3) | wire
}

pub fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// How many bytes a number takes.
pub const fn varint_length(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

pub fn number(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(tag(field, 0));
    varint(out, value);
}

pub fn fixed64(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(tag(field, FIXED64));
    out.extend_from_slice(&value.to_le_bytes());
}

pub fn bytes(out: &mut Vec<u8>, field: u8, content: &[u8]) {
    out.push(tag(field, DELIMITED));
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

/// A message, or a text, that `write` appends.
pub fn nested<R>(out: &mut Vec<u8>, field: u8, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let start = open(out, field);
    let result = write(out);
    close(out, start);
    result
}

/// Begins a message; what is appended until `close` is in it.
pub fn open(out: &mut Vec<u8>, field: u8) -> usize {
    out.push(tag(field, DELIMITED));
    // Most lengths take one byte.
    out.push(0);
    out.len()
}

pub fn close(out: &mut Vec<u8>, start: usize) {
    let length = out.len() - start;
    let mut digits = [0_u8; 10];
    let (mut count, mut rest) = (0, length);
    loop {
        digits[count] = rest as u8 & 0x7f;
        rest >>= 7;
        count += 1;
        if rest == 0 {
            break;
        }
        digits[count - 1] |= 0x80;
    }
    if count > 1 {
        out.resize(out.len() + count - 1, 0);
        out.copy_within(start..start + length, start + count - 1);
    }
    out[start - 1..start - 1 + count].copy_from_slice(&digits[..count]);
}

/// `AnyValue` (opentelemetry-proto, `common/v1/common.proto`), without its own tag.
pub mod value {
    use super::{FIXED64, nested, open, tag};

    pub fn text(out: &mut Vec<u8>, text: &str) {
        super::bytes(out, 1, text.as_bytes());
    }

    pub fn boolean(out: &mut Vec<u8>, yes: bool) {
        super::number(out, 2, u64::from(yes));
    }

    pub fn integer(out: &mut Vec<u8>, integer: i64) {
        super::number(out, 3, integer as u64);
    }

    pub fn double(out: &mut Vec<u8>, double: f64) {
        out.push(tag(4, FIXED64));
        out.extend_from_slice(&double.to_le_bytes());
    }

    pub const ARRAY: u8 = 5;
    pub const MAP: u8 = 6;

    /// Begins a `KeyValue` under `field` and its value; both end with `end_pair`.
    pub fn begin_pair(out: &mut Vec<u8>, field: u8, key: &str) -> (usize, usize) {
        let pair = open(out, field);
        super::bytes(out, 1, key.as_bytes());
        (pair, open(out, 2))
    }

    pub fn end_pair(out: &mut Vec<u8>, (pair, value): (usize, usize)) {
        super::close(out, value);
        super::close(out, pair);
    }

    /// A `KeyValue` of a text.
    pub fn text_pair(out: &mut Vec<u8>, field: u8, key: &str, content: &str) {
        nested(out, field, |out| {
            super::bytes(out, 1, key.as_bytes());
            nested(out, 2, |out| text(out, content));
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lengths_and_numbers_read_back(number in any::<u64>(), size in prop_oneof![0_usize..300, 16_000_usize..17_000]) {
            let mut out = Vec::new();
            varint(&mut out, number);
            prop_assert_eq!(out.len(), varint_length(number));
            prop_assert_eq!(prost::encoding::decode_varint(&mut &out[..]).unwrap(), number);
            out.clear();
            nested(&mut out, 3, |out| out.extend(std::iter::repeat_n(7_u8, size)));
            let mut rest = &out[1..];
            prop_assert_eq!(prost::decode_length_delimiter(&mut rest).unwrap(), size);
            prop_assert!(rest.len() == size && rest.iter().all(|byte| *byte == 7));
        }
    }
}
