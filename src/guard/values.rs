//! Which values of a field are looked for: the field, without blanks around it, and what is a secret by itself inside of it.
//!
//! A field that is a JSON object or list (a service account's key, say) is looked for by its texts too, and one of several lines (a PEM
//! key) by each long line, as a log or a terminal tears them apart.

use serde_json::Value;

use super::SHORTEST;

/// Shows each value of `field` that is to be looked for. What has to be unpacked is in memory that is wiped when it is freed.
pub(super) fn each(field: &[u8], show: &mut impl FnMut(&[u8])) {
    let whole = field.trim_ascii();
    in_pieces(whole, show);
    if whole.contains(&b'\n') && whole.len() <= LARGEST_UNPACKED {
        for line in whole.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
            if line.len() >= SHORTEST_LINE && !line.starts_with(b"-----") {
                in_pieces(line, show);
            }
        }
    }
    if matches!(whole.first(), Some(b'{' | b'['))
        && whole.len() <= LARGEST_UNPACKED
        && let Ok(value) = serde_json::from_slice::<Value>(whole)
    {
        texts(&value, show);
    }
}

fn texts(value: &Value, show: &mut impl FnMut(&[u8])) {
    match value {
        Value::String(text) => in_pieces(text.trim_ascii().as_bytes(), show),
        Value::Array(values) => values.iter().for_each(|value| texts(value, show)),
        Value::Object(members) => members.values().for_each(|value| texts(value, show)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A value beyond `PIECE` is looked for piece by piece, so that whoever reads a stream need not hold back much.
fn in_pieces(value: &[u8], show: &mut impl FnMut(&[u8])) {
    if value.len() < SHORTEST || is_common(value) {
        return;
    }
    if value.len() <= PIECE {
        return show(value);
    }
    let (pieces, rest) = value.as_chunks::<PIECE>();
    pieces.iter().for_each(|piece| show(piece));
    if !rest.is_empty() {
        show(&value[value.len() - PIECE..]);
    }
}

/// Not a secret, though it stands among them: to redact it would only do harm.
fn is_common(value: &[u8]) -> bool {
    let mut seen = [false; 256];
    value.iter().for_each(|byte| seen[usize::from(*byte)] = true);
    let variety = seen.iter().filter(|seen| **seen).count();
    variety < LEAST_VARIETY || COMMON.iter().any(|common| value.eq_ignore_ascii_case(common.as_bytes()))
}

const PIECE: usize = 4 * 1024;
const LARGEST_UNPACKED: usize = 256 * 1024;
const SHORTEST_LINE: usize = 16;
const LEAST_VARIETY: usize = 4;
const COMMON: [&str; 32] = [
    "127.0.0.1",
    "anonymous",
    "app_user",
    "application/json",
    "authorization",
    "changeme",
    "database",
    "default_user",
    "development",
    "disabled",
    "eu-central-1",
    "eu-west-1",
    "https://",
    "internal",
    "localhost",
    "mysql.sock",
    "password",
    "postgres",
    "postgres://",
    "postgresql",
    "postgresql://",
    "production",
    "readonly",
    "readwrite",
    "required",
    "service_account",
    "undefined",
    "us-east-1",
    "us-west-2",
    "username",
    "verify-ca",
    "verify-full",
];
