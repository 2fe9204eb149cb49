//! The value of one version: what fields it has, and whether it is whole.
//!
//! A text that is a JSON object gives its members as fields; any other text, and a binary value, is one field called `value`. A version
//! without a value, with an empty one, with half a JSON object, or with an empty field where the last good version had something, is what
//! a rotation leaves that went wrong or is under way. Invariant: no problem quotes the value.

use std::collections::{BTreeMap, BTreeSet};

use crate::secret::Secret;

use super::super::json::{Fields, into_secrets};

/// Names and not values: what a version has, for a comparison with the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    object: bool,
    filled: BTreeSet<String>,
    blank: BTreeSet<String>,
}

/// What is wrong with a version; follows `version ID`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    Empty,
    BrokenObject,
    BlankField(String),
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("has no value"),
            Self::BrokenObject => {
                f.write_str("is not whole: the last good version was a JSON object, and this is half of one")
            }
            Self::BlankField(name) => write!(f, "is not whole: its field {name} is empty, which was not before"),
        }
    }
}

/// Must run where the stack is wiped afterwards.
pub(super) fn parse(
    text: Option<String>,
    binary: Option<Vec<u8>>,
    before: Option<&Shape>,
) -> Result<(BTreeMap<String, Secret>, Shape), Flaw> {
    // Locked at once: the plain buffer is wiped here.
    let is_text = text.is_some();
    let value = Secret::new(text.map(String::into_bytes).or(binary).unwrap_or_default());
    if value.expose().iter().all(u8::is_ascii_whitespace) {
        return Err(Flaw::Empty);
    }
    let starts_object = is_text && value.expose().trim_ascii_start().starts_with(b"{");
    let object = if starts_object { object(&value) } else { None };
    let was_object = before.is_some_and(|before| before.object);
    if starts_object && object.is_none() && was_object {
        return Err(Flaw::BrokenObject);
    }
    let is_object = object.is_some();
    let fields = object.unwrap_or_else(|| BTreeMap::from([("value".to_owned(), value)]));
    if fields.is_empty() {
        return Err(Flaw::Empty);
    }
    let is_blank = |value: &Secret| is_object && [b"".as_slice(), b"null"].contains(&value.expose());
    let (blank, filled): (Vec<_>, Vec<_>) = fields.iter().partition(|(_, value)| is_blank(value));
    let names = |fields: Vec<(&String, &Secret)>| fields.into_iter().map(|(name, _)| name.clone()).collect();
    let shape = Shape { object: is_object, filled: names(filled), blank: names(blank) };
    match before.and_then(|before| before.filled.intersection(&shape.blank).next()) {
        Some(name) => Err(Flaw::BlankField(name.clone())),
        None => Ok((fields, shape)),
    }
}

fn object(value: &Secret) -> Option<BTreeMap<String, Secret>> {
    let fields: Fields<'_> = serde_json::from_slice(value.expose()).ok()?;
    into_secrets(fields).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields_of(text: &str) -> Vec<(String, String)> {
        let (fields, _) = parse(Some(text.to_owned()), None, None).unwrap();
        fields.iter().map(|(name, value)| (name.clone(), value.expose_str().unwrap().to_owned())).collect()
    }

    fn after(before: &str, now: &str) -> Option<Flaw> {
        let (_, shape) = parse(Some(before.to_owned()), None, None).unwrap();
        parse(Some(now.to_owned()), None, Some(&shape)).err()
    }

    #[test]
    fn an_object_is_fields_and_anything_else_a_value() {
        let found = fields_of(r#" {"user": "me", "port": 5432, "password": "a\"b"}"#);
        let expected = [("password", "a\"b"), ("port", "5432"), ("user", "me")];
        assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        for text in ["plain", "[1, 2]", "\"quoted\"", "{not json", "null"] {
            assert_eq!(fields_of(text), [("value".to_owned(), text.to_owned())]);
        }
        let (fields, _) = parse(None, Some(b"{\"a\":\xff".to_vec()), None).unwrap();
        assert_eq!(fields["value"].expose(), b"{\"a\":\xff");
    }

    #[test]
    fn what_a_failed_rotation_leaves_is_not_taken_for_a_value() {
        for (text, binary) in
            [(None, None), (Some(""), None), (Some(" \n"), None), (Some("{}"), None), (None, Some(vec![]))]
        {
            assert_eq!(parse(text.map(str::to_owned), binary, None).map(drop), Err(Flaw::Empty));
        }
        let whole = r#"{"user":"me","password":"one","note":""}"#;
        assert_eq!(after(whole, r#"{"user":"me","password":"#), Some(Flaw::BrokenObject));
        assert_eq!(after(whole, r#"{"user":"me","password":""}"#), Some(Flaw::BlankField("password".into())));
        assert_eq!(after(whole, r#"{"user":"me","password":null}"#), Some(Flaw::BlankField("password".into())));
        for fine in [r#"{"user":"me","password":"two","note":""}"#, r#"{"password":"two"}"#, "now a text"] {
            assert_eq!(after(whole, fine), None, "{fine}");
        }
        assert_eq!(after("one", "{half"), None);
    }
}
