//! A real etcd in a folder of its own, with what a test needs to change in it. It can be stopped and started again with what it had.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{eventually, free_port, http, peers};

pub struct Etcd {
    child: Option<Child>,
    port: u16,
    peer_port: u16,
    folder: tempfile::TempDir,
    /// Certificate, key: it speaks TLS then.
    tls: Option<(PathBuf, PathBuf)>,
}

impl Etcd {
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    pub async fn start_with(tls: Option<(PathBuf, PathBuf)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut etcd = Self { child: None, port: free_port(), peer_port: free_port(), folder, tls };
        etcd.resume().await;
        etcd
    }

    /// Starts it again.
    pub async fn resume(&mut self) {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let (client, peer) =
            (format!("{scheme}://127.0.0.1:{}", self.port), format!("http://127.0.0.1:{}", self.peer_port));
        let mut command = Command::new(peers::path("etcd"));
        command.arg("--data-dir").arg(self.folder.path().join("data")).args([
            "--name",
            "one",
            "--unsafe-no-fsync",
            "--log-level",
            "error",
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &format!("one={peer}"),
        ]);
        if let Some((cert, key)) = &self.tls {
            command.arg("--cert-file").arg(cert).arg("--key-file").arg(key);
        }
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        if self.tls.is_some() {
            let address = format!("127.0.0.1:{}", self.port);
            eventually(Duration::from_secs(20), "etcd listens", async || std::net::TcpStream::connect(&address).ok())
                .await;
            return;
        }
        let health = format!("{client}/health");
        eventually(Duration::from_secs(20), "etcd is up", async || {
            http().get(&health).send().await.ok().filter(|answer| answer.status().is_success())
        })
        .await;
    }

    /// Kills it; what it has is on the disk.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = child.kill();
        let _ = child.wait();
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn address(&self, prefix: &str) -> String {
        format!("etcd://{}/{prefix}", self.host())
    }

    pub async fn put(&self, key: &str, text: &str) {
        self.put_all(&[(key, text)]).await;
    }

    /// In one transaction.
    pub async fn put_all(&self, pairs: &[(&str, &str)]) {
        let puts: Vec<Value> = pairs
            .iter()
            .map(
                |(key, text)| json!({ "request_put": { "key": STANDARD.encode(key), "value": STANDARD.encode(text) } }),
            )
            .collect();
        self.call("v3/kv/txn", json!({ "success": puts })).await;
    }

    pub async fn delete(&self, key: &str) {
        self.call("v3/kv/deleterange", json!({ "key": STANDARD.encode(key) })).await;
    }

    pub async fn get(&self, key: &str) -> Option<String> {
        let found = self.call("v3/kv/range", json!({ "key": STANDARD.encode(key) })).await;
        let value = found["kvs"][0]["value"].as_str()?;
        Some(String::from_utf8(STANDARD.decode(value).unwrap()).unwrap())
    }

    pub async fn call(&self, path: &str, body: Value) -> Value {
        let answer = http().post(format!("http://{}/{path}", self.host())).json(&body).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}
