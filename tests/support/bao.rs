//! A real OpenBao in development mode, with its root token.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::{eventually, free_port, http, peers};

pub struct Bao {
    child: Option<Child>,
    pub port: u16,
    config: tempfile::TempDir,
}

pub const ROOT_TOKEN: &str = "root-of-the-tests";

impl Bao {
    pub async fn start() -> Self {
        let config = tempfile::tempdir().unwrap();
        std::fs::write(config.path().join("bao.hcl"), "disable_clustering = true\n").unwrap();
        let mut bao = Self { child: None, port: free_port(), config };
        bao.up().await;
        bao
    }

    /// Starts it (again, at the same port, with nothing in it).
    pub async fn up(&mut self) {
        let child = Command::new(peers::path("bao"))
            .args(["server", "-dev", "-dev-no-store-token"])
            .arg(format!("-dev-root-token-id={ROOT_TOKEN}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{}", self.port))
            .arg(format!("-config={}", self.config.path().join("bao.hcl").display()))
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(self.config.path().join("stdout")).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let health = format!("{}/v1/sys/health", self.address());
        eventually(Duration::from_secs(20), "OpenBao is up", || async {
            http().get(&health).send().await.ok().filter(|answer| answer.status() == 200).map(drop)
        })
        .await;
    }

    pub async fn seal(&self) {
        self.call("PUT", "sys/seal", json!({})).await;
    }

    /// With the key that it said at its start.
    pub async fn unseal(&self) {
        let said = std::fs::read_to_string(self.config.path().join("stdout")).unwrap();
        let key = said.lines().find_map(|line| line.strip_prefix("Unseal Key: ")).expect("it says its key").trim();
        self.call("PUT", "sys/unseal", json!({ "key": key })).await;
    }

    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Writes a KV v2 secret.
    pub async fn put(&self, name: &str, data: Value) {
        self.call("POST", &format!("secret/data/{name}"), json!({ "data": data })).await;
    }

    /// Calls the API as root; panics with the answer when it is an error.
    pub async fn call(&self, method: &str, path: &str, body: Value) -> Value {
        let url = format!("{}/v1/{path}", self.address());
        let request = http().request(method.parse().unwrap(), url).header("X-Vault-Token", ROOT_TOKEN);
        let request = if body.is_null() { request } else { request.json(&body) };
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// A role and a secret id of AppRole that may read all of `secret/`.
    pub async fn approle(&self) -> (String, String) {
        self.call("POST", "sys/auth/approle", json!({ "type": "approle" })).await;
        let policy = "path \"secret/data/*\" { capabilities = [\"read\"] }\npath \"secret/data/denied\" { capabilities = [\"deny\"] }";
        self.call("POST", "sys/policies/acl/app", json!({ "policy": policy })).await;
        self.call("POST", "auth/approle/role/app", json!({ "token_policies": "app", "token_ttl": "1h" })).await;
        let role = self.call("GET", "auth/approle/role/app/role-id", Value::Null).await;
        let secret = self.call("POST", "auth/approle/role/app/secret-id", json!({})).await;
        (role["data"]["role_id"].as_str().unwrap().to_owned(), secret["data"]["secret_id"].as_str().unwrap().to_owned())
    }
}

/// A real OpenBao that speaks TLS with a certificate of its own making.
pub struct TlsBao {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl TlsBao {
    pub async fn start() -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let child = Command::new(peers::path("bao"))
            .args(["server", "-dev-tls", "-dev-no-store-token"])
            .arg(format!("-dev-tls-cert-dir={}", folder.path().display()))
            .arg(format!("-dev-root-token-id={ROOT_TOKEN}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let bao = Self { child, port, folder };
        eventually(Duration::from_secs(20), "OpenBao is up", async || bao.bao(&["status"]).then_some(())).await;
        bao
    }

    pub fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub fn ca_file(&self) -> String {
        self.folder.path().join("vault-ca.pem").display().to_string()
    }

    /// Writes one field of a KV v2 secret.
    pub fn put(&self, name: &str, field: &str, value: &str) {
        assert!(self.bao(&["kv", "put", "-mount=secret", name, &format!("{field}={value}")]));
    }

    /// Writes JSON to a path of the API by the real command line; panics when that is refused.
    pub fn write(&self, path: &str, body: &Value) -> Value {
        let mut child = Command::new(peers::path("bao"))
            .args(["write", "-format=json", path, "-"])
            .env("BAO_ADDR", self.address())
            .env("BAO_CACERT", self.ca_file())
            .env("BAO_TOKEN", ROOT_TOKEN)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), body.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Runs the real command line; whether it succeeded.
    pub fn bao(&self, args: &[&str]) -> bool {
        let output = Command::new(peers::path("bao"))
            .args(args)
            .env("BAO_ADDR", self.address())
            .env("BAO_CACERT", self.ca_file())
            .env("BAO_TOKEN", ROOT_TOKEN)
            .output()
            .unwrap();
        output.status.success()
    }
}

impl Drop for TlsBao {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Bao {
    fn drop(&mut self) {
        self.down();
    }
}
