//! rotel, a real OTLP collector, which prints what it receives.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{eventually, free_port, peers};

pub struct Collector {
    child: Option<Child>,
    pub grpc: u16,
    pub http: u16,
    printed: Arc<Mutex<String>>,
}

impl Collector {
    pub async fn start() -> Self {
        let mut collector = Self { child: None, grpc: free_port(), http: free_port(), printed: Arc::default() };
        collector.up().await;
        collector
    }

    /// Starts it (again, at the same ports).
    pub async fn up(&mut self) {
        let from = self.printed().len();
        let mut child = Command::new(peers::path("rotel"))
            .args(["start", "--exporter", "blackhole", "--debug-log-verbosity", "detailed"])
            .args(["--debug-log", "logs", "--debug-log", "traces", "--debug-log", "metrics"])
            .arg(format!("--otlp-grpc-endpoint=127.0.0.1:{}", self.grpc))
            .arg(format!("--otlp-http-endpoint=127.0.0.1:{}", self.http))
            .envs(peers::env("rotel_env"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let printed = self.printed.clone();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let mut text = printed.lock().unwrap();
                text.push_str(&line);
                text.push('\n');
            }
        });
        self.child = Some(child);
        eventually(Duration::from_secs(20), "rotel is up", || async {
            self.printed()[from..].contains("Starting Rotel.").then_some(())
        })
        .await;
    }

    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// All that it has printed so far.
    pub fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    /// Waits until it has printed all of `words`.
    pub async fn prints(&self, words: &[&str]) {
        eventually(Duration::from_secs(20), &format!("the collector prints {words:?}"), || async {
            let printed = self.printed();
            words.iter().all(|word| printed.contains(word)).then_some(())
        })
        .await;
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.down();
    }
}
