//! The ways to an HTTP upstream: TLS with certificates on both sides, HTTP/2, a Unix socket.

use std::time::Duration;

use serde_json::json;

use crate::support::mcp::Client;
use crate::support::nginx::{Certificates, Nginx};
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::upstream::{HttpServer, with};
use crate::support::{eventually, free_port, peers};

/// A configuration with the one service `remote`.
fn folder(service: &str) -> Folder {
    Folder::new(&[
        ("mcpeg.yaml", "version: \"1.0\"\nservices:\n  remote: { config_file: remote.yaml }\n"),
        ("remote.yaml", &format!("type: mcp\n{service}")),
    ])
}

async fn echoes(client: &mut Client) {
    let answer = client.call("echo", json!({ "text": "hello" })).await;
    assert_eq!(answer["result"]["content"][0]["text"], "hello", "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_both_sides_prove_who_they_are_and_the_files_are_followed() {
    let (server, made) = (HttpServer::python().await, Certificates::new("mcp.example", &["one", "two"]));
    let port = free_port();
    let listen = format!(
        "listen 127.0.0.1:{port} ssl http2; ssl_certificate {{folder}}/server.pem; ssl_certificate_key {{folder}}/server.key;\n\
         ssl_client_certificate {{folder}}/ca.pem; ssl_verify_client on;"
    );
    let files = ["server.pem", "server.key", "ca.pem"].map(|name| (name, made.read(name)));
    let files = files.each_ref().map(|(name, bytes)| (*name, bytes.as_slice()));
    let nginx = Nginx::before(&server.url, &listen, &files).await;
    let tls = "{ ca_file: ca.pem, cert_file: cert.pem, key_file: key.pem, server_name: mcp.example }";
    let folder = folder(&format!("url: https://127.0.0.1:{port}/mcp\ntls: {tls}\n"));
    for (name, of) in [("ca.pem", "ca.pem"), ("cert.pem", "one.pem"), ("key.pem", "one.key")] {
        folder.write(name, &made.text(of));
    }
    let sidecar = Sidecar::start(folder);
    let mut client = Client::initialized(&sidecar.service_socket("remote")).await;
    echoes(&mut client).await;
    let seen = nginx.seen();
    assert!(seen.iter().all(|line| line.contains("HTTP/2.0 \"mcp.example\" \"CN=one\" /mcp")), "{seen:#?}");

    // A certificate without its key changes nothing but what is said.
    sidecar.folder.write("cert.pem", &made.text("two.pem"));
    sidecar.says("service/remote", &["degraded", "does not belong to the certificate", "stay in use"]).await;
    echoes(&mut client).await;
    sidecar.folder.write("key.pem", &made.text("two.key"));
    eventually(Duration::from_secs(10), "the new certificate is shown", async || {
        echoes(&mut client).await;
        nginx.seen().last().is_some_and(|line| line.contains("CN=two")).then_some(())
    })
    .await;
    sidecar.says("service/remote", &["ok"]).await;

    // Another name than the server's is not believed.
    let text = sidecar.folder.read("remote.yaml").replace("mcp.example", "elsewhere.example");
    sidecar.folder.write("remote.yaml", &text);
    assert!(sidecar.folder.mcpeg(&["reload"]).status.success());
    eventually(Duration::from_secs(10), "the server is refused", async || {
        client.call("echo", json!({ "text": "x" })).await["error"].is_object().then_some(())
    })
    .await;
    sidecar.says("service/remote", &["degraded", "certificate"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_and_http2_without_tls_lead_to_the_server_as_well() {
    let server = HttpServer::python().await;
    let port = free_port();
    let nginx =
        Nginx::before(&server.url, &format!("listen unix:{{folder}}/mcp.sock; listen 127.0.0.1:{port} http2;"), &[])
            .await;
    let local = nginx.path("mcp.sock").display().to_string();
    for (service, protocol) in [
        (format!("url: http://localhost/mcp\nsocket: {local}\n"), "HTTP/1.1 \"localhost\""),
        (format!("url: http://127.0.0.1:{port}/mcp\nhttp2_only: true\n"), "HTTP/2.0 \"127.0.0.1\""),
    ] {
        let sidecar = Sidecar::start(folder(&service));
        let mut client = Client::initialized(&sidecar.service_socket("remote")).await;
        echoes(&mut client).await;
        assert!(nginx.seen().last().is_some_and(|line| line.contains(protocol)), "{:#?}", nginx.seen());
    }
}

/// The server of the Python SDK for the older transport.
async fn older(port: u16) -> HttpServer {
    let script = format!("{}/tests/support/older_server.py", env!("CARGO_MANIFEST_DIR"));
    let python = peers::path("python").display().to_string();
    HttpServer::start(vec![python, script, "--port".to_owned(), port.to_string()]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_the_older_transport_is_found_out_or_named_and_comes_back() {
    for transport in ["", "transport: sse\n"] {
        let port = free_port();
        let mut server = older(port).await;
        let folder =
            folder(&format!("url: {}\nheaders: {{ X-Api-Key: \"${{secret.it.key}}\" }}\n{transport}", server.url));
        folder.write(
            "mcpeg.yaml",
            "version: \"1.0\"\nsecrets:\n  providers: { own: { type: file, path: secrets.yaml } }\n  items: { it: { provider: own, path: it, refresh: 1s } }\n\
             services:\n  remote: { config_file: remote.yaml }\n",
        );
        folder.write("secrets.yaml", "it: { key: one }\n");
        let sidecar = Sidecar::start(folder);
        let mut client = Client::initialized(&sidecar.service_socket("remote")).await;
        echoes(&mut client).await;
        assert!(client.request("tools/list", json!({})).await.to_string().contains("whoami"));
        assert_eq!(sidecar.status()["mcp"]["services"]["remote"]["upstream"]["transport"], "sse");
        let call = json!({ "name": "ask", "arguments": {}, "_meta": { "progressToken": 7 } });
        assert!(client.request("tools/call", call).await["result"].is_object());
        assert!(client.received.iter().any(|line| line.contains("notifications/progress")), "{:#?}", client.received);

        // Another key: another connection takes over.
        sidecar.folder.write("secrets.yaml", "it: { key: three-letters }\n");
        eventually(Duration::from_secs(10), "the new key is used", async || {
            let answer = client.call("whoami", json!({})).await;
            assert!(answer["error"].is_null(), "{answer}");
            answer.to_string().contains(r#"\"key\": 13"#).then_some(())
        })
        .await;

        server.kill();
        eventually(Duration::from_secs(10), "the end is noticed", async || {
            client.call("echo", json!({ "text": "x" })).await["error"].is_object().then_some(())
        })
        .await;
        let _server = older(port).await;
        echoes(&mut client).await;
        let mut another = Client::initialized(&sidecar.service_socket("remote")).await;
        echoes(&mut another).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_server_of_npm_works_over_the_older_transport() {
    let port = free_port();
    let mut argv = peers::argv("mcp_server_everything");
    *argv.last_mut().unwrap() = "sse".to_owned();
    let mut child = std::process::Command::new(&argv[0])
        .args(&argv[1..])
        .env("PORT", port.to_string())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually(Duration::from_secs(20), "the server listens", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
    })
    .await;
    let sidecar = Sidecar::start(folder(&format!("url: http://127.0.0.1:{port}/sse\n")));
    let mut client = Client::initialized(&sidecar.service_socket("remote")).await;
    let answer = client.call("echo", json!({ "message": "hello" })).await;
    assert_eq!(answer["result"]["content"][0]["text"], "Echo: hello", "{answer}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_at_which_there_is_nothing_is_said_and_tried_anew() {
    let (server, port) = (HttpServer::python().await, free_port());
    let sidecar = Sidecar::start(folder(&format!("url: {}/wrong\n", server.url)));
    let mut client = Client::connect(&sidecar.service_socket("remote")).await;
    let hello = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" } });
    for _ in 0..2 {
        let answer = client.request("initialize", hello.clone()).await;
        assert!(answer["error"]["message"].as_str().unwrap().contains("404"), "{answer}");
    }
    let text = sidecar
        .folder
        .read("remote.yaml")
        .replace(&format!("{}/wrong", server.url), &format!("http://127.0.0.1:{port}/mcp"));
    sidecar.folder.write("remote.yaml", &text);
    assert!(sidecar.folder.mcpeg(&["reload"]).status.success());
    let _server =
        HttpServer::start(with(peers::argv("mcp_python_server"), &["http", "--port", &port.to_string()])).await;
    eventually(Duration::from_secs(10), "the right address is used", async || {
        client.request("initialize", hello.clone()).await["result"].is_object().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_argument_that_a_tool_wants_in_a_header_is_sent_there_as_well() {
    let folder_of_server = tempfile::tempdir().unwrap();
    let script = folder_of_server.path().join("region_server.mjs");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/region_server.mjs"), &script).unwrap();
    std::os::unix::fs::symlink(peers::path("node_modules"), folder_of_server.path().join("node_modules")).unwrap();
    let words = ["--preserve-symlinks", "--preserve-symlinks-main", script.to_str().unwrap()].map(str::to_owned);
    let argv = std::iter::once(peers::path("node").display().to_string()).chain(words).collect();
    let server = HttpServer::start(argv).await;
    let sidecar = Sidecar::start(folder(&format!("url: {}\n", server.url)));
    let mut client = Client::connect(&sidecar.service_socket("remote")).await;
    let meta = json!({ "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {} });
    // Nobody has listed the tools yet.
    let call = json!({ "name": "store", "arguments": { "region": "first", "text": "x" }, "_meta": meta });
    let answer = client.request("tools/call", call).await;
    assert_eq!(answer["result"]["content"][0]["text"], "first", "{answer}");
    let listed = client.request("tools/list", json!({ "_meta": meta })).await;
    assert!(listed.to_string().contains("x-mcp-header"), "{listed}");
    // The server refuses a call whose header does not say what the argument says.
    for (region, seen) in
        [("eu-west", "eu-west"), ("düsseldorf", "=?base64?ZMO8c3NlbGRvcmY=?="), (" eu", "=?base64?IGV1?=")]
    {
        let call = json!({ "name": "store", "arguments": { "region": region, "text": "x" }, "_meta": meta });
        let answer = client.request("tools/call", call).await;
        assert_eq!(answer["result"]["content"][0]["text"], seen, "{answer}");
    }
}
