//! The services that mcpeg serves itself, asked as any upstream is: over its socket, the aggregate, in both eras.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::mcp::Client;
use crate::support::nginx::{Certificates, Nginx};
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::stand_in::{Reply, StandIn};
use crate::support::{eventually, free_port};

/// A weather service with tools of several kinds at `origin`.
fn folder(origin: &str, more: &str) -> Folder {
    let main = r#"
version: "1.0"
secrets:
  providers: { dev: { type: file, path: keys.yaml } }
  items: { weather: { provider: dev, path: weather, refresh: 1s }, other: { provider: dev, path: other } }
services:
  weather: { config_file: weather.yaml }
  vault: { config_file: vault.yaml }
audit: { path: audit.log }
"#;
    let weather = format!(
        r#"
type: http
timeout: 5s
headers: {{ Authorization: "Bearer ${{secret.weather}}" }}
{more}
tools:
  - name: forecast
    description: Tomorrow's weather of a place
    url: "{origin}/v1/places/{{place}}/forecast"
    query: {{ units: "{{units}}", lang: en }}
    result: /current
  - name: report
    method: POST
    url: "{origin}/v1/reports"
    headers: {{ X-Tenant: "t-${{secret.weather}}" }}
    body: {{ place: "{{place}}", degrees: "{{degrees}}", note: "seen in {{place}}" }}
    input_schema:
      type: object
      properties: {{ place: {{ type: string }}, degrees: {{ type: number }} }}
      required: [place]
  - name: any
    url: "{origin}/{{path}}"
    max_bytes: 1KiB
"#
    );
    let keys = "weather: key-0001-abcdefghijkl\nother: other-abcdefghijklmnop\n";
    Folder::new(&[
        ("mcpeg.yaml", main),
        ("weather.yaml", &weather),
        ("vault.yaml", "type: vault\nitems: [weather]\n"),
        ("keys.yaml", keys),
    ])
}

async fn weather() -> StandIn {
    StandIn::replying(|asked| match asked.path.as_str() {
        "/v1/reports" => Reply::new(201, json!({ "stored": asked.body })),
        "/long" => Reply::new(200, json!({ "text": "x".repeat(2000) })),
        "/broken" => Reply::new(503, "{}"),
        "/moved" => Reply { headers: vec![("location", "/v1/reports".to_owned())], ..Reply::new(302, "") },
        "/echo" => Reply::new(200, json!({ "key": asked.headers["authorization"].to_str().unwrap() })),
        path if path.ends_with("/forecast") => Reply::new(200, json!({ "current": { "degrees": 21.5 }, "more": [1] })),
        _ => Reply::new(404, json!({ "error": "no such place" })),
    })
    .await
}

fn text(answer: &Value) -> &str {
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_requests_with_the_secrets_of_the_moment() {
    let server = weather().await;
    let sidecar = Sidecar::start(folder(&server.address, ""));
    let mut client = Client::initialized(&sidecar.service_socket("weather")).await;
    let listed = client.request("tools/list", json!({})).await["result"]["tools"].take();
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["forecast", "report", "any"]);
    assert_eq!(listed[0]["inputSchema"]["required"], json!(["place"]));

    let answer = client.call("forecast", json!({ "place": "Köln/1", "units": "metric" })).await;
    assert_eq!(answer["result"]["structuredContent"], json!({ "degrees": 21.5 }), "{answer}");
    let asked = server.asked("/v1/places/K%C3%B6ln%2F1/forecast");
    assert_eq!(asked[0].headers["authorization"], "Bearer key-0001-abcdefghijkl");
    let answer = client.call("report", json!({ "place": "x", "degrees": 3 })).await;
    let stored = json!({ "place": "x", "degrees": 3, "note": "seen in x" });
    assert_eq!(answer["result"]["structuredContent"]["stored"], stored, "{answer}");
    assert_eq!(server.asked("/v1/reports")[0].headers["x-tenant"], "t-key-0001-abcdefghijkl");

    // What an interface echoes does not reach the client.
    let answer = client.call("any", json!({ "path": "echo" })).await;
    assert!(text(&answer).contains("REDACTED") && !answer.to_string().contains("key-0001"), "{answer}");

    // The next call after a rotation has the new value, and the record says which.
    sidecar.folder.write("keys.yaml", "weather: key-0002-abcdefghijkl\nother: other-abcdefghijklmnop\n");
    eventually(Duration::from_secs(10), "the new key is sent", async || {
        client.call("forecast", json!({ "place": "rotated" })).await;
        let asked = server.asked("/v1/places/rotated/forecast");
        (asked.last()?.headers["authorization"] == "Bearer key-0002-abcdefghijkl").then_some(())
    })
    .await;
    let record = sidecar.folder.read("audit.log");
    assert!(record.contains("weather@1") && record.contains("weather@2"), "{record}");
    assert!(!record.contains("key-000"), "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_said_in_words_and_nothing_leaves_its_place() {
    let server = weather().await;
    let more = "circuit_breaker: { failure_threshold: 3, reset_timeout: 60s }";
    let sidecar = Sidecar::start(folder(&server.address, more));
    let mut client = Client::initialized(&sidecar.service_socket("weather")).await;
    for (tool, arguments, words) in [
        ("any", json!({ "path": "nowhere" }), "the server answered 404 Not Found: {\"error\":\"no such place\"}"),
        ("any", json!({ "path": "moved" }), "the server answered 302 Found"),
        ("any", json!({ "path": "long" }), "the answer is longer than 1024 bytes"),
        ("any", json!({ "path": ".." }), "may not hold `.` or `..`"),
        ("any", json!({ "path": "a/../../v1/reports" }), "may not hold `.` or `..`"),
        ("any", json!({ "path": "" }), "the argument `path` is empty"),
        ("any", json!({ "path": "//elsewhere.example/x" }), "404"),
        ("forecast", json!({}), "the argument `place` is missing"),
        ("forecast", json!({ "place": "x", "unit": "m" }), "there is no argument `unit`; there are: place, units"),
    ] {
        let answer = client.call(tool, arguments.clone()).await;
        assert_eq!(answer["result"]["isError"], true, "{arguments} {answer}");
        assert!(text(&answer).contains(words), "{arguments} {answer}");
    }
    assert_eq!(client.call("other", json!({})).await["error"]["code"], -32602);

    // Status 5xx is a failure of the service, which its breaker counts.
    let answer = client.call("any", json!({ "path": "broken" })).await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("answered 503"), "{answer}");
    sidecar.says("service/weather", &["degraded", "answered 503"]).await;
    for _ in 0..2 {
        client.call("any", json!({ "path": "broken" })).await;
    }
    let before = server.asked("/broken").len();
    let answer = client.call("any", json!({ "path": "broken" })).await;
    assert!(answer["error"].is_object(), "{answer}");
    assert_eq!((before, server.asked("/broken").len()), (3, 3), "the breaker is open: {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_an_upstream_like_others() {
    let server = weather().await;
    let more = "allow: { tools: [forecast] }";
    let sidecar = Sidecar::start(folder(&server.address, more));
    // Both eras, on the socket of all services; the policy holds.
    let mut client = Client::initialized(&sidecar.socket()).await;
    let answer = client.call("weather__forecast", json!({ "place": "x" })).await;
    assert_eq!(answer["result"]["structuredContent"]["degrees"], 21.5, "{answer}");
    assert!(client.call("weather__any", json!({ "path": "x" })).await["error"].is_object());
    let mut modern = Client::connect(&sidecar.service_socket("weather")).await;
    let meta = json!({ "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientInfo": { "name": "t", "version": "1" }, "io.modelcontextprotocol/clientCapabilities": {} });
    let discovered = modern.request("server/discover", json!({ "_meta": meta })).await;
    assert_eq!(discovered["result"]["supportedVersions"], json!(["2026-07-28"]), "{discovered}");
    let call = json!({ "name": "forecast", "arguments": { "place": "y" }, "_meta": meta });
    let answer = modern.request("tools/call", call).await;
    assert_eq!(answer["result"]["resultType"], "complete", "{answer}");

    // A reload changes what a session that is open is served.
    let changed = sidecar.folder.read("weather.yaml").replace("result: /current", "result: /more");
    sidecar.folder.write("weather.yaml", &changed);
    assert!(sidecar.folder.mcpeg(&["reload"]).status.success());
    let answer = client.call("weather__forecast", json!({ "place": "x" })).await;
    assert_eq!(answer["result"]["structuredContent"], json!({ "result": [1] }), "{answer}");

    // The server goes away in flight, and comes back.
    drop(server);
    let answer = client.call("weather__forecast", json!({ "place": "x" })).await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("cannot be reached"), "{answer}");
    sidecar.says("service/weather", &["degraded", "cannot be reached"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_name_in_the_address_has_to_be_proved() {
    let (server, made) = (weather().await, Certificates::new("localhost", &["one"]));
    let port = free_port();
    let listen = format!(
        "listen 127.0.0.1:{port} ssl; ssl_certificate {{folder}}/server.pem; ssl_certificate_key {{folder}}/server.key;"
    );
    let files = ["server.pem", "server.key"].map(|name| (name, made.read(name)));
    let files = files.each_ref().map(|(name, bytes)| (*name, bytes.as_slice()));
    let nginx = Nginx::before(&format!("{}/mcp", server.address), &listen, &files).await;
    let folder = folder(&format!("https://localhost:{port}"), "tls: { ca_file: ca.pem }");
    folder.write("ca.pem", &made.text("ca.pem"));
    let sidecar = Sidecar::start(folder);
    let mut client = Client::initialized(&sidecar.service_socket("weather")).await;
    let answer = client.call("forecast", json!({ "place": "x" })).await;
    assert_eq!(answer["result"]["structuredContent"]["degrees"], 21.5, "{answer}");
    let other = sidecar.folder.read("weather.yaml").replace("https://localhost", "https://127.0.0.1");
    sidecar.folder.write("weather.yaml", &other);
    assert!(sidecar.folder.mcpeg(&["reload"]).status.success());
    let answer = client.call("forecast", json!({ "place": "x" })).await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("certificate"), "{answer}");
    assert!(nginx.seen().iter().all(|line| line.contains("\"localhost\"")), "{:?}", nginx.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vault_service_tells_of_secrets_and_never_a_value() {
    let server = weather().await;
    let sidecar = Sidecar::start(folder(&server.address, ""));
    let mut client = Client::initialized(&sidecar.service_socket("vault")).await;
    let answer = client.call("list_secrets", json!({})).await;
    let secrets = answer["result"]["structuredContent"]["secrets"].as_array().unwrap();
    assert_eq!((secrets.len(), &secrets[0]["item"], &secrets[0]["version"]), (1, &json!("weather"), &json!(1)));
    let described = client.call("describe_secret", json!({ "item": "weather" })).await;
    assert_eq!(described["result"]["structuredContent"]["provider"], "dev", "{described}");
    sidecar.folder.write("keys.yaml", "weather: key-0003-abcdefghijkl\nother: other-abcdefghijklmnop\n");
    let refreshed = client.call("refresh_secret", json!({ "item": "weather" })).await;
    assert_eq!(refreshed["result"]["structuredContent"]["version"], 2, "{refreshed}");
    for tool in ["describe_secret", "refresh_secret"] {
        let hidden = client.call(tool, json!({ "item": "other" })).await;
        assert_eq!(text(&hidden), "there is no secret `other`");
    }
    let listed = client.request("resources/list", json!({})).await["result"]["resources"].take();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["uri"]), (1, &json!("vault://secrets/weather")));
    let read = client.request("resources/read", json!({ "uri": "vault://secrets/weather" })).await;
    assert!(read["result"]["contents"][0]["text"].as_str().unwrap().contains("\"provider\":\"dev\""), "{read}");
    let hidden = client.request("resources/read", json!({ "uri": "vault://secrets/other" })).await;
    assert_eq!(hidden["error"]["code"], -32002, "{hidden}");
    let leases = client.call("lease_status", json!({})).await;
    assert_eq!(leases["result"]["structuredContent"], json!({ "leases": [] }), "{leases}");
    let said = client.received.join("\n");
    assert!(!said.contains("key-000") && !said.contains("abcdefghijkl"), "{said}");
}

#[test]
fn mistakes_in_a_service_file_are_named_with_their_places() {
    let folder = Folder::new(&[
        (
            "mcpeg.yaml",
            "version: \"1.0\"\nservices:\n  w: { config_file: w.yaml }\n  m: { config_file: m.yaml }\n  v: { config_file: v.yaml }\n",
        ),
        ("m.yaml", "type: mcp\ncommand: [x]\ntools: [ { name: a, url: \"http://h/\" } ]\n"),
        ("v.yaml", "type: vault\nitems: [nothing]\n"),
        (
            "w.yaml",
            "type: http\ncommand: [x]\ntools:\n  - { name: a, url: \"http://{host}/\" }\n  - { name: b }\n  - { name: c, url: \"http://h/{a}\", input_schema: { type: object } }\n  - { name: d, url: \"http://h/\", body: { a: 1 } }\n  - { name: e, url: \"http://h/\", method: POST, body: { a: \"${secret.x}\" } }\n",
        ),
    ]);
    let output = folder.mcpeg(&["check"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(64), "{said}");
    for words in [
        "w.yaml:2:10",
        "`command` belongs to a service of `type: mcp`",
        "scheme and host are fixed",
        "`url` is missing",
        "`properties` does not have the argument `a`",
        "a GET has no body",
        "a secret may not stand here",
        "`url` belongs to a service of `type: http`",
        "its file shows `nothing`",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}
