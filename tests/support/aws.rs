//! moto, which answers as AWS Secrets Manager and STS do.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::{eventually, free_port, http, peers};

pub struct Moto {
    child: Option<Child>,
    pub port: u16,
    client: reqwest::Client,
    /// Where it writes what it is asked.
    recording: tempfile::TempDir,
    /// A folder with the certificate and the key of a server, and their authority, as OpenBao writes them.
    tls: Option<PathBuf>,
}

impl Moto {
    pub async fn start() -> Self {
        Self::start_as(http(), None).await
    }

    /// Over TLS, with the certificate in this folder.
    pub async fn start_tls(folder: PathBuf) -> Self {
        let authority = std::fs::read(folder.join("vault-ca.pem")).unwrap();
        let authority = reqwest::Certificate::from_pem(&authority).unwrap();
        drop(http()); // It installs the provider of ciphers.
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([authority]).build().unwrap();
        Self::start_as(client, Some(folder)).await
    }

    async fn start_as(client: reqwest::Client, tls: Option<PathBuf>) -> Self {
        let mut moto = Self { child: None, port: free_port(), client, recording: tempfile::tempdir().unwrap(), tls };
        moto.up().await;
        moto
    }

    /// Starts it (again, at the same port, with nothing in it).
    pub async fn up(&mut self) {
        let files = |folder: &PathBuf| {
            let file = |name| folder.join(name).display().to_string();
            ["-c".to_owned(), file("vault-cert.pem"), "-k".to_owned(), file("vault-key.pem")]
        };
        let certificate = self.tls.as_ref().map(files).into_iter().flatten();
        let argv = peers::argv("moto");
        let child = Command::new(&argv[0])
            .args(&argv[1..])
            .args(["-H", "127.0.0.1", "-p", &self.port.to_string()])
            .args(certificate)
            .env("MOTO_RECORDER_FILEPATH", self.recording.path().join("requests"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let ready = format!("{}/moto-api/", self.address());
        eventually(Duration::from_secs(40), "moto is up", || async {
            self.client.get(&ready).send().await.ok().filter(|answer| answer.status().is_success()).map(drop)
        })
        .await;
    }

    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn address(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// One action of Secrets Manager; panics with the answer when it is an error. moto looks at the signature's scope alone.
    pub async fn call(&self, action: &str, body: Value) -> Value {
        let scope = "AWS4-HMAC-SHA256 Credential=test/20260101/eu-west-1/secretsmanager/aws4_request, SignedHeaders=host, Signature=0";
        let answer = self
            .client
            .post(self.address())
            .header("X-Amz-Target", format!("secretsmanager.{action}"))
            .header("Content-Type", "application/x-amz-json-1.1")
            .header("Authorization", scope)
            .body(body.to_string())
            .send()
            .await
            .unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{action}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// Has every request counted from now on.
    pub async fn count(&self) {
        let start = format!("{}/moto-api/recorder/start-recording", self.address());
        self.client.post(start).send().await.unwrap();
    }

    /// How many requests there were for this action since then.
    pub async fn counted(&self, action: &str) -> usize {
        let recorded = format!("{}/moto-api/recorder/download-recording", self.address());
        let text = self.client.get(recorded).send().await.unwrap().text().await.unwrap();
        text.matches(&format!("secretsmanager.{action}\"")).count()
    }

    pub async fn create(&self, name: &str, text: &str) {
        self.call("CreateSecret", json!({ "Name": name, "SecretString": text })).await;
    }

    /// Makes a new version, which becomes AWSCURRENT.
    pub async fn put(&self, name: &str, text: &str) {
        self.call("PutSecretValue", json!({ "SecretId": name, "SecretString": text })).await;
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.down();
    }
}
