//! Rows as JSON: what a value becomes, and how much of an answer is taken.
//!
//! Invariant: no value is rounded. What JSON's numbers cannot carry for every reader (integers beyond 2^53, decimals, what is not a
//! number) is a text; bytes are `{"base64": "..."}`; NULL is null.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::services::settings::database::Bounds;

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// The database's own word for its type.
    pub kind: String,
}

/// What a statement gave.
#[derive(Debug, Default)]
pub struct Rows {
    columns: Vec<Column>,
    pub rows: Vec<Map<String, Value>>,
    /// Of a statement that gives no rows.
    pub affected: Option<u64>,
    /// The bound that left rows out.
    pub truncated: Option<&'static str>,
    bytes: usize,
}

impl Rows {
    /// Columns of one name are told apart by a number.
    pub fn new(columns: Vec<Column>) -> Self {
        let mut taken = HashSet::new();
        let unique = |mut column: Column| {
            let name = column.name.clone();
            let mut number = 2;
            while !taken.insert(column.name.clone()) {
                column.name = format!("{name}_{number}");
                number += 1;
            }
            column
        };
        Self { columns: columns.into_iter().map(unique).collect(), ..Self::default() }
    }

    /// Takes a row, unless a bound is reached: then there were more than are given.
    pub fn push(&mut self, values: Vec<Value>, bounds: &Bounds) -> bool {
        self.bytes += values.iter().map(size).sum::<usize>();
        let reached = if self.rows.len() >= bounds.max_rows {
            Some("max_rows")
        } else {
            (self.bytes > bounds.max_bytes).then_some("max_bytes")
        };
        if reached.is_some() {
            self.truncated = reached;
            return false;
        }
        self.rows.push(self.columns.iter().map(|column| column.name.clone()).zip(values).collect());
        true
    }

    pub fn into_object(self) -> Map<String, Value> {
        let columns: Vec<Value> =
            self.columns.iter().map(|column| json!({ "name": column.name, "type": column.kind })).collect();
        let mut object = Map::new();
        object.insert("columns".to_owned(), columns.into());
        object.insert("row_count".to_owned(), self.rows.len().into());
        object.insert("rows".to_owned(), self.rows.into_iter().map(Value::Object).collect());
        object.insert("truncated".to_owned(), self.truncated.is_some().into());
        if let Some(bound) = self.truncated {
            object.insert("truncated_by".to_owned(), bound.into());
        }
        if let Some(affected) = self.affected {
            object.insert("affected_rows".to_owned(), affected.into());
        }
        object
    }

    /// The shape of the above.
    pub fn output_schema() -> Value {
        let column = json!({
            "type": "object",
            "properties": { "name": { "type": "string" }, "type": { "type": "string" } },
            "required": ["name", "type"],
        });
        json!({
            "type": "object",
            "properties": {
                "columns": { "type": "array", "items": column },
                "rows": {
                    "type": "array",
                    "items": { "type": "object" },
                    "description": "By the names of the columns. Integers beyond 2^53 and decimals are texts, bytes are {\"base64\": ...}",
                },
                "row_count": { "type": "integer" },
                "truncated": { "type": "boolean", "description": "There are more rows than are given" },
                "truncated_by": { "type": "string", "description": "The bound that left rows out: max_rows or max_bytes" },
                "affected_rows": { "type": "integer" },
            },
            "required": ["columns", "rows", "row_count", "truncated"],
        })
    }
}

pub fn integer(value: i64) -> Value {
    if value.unsigned_abs() <= SAFE { value.into() } else { value.to_string().into() }
}

pub fn unsigned(value: u64) -> Value {
    if value <= SAFE { value.into() } else { value.to_string().into() }
}

/// A text where JSON has no number for it.
pub fn float(value: f64) -> Value {
    match serde_json::Number::from_f64(value) {
        Some(number) => number.into(),
        None if value.is_nan() => "NaN".into(),
        None => (if value > 0.0 { "Infinity" } else { "-Infinity" }).into(),
    }
}

/// With the digits of the shorter type.
pub fn short_float(value: f32) -> Value {
    float(value.to_string().parse().unwrap_or(f64::from(value)))
}

/// What should be text, and is bytes where it is not UTF-8.
pub fn text(bytes: Vec<u8>) -> Value {
    match String::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(error) => binary(error.as_bytes()),
    }
}

pub fn binary(bytes: &[u8]) -> Value {
    json!({ "base64": STANDARD.encode(bytes) })
}

/// JSON that the database keeps: as it is, where that says the same, else its text.
pub fn document(source: &str) -> Value {
    match serde_json::from_str::<Value>(source) {
        Ok(value) if is_safe(&value) && says_the_same(&value, source) => value,
        _ => source.into(),
    }
}

/// The bytes of a parameter that is written as the above write them.
pub fn bytes_of(value: &Value) -> Option<Vec<u8>> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    STANDARD.decode(object.get("base64")?.as_str()?).ok()
}

fn is_safe(value: &Value) -> bool {
    match value {
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.unsigned_abs() <= SAFE,
            (None, Some(_)) => false,
            (None, None) => true,
        },
        Value::Array(items) => items.iter().all(is_safe),
        Value::Object(entries) => entries.values().all(is_safe),
        _ => true,
    }
}

fn says_the_same(value: &Value, source: &str) -> bool {
    let written = value.to_string();
    written == compact(source)
}

/// Without the white space outside of texts.
fn compact(json: &str) -> String {
    let (mut compact, mut inside, mut escaped) = (String::with_capacity(json.len()), false, false);
    for sign in json.chars() {
        if !inside && sign.is_ascii_whitespace() {
            continue;
        }
        inside ^= sign == '"' && !escaped;
        escaped = inside && sign == '\\' && !escaped;
        compact.push(sign);
    }
    compact
}

/// About as long as it is written.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| size(item) + 1).sum::<usize>() + 2,
        Value::Object(entries) => entries.iter().map(|(key, value)| key.len() + size(value) + 4).sum::<usize>() + 2,
        _ => 8,
    }
}

/// Beyond it, readers that take numbers for doubles see another one.
const SAFE: u64 = (1 << 53) - 1;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nothing_is_rounded() {
        assert_eq!(
            (integer(-9_007_199_254_740_991), integer(9_007_199_254_740_993)),
            (json!(-9_007_199_254_740_991_i64), json!("9007199254740993"))
        );
        assert_eq!(
            (unsigned(u64::MAX), short_float(0.1), float(f64::NAN)),
            (json!("18446744073709551615"), json!(0.1), json!("NaN"))
        );
        assert_eq!(document(r#"{"a": [1, "x \" y"], "b": 1.5}"#), json!({ "a": [1, "x \" y"], "b": 1.5 }));
        for source in
            ["{\"n\": 12345678901234567890}", "1.10", "{\"a\":1,\"a\":2}", "0.1234567890123456789", "not json"]
        {
            assert_eq!(document(source), json!(source));
        }
        assert_eq!(text(vec![0xff, 0]), json!({ "base64": "/wA=" }));
        assert_eq!(bytes_of(&json!({ "base64": "/wA=" })), Some(vec![0xff, 0]));
    }

    #[test]
    fn rows_end_at_the_bounds_and_columns_are_told_apart() {
        let bounds = Bounds { max_rows: 2, max_bytes: 1000, time: Duration::ZERO };
        let column = |name: &str| Column { name: name.to_owned(), kind: "int".to_owned() };
        let mut rows = Rows::new(vec![column("a"), column("a")]);
        assert!(rows.push(vec![json!(1), json!(2)], &bounds) && rows.push(vec![json!(3), json!(4)], &bounds));
        assert!(!rows.push(vec![json!(5), json!(6)], &bounds));
        let object = rows.into_object();
        assert_eq!(object["rows"], json!([{ "a": 1, "a_2": 2 }, { "a": 3, "a_2": 4 }]));
        assert_eq!((&object["truncated"], &object["truncated_by"]), (&json!(true), &json!("max_rows")));
        let mut rows = Rows::new(vec![column("a")]);
        assert!(!rows.push(vec![json!("x".repeat(2000))], &bounds));
        assert_eq!(rows.truncated, Some("max_bytes"));
    }
}
