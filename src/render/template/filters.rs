//! The filters that a configuration file needs, each of which takes a secret as well as any other value.
//!
//! `json` and `yaml` give a quoted string (JSON is YAML), `toml` a value of TOML 1.0, `base64` and `unbase64`, `url` (RFC 3986: all but
//! unreserved characters), `shell` (one word of a POSIX shell), `sha256`, `pem_bundle`. What they return lives in the interpreter for a
//! moment; the caller wipes stack and heap behind it. Invariants: no error quotes a value; in a rendering that is shown, what is made of
//! a secret is its mask.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::Write;
use std::sync::Arc;

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::book::{Book, Field, Item};
use super::{bundle, mask};

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("json", json);
    environment.add_filter("tojson", json);
    environment.add_filter("yaml", yaml);
    environment.add_filter("toml", toml);
    for name in ["base64", "b64encode"] {
        environment.add_filter(name, base64);
    }
    for name in ["unbase64", "b64decode"] {
        environment.add_filter(name, unbase64);
    }
    for name in ["url", "urlencode"] {
        environment.add_filter(name, url);
    }
    environment.add_filter("shell", shell);
    environment.add_filter("sha256", sha256);
    environment.add_filter("pem_bundle", pem_bundle);
}

/// Runs a rendering, in which `sha256` can ask what is a secret.
pub(super) fn reading<T>(book: &Arc<Book>, render: impl FnOnce() -> T) -> T {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            READ.set(None);
        }
    }
    READ.set(Some(book.clone()));
    let _reset = Reset;
    render()
}

thread_local! {
    /// Renderings are synchronous, and a filter is told nothing of the one that it serves.
    static READ: RefCell<Option<Arc<Book>>> = const { RefCell::new(None) };
}

fn json(value: &Value) -> Result<String, Error> {
    let text = match text_of(value) {
        Some(text) => serde_json::to_string(&*text),
        None => serde_json::to_string(value),
    };
    text.map_err(|_| Error::from(ErrorKind::BadSerialization))
}

/// JSON, with escapes for what YAML would not print or would take for a line's end (YAML 1.2.2, 5.1 and 5.4).
fn yaml(value: &Value) -> Result<String, Error> {
    let is_special = |c: char| matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}');
    Ok(escaped(json(value)?, is_special))
}

/// A basic string, number, boolean, array or inline table (TOML 1.0.0). It has no null.
fn toml(value: &Value) -> Result<String, Error> {
    let mut text = String::new();
    write_toml(value, &mut text, 0)?;
    Ok(text)
}

fn write_toml(value: &Value, text: &mut String, depth: usize) -> Result<(), Error> {
    let wrong = |what: &'static str| Err(said(what));
    if depth > DEEPEST {
        return wrong("it is nested too deeply");
    }
    if let Some(string) = text_of(value) {
        let json = serde_json::to_string(&*string).map_err(|_| Error::from(ErrorKind::BadSerialization))?;
        text.push_str(&escaped(json, |c| c == '\u{7f}'));
        return Ok(());
    }
    match value.kind() {
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        // Writing to a string cannot fail, here and below.
        ValueKind::Number => write!(text, "{value}").unwrap_or_default(),
        ValueKind::Seq | ValueKind::Iterable => {
            text.push('[');
            for (index, entry) in value.try_iter()?.enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                write_toml(&entry, text, depth + 1)?;
            }
            text.push(']');
        }
        ValueKind::Map => {
            text.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                text.push_str(if index == 0 { " " } else { ", " });
                write_toml(&Value::from(key.to_string()), text, depth + 1)?;
                text.push_str(" = ");
                write_toml(&value.get_item(&key)?, text, depth + 1)?;
            }
            text.push_str(" }");
        }
        ValueKind::Undefined => return Err(Error::from(ErrorKind::UndefinedError)),
        _ => return wrong("TOML has no form for it"),
    }
    Ok(())
}

fn base64(value: &Value) -> Result<String, Error> {
    shown(value, |bytes| Ok(STANDARD.encode(bytes)))
}

/// White space is passed over, and the padding may be left out.
fn unbase64(value: &Value) -> Result<String, Error> {
    let wrong = |what: &'static str| said(what);
    shown(value, |bytes| {
        let packed: Vec<u8> = bytes.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let plain = UNPADDED.decode(packed).map_err(|_| wrong("it is not base64"))?;
        String::from_utf8(plain).map_err(|_| wrong("what stands in the base64 is not text"))
    })
}

fn url(value: &Value) -> Result<String, Error> {
    shown(value, |bytes| Ok(percent_encode(bytes, RESERVED).to_string()))
}

fn shell(value: &Value) -> Result<String, Error> {
    shown(value, |bytes| {
        let text = std::str::from_utf8(bytes).map_err(|_| Error::from(ErrorKind::BadSerialization))?;
        if text.contains('\0') {
            return Err(said("a word of a shell cannot have a zero byte"));
        }
        Ok(format!("'{}'", text.replace('\'', r"'\''")))
    })
}

/// In hexadecimal. The digest of a short secret tells the secret to whoever tries values, so it has to be asked for.
fn sha256(value: &Value, options: Kwargs) -> Result<String, Error> {
    let may = options.get::<Option<bool>>("allow_secret")?.unwrap_or(false);
    options.assert_all_used()?;
    shown(value, |bytes| {
        let is_secret = is_secret(value) || READ.with_borrow(|book| book.as_ref().is_none_or(|book| book.knows(bytes)));
        if is_secret && !may {
            let message =
                "sha256 of a secret gives it away to whoever tries values; if that is meant: sha256(allow_secret=true)";
            return Err(said(message));
        }
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        Ok(digest.as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }))
    })
}

/// `pem_bundle`, or `pem_bundle("key", "certificate")`: parts in the order asked for.
fn pem_bundle(value: &Value, parts: Rest<String>) -> Result<String, Error> {
    let Some(item) = value.downcast_object_ref::<Item>() else {
        return Err(said("pem_bundle takes a whole secret: secret.ITEM | pem_bundle"));
    };
    let parts = if parts.is_empty() { bundle::usual(item) } else { parts.0 };
    let text = bundle::bundle(item, &parts).map_err(|problem| item.fail(problem))?;
    Ok(if item.is_masked() { mask::masked(item.name(), &text) } else { text })
}

/// An error whose words may be shown, since no value is in them.
fn said(words: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, words).with_source(Said(words))
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Said(pub &'static str);

fn escaped(json: String, is_special: impl Fn(char) -> bool) -> String {
    if !json.contains(&is_special) {
        return json;
    }
    let mut text = String::with_capacity(json.len() + 8);
    for c in json.chars() {
        if is_special(c) {
            let _ = write!(text, "\\u{:04x}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    text
}

/// What `make` makes of the value; of a secret in a rendering that is shown, a mask.
fn shown(value: &Value, make: impl FnOnce(&[u8]) -> Result<String, Error>) -> Result<String, Error> {
    if let Some(text) = value.as_str().filter(|text| mask::is_masked(text)) {
        return Ok(text.to_owned());
    }
    if let Some(field) = field_of(value) {
        let text = make(field.bytes())?;
        return Ok(if field.is_masked() { field.mask(&text) } else { text });
    }
    match value.kind() {
        ValueKind::Bytes | ValueKind::String => {
            make(value.as_bytes().or_else(|| value.as_str().map(str::as_bytes)).unwrap_or_default())
        }
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        // An item with several fields notes that while it prints.
        _ => make(value.to_string().as_bytes()),
    }
}

/// The text of a string or of a secret; `None` for lists, mappings, numbers and the like, which have a form of their own.
fn text_of(value: &Value) -> Option<Cow<'_, str>> {
    match field_of(value) {
        Some(field) => Some(Cow::Owned(field.text().into_owned())),
        None => value.as_str().map(Cow::Borrowed),
    }
}

fn field_of(value: &Value) -> Option<Cow<'_, Field>> {
    if let Some(field) = value.downcast_object_ref::<Field>() {
        return Some(Cow::Borrowed(field));
    }
    value.downcast_object_ref::<Item>().and_then(Item::only_field).map(Cow::Owned)
}

fn is_secret(value: &Value) -> bool {
    value.downcast_object_ref::<Field>().is_some() || value.downcast_object_ref::<Item>().is_some()
}

/// All but the unreserved characters of RFC 3986, section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const UNPADDED: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
const DEEPEST: usize = 32;
