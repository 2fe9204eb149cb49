//! The client: blocking, so that it measures the other side and not a runtime of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

pub struct Pipe {
    reader: BufReader<Box<dyn Read + Send>>,
    writer: Box<dyn Write + Send>,
    next_id: usize,
}

/// What one run came to.
pub struct Figures {
    pub p50: f64,
    pub p99: f64,
    pub per_second: f64,
    pub cpu_micros: f64,
}

impl Pipe {
    pub fn new(reader: Box<dyn Read + Send>, writer: Box<dyn Write + Send>) -> Self {
        Self { reader: BufReader::with_capacity(8 * 1024, reader), writer, next_id: 1 }
    }

    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("somebody listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        Self::new(Box::new(stream.try_clone().expect("a clone")), Box::new(stream))
    }

    pub fn handshake(&mut self) {
        let hello = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}"#;
        self.writer.write_all(format!("{hello}\n").as_bytes()).expect("written");
        self.answer();
        self.writer.write_all(b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}\n").expect("written");
    }

    /// The time that each call took.
    pub fn one_at_a_time(&mut self, calls: usize) -> Vec<Duration> {
        (0..calls)
            .map(|_| {
                let line = self.next();
                let started = Instant::now();
                self.writer.write_all(line.as_bytes()).expect("written");
                self.answer();
                started.elapsed()
            })
            .collect()
    }

    /// Keeps `window` calls under way until `calls` are answered.
    pub fn many_in_flight(&mut self, calls: usize, window: usize) {
        let (mut sent, mut answered) = (0, 0);
        while answered < calls {
            let mut batch = String::new();
            while sent < calls && sent - answered < window {
                batch.push_str(&self.next());
                sent += 1;
            }
            if !batch.is_empty() {
                self.writer.write_all(batch.as_bytes()).expect("written");
            }
            self.answer();
            answered += 1;
            // Take what has come already before sending again.
            while answered < sent && self.reader.buffer().contains(&b'\n') {
                self.answer();
                answered += 1;
            }
        }
    }

    /// Sends one call; its answer is taken later.
    pub fn ask(&mut self, tool: &str) {
        self.next_id += 1;
        self.writer.write_all(call(self.next_id, tool).as_bytes()).expect("written");
    }

    /// Asks for the list of tools, as clients do before they call one.
    pub fn list_tools(&mut self) {
        self.next_id += 1;
        let list = format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"tools/list\"}}\n", self.next_id);
        self.writer.write_all(list.as_bytes()).expect("written");
        self.answer();
    }

    fn next(&mut self) -> String {
        self.next_id += 1;
        request(self.next_id)
    }

    pub fn answer(&mut self) {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("an answer");
        assert!(line.contains("\"result\""), "not a result: {line:?}");
    }
}

impl Figures {
    pub fn of(latencies: &mut [Duration], calls: usize, took: Duration, cpu: Duration) -> Self {
        latencies.sort();
        let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
        Self {
            p50: at(0.5),
            p99: at(0.99),
            per_second: calls as f64 / took.as_secs_f64(),
            cpu_micros: cpu.as_secs_f64() * 1e6 / calls as f64,
        }
    }
}

pub fn request(id: usize) -> String {
    call(id, "echo")
}

pub fn call(id: usize, tool: &str) -> String {
    format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"tools/call\",\"params\":{{\"name\":\"{tool}\",\"arguments\":{{\"text\":\"a question of ordinary length, such as an agent would ask of a tool\",\"limit\":10}}}}}}\n"
    )
}
