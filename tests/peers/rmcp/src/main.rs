//! Uses what features_server.mjs has that a server and a client ask of each other, with the client of Rust's SDK, and prints what came of it as one
//! line of JSON with a member for each feature, as features_client.mjs does.
//!
//! `rmcp-client legacy|modern unix PATH | http URL | stdio COMMAND ARGS...`; the token for `http` is in `MCPEG_TEST_TOKEN`.

// Sampling, roots and the log are deprecated in the modern era, and in use.
#![allow(deprecated)]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResult, ClientCapabilities, ClientInfo, ClientRequest,
    CreateMessageRequestParams, CreateMessageResult, ElicitRequestParams, ElicitResult, ElicitationAction, ErrorData,
    Implementation, ListRootsResult, ProgressNotificationParam, ProtocolVersion, Root, SamplingMessage,
};
use rmcp::service::{NotificationContext, PeerRequestOptions, RequestContext, RunningService};
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::transport::{StreamableHttpClientTransport, TokioChildProcess};
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt, RoleClient};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::sleep;

type Failure = Box<dyn Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [era, transport, target, more @ ..] = &arguments[..] else {
        return Err("usage: rmcp-client legacy|modern unix PATH | http URL | stdio COMMAND ARGS...".into());
    };
    let lifecycle = match era.as_str() {
        "modern" => ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] },
        _ => ClientLifecycleMode::Initialize,
    };
    let client = Client::default();
    let progress = client.progress.clone();
    let running = match transport.as_str() {
        "unix" => client.serve_with_lifecycle(UnixStream::connect(target).await?, lifecycle).await?,
        "http" => {
            let mut config = StreamableHttpClientTransportConfig::with_uri(target.as_str());
            if let Ok(token) = std::env::var("MCPEG_TEST_TOKEN") {
                config = config.auth_header(token);
            }
            client.serve_with_lifecycle(StreamableHttpClientTransport::from_config(config), lifecycle).await?
        }
        _ => {
            let mut command = Command::new(target);
            command.args(more);
            client.serve_with_lifecycle(TokioChildProcess::new(command)?, lifecycle).await?
        }
    };
    println!("{}", Value::Object(report(&running, &progress).await.into_iter().collect()));
    running.cancel().await?;
    Ok(())
}

/// Every feature, with the text that came of it.
async fn report(running: &Running, progress: &Mutex<Vec<f64>>) -> BTreeMap<String, Value> {
    let mut report = BTreeMap::new();
    if let Some(info) = running.peer().peer_info() {
        report.insert("server".into(), json!(info.server_info.as_ref().map(|server| server.name.clone())));
        report.insert("protocol".into(), json!(info.protocol_version));
    }
    let tools = running.peer().list_all_tools().await.map(|tools| {
        let mut names: Vec<String> = tools.into_iter().map(|tool| tool.name.into_owned()).collect();
        names.sort();
        json!(names)
    });
    report.insert("tools".into(), tools.unwrap_or_else(|error| failure(&error)));
    for name in ["ask", "sample", "both", "roots"] {
        report.insert(name.into(), text(call(running, name).await));
    }
    let done = text(call(running, "progress").await);
    // The notifications have handlers of their own, which may still run.
    sleep(Duration::from_millis(100)).await;
    let seen: Vec<String> = progress.lock().unwrap().iter().map(f64::to_string).collect();
    report.insert("progress".into(), json!(format!("{} {}", done.as_str().unwrap_or("?"), seen.join(","))));
    report.insert("cancel".into(), cancel(running).await.unwrap_or_else(|error| failure(&*error)));
    report
}

/// How many calls the server counts as cancelled when one is.
async fn cancel(running: &Running) -> Result<Value, Failure> {
    let before: i64 = cancelled(running).await?;
    let request = ClientRequest::CallToolRequest(CallToolRequest::new(CallToolRequestParams::new("wait")));
    let waiting = running.peer().send_cancellable_request(request, PeerRequestOptions::no_options()).await?;
    sleep(Duration::from_millis(300)).await;
    waiting.cancel(Some("enough".into())).await?;
    let mut count = before;
    for _ in 0..60 {
        sleep(Duration::from_millis(50)).await;
        count = cancelled(running).await?;
        if count != before {
            break;
        }
    }
    Ok(json!(count - before))
}

async fn cancelled(running: &Running) -> Result<i64, Failure> {
    let said = text(call(running, "cancelled").await);
    Ok(said.as_str().unwrap_or_default().parse().map_err(|_| format!("not a number: {said}"))?)
}

async fn call(running: &Running, name: &'static str) -> Result<CallToolResult, rmcp::ServiceError> {
    running.call_tool(CallToolRequestParams::new(name)).await
}

fn text(answer: Result<CallToolResult, rmcp::ServiceError>) -> Value {
    match answer {
        Err(error) => failure(&error),
        Ok(result) => {
            let parts: Vec<String> =
                result.content.iter().map(|part| part.as_text().map_or("?", |text| &text.text).to_owned()).collect();
            let prefix = if result.is_error == Some(true) { "error: " } else { "" };
            json!(format!("{prefix}{}", parts.join(" ")))
        }
    }
}

fn failure(error: &dyn Error) -> Value {
    json!(format!("error: {error}"))
}

type Running = RunningService<RoleClient, Client>;

/// Answers what the server asks.
#[derive(Default)]
struct Client {
    progress: Arc<Mutex<Vec<f64>>>,
}

impl ClientHandler for Client {
    fn get_info(&self) -> ClientInfo {
        let capabilities = json!({ "elicitation": { "form": {} }, "sampling": {}, "roots": {} });
        let capabilities: ClientCapabilities = serde_json::from_value(capabilities).unwrap();
        ClientInfo::new(capabilities, Implementation::new("features", "1.0.0"))
    }

    async fn create_elicitation(
        &self,
        _request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        Ok(ElicitResult::new(ElicitationAction::Accept).with_content(json!({ "name": "Ada" })))
    }

    async fn create_message(
        &self,
        _request: CreateMessageRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        Ok(CreateMessageResult::new(SamplingMessage::assistant_text("sampled"), "m".into()))
    }

    async fn list_roots(&self, _context: RequestContext<RoleClient>) -> Result<ListRootsResult, ErrorData> {
        Ok(ListRootsResult::new(vec![Root::new("file:///root")]))
    }

    async fn on_progress(&self, params: ProgressNotificationParam, _context: NotificationContext<RoleClient>) {
        self.progress.lock().unwrap().push(params.progress);
    }
}
