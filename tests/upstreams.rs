//! The ways to an HTTP upstream: TLS with certificates on both sides, HTTP/2, a Unix socket.

use std::time::Duration;

use serde_json::json;

use crate::support::mcp::Client;
use crate::support::nginx::{Certificates, Nginx};
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::upstream::HttpServer;
use crate::support::{eventually, free_port};

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
