//! The demo's agent: a plain MCP client on the sidecar's socket. It keeps all that it was ever sent, to be searched for the credential.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

pub struct Agent {
    lines: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    next_id: u64,
    /// Every byte that came from the sidecar.
    pub received: String,
}

/// What a number of calls in a row came to.
#[derive(Default)]
pub struct Tally {
    pub calls: u64,
    pub failed: u64,
    /// The fingerprints that the upstream reported, in order of their first appearance.
    pub credentials: Vec<String>,
    pub slowest: Duration,
    pub received: String,
}

impl Agent {
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        let (reader, writer) = UnixStream::connect(socket).await?.into_split();
        let mut agent = Self { lines: BufReader::new(reader), writer, next_id: 0, received: String::new() };
        let hello = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "demo-agent", "version": "1" } });
        agent.request("initialize", hello).await?;
        agent.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await?;
        Ok(agent)
    }

    /// The result of a request; a JSON-RPC error is an error here.
    pub async fn request(&mut self, method: &str, params: Value) -> io::Result<Value> {
        self.next_id += 1;
        let id = self.next_id;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await?;
        loop {
            let mut line = String::new();
            let read = timeout(PATIENCE, self.lines.read_line(&mut line)).await.map_err(|_| io::ErrorKind::TimedOut)?;
            if read? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.received.push_str(&line);
            let message: Value = serde_json::from_str(&line)?;
            if message["id"] != id {
                continue;
            }
            return match message.get("error") {
                Some(error) => Err(io::Error::other(format!("{method}: {}", error["message"]))),
                None => Ok(message["result"].clone()),
            };
        }
    }

    /// Calls a tool and gives its text.
    pub async fn call(&mut self, tool: &str, arguments: Value) -> io::Result<String> {
        let result = self.request("tools/call", json!({ "name": tool, "arguments": arguments })).await?;
        Ok(result["content"][0]["text"].as_str().unwrap_or_default().to_owned())
    }

    /// Asks `tool` who is calling, again and again, until `stop` says so.
    pub async fn keep_asking(mut self, tool: String, stop: impl Fn() -> bool) -> Tally {
        let mut tally = Tally::default();
        while !stop() {
            let started = Instant::now();
            tally.calls += 1;
            match self.call(&tool, json!({})).await {
                Ok(text) => {
                    let credential = serde_json::from_str::<Value>(&text).unwrap_or_default()["credential"].clone();
                    let credential = credential.as_str().unwrap_or("none").to_owned();
                    if !tally.credentials.contains(&credential) {
                        tally.credentials.push(credential);
                    }
                }
                Err(_) => tally.failed += 1,
            }
            tally.slowest = tally.slowest.max(started.elapsed());
        }
        tally.received = self.received;
        tally
    }

    async fn send(&mut self, message: &Value) -> io::Result<()> {
        let mut line = message.to_string();
        line.push('\n');
        self.writer.write_all(line.as_bytes()).await
    }
}

const PATIENCE: Duration = Duration::from_secs(10);
