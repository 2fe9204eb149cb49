//! Real MCP servers behind the sidecar.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::peers;

/// The test server of the Python SDK as a stdio upstream.
pub fn python_stdio() -> Vec<String> {
    with(peers::argv("mcp_python_server"), &["stdio"])
}

/// The test server of the TypeScript SDK as a stdio upstream.
pub fn typescript_stdio() -> Vec<String> {
    with(peers::argv("mcp_typescript_server"), &["stdio"])
}

/// The test server of the TypeScript SDK that speaks the modern era only.
pub fn modern_stdio() -> Vec<String> {
    with(peers::argv("mcp_modern_server"), &["--strict", "stdio"])
}

pub fn with(mut argv: Vec<String>, more: &[&str]) -> Vec<String> {
    argv.extend(more.iter().map(|word| (*word).to_owned()));
    argv
}

/// A server that listens on a loopback port of its own.
pub struct HttpServer {
    child: Child,
    pub url: String,
}

impl HttpServer {
    pub async fn python() -> Self {
        Self::start(with(peers::argv("mcp_python_server"), &["http", "--port", "0"])).await
    }

    pub async fn modern() -> Self {
        Self::start(with(peers::argv("mcp_modern_server"), &["--strict", "http", "--port", "0"])).await
    }

    /// Starts it and reads the address that it prints.
    pub async fn start(argv: Vec<String>) -> Self {
        tokio::task::spawn_blocking(move || {
            let mut child = Command::new(&argv[0])
                .args(&argv[1..])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("{argv:?}: {error}"));
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{argv:?} said {line:?}"));
            Self { child, url: url.to_owned() }
        })
        .await
        .unwrap()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
