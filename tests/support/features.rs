//! The server with everything that crosses between the eras, in each era over each transport behind one sidecar, and the clients that use it.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::peers;
use super::sidecar::{Folder, PROGRAM, Sidecar};
use super::upstream::{HttpServer, with};

pub const TOKEN: &str = "token-of-the-local-agent";
pub const TOOLS: [&str; 9] = ["ask", "both", "cancelled", "log", "progress", "roots", "sample", "touch", "wait"];

/// A server for each era and transport, and a sidecar in front of them.
pub struct Bed {
    pub sidecar: Sidecar,
    http: String,
    _servers: Vec<HttpServer>,
}

impl Bed {
    /// `transports`: more of that section.
    pub async fn new(transports: &str) -> Self {
        let server = |era: &str, more: &[&str]| with(with(peers::argv("mcp_features_server"), &[era]), more);
        let folder = Folder::new(&[("secrets.yaml", &format!("local: {{ token: {TOKEN} }}\n"))]);
        let mut main = "version: \"1.0\"\naudit: { path: audit.log }\n\
            secrets:\n  providers: { own: { type: file, path: secrets.yaml } }\n  items: { local: { provider: own, path: local, refresh: 1s } }\n\
            transports: { http: { enabled: true, port: 0, token: \"${secret.local.token}\" }MORE }\nservices:\n"
            .replace("MORE", transports);
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

    /// Every way to a service, or to all of them: `unix PATH`, `http URL` and `stdio mcpeg connect ...`.
    pub fn ways(&self, service: Option<&str>) -> [Vec<String>; 3] {
        let socket = service.map_or_else(|| self.sidecar.socket(), |service| self.sidecar.service_socket(service));
        [vec!["unix".to_owned(), socket.display().to_string()], vec!["http".to_owned(), self.url(service)], {
            let mut connect = vec!["stdio".to_owned()];
            connect.extend(self.connect(service));
            connect
        }]
    }

    pub fn url(&self, service: Option<&str>) -> String {
        service.map_or_else(|| self.http.clone(), |service| format!("{}/{service}", self.http))
    }

    /// The command that a client spawns.
    pub fn connect(&self, service: Option<&str>) -> Vec<String> {
        let config = self.sidecar.folder.path("mcpeg.yaml").display().to_string();
        let mut argv = vec![PROGRAM.to_owned(), "connect".to_owned()];
        argv.extend(service.map(str::to_owned));
        argv.extend(["--config".to_owned(), config]);
        argv
    }
}

/// What a client of npm's sees of the server without anything in between, and the others see of it what they use.
pub fn expected(client: &str, server: &str) -> Value {
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

/// Clients that each print what they saw as one JSON object: two at a time, and one of each service, whose server counts what is cancelled.
pub struct Runs {
    tasks: JoinSet<Option<String>>,
    at_once: Arc<Semaphore>,
    services: HashMap<String, Arc<Mutex<()>>>,
}

impl Default for Runs {
    fn default() -> Self {
        Self { tasks: JoinSet::new(), at_once: Arc::new(Semaphore::new(2)), services: HashMap::new() }
    }
}

impl Runs {
    /// Runs `argv`, which is to see `expected` of the service. `what` names it in a complaint.
    pub fn add(
        &mut self,
        service: &str,
        what: String,
        argv: Vec<String>,
        env: &[(&'static str, String)],
        expected: Value,
    ) {
        let (at_once, env) = (self.at_once.clone(), env.to_vec());
        let turn = self.services.entry(service.to_owned()).or_default().clone();
        let what = format!("{service}: {what}");
        self.tasks.spawn(async move {
            let _turn = turn.lock().await;
            let _permit = at_once.acquire().await.unwrap();
            let seen = run(&argv, &env).await;
            let differences = differences(&expected, &seen);
            (!differences.is_empty()).then(|| format!("{what}: {differences:#?}"))
        });
    }

    /// Waits for all; what was not as expected, in words.
    pub async fn wrong(self) -> Vec<String> {
        assert!(!self.tasks.is_empty());
        self.tasks.join_all().await.into_iter().flatten().collect()
    }
}

/// What a client printed; `failed` is what it said if it did not succeed.
pub async fn run(argv: &[String], env: &[(&'static str, String)]) -> Value {
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).env("MCPEG_TEST_TOKEN", TOKEN).envs(env.iter().cloned()).stdin(Stdio::null());
    let output = timeout(Duration::from_secs(120), command.kill_on_drop(true).output()).await;
    let output = output.unwrap_or_else(|_| panic!("{argv:?} does not end")).unwrap();
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return json!({ "failed": said });
    }
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
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
