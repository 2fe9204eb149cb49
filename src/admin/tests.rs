//! The sockets as a person, a probe, a scraper and a stranger find them.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::metrics::MeterProvider;
use opentelemetry::metrics::noop::NoopMeterProvider;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::lifecycle::{Shutdown, ShutdownTrigger};
use crate::ports::{
    AuditReader, AuditTail, Condition, ConditionState, RefreshError, Refreshed, ReloadOutcome, SecretControl,
    SecretSummary, SecretUnavailable,
};
use crate::secret::{Part as TextPart, Secret, SecretRef, SecretText, SecretVersion};

use settings::{AdminHttpSettings, AdminUnixSettings};

use super::*;

/// Plays everything that the sockets show.
#[derive(Default)]
struct World {
    conditions: Mutex<Vec<Condition>>,
    starting: Mutex<Vec<(String, ReadyState)>>,
    outcome: Mutex<Option<ReloadOutcome>>,
    reloads: AtomicUsize,
    /// When set, a reload waits for it.
    gate: Mutex<Option<Arc<Notify>>>,
}

impl StatusReport for World {
    fn section(&self) -> &'static str {
        "world"
    }

    fn conditions(&self) -> Vec<Condition> {
        self.conditions.lock().unwrap().clone()
    }

    fn detail(&self) -> Value {
        json!({ "round": true })
    }
}

impl crate::ports::MetricsStore for World {
    fn record(&self, _: Vec<crate::ports::MetricPoint>) -> crate::ports::StoreFuture<()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn query(&self, query: crate::ports::MetricQuery) -> crate::ports::StoreFuture<Vec<crate::ports::MetricSeries>> {
        let series = crate::ports::MetricSeries {
            name: query.name,
            tags: query.tags.into_iter().collect(),
            points: vec![(1, 2.0)],
            value: None,
        };
        Box::pin(std::future::ready(Ok(vec![series])))
    }

    fn snapshot(&self) -> crate::ports::StoreFuture<()> {
        Box::pin(std::future::ready(Ok(())))
    }
}

impl crate::ports::Backup for World {
    fn dump(&self) -> crate::ports::StoreFuture<bytes::Bytes> {
        Box::pin(std::future::ready(Ok("all that is kept".into())))
    }
}

impl MetricsText for World {
    fn prometheus(&self) -> String {
        assert!(!self.starting.lock().unwrap().iter().any(|(part, _)| part == "panic"), "asked to panic");
        "up 1\n".into()
    }
}

impl Reload for World {
    fn compare(&self) -> Pin<Box<dyn Future<Output = Result<crate::ports::Drift, String>> + Send + '_>> {
        Box::pin(async { Err("not in this test".to_owned()) })
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = ReloadOutcome> + Send + '_>> {
        Box::pin(async {
            let gate = self.gate.lock().unwrap().clone();
            if let Some(gate) = gate {
                gate.notified().await;
            }
            self.reloads.fetch_add(1, Ordering::SeqCst);
            self.outcome.lock().unwrap().clone().unwrap_or(ReloadOutcome::Unchanged)
        })
    }
}

impl SecretReader for World {
    fn current(&self, item: &str) -> Result<Arc<SecretVersion>, SecretUnavailable> {
        if item != "local" {
            return Err(SecretUnavailable::NotFetched { item: item.to_owned(), reason: None });
        }
        let fields = BTreeMap::from([("admin".to_owned(), Secret::copy_from(b"s3same"))]);
        Ok(Arc::new(SecretVersion { version: 1, provider_version: None, fields, fetched_at: SystemTime::UNIX_EPOCH }))
    }

    fn subscribe(&self, _: &str) -> Option<watch::Receiver<u64>> {
        None
    }
}

impl AuditReader for World {
    fn tail(&self, most: usize) -> Result<AuditTail, String> {
        let record = |seq: usize| serde_json::value::RawValue::from_string(format!("{{\"seq\":{seq}}}")).unwrap();
        let records = (0..most.min(3)).map(record).collect();
        Ok(AuditTail { path: Some("audit.log".into()), seq: 3, hash: Some("ab".into()), records })
    }
}

impl SecretControl for World {
    fn list(&self) -> Vec<SecretSummary> {
        vec![SecretSummary {
            item: "local".into(),
            provider: "dev".into(),
            state: ConditionState::Ok,
            version: Some(1),
            provider_version: None,
            age_seconds: Some(1.5),
            next_seconds: None,
            message: String::new(),
        }]
    }

    fn refresh<'a>(
        &'a self,
        item: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Refreshed, RefreshError>> + Send + 'a>> {
        let item = item.to_owned();
        Box::pin(std::future::ready(match item.as_str() {
            "local" => Ok(Refreshed { item, version: 2, provider_version: None, changed: true }),
            "soon" => Err(RefreshError::TooSoon),
            "broken" => Err(RefreshError::Failed { item, reason: "denied".into() }),
            _ => Err(RefreshError::Unknown { item }),
        }))
    }
}

fn surface(world: &Arc<World>) -> Surface {
    let parts = world.clone();
    Surface {
        points: world.clone(),
        backup: world.clone(),
        reports: vec![world.clone()],
        metrics: world.clone(),
        reload: world.clone(),
        secrets: world.clone(),
        control: world.clone(),
        audit: world.clone(),
        readiness: Arc::new(move || parts.starting.lock().unwrap().clone()),
        name: "mcpeg-test".into(),
        version: "1.2.3".into(),
        started: SystemTime::now(),
    }
}

fn unix(path: &Path, mode: u32) -> AdminSettings {
    AdminSettings { unix: Some(AdminUnixSettings { path: path.to_owned(), mode }), http: None }
}

fn http(token: &str) -> AdminSettings {
    let token = SecretText::new(vec![TextPart::Reference(SecretRef::parse(token).unwrap())]);
    AdminSettings { unix: None, http: Some(AdminHttpSettings { address: ([127, 0, 0, 1], 0).into(), token }) }
}

struct Running {
    handle: AdminHandle,
    tasks: JoinSet<()>,
    trigger: ShutdownTrigger,
}

impl Running {
    fn start(settings: AdminSettings, world: &Arc<World>) -> Self {
        let meter = NoopMeterProvider::new().meter("test");
        let (handle, parts) = build(settings, surface(world), meter).unwrap();
        let (trigger, shutdown) = Shutdown::channel();
        let mut tasks = JoinSet::new();
        for part in parts {
            let shutdown = shutdown.clone();
            tasks.spawn(async move { (part.task)(shutdown).await.unwrap() });
        }
        Self { handle, tasks, trigger }
    }

    async fn stop(mut self) {
        self.trigger.fire();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }

    fn tcp(&self) -> String {
        self.handle.addresses()[0].strip_prefix("http://").unwrap().to_owned()
    }
}

/// What is answered to `head`, sent as it is; to the end of the connection.
async fn raw(address: &str, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.replace('\n', "\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn text(response: &client::Response) -> &str {
    std::str::from_utf8(&response.body).unwrap()
}

#[tokio::test]
async fn the_unix_socket_is_private_and_answers_every_path() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("run/admin.sock");
    let world = Arc::new(World::default());
    let running = Running::start(unix(&socket, 0o600), &world);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(running.handle.addresses(), [format!("unix:{}", socket.display())]);

    assert_eq!(text(&client::get(&socket, "/livez").await.unwrap()), "ok\n");
    assert_eq!(text(&client::get(&socket, "/metrics").await.unwrap()), "up 1\n");
    let status: Value = serde_json::from_slice(&client::get(&socket, "/v1/status").await.unwrap().body).unwrap();
    assert_eq!((&status["name"], &status["ready"]), (&json!("mcpeg-test"), &json!(true)));
    assert_eq!(status["world"]["round"], true);
    assert_eq!(status["pid"], std::process::id());

    let unknown = client::get(&socket, "/v2").await.unwrap();
    assert_eq!((unknown.status, text(&unknown)), (404, "{\"error\":\"there is nothing at this path\"}\n"));
    assert_eq!(client::post(&socket, "/metrics").await.unwrap().status, 405);
    assert_eq!(client::get(&socket, "/v1/reload").await.unwrap().status, 405);
    running.stop().await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn secrets_are_listed_and_fetched_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let running = Running::start(unix(&socket, 0o600), &Arc::new(World::default()));
    let list: Value = serde_json::from_slice(&client::get(&socket, "/v1/secrets").await.unwrap().body).unwrap();
    assert_eq!((&list["secrets"][0]["item"], &list["secrets"][0]["age_seconds"]), (&json!("local"), &json!(1.5)));
    let refresh = async |item: &str| client::post(&socket, &format!("/v1/secrets/{item}/refresh")).await.unwrap();
    let good: Value = serde_json::from_slice(&refresh("local").await.body).unwrap();
    assert_eq!((&good["version"], &good["changed"]), (&json!(2), &json!(true)));
    for (item, status) in [("soon", 429), ("broken", 502), ("none", 404)] {
        assert_eq!(refresh(item).await.status, status, "{item}");
    }
    assert_eq!(client::get(&socket, "/v1/secrets/local/refresh").await.unwrap().status, 405);
    assert_eq!(client::post(&socket, "/v1/secrets/a%2Fb/refresh").await.unwrap().status, 404);
    running.stop().await;
}

#[tokio::test]
async fn readiness_names_its_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let world = Arc::new(World::default());
    let _running = Running::start(unix(&socket, 0o600), &world);
    *world.starting.lock().unwrap() = vec![
        ("mcp".into(), ReadyState::Starting),
        ("otlp".into(), ReadyState::Ready),
        ("render".into(), ReadyState::Failed("no disk".into())),
    ];
    let condition =
        |component: &str, state| Condition { component: component.into(), state, message: "said so".into() };
    *world.conditions.lock().unwrap() =
        vec![condition("service/github", ConditionState::Failed), condition("otlp", ConditionState::Degraded)];
    let answer = client::get(&socket, "/readyz?format=json").await.unwrap();
    assert_eq!(answer.status, 503);
    let answer: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(answer["reasons"], json!(["mcp: starting", "render: no disk", "service/github: said so"]));
    world.starting.lock().unwrap().clear();
    world.conditions.lock().unwrap().remove(0);
    let answer = client::get(&socket, "/readyz").await.unwrap();
    assert_eq!((answer.status, answer.body), (200, b"{\"ready\":true,\"reasons\":[]}\n".to_vec()));
}

#[tokio::test]
async fn a_reload_reports_its_outcome_and_outlives_its_client() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let world = Arc::new(World::default());
    let _running = Running::start(unix(&socket, 0o600), &world);
    let unchanged = client::post(&socket, "/v1/reload").await.unwrap();
    assert_eq!((unchanged.status, text(&unchanged)), (200, "{\"outcome\":\"unchanged\"}\n"));
    *world.outcome.lock().unwrap() = Some(ReloadOutcome::Rejected { problems: vec!["mcpeg.yaml:3:1: no".into()] });
    let rejected = client::post(&socket, "/v1/reload").await.unwrap();
    assert_eq!(rejected.status, 422);
    assert!(text(&rejected).contains("mcpeg.yaml:3:1: no"));

    let gate = Arc::new(Notify::new());
    *world.gate.lock().unwrap() = Some(gate.clone());
    let gone = tokio::time::timeout(Duration::from_millis(200), client::post(&socket, "/v1/reload")).await;
    assert!(gone.is_err());
    gate.notify_one();
    while world.reloads.load(Ordering::SeqCst) < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_panic_in_one_request_leaves_the_server_running() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let world = Arc::new(World::default());
    let _running = Running::start(unix(&socket, 0o600), &world);
    world.starting.lock().unwrap().push(("panic".into(), ReadyState::Ready));
    assert_eq!(client::get(&socket, "/metrics").await.unwrap().status, 500);
    assert_eq!(client::get(&socket, "/livez").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let world = Arc::new(World::default());
    let running = Running::start(unix(&socket, 0o660), &world);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    let meter = || NoopMeterProvider::new().meter("test");
    let living = build(unix(&socket, 0o600), surface(&world), meter()).err().unwrap().to_string();
    assert!(living.ends_with("another process listens there: is another mcpeg running?"), "{living}");
    assert_eq!(client::get(&socket, "/livez").await.unwrap().status, 200);
    running.stop().await;
    std::fs::write(&socket, "mine").unwrap();
    let file = build(unix(&socket, 0o600), surface(&world), meter()).err().unwrap().to_string();
    assert!(file.contains("something that is not a socket stands there"), "{file}");
}

#[tokio::test]
async fn the_client_says_who_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let missing = client::get(&socket, "/livez").await.unwrap_err().to_string();
    assert!(missing.contains("admin.sock does not exist"), "{missing}");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let refused = client::get(&socket, "/livez").await.unwrap_err().to_string();
    assert_eq!(refused, format!("no mcpeg is listening at {} (connection refused)", socket.display()));
}

#[tokio::test]
async fn over_tcp_only_probes_come_without_the_token_and_nobody_under_a_foreign_name() {
    let world = Arc::new(World::default());
    let running = Running::start(http("local.admin"), &world);
    let address = running.tcp();
    let ask = |path: &str, more: &str| format!("GET {path} HTTP/1.1\nHost: localhost\n{more}\n");
    assert!(raw(&address, &ask("/livez", "")).await.starts_with("HTTP/1.1 200"));
    assert!(raw(&address, &ask("/readyz", "")).await.starts_with("HTTP/1.1 200"));
    let nothing = raw(&address, &ask("/metrics", "")).await;
    assert!(nothing.starts_with("HTTP/1.1 401") && nothing.contains("www-authenticate: Bearer"), "{nothing}");
    assert!(raw(&address, &ask("/v1/status", "Authorization: Bearer s3samf\n")).await.starts_with("HTTP/1.1 401"));
    assert!(raw(&address, &ask("/nothing", "")).await.starts_with("HTTP/1.1 401"));
    let right = raw(&address, &ask("/metrics", "Authorization: Bearer s3same\n")).await;
    assert!(right.starts_with("HTTP/1.1 200") && right.contains("connection: close"), "{right}");
    let foreign = raw(&address, "GET /livez HTTP/1.1\nHost: evil.example\n\n").await;
    assert!(foreign.starts_with("HTTP/1.1 403"), "{foreign}");

    let running = Running::start(http("other.admin"), &world);
    let unknown = raw(&running.tcp(), &ask("/metrics", "Authorization: Bearer x\n")).await;
    assert!(unknown.starts_with("HTTP/1.1 503") && unknown.contains("secret other: not fetched yet"), "{unknown}");
}

#[tokio::test]
async fn other_sockets_take_over_at_the_commit_and_the_same_one_stays_open() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("a.sock"), folder.path().join("b.sock"));
    let world = Arc::new(World::default());
    let running = Running::start(unix(&first, 0o600), &world);
    let staged = running.handle.stage(unix(&second, 0o600)).unwrap();
    assert_eq!(client::get(&first, "/livez").await.unwrap().status, 200);
    drop(staged);
    assert!(!second.exists());
    running.handle.stage(unix(&first, 0o660)).unwrap().commit();
    assert_eq!(client::get(&first, "/livez").await.unwrap().status, 200);
    assert_eq!(std::fs::metadata(&first).unwrap().permissions().mode() & 0o777, 0o660);
    running.handle.stage(unix(&second, 0o600)).unwrap().commit();
    assert_eq!(client::get(&second, "/livez").await.unwrap().status, 200);
    while first.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(running.handle.addresses(), [format!("unix:{}", second.display())]);
}

#[tokio::test]
async fn requests_beyond_the_bounds_are_turned_away() {
    let world = Arc::new(World::default());
    let running = Running::start(http("local.admin"), &world);
    let long = format!("GET /livez HTTP/1.1\nHost: localhost\nX-Long: {}\n\n", "x".repeat(20_000));
    assert!(raw(&running.tcp(), &long).await.starts_with("HTTP/1.1 431"));
    let many = format!("GET /livez HTTP/1.1\nHost: localhost\n{}\n", "X: y\n".repeat(100));
    assert!(raw(&running.tcp(), &many).await.starts_with("HTTP/1.1 431"));
    running.stop().await;
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_out_and_are_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let world = Arc::new(World::default());
    let both = AdminSettings { http: http("local.admin").http, ..unix(&socket, 0o600) };
    let running = Running::start(both, &world);
    let tcp = running.handle.addresses()[1].strip_prefix("http://").unwrap().to_owned();
    let (mut silent, mut deaf) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        silent.push(UnixStream::connect(&socket).await.unwrap());
        deaf.push(TcpStream::connect(&tcp).await.unwrap());
    }
    let begun = Instant::now();
    assert_eq!(client::get(&socket, "/livez").await.unwrap().status, 200);
    assert!(raw(&tcp, "GET /livez HTTP/1.1\nHost: localhost\n\n").await.starts_with("HTTP/1.1 200"));
    assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
    // The last of them are the youngest, which only time ends.
    let ended = tokio::time::timeout(Duration::from_secs(5), silent.last_mut().unwrap().read(&mut [0; 256])).await;
    assert!(ended.is_ok(), "it is still open");
    running.stop().await;
}

#[tokio::test]
async fn reloads_beyond_the_bound_are_told_so_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let world = Arc::new(World::default());
    let _running = Running::start(unix(&socket, 0o600), &world);
    let gate = Arc::new(Notify::new());
    *world.gate.lock().unwrap() = Some(gate.clone());
    let mut asked = JoinSet::new();
    for _ in 0..50 {
        let socket = socket.clone();
        asked.spawn(async move { client::post(&socket, "/v1/reload").await });
    }
    for _ in 0..50 - server::MAX_RELOADS {
        let refused = asked.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!((refused.status, text(&refused).contains("too many reloads")), (503, true));
        serde_json::from_slice::<Value>(&refused.body).unwrap();
    }
    for _ in 0..server::MAX_RELOADS {
        gate.notify_one();
        assert_eq!(asked.join_next().await.unwrap().unwrap().unwrap().status, 200);
    }
}
