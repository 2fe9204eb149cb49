//! JSON lines: one object a line. Keys with a meaning become fields of the record, all others attributes, nested ones too.
//!
//! The values go from serde_json's reader straight into the encoded attributes; no tree is made. serde_json bounds the depth.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::ports::Redactor;

use super::batch::ATTRIBUTES;
use super::fields::{Fields, Scalar};
use super::proto::{self, value};
use super::rules::{Role, Rules};

/// `false` when the line is no JSON object.
pub fn read(line: &str, fields: &mut Fields, rules: &Rules, redactor: &dyn Redactor) -> bool {
    if !line.trim_ascii_start().starts_with('{') {
        return false;
    }
    let mut reader = serde_json::Deserializer::from_str(line);
    let top = Top { fields, rules, redactor };
    reader.deserialize_map(top).is_ok() && reader.end().is_ok()
}

struct Top<'a> {
    fields: &'a mut Fields,
    rules: &'a Rules,
    redactor: &'a dyn Redactor,
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { fields, rules, redactor } = self;
        while let Some(key) = map.next_key_seed(Key(redactor))? {
            let role = rules.role(&key);
            if role == Role::Attribute {
                pair(&mut fields.attributes, ATTRIBUTES, &key, &mut map, redactor)?;
            } else {
                map.next_value_seed(Meant { fields, rules, redactor, role, key: &key })?;
            }
        }
        Ok(())
    }
}

/// Writes a key and its value; of `null` nothing.
fn pair<'de, A: MapAccess<'de>>(
    out: &mut Vec<u8>,
    field: u8,
    key: &str,
    map: &mut A,
    redactor: &dyn Redactor,
) -> Result<(), A::Error> {
    let before = out.len();
    let open = value::begin_pair(out, field, key);
    if map.next_value_seed(Any { out, redactor })? {
        value::end_pair(out, open);
    } else {
        out.truncate(before);
    }
    Ok(())
}

struct Key<'a>(&'a dyn Redactor);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E: Error>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(self.0.redact_text(key).into_owned()))
    }
}

/// The value of a key with a meaning. What does not fit the meaning becomes an attribute.
struct Meant<'a> {
    fields: &'a mut Fields,
    rules: &'a Rules,
    redactor: &'a dyn Redactor,
    role: Role,
    key: &'a str,
}

impl Meant<'_> {
    fn scalar(self, scalar: &Scalar<'_>) {
        if !self.fields.take(self.role, scalar, self.rules) {
            self.fields.attribute(self.key, scalar);
        }
    }

    fn nested<E>(self, write: impl FnOnce(Any<'_>) -> Result<bool, E>) -> Result<(), E> {
        let out = &mut self.fields.attributes;
        let pair = value::begin_pair(out, ATTRIBUTES, self.key);
        write(Any { out, redactor: self.redactor })?;
        value::end_pair(out, pair);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Meant<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Meant<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, yes: bool) -> Result<(), E> {
        self.scalar(&Scalar::Bool(yes));
        Ok(())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
        self.scalar(&Scalar::Integer(number));
        Ok(())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.scalar(&Scalar::Unsigned(number));
        Ok(())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        self.scalar(&Scalar::Double(number));
        Ok(())
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<(), E> {
        self.scalar(&Scalar::Text(text));
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let clean = self.redactor.redact_text(text);
        self.scalar(&Scalar::Text(&clean));
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        self.nested(|any| any.visit_map(map))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        self.nested(|any| any.visit_seq(seq))
    }
}

/// Any value, written as an `AnyValue`. `false`: it is `null`, and nothing was written.
struct Any<'a> {
    out: &'a mut Vec<u8>,
    redactor: &'a dyn Redactor,
}

impl<'de> DeserializeSeed<'de> for Any<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Any<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_bool<E: Error>(self, yes: bool) -> Result<bool, E> {
        value::boolean(self.out, yes);
        Ok(true)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<bool, E> {
        value::integer(self.out, number);
        Ok(true)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<bool, E> {
        match i64::try_from(number) {
            Ok(number) => value::integer(self.out, number),
            // Digits that a double would lose.
            Err(_) => value::text(self.out, &number.to_string()),
        }
        Ok(true)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<bool, E> {
        value::double(self.out, number);
        Ok(true)
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<bool, E> {
        value::text(self.out, text);
        Ok(true)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<bool, E> {
        value::text(self.out, &self.redactor.redact_text(text));
        Ok(true)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let Self { out, redactor } = self;
        let start = proto::open(out, value::MAP);
        while let Some(key) = map.next_key_seed(Key(redactor))? {
            pair(out, 1, &key, &mut map, redactor)?;
        }
        proto::close(out, start);
        Ok(true)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<bool, A::Error> {
        let Self { out, redactor } = self;
        let start = proto::open(out, value::ARRAY);
        loop {
            // An element without a value is an empty message: it keeps its place.
            let element = proto::open(out, 1);
            match seq.next_element_seed(Any { out: &mut *out, redactor })? {
                Some(_) => proto::close(out, element),
                None => {
                    out.truncate(element - 2);
                    break;
                }
            }
        }
        proto::close(out, start);
        Ok(true)
    }
}
