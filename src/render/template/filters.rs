//! The filters that a configuration file needs, each of which takes a secret as well as any other value.
//!
//! `json` and `yaml` give a quoted string (JSON is YAML), `base64`, `urlencode` (RFC 3986: all but unreserved characters), `shell` (one
//! word of a POSIX shell). What they return lives in the interpreter for a moment; the caller wipes stack and heap behind it.

use std::borrow::Cow;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::book::{Field, Item};

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("json", json);
    environment.add_filter("yaml", yaml);
    environment.add_filter("base64", base64);
    environment.add_filter("b64encode", base64);
    environment.add_filter("urlencode", urlencode);
    environment.add_filter("shell", shell);
}

fn json(value: &Value) -> Result<String, Error> {
    let text = match scalar(value)? {
        Some(text) => serde_json::to_string(&*text),
        None => serde_json::to_string(value),
    };
    text.map_err(|_| Error::from(ErrorKind::BadSerialization))
}

/// JSON, with escapes for what YAML would not print or would take for a line's end (YAML 1.2.2, 5.1 and 5.4).
fn yaml(value: &Value) -> Result<String, Error> {
    let json = json(value)?;
    let is_special = |c: char| matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}');
    if !json.contains(is_special) {
        return Ok(json);
    }
    let mut text = String::with_capacity(json.len() + 8);
    for c in json.chars() {
        if is_special(c) {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\u{:04x}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    Ok(text)
}

fn base64(value: &Value) -> Result<String, Error> {
    Ok(STANDARD.encode(bytes(value)?))
}

fn urlencode(value: &Value) -> Result<String, Error> {
    Ok(percent_encode(&bytes(value)?, RESERVED).to_string())
}

fn shell(value: &Value) -> Result<String, Error> {
    let bytes = bytes(value)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| Error::from(ErrorKind::BadSerialization))?;
    if text.contains('\0') {
        return Err(Error::from(ErrorKind::BadSerialization));
    }
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

/// The text of a string or of a secret; `None` for lists, mappings, numbers and the like, which JSON writes in its own way.
fn scalar(value: &Value) -> Result<Option<Cow<'_, str>>, Error> {
    if let Some(field) = value.downcast_object_ref::<Field>() {
        return Ok(Some(Cow::Borrowed(field.text())));
    }
    if let Some(field) = value.downcast_object_ref::<Item>().and_then(Item::only_field) {
        return Ok(Some(Cow::Owned(field.text().to_owned())));
    }
    Ok(value.as_str().map(Cow::Borrowed))
}

fn bytes(value: &Value) -> Result<Cow<'_, [u8]>, Error> {
    if let Some(field) = value.downcast_object_ref::<Field>() {
        return Ok(Cow::Borrowed(field.bytes()));
    }
    if let Some(field) = value.downcast_object_ref::<Item>().and_then(Item::only_field) {
        return Ok(Cow::Owned(field.bytes().to_owned()));
    }
    match value.kind() {
        ValueKind::Bytes | ValueKind::String => {
            Ok(Cow::Borrowed(value.as_bytes().or_else(|| value.as_str().map(str::as_bytes)).unwrap_or_default()))
        }
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        // An item with several fields notes that while it prints.
        _ => Ok(Cow::Owned(value.to_string().into_bytes())),
    }
}

/// All but the unreserved characters of RFC 3986, section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
