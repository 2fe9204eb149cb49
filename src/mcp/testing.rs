//! Stand-ins for the ports, for the tests of this domain.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tokio::sync::watch;

use super::cache::Answers;
use super::leaks::Leaks;
use super::settings::LeakAction;
use crate::guard::Guard;
use crate::output::Shipping;
use crate::ports::{
    AuditEvent, AuditLog, AuditRefused, AuditValue, Cache, CacheFuture, CacheStats, LocalAnswer, LocalFuture,
    LocalServer, LogLine, LogSink, Redactor, RefreshError, Refreshed, SecretControl, SecretReader, SecretSummary,
    SecretUnavailable, StateStore, StoreFuture,
};
use crate::secret::{Secret, SecretVersion};

/// Secrets of one field, by item.
pub struct Secrets {
    items: Mutex<HashMap<String, Item>>,
    /// What a refresh brings, once.
    fresh: Mutex<HashMap<String, String>>,
    refreshed: AtomicUsize,
}

type Item = (Arc<SecretVersion>, watch::Sender<u64>);

impl Secrets {
    pub fn new(items: &[(&str, &str)]) -> Arc<Self> {
        let secrets =
            Arc::new(Self { items: Mutex::default(), fresh: Mutex::default(), refreshed: AtomicUsize::new(0) });
        items.iter().for_each(|(item, value)| secrets.set(item, value));
        secrets
    }

    /// The next refresh of the item brings this value.
    pub fn renew(&self, item: &str, value: &str) {
        self.fresh.lock().unwrap().insert(item.to_owned(), value.to_owned());
    }

    /// How many refreshes were asked for.
    pub fn refreshed(&self) -> usize {
        self.refreshed.load(Ordering::Relaxed)
    }

    pub fn set(&self, item: &str, value: &str) {
        let mut items = self.items.lock().unwrap();
        let number = items.get(item).map_or(1, |(version, _)| version.version + 1);
        let fields = BTreeMap::from([("value".to_owned(), Secret::copy_from(value.as_bytes()))]);
        let fetched_at = SystemTime::UNIX_EPOCH;
        let version = Arc::new(SecretVersion { version: number, provider_version: None, fields, fetched_at });
        let (current, changes) =
            items.entry(item.to_owned()).or_insert_with(|| (version.clone(), watch::Sender::new(number)));
        *current = version;
        changes.send_replace(number);
    }
}

impl SecretReader for Secrets {
    fn current(&self, item: &str) -> Result<Arc<SecretVersion>, SecretUnavailable> {
        let unknown = || SecretUnavailable::Unknown { item: item.to_owned() };
        self.items.lock().unwrap().get(item).map(|(version, _)| version.clone()).ok_or_else(unknown)
    }

    fn subscribe(&self, item: &str) -> Option<watch::Receiver<u64>> {
        self.items.lock().unwrap().get(item).map(|(_, changes)| changes.subscribe())
    }
}

impl SecretControl for Secrets {
    fn list(&self) -> Vec<SecretSummary> {
        Vec::new()
    }

    fn refresh<'a>(
        &'a self,
        item: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Refreshed, RefreshError>> + Send + 'a>> {
        Box::pin(async move {
            self.refreshed.fetch_add(1, Ordering::Relaxed);
            let fresh = self.fresh.lock().unwrap().remove(item);
            let changed = fresh.is_some();
            fresh.into_iter().for_each(|value| self.set(item, &value));
            Ok(Refreshed { item: item.to_owned(), version: 0, provider_version: None, changed })
        })
    }
}

/// Keeps the events, and refuses them when it is told to.
#[derive(Default)]
pub struct Audit {
    events: Mutex<Vec<AuditEvent>>,
    pub refuses: AtomicBool,
    /// Says beforehand that it would refuse.
    pub unready: AtomicBool,
}

impl Audit {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// An attribute of each event, as text.
    pub fn column(&self, name: &str) -> Vec<String> {
        let text = |event: &AuditEvent| {
            let found = event.attributes.iter().find(|(attribute, _)| *attribute == name);
            found.map_or_else(|| "-".to_owned(), |(_, value)| shown(value))
        };
        self.events.lock().unwrap().iter().map(text).collect()
    }
}

impl AuditLog for Audit {
    fn record(&self, event: AuditEvent) -> Result<(), AuditRefused> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(AuditRefused { reason: "told to".into() });
        }
        self.events.lock().unwrap().push(event);
        Ok(())
    }

    fn ready(&self) -> Result<(), AuditRefused> {
        if self.unready.load(Ordering::Relaxed) { Err(AuditRefused { reason: "told to".into() }) } else { Ok(()) }
    }
}

fn shown(value: &AuditValue) -> String {
    match value {
        AuditValue::Text(text) => text.clone(),
        AuditValue::List(items) => items.join(" "),
        other => format!("{other:?}"),
    }
}

/// A guard that knows nothing yet, and redacts.
pub fn leaks() -> Arc<Leaks> {
    Arc::new(Leaks::new(Arc::new(Guard::new().unwrap()), LeakAction::Redact))
}

/// Lines go to the own log as they are.
pub fn shipping() -> Shipping {
    Shipping { redactor: Arc::new(Unseen), sink: Arc::new(Unseen) }
}

struct Unseen;

impl Redactor for Unseen {
    fn redact<'a>(&self, bytes: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
        bytes.into()
    }

    fn counts(&self) -> Vec<crate::ports::RedactedCount> {
        Vec::new()
    }
}

impl LogSink for Unseen {
    fn ship(&self, _line: &LogLine<'_>) {}
}

/// As sessions use it.
pub fn answers() -> Arc<Answers> {
    Arc::new(Answers::new(no_cache(), 0))
}

/// A store of this process alone that keeps nothing.
pub fn no_state() -> Arc<dyn StateStore> {
    Arc::new(NoState)
}

struct NoState;

impl StateStore for NoState {
    fn get(&self, _key: &str) -> StoreFuture<Option<bytes::Bytes>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn set(&self, _key: &str, _value: bytes::Bytes) -> StoreFuture<()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn compare_and_set(&self, _: &str, _: Option<bytes::Bytes>, _: bytes::Bytes) -> StoreFuture<bool> {
        Box::pin(std::future::ready(Ok(true)))
    }

    fn delete(&self, _key: &str) -> StoreFuture<()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn persist(&self) -> StoreFuture<()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn is_shared(&self) -> bool {
        false
    }
}

/// A cache that keeps nothing.
pub fn no_cache() -> Arc<dyn Cache> {
    Arc::new(NoCache)
}

struct NoCache;

impl Cache for NoCache {
    fn get(&self, _key: &str) -> CacheFuture<Option<bytes::Bytes>> {
        Box::pin(std::future::ready(None))
    }

    fn set(&self, _key: &str, _value: bytes::Bytes, _ttl: std::time::Duration) -> CacheFuture<()> {
        Box::pin(std::future::ready(()))
    }

    fn delete(&self, _key: &str) -> CacheFuture<()> {
        Box::pin(std::future::ready(()))
    }

    fn clear(&self, _prefix: &str) -> CacheFuture<()> {
        Box::pin(std::future::ready(()))
    }

    fn stats(&self) -> CacheStats {
        CacheStats::default()
    }
}

/// Serves nothing.
struct NoLocal;

impl LocalServer for NoLocal {
    fn answer(&self, _: &str, _: bytes::Bytes) -> LocalFuture {
        Box::pin(std::future::ready(LocalAnswer::Nothing))
    }
}

pub fn no_local() -> Arc<dyn LocalServer> {
    Arc::new(NoLocal)
}
