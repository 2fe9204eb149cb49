//! Reads the selected keys of a message in one pass of serde_json over borrowed text.
//!
//! It knows which keys matter and that none of them may occur twice; what a message means is `message`'s business. Values that do not
//! matter are checked for syntax and skipped without being built.
//!
//! Invariant: a refusal has words of ours, of serde_json's about syntax, and places; serde's own words about data quote values, and a
//! value may be a secret.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::message::{Field, MODERN_KEY, Meta, Params, Refusal};
use super::protocol::{META_CAPABILITIES, META_SUBSCRIPTION};

/// The keys of a message, each at most once.
#[derive(Debug, Default)]
pub struct Envelope<'a> {
    pub jsonrpc: Option<Field<'a>>,
    pub id: Option<Field<'a>>,
    pub method: Option<Field<'a>>,
    pub params: Option<Params<'a>>,
    pub result: Option<ResultPart<'a>>,
    pub error: Option<ErrorPart<'a>>,
}

#[derive(Debug)]
pub struct ResultPart<'a> {
    pub raw: Field<'a>,
    pub tool_error: bool,
}

#[derive(Debug, Default)]
pub struct ErrorPart<'a> {
    /// `"error": null`, which some servers write beside a result.
    pub is_null: bool,
    pub code: Option<i64>,
    pub message: Option<Field<'a>>,
}

/// Reads a text that begins with `{`.
pub fn read(text: &str) -> Result<Envelope<'_>, Refusal> {
    selected(text).map_err(refusal)
}

/// The `id` of an object that has exactly one, whatever else is wrong with it, and whether it has a `method`.
pub fn only_id(text: &str) -> Option<(Field<'_>, bool)> {
    let found: OnlyId<'_> = selected(text).ok()?;
    Some((found.id?, found.has_method))
}

/// Tells a text that is no JSON at all from one that is a number, say.
pub fn not_an_object(text: &str) -> Refusal {
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => Refusal::Invalid("a message is an object".into()),
        Err(error) => refusal(error),
    }
}

fn refusal(error: serde_json::Error) -> Refusal {
    match error.classify() {
        Category::Data => {
            let text = error.to_string();
            let place = || format!("a value of the wrong kind at line {} column {}", error.line(), error.column());
            Refusal::Invalid(text.strip_prefix(OURS).map_or_else(place, str::to_owned))
        }
        Category::Syntax | Category::Eof | Category::Io => Refusal::Syntax(error.to_string()),
    }
}

fn selected<'a, T: Select<'a>>(text: &'a str) -> Result<T, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Selected::<T>::new().deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// An object of which some keys are kept.
trait Select<'a>: Default {
    /// Reads the value of `key` if the key matters; `false` leaves it to be skipped.
    fn take<A: MapAccess<'a>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error>;

    /// What stands for `null`.
    fn null() -> Self {
        Self::default()
    }
}

impl<'a> Select<'a> for Envelope<'a> {
    fn take<A: MapAccess<'a>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        match key {
            "jsonrpc" => once(&mut self.jsonrpc, key, field(map))?,
            "id" => once(&mut self.id, key, field(map))?,
            "method" => once(&mut self.method, key, field(map))?,
            "params" => once(&mut self.params, key, map.next_value_seed(Selected::new()))?,
            "result" => once(&mut self.result, key, result_part(map))?,
            "error" => once(&mut self.error, key, map.next_value_seed(Selected::new()))?,
            _ => {
                if ENVELOPE.iter().any(|known| key.eq_ignore_ascii_case(known)) {
                    return Err(A::Error::custom(format_args!("{OURS}the key {key:?} must be written in lower case")));
                }
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl<'a> Select<'a> for Params<'a> {
    fn take<A: MapAccess<'a>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        match key {
            "name" => once(&mut self.name, key, field(map))?,
            "arguments" => once(&mut self.arguments, key, field(map))?,
            "uri" => once(&mut self.uri, key, field(map))?,
            "cursor" => once(&mut self.cursor, key, field(map))?,
            "protocolVersion" => once(&mut self.protocol_version, key, field(map))?,
            "requestId" => once(&mut self.request_id, key, field(map))?,
            "progressToken" => once(&mut self.progress_token, key, field(map))?,
            "_meta" => once(&mut self.meta, key, map.next_value_seed(Selected::new()))?,
            _ => {
                self.other_case |= key.eq_ignore_ascii_case("name") || key.eq_ignore_ascii_case("uri");
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl<'a> Select<'a> for Meta<'a> {
    fn take<A: MapAccess<'a>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        match key {
            "traceparent" => once(&mut self.traceparent, key, field(map))?,
            MODERN_KEY => once(&mut self.protocol_version, key, field(map))?,
            META_CAPABILITIES => once(&mut self.client_capabilities, key, field(map))?,
            META_SUBSCRIPTION => once(&mut self.subscription, key, field(map))?,
            "progressToken" => once(&mut self.progress_token, key, field(map))?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl<'a> Select<'a> for ErrorPart<'a> {
    fn take<A: MapAccess<'a>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        match key {
            "code" => self.code = field(map)?.raw().parse().ok(),
            "message" => self.message = Some(field(map)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn null() -> Self {
        Self { is_null: true, ..Self::default() }
    }
}

/// Whether a result says `"isError": true`.
#[derive(Default)]
struct ToolError(bool);

impl<'a> Select<'a> for ToolError {
    fn take<A: MapAccess<'a>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        if key != "isError" {
            return Ok(false);
        }
        self.0 = field(map)?.raw() == "true";
        Ok(true)
    }
}

#[derive(Default)]
struct OnlyId<'a> {
    id: Option<Field<'a>>,
    has_method: bool,
}

impl<'a> Select<'a> for OnlyId<'a> {
    fn take<A: MapAccess<'a>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        self.has_method |= key.eq_ignore_ascii_case("method");
        if key != "id" {
            return Ok(false);
        }
        once(&mut self.id, key, field(map))?;
        Ok(true)
    }
}

fn once<T, E: Error>(slot: &mut Option<T>, key: &str, value: Result<T, E>) -> Result<(), E> {
    if slot.is_some() {
        return Err(E::custom(format_args!("{OURS}the key {key:?} occurs twice")));
    }
    *slot = Some(value?);
    Ok(())
}

fn field<'a, A: MapAccess<'a>>(map: &mut A) -> Result<Field<'a>, A::Error> {
    map.next_value::<&'a RawValue>().map(|raw| Field(raw.get()))
}

/// Skips the result once; looks into it a second time only when the word occurs in it.
fn result_part<'a, A: MapAccess<'a>>(map: &mut A) -> Result<ResultPart<'a>, A::Error> {
    let raw = field(map)?;
    let tool_error = memchr::memmem::find(raw.raw().as_bytes(), b"isError").is_some()
        && selected::<ToolError>(raw.raw()).is_ok_and(|found| found.0);
    Ok(ResultPart { raw, tool_error })
}

/// Reads an object by `T`'s selection; a list is skipped and gives the default, `null` gives `T::null`, anything else is an error.
struct Selected<T>(PhantomData<T>);

impl<T> Selected<T> {
    fn new() -> Self {
        Self(PhantomData)
    }
}

impl<'a, T: Select<'a>> DeserializeSeed<'a> for Selected<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'a>>(self, reader: D) -> Result<T, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'a, T: Select<'a>> Visitor<'a> for Selected<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<T, A::Error> {
        let mut object = T::default();
        while let Some(key) = map.next_key_seed(KeyText)? {
            if !object.take(&key, &mut map)? {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(object)
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut items: A) -> Result<T, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(T::default())
    }

    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Ok(T::null())
    }
}

/// A key, unescaped, borrowed where it can be.
struct KeyText;

impl<'a> DeserializeSeed<'a> for KeyText {
    type Value = Cow<'a, str>;

    fn deserialize<D: Deserializer<'a>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'a> Visitor<'a> for KeyText {
    type Value = Cow<'a, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E: Error>(self, key: &'a str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_owned()))
    }
}

/// Begins every error about data whose words are ours; serde's own begin otherwise.
const OURS: &str = "mcpeg: ";
const ENVELOPE: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];
