//! Values of PostgreSQL's binary format as JSON, and values of parameters as its text.
//!
//! The formats are those of the server's own send functions (src/backend/utils/adt): big-endian numbers, microseconds and days since
//! 2000-01-01, numerics in groups of four decimal digits. What is not known here is asked for as text (`is_known`).

use std::fmt::Write as _;

use serde_json::Value;
use tokio_postgres::types::{FromSql, Kind, Type};

use super::rows;

/// The bytes of a value that is not NULL.
pub struct Raw<'a>(pub &'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

pub fn is_known(kind: &Type) -> bool {
    match kind.kind() {
        Kind::Enum(_) => true,
        Kind::Domain(inner) | Kind::Array(inner) => is_known(inner),
        _ => KNOWN.contains(kind) || kind.name() == "citext",
    }
}

/// Of a known type. Bytes that are not what they should be are told as bytes.
pub fn json(kind: &Type, raw: &[u8]) -> Value {
    decoded(kind, raw).unwrap_or_else(|| rows::binary(raw))
}

fn decoded(kind: &Type, raw: &[u8]) -> Option<Value> {
    match kind.kind() {
        Kind::Domain(inner) => return decoded(inner, raw),
        Kind::Array(inner) => return list(inner, raw),
        Kind::Enum(_) => return Some(rows::text(raw.to_vec())),
        _ => {}
    }
    Some(match *kind {
        Type::BOOL => (*raw.first()? != 0).into(),
        Type::INT2 => i16::from_be_bytes(raw.try_into().ok()?).into(),
        Type::INT4 => i32::from_be_bytes(raw.try_into().ok()?).into(),
        Type::INT8 => rows::integer(i64::from_be_bytes(raw.try_into().ok()?)),
        Type::OID => u32::from_be_bytes(raw.try_into().ok()?).into(),
        Type::FLOAT4 => rows::short_float(f32::from_be_bytes(raw.try_into().ok()?)),
        Type::FLOAT8 => rows::float(f64::from_be_bytes(raw.try_into().ok()?)),
        Type::NUMERIC => numeric(raw)?.into(),
        Type::BYTEA => rows::binary(raw),
        Type::JSON => rows::document(std::str::from_utf8(raw).ok()?),
        // A version comes first.
        Type::JSONB => rows::document(std::str::from_utf8(raw.strip_prefix(&[1])?).ok()?),
        Type::UUID => uuid(raw.try_into().ok()?).into(),
        Type::DATE => date(i32::from_be_bytes(raw.try_into().ok()?)).into(),
        Type::TIME => time(i64::from_be_bytes(raw.try_into().ok()?)).into(),
        Type::TIMESTAMP => timestamp(i64::from_be_bytes(raw.try_into().ok()?), "").into(),
        Type::TIMESTAMPTZ => timestamp(i64::from_be_bytes(raw.try_into().ok()?), "Z").into(),
        Type::VOID => Value::Null,
        _ => rows::text(raw.to_vec()),
    })
}

/// Dimensions, whether there are NULLs, the members' type; then of each dimension length and lower bound; then the members.
fn list(kind: &Type, raw: &[u8]) -> Option<Value> {
    let mut reader = Reader(raw);
    let dimensions = reader.int()?;
    reader.take(8)?;
    let mut lengths = Vec::new();
    for _ in 0..dimensions {
        lengths.push(usize::try_from(reader.int()?).ok()?);
        reader.take(4)?;
    }
    if lengths.is_empty() {
        return Some(Value::Array(Vec::new()));
    }
    members(kind, &lengths, &mut reader)
}

fn members(kind: &Type, lengths: &[usize], reader: &mut Reader<'_>) -> Option<Value> {
    let (length, inner) = lengths.split_first()?;
    let mut list = Vec::new();
    for _ in 0..*length {
        if !inner.is_empty() {
            list.push(members(kind, inner, reader)?);
            continue;
        }
        list.push(match usize::try_from(reader.int()?) {
            Ok(length) => json(kind, reader.take(length)?),
            // -1: NULL
            Err(_) => Value::Null,
        });
    }
    Some(Value::Array(list))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn int(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn short(&mut self) -> Option<i16> {
        Some(i16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }
}

/// The number of groups, the weight of the first, the sign, the digits after the point that are shown; then the groups, 0 to 9999.
fn numeric(raw: &[u8]) -> Option<String> {
    let mut reader = Reader(raw);
    let (count, weight, sign, scale) = (reader.short()?, reader.short()?, reader.short()?, reader.short()?);
    match sign.cast_unsigned() {
        0xC000 => return Some("NaN".to_owned()),
        0xD000 => return Some("Infinity".to_owned()),
        0xF000 => return Some("-Infinity".to_owned()),
        _ => {}
    }
    let mut groups = Vec::new();
    for _ in 0..count {
        groups.push(reader.short()?);
    }
    let group = |at: i32| usize::try_from(at).ok().and_then(|at| groups.get(at)).copied().unwrap_or(0);
    let mut text = if sign.cast_unsigned() == 0x4000 { "-".to_owned() } else { String::new() };
    let weight = i32::from(weight);
    if weight < 0 {
        text.push('0');
    }
    for at in 0..=weight {
        let _ = if at == 0 { write!(text, "{}", group(at)) } else { write!(text, "{:04}", group(at)) };
    }
    let scale = usize::try_from(scale).ok()?;
    if scale > 0 {
        let mut digits = String::new();
        let mut at = weight + 1;
        while digits.len() < scale {
            let _ = write!(digits, "{:04}", group(at));
            at += 1;
        }
        text.push('.');
        text.push_str(&digits[..scale]);
    }
    Some(text)
}

fn uuid(bytes: [u8; 16]) -> String {
    let number = u128::from_be_bytes(bytes);
    let part = |from: u32, bits: u32| (number >> (128 - from - bits)) & ((1 << bits) - 1);
    format!("{:08x}-{:04x}-{:04x}-{:04x}-{:012x}", part(0, 32), part(32, 16), part(48, 16), part(64, 16), part(80, 48))
}

fn date(days: i32) -> String {
    match days {
        i32::MAX => "infinity".to_owned(),
        i32::MIN => "-infinity".to_owned(),
        days => civil(i64::from(days)),
    }
}

fn timestamp(micros: i64, zone: &str) -> String {
    match micros {
        i64::MAX => "infinity".to_owned(),
        i64::MIN => "-infinity".to_owned(),
        micros => {
            let day = civil(micros.div_euclid(DAY));
            // A year before the first has its mark at the end.
            let (day, era) = day.split_once(' ').map_or((day.as_str(), ""), |(day, _)| (day, " BC"));
            format!("{day}T{}{zone}{era}", time(micros.rem_euclid(DAY)))
        }
    }
}

fn time(micros: i64) -> String {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction == 0 { clock } else { format!("{clock}.{fraction:06}") }
}

/// The day of the proleptic Gregorian calendar, counted from 2000-01-01. Years are counted from March, so that a leap day ends one.
fn civil(days: i64) -> String {
    let days = days + 730_425;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    if year > 0 { format!("{year:04}-{month:02}-{day:02}") } else { format!("{:04}-{month:02}-{day:02} BC", 1 - year) }
}

/// A list as the text of an array.
pub fn array(items: &[Value]) -> String {
    let members = items.iter().map(|item| match item {
        Value::Null => "NULL".to_owned(),
        Value::Array(inner) => array(inner),
        Value::String(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        other => match rows::bytes_of(other) {
            Some(bytes) => format!("\"\\{}\"", hex(&bytes)),
            None => format!("\"{}\"", other.to_string().replace('\\', "\\\\").replace('"', "\\\"")),
        },
    });
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

pub fn hex(bytes: &[u8]) -> String {
    let mut text = "\\x".to_owned();
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

const KNOWN: [Type; 24] = [
    Type::BOOL,
    Type::INT2,
    Type::INT4,
    Type::INT8,
    Type::OID,
    Type::FLOAT4,
    Type::FLOAT8,
    Type::NUMERIC,
    Type::BYTEA,
    Type::JSON,
    Type::JSONB,
    Type::UUID,
    Type::DATE,
    Type::TIME,
    Type::TIMESTAMP,
    Type::TIMESTAMPTZ,
    Type::VOID,
    Type::TEXT,
    Type::VARCHAR,
    Type::BPCHAR,
    Type::NAME,
    Type::CHAR,
    Type::UNKNOWN,
    Type::XML,
];
const DAY: i64 = 86_400_000_000;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (days, shown) in [
            (0, "2000-01-01"),
            (59, "2000-02-29"),
            (60, "2000-03-01"),
            (-1, "1999-12-31"),
            (8825, "2024-02-29"),
            (-10_957, "1970-01-01"),
            (2_921_939, "9999-12-31"),
            (-730_119, "0001-01-01"),
            (-730_120, "0001-12-31 BC"),
        ] {
            assert_eq!(civil(days), shown);
        }
        assert_eq!(timestamp(-1, "Z"), "1999-12-31T23:59:59.999999Z");
        assert_eq!(timestamp(i64::MAX, "Z"), "infinity");
    }

    #[test]
    fn numbers_keep_their_digits() {
        let of = |shorts: &[i16]| numeric(&shorts.iter().flat_map(|short| short.to_be_bytes()).collect::<Vec<u8>>());
        assert_eq!(of(&[2, 0, 0, 2, 1, 1000]).unwrap(), "1.10");
        assert_eq!(of(&[1, -1, 0x4000, 4, 5]).unwrap(), "-0.0005");
        assert_eq!(of(&[1, -2, 0, 8, 1]).unwrap(), "0.00000001");
        assert_eq!(of(&[1, 2, 0, 0, 12]).unwrap(), "1200000000");
        assert_eq!(of(&[0, 0, 0, 2]).unwrap(), "0.00");
        assert_eq!(of(&[0, 0, 0xC000_u16.cast_signed(), 0]).unwrap(), "NaN");
    }

    #[test]
    fn lists_become_arrays_and_back() {
        let items = [json!("a\"\\b"), Value::Null, json!([1]), json!({ "base64": "/w==" })];
        assert_eq!(array(&items), r#"{"a\"\\b",NULL,{"1"},"\\xff"}"#);
        let raw =
            [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 7, 255, 255, 255, 255];
        assert_eq!(json(&Type::INT4_ARRAY, &raw), json!([7, null]));
        // What is cut off is told as bytes.
        assert!(json(&Type::INT4_ARRAY, &raw[..20]).get("base64").is_some());
    }
}
