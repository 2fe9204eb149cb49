//! What the socket for local programs answers.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/secrets/ITEM` | JSON: `item`, `version`, `fields` (what is not UTF-8 as `{"base64": "..."}`) |
//! | `GET /v1/secrets/ITEM?field=NAME` | the field's bytes |
//! | `GET /v1/secrets/ITEM/watch?after=VERSION` | `{"item","version"}` once the version is another; 204 after `timeout` seconds (30) |
//! | the same with `Accept: text/event-stream` | an event for each version |
//!
//! 403: no rule allows it; 404: no such item or field; 503: not fetched yet, too old, or the read cannot be put on record. A request's
//! body is never read. Everything that is not a success is `{"error": "..."}`.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::json;
use tracing::warn;
use url::form_urlencoded;

use crate::ports::{AuditEvent, Outcome, SecretUnavailable};
use crate::secret::is_name;

use super::access::Peer;
use super::answer::{self, Answer, Held};
use super::server::Shared;
use super::watch::{self, Next};

pub(super) async fn answer(shared: &Arc<Shared>, peer: Peer, held: &Held, request: &Parts) -> Answer {
    let Some((item, rest)) = item_of(request.uri.path()) else {
        return answer::error(StatusCode::NOT_FOUND, "there is nothing at this path");
    };
    if request.method != Method::GET {
        let mut answer = answer::error(StatusCode::METHOD_NOT_ALLOWED, "this path takes GET");
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return answer;
    }
    let asked = match Asked::of(request) {
        Ok(asked) => asked,
        Err(message) => return answer::error(StatusCode::BAD_REQUEST, message),
    };
    match rest {
        None => read(shared, peer, held, item, asked.field.as_deref()),
        Some(_) => watch(shared, peer, item, &asked).await,
    }
}

/// The item, and `watch` if that is what follows.
fn item_of(path: &str) -> Option<(&str, Option<&str>)> {
    let rest = path.strip_prefix("/v1/secrets/")?;
    let (item, rest) = match rest.split_once('/') {
        None => (rest, None),
        Some((item, "watch")) => (item, Some("watch")),
        Some(_) => return None,
    };
    is_name(item).then_some((item, rest))
}

/// What a query asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    field: Option<String>,
    after: u64,
    within: Duration,
    as_events: bool,
}

impl Asked {
    fn of(request: &Parts) -> Result<Self, &'static str> {
        let header = |name| request.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let mut asked = Self {
            within: DEFAULT_WAIT,
            as_events: header("accept").is_some_and(|accept| accept.contains("text/event-stream")),
            after: header("last-event-id").and_then(|id| id.parse().ok()).unwrap_or(0),
            ..Self::default()
        };
        for (key, value) in form_urlencoded::parse(request.uri.query().unwrap_or_default().as_bytes()) {
            match &*key {
                "field" if asked.field.is_none() => asked.field = Some(value.into_owned()),
                "after" => asked.after = value.parse().map_err(|_| "`after` is a version's number")?,
                "timeout" => {
                    let seconds = value.parse().ok().filter(|seconds| (1..=MAX_WAIT_SECONDS).contains(seconds));
                    asked.within = Duration::from_secs(seconds.ok_or("`timeout` is 1 to 300 seconds")?);
                }
                _ => return Err("the query takes `field` once; of a watch `after` and `timeout`"),
            }
        }
        Ok(asked)
    }
}

fn read(shared: &Arc<Shared>, peer: Peer, held: &Held, item: &str, field: Option<&str>) -> Answer {
    let refuse = |status, error: &'static str, message: &str| {
        let outcome = if status == StatusCode::FORBIDDEN { Outcome::Denied } else { Outcome::Failure };
        let event =
            about(peer, item, outcome).with_some("mcpeg.secret.field", field.map(short)).with("error.type", error);
        refused(shared, event, known(shared, item), error);
        answer::error(status, message)
    };
    let version = match shared.secrets.current(item) {
        Err(SecretUnavailable::Unknown { .. }) => {
            return refuse(StatusCode::NOT_FOUND, "unknown_item", &format!("there is no secret {item}"));
        }
        _ if !shared.may_read(peer, item) => {
            return refuse(StatusCode::FORBIDDEN, "not_allowed", &not_allowed(peer, item));
        }
        Err(why @ SecretUnavailable::NotFetched { .. }) => {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "not_fetched", &why.to_string());
        }
        Err(why @ SecretUnavailable::Stale { .. }) => {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "stale", &why.to_string());
        }
        Ok(version) => version,
    };
    let one = match field.map(|name| version.field(Some(name))) {
        Some(None) => {
            return refuse(StatusCode::NOT_FOUND, "unknown_field", &format!("secret {item} has no such field"));
        }
        Some(Some(field)) => Some(field),
        None => None,
    };
    let event = about(peer, item, Outcome::Success)
        .with("mcpeg.secret.version", version.version)
        .with_some("mcpeg.secret.field", field);
    if let Err(error) = shared.audit.record(event) {
        warn!(%error, secret = item, "a read was refused, because it is not on record");
        shared.metrics.read(Some(item), "unaudited");
        return answer::error(StatusCode::SERVICE_UNAVAILABLE, "the read could not be put on record, so it is refused");
    }
    shared.metrics.read(Some(item), "success");
    match one {
        Some(field) => answer::raw(field, version.version, held.hold()),
        None => answer::whole(item, &version, held.hold()).unwrap_or_else(|| {
            answer::error(StatusCode::INTERNAL_SERVER_ERROR, "the value could not be written as JSON")
        }),
    }
}

async fn watch(shared: &Arc<Shared>, peer: Peer, item: &str, asked: &Asked) -> Answer {
    if asked.field.is_some() {
        return answer::error(StatusCode::BAD_REQUEST, "a watch is of a whole item: it takes no `field`");
    }
    let Some(versions) = shared.secrets.subscribe(item) else {
        return answer::error(StatusCode::NOT_FOUND, &format!("there is no secret {item}"));
    };
    if !shared.may_read(peer, item) {
        let event = about(peer, item, Outcome::Denied).with("error.type", "not_allowed");
        refused(shared, event, Some(item), "not_allowed");
        return answer::error(StatusCode::FORBIDDEN, &not_allowed(peer, item));
    }
    if asked.as_events {
        return answer::events(watch::stream(shared.clone(), peer, item.to_owned(), versions, asked.after));
    }
    match watch::next(versions, asked.after, asked.within).await {
        Next::Version(_) if !shared.may_read(peer, item) => {
            answer::error(StatusCode::FORBIDDEN, &not_allowed(peer, item))
        }
        Next::Version(version) => answer::json_value(StatusCode::OK, &json!({ "item": item, "version": version })),
        Next::NothingNew => answer::nothing_new(),
        Next::Gone => answer::error(StatusCode::NOT_FOUND, &format!("there is no secret {item} any more")),
    }
}

fn about(peer: Peer, item: &str, outcome: Outcome) -> AuditEvent {
    AuditEvent::new("secret.read", outcome)
        .with("mcpeg.secret.item", item)
        .with("mcpeg.peer.uid", peer.uid)
        .with_some("mcpeg.peer.pid", peer.pid)
}

/// Puts a refusal on record. Nothing is handed out, so there is nothing to hold back when that fails.
fn refused(shared: &Shared, event: AuditEvent, item: Option<&str>, outcome: &'static str) {
    shared.metrics.read(item, outcome);
    if let Err(error) = shared.audit.record(event) {
        warn!(%error, "audit event lost");
    }
}

fn known<'a>(shared: &Shared, item: &'a str) -> Option<&'a str> {
    shared.secrets.subscribe(item).map(|_| item)
}

fn not_allowed(peer: Peer, item: &str) -> String {
    format!("no rule of secrets.serve.allow lets uid {} with gid {} read {item}", peer.uid, peer.gid)
}

/// A field's name as a client wrote it, bounded for the record.
fn short(field: &str) -> String {
    field.chars().take(MAX_FIELD_CHARS).collect()
}

const DEFAULT_WAIT: Duration = Duration::from_secs(30);
const MAX_WAIT_SECONDS: u64 = 300;
const MAX_FIELD_CHARS: usize = 128;
