//! Store, rotator, crew and reload against a source that does as it is told, with paused time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::metrics::MeterProvider as _;
use tokio::task::JoinSet;

use crate::lifecycle::{Part, Readiness, ReadyState, Shutdown, ShutdownTrigger, Stage};
use crate::ports::{
    AuditEvent, AuditLog, AuditRefused, Condition, ConditionState, SecretReader, SecretUnavailable, StatusReport,
};
use crate::secret::Secret;

use super::context::Context;
use super::handle::{Roster, SecretsHandle, Shared};
use super::metrics::Metrics;
use super::provider::Provider;
use super::settings::{ItemSettings, ProviderSettings, SecretsSettings};
use super::source::{BoxFuture, FailureKind, FetchError, Fetched, Lease, LeaseId, SecretSource};
use super::store::{Item, Slot};

mod leases;

/// Gives each path what the script says, and counts.
#[derive(Default)]
pub(super) struct Script {
    values: Mutex<BTreeMap<String, Result<String, FailureKind>>>,
    fetches: Mutex<BTreeMap<String, usize>>,
    probes: Mutex<usize>,
    lease: Mutex<Option<Lease>>,
    renewals: Mutex<Vec<Duration>>,
    pub revoked: Mutex<Vec<String>>,
    refuses_revocation: Mutex<bool>,
    /// Whatever a fetch would meet.
    says_well: Mutex<bool>,
}

impl Script {
    fn set(&self, path: &str, value: &str) {
        self.values.lock().unwrap().insert(path.to_owned(), Ok(value.to_owned()));
    }

    fn break_with(&self, path: &str, kind: FailureKind) {
        self.values.lock().unwrap().insert(path.to_owned(), Err(kind));
    }

    fn fetches(&self, path: &str) -> usize {
        self.fetches.lock().unwrap().get(path).copied().unwrap_or_default()
    }
}

struct Scripted(Arc<Script>);

impl SecretSource for Scripted {
    fn fetch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        *self.0.fetches.lock().unwrap().entry(path.to_owned()).or_default() += 1;
        let outcome = match self.0.values.lock().unwrap().get(path) {
            None => Err(FetchError::new(FailureKind::NotFound, "nothing there")),
            Some(Err(kind)) => Err(FetchError::new(*kind, format!("it was {}", kind.as_str()))),
            Some(Ok(value)) => Ok(Fetched {
                fields: BTreeMap::from([("value".to_owned(), Secret::copy_from(value.as_bytes()))]),
                provider_version: None,
                lease: self.0.lease.lock().unwrap().clone().map(|lease| numbered(lease, self.0.fetches(path))),
            }),
        };
        Box::pin(std::future::ready(outcome))
    }

    /// Gives each time what is next in the script, and refuses when nothing is.
    fn renew<'a>(&'a self, _: &'a LeaseId, _: Duration) -> BoxFuture<'a, Result<Duration, FetchError>> {
        let left = self.0.renewals.lock().unwrap().pop();
        let refused = || FetchError::new(FailureKind::Malformed, "lease not found");
        Box::pin(std::future::ready(left.ok_or_else(refused)))
    }

    fn revoke<'a>(&'a self, lease: &'a LeaseId) -> BoxFuture<'a, Result<(), FetchError>> {
        self.0.revoked.lock().unwrap().push(lease.expose().to_owned());
        let refused = || Err(FetchError::new(FailureKind::Unreachable, "it is away"));
        let outcome = if *self.0.refuses_revocation.lock().unwrap() { refused() } else { Ok(()) };
        Box::pin(std::future::ready(outcome))
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        *self.0.probes.lock().unwrap() += 1;
        let values = self.0.values.lock().unwrap();
        if *self.0.says_well.lock().unwrap() {
            return Box::pin(std::future::ready(Ok(())));
        }
        let out = values.values().find_map(|value| value.as_ref().err().filter(|kind| kind.is_outage()));
        Box::pin(std::future::ready(out.map_or(Ok(()), |kind| Err(FetchError::new(*kind, "still out")))))
    }

    fn tend<'a>(&'a self, _changed: &'a (dyn Fn() + Send + Sync)) -> BoxFuture<'a, ()> {
        Box::pin(std::future::pending())
    }
}

/// The same lease under the name of the fetch that made it.
fn numbered(lease: Lease, fetch: usize) -> Lease {
    match lease {
        Lease::Held { ttl, renewable, login, .. } => {
            Lease::Held { id: LeaseId::new(format!("creds/{fetch}")), ttl, renewable, login }
        }
        other => other,
    }
}

/// Keeps what it is given; refuses when told so.
#[derive(Default)]
pub(super) struct Records {
    pub events: Mutex<Vec<AuditEvent>>,
    refuses: Mutex<bool>,
}

impl Records {
    pub fn names(&self) -> Vec<&'static str> {
        self.events.lock().unwrap().iter().map(|event| event.name).collect()
    }
}

impl AuditLog for Records {
    fn record(&self, event: AuditEvent) -> Result<(), AuditRefused> {
        if *self.refuses.lock().unwrap() {
            return Err(AuditRefused { reason: "disk full".to_owned() });
        }
        self.events.lock().unwrap().push(event);
        Ok(())
    }

    fn ready(&self) -> Result<(), AuditRefused> {
        Ok(())
    }
}

/// The domain with one scripted provider, running.
struct Bench {
    script: Arc<Script>,
    audit: Arc<Records>,
    shared: Arc<Shared>,
    handle: SecretsHandle,
    provider: Arc<Provider>,
    readiness: Readiness,
    trigger: ShutdownTrigger,
    tasks: JoinSet<()>,
}

fn settings(path: &str) -> ItemSettings {
    ItemSettings {
        provider: "fake".to_owned(),
        path: path.to_owned(),
        parameters: BTreeMap::new(),
        refresh: Duration::from_secs(10),
        overlap: Duration::from_secs(30),
        max_stale: None,
        require_at_start: true,
    }
}

fn meter() -> opentelemetry::metrics::Meter {
    opentelemetry_sdk::metrics::SdkMeterProvider::builder().build().meter("test")
}

impl Bench {
    fn start(script: Arc<Script>, items: &[(&str, ItemSettings)]) -> Self {
        let audit = Arc::new(Records::default());
        let context = Arc::new(Context::new(audit.clone(), Metrics::new(&meter())));
        let shared = Arc::new(Shared::new(context));
        let source = Box::new(Scripted(script.clone()));
        let provider = Arc::new(Provider::with_source("fake", ProviderSettings::Environment, source));
        let handle = SecretsHandle::new(shared.clone());
        let (signal, readiness) = Readiness::channel();
        let (trigger, shutdown) = Shutdown::channel();
        let mut bench =
            Self { script, audit, shared: shared.clone(), handle, provider, readiness, trigger, tasks: JoinSet::new() };
        bench.put(items);
        bench.tasks.spawn(async move { super::crew::run(shared, signal, shutdown).await });
        bench
    }

    /// A roster as `stage` would make it, with the scripted provider kept.
    fn put(&self, items: &[(&str, ItemSettings)]) {
        let mut roster = Roster::default();
        roster.providers.insert("fake".to_owned(), self.provider.clone());
        for (owner, (name, settings)) in items.iter().enumerate() {
            let slot = Slot::new(name);
            slot.hand_over_to(owner as u64 + 1);
            let (settings, provider) = (settings.clone(), self.provider.clone());
            let item = Arc::new(Item { slot, settings, provider, owner: owner as u64 + 1 });
            roster.items.insert((*name).to_owned(), item);
        }
        self.shared.put_roster(roster);
    }

    async fn version(&self, item: &str, version: u64) {
        let mut newest = self.handle.subscribe(item).unwrap();
        tokio::time::timeout(Duration::from_secs(60), newest.wait_for(|newest| *newest >= version))
            .await
            .unwrap()
            .unwrap();
    }

    fn value(&self, item: &str) -> String {
        let version = self.handle.current(item).unwrap();
        version.fields["value"].expose_str().unwrap().to_owned()
    }

    fn condition(&self, component: &str) -> Condition {
        self.handle.conditions().into_iter().find(|condition| condition.component == component).unwrap()
    }

    async fn stop(mut self) {
        self.trigger.fire();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_is_published_once_and_again_only_when_it_differs() {
    let script = Arc::new(Script::default());
    script.set("a", "one");
    let bench = Bench::start(script, &[("item", settings("a"))]);
    bench.version("item", 1).await;
    assert_eq!(bench.value("item"), "one");
    assert_eq!(bench.readiness.clone().settled().await, ReadyState::Ready);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(bench.script.fetches("a") >= 5);
    assert_eq!(*bench.handle.subscribe("item").unwrap().borrow(), 1);
    let held = Arc::downgrade(&bench.handle.current("item").unwrap());
    bench.script.set("a", "two");
    bench.version("item", 2).await;
    assert_eq!(bench.value("item"), "two");
    assert!(held.upgrade().is_none(), "the old version is held by nobody");
    assert_eq!(bench.audit.names(), ["secret.fetched", "secret.rotated"]);
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_keeps_the_last_good_value_and_is_told_once() {
    let script = Arc::new(Script::default());
    script.set("a", "one");
    script.set("b", "other");
    let limited = ItemSettings { max_stale: Some(Duration::from_secs(300)), ..settings("a") };
    let bench = Bench::start(script, &[("item", limited), ("other", settings("b"))]);
    bench.version("item", 1).await;
    bench.script.break_with("a", FailureKind::Denied);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(bench.value("item"), "one");
    let condition = bench.condition("secret/item");
    assert_eq!(condition.state, ConditionState::Degraded);
    assert!(condition.message.starts_with("it was denied; serving version 1, fetched "), "{}", condition.message);
    assert_eq!(bench.condition("secret/other").state, ConditionState::Ok);
    assert_eq!(bench.condition("provider/fake").state, ConditionState::Ok);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(matches!(bench.handle.current("item"), Err(SecretUnavailable::Stale { .. })));
    assert_eq!(bench.condition("secret/item").state, ConditionState::Failed);
    bench.script.set("a", "one");
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(bench.value("item"), "one");
    let names = bench.audit.names();
    assert_eq!(names[2..], ["secret.failed", "secret.recovered"]);
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_probed_for_all_items_and_ends_within_two_seconds() {
    let script = Arc::new(Script::default());
    script.break_with("a", FailureKind::Unreachable);
    script.break_with("b", FailureKind::Unreachable);
    let bench = Bench::start(script, &[("a", settings("a")), ("b", settings("b"))]);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(bench.readiness.state(), ReadyState::Starting);
    assert_eq!((bench.script.fetches("a"), bench.script.fetches("b")), (1, 1), "only probes while it is out");
    let probes = *bench.script.probes.lock().unwrap();
    assert!((71..=100).contains(&probes), "{probes}");
    assert!(bench.condition("provider/fake").message.contains("asking every second"));
    bench.script.set("a", "one");
    bench.script.set("b", "one");
    let back = tokio::time::Instant::now();
    bench.version("a", 1).await;
    bench.version("b", 1).await;
    assert!(back.elapsed() <= Duration::from_secs(2), "{:?}", back.elapsed());
    assert_eq!(bench.readiness.clone().settled().await, ReadyState::Ready);
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_any_length_and_kind_ends_within_two_seconds() {
    for (kind, seconds) in [
        (FailureKind::Sealed, 1),
        (FailureKind::Standby, 7),
        (FailureKind::Unreachable, 90),
        (FailureKind::Sealed, 599),
        (FailureKind::Standby, 600),
    ] {
        let script = Arc::new(Script::default());
        script.set("a", "one");
        let bench = Bench::start(script, &[("a", ItemSettings { refresh: Duration::from_secs(1), ..settings("a") })]);
        bench.version("a", 1).await;
        bench.script.break_with("a", kind);
        tokio::time::sleep(Duration::from_secs(seconds) + Duration::from_millis(437)).await;
        bench.script.set("a", "two");
        let back = tokio::time::Instant::now();
        bench.version("a", 2).await;
        assert!(back.elapsed() <= Duration::from_secs(2), "{kind:?} of {seconds} s: {:?}", back.elapsed());
        bench.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_whose_own_word_is_worth_nothing_is_asked_less_and_less() {
    let script = Arc::new(Script::default());
    script.break_with("a", FailureKind::Standby);
    *script.says_well.lock().unwrap() = true;
    let bench = Bench::start(script, &[("a", settings("a"))]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let fetches = bench.script.fetches("a");
    assert!((10..=90).contains(&fetches), "{fetches}");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn items_at_which_the_server_failed_are_asked_for_when_one_of_them_is_served() {
    let script = Arc::new(Script::default());
    let names: Vec<String> = (0..50).map(|number| format!("s{number}")).collect();
    names.iter().for_each(|name| script.break_with(name, FailureKind::ServerError));
    let items: Vec<(&str, ItemSettings)> = names.iter().map(|name| (name.as_str(), settings(name))).collect();
    let bench = Bench::start(script, &items);
    tokio::time::sleep(Duration::from_secs(300)).await;
    names.iter().for_each(|name| bench.script.set(name, "one"));
    let back = tokio::time::Instant::now();
    for name in &names {
        bench.version(name, 1).await;
    }
    assert!(back.elapsed() <= Duration::from_secs(3), "{:?}", back.elapsed());
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_audit_log_refuses_is_not_published() {
    let script = Arc::new(Script::default());
    script.set("a", "one");
    let bench = Bench::start(script, &[("item", settings("a"))]);
    bench.version("item", 1).await;
    *bench.audit.refuses.lock().unwrap() = true;
    bench.script.set("a", "two");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(bench.value("item"), "one");
    let condition = bench.condition("secret/item");
    assert!(condition.message.contains("could not be written: disk full"), "{}", condition.message);
    *bench.audit.refuses.lock().unwrap() = false;
    bench.version("item", 2).await;
    assert_eq!(bench.value("item"), "two");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_broken_item_of_many_costs_little_and_nothing_to_the_others() {
    let script = Arc::new(Script::default());
    script.set("good", "one");
    script.break_with("bad", FailureKind::Denied);
    let bench = Bench::start(script, &[("good", settings("good")), ("bad", settings("bad"))]);
    for _ in 0..5 {
        let before = (bench.script.fetches("bad"), bench.script.fetches("good"));
        tokio::time::sleep(Duration::from_secs(60)).await;
        let after = (bench.script.fetches("bad"), bench.script.fetches("good"));
        assert!(after.0 - before.0 <= 6 && after.1 - before.1 >= 5, "{before:?} {after:?}");
    }
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_item_that_is_removed_is_wiped_and_its_rotator_stops() {
    let script = Arc::new(Script::default());
    script.set("a", "one");
    script.set("b", "one");
    let bench = Bench::start(script, &[("a", settings("a")), ("b", settings("b"))]);
    bench.version("a", 1).await;
    bench.version("b", 1).await;
    let held = Arc::downgrade(&bench.handle.current("a").unwrap());
    let mut changes = bench.handle.subscribe("a").unwrap();
    // No provider of the kind that settings can name is the scripted one, so this stage replaces everything.
    bench.handle.stage(SecretsSettings::default()).unwrap().commit();
    assert!(held.upgrade().is_none());
    assert!(matches!(bench.handle.current("a"), Err(SecretUnavailable::Unknown { .. })));
    assert!(
        tokio::time::timeout(Duration::from_secs(5), changes.changed()).await.unwrap().is_err(),
        "nobody publishes"
    );
    let before = bench.script.fetches("a");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.script.fetches("a"), before);
    bench.stop().await;
}

#[tokio::test]
async fn a_reload_keeps_what_is_unchanged_and_hands_over_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.yaml");
    write_private(&path, "a: one\nb: two\n");
    let item = |path: &str| ItemSettings { provider: "dev".to_owned(), ..settings(path) };
    let mut wanted = SecretsSettings {
        cache: None,
        providers: BTreeMap::from([("dev".to_owned(), ProviderSettings::File { path, sealed_with: None })]),
        items: BTreeMap::from([("x".to_owned(), item("a")), ("y".to_owned(), item("a"))]),
        revoke_on_exit: false,
    };
    let audit = Arc::new(Records::default());
    let (handle, part) = super::build(wanted.clone(), audit.clone(), meter()).unwrap();
    let (trigger, running) = run_part(part).await;
    let kept = handle.current("x").unwrap();
    wanted.items.insert("y".to_owned(), item("b"));
    let staged = handle.stage(wanted.clone()).unwrap();
    assert_eq!(handle.current("y").unwrap().version, 1, "staging changes nothing");
    let mut changes = handle.subscribe("y").unwrap();
    staged.commit();
    assert_eq!(handle.current("y").unwrap().fields["value"].expose(), b"one", "the last good value stays until then");
    tokio::time::timeout(Duration::from_secs(5), changes.wait_for(|version| *version == 2)).await.unwrap().unwrap();
    assert_eq!(handle.current("y").unwrap().fields["value"].expose(), b"two");
    assert!(Arc::ptr_eq(&kept, &handle.current("x").unwrap()));
    wanted.items.insert("z".to_owned(), ItemSettings { provider: "gone".to_owned(), ..item("a") });
    let refused = handle.stage(wanted).map(drop).unwrap_err();
    assert_eq!(refused.to_string(), "secrets.items.z: there is no provider called gone");
    trigger.fire();
    running.join_all().await;
}

#[tokio::test]
async fn once_reports_every_failure_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.yaml");
    write_private(&path, "a: one\n");
    let item = |provider: &str, path: &str| ItemSettings { provider: provider.to_owned(), ..settings(path) };
    let wanted = SecretsSettings {
        cache: None,
        providers: BTreeMap::from([
            ("dev".to_owned(), ProviderSettings::File { path, sealed_with: None }),
            ("env".to_owned(), ProviderSettings::Environment),
        ]),
        items: BTreeMap::from([
            ("good".to_owned(), item("dev", "a")),
            ("bad".to_owned(), item("dev", "b")),
            ("worse".to_owned(), item("env", "MCPEG_NO_SUCH_VARIABLE")),
        ]),
        revoke_on_exit: false,
    };
    let (handle, _part) = super::build(wanted, Arc::new(Records::default()), meter()).unwrap();
    let failures = handle.fetch_all_once().await.unwrap_err().to_string();
    assert_eq!(failures.lines().count(), 2, "{failures}");
    assert!(failures.contains("secret bad: ") && failures.contains("secret worse: the environment has no variable"));
    assert_eq!(handle.current("good").unwrap().fields["value"].expose(), b"one");
    let detail = handle.detail().to_string();
    assert!(!detail.contains("\"one\""), "{detail}");
}

fn write_private(path: &std::path::Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

pub(super) async fn run_part(part: Part) -> (ShutdownTrigger, JoinSet<()>) {
    assert_eq!((part.name, part.stage), ("secrets", Stage::Workers));
    let (trigger, shutdown) = Shutdown::channel();
    let mut running = JoinSet::new();
    let mut ready = part.ready;
    running.spawn(async move { (part.task)(shutdown).await.unwrap() });
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), ready.settled()).await.unwrap(), ReadyState::Ready);
    (trigger, running)
}
