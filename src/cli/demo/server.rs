//! The MCP server that the demo puts behind the sidecar: `mcpeg demo-server`, on stdio or streamable HTTP.
//!
//! It speaks both eras in their plainest form (no sessions, no streams): initialize, server/discover, ping, tools/list, tools/call. Its
//! tool `whoami` tells by which credential it was called as a fingerprint (the first 12 hex digits of SHA-256), never the value.

use std::convert::Infallible;
use std::io::{BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::cli::{block_on, failed, say};

#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Serve on a loopback port (0: any free one) instead of stdio
    #[arg(long)]
    port: Option<u16>,
}

pub fn serve(args: &ServerArgs) -> ExitCode {
    match args.port {
        None => serve_stdio(),
        Some(port) => block_on(1, async move {
            match serve_http(port).await {
                Ok(never) => match never {},
                Err(error) => failed(&format!("the demo's server cannot listen on port {port}: {error}")),
            }
        }),
    }
}

fn serve_stdio() -> ExitCode {
    let credential = std::env::var("DEMO_TOKEN").unwrap_or_default();
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        if let Some(answer) = answer(&message, &credential)
            && writeln!(out, "{answer}").and_then(|()| out.flush()).is_err()
        {
            break;
        }
    }
    ExitCode::SUCCESS
}

async fn serve_http(port: u16) -> std::io::Result<Infallible> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    say(&format!("listening on http://{}/mcp", listener.local_addr()?));
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        connections.spawn(async move {
            // A client that goes away in the middle is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(respond))
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn respond(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let answer = if request.uri().path() != "/mcp" {
        plain(StatusCode::NOT_FOUND)
    } else if request.method() != Method::POST {
        plain(StatusCode::METHOD_NOT_ALLOWED)
    } else {
        let header = request.headers().get(http::header::AUTHORIZATION).map(|value| value.as_bytes().to_vec());
        let credential = header
            .and_then(|value| String::from_utf8(value).ok())
            .and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned))
            .unwrap_or_default();
        match Limited::new(request.into_body(), MAX_BODY).collect().await {
            Ok(body) => match serde_json::from_slice::<Value>(&body.to_bytes()) {
                Ok(message) => {
                    answer(&message, &credential).map_or_else(|| plain(StatusCode::ACCEPTED), |json| with_json(&json))
                }
                Err(_) => plain(StatusCode::BAD_REQUEST),
            },
            Err(_) => plain(StatusCode::PAYLOAD_TOO_LARGE),
        }
    };
    Ok(answer)
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn with_json(json: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(json.to_string()));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// The answer to one message; `None` for a notification.
fn answer(message: &Value, credential: &str) -> Option<Value> {
    let id = message.get("id")?;
    let modern = message["params"]["_meta"].get("io.modelcontextprotocol/protocolVersion").is_some();
    let mut result = match message["method"].as_str().unwrap_or_default() {
        "initialize" => {
            let version = message["params"]["protocolVersion"].as_str().unwrap_or(LEGACY);
            json!({ "protocolVersion": version, "capabilities": { "tools": {} }, "serverInfo": server_info() })
        }
        "server/discover" => {
            json!({ "supportedVersions": [MODERN], "capabilities": { "tools": {} }, "serverInfo": server_info(), "ttlMs": 0, "cacheScope": "private" })
        }
        "ping" => json!({}),
        "tools/list" => tools(modern),
        "tools/call" => match message["params"]["name"].as_str().unwrap_or_default() {
            "forecast" => forecast(&message["params"]["arguments"]),
            "whoami" => text(&json!({ "credential": fingerprint(credential.as_bytes()) }).to_string()),
            _ => return Some(error(id, -32602, "there is no such tool")),
        },
        _ => return Some(error(id, -32601, "method not found")),
    };
    if modern {
        result["resultType"] = "complete".into();
    }
    Some(json!({ "jsonrpc": "2.0", "id": id, "result": result }))
}

fn server_info() -> Value {
    json!({ "name": "mcpeg-demo", "version": env!("CARGO_PKG_VERSION") })
}

fn tools(modern: bool) -> Value {
    let mut list = json!({ "tools": [
        {
            "name": "forecast",
            "description": "Tomorrow's weather for a place",
            "inputSchema": { "type": "object", "properties": { "place": { "type": "string" } }, "required": ["place"] },
            "annotations": { "readOnlyHint": true }
        },
        {
            "name": "whoami",
            "description": "By which credential this server was called, as a fingerprint",
            "inputSchema": { "type": "object" },
            "annotations": { "readOnlyHint": true }
        }
    ] });
    if modern {
        list["ttlMs"] = 0.into();
        list["cacheScope"] = "private".into();
    }
    list
}

/// The same weather for the same place, however often one asks.
fn forecast(arguments: &Value) -> Value {
    let place = arguments["place"].as_str().unwrap_or("here");
    let degrees = place.bytes().map(u32::from).sum::<u32>() % 25 + 5;
    text(&format!("{place}: {degrees} °C, light wind"))
}

fn text(text: &str) -> Value {
    json!({ "content": [{ "type": "text", "text": text }], "isError": false })
}

fn error(id: &Value, code: i32, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
}

/// The first 12 hex digits of SHA-256: enough to tell two credentials apart.
pub fn fingerprint(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

const LEGACY: &str = "2025-11-25";
const MODERN: &str = "2026-07-28";
const MAX_BODY: usize = 1024 * 1024;
const MAX_CONNECTIONS: usize = 256;
