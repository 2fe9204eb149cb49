//! A plain HTTP/1.1 client that keeps one connection to a Unix socket open.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

pub struct UnixHttp(BufReader<UnixStream>);

pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{} {}", self.status, self.text()))
    }
}

impl UnixHttp {
    pub async fn connect(socket: &Path) -> Self {
        Self(BufReader::new(UnixStream::connect(socket).await.unwrap()))
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.send("GET", path, "").await;
        self.answer().await
    }

    pub async fn send(&mut self, method: &str, path: &str, headers: &str) {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        self.0.write_all(request.as_bytes()).await.unwrap();
    }

    /// A body, after its headers were sent.
    pub async fn write(&mut self, body: &[u8]) {
        self.0.write_all(body).await.unwrap();
    }

    /// One answer with a length, or none.
    pub async fn answer(&mut self) -> Answer {
        let (status, length) = self.head().await;
        let mut body = vec![0; length.unwrap_or(0)];
        self.0.read_exact(&mut body).await.unwrap();
        Answer { status, body }
    }

    /// The status and the length of the body that follows.
    pub async fn head(&mut self) -> (u16, Option<usize>) {
        let first = self.line().await;
        let status = first.split(' ').nth(1).unwrap_or_else(|| panic!("{first:?}")).parse().unwrap();
        let mut length = None;
        loop {
            let line = self.line().await.to_ascii_lowercase();
            if line.is_empty() {
                return (status, length);
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = Some(value.trim().parse().unwrap());
            }
        }
    }

    pub async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(Duration::from_secs(20), self.0.read_line(&mut line)).await.expect("nothing in 20 s").unwrap();
        line.trim_end().to_owned()
    }
}
