//! A collector that counts: OTLP over HTTP/1.1, without compression, by blocking threads, so that it costs the shipper under test nothing.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

#[derive(Default)]
pub struct Counted {
    records: AtomicU64,
    bytes: AtomicU64,
    first: Mutex<Option<Instant>>,
    ended: AtomicBool,
}

pub struct Sink {
    pub port: u16,
    counted: Arc<Counted>,
}

impl Sink {
    /// Listens on the port, or with 0 on any.
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let counted: Arc<Counted> = Arc::default();
        let shared = counted.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.ended.load(Ordering::Relaxed) {
                    break;
                }
                let counted = shared.clone();
                std::thread::spawn(move || serve(stream, &counted));
            }
        });
        Self { port, counted }
    }

    pub fn records(&self) -> u64 {
        self.counted.records.load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.counted.bytes.load(Ordering::Relaxed)
    }

    /// When the first request with a record in it came.
    pub fn first(&self) -> Option<Instant> {
        *self.counted.first.lock().expect("nobody panics with it")
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.counted.ended.store(true, Ordering::Relaxed);
        // So that the listener looks at it.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// A connection, to its end.
fn serve(stream: TcpStream, counted: &Counted) -> Option<()> {
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    let (mut line, mut body) = (String::new(), Vec::new());
    while !counted.ended.load(Ordering::Relaxed) {
        line.clear();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let is_logs = line.contains("/v1/logs");
        let mut length = 0;
        loop {
            line.clear();
            reader.read_line(&mut line).ok()?;
            if line.trim_end().is_empty() {
                break;
            }
            let lower = line.to_ascii_lowercase();
            assert!(!lower.starts_with("content-encoding"), "it is compressed");
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body).ok()?;
        let records = if is_logs { count(&body) } else { 0 };
        if records > 0 {
            counted.first.lock().expect("nobody panics with it").get_or_insert_with(Instant::now);
        }
        counted.bytes.fetch_add(length as u64, Ordering::Relaxed);
        counted.records.fetch_add(records, Ordering::Relaxed);
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok()?;
    }
    Some(())
}

/// The log records of a request that are no audit events, by the fields of the format alone: resource_logs (1), scope_logs (2), log_records (2).
fn count(request: &[u8]) -> u64 {
    let mut records = 0;
    each(request, |number, resource| {
        if number == 1 {
            each(resource, |number, scope| {
                if number == 2 && memchr::memmem::find(scope, b"mcpeg.audit.seq").is_none() {
                    each(scope, |number, _| records += u64::from(number == 2));
                }
            });
        }
    });
    records
}

/// Each field of a message that has a length.
fn each(mut message: &[u8], mut see: impl FnMut(u64, &[u8])) {
    while !message.is_empty() {
        let tag = varint(&mut message);
        let length = match tag & 7 {
            0 => {
                varint(&mut message);
                continue;
            }
            1 => 8,
            2 => varint(&mut message) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (content, rest) = message.split_at(length);
        if tag & 7 == 2 {
            see(tag >> 3, content);
        }
        message = rest;
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes.split_first().expect("a whole number");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}
