//! An OTLP request in protobuf, gone through once: checked, counted, and with secrets taken out of every text.
//!
//! What has no secret in it comes out as it came in, byte by byte. Fields that nobody here knows are left out, as no one could look for
//! secrets in them. What is not well-formed is refused whole.

use std::borrow::Cow;

use super::schema::{Kind, Schema};
use crate::ports::Redactor;
use crate::telemetry::lines::proto;

/// A request that may go on.
#[derive(Debug, PartialEq, Eq)]
pub struct Walked {
    pub body: Vec<u8>,
    pub records: u32,
}

/// Not the protobuf that it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a well-formed request")]
pub struct Malformed;

pub fn request(schema: &'static Schema, body: &[u8], redactor: &dyn Redactor) -> Result<Walked, Malformed> {
    let mut walk = Walk { redactor, records: 0 };
    let mut out = Vec::with_capacity(body.len());
    walk.message(schema, body, &mut out, 0)?;
    Ok(Walked { body: out, records: walk.records })
}

struct Walk<'a> {
    redactor: &'a dyn Redactor,
    records: u32,
}

impl Walk<'_> {
    fn message(
        &mut self,
        schema: &'static Schema,
        mut rest: &[u8],
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), Malformed> {
        if depth > MOST_DEPTH {
            return Err(Malformed);
        }
        while !rest.is_empty() {
            let start = rest;
            let key = varint(&mut rest)?;
            let (number, wire) = (u32::try_from(key >> 3).map_err(|_| Malformed)?, key & 7);
            let content = content(&mut rest, wire)?;
            let Some(field) = schema.by_number(number) else { continue };
            let whole = &start[..start.len() - rest.len()];
            match (field.kind, wire) {
                (Kind::Text | Kind::Bytes | Kind::Id, 2) => self.text(field.kind, number, content, whole, out)?,
                (Kind::Message(schema) | Kind::Record(schema), 2) => {
                    self.records += u32::from(matches!(field.kind, Kind::Record(_)));
                    proto_key(out, number);
                    let begin = out.len();
                    self.message(schema, content, out, depth + 1)?;
                    insert_length(out, begin);
                }
                // Numbers, one or several in one field.
                (Kind::Bool | Kind::Enum | Kind::Uint32 | Kind::Uint64 | Kind::Int64 | Kind::Sint32, 0)
                | (Kind::Fixed32, 5)
                | (Kind::Fixed64 | Kind::Sfixed64 | Kind::Double, 1) => out.extend_from_slice(whole),
                (kind, 2) if field.is_repeated && is_packed(kind, content) => out.extend_from_slice(whole),
                _ => return Err(Malformed),
            }
        }
        Ok(())
    }

    fn text(
        &mut self,
        kind: Kind,
        number: u32,
        content: &[u8],
        whole: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        if matches!(kind, Kind::Text) && std::str::from_utf8(content).is_err() {
            return Err(Malformed);
        }
        // An id has its own length: it cannot hold anything.
        let clean = match kind {
            Kind::Id if content.len() <= LONGEST_ID => Cow::Borrowed(content),
            Kind::Id => return Err(Malformed),
            _ => self.redactor.redact(content),
        };
        match clean {
            Cow::Borrowed(_) => out.extend_from_slice(whole),
            Cow::Owned(clean) => {
                let clean = if matches!(kind, Kind::Text) {
                    String::from_utf8_lossy(&clean).into_owned().into_bytes()
                } else {
                    clean
                };
                proto_key(out, number);
                proto::varint(out, clean.len() as u64);
                out.extend_from_slice(&clean);
            }
        }
        Ok(())
    }
}

/// What a field has, without its key.
fn content<'a>(rest: &mut &'a [u8], wire: u64) -> Result<&'a [u8], Malformed> {
    let before = *rest;
    let length = match wire {
        0 => {
            varint(rest)?;
            return Ok(&before[..before.len() - rest.len()]);
        }
        1 => 8,
        2 => usize::try_from(varint(rest)?).map_err(|_| Malformed)?,
        5 => 4,
        _ => return Err(Malformed),
    };
    let (content, after) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = after;
    Ok(content)
}

fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    prost::encoding::decode_varint(rest).map_err(|_| Malformed)
}

fn is_packed(kind: Kind, mut content: &[u8]) -> bool {
    match kind {
        Kind::Fixed64 | Kind::Sfixed64 | Kind::Double => content.len().is_multiple_of(8),
        Kind::Fixed32 => content.len().is_multiple_of(4),
        Kind::Uint64 | Kind::Uint32 | Kind::Int64 | Kind::Sint32 | Kind::Bool | Kind::Enum => {
            while !content.is_empty() {
                if varint(&mut content).is_err() {
                    return false;
                }
            }
            true
        }
        Kind::Text | Kind::Bytes | Kind::Id | Kind::Message(_) | Kind::Record(_) => false,
    }
}

/// The key of a field that has a length.
pub fn proto_key(out: &mut Vec<u8>, number: u32) {
    proto::varint(out, u64::from(number) << 3 | 2);
}

/// Puts the length before what was written since `begin`.
pub fn insert_length(out: &mut Vec<u8>, begin: usize) {
    let length = out.len() - begin;
    let digits = proto::varint_length(length as u64);
    out.resize(out.len() + digits, 0);
    out.copy_within(begin..begin + length, begin + digits);
    let mut front = Vec::with_capacity(digits);
    proto::varint(&mut front, length as u64);
    out[begin..begin + digits].copy_from_slice(&front);
}

/// As deep as protobuf's own readers go.
const MOST_DEPTH: usize = 100;
const LONGEST_ID: usize = 64;
