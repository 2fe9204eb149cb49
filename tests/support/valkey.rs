//! A real Valkey on loopback, with a password, that can be stopped and come back at the same place with what it had.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mcpeg::secret::SecretText;
use mcpeg::storage::settings::ServerSettings;
use mcpeg::tls::Files;

use super::{eventually, free_port, peers};

pub const PASSWORD: &str = "valkey-of-the-tests @:/%";

pub struct Valkey {
    child: Option<Child>,
    pub port: u16,
    folder: tempfile::TempDir,
}

impl Valkey {
    pub async fn start() -> Self {
        let mut valkey = Self { child: None, port: free_port(), folder: tempfile::tempdir().unwrap() };
        valkey.come_back().await;
        valkey
    }

    /// Starts it again.
    pub async fn come_back(&mut self) {
        let mut child = Command::new(peers::path("valkey"))
            .arg("-")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let settings = format!(
            "port {}\nbind 127.0.0.1\ndir {}\nappendonly yes\nappendfsync always\nsave \"\"\nrequirepass \"{PASSWORD}\"\n",
            self.port,
            self.folder.path().display()
        );
        child.stdin.take().unwrap().write_all(settings.as_bytes()).unwrap();
        self.child = Some(child);
        eventually(Duration::from_secs(10), "Valkey is up", async || self.ask(&["PING"]).await).await;
    }

    /// Kills it.
    pub fn leave(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What it says to a command, without taking it apart; `None` while it is not there.
    pub async fn ask(&self, command: &[&str]) -> Option<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        for words in [&["AUTH", PASSWORD][..], command, &["QUIT"]] {
            let mut text = format!("*{}\r\n", words.len());
            words.iter().for_each(|word| text.push_str(&format!("${}\r\n{word}\r\n", word.len())));
            stream.write_all(text.as_bytes()).await.ok()?;
        }
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.ok()?;
        let said = String::from_utf8_lossy(&said).into_owned();
        said.strip_prefix("+OK\r\n").map(str::to_owned).filter(|said| !said.contains("LOADING"))
    }

    pub fn settings(&self, namespace: &str) -> ServerSettings {
        ServerSettings {
            kind: "Redis",
            host: "127.0.0.1".to_owned(),
            port: self.port,
            database: "0".to_owned(),
            username: None,
            password: Some(SecretText::literal(PASSWORD)),
            encrypted: false,
            tls: Files::default(),
            namespace: namespace.to_owned(),
        }
    }
}

impl Drop for Valkey {
    fn drop(&mut self) {
        self.leave();
    }
}
