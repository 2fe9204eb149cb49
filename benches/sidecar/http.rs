//! A blocking client of streamable HTTP: one connection, one call after the other.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::client;

pub struct Http {
    reader: BufReader<TcpStream>,
    port: u16,
    path: &'static str,
    session: Option<String>,
}

impl Http {
    /// Tries until somebody listens, for as long as a package manager's program may take to start.
    pub fn connect(port: u16, path: &'static str, session: Option<String>) -> Self {
        let started = Instant::now();
        let stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(error) => assert!(started.elapsed() < Duration::from_secs(30), "port {port}: {error}"),
            }
            std::thread::park_timeout(Duration::from_millis(50));
        };
        stream.set_nodelay(true).expect("an option of TCP");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        Self { reader: BufReader::new(stream), port, path, session }
    }

    /// Begins a session and gives what names it.
    pub fn handshake(&mut self) -> Option<String> {
        let hello = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}"#;
        self.session = self.post(hello);
        self.post(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        self.session.clone()
    }

    /// With ids from `first` on, which no other connection of the session uses.
    pub fn calls(&mut self, first: usize, calls: usize) -> Vec<Duration> {
        (first..first + calls)
            .map(|id| {
                let body = client::request(id);
                let started = Instant::now();
                self.post(body.trim_end());
                started.elapsed()
            })
            .collect()
    }

    /// The session that the answer names. One to a request has to be a result.
    fn post(&mut self, body: &str) -> Option<String> {
        let session =
            self.session.as_ref().map_or_else(String::new, |session| format!("Mcp-Session-Id: {session}\r\n"));
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2025-06-18\r\n{session}Content-Length: {}\r\n\r\n",
            self.path,
            self.port,
            crate::process::TOKEN,
            body.len()
        );
        self.reader.get_mut().write_all(format!("{head}{body}").as_bytes()).expect("written");
        let (mut session, mut length, mut chunked) = (None, 0, false);
        let status = self.line();
        loop {
            let line = self.line();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').expect("a header");
            match name.to_ascii_lowercase().as_str() {
                "mcp-session-id" => session = Some(value.trim().to_owned()),
                "content-length" => length = value.trim().parse().expect("a number"),
                "transfer-encoding" => chunked = true,
                _ => {}
            }
        }
        let text = if chunked { self.chunks() } else { self.exactly(length) };
        let is_request = body.contains("\"id\":");
        assert!(status.contains(" 20") && (!is_request || text.contains("\"result\"")), "{status}: {text}");
        session
    }

    fn chunks(&mut self) -> String {
        let mut text = String::new();
        loop {
            let size = usize::from_str_radix(&self.line(), 16).expect("a chunk's size");
            text += &self.exactly(size);
            self.line();
            if size == 0 {
                return text;
            }
        }
    }

    fn exactly(&mut self, bytes: usize) -> String {
        let mut buffer = vec![0; bytes];
        self.reader.read_exact(&mut buffer).expect("a body");
        String::from_utf8(buffer).expect("UTF-8")
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }
}
