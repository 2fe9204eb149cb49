//! The clients that people use, by every way that leads to mcpeg: what `mcpeg connect` copies, the Unix socket, the URL; in front of services of both
//! eras over both transports, with what a server and a client ask of each other.
//!
//! The TypeScript SDKs' clients are in `bridge`, where they use still more. The Inspector's command line knows no socket, and answers nothing that a
//! server asks, so it does the rest.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::features::{Bed, Runs, TOKEN, expected, run};
use crate::support::peers;
use crate::support::upstream::with;

const SERVICES: [(&str, &str); 4] =
    [("legacy-stdio", "legacy"), ("legacy-http", "legacy"), ("modern-stdio", "modern"), ("modern-http", "modern")];

/// What the clients of Python and Rust use.
const USED: [&str; 8] = ["server", "tools", "ask", "sample", "both", "roots", "progress", "cancel"];

/// Every service by every way in every era, with the client that `argv` makes of an era and a way.
async fn works(argv: impl Fn(&str, &[&str]) -> Vec<String>) {
    let bed = Bed::new("").await;
    let mut runs = Runs::default();
    for (service, server) in SERVICES {
        for (era, version) in [("legacy", "2025-11-25"), ("modern", "2026-07-28")] {
            let all = expected(era, server);
            let mut wanted: Value = USED.iter().map(|&feature| (feature.to_owned(), all[feature].clone())).collect();
            wanted["protocol"] = json!(version);
            for way in bed.ways(Some(service)) {
                let words: Vec<&str> = way.iter().map(String::as_str).collect();
                runs.add(service, format!("{era} client, {}", way[0]), argv(era, &words), &[], wanted.clone());
            }
        }
    }
    let wrong = runs.wrong().await;
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), bed.sidecar.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_works_by_every_way() {
    works(|era, way| {
        let options = ["--era", era, "--bearer-env", "MCPEG_TEST_TOKEN", way[0], "--"];
        with(with(peers::argv("mcp_python_features"), &options), &way[1..])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_sdk_works_by_every_way() {
    works(|era, way| with(with(peers::argv("mcp_rmcp_client"), &[era]), way)).await;
}

/// What the Inspector is asked, and where in its answer what is to be there.
const ASKED: [(&[&str], &str, &str); 4] = [
    (&["tools/call", "--tool-name", "progress"], "/result/content/0/text", "done"),
    (
        &["prompts/get", "--prompt-name", "greet", "--prompt-args", "name=Ada"],
        "/result/messages/0/content/text",
        "Hello, Ada",
    ),
    (&["resources/read", "--uri", "test://one"], "/result/contents/0/text", "the one"),
    (&["tools/list"], "/result/tools/0/name", "ask"),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_inspectors_command_line_works_by_connect_and_url() {
    let bed = Bed::new("").await;
    let home = tempfile::tempdir().unwrap();
    let env = [("HOME", home.path().display().to_string())];
    let mut wrong = Vec::new();
    for (at, (service, _)) in SERVICES.into_iter().enumerate() {
        for (shift, era) in ["legacy", "modern"].into_iter().enumerate() {
            let url = ["--transport", "http", "--server-url", &bed.url(Some(service))].map(str::to_owned);
            let token = ["--header".to_owned(), format!("Authorization: Bearer {TOKEN}")];
            let mut connect = vec!["--".to_owned()];
            connect.extend(bed.connect(Some(service)));
            for (turn, way) in [connect, [&url[..], &token].concat()].into_iter().enumerate() {
                // Every question comes to every way and every era, but not in all their combinations.
                for (asked, place, answer) in [ASKED[(at + shift + turn) % 4], ASKED[(at + shift + turn + 2) % 4]] {
                    let options = [&["--quiet", "--format", "json", "--protocol-era", era, "--method"], asked].concat();
                    let mut argv = with(peers::argv("mcp_inspector"), &options);
                    argv.extend(way.iter().cloned());
                    let seen = run(&argv, &env).await;
                    if seen.pointer(place) != Some(&json!(answer)) {
                        wrong.push(format!("{era}, {service}, {}, {asked:?}: {seen}", way[0]));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), bed.sidecar.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_over_http_that_is_cancelled_ends_without_an_answer_and_its_session_goes_on() {
    let bed = Bed::new("").await;
    let (client, url) = (crate::support::http(), bed.url(Some("legacy-stdio")));
    let post = |session: Option<String>, body: Value| {
        let request = client.post(&url).bearer_auth(TOKEN).header("accept", "application/json, text/event-stream");
        let request = session.into_iter().fold(request, |request, id| request.header("mcp-session-id", id));
        request.json(&body).send()
    };
    let hello =
        json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    let hello =
        post(None, json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello })).await.unwrap();
    let session = Some(hello.headers()["mcp-session-id"].to_str().unwrap().to_owned());
    post(session.clone(), json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await.unwrap();
    let call = |id: u32, tool: &str| {
        post(session.clone(), json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": tool } }))
    };
    let cancels = async {
        // It is at work: another call is answered after it has come.
        assert!(call(8, "cancelled").await.unwrap().text().await.unwrap().contains("\"0\""));
        tokio::time::sleep(Duration::from_millis(200)).await;
        let cancelled = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 7 } });
        post(session.clone(), cancelled).await.unwrap();
    };
    let (ended, ()) = tokio::join!(call(7, "wait"), cancels);
    let ended = ended.unwrap();
    assert_eq!(
        (ended.status().as_u16(), ended.headers()["content-type"].to_str().unwrap()),
        (200, "text/event-stream")
    );
    let said = ended.text().await.unwrap();
    assert!(!said.contains("data:"), "{said}");
    assert!(call(9, "cancelled").await.unwrap().text().await.unwrap().contains("\"1\""));
}
