//! The protocol of a service that mcpeg serves itself: one message in, one answer out, both eras, no session.
//!
//! It knows methods, versions and the shapes of results; what a tool does is a kind's business (`Served`). Names are those of the
//! specification (modelcontextprotocol.io, versions 2024-11-05 to 2026-07-28).

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::resources::{self, Resources, listed};
use crate::ports::LocalAnswer;

/// A kind of service.
pub trait Served: Send + Sync {
    /// As they stand in `tools/list`.
    fn tools(&self) -> Vec<Value>;

    /// Calls one of the tools. `None`: there is no such tool.
    fn call(self: Arc<Self>, tool: &str, arguments: Map<String, Value>) -> Option<CallFuture>;

    /// Its resources, where it is of a kind that has any.
    fn resources(self: Arc<Self>) -> Option<Arc<dyn Resources>> {
        None
    }
}

pub type CallFuture<T = Output> = Pin<Box<dyn Future<Output = Called<T>> + Send>>;

/// What has come of a call, and with which secrets.
pub struct Called<T = Output> {
    pub outcome: Result<T, Trouble>,
    /// `item@version`.
    pub versions: Arc<[String]>,
}

/// What a tool gives.
#[derive(Debug, PartialEq)]
pub struct Output {
    pub text: String,
    pub structured: Option<Map<String, Value>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The call itself is at fault, or was refused: words for the model.
    Tool(String),
    /// What stands behind the service is not there or does not work: `error.type`, and words.
    Behind { kind: &'static str, reason: String },
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<String>,
    #[serde(default)]
    params: Value,
}

#[derive(Serialize)]
struct Answer<'a> {
    jsonrpc: &'static str,
    id: &'a RawValue,
    #[serde(flatten)]
    body: Body,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Body {
    Result(Value),
    Error(Value),
}

/// Answers a message, if it is a request.
pub async fn answer(served: Arc<dyn Served>, message: Bytes) -> LocalAnswer {
    let Ok(Message { id: Some(id), method: Some(method), params }) = serde_json::from_slice(&message) else {
        return LocalAnswer::Nothing;
    };
    let version = params["_meta"].get(VERSION).and_then(Value::as_str).map(str::to_owned);
    let modern = version.is_some();
    if let Some(version) = version.filter(|version| version != MODERN) {
        let data = json!({ "supported": [MODERN], "requested": version });
        let error = json!({ "code": UNSUPPORTED_VERSION, "message": "this version is not spoken here", "data": data });
        return line(id, Body::Error(error), Arc::default());
    }
    if method == "tools/call" {
        return call(served, id, params, modern).await;
    }
    let resources = served.clone().resources();
    let has_resources = resources.is_some();
    if let Some(resources) = resources
        && let Some(answered) = resources::answer(resources, &method, &params, modern).await
    {
        return of_resources(id, answered, modern);
    }
    let body = match result_of(&*served, &method, &params, modern, has_resources) {
        Some(result) => Body::Result(complete(result, modern)),
        None => error(METHOD_NOT_FOUND, "method not found"),
    };
    line(id, body, Arc::default())
}

fn result_of(served: &dyn Served, method: &str, params: &Value, modern: bool, resources: bool) -> Option<Value> {
    let list = |name: &str, list: Vec<Value>| Some(listed(name, list, modern));
    let capabilities = || {
        if resources { json!({ "tools": {}, "resources": {}, "completions": {} }) } else { json!({ "tools": {} }) }
    };
    match method {
        "initialize" => {
            let asked = params["protocolVersion"].as_str().unwrap_or_default();
            let version = LEGACY.into_iter().find(|known| *known == asked).unwrap_or(LEGACY[0]);
            Some(json!({ "protocolVersion": version, "capabilities": capabilities(), "serverInfo": server_info() }))
        }
        "server/discover" => Some(json!({
            "supportedVersions": [MODERN], "capabilities": capabilities(), "serverInfo": server_info(),
            "ttlMs": 0, "cacheScope": "private",
        })),
        "ping" => Some(json!({})),
        "tools/list" => list("tools", served.tools()),
        "resources/list" => list("resources", Vec::new()),
        "resources/templates/list" => list("resourceTemplates", Vec::new()),
        "prompts/list" => list("prompts", Vec::new()),
        _ => None,
    }
}

async fn call(served: Arc<dyn Served>, id: &RawValue, mut params: Value, modern: bool) -> LocalAnswer {
    let arguments = match params["arguments"].take() {
        Value::Object(arguments) => arguments,
        Value::Null => Map::new(),
        _ => return line(id, error(INVALID_PARAMS, "`arguments` is an object"), Arc::default()),
    };
    let name = params["name"].as_str().unwrap_or_default();
    let Some(called) = served.call(name, arguments) else {
        return line(id, error(INVALID_PARAMS, "there is no such tool"), Arc::default());
    };
    let Called { outcome, versions } = called.await;
    let result = match outcome {
        Ok(Output { text, structured }) => {
            let mut result = json!({ "content": [{ "type": "text", "text": text }], "isError": false });
            if let Some(structured) = structured {
                result["structuredContent"] = Value::Object(structured);
            }
            result
        }
        Err(Trouble::Tool(words)) => json!({ "content": [{ "type": "text", "text": words }], "isError": true }),
        Err(Trouble::Behind { kind, reason }) => return LocalAnswer::Failed { kind, reason, versions },
    };
    line(id, Body::Result(complete(result, modern)), versions)
}

fn of_resources(id: &RawValue, answered: resources::Answered, modern: bool) -> LocalAnswer {
    let resources::Answered { outcome, versions } = answered;
    let body = match outcome {
        Ok(Ok(result)) => Body::Result(complete(result, modern)),
        Ok(Err((code, message, None))) => error(code, &message),
        Ok(Err((code, message, Some(data)))) => Body::Error(json!({ "code": code, "message": message, "data": data })),
        // Words of a tool are errors by now.
        Err(Trouble::Tool(reason)) => error(INVALID_PARAMS, &reason),
        Err(Trouble::Behind { kind, reason }) => return LocalAnswer::Failed { kind, reason, versions },
    };
    line(id, body, versions)
}

fn complete(mut result: Value, modern: bool) -> Value {
    if modern {
        result["resultType"] = "complete".into();
    }
    result
}

fn error(code: i32, message: &str) -> Body {
    Body::Error(json!({ "code": code, "message": message }))
}

fn line(id: &RawValue, body: Body, versions: Arc<[String]>) -> LocalAnswer {
    match serde_json::to_vec(&Answer { jsonrpc: "2.0", id, body }) {
        Ok(line) => LocalAnswer::Line { line: line.into(), versions },
        // Values of ours are always JSON.
        Err(_) => LocalAnswer::Nothing,
    }
}

fn server_info() -> Value {
    json!({ "name": "mcpeg", "version": env!("CARGO_PKG_VERSION") })
}

const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const MODERN: &str = "2026-07-28";
const LEGACY: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_PARAMS: i32 = -32602;
const UNSUPPORTED_VERSION: i32 = -32022;

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl Served for Echo {
        fn tools(&self) -> Vec<Value> {
            vec![json!({ "name": "echo", "inputSchema": { "type": "object" } })]
        }

        fn call(self: Arc<Self>, tool: &str, arguments: Map<String, Value>) -> Option<CallFuture> {
            let outcome = match tool {
                "echo" => Ok(Output { text: "text".to_owned(), structured: Some(arguments) }),
                "refused" => Err(Trouble::Tool("no".to_owned())),
                "gone" => Err(Trouble::Behind { kind: "upstream_unreachable", reason: "away".to_owned() }),
                _ => return None,
            };
            Some(Box::pin(std::future::ready(Called { outcome, versions: Arc::from(["a@1".to_owned()]) })))
        }
    }

    async fn answered(message: Value) -> Value {
        match answer(Arc::new(Echo), Bytes::from(message.to_string())).await {
            LocalAnswer::Line { line, .. } => serde_json::from_slice(&line).unwrap(),
            other => json!(format!("{other:?}")),
        }
    }

    fn modern(method: &str, mut params: Value) -> Value {
        params["_meta"] = json!({ VERSION: MODERN });
        json!({ "jsonrpc": "2.0", "id": "x", "method": method, "params": params })
    }

    #[tokio::test]
    async fn both_eras_are_spoken_and_unknown_versions_refused() {
        let initialize = |version: &str| json!({ "id": 12345678901234567890123_u128.to_string(), "method": "initialize", "params": { "protocolVersion": version } });
        assert_eq!(answered(initialize("2025-06-18")).await["result"]["protocolVersion"], "2025-06-18");
        assert_eq!(answered(initialize("1999-01-01")).await["result"]["protocolVersion"], LEGACY[0]);
        let discovered = answered(modern("server/discover", json!({}))).await;
        assert_eq!(discovered["result"]["supportedVersions"], json!([MODERN]));
        let listed = answered(modern("tools/list", json!({}))).await;
        assert_eq!((&listed["id"], &listed["result"]["resultType"]), (&json!("x"), &json!("complete")));
        assert_eq!((&listed["result"]["ttlMs"], &listed["result"]["tools"][0]["name"]), (&json!(0), &json!("echo")));
        let other = json!({ "id": 1, "method": "ping", "params": { "_meta": { VERSION: "2027-01-01" } } });
        assert_eq!(answered(other).await["error"]["code"], UNSUPPORTED_VERSION);
        let listed = answered(json!({ "id": 1, "method": "tools/list" })).await;
        assert_eq!(listed["result"].get("ttlMs"), None);
    }

    #[tokio::test]
    async fn a_call_gives_a_result_an_error_of_the_tool_or_a_failure() {
        let call = |name: &str, arguments: Value| json!({ "id": 7, "method": "tools/call", "params": { "name": name, "arguments": arguments } });
        let result = answered(call("echo", json!({ "a": 1 }))).await["result"].take();
        assert_eq!((&result["structuredContent"], &result["isError"]), (&json!({ "a": 1 }), &json!(false)));
        let refused = answered(call("refused", Value::Null)).await;
        assert_eq!(
            (&refused["result"]["isError"], &refused["result"]["content"][0]["text"]),
            (&json!(true), &json!("no"))
        );
        assert!(answered(call("gone", Value::Null)).await.as_str().unwrap().contains("upstream_unreachable"));
        assert_eq!(answered(call("other", Value::Null)).await["error"]["code"], INVALID_PARAMS);
        assert_eq!(answered(call("echo", json!([]))).await["error"]["code"], INVALID_PARAMS);
        assert_eq!(answered(json!({ "method": "notifications/initialized" })).await, "Nothing");
        assert_eq!(answered(json!({ "id": 1, "method": "vendor/any" })).await["error"]["code"], METHOD_NOT_FOUND);
    }
}
