//! A JSON object as its members in order, each value as it was written: for messages that have to be written anew, where all but a few of
//! their members stay as they are.
//!
//! What only loses or changes a value in place is `splice`'s business. Invariant: a value that is not set here keeps its bytes.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::json;
use serde_json::value::RawValue;

#[derive(Debug, Clone, Default)]
pub struct Members<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Members<'a> {
    /// `None`: the text is no object.
    pub fn read(text: &'a str) -> Option<Self> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let members = reader.deserialize_map(InOrder).ok()?;
        reader.end().ok()?;
        Some(members)
    }

    /// The value as JSON.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| &**value)
    }

    /// The value, if it is an object.
    pub fn object(&self, key: &str) -> Option<Members<'_>> {
        Members::read(self.get(key)?)
    }

    /// The value, if it is a text.
    pub fn text(&self, key: &str) -> Option<String> {
        serde_json::from_str(self.get(key)?).ok()
    }

    pub fn is_true(&self, key: &str) -> bool {
        self.get(key) == Some("true")
    }

    /// Puts JSON in the place of a member, or at the end.
    pub fn set(&mut self, key: &'a str, value: impl Into<Cow<'a, str>>) {
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value.into(),
            None => self.0.push((key.into(), value.into())),
        }
    }

    pub fn remove(&mut self, key: &str) {
        self.0.retain(|(name, _)| name != key);
    }

    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|(name, _)| keep(name));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// The same, free of the text that it was read from.
    pub fn into_owned<'b>(self) -> Members<'b> {
        let owned = self.0.into_iter().map(|(key, value)| (key.into_owned().into(), value.into_owned().into()));
        Members(owned.collect())
    }

    pub fn write(&self) -> String {
        let mut text =
            String::with_capacity(2 + self.0.iter().map(|(key, value)| key.len() + value.len() + 4).sum::<usize>());
        for (key, value) in &self.0 {
            text.push(if text.is_empty() { '{' } else { ',' });
            text.push_str(&json!(key).to_string());
            text.push(':');
            text.push_str(value);
        }
        if text.is_empty() {
            text.push('{');
        }
        text.push('}');
        text
    }
}

struct InOrder;

impl<'a> Visitor<'a> for InOrder {
    type Value = Members<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, &'a RawValue>()? {
            members.push((key.into(), value.get().into()));
        }
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_keeps_its_place_and_its_bytes() {
        let mut members = Members::read(r#"{ "a" : 1.0e2, "b":{"x" : [1,2]},"c":"\u0041" }"#).unwrap();
        members.set("b", "2");
        members.set("d", json!("q\"").to_string());
        members.remove("nothing");
        assert_eq!(members.write(), r#"{"a":1.0e2,"b":2,"c":"\u0041","d":"q\""}"#);
        assert_eq!(members.text("c").as_deref(), Some("A"));
        members.retain(|key| key == "a");
        assert_eq!(members.write(), r#"{"a":1.0e2}"#);
    }

    #[test]
    fn nothing_but_an_object_has_members() {
        assert_eq!(Members::read("{}").unwrap().write(), "{}");
        for other in ["[]", "1", "{", "{} {}", ""] {
            assert!(Members::read(other).is_none(), "{other}");
        }
    }
}
