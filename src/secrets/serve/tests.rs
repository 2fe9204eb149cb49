//! The socket with scripted secrets behind it: what is refused, what is bounded, what a client that does not read meets.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use opentelemetry::metrics::MeterProvider;
use opentelemetry::metrics::noop::NoopMeterProvider;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::lifecycle::{Shutdown, ShutdownTrigger};
use crate::ports::{AuditEvent, AuditRefused, SecretUnavailable};
use crate::secret::{Secret, SecretVersion};
use crate::secrets::settings::AllowRule;

use super::*;

#[derive(Default)]
struct World {
    events: Mutex<Vec<AuditEvent>>,
    refuses: AtomicBool,
}

impl AuditLog for World {
    fn record(&self, event: AuditEvent) -> Result<(), AuditRefused> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(AuditRefused { reason: "disk full".into() });
        }
        self.events.lock().unwrap().push(event);
        Ok(())
    }

    fn ready(&self) -> Result<(), AuditRefused> {
        Ok(())
    }
}

impl SecretReader for World {
    fn current(&self, item: &str) -> Result<Arc<SecretVersion>, SecretUnavailable> {
        let fields = match item {
            "text" => BTreeMap::from([("value".to_owned(), Secret::copy_from(b"a \"b\""))]),
            "bytes" => BTreeMap::from([("value".to_owned(), Secret::copy_from(&[0xff, 0, 1]))]),
            "large" => BTreeMap::from([("value".to_owned(), Secret::new(vec![b'x'; 4 << 20]))]),
            "old" => return Err(SecretUnavailable::Stale { item: item.into(), reason: Some("denied".into()) }),
            _ => return Err(SecretUnavailable::Unknown { item: item.into() }),
        };
        Ok(Arc::new(SecretVersion { version: 7, provider_version: None, fields, fetched_at: SystemTime::UNIX_EPOCH }))
    }

    fn subscribe(&self, _: &str) -> Option<watch::Receiver<u64>> {
        Some(watch::channel(7).1)
    }
}

struct Running {
    _folder: tempfile::TempDir,
    path: std::path::PathBuf,
    world: Arc<World>,
    handle: ServeHandle,
    trigger: ShutdownTrigger,
    tasks: JoinSet<()>,
}

impl Running {
    fn start(max_connections: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let world = Arc::new(World::default());
        let meter = NoopMeterProvider::new().meter("test");
        let settings = Some(settings(&path, max_connections));
        let (handle, part) = build(settings, world.clone(), world.clone(), &meter).unwrap();
        let (trigger, shutdown) = Shutdown::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { (part.task)(shutdown).await.unwrap() });
        Self { _folder: folder, path, world, handle, trigger, tasks }
    }

    async fn get(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn stop(mut self) {
        self.trigger.fire();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

fn settings(path: &Path, max_connections: usize) -> ServeSettings {
    let items = ["text", "bytes", "large", "old"].map(str::to_owned).to_vec();
    let uid = Some(rustix::process::getuid().as_raw());
    ServeSettings {
        path: path.to_owned(),
        mode: 0o600,
        max_connections,
        allow: vec![AllowRule { uid, gid: None, items }],
    }
}

#[tokio::test]
async fn a_value_is_answered_in_the_form_that_holds_it() {
    let running = Running::start(8);
    let text = running.get("/v1/secrets/text").await;
    assert!(text.ends_with("{\"item\":\"text\",\"version\":7,\"fields\":{\"value\":\"a \\\"b\\\"\"}}\n"), "{text}");
    assert!(text.contains("mcpeg-secret-version: 7") && text.contains("cache-control: no-store"), "{text}");
    let bytes = running.get("/v1/secrets/bytes").await;
    assert!(bytes.ends_with("\"fields\":{\"value\":{\"base64\":\"/wAB\"}}}\n"), "{bytes}");
    let old = running.get("/v1/secrets/old").await;
    assert!(old.starts_with("HTTP/1.1 503") && old.contains("older than max_stale: denied"), "{old}");
    running.stop().await;
}

#[tokio::test]
async fn what_cannot_be_put_on_record_is_not_read() {
    let running = Running::start(8);
    running.world.refuses.store(true, Ordering::SeqCst);
    let refused = running.get("/v1/secrets/text").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("on record"), "{refused}");
    running.world.refuses.store(false, Ordering::SeqCst);
    assert!(running.get("/v1/secrets/text").await.starts_with("HTTP/1.1 200"));
    assert_eq!(running.world.events.lock().unwrap().len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_take_a_value_is_cut_off_within_a_second() {
    let running = Running::start(8);
    let mut stream = UnixStream::connect(&running.path).await.unwrap();
    stream.write_all(b"GET /v1/secrets/large HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let gone = async {
        while running.handle.detail()["connections"] != 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(running.handle.detail()["connections"], 1);
    timeout(Duration::from_millis(900), gone).await.expect("it was cut off");
    running.stop().await;
}

#[tokio::test]
async fn one_user_gets_half_of_the_connections_and_a_head_is_bounded() {
    let running = Running::start(4);
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = UnixStream::connect(&running.path).await.unwrap();
        stream.write_all(b"GET /v1/secrets/text HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(stream.read(&mut [0; 16]).await.unwrap() > 0);
        open.push(stream);
    }
    let mut third = UnixStream::connect(&running.path).await.unwrap();
    assert!(matches!(third.read(&mut [0; 16]).await, Ok(0) | Err(_)), "there is no room for it");
    drop(open.pop());
    let large = format!("GET /v1/secrets/text HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(32 * 1024));
    let mut answer = vec![0; 16];
    for _ in 0..200 {
        let mut stream = UnixStream::connect(&running.path).await.unwrap();
        // Its place may not be free yet.
        let _ = stream.write_all(large.as_bytes()).await;
        if stream.read(&mut answer).await.is_ok_and(|read| read > 0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    running.stop().await;
}
