//! The bridge between the eras: every client era in front of every upstream era, over every transport, with everything that has to cross.
//!
//! The reference is what the SDKs' clients see of the SDKs' servers without mcpeg in between, which is the same in both eras.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::peers;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::upstream::{HttpServer, with};

const TOKEN: &str = "token-of-the-local-agent";
const TOOLS: [&str; 9] = ["ask", "both", "cancelled", "log", "progress", "roots", "sample", "touch", "wait"];

/// A server for each era and transport, and a sidecar in front of them.
struct Bed {
    sidecar: Sidecar,
    http: String,
    _servers: Vec<HttpServer>,
}

impl Bed {
    async fn new() -> Self {
        let server = |era: &str, more: &[&str]| with(with(peers::argv("mcp_features_server"), &[era]), more);
        let folder = Folder::new(&[("secrets.yaml", &format!("local: {{ token: {TOKEN} }}\n"))]);
        let mut main = "version: \"1.0\"\naudit: { path: audit.log }\n\
            secrets:\n  providers: { own: { type: file, path: secrets.yaml } }\n  items: { local: { provider: own, path: local, refresh: 1s } }\n\
            transports: { http: { enabled: true, port: 0, token: \"${secret.local.token}\" } }\nservices:\n"
            .to_owned();
        let mut servers = Vec::new();
        for era in ["legacy", "modern"] {
            let http = HttpServer::start(server(era, &["http", "--port", "0"])).await;
            let child = serde_json::to_string(&server(era, &["stdio"])).unwrap();
            for (name, text) in [
                (format!("{era}-stdio"), format!("type: mcp\ncommand: {child}\n")),
                (format!("{era}-http"), format!("type: mcp\nurl: {}\n", http.url)),
            ] {
                main.push_str(&format!("  {name}: {{ config_file: {name}.yaml }}\n"));
                folder.write(&format!("{name}.yaml"), &text);
            }
            servers.push(http);
        }
        folder.write("mcpeg.yaml", &main);
        let sidecar = Sidecar::start(folder);
        let url = sidecar.ready.split("mcp http").nth(1).unwrap_or_else(|| panic!("{}", sidecar.ready));
        let http = format!("http{}", url.split([',', ';']).next().unwrap().trim());
        Self { sidecar, http, _servers: servers }
    }

    fn socket(&self, service: &str) -> [String; 2] {
        ["unix".to_owned(), self.sidecar.service_socket(service).display().to_string()]
    }

    fn url(&self, service: &str) -> [String; 2] {
        ["http".to_owned(), format!("{}/{service}", self.http)]
    }
}

/// Runs the client that uses every feature; what it saw.
fn features(era: &str, to: &[String]) -> Value {
    let argv =
        with(with(peers::argv("mcp_features_client"), &[era]), &to.iter().map(String::as_str).collect::<Vec<_>>());
    let output =
        Command::new(&argv[0]).args(&argv[1..]).env("MCPEG_TEST_TOKEN", TOKEN).stdin(Stdio::null()).output().unwrap();
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return json!({ "failed": said });
    }
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// What a client sees of the server without anything in between.
fn expected(client: &str, server: &str) -> Value {
    let mut seen = json!({
        "server": format!("features-{server}"),
        "instructions": "be kind",
        "capabilities": ["completions", "logging", "prompts", "resources", "tools"],
        "tools": TOOLS,
        "ask": "accept Ada",
        "sample": "sampled",
        "both": "accept Ada, sampled",
        "roots": "file:///root",
        "progress": "done 1,2,3",
        "log": "logged a line of the log",
        "prompt": "Hello, Ada",
        "complete": "berta",
        "read": "the one",
        "template": "item 7",
        "missing": "-32602",
        "subscribe": "touched list test://one",
        "cancel": 1,
        "unhandled": [],
    });
    match client {
        "modern" => seen["discover"] = json!("discovered"),
        _ => seen["ping"] = json!("{}"),
    }
    seen
}

/// The features that differ, as expected and as seen.
fn differences(expected: &Value, seen: &Value) -> Vec<String> {
    let keys = expected.as_object().unwrap().keys().chain(seen.as_object().unwrap().keys());
    let mut differences: Vec<String> = keys
        .filter(|key| expected[key.as_str()] != seen[key.as_str()])
        .map(|key| format!("{key}: {} instead of {}", seen[key], expected[key]))
        .collect();
    differences.dedup();
    differences
}

#[tokio::test(flavor = "multi_thread")]
async fn every_feature_crosses_between_every_era_over_every_transport() {
    let bed = Bed::new().await;
    let mut wrong = Vec::new();
    for server in ["legacy", "modern"] {
        for upstream in ["stdio", "http"] {
            let service = format!("{server}-{upstream}");
            for client in ["legacy", "modern"] {
                for to in [bed.socket(&service), bed.url(&service)] {
                    let seen = features(client, &to);
                    let differ = differences(&expected(client, server), &seen);
                    if !differ.is_empty() {
                        wrong.push(format!("{client} client, {service}, {}: {differ:#?}", to[0]));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
