//! The messages that mcpeg writes itself: errors, results and notifications, as one line of JSON without its end.

use serde_json::json;

use super::message::{Field, IdKey};

/// An error answer. `id` is put back as it was written; `None` is null.
pub fn error(id: Option<Field<'_>>, code: i32, message: &str, data: Option<&serde_json::Value>) -> Vec<u8> {
    let mut body = json!({ "code": code, "message": message });
    if let Some(data) = data {
        body["data"] = data.clone();
    }
    let id = id.map_or("null", Field::raw);
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{body}}}"#).into_bytes()
}

/// A result answer; `result` is JSON.
pub fn result(id: Field<'_>, result: &str) -> Vec<u8> {
    format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, id.raw()).into_bytes()
}

/// A request; `params` is JSON.
pub fn request(id: &str, method: &str, params: &str) -> Vec<u8> {
    format!(r#"{{"jsonrpc":"2.0","id":{},"method":{},"params":{params}}}"#, json!(id), json!(method)).into_bytes()
}

/// A notification without parameters.
pub fn notification(method: &str) -> Vec<u8> {
    format!(r#"{{"jsonrpc":"2.0","method":{}}}"#, json!(method)).into_bytes()
}

/// Tells the other side that the answer to its, or our, request is not awaited any more.
pub fn cancelled(id: &IdKey, reason: &str) -> Vec<u8> {
    let id = written(id);
    let reason = json!(reason);
    format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id},"reason":{reason}}}}}"#)
        .into_bytes()
}

fn written(id: &IdKey) -> String {
    match id {
        IdKey::Integer(number) => number.to_string(),
        IdKey::Text(text) => json!(text).to_string(),
        IdKey::Number(raw) => raw.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_put_back_as_it_was_written() {
        let line = error(Some(Field(r#""a\u0062""#)), -32010, "it \"failed\"", Some(&json!({"service": "x"})));
        assert_eq!(
            String::from_utf8(line).unwrap(),
            r#"{"jsonrpc":"2.0","id":"a\u0062","error":{"code":-32010,"message":"it \"failed\"","data":{"service":"x"}}}"#
        );
        assert!(error(None, -32700, "no", None).starts_with(br#"{"jsonrpc":"2.0","id":null,"#));
    }

    #[test]
    fn a_cancellation_names_ids_of_every_kind() {
        for (id, written) in [
            (IdKey::Integer(-3), "-3"),
            (IdKey::Text("q\"".into()), r#""q\"""#),
            (IdKey::Number("18446744073709551615".into()), "18446744073709551615"),
        ] {
            let line = String::from_utf8(cancelled(&id, "gone")).unwrap();
            assert!(line.contains(&format!(r#""requestId":{written},"#)), "{line}");
        }
    }
}
