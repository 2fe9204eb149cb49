//! Which answers are kept, under what, and for how long.
//!
//! Kept: results of tools and resources that have a `cache_ttl`, and in the modern era what the server allows by `ttlMs` and `cacheScope`
//! (2026-07-28, caching). Never: errors, results that say `isError`, `input_required` and what followed it, tasks, and whatever a live
//! secret was found in.
//!
//! A key is a digest of everything that the answer depends on: the parameters (spaces and the order of members aside), who asks, unless
//! the answer is public, the settings and the versions of the secrets that the service is given, and how often the server said that
//! something has changed. So what must not be found any more is not found, and is forgotten besides. What is kept is the upstream's own
//! result, as it came: rules are applied when it is given out. In a cache that outlives the process a keyed digest of the service's settings and
//! secrets stands in the place of versions, so that all processes with the same ones find the same answers.
//!
//! Invariant: two requests that a server could tell apart have different keys.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ring::digest::{Context, SHA256};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::call::Peer;
use super::message::{Field, Request};
use super::protocol::{
    DISCOVER, PROMPTS_CHANGED, PROMPTS_LIST, RESOURCE_UPDATED, RESOURCES_CHANGED, RESOURCES_LIST, RESOURCES_READ,
    TEMPLATES_LIST, TOOLS_CALL, TOOLS_CHANGED, TOOLS_LIST,
};
use super::settings::policy::CacheRule;
use super::splice;
use crate::ports::{Cache, CacheFuture};

/// The cache, as sessions use it.
pub struct Answers {
    pub kept: Arc<dyn Cache>,
    /// No key of another process is ours: versions of secrets are counted anew by each.
    mark: u64,
}

/// Where the answer to a request is, or is to be.
pub struct Keys {
    pub own: String,
    /// For everybody.
    pub public: String,
    /// What the configuration says.
    rule: Option<CacheRule>,
    /// The group, and how often it had changed.
    seen: (&'static str, u64),
}

/// How long an answer may be kept, and for whom.
#[derive(Debug, PartialEq, Eq)]
pub struct Keep {
    pub ttl: Duration,
    pub public: bool,
}

/// By what those know one another who may find the same answers.
pub enum Common {
    /// By nothing: they are of one process, which has a mark and counts versions.
    Process,
    /// By what their services are given, so that versions mean the same to all.
    Shared([u8; 32]),
    /// It is not known now, so nothing is found and nothing kept.
    Unknown,
}

/// What an answer depends on besides the request.
pub struct Around<'a> {
    pub common: Common,
    pub service: &'a str,
    pub peer: Peer,
    /// The protocol that a legacy session has agreed on.
    pub version: Option<&'static str>,
    /// Of the settings.
    pub revision: u64,
    /// `item@version` of each secret that the service is given.
    pub secrets: &'a [String],
    pub changes: &'a Changes,
}

/// How often a server has said that something is not what it was; shared by the sessions of a service.
#[derive(Default)]
pub struct Changes {
    tools: AtomicU64,
    prompts: AtomicU64,
    resources: AtomicU64,
}

impl Changes {
    /// Notes a notification of the server. The group of keys that are void now, if it is about such a change.
    pub fn heard(&self, method: &str) -> Option<&'static str> {
        let (count, group) = match method {
            TOOLS_CHANGED => (&self.tools, "tools"),
            PROMPTS_CHANGED => (&self.prompts, "prompts"),
            RESOURCES_CHANGED | RESOURCE_UPDATED => (&self.resources, "resources"),
            _ => return None,
        };
        count.fetch_add(1, Ordering::Relaxed);
        Some(group)
    }

    fn of(&self, group: &str) -> u64 {
        let count = match group {
            "tools" => &self.tools,
            "prompts" => &self.prompts,
            "resources" => &self.resources,
            _ => return 0,
        };
        count.load(Ordering::Relaxed)
    }
}

impl Answers {
    pub fn new(kept: Arc<dyn Cache>, mark: u64) -> Self {
        Self { kept, mark }
    }

    /// The keys of a request; `text` is all of it. `None`: its answer is not kept.
    pub fn keys(
        &self,
        request: &Request<'_>,
        text: &str,
        rule: Option<CacheRule>,
        around: &Around<'_>,
    ) -> Option<Keys> {
        let group = group_of(&request.method)?;
        let params = serde_json::from_str::<Members<'_>>(text).ok()?.0.remove("params").map(RawValue::get);
        let mut common = Context::new(&SHA256);
        for text in [around.service, group, &request.method, around.version.unwrap_or_default()] {
            add(&mut common, text);
        }
        match &around.common {
            Common::Unknown => return None,
            Common::Shared(digest) => common.update(digest),
            Common::Process => {
                for number in [self.mark, around.revision, around.changes.of(group)] {
                    common.update(&number.to_be_bytes());
                }
                around.secrets.iter().for_each(|version| add(&mut common, version));
            }
        }
        add_params(&mut common, params.unwrap_or("{}"))?;
        let name = |asker: &str| {
            let mut digest = common.clone();
            add(&mut digest, asker);
            let mut name = format!("{}{group}/", prefix(around.service));
            for byte in digest.finish().as_ref() {
                // Writing to a text does not fail.
                let _ = write!(name, "{byte:02x}");
            }
            name
        };
        let own = match (around.peer.uid, around.peer.address) {
            (Some(uid), _) => format!("uid {uid}"),
            (None, Some(_)) => "tcp".to_owned(),
            (None, None) => "other".to_owned(),
        };
        let seen = (group, around.changes.of(group));
        Some(Keys { own: name(&own), public: name("public"), rule, seen })
    }

    /// `stamp` is what the service is given: its settings, and its secrets.
    pub fn common(&self, stamp: impl FnOnce() -> Option<Zeroizing<Vec<u8>>>) -> Common {
        if !self.kept.outlives() {
            return Common::Process;
        }
        stamp().and_then(|stamp| self.kept.digest(&stamp)).map_or(Common::Unknown, Common::Shared)
    }

    /// What is kept for the keys, with its age.
    pub fn look(&self, keys: &Keys) -> impl Future<Output = Option<(Bytes, Duration)>> + Send + use<> {
        let (kept, own, public) = (self.kept.clone(), keys.own.clone(), keys.public.clone());
        let shared = keys.rule.is_none_or(|rule| rule.public);
        async move {
            let found = match kept.get(&own).await {
                None if shared => kept.get(&public).await,
                found => found,
            };
            unpacked(&found?)
        }
    }

    /// Forgets one group of a service's answers.
    pub fn forget(&self, service: &str, group: &str) -> CacheFuture<()> {
        self.kept.clear(&format!("{}{group}/", prefix(service)))
    }

    /// Forgets what was answered under other settings or with other secrets. Where answers outlive the process and others may use them, they are
    /// not found by whoever has other ones, and end by themselves.
    pub fn forget_all(&self, service: &str) -> CacheFuture<()> {
        if self.kept.outlives() {
            return Box::pin(std::future::ready(()));
        }
        self.kept.clear(&prefix(service))
    }

    pub fn keep(&self, keys: &Keys, keep: &Keep, result: &str) -> CacheFuture<()> {
        let key = if keep.public { &keys.public } else { &keys.own };
        self.kept.set(key, packed(result), keep.ttl)
    }
}

impl Keys {
    /// The server has said since that such answers are not what they were.
    pub fn is_void(&self, changes: &Changes) -> bool {
        changes.of(self.seen.0) != self.seen.1
    }

    /// Whether a result may be kept.
    pub fn allow(&self, result: &str, is_modern: bool) -> Option<Keep> {
        let Members(members) = serde_json::from_str(result).ok()?;
        let text = |key: &str| members.get(key).and_then(|raw| Field(raw.get()).text());
        if text("resultType").is_some_and(|kind| kind != "complete")
            || members.get("isError").is_some_and(|raw| raw.get() != "false")
        {
            return None;
        }
        let said_private = members.contains_key("cacheScope") && text("cacheScope").as_deref() != Some("public");
        if let Some(rule) = self.rule {
            return Some(Keep { ttl: rule.ttl, public: rule.public && !said_private });
        }
        let millis: u64 = members.get("ttlMs").filter(|_| is_modern)?.get().parse().ok()?;
        let public = text("cacheScope").as_deref() == Some("public");
        (millis > 0).then_some(Keep { ttl: Duration::from_millis(millis), public })
    }
}

/// What all keys of a service begin with.
fn prefix(service: &str) -> String {
    format!("{service}/")
}

/// Whether the server may say how long the answer to this may be kept.
pub fn may_have_ttl(method: &str) -> bool {
    method != TOOLS_CALL && group_of(method).is_some()
}

/// The result with what is left of the time that its server has given it.
pub fn aged(result: &str, age: Duration) -> Cow<'_, str> {
    let left = || {
        let Members(members) = serde_json::from_str(result).ok()?;
        let raw = members.get("ttlMs")?.get();
        let left = Duration::from_millis(raw.parse().ok()?).saturating_sub(age).as_millis();
        splice::replace(result, Field(raw), &left.to_string())
    };
    left().map_or(Cow::Borrowed(result), Cow::Owned)
}

fn group_of(method: &str) -> Option<&'static str> {
    Some(match method {
        TOOLS_CALL | TOOLS_LIST => "tools",
        PROMPTS_LIST => "prompts",
        RESOURCES_LIST | TEMPLATES_LIST | RESOURCES_READ => "resources",
        DISCOVER => "server",
        _ => return None,
    })
}

/// When it was kept (milliseconds since the epoch, 8 bytes), then the result.
fn packed(result: &str) -> Bytes {
    let mut bytes = Vec::with_capacity(8 + result.len());
    bytes.extend_from_slice(&millis().to_be_bytes());
    bytes.extend_from_slice(result.as_bytes());
    bytes.into()
}

fn unpacked(bytes: &Bytes) -> Option<(Bytes, Duration)> {
    let kept = u64::from_be_bytes(*bytes.first_chunk::<8>()?);
    Some((bytes.slice(8..), Duration::from_millis(millis().saturating_sub(kept))))
}

fn millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The parameters without what only says which request it is. `None`: its answer depends on more, or a key occurs twice.
fn add_params(digest: &mut Context, params: &str) -> Option<()> {
    let Members(members) = serde_json::from_str(params).ok()?;
    for (key, value) in members {
        match &*key {
            "inputResponses" | "requestState" | "task" => return None,
            "_meta" => {
                let Members(meta) = serde_json::from_str(value.get()).ok()?;
                for (key, value) in meta.into_iter().filter(|(key, _)| !PASSING.contains(&&**key)) {
                    add(digest, "_meta");
                    add(digest, &key);
                    add_value(digest, value.get())?;
                }
            }
            _ => {
                add(digest, &key);
                add_value(digest, value.get())?;
            }
        }
    }
    Some(())
}

/// Adds a value so that spaces, escapes and the order of members do not matter, and everything else does.
fn add_value(digest: &mut Context, raw: &str) -> Option<()> {
    match raw.as_bytes().first()? {
        b'{' => {
            let Members(members) = serde_json::from_str(raw).ok()?;
            digest.update(b"{");
            for (key, value) in members {
                add(digest, &key);
                add_value(digest, value.get())?;
            }
            digest.update(b"}");
        }
        b'[' => {
            digest.update(b"[");
            for value in serde_json::from_str::<Vec<&RawValue>>(raw).ok()? {
                add_value(digest, value.get())?;
            }
            digest.update(b"]");
        }
        b'"' => {
            digest.update(b"s");
            add(digest, &Field(raw).text()?);
        }
        _ => {
            digest.update(b"v");
            add(digest, raw);
        }
    }
    Some(())
}

fn add(digest: &mut Context, text: &str) {
    digest.update(&(text.len() as u64).to_be_bytes());
    digest.update(text.as_bytes());
}

/// The members of an object, each key once.
struct Members<'a>(BTreeMap<Cow<'a, str>, &'a RawValue>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Once;

        impl<'de> Visitor<'de> for Once {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
                    if members.insert(key, value).is_some() {
                        return Err(A::Error::custom("a key occurs twice"));
                    }
                }
                Ok(Members(members))
            }
        }
        reader.deserialize_map(Once)
    }
}

/// Keys of `_meta` that say which request it is, not what it wants.
const PASSING: [&str; 4] = ["progressToken", "traceparent", "tracestate", "baggage"];

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
