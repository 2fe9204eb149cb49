//! Texts and addresses in which arguments stand as `{name}`; `{{` and `}}` are the braces themselves.
//!
//! Invariant: an argument never leaves its place. In an address it is percent-encoded, stands in the path alone, and cannot become an
//! empty or a dot segment, whether a server decodes it once or takes `\` for `/`.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};
use url::Url;

/// A text with places for arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Argument(String),
}

/// An address whose host is fixed and whose path has places for arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct UrlTemplate {
    base: Url,
    segments: Vec<Text>,
}

/// Why arguments cannot be put in, in words for whoever called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    #[error("the argument `{0}` is missing")]
    Missing(String),
    #[error("the argument `{0}` has to be a text, a number, or true or false")]
    NotPlain(String),
    #[error("the argument `{0}` is empty")]
    Empty(String),
    #[error("the argument `{0}` may not hold `.` or `..` as a part of a path")]
    Dots(String),
    #[error("the arguments make no address")]
    NoAddress,
}

impl Text {
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut pieces, mut literal, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            if rest[at + 1..].starts_with(brace) {
                literal.push_str(brace);
                rest = &rest[at + 2..];
                continue;
            }
            let inside = rest[at..].strip_prefix('{').and_then(|inside| inside.split_once('}'));
            let Some((name, after)) = inside else {
                return Err("`{` and `}` belong together; write `{{` or `}}` for the sign itself".to_owned());
            };
            if !is_argument_name(name) {
                return Err(format!("`{{{name}}}` does not name an argument: letters, digits, `_` and `-`"));
            }
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Argument(name.to_owned()));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self(pieces))
    }

    pub fn arguments(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Argument(name) => Some(name.as_str()),
            Piece::Literal(_) => None,
        })
    }

    /// The argument's name, when it is all that stands here.
    pub fn only_argument(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Piece::Argument(name)] => Some(name),
            _ => None,
        }
    }

    pub fn fill(&self, arguments: &Map<String, Value>) -> Result<String, FillError> {
        let mut filled = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(literal) => filled.push_str(literal),
                Piece::Argument(name) => filled.push_str(&plain(name, arguments)?),
            }
        }
        Ok(filled)
    }

    /// As a segment of a path.
    fn fill_segment(&self, arguments: &Map<String, Value>) -> Result<String, FillError> {
        let mut filled = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(literal) => filled.push_str(literal),
                Piece::Argument(name) => {
                    let value = plain(name, arguments)?;
                    if value.is_empty() {
                        return Err(FillError::Empty(name.clone()));
                    }
                    // Writing to a text cannot fail.
                    let _ = write!(filled, "{}", utf8_percent_encode(&value, RESERVED));
                    if value.split(['/', '\\']).any(is_dots) || is_dots(&filled) {
                        return Err(FillError::Dots(name.clone()));
                    }
                }
            }
        }
        Ok(filled)
    }
}

impl UrlTemplate {
    pub fn parse(text: &str) -> Result<Self, String> {
        let authority = text.find("://").map(|at| at + 3).ok_or(EXPECTED)?;
        let path = text[authority..].find(['/', '?', '#']).map_or(text.len(), |at| authority + at);
        if text[..path].contains(['{', '}']) {
            return Err("arguments may stand in the path only: scheme and host are fixed".to_owned());
        }
        let base = Url::parse(&text[..path]).map_err(|error| format!("{EXPECTED}: {error}"))?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(EXPECTED.to_owned());
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err("an address may not hold a user or a password".to_owned());
        }
        if text[path..].contains(['?', '#']) {
            return Err("what follows `?` belongs under `query`, and an address of a request has no `#`".to_owned());
        }
        let segments: Vec<Text> = text[path..].split('/').skip(1).map(Text::parse).collect::<Result<_, _>>()?;
        let is_literal_dots = |segment: &Text| matches!(segment.0.as_slice(), [Piece::Literal(text)] if is_dots(text));
        if segments.iter().any(is_literal_dots) {
            return Err("a path has no `.` and `..`".to_owned());
        }
        Ok(Self { base, segments })
    }

    pub fn arguments(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().flat_map(Text::arguments)
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    pub fn fill(&self, arguments: &Map<String, Value>) -> Result<Url, FillError> {
        let mut address = self.origin();
        for segment in &self.segments {
            address.push('/');
            address.push_str(&segment.fill_segment(arguments)?);
        }
        let url = Url::parse(&address).map_err(|_| FillError::NoAddress)?;
        // Whatever the arguments were: the same host, and a path of the same depth.
        let depth = url.path_segments().map_or(0, Iterator::count);
        let is_in_place = url.origin() == self.base.origin() && depth == self.segments.len().max(1);
        if is_in_place && url.query().is_none() { Ok(url) } else { Err(FillError::NoAddress) }
    }
}

fn plain(name: &str, arguments: &Map<String, Value>) -> Result<String, FillError> {
    match arguments.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        Some(Value::Array(_) | Value::Object(_)) => Err(FillError::NotPlain(name.to_owned())),
        Some(Value::Null) | None => Err(FillError::Missing(name.to_owned())),
    }
}

/// A segment that stands for this folder or the one above, also to those who decode it first.
fn is_dots(segment: &str) -> bool {
    matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..")
}

fn is_argument_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// All but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const EXPECTED: &str = "expected an address such as `https://host/v1/{argument}`";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn fill(template: &str, value: Value) -> Result<String, FillError> {
        let arguments = Map::from_iter([("x".to_owned(), value)]);
        UrlTemplate::parse(template).unwrap().fill(&arguments).map(String::from)
    }

    #[test]
    fn an_argument_is_encoded_and_stays_in_its_segment() {
        assert_eq!(fill("https://h/a/{x}/b", json!("Köln/1?&#")).unwrap(), "https://h/a/K%C3%B6ln%2F1%3F%26%23/b");
        assert_eq!(fill("https://h/{x}.json", json!(7)).unwrap(), "https://h/7.json");
        assert_eq!(fill("https://h:81", json!("x")).unwrap(), "https://h:81/");
        assert_eq!(fill("http://h/{{a}}/", json!("x")).unwrap(), "http://h/%7Ba%7D/");
        for dots in ["..", ".", "../../etc", "a/../b", "a\\..\\b", "..\\", "%2e%2e", ".%2E/x"] {
            assert_eq!(fill("https://h/{x}/b", json!(dots)), Err(FillError::Dots("x".into())), "{dots}");
        }
        assert_eq!(fill("https://h/.{x}", json!(".")), Err(FillError::Dots("x".into())));
        assert_eq!(fill("https://h/a/{x}", json!("")), Err(FillError::Empty("x".into())));
        assert_eq!(fill("https://h/a/{x}", json!([1])), Err(FillError::NotPlain("x".into())));
        assert_eq!(fill("https://h/a/{y}", json!("1")), Err(FillError::Missing("y".into())));
    }

    #[test]
    fn a_template_is_refused_when_arguments_could_choose_the_host() {
        for wrong in [
            "https://{x}/a",
            "{x}://h/",
            "https://h:{x}/",
            "ftp://h/",
            "/a",
            "https://u:p@h/",
            "https://h/../a",
            "https://h/?a={x}",
            "https://h/{x",
            "https://h/{a b}",
        ] {
            assert!(UrlTemplate::parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_argument_reaches_another_host_or_depth(value in any::<String>()) {
            if let Ok(url) = fill("https://host.example/v1/{x}/end", json!(value)) {
                let url = Url::parse(&url).unwrap();
                prop_assert_eq!(url.host_str(), Some("host.example"));
                let segments: Vec<_> = url.path_segments().unwrap().collect();
                prop_assert_eq!((segments.len(), segments[0], segments[2]), (3, "v1", "end"));
                prop_assert_eq!(percent_encoding::percent_decode_str(segments[1]).decode_utf8().unwrap(), value);
            }
        }
    }
}
