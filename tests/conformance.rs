//! The public conformance suites of MCP, of both generations: what they say of a server has to be the same through mcpeg as without it, over HTTP
//! and over a program's pipes, and what they say of a client that reaches its server through mcpeg has to be that all is well.
//!
//! Compared is each check of each scenario. What passes without mcpeg has to pass through it; what warns or fails through it has to do so without.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::peers;
use crate::support::sidecar::{Folder, PROGRAM, Sidecar};
use crate::support::upstream::{HttpServer, with};

const TOKEN: &str = "token-of-the-local-agent";

/// Checks that pass without mcpeg and say nothing through it, since it chooses otherwise where the specification leaves it to the server:
/// an answer that nothing comes before is a document and no stream, and a stream is not broken off for the client to come back.
const CHOICES: [(&str, &str); 2] = [
    ("server-sse-multiple-streams", "server-sse-streams-functional"),
    ("server-sse-polling", "server-sse-disconnect-resume"),
];

/// How often each check of each scenario ended how.
type Outcome = BTreeMap<String, BTreeMap<(String, String), usize>>;

/// Hands its pipes over to the process that waits at the socket, and ends when that closes the connection.
const JOIN: &str = "import socket, sys
joined = socket.socket(socket.AF_UNIX)
joined.connect(sys.argv[1])
socket.send_fds(joined, [b'.'], [0, 1, 2])
joined.recv(1)";

fn sidecar(remote: &str, forks: &str) -> (Sidecar, String) {
    let python = peers::path("python").display().to_string();
    let child = [&python, "-S", "-E", "-c", JOIN, forks];
    let main = "version: \"1.0\"\nsecrets:\n  providers: { own: { type: file, path: secrets.yaml } }\n  \
        items: { local: { provider: own, path: local } }\n\
        transports: { http: { enabled: true, port: 0, token: \"${secret.local.token}\" } }\n\
        services: { remote: { config_file: remote.yaml }, child: { config_file: child.yaml } }\n";
    let folder = Folder::new(&[
        ("mcpeg.yaml", main),
        ("secrets.yaml", &format!("local: {{ token: {TOKEN} }}\n")),
        ("remote.yaml", &format!("type: mcp\nurl: {remote}\n")),
        ("child.yaml", &format!("type: mcp\ncommand: {}\n", serde_json::to_string(&child).unwrap())),
    ]);
    let sidecar = Sidecar::start(folder);
    let url = sidecar.ready.split("mcp http://").nth(1).unwrap().split([',', ';']).next().unwrap().trim().to_owned();
    (sidecar, format!("http://{url}"))
}

/// Runs a suite to its end; what it says is in its files, and its status says less.
async fn run(suite: &str, args: &[&str], output: &Path) {
    let argv = peers::argv(suite);
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).args(args).arg("--output-dir").arg(output).env("AGENT_TOKEN", TOKEN);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    timeout(Duration::from_secs(300), command.status()).await.expect("the suite takes too long").unwrap();
}

/// What the suite has written: a folder for each scenario, with the time at the end of its name.
fn outcome(output: &Path) -> Outcome {
    let mut outcome = Outcome::new();
    for entry in std::fs::read_dir(output).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let scenario = &name[..name.len() - "-2026-01-01T00-00-00-000Z".len()];
        let scenario = scenario.strip_prefix("server-").unwrap_or(scenario);
        let checks: Value = serde_json::from_slice(&std::fs::read(entry.path().join("checks.json")).unwrap()).unwrap();
        let of_scenario = outcome.entry(scenario.to_owned()).or_default();
        for check in checks.as_array().unwrap() {
            let text = |field: &str| check[field].as_str().unwrap_or_default().to_owned();
            *of_scenario.entry((text("id"), text("status"))).or_default() += 1;
        }
    }
    outcome
}

/// In words, where `through` is not at least as good as `direct`.
fn differences(direct: &Outcome, through: &Outcome) -> Vec<String> {
    let mut found = Vec::new();
    for (scenario, checks) in direct {
        let Some(seen) = through.get(scenario) else {
            found.push(format!("{scenario} was not run"));
            continue;
        };
        let count = |checks: &BTreeMap<(String, String), usize>, id: &str, status: &str| {
            checks.get(&(id.to_owned(), status.to_owned())).copied().unwrap_or(0)
        };
        let ids: BTreeSet<&str> = checks.keys().chain(seen.keys()).map(|(id, _)| id.as_str()).collect();
        for id in ids {
            let chosen = CHOICES.contains(&(scenario, id));
            if !chosen && count(seen, id, "SUCCESS") < count(checks, id, "SUCCESS") {
                found.push(format!("{scenario}: {id} passes less often"));
            }
            for bad in ["FAILURE", "WARNING"] {
                if count(seen, id, bad) > count(checks, id, bad) {
                    found.push(format!("{scenario}: {id} ends in {bad}"));
                }
            }
        }
    }
    found
}

/// `expected`: how many scenarios the suite has, so that one which runs none does not pass. `unsupported`: what the reference server itself does
/// not have.
async fn same_through_mcpeg(suite: &str, args: &[&str], expected: usize, unsupported: &str) {
    let server = HttpServer::start(with(peers::argv("mcp_reference_server"), &["http"])).await;
    let output = tempfile::tempdir().unwrap();
    let socket = output.path().join("forks.sock").display().to_string();
    let forks = HttpServer::start(with(peers::argv("mcp_reference_server"), &["fork", &socket])).await;
    let (sidecar, url) = sidecar(&server.url, &forks.url);
    let (remote, child) = (format!("{url}/remote"), format!("{url}/child"));
    let mut outcomes = Vec::new();
    for (name, url) in [("direct", server.url.as_str()), ("remote", &remote), ("child", &child)] {
        let folder = output.path().join(name);
        let began = Instant::now();
        run(suite, &[&["server", "--url", url], args].concat(), &folder).await;
        eprintln!("{suite} {args:?} {name}: {:?}", began.elapsed());
        outcomes.push(outcome(&folder));
    }
    let direct = &outcomes[0];
    assert_eq!(direct.len(), expected, "{:?}", direct.keys());
    for (scenario, checks) in direct {
        let failed = checks.keys().any(|(_, status)| status == "FAILURE");
        assert!(!failed || scenario.starts_with(unsupported), "the reference server fails {scenario}: {checks:?}");
    }
    for (name, through) in [("HTTP", &outcomes[1]), ("a program", &outcomes[2])] {
        let differences = differences(direct, through);
        assert!(
            differences.is_empty(),
            "{suite} {args:?}, the server behind {name}: {differences:#?}\n{}",
            sidecar.stderr()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_suite_sees_the_same_server_through_mcpeg() {
    same_through_mcpeg("conformance_legacy", &["--suite", "all"], 32, "nothing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_suite_sees_the_same_server_of_the_legacy_era_through_mcpeg() {
    same_through_mcpeg("conformance", &["--requirements", "2025-11-25"], 33, "nothing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_suite_sees_the_same_server_of_the_modern_era_through_mcpeg() {
    same_through_mcpeg("conformance", &["--requirements", "2026-07-28"], 50, "tasks-").await;
}

/// The scenarios for clients, but those of OAuth between an agent and its server: here mcpeg is the server's client, with credentials of its own.
const LEGACY: [&str; 5] = [
    "initialize",
    "tools_call",
    "elicitation-sep1034-client-defaults",
    "sse-retry",
    "json-schema-2020-12-preservation",
];
const MODERN: [&str; 8] = [
    "tools_call",
    "request-metadata",
    "sep-2322-client-request-state",
    "http-standard-headers",
    "http-custom-headers",
    "http-invalid-tool-headers",
    "json-schema-ref-no-deref",
    "json-schema-2020-12-preservation",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_suites_see_a_good_client_in_one_that_comes_through_mcpeg() {
    let mut runs = JoinSet::new();
    let at_once = std::sync::Arc::new(Semaphore::new(2));
    for way in ["url", "connect"] {
        let first = LEGACY[..4].iter().map(|scenario| ("conformance_legacy", *scenario, None));
        let legacy = LEGACY.iter().map(|scenario| ("conformance", *scenario, Some("2025-11-25")));
        let modern = MODERN.iter().map(|scenario| ("conformance", *scenario, Some("2026-07-28")));
        let first = first.filter(|_| way == "url");
        for (suite, scenario, version) in first.chain(legacy).chain(modern) {
            let at_once = at_once.clone();
            runs.spawn(async move {
                let _permit = at_once.acquire().await.unwrap();
                client_scenario(suite, scenario, version, way).await
            });
        }
    }
    let failures: Vec<String> = runs.join_all().await.into_iter().flatten().collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What went wrong, if anything did.
async fn client_scenario(suite: &str, scenario: &str, version: Option<&str>, way: &str) -> Option<String> {
    let output = tempfile::tempdir().unwrap();
    let command = with(peers::argv("mcp_reference_client"), &[PROGRAM, way]).join(" ");
    let mut args = vec!["client", "--command", &command, "--scenario", scenario, "--timeout", "60000"];
    args.extend(version.map(|version| ["--spec-version", version]).into_iter().flatten());
    run(suite, &args, output.path()).await;
    let outcome = outcome(output.path());
    let checks: Vec<&(String, String)> = outcome.values().flat_map(BTreeMap::keys).collect();
    let bad: Vec<&&(String, String)> =
        checks.iter().filter(|(_, status)| status == "FAILURE" || status == "WARNING").collect();
    let passed = checks.iter().any(|(_, status)| status == "SUCCESS");
    (!passed || !bad.is_empty()).then(|| {
        let said = std::fs::read_dir(output.path()).unwrap().flatten().next();
        let said = said.and_then(|folder| std::fs::read_to_string(folder.path().join("stderr.txt")).ok());
        format!("{suite} {scenario} {version:?} by {way}: {bad:?}\n{}", said.unwrap_or_default())
    })
}
