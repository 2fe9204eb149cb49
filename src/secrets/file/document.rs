//! The YAML of a secrets file: from text and key to fields.
//!
//! Two passes: the first tells mappings from scalars, the second takes each scalar as it is written, whatever YAML would make of it.
//! A problem carries a position and words of this file's own, never the parser's message, which may quote a value.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_yaml::Options;

use crate::secret::Secret;

/// What is wrong with a document; shown after the file's name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    NoSuchKey,
    At {
        line: u64,
        column: u64,
        what: &'static str,
    },
    /// About the field of this name.
    Field {
        name: String,
        what: &'static str,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchKey => f.write_str(": no such key"),
            Self::At { line, column, what } => write!(f, ":{line}:{column}: {what}"),
            Self::Field { name, what } => write!(f, ": {name}: {what}"),
        }
    }
}

/// The fields under `key`, or those of the whole document when it is empty.
pub(super) fn fields(text: &str, key: &str) -> Result<BTreeMap<String, Secret>, Problem> {
    let outline: Outline = parse(text, Seed(std::marker::PhantomData))?;
    let top = match outline {
        Outline::Mapping(top) => top,
        Outline::Nothing => BTreeMap::new(),
        _ => return Err(Problem::At { line: 1, column: 1, what: "the file must be a mapping of names to values" }),
    };
    if key.is_empty() {
        must_be_scalars(&top)?;
        return parse(text, FieldsOf { key: None, nested: false });
    }
    match top.get(key) {
        None => Err(Problem::NoSuchKey),
        Some(Outline::Mapping(inner)) => {
            must_be_scalars(inner)?;
            parse(text, FieldsOf { key: Some(key), nested: true })
        }
        Some(Outline::Scalar) => parse(text, FieldsOf { key: Some(key), nested: false }),
        Some(Outline::Nothing) => Err(Problem::Field { name: key.to_owned(), what: HAS_NO_VALUE }),
        Some(Outline::Sequence) => Err(Problem::Field { name: key.to_owned(), what: IS_A_LIST }),
    }
}

fn must_be_scalars(fields: &BTreeMap<String, Outline>) -> Result<(), Problem> {
    for (name, outline) in fields {
        let what = match outline {
            Outline::Scalar => continue,
            Outline::Nothing => HAS_NO_VALUE,
            Outline::Sequence => IS_A_LIST,
            Outline::Mapping(_) => "is a mapping, which is too deep for a field; name it as the item's path",
        };
        return Err(Problem::Field { name: name.clone(), what });
    }
    Ok(())
}

fn parse<'de, S: DeserializeSeed<'de>>(text: &'de str, seed: S) -> Result<S::Value, Problem> {
    serde_yaml::with_deserializer_from_str_with_options(text, options(), |deserializer| seed.deserialize(deserializer))
        .map_err(|error| {
            let what = match error.without_snippet() {
                serde_yaml::Error::DuplicateMappingKey { .. } => "the same key stands twice",
                serde_yaml::Error::MultipleDocuments { .. } => "there is more than one document",
                serde_yaml::Error::Budget { .. } => "the file is too large, too deep or has too many anchors",
                _ => "not valid YAML, or not of the expected shape",
            };
            let location = error.location();
            let (line, column) = location.map_or((1, 1), |at| (at.line(), at.column()));
            Problem::At { line, column, what }
        })
}

/// No snippets (they quote the lines around an error), nothing guessed, and bounded work.
fn options() -> Options {
    serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_events: 100_000,
            max_nodes: 20_000,
            max_depth: 64,
            max_anchors: 64,
        },
        with_snippet: false,
        strict_booleans: true,
    }
}

/// The shape of a node, two levels deep.
enum Outline {
    Scalar,
    Nothing,
    Sequence,
    Mapping(BTreeMap<String, Outline>),
}

struct Seed<T>(std::marker::PhantomData<T>);

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Seed<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        T::deserialize(deserializer)
    }
}

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OutlineVisitor)
    }
}

struct OutlineVisitor;

impl<'de> Visitor<'de> for OutlineVisitor {
    type Value = Outline;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar or a mapping")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_unit<E: Error>(self) -> Result<Outline, E> {
        Ok(Outline::Nothing)
    }

    fn visit_none<E: Error>(self) -> Result<Outline, E> {
        Ok(Outline::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Outline, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Outline::Sequence)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Outline, A::Error> {
        let mut outline = BTreeMap::new();
        while let Some((name, inner)) = entries.next_entry()? {
            outline.insert(name, inner);
        }
        Ok(Outline::Mapping(outline))
    }
}

/// The second pass: the scalars of the mapping under `key`, or of the document; or the scalar itself as `value`.
struct FieldsOf<'k> {
    key: Option<&'k str>,
    nested: bool,
}

impl<'de> DeserializeSeed<'de> for FieldsOf<'_> {
    type Value = BTreeMap<String, Secret>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldsOf<'_> {
    type Value = BTreeMap<String, Secret>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(name) = entries.next_key::<String>()? {
            match self.key {
                None => drop(fields.insert(name, entries.next_value::<ScalarSecret>()?.0)),
                Some(key) if key == name && self.nested => {
                    fields = entries.next_value_seed(FieldsOf { key: None, nested: false })?;
                }
                Some(key) if key == name => {
                    fields.insert("value".to_owned(), entries.next_value::<ScalarSecret>()?.0);
                }
                Some(_) => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(fields)
    }
}

/// A scalar as it is written, straight into locked memory.
struct ScalarSecret(Secret);

impl<'de> Deserialize<'de> for ScalarSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;

        impl Visitor<'_> for ScalarVisitor {
            type Value = ScalarSecret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a scalar")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ScalarSecret, E> {
                Ok(ScalarSecret(Secret::copy_from(text.as_bytes())))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<ScalarSecret, E> {
                Ok(ScalarSecret(Secret::from(text)))
            }
        }

        deserializer.deserialize_string(ScalarVisitor)
    }
}

const HAS_NO_VALUE: &str = "has no value";
const IS_A_LIST: &str = "is a list; only text, numbers and booleans can be secrets";

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str, key: &str) -> Vec<(String, String)> {
        let fields = fields(text, key).unwrap();
        fields.iter().map(|(name, value)| (name.clone(), value.expose_str().unwrap().to_owned())).collect()
    }

    fn problem(text: &str, key: &str) -> String {
        fields(text, key).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn scalars_stay_as_they_are_written() {
        let text = "port: 5432\npin: 0123\nratio: 1.10\nbig: 1e5\nhex: 0x1F\nyes: true\nquoted: \"a\\tb\"\nblock: |\n  one\n  two\n";
        let expected = [
            ("big", "1e5"),
            ("block", "one\ntwo\n"),
            ("hex", "0x1F"),
            ("pin", "0123"),
            ("port", "5432"),
            ("quoted", "a\tb"),
            ("ratio", "1.10"),
            ("yes", "true"),
        ];
        let expected: Vec<_> = expected.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
        assert_eq!(plain(text, ""), expected);
        assert_eq!(plain(&format!("item:\n  {}", text.trim_end().replace('\n', "\n  ")), "item").len(), 8);
        assert_eq!(plain(text, "pin"), [("value".to_owned(), "0123".to_owned())]);
    }

    #[test]
    fn an_anchor_and_a_merge_are_followed() {
        let text = "base: &b { user: me, token: one }\nother:\n  <<: *b\n  token: two\n";
        assert_eq!(plain(text, "other"), [("token".into(), "two".into()), ("user".into(), "me".to_owned())]);
    }

    #[test]
    fn what_cannot_be_a_field_is_named() {
        assert_eq!(problem("a: [hunter2]\n", "a"), format!(": a: {IS_A_LIST}"));
        assert_eq!(problem("a:\n", "a"), ": a: has no value");
        assert_eq!(problem("a: { b: { c: hunter2 } }\n", "a").split(',').next(), Some(": b: is a mapping"));
        assert_eq!(problem("a: { b: hunter2 }\n", "").split(',').next(), Some(": a: is a mapping"));
        assert_eq!(problem("hunter2\n", "a"), ":1:1: the file must be a mapping of names to values");
        assert_eq!(fields("", "a").map(drop), Err(Problem::NoSuchKey));
    }

    #[test]
    fn errors_carry_a_position_and_never_the_contents() {
        for text in [
            "a: b\nc: [hunter2\n",
            "a: \"hunter2\nb: c\n",
            "a: hunter2\n\tb: hunter2\n",
            "a: hunter2\na: hunter2\n",
            "a: *hunter2\n",
        ] {
            let problem = problem(text, "a");
            assert!(!problem.contains("hunter2"), "{problem}");
            assert!(problem.starts_with(':') && problem.split(':').nth(1).unwrap().parse::<u32>().is_ok(), "{problem}");
        }
        assert_eq!(problem("a: 1\nb: 2\na: 3\n", "b"), ":3:1: the same key stands twice");
    }
}
