//! Lines of `key=value key="a value"`. A key without a value is `true`. A line with no `=` in it is a plain one.

use std::borrow::Cow;

use crate::ports::Redactor;

use super::fields::{Fields, Scalar};
use super::rules::{Role, Rules};

/// `false` when the line is not of this form.
pub fn read(line: &str, fields: &mut Fields, rules: &Rules, redactor: &dyn Redactor) -> bool {
    let (mut rest, mut pairs) = (line.trim_ascii(), 0);
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        if key.is_empty() || key.contains('"') {
            return false;
        }
        let Some(after) = after.strip_prefix('=') else {
            fields.attribute(key, &Scalar::Bool(true));
            rest = after.trim_ascii_start();
            continue;
        };
        let Some((value, after)) = value(after, redactor) else { return false };
        let role = rules.role(key);
        if role == Role::Attribute || !fields.take(role, &Scalar::Text(&value), rules) {
            fields.attribute(key, &Scalar::Text(&value));
        }
        pairs += 1;
        rest = after.trim_ascii_start();
    }
    pairs > 0
}

/// The value that the text begins with, and what follows it. `None`: its quote does not end.
fn value<'t>(text: &'t str, redactor: &dyn Redactor) -> Option<(Cow<'t, str>, &'t str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c.is_ascii_whitespace()).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return Some((Cow::Borrowed(value), rest));
    };
    let mut escaped = false;
    let end = quoted.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })?;
    let (value, rest) = (&quoted[..end], &quoted[end + 1..]);
    if !value.contains('\\') {
        return Some((Cow::Borrowed(value), rest));
    }
    let plain = unescaped(value);
    Some((Cow::Owned(redactor.redact_text(&plain).into_owned()), rest))
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, if character == '\\' { characters.next() } else { None }) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some('t')) => out.push('\t'),
            ('\\', Some('r')) => out.push('\r'),
            ('\\', Some(other)) => out.push(other),
            (other, _) => out.push(other),
        }
    }
    out
}
