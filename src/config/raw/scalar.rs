//! Scalars of the configuration that have a written form of their own.
//!
//! Each names its form as `format` in the schema; `config::shape` checks the form before these are read.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use url::Url;

use crate::config::sealed;
use crate::config::units;
use crate::mcp::settings::policy::Rate;
use crate::secret::{Part, Secret, SecretRef, SecretText};

macro_rules! scalar {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal, $schema:tt, $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name(pub $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let parse: fn(&str) -> Option<$inner> = $parse;
                parse(&text).map(Self).ok_or_else(|| D::Error::custom(concat!("not a ", $format)))
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

scalar!(
    /// `250ms`, `30s`, `5m`, `1h`, `30d`.
    RawDuration(Duration), "duration", {"type": "string", "format": "duration", "pattern": "^[0-9]+(ms|s|m|h|d)$"}, units::parse_duration
);
scalar!(
    /// `512B`, `64KiB`, `1MiB`.
    RawSize(usize), "size", {"type": "string", "format": "size", "pattern": "^[0-9]+(B|KiB|MiB)$"}, units::parse_size
);
scalar!(
    /// Octal permission bits in quotes: `"0600"`.
    RawMode(u32), "mode", {"type": "string", "format": "mode", "pattern": "^0?[0-7]{3}$"}, units::parse_mode
);
scalar!(
    /// `http` or `https`.
    RawUrl(Url), "url", {"type": "string", "format": "url"}, |text| Url::parse(text).ok()
);
scalar!(
    /// Relative to the file that names it; made absolute by the shape check.
    RawPath(PathBuf), "path", {"type": "string", "format": "path"}, |text| Some(PathBuf::from(text))
);
scalar!(
    /// A signal's name: `SIGHUP`.
    RawSignal(String), "signal", {"type": "string", "format": "signal"}, |text| units::parse_signal(text).map(|_| text.to_owned())
);
scalar!(
    /// A name in which `*` stands for any characters.
    RawGlob(String), "glob", {"type": "string", "format": "glob"}, |text| Some(text.to_owned())
);

scalar!(
    /// So many in a second, a minute or an hour: `10/s`, `100/m`, `1000/h`.
    RawRate(Rate), "rate", {"type": "string", "format": "rate", "pattern": "^[0-9]+/(s|m|h)$"}, units::parse_rate
);

/// Any JSON object.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RawObject(pub serde_json::Map<String, serde_json::Value>);

impl JsonSchema for RawObject {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "RawObject".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "object", "additionalProperties": {}})
    }
}

/// The name or the number of a user or a group of the system.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawAccount {
    Id(u32),
    Name(String),
}

impl RawPath {
    /// `None` for the empty path, which stands for "not set".
    pub fn given(path: Option<Self>) -> Option<PathBuf> {
        path.map(|path| path.0).filter(|path| !path.as_os_str().is_empty())
    }
}

/// A text in which `${secret.ITEM.FIELD}` may stand.
#[derive(Debug, Clone, PartialEq)]
pub struct RawSecretText(pub SecretText);

impl JsonSchema for RawSecretText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "RawSecretText".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "x-secret": true})
    }
}

impl<'de> Deserialize<'de> for RawSecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecretTextVisitor).map(Self)
    }
}

struct SecretTextVisitor;

impl Visitor<'_> for SecretTextVisitor {
    type Value = SecretText;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<SecretText, E> {
        Ok(SecretText::literal(text))
    }

    fn visit_bytes<E: Error>(self, encoded: &[u8]) -> Result<SecretText, E> {
        let text = std::str::from_utf8(encoded).map_err(|_| E::custom("not UTF-8"))?;
        parse_encoded(text).ok_or_else(|| E::custom("not a reference to a secret"))
    }

    fn visit_byte_buf<E: Error>(self, encoded: Vec<u8>) -> Result<SecretText, E> {
        self.visit_bytes(&encoded)
    }
}

/// Reads what `config::decode` wrote.
fn parse_encoded(text: &str) -> Option<SecretText> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            literal.push_str(&rest[..at - 1]);
            literal.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        literal.push_str(&rest[..at]);
        let (inside, after) = rest[at + 2..].split_once('}')?;
        if !literal.is_empty() {
            parts.push(Part::Literal(Arc::new(Secret::from(std::mem::take(&mut literal)))));
        }
        parts.push(match sealed::handed_over(inside) {
            Some(secret) => Part::Literal(secret),
            None => Part::Reference(SecretRef::parse(inside.strip_prefix("secret.")?)?),
        });
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Literal(Arc::new(Secret::from(literal))));
    }
    Some(SecretText::new(parts))
}
