//! What the tests of the whole share: the real binary, real servers, a plain MCP client, a look into a process's memory.
//!
//! Everything that is started here is killed when it is dropped. Nothing sleeps for luck: `eventually` polls for an event with a bound.

pub mod aws;
pub mod bao;
pub mod collector;
pub mod counting;
pub mod database;
pub mod enterprise;
pub mod etcd;
pub mod features;
pub mod git;
pub mod library;
pub mod line_sink;
pub mod mariadb;
pub mod mcp;
pub mod memory;
pub mod nginx;
pub mod otlp_sink;
pub mod peers;
pub mod postgres;
pub mod sidecar;
#[path = "../../src/telemetry/tests/sink.rs"]
#[allow(dead_code, reason = "the unit tests of telemetry use the rest of it")]
pub mod sink;
pub mod soak;
pub mod stand_in;
pub mod tls_front;
pub mod unix_http;
pub mod upstream;
pub mod valkey;

use std::net::TcpListener;
use std::time::{Duration, Instant};

/// Polls until `holds` gives a value; panics with `what` after `patience`.
pub async fn eventually<T>(patience: Duration, what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = holds().await {
            return found;
        }
        assert!(started.elapsed() < patience, "not within {patience:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A loopback port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Any JSON over plain HTTP, for talking to the peers.
pub fn http() -> reqwest::Client {
    // The first caller installs it; for the others it is there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap()
}
