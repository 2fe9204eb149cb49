//! Workers, hooks and reload with a reader and an audit log that do as they are told, and real files.

mod groups;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use opentelemetry::metrics::MeterProvider as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::settings::{CommandHook, FileSettings, MAX_SIZE, OnChange, OnRemove, TemplateSettings};
use super::{RenderHandle, build, compare, render_once};
use crate::lifecycle::{ReadyState, Shutdown, ShutdownTrigger};
use crate::ports::{
    AuditEvent, AuditLog, AuditRefused, Condition, ConditionState, Hold, SecretReader, SecretUnavailable, StatusReport,
};
use crate::secret::{Secret, SecretVersion};

/// Items that a test publishes.
#[derive(Default)]
struct Store(Mutex<BTreeMap<String, Entry>>, Arc<Mutex<Vec<u64>>>);

type Entry = (Option<Arc<SecretVersion>>, watch::Sender<u64>);

impl Store {
    fn declare(&self, item: &str) {
        self.0.lock().unwrap().insert(item.to_owned(), (None, watch::Sender::new(0)));
    }

    fn publish(&self, item: &str, value: &str) {
        let mut items = self.0.lock().unwrap();
        let (held, newest) = items.entry(item.to_owned()).or_insert_with(|| (None, watch::Sender::new(0)));
        let version = *newest.borrow() + 1;
        let fields = BTreeMap::from([("value".to_owned(), Secret::copy_from(value.as_bytes()))]);
        *held =
            Some(Arc::new(SecretVersion { version, provider_version: None, fields, fetched_at: SystemTime::now() }));
        newest.send_replace(version);
    }
}

impl SecretReader for Store {
    fn current(&self, item: &str) -> Result<Arc<SecretVersion>, SecretUnavailable> {
        let item = item.to_owned();
        match self.0.lock().unwrap().get(&item) {
            Some((Some(version), _)) => Ok(version.clone()),
            Some((None, _)) => Err(SecretUnavailable::NotFetched { item, reason: None }),
            None => Err(SecretUnavailable::Unknown { item }),
        }
    }

    fn subscribe(&self, item: &str) -> Option<watch::Receiver<u64>> {
        self.0.lock().unwrap().get(item).map(|(_, newest)| newest.subscribe())
    }

    fn hold(&self, _item: &str, since: u64) -> Hold {
        self.1.lock().unwrap().push(since);
        Box::new(Held(self.1.clone(), since))
    }
}

struct Held(Arc<Mutex<Vec<u64>>>, u64);

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.0.lock().unwrap();
        let at = held.iter().position(|since| *since == self.1).unwrap();
        held.remove(at);
    }
}

#[derive(Default)]
struct Records {
    events: Mutex<Vec<AuditEvent>>,
    refuses: Mutex<bool>,
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

struct Bench {
    folder: tempfile::TempDir,
    store: Arc<Store>,
    audit: Arc<Records>,
    handle: RenderHandle,
    ready: crate::lifecycle::Readiness,
    trigger: ShutdownTrigger,
    tasks: JoinSet<()>,
}

impl Bench {
    /// Starts with the templates that `make` derives from the folder, after `prepare` has filled store and folder.
    fn start(prepare: impl FnOnce(&Path, &Store), make: impl FnOnce(&Path) -> Vec<TemplateSettings>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, audit) = (Arc::new(Store::default()), Arc::new(Records::default()));
        prepare(folder.path(), &store);
        let meter = opentelemetry_sdk::metrics::SdkMeterProvider::builder().build().meter("test");
        let (handle, part) = build(make(folder.path()), store.clone(), audit.clone(), meter).unwrap();
        let (trigger, shutdown) = Shutdown::channel();
        let mut tasks = JoinSet::new();
        let ready = part.ready;
        tasks.spawn(async move { (part.task)(shutdown).await.unwrap() });
        Self { folder, store, audit, handle, ready, trigger, tasks }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn holds(&self, name: &str, text: &str) {
        let path = self.path(name);
        eventually(|| fs::read_to_string(&path).is_ok_and(|found| found == text)).await;
    }

    fn condition(&self, name: &str) -> Condition {
        let component = format!("template/{}", self.path(name).display().to_string().trim_start_matches('/'));
        self.handle.conditions().into_iter().find(|condition| condition.component == component).unwrap()
    }

    fn names(&self) -> Vec<&'static str> {
        self.audit.events.lock().unwrap().iter().map(|event| event.name).collect()
    }

    async fn stop(mut self) {
        self.trigger.fire();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

async fn eventually(mut is_so: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "it did not come to be so within 10 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn template(folder: &Path, name: &str, on_change: Option<OnChange>) -> TemplateSettings {
    TemplateSettings {
        source: folder.join(format!("{name}.j2")),
        max_size: MAX_SIZE,
        file: FileSettings::new(folder.join(name)),
        on_change,
        validate: None,
        group: None,
    }
}

fn command(script: String) -> Option<OnChange> {
    let argv = vec!["sh".into(), "-c".into(), script];
    let command = CommandHook { argv, env: BTreeMap::new(), timeout: Duration::from_secs(5) };
    Some(OnChange { command: Some(command), ..OnChange::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_follows_its_secret_and_only_changes_are_told() {
    let prepare = |folder: &Path, store: &Store| {
        fs::write(folder.join("app.j2"), "key={{ secret.api }}\n").unwrap();
        fs::write(folder.join("app"), "key=one\n").unwrap();
        store.publish("api", "one");
    };
    let make = |folder: &Path| {
        let count = format!("echo ran >> {}", folder.join("hooks").display());
        vec![template(folder, "app", command(count))]
    };
    let mut bench = Bench::start(prepare, make);
    assert_eq!(bench.ready.settled().await, ReadyState::Ready);
    assert!(!bench.path("hooks").exists(), "the bytes were there already");
    bench.store.publish("api", "two");
    bench.holds("app", "key=two\n").await;
    bench.holds("hooks", "ran\n").await;
    bench.store.publish("api", "two");
    bench.store.publish("api", "three");
    bench.holds("app", "key=three\n").await;
    bench.holds("hooks", "ran\nran\n").await;
    eventually(|| bench.names().len() == 4).await;
    assert_eq!(bench.names(), ["file.rendered", "hook.ran", "file.rendered", "hook.ran"]);
    assert_eq!(bench.condition("app").state, ConditionState::Ok);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_waits_for_its_secret_and_the_others_do_not() {
    let prepare = |folder: &Path, store: &Store| {
        fs::write(folder.join("late.j2"), "{{ secret.late }}").unwrap();
        fs::write(folder.join("early.j2"), "{{ secret.early }}").unwrap();
        store.declare("late");
        store.publish("early", "here");
    };
    let make = |folder: &Path| vec![template(folder, "late", None), template(folder, "early", None)];
    let bench = Bench::start(prepare, make);
    bench.holds("early", "here").await;
    assert_eq!(bench.ready.state(), ReadyState::Starting);
    let condition = bench.condition("late");
    assert_eq!(condition.state, ConditionState::Failed);
    bench.store.publish("late", "now");
    bench.holds("late", "now").await;
    assert_eq!(bench.ready.clone().settled().await, ReadyState::Ready);
    assert_eq!(bench.names(), ["file.rendered", "file.rendered"], "waiting is no failure");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_breaks_keeps_the_old_file_until_it_is_mended() {
    let prepare = |folder: &Path, store: &Store| {
        fs::write(folder.join("app.j2"), "a {{ secret.api }}").unwrap();
        store.publish("api", "one");
    };
    let bench = Bench::start(prepare, |folder| vec![template(folder, "app", None)]);
    bench.holds("app", "a one").await;
    fs::write(bench.path("app.j2"), "b\n{{ secret.api").unwrap();
    eventually(|| bench.condition("app").state == ConditionState::Degraded).await;
    let message = bench.condition("app").message;
    assert!(message.contains("app.j2:2:") && message.ends_with("the old file stays"), "{message}");
    bench.holds("app", "a one").await;
    fs::write(bench.path("app.j2"), "c {{ secret.api }}!").unwrap();
    bench.holds("app", "c one!").await;
    eventually(|| bench.condition("app").state == ConditionState::Ok).await;
    assert_eq!(bench.names(), ["file.rendered", "file.failed", "file.rendered"]);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_audit_log_refuses_is_not_written() {
    let prepare = |folder: &Path, store: &Store| {
        fs::write(folder.join("app.j2"), "{{ secret.api }}").unwrap();
        store.publish("api", "one");
    };
    let bench = Bench::start(prepare, |folder| vec![template(folder, "app", None)]);
    bench.holds("app", "one").await;
    *bench.audit.refuses.lock().unwrap() = true;
    bench.store.publish("api", "two");
    eventually(|| bench.condition("app").message.contains("disk full")).await;
    bench.holds("app", "one").await;
    *bench.audit.refuses.lock().unwrap() = false;
    bench.holds("app", "two").await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_fails_is_a_condition_and_the_file_stays_new() {
    let prepare = |folder: &Path, store: &Store| {
        fs::write(folder.join("app.j2"), "{{ secret.api }}").unwrap();
        store.publish("api", "one");
    };
    let bench = Bench::start(prepare, |folder| vec![template(folder, "app", command("exit 7".into()))]);
    bench.holds("app", "one").await;
    eventually(|| bench.condition("app").state == ConditionState::Degraded).await;
    assert_eq!(bench.condition("app").message, "the file is up to date, but: sh ended with exit status: 7");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_had_not_told_of_a_file_is_told_by_the_next() {
    let prepare = |folder: &Path, store: &Store| {
        fs::write(folder.join("app.j2"), "{{ secret.api }}").unwrap();
        fs::write(folder.join("app"), "one").unwrap();
        fs::write(folder.join(".app.mcpeg-untold"), "").unwrap();
        store.publish("api", "one");
    };
    let make = |folder: &Path| {
        let told = format!("test -e {0}/.app.mcpeg-untold && echo told >> {0}/told", folder.display());
        vec![template(folder, "app", command(told))]
    };
    let bench = Bench::start(prepare, make);
    bench.holds("told", "told\n").await;
    eventually(|| !bench.path(".app.mcpeg-untold").exists()).await;
    bench.store.publish("api", "two");
    bench.holds("told", "told\ntold\n").await;
    eventually(|| !bench.path(".app.mcpeg-untold").exists()).await;
    assert_eq!(bench.names(), ["hook.ran", "file.rendered", "hook.ran"]);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_of_the_template_forgets_neither_who_waits_nor_what_is_in_use() {
    let prepare = |folder: &Path, store: &Store| {
        fs::write(folder.join("app.j2"), "{{ secret.api }}").unwrap();
        fs::write(folder.join("app"), "one").unwrap();
        store.publish("api", "one");
    };
    let hook = |folder: &Path| command(format!("test -e {0}/go && echo told >> {0}/told", folder.display())).unwrap();
    let waits = |folder: &Path| {
        let on_change = OnChange { settle: Duration::from_secs(60), ..hook(folder) };
        vec![template(folder, "app", Some(on_change))]
    };
    let bench = Bench::start(prepare, waits);
    let held = bench.store.1.clone();
    eventually(|| *held.lock().unwrap() == [1]).await;
    bench.store.publish("api", "two");
    bench.holds("app", "two").await;
    let mut other = template(bench.folder.path(), "app", Some(OnChange { retries: 20, ..hook(bench.folder.path()) }));
    other.file.mode = 0o640;
    bench.handle.stage(vec![other]).unwrap().commit();
    eventually(|| bench.condition("app").message.contains("it is tried again")).await;
    assert_eq!(*held.lock().unwrap(), [1], "nobody has followed yet");
    fs::write(bench.path("go"), "").unwrap();
    bench.holds("told", "told\n").await;
    eventually(|| *held.lock().unwrap() == [2]).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_refuses_what_does_not_compile_and_swaps_what_does() {
    let prepare = |folder: &Path, store: &Store| {
        fs::write(folder.join("app.j2"), "{{ secret.api }}").unwrap();
        fs::write(folder.join("new.j2"), "new {{ secret.api }}").unwrap();
        fs::write(folder.join("broken.j2"), "{{").unwrap();
        store.publish("api", "one");
    };
    let bench = Bench::start(prepare, |folder| vec![template(folder, "app", None)]);
    bench.holds("app", "one").await;
    let of = |name: &str| template(bench.folder.path(), name, None);
    let refused = bench.handle.stage(vec![of("app"), of("broken"), of("missing")]).map(drop).unwrap_err().to_string();
    assert_eq!(refused.lines().count(), 2, "{refused}");
    bench.handle.stage(vec![of("new")]).unwrap().commit();
    bench.holds("new", "new one").await;
    bench.store.publish("api", "two");
    bench.holds("new", "new two").await;
    bench.holds("app", "one").await;
    bench.stop().await;
}

#[tokio::test]
async fn once_writes_what_it_can_and_reports_the_rest_together() {
    let folder = tempfile::tempdir().unwrap();
    let (store, audit) = (Store::default(), Records::default());
    fs::write(folder.path().join("good.j2"), "{{ secret.api }}").unwrap();
    fs::write(folder.path().join("bad.j2"), "{{ secret.nope }}").unwrap();
    store.publish("api", "one");
    let of = |name: &str| template(folder.path(), name, None);
    let (rendered, failures) = render_once(&[of("bad"), of("good"), of("gone")], &store, &audit).await;
    assert_eq!((rendered.len(), failures.len()), (1, 2), "{failures:?}");
    assert!(rendered[0].changed);
    assert_eq!(fs::read(folder.path().join("good")).unwrap(), b"one");
    let (rendered, _) = render_once(&[of("good")], &store, &audit).await;
    assert!(!rendered[0].changed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_goes_takes_its_file_along_where_it_says_so() {
    let prepare = |folder: &Path, store: &Store| {
        for name in ["gone", "kept", "moved"] {
            fs::write(folder.join(format!("{name}.j2")), "{{ secret.api }}").unwrap();
        }
        store.publish("api", "one");
    };
    let of = |folder: &Path, name: &str, on_remove| {
        let mut settings = template(folder, name, None);
        (settings.file.on_remove, settings.file.backup) = (on_remove, true);
        settings
    };
    let make = |folder: &Path| {
        vec![
            of(folder, "gone", OnRemove::Remove),
            of(folder, "kept", OnRemove::Keep),
            of(folder, "moved", OnRemove::Remove),
        ]
    };
    let bench = Bench::start(prepare, make);
    for name in ["gone", "kept", "moved"] {
        bench.holds(name, "one").await;
    }
    bench.store.publish("api", "two");
    bench.holds("gone.bak", "one").await;
    let mut moved = of(bench.folder.path(), "moved", OnRemove::Remove);
    moved.file.mode = 0o640;
    bench.handle.stage(vec![moved.clone()]).unwrap().commit();
    eventually(|| !bench.path("gone").exists() && !bench.path("gone.bak").exists()).await;
    eventually(|| bench.names().contains(&"file.removed")).await;
    assert!(bench.path("kept").exists() && bench.path("moved").exists());
    // What went and is wanted again is there in the end, in whatever order it happens.
    for round in 0..20 {
        bench.handle.stage(Vec::new()).unwrap().commit();
        if round % 2 == 0 {
            eventually(|| !bench.path("moved").exists()).await;
        }
        bench.handle.stage(vec![moved.clone()]).unwrap().commit();
        bench.holds("moved", "two").await;
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_include_that_breaks_keeps_the_file_and_one_that_is_mended_renews_it() {
    let prepare = |folder: &Path, store: &Store| {
        fs::write(folder.join("app.j2"), "{% include 'part.j2' %}").unwrap();
        fs::write(folder.join("part.j2"), "a {{ secret.api }}").unwrap();
        store.publish("api", "one");
    };
    let bench = Bench::start(prepare, |folder| vec![template(folder, "app", None)]);
    bench.holds("app", "a one").await;
    fs::write(bench.path("part.j2"), "b {{ secret.api.nope }}").unwrap();
    eventually(|| bench.condition("app").message.contains("part.j2:1:12: secret api has no field")).await;
    bench.holds("app", "a one").await;
    let written = std::time::Instant::now();
    fs::write(bench.path("part.j2"), "c {{ secret.api }}!").unwrap();
    bench.holds("app", "c one!").await;
    assert!(written.elapsed() < Duration::from_millis(1100), "{:?}", written.elapsed());
    bench.stop().await;
}

#[tokio::test]
async fn a_comparison_writes_nothing_and_shows_no_value() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::default();
    store.publish("api", "hunter2");
    fs::write(folder.path().join("app.j2"), "key = {{ secret.api }}\nport = 1\n").unwrap();
    fs::write(folder.path().join("app"), "key = oldhunter\nport = 1\n").unwrap();
    fs::write(folder.path().join("new.j2"), "{{ secret.api.value | int(default=1) }}").unwrap();
    fs::write(folder.path().join("bad.j2"), "{{ secret.nope }}").unwrap();
    let of = |name: &str| template(folder.path(), name, None);
    let compared = compare(&[of("app"), of("bad"), of("new")], &store).await;
    let first = compared[0].outcome.as_ref().unwrap();
    assert_eq!(first.differs, ["other bytes", "mode 0644, not 0600"]);
    let lines: Vec<&str> = first.diff.lines().skip(2).collect();
    assert_eq!(lines, ["@@ -1,2 +1,2 @@", "-key = [hidden]", "+key = [secret.api.value]", " port = 1"]);
    assert!(compared[1].outcome.as_ref().unwrap_err().to_string().contains("bad.j2:1:4: secret nope"));
    assert!(compared[2].outcome.as_ref().is_ok_and(|new| new.differs == ["it does not exist"]), "{:?}", compared[2]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    assert!(!format!("{compared:?}").contains("hunter"));
}
