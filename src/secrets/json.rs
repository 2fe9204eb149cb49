//! JSON objects as fields, without a tree of values in between.
//!
//! A field that is not a string becomes its JSON text. To be called where the stack is wiped afterwards. Invariant: no error quotes what
//! was read (`serde_json`'s own messages may, so that only their position is to be used).

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde_json::value::RawValue;

use crate::secret::Secret;

/// An object's members as they stand in the text.
pub(super) type Fields<'a> = BTreeMap<String, &'a RawValue>;

pub(super) fn into_secrets(fields: Fields<'_>) -> Result<BTreeMap<String, Secret>, serde_json::Error> {
    let secret_of = |raw: &RawValue| match raw.get().starts_with('"') {
        true => serde_json::from_str::<JsonString>(raw.get()).map(|text| text.0),
        false => Ok(Secret::copy_from(raw.get().as_bytes())),
    };
    fields.into_iter().map(|(name, raw)| Ok((name, secret_of(raw)?))).collect()
}

/// A JSON string, unescaped straight into locked memory.
struct JsonString(Secret);

impl<'de> Deserialize<'de> for JsonString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = JsonString;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<JsonString, E> {
                Ok(JsonString(Secret::copy_from(text.as_bytes())))
            }
        }

        deserializer.deserialize_str(Text)
    }
}
