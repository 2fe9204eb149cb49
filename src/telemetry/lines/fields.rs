//! What a line says, found by its format: body, time, severity, trace, and the rest as encoded attributes. Buffers are used again.
//!
//! Invariant: a text that was changed on its way out of the line (an escape that was undone) is shown to the redactor again, as the line
//! that was clean may have hidden a secret.

use crate::ports::Redactor;

use super::batch::ATTRIBUTES;
use super::proto::value;
use super::rules::{Content, Pattern, Role, Rules};
use super::{json, logfmt, severity, time};

/// What was found in one line.
#[derive(Default)]
pub struct Fields {
    /// `None`: the whole line.
    pub body: Option<String>,
    /// Kept for the next body.
    spare: String,
    pub time: u64,
    pub severity: u8,
    pub severity_text: String,
    pub trace: Option<[u8; 16]>,
    pub span: Option<[u8; 8]>,
    pub attributes: Vec<u8>,
}

/// A value with a meaning of its own.
pub enum Scalar<'a> {
    Text(&'a str),
    Integer(i64),
    Unsigned(u64),
    Double(f64),
    Bool(bool),
}

impl Fields {
    /// Reads a line. What its format cannot read is a plain line.
    pub fn read(&mut self, line: &str, rules: &Rules, redactor: &dyn Redactor) {
        self.clear();
        let is_read = match rules.content {
            Content::Plain => {
                self.plain(line, rules);
                true
            }
            Content::Json => json::read(line, self, rules, redactor),
            Content::Logfmt => logfmt::read(line, self, rules, redactor),
        };
        if !is_read {
            self.clear();
        }
    }

    /// A secret may have stood here.
    pub fn wipe(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.attributes);
        zeroize::Zeroize::zeroize(&mut self.spare);
        zeroize::Zeroize::zeroize(&mut self.severity_text);
        self.clear();
    }

    fn clear(&mut self) {
        if let Some(body) = self.body.take() {
            self.spare = body;
        }
        self.time = 0;
        self.severity = 0;
        self.severity_text.clear();
        (self.trace, self.span) = (None, None);
        self.attributes.clear();
    }

    fn plain(&mut self, line: &str, rules: &Rules) {
        if let Some(pattern) = &rules.time.pattern
            && let Some(text) = first_group(pattern, line)
        {
            self.time = time::parse(text, &rules.time.format).unwrap_or(0);
        }
        if let Some(pattern) = &rules.severity.pattern
            && let Some(text) = first_group(pattern, line)
        {
            self.set_severity(text, rules);
        }
    }

    /// Takes a value for what its key stands for; `false`: it is an attribute after all.
    pub fn take(&mut self, role: Role, scalar: &Scalar<'_>, rules: &Rules) -> bool {
        match (role, scalar) {
            (Role::Body, Scalar::Text(text)) if self.body.is_none() => {
                let mut body = std::mem::take(&mut self.spare);
                body.clear();
                body.push_str(text);
                self.body = Some(body);
                true
            }
            (Role::Time, _) if self.time == 0 => {
                let found = match scalar {
                    Scalar::Text(text) => time::parse(text, &rules.time.format),
                    Scalar::Integer(number) => u64::try_from(*number).ok().and_then(time::of_integer),
                    Scalar::Unsigned(number) => time::of_integer(*number),
                    Scalar::Double(number) => time::of_number(*number),
                    Scalar::Bool(_) => None,
                };
                self.time = found.unwrap_or(0);
                found.is_some()
            }
            (Role::Severity, Scalar::Text(text)) if self.severity_text.is_empty() => {
                self.set_severity(text, rules);
                true
            }
            (Role::Severity, Scalar::Unsigned(_) | Scalar::Integer(_)) if self.severity_text.is_empty() => {
                let number = match scalar {
                    Scalar::Unsigned(number) => i64::try_from(*number).unwrap_or(0),
                    Scalar::Integer(number) => *number,
                    _ => 0,
                };
                self.severity_text.push_str(&number.to_string());
                let own = rules.severity.names.get(&self.severity_text).copied();
                self.severity = own.unwrap_or_else(|| severity::of_number(number));
                true
            }
            (Role::Trace, Scalar::Text(text)) => {
                self.trace = id(text);
                self.trace.is_some()
            }
            (Role::Span, Scalar::Text(text)) => {
                self.span = id(text);
                self.span.is_some()
            }
            _ => false,
        }
    }

    pub fn attribute(&mut self, key: &str, scalar: &Scalar<'_>) {
        let out = &mut self.attributes;
        let pair = value::begin_pair(out, ATTRIBUTES, key);
        match scalar {
            Scalar::Text(text) => value::text(out, text),
            Scalar::Integer(number) => value::integer(out, *number),
            Scalar::Unsigned(number) => match i64::try_from(*number) {
                Ok(number) => value::integer(out, number),
                // Digits that a double would lose.
                Err(_) => value::text(out, &number.to_string()),
            },
            Scalar::Double(number) => value::double(out, *number),
            Scalar::Bool(yes) => value::boolean(out, *yes),
        }
        value::end_pair(out, pair);
    }

    fn set_severity(&mut self, text: &str, rules: &Rules) {
        self.severity = severity::of_text(text, &rules.severity.names);
        self.severity_text.push_str(text);
    }
}

fn first_group<'t>(pattern: &Pattern, line: &'t str) -> Option<&'t str> {
    let found = pattern.captures(line.as_bytes())?;
    let range = found.get(1).or_else(|| found.get(0))?.range();
    line.get(range)
}

/// An id in hexadecimal digits, that is not zero (W3C trace context).
fn id<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_chunks::<2>().0) {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    bytes.iter().any(|byte| *byte != 0).then_some(bytes)
}
