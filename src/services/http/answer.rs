//! What an HTTP interface answered, as a tool's output.
//!
//! Invariant: no more of an answer is held than `max_bytes`, whatever its headers promise.

use futures_util::StreamExt;
use http::header::CONTENT_TYPE;
use reqwest::Response;
use serde_json::{Map, Value};

use crate::services::server::{Output, Trouble};
use crate::services::settings::HttpTool;

/// Reads and judges the answer; one of the status 5xx does not come here.
pub async fn read(response: Response, tool: &HttpTool) -> Result<Output, Trouble> {
    let status = response.status();
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    if !status.is_success() {
        let (said, _) = beginning(response, SHOWN_OF_ERROR).await?;
        let said = String::from_utf8_lossy(&said);
        let said = said.trim();
        let colon = if said.is_empty() { "" } else { ": " };
        return Err(Trouble::Tool(format!("the server answered {status}{colon}{said}")));
    }
    let (body, is_whole) = beginning(response, tool.max_bytes).await?;
    if !is_whole {
        let words =
            format!("the answer is longer than {} bytes, which `max_bytes` allows; ask for less", tool.max_bytes);
        return Err(Trouble::Tool(words));
    }
    output(&body, content_type.as_deref(), tool.result.as_deref())
}

/// As much of the body as `most` allows, and whether that is all.
async fn beginning(response: Response, most: usize) -> Result<(Vec<u8>, bool), Trouble> {
    let (mut body, mut chunks) = (Vec::new(), response.bytes_stream());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Trouble::Behind {
            kind: "connection_broken",
            reason: format!("the answer broke off: {}", error.without_url()),
        })?;
        let room = most - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            return Ok((body, false));
        }
    }
    Ok((body, true))
}

fn output(body: &[u8], content_type: Option<&str>, pointer: Option<&str>) -> Result<Output, Trouble> {
    let is_json = content_type.is_some_and(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        kind.ends_with("/json") || kind.ends_with("+json")
    });
    if is_json || pointer.is_some() {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| Trouble::Tool(format!("the server's answer is not JSON: {error}")))?;
        return match pointer {
            None => Ok(of_json(value)),
            Some(pointer) => match value.pointer(pointer) {
                Some(part) => Ok(of_json(part.clone())),
                None => Err(Trouble::Tool(format!("the server's answer has nothing at {pointer}"))),
            },
        };
    }
    match std::str::from_utf8(body) {
        Ok(text) => Ok(Output { text: text.to_owned(), structured: None }),
        Err(_) => Err(Trouble::Tool("the server's answer is neither JSON nor text".to_owned())),
    }
}

/// Structured content is an object: anything else stands in one, under `result`.
fn of_json(value: Value) -> Output {
    let text = match &value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let structured = match value {
        Value::Object(object) => object,
        other => Map::from_iter([("result".to_owned(), other)]),
    };
    Output { text, structured: Some(structured) }
}

const SHOWN_OF_ERROR: usize = 1024;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_part_that_is_pointed_at_is_given_and_objects_stay_objects() {
        let body = br#"{"current":{"t":21.5},"big":12345678901234567}"#;
        let json = Some("application/problem+json; charset=utf-8");
        let structured = |pointer: &str| Value::from(output(body, None, Some(pointer)).unwrap().structured.unwrap());
        assert_eq!(structured("/current"), json!({ "t": 21.5 }));
        assert_eq!(structured("/big"), json!({ "result": 12_345_678_901_234_567_u64 }));
        assert_eq!(output(body, json, None).unwrap().text.as_bytes(), body);
        assert_eq!(output(body, Some("text/plain"), None).unwrap().structured, None);
        let none = output(body, json, Some("/none")).unwrap_err();
        assert_eq!(none, Trouble::Tool("the server's answer has nothing at /none".to_owned()));
        assert!(matches!(output(b"<html>", json, None), Err(Trouble::Tool(words)) if words.contains("not JSON")));
        assert!(matches!(output(b"\xff\xfe", None, None), Err(Trouble::Tool(_))));
    }
}
