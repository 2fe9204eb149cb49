//! What the admin sockets answer.
//!
//! | path | answer |
//! | --- | --- |
//! | `GET /livez` | 200 `ok`: the process serves |
//! | `GET /readyz` | 200 or 503 with reasons, as text or JSON (`?format=json`, `Accept: application/json`) |
//! | `GET /metrics` | Prometheus text 0.0.4 |
//! | `GET /v1/status` | JSON: the process, conditions, and each report under its section |
//! | `GET /v1/secrets` | JSON: `secrets`, a list of names, versions, ages and the time to the next question; never a value |
//! | `POST /v1/secrets/ITEM/refresh` | JSON: the version after a fetch; 404, 429 (asked a moment ago), 502 (it failed) or 504 |
//! | `GET /v1/audit` | JSON: where the audit trail stands, and its newest `records` (`?limit=`, 50 unless told, at most 1000) |
//! | `GET /v1/diff` | JSON: what runs against what is written; 502 when that cannot be read |
//! | `POST /v1/reload` | JSON: the outcome; 422 when rejected; 503 when too many wait |
//!
//! A request's body is never read. Everything that is not a success and not readiness is `{"error": "..."}`.

use std::time::SystemTime;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::lifecycle::ReadyState;
use crate::ports::{Condition, ConditionState, RefreshError, ReloadOutcome};
use crate::secret::is_name;

use super::Surface;
use super::access::{self, Refusal};
use super::points::{self, Wrong};
use super::server::{Door, Shared, WAIT_FOR_RELOAD};

pub type Answer = Response<Full<Bytes>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Live,
    Ready,
    Metrics,
    Status,
    Secrets,
    Refresh,
    Audit,
    Diff,
    Points,
    Backup,
    Reload,
    Unknown,
}

impl Route {
    pub fn of(path: &str) -> Self {
        match path {
            "/livez" => Self::Live,
            "/readyz" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/v1/status" => Self::Status,
            "/v1/reload" => Self::Reload,
            "/v1/secrets" => Self::Secrets,
            "/v1/audit" => Self::Audit,
            "/v1/diff" => Self::Diff,
            "/v1/metrics" => Self::Points,
            "/v1/storage/backup" => Self::Backup,
            path if item_of_refresh(path).is_some() => Self::Refresh,
            _ => Self::Unknown,
        }
    }

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "/livez",
            Self::Ready => "/readyz",
            Self::Metrics => "/metrics",
            Self::Status => "/v1/status",
            Self::Secrets => "/v1/secrets",
            Self::Refresh => "/v1/secrets/{item}/refresh",
            Self::Audit => "/v1/audit",
            Self::Diff => "/v1/diff",
            Self::Points => "/v1/metrics",
            Self::Backup => "/v1/storage/backup",
            Self::Reload => "/v1/reload",
            Self::Unknown => "other",
        }
    }

    /// Probes come without a token.
    fn is_open(self) -> bool {
        matches!(self, Self::Live | Self::Ready)
    }
}

/// Answers one request that came through `door`.
pub async fn answer(shared: &Shared, door: Door, request: &Parts) -> Answer {
    let route = Route::of(request.uri.path());
    if door == Door::Tcp
        && let Err(refusal) = may_pass(shared, route, request)
    {
        return refused(&refusal);
    }
    let allowed = match route {
        Route::Unknown => return error(StatusCode::NOT_FOUND, "there is nothing at this path"),
        Route::Reload | Route::Refresh => request.method == Method::POST,
        _ => request.method == Method::GET || request.method == Method::HEAD,
    };
    if !allowed {
        let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method");
        let methods = if matches!(route, Route::Reload | Route::Refresh) { "POST" } else { "GET, HEAD" };
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
        return answer;
    }
    match route {
        Route::Live => text(StatusCode::OK, TEXT, "ok\n".into()),
        Route::Ready => ready(&shared.surface, wants_json(request)),
        Route::Metrics => text(StatusCode::OK, PROMETHEUS, shared.surface.metrics.prometheus()),
        Route::Status => json_answer(StatusCode::OK, &status(&shared.surface)),
        Route::Secrets => json_answer(StatusCode::OK, &json!({ "secrets": shared.surface.control.list() })),
        Route::Refresh => refresh(shared, request.uri.path()).await,
        Route::Audit => audit(shared, request.uri.query().unwrap_or_default()),
        Route::Diff => diff(shared).await,
        Route::Points => match points::answer(&*shared.surface.points, request.uri.query().unwrap_or_default()).await {
            Ok(answer) => json_answer(StatusCode::OK, &answer),
            Err(Wrong::Question(reason)) => error(StatusCode::BAD_REQUEST, &reason),
            Err(Wrong::Store(reason)) => error(StatusCode::INTERNAL_SERVER_ERROR, &reason),
        },
        Route::Backup => match shared.surface.backup.dump().await {
            Ok(bytes) => of_bytes(StatusCode::OK, "application/octet-stream", bytes),
            Err(failed) => error(StatusCode::INTERNAL_SERVER_ERROR, &failed.to_string()),
        },
        Route::Reload => reload(shared).await,
        Route::Unknown => error(StatusCode::NOT_FOUND, "there is nothing at this path"),
    }
}

fn audit(shared: &Shared, query: &str) -> Answer {
    let limit = query.split('&').find_map(|pair| pair.strip_prefix("limit="));
    let Ok(limit) = limit.unwrap_or("50").parse::<usize>() else {
        return error(StatusCode::BAD_REQUEST, "`limit` is not a number");
    };
    let tail = shared.surface.audit.tail(limit.min(MOST_RECORDS));
    match tail.and_then(|tail| serde_json::to_string(&tail).map_err(|error| error.to_string())) {
        Ok(body) => text(StatusCode::OK, JSON, body + "\n"),
        Err(reason) => error(StatusCode::INTERNAL_SERVER_ERROR, &reason),
    }
}

pub fn error(status: StatusCode, message: &str) -> Answer {
    json_answer(status, &json!({ "error": message }))
}

fn may_pass(shared: &Shared, route: Route, request: &Parts) -> Result<(), Refusal> {
    access::check_host(&request.headers)?;
    if route.is_open() {
        return Ok(());
    }
    let token = shared.listeners.borrow().token.clone();
    access::check_token(&request.headers, token.as_ref(), &shared.surface.secrets)
}

fn refused(refusal: &Refusal) -> Answer {
    let status = match refusal {
        Refusal::ForeignHost => StatusCode::FORBIDDEN,
        Refusal::NoToken | Refusal::WrongToken => StatusCode::UNAUTHORIZED,
        Refusal::Unchecked(_) | Refusal::EmptyToken => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut answer = error(status, &refusal.to_string());
    if status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer
}

fn wants_json(request: &Parts) -> bool {
    let asked = request.uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "format=json"));
    let accept = request.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    asked || accept.is_some_and(|accept| accept.contains("application/json"))
}

fn ready(surface: &Surface, as_json: bool) -> Answer {
    let reasons = not_ready(surface, &conditions(surface));
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if as_json {
        return json_answer(status, &json!({ "ready": reasons.is_empty(), "reasons": reasons }));
    }
    let lines = if reasons.is_empty() { "ready\n".to_owned() } else { format!("not ready\n{}\n", reasons.join("\n")) };
    text(status, TEXT, lines)
}

/// What keeps the process from being ready, one reason each.
fn not_ready(surface: &Surface, conditions: &[Condition]) -> Vec<String> {
    let parts = (surface.readiness)().into_iter().filter_map(|(part, state)| match state {
        ReadyState::Ready => None,
        ReadyState::Starting => Some(format!("{part}: starting")),
        ReadyState::Failed(reason) => Some(format!("{part}: {reason}")),
    });
    let failed = conditions.iter().filter(|condition| condition.state == ConditionState::Failed);
    parts.chain(failed.map(|condition| format!("{}: {}", condition.component, condition.message))).collect()
}

fn conditions(surface: &Surface) -> Vec<Condition> {
    surface.reports.iter().flat_map(|report| report.conditions()).collect()
}

fn status(surface: &Surface) -> Value {
    let conditions = conditions(surface);
    let uptime = SystemTime::now().duration_since(surface.started).unwrap_or_default();
    let mut status = Map::new();
    status.insert("name".into(), surface.name.clone().into());
    status.insert("version".into(), surface.version.clone().into());
    status.insert("pid".into(), std::process::id().into());
    status.insert("uptime_s".into(), uptime.as_secs().into());
    status.insert("ready".into(), not_ready(surface, &conditions).is_empty().into());
    status.insert("conditions".into(), json!(conditions));
    for report in &surface.reports {
        status.insert(report.section().into(), report.detail());
    }
    Value::Object(status)
}

/// The reload runs in the server's own task, so that a client that goes away does not stop it half-way.
async fn reload(shared: &Shared) -> Answer {
    let (reply, outcome) = oneshot::channel();
    let turn = shared.reload_turns.clone().try_acquire_owned();
    if !turn.is_ok_and(|turn| shared.reloads.try_send((reply, turn)).is_ok()) {
        let mut answer = error(StatusCode::SERVICE_UNAVAILABLE, "too many reloads wait already: nothing was done");
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        return answer;
    }
    match timeout(WAIT_FOR_RELOAD, outcome).await {
        Ok(Ok(outcome)) => {
            let status = match outcome {
                ReloadOutcome::Unchanged | ReloadOutcome::Applied { .. } => StatusCode::OK,
                ReloadOutcome::Rejected { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            };
            json_answer(status, &json!(outcome))
        }
        Ok(Err(_)) => error(StatusCode::INTERNAL_SERVER_ERROR, "the reload ended without an outcome; see the log"),
        Err(_) => error(StatusCode::GATEWAY_TIMEOUT, "the reload still runs; its outcome will be in the log"),
    }
}

async fn diff(shared: &Shared) -> Answer {
    match timeout(WAIT_FOR_RELOAD, shared.surface.reload.compare()).await {
        Ok(Ok(drift)) => json_answer(StatusCode::OK, &json!(drift)),
        Ok(Err(reason)) => error(StatusCode::BAD_GATEWAY, &reason),
        Err(_) => error(StatusCode::GATEWAY_TIMEOUT, "the configuration could not be read in time"),
    }
}

/// A fetch goes on when the client does not wait for it: it is the rotator's.
async fn refresh(shared: &Shared, path: &str) -> Answer {
    let Some(item) = item_of_refresh(path) else {
        return error(StatusCode::NOT_FOUND, "there is nothing at this path");
    };
    let failed = match shared.surface.control.refresh(item).await {
        Ok(refreshed) => return json_answer(StatusCode::OK, &json!(refreshed)),
        Err(failed) => failed,
    };
    let status = match failed {
        RefreshError::Unknown { .. } => StatusCode::NOT_FOUND,
        RefreshError::TooSoon => StatusCode::TOO_MANY_REQUESTS,
        RefreshError::Failed { .. } => StatusCode::BAD_GATEWAY,
        RefreshError::Late { .. } => StatusCode::GATEWAY_TIMEOUT,
    };
    error(status, &failed.to_string())
}

fn item_of_refresh(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/secrets/")?.strip_suffix("/refresh").filter(|item| is_name(item))
}

fn json_answer(status: StatusCode, value: &Value) -> Answer {
    text(status, JSON, format!("{value}\n"))
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    of_bytes(status, content_type, Bytes::from(body))
}

fn of_bytes(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// Of the audit trail, in one answer.
const MOST_RECORDS: usize = 1000;
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
