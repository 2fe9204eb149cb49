//! Arguments of a tool that a modern HTTP server wants in headers as well (2026-07-28, transports, custom headers from tool parameters):
//! `x-mcp-header: Region` in the tool's schema asks for `Mcp-Param-Region` with the argument's value.
//!
//! Only properties that are reached through `properties` alone count, and only values that are a string, a number or a Boolean; an argument that
//! is null or absent has no header. It knows schemas and arguments, and no HTTP.

use std::collections::HashMap;

use http::HeaderName;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// The headers that a schema asks for, each with the path of its argument. None if one of them is not as the specification wants it: such a
/// tool is no tool for a client of HTTP.
pub fn of_schema(schema: &str) -> Vec<(HeaderName, Vec<Box<str>>)> {
    if memchr::memmem::find(schema.as_bytes(), ANNOTATION.as_bytes()).is_none() {
        return Vec::new();
    }
    let mut found = Vec::new();
    let Ok(schema) = serde_json::from_str::<Schema>(schema) else { return Vec::new() };
    let good = collect(&schema, &mut Vec::new(), &mut found).is_some();
    let mut names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if good && names.len() == found.len() { found } else { Vec::new() }
}

/// The values for the headers in a call's arguments (JSON).
pub fn values<'h>(
    headers: &'h [(HeaderName, Vec<Box<str>>)],
    arguments: &str,
) -> impl Iterator<Item = (&'h HeaderName, String)> {
    let arguments: Option<&RawValue> = serde_json::from_str(arguments).ok();
    headers.iter().filter_map(move |(name, path)| Some((name, written(argument(arguments?, path)?)?)))
}

/// The first of the headers that does not say what the call's arguments (JSON) say. `said`: the header's value, decoded.
pub fn unsaid<'h>(
    headers: &'h [(HeaderName, Vec<Box<str>>)],
    arguments: Option<&str>,
    said: impl Fn(&HeaderName) -> Option<String>,
) -> Option<&'h HeaderName> {
    let arguments: Option<&RawValue> = arguments.and_then(|arguments| serde_json::from_str(arguments).ok());
    let differs = |(name, path): &&(HeaderName, Vec<Box<str>>)| {
        let value = arguments.and_then(|arguments| argument(arguments, path));
        let is_number =
            value.is_some_and(|value| value.get().starts_with(|first: char| first == '-' || first.is_ascii_digit()));
        match (value.and_then(written), said(name)) {
            (None, None) => false,
            (Some(value), Some(header)) => value != header && !(is_number && same_number(&value, &header)),
            _ => true,
        }
    };
    headers.iter().find(differs).map(|(name, _)| name)
}

/// 42.0 is 42.
fn same_number(one: &str, other: &str) -> bool {
    matches!((one.parse::<f64>(), other.parse::<f64>()), (Ok(one), Ok(other)) if one == other)
}

fn argument<'a>(arguments: &'a RawValue, path: &[Box<str>]) -> Option<&'a RawValue> {
    let mut at = arguments;
    for key in path {
        let object: HashMap<String, &RawValue> = serde_json::from_str(at.get()).ok()?;
        at = object.get(&**key)?;
    }
    Some(at)
}

#[derive(Deserialize)]
struct Schema {
    #[serde(rename = "x-mcp-header")]
    header: Option<Value>,
    #[serde(rename = "type")]
    kind: Option<Value>,
    #[serde(default)]
    properties: HashMap<String, Value>,
}

fn collect(schema: &Schema, path: &mut Vec<Box<str>>, found: &mut Vec<(HeaderName, Vec<Box<str>>)>) -> Option<()> {
    for (key, property) in &schema.properties {
        // A property may be `true`.
        let Ok(property) = Schema::deserialize(property) else { continue };
        if path.len() >= MAX_DEPTH {
            return None;
        }
        path.push(key.as_str().into());
        if let Some(header) = &property.header {
            let name = header.as_str().filter(|name| !name.is_empty())?;
            let simple = property.kind.as_ref().and_then(Value::as_str).is_some_and(|kind| SIMPLE.contains(&kind));
            let name = HeaderName::try_from(format!("{PREFIX}{name}")).ok().filter(|_| simple)?;
            found.push((name, path.clone()));
        }
        collect(&property, path, found)?;
        path.pop();
    }
    Some(())
}

/// A number as it stands there, a text without its quotes.
fn written(value: &RawValue) -> Option<String> {
    match value.get().as_bytes().first()? {
        b'"' => serde_json::from_str(value.get()).ok(),
        b'{' | b'[' | b'n' => None,
        _ => Some(value.get().to_owned()),
    }
}

const ANNOTATION: &str = "x-mcp-header";
const PREFIX: &str = "mcp-param-";
const SIMPLE: [&str; 4] = ["string", "integer", "boolean", "number"];
const MAX_DEPTH: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_schema_asks_for_is_taken_from_the_arguments() {
        let mut headers = of_schema(
            r#"{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"},"query":{"type":"string"},"any":true,
                "options":{"type":"object","properties":{"limit":{"type":"integer","x-mcp-header":"Limit"}}},"sure":{"type":"boolean","x-mcp-header":"Sure"}}}"#,
        );
        headers.sort_by_key(|(name, _)| name.to_string());
        let told = |arguments: &str| -> Vec<String> {
            values(&headers, arguments).map(|(name, value)| format!("{name}={value}")).collect()
        };
        assert_eq!(
            told(r#"{"region":"\u00fcber","query":"x","options":{"limit":12345678901234567890},"sure":false}"#),
            ["mcp-param-limit=12345678901234567890", "mcp-param-region=über", "mcp-param-sure=false"]
        );
        assert_eq!(told(r#"{"region":null,"options":7,"sure":["no"]}"#), [""; 0]);
        assert_eq!(told("[]"), [""; 0]);
    }

    #[test]
    fn a_header_has_to_say_what_the_argument_says() {
        let headers = of_schema(r#"{"properties":{"n":{"type":"number","x-mcp-header":"N"}}}"#);
        let unsaid =
            |arguments, header: Option<&str>| unsaid(&headers, arguments, |_| header.map(str::to_owned)).is_some();
        assert!(!unsaid(Some(r#"{"n":42}"#), Some("42.0")) && !unsaid(Some(r#"{"n":"x"}"#), Some("x")));
        assert!(!unsaid(Some(r#"{"n":null}"#), None) && !unsaid(None, None));
        assert!(unsaid(Some(r#"{"n":"42"}"#), Some("42.0")), "a text is no number");
        assert!(unsaid(Some(r#"{"n":42}"#), Some("43")) && unsaid(Some(r#"{"n":42}"#), None));
        assert!(unsaid(Some("{}"), Some("42")) && unsaid(None, Some("42")));
    }

    #[test]
    fn a_schema_that_asks_wrongly_asks_for_nothing() {
        for property in [
            r#""a":{"type":"object","x-mcp-header":"A"}"#,
            r#""a":{"type":"string","x-mcp-header":"not a token"}"#,
            r#""a":{"type":"string","x-mcp-header":""}"#,
            r#""a":{"type":"string","x-mcp-header":"Same"},"b":{"type":"string","x-mcp-header":"same"}"#,
        ] {
            assert_eq!(of_schema(&format!(r#"{{"properties":{{{property}}}}}"#)), [], "{property}");
        }
        assert_eq!(of_schema(r#"{"items":{"x-mcp-header":"A","type":"string"}}"#), []);
    }
}
