//! An OTLP request in JSON, written as protobuf on the way through serde_json's reader: no tree of it is made.
//!
//! The mapping is OTLP's (specification, "JSON Protobuf Encoding"): ids in hexadecimal digits, enumerations and 64-bit numbers as numbers
//! or as texts, names in lowerCamelCase, other bytes in base64. Unknown fields are left out, `null` is as good as absent.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::schema::{Field, Kind, Schema};
use super::walk::{insert_length, proto_key};
use crate::telemetry::lines::proto;

/// The same request in protobuf; the reason why not, without a word of the request.
pub fn to_protobuf(schema: &'static Schema, body: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(body.len());
    let mut reader = serde_json::Deserializer::from_slice(body);
    let place = |error: serde_json::Error| {
        format!("not the JSON of a request (line {}, column {})", error.line(), error.column())
    };
    Object { schema, out: &mut out }.deserialize(&mut reader).map_err(place)?;
    reader.end().map_err(place)?;
    Ok(out)
}

/// A message, its fields one after the other.
struct Object<'a> {
    schema: &'static Schema,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut name = String::new();
        while map.next_key_seed(Name(&mut name))?.is_some() {
            match self.schema.by_name(&name) {
                Some(field) => map.next_value_seed(Value { field, out: self.out, is_element: false })?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

struct Name<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<(), E> {
        self.0.clear();
        self.0.push_str(name);
        Ok(())
    }
}

/// The value of a field, or one of several.
struct Value<'a> {
    field: &'static Field,
    out: &'a mut Vec<u8>,
    is_element: bool,
}

impl Value<'_> {
    fn key(&mut self, wire: u64) {
        proto::varint(self.out, u64::from(self.field.number) << 3 | wire);
    }

    fn delimited(&mut self, content: &[u8]) {
        self.key(2);
        proto::varint(self.out, content.len() as u64);
        self.out.extend_from_slice(content);
    }

    /// A number of any kind. `None`: it is out of its range, or no number belongs here.
    fn number(&mut self, number: Number) -> Option<()> {
        match self.field.kind {
            Kind::Uint32 | Kind::Enum => self.varint(u64::from(number.unsigned().and_then(|n| u32::try_from(n).ok())?)),
            Kind::Uint64 => self.varint(number.unsigned()?),
            Kind::Int64 => self.varint(number.signed()? as u64),
            Kind::Sint32 => {
                let small = i32::try_from(number.signed()?).ok()?;
                self.varint(u64::from((small << 1 ^ small >> 31) as u32));
            }
            Kind::Fixed32 => {
                let small = number.unsigned().and_then(|n| u32::try_from(n).ok())?;
                self.key(5);
                self.out.extend_from_slice(&small.to_le_bytes());
            }
            Kind::Fixed64 => self.fixed(number.unsigned()?.to_le_bytes()),
            Kind::Sfixed64 => self.fixed(number.signed()?.to_le_bytes()),
            Kind::Double => self.fixed(number.double().to_le_bytes()),
            Kind::Text | Kind::Bytes | Kind::Id | Kind::Bool | Kind::Message(_) | Kind::Record(_) => return None,
        }
        Some(())
    }

    fn varint(&mut self, number: u64) {
        self.key(0);
        proto::varint(self.out, number);
    }

    fn fixed(&mut self, bytes: [u8; 8]) {
        self.key(1);
        self.out.extend_from_slice(&bytes);
    }

    fn text(&mut self, text: &str) -> Option<()> {
        match self.field.kind {
            Kind::Text => self.delimited(text.as_bytes()),
            Kind::Bytes => self.delimited(&STANDARD.decode(text).ok()?),
            Kind::Id => self.delimited(&unhex(text)?),
            Kind::Bool | Kind::Message(_) | Kind::Record(_) => return None,
            _ => self.number(Number::parse(text)?)?,
        }
        Some(())
    }
}

#[derive(Clone, Copy)]
enum Number {
    Unsigned(u64),
    Signed(i64),
    Double(f64),
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "NaN" => return Some(Self::Double(f64::NAN)),
            "Infinity" => return Some(Self::Double(f64::INFINITY)),
            "-Infinity" => return Some(Self::Double(f64::NEG_INFINITY)),
            _ => {}
        }
        let unsigned = text.parse().map(Self::Unsigned).ok();
        let signed = || text.parse().map(Self::Signed).ok();
        unsigned.or_else(signed).or_else(|| text.parse().map(Self::Double).ok())
    }

    fn unsigned(self) -> Option<u64> {
        match self {
            Self::Unsigned(number) => Some(number),
            Self::Signed(number) => u64::try_from(number).ok(),
            Self::Double(number) => (number.fract() == 0.0 && (0.0..1.8e19).contains(&number)).then_some(number as u64),
        }
    }

    fn signed(self) -> Option<i64> {
        match self {
            Self::Unsigned(number) => i64::try_from(number).ok(),
            Self::Signed(number) => Some(number),
            Self::Double(number) => (number.fract() == 0.0 && number.abs() < 9.2e18).then_some(number as i64),
        }
    }

    fn double(self) -> f64 {
        match self {
            Self::Unsigned(number) => number as f64,
            Self::Signed(number) => number as f64,
            Self::Double(number) => number,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value of {}", self.field.name)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(mut self, yes: bool) -> Result<(), E> {
        match self.field.kind {
            Kind::Bool => self.varint(u64::from(yes)),
            _ => return Err(E::custom("not a boolean")),
        }
        Ok(())
    }

    fn visit_u64<E: Error>(mut self, number: u64) -> Result<(), E> {
        self.number(Number::Unsigned(number)).ok_or_else(|| E::custom("not such a number"))
    }

    fn visit_i64<E: Error>(mut self, number: i64) -> Result<(), E> {
        self.number(Number::Signed(number)).ok_or_else(|| E::custom("not such a number"))
    }

    fn visit_f64<E: Error>(mut self, number: f64) -> Result<(), E> {
        self.number(Number::Double(number)).ok_or_else(|| E::custom("not such a number"))
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<(), E> {
        self.text(text).ok_or_else(|| E::custom("not such a text"))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let (Kind::Message(schema) | Kind::Record(schema)) = self.field.kind else {
            return Err(A::Error::custom("not an object"));
        };
        proto_key(self.out, self.field.number);
        let begin = self.out.len();
        Object { schema, out: &mut *self.out }.visit_map(map)?;
        insert_length(self.out, begin);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if !self.field.is_repeated || self.is_element {
            return Err(A::Error::custom("not a list"));
        }
        while seq.next_element_seed(Value { field: self.field, out: &mut *self.out, is_element: true })?.is_some() {}
        Ok(())
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    pairs.iter().map(|[high, low]| Some((digit(*high)? << 4 | digit(*low)?) as u8)).collect()
}
