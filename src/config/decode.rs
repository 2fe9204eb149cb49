//! Lets serde read a checked tree: a `Deserializer` over `Node`.
//!
//! A text with references to secrets is handed over as bytes (each `${` of a literal escaped as `$${`), a plain text as a string, so
//! that a type which takes both can tell them apart.

use serde::de::value::{Error, MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::sealed;
use super::tree::{Node, Segment, Value};

impl<'de> IntoDeserializer<'de, Error> for &'de Node {
    type Deserializer = NodeReader<'de>;

    fn into_deserializer(self) -> NodeReader<'de> {
        NodeReader(self)
    }
}

pub struct NodeReader<'a>(&'a Node);

impl<'de> Deserializer<'de> for NodeReader<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0.value {
            Value::Null | Value::Wrong => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(&text.text),
            // It was not opened, which has been said.
            Value::Sealed(_) => visitor.visit_byte_buf(Vec::new()),
            Value::WithSecrets(segments) => visitor.visit_byte_buf(encode(segments).into_bytes()),
            Value::List(items) => visitor.visit_seq(SeqDeserializer::new(items.iter())),
            Value::Map(entries) => {
                visitor.visit_map(MapDeserializer::new(entries.iter().map(|entry| (entry.key.as_str(), &entry.node))))
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0.as_str() {
            Some(text) => IntoDeserializer::<Error>::into_deserializer(text).deserialize_enum(name, variants, visitor),
            None => self.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct
        identifier ignored_any
    }
}

fn encode(segments: &[Segment]) -> String {
    let mut text = String::new();
    for segment in segments {
        match segment {
            Segment::Literal(literal) => text.push_str(&literal.replace("${", "$${")),
            Segment::Opened(secret) => text.push_str(&sealed::hand_over(secret)),
            Segment::Secret(reference) => text.push_str(&format!("${{{reference}}}")),
        }
    }
    text
}
