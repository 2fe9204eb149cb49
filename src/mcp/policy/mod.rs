//! Decides whether a request may go to its upstream, and what holds for its way: time, rate, room, and what the client sees of lists.
//!
//! `decide` keeps the bounds that hold for every client. A `Policy` is what one service file says, with the state that all sessions of the
//! service share; it is made anew when the service's settings change. Nothing here sends, waits or records: sessions do.
//!
//! Invariants: a request that no rule is about costs a look at its method; a body is only read when a rule needs it; what is hidden from
//! lists by a rule is refused by the same rule.

mod arguments;
mod judge;
mod limits;
mod lists;
mod plan;
mod results;
mod rules;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use self::arguments::Schemas;
pub use self::limits::Limiter;
use self::lists::{Edit, Item};
pub use self::plan::{Caching, Plan};
pub use self::results::{Bounded, tool_error};
use self::rules::{Kind, Subject};
use super::breaker::Breaker;
use super::call::Peer;
use super::message::Request;
use super::protocol::code;
use super::settings::Limits;
use super::settings::policy::{PolicySettings, ResourceSettings, ToolSettings};

/// Why a request is refused, before anything was tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Denial {
    pub code: i32,
    /// For whoever sent the request.
    pub message: String,
    /// The value of `error.type`.
    pub kind: &'static str,
    /// The rule of the service file, if it was one.
    pub rule: Option<String>,
    /// More of it for a program.
    pub details: Option<(&'static str, u64)>,
    /// It is told as the result of a tool, so that the model reads it and may do better.
    pub as_result: bool,
}

impl Denial {
    pub fn new(code: i32, kind: &'static str, message: String) -> Self {
        Self { code, message, kind, rule: None, details: None, as_result: false }
    }
}

/// The bounds of every client. `in_flight`: its requests that are not answered yet.
pub fn decide(request: &Request<'_>, in_flight: usize, limits: &Limits) -> Result<(), Denial> {
    if in_flight >= limits.max_in_flight {
        let message = format!("{in_flight} requests of this connection are not answered yet, which is the limit");
        return Err(Denial::new(code::TOO_MANY, "too_many_in_flight", message));
    }
    let longest = [request.params.name, request.params.uri].into_iter().flatten().map(|field| field.raw().len()).max();
    if longest.is_some_and(|length| length > MAX_NAME_BYTES) {
        let message = format!("\"name\" or \"uri\" is longer than {MAX_NAME_BYTES} bytes");
        return Err(Denial::new(code::INVALID_PARAMS, "name_too_long", message));
    }
    Ok(())
}

/// What one service file says, and what its sessions share of it.
pub struct Policy {
    service: Arc<str>,
    settings: PolicySettings,
    tools: Vec<Arc<Tool>>,
    /// The names that clients know renamed tools by, and the tools' own.
    renamed: HashMap<String, String>,
    schemas: Schemas,
    /// `None`: failures are not counted.
    pub breaker: Option<Arc<Breaker>>,
    /// No rule is about any request.
    plain: bool,
}

/// What is said of some tools, and what their calls share.
pub struct Tool {
    pub settings: ToolSettings,
    limiter: Option<Limiter>,
    pub room: Option<Arc<Semaphore>>,
}

impl Tool {
    fn new(settings: ToolSettings) -> Self {
        let room = settings.concurrency.map(|room| Arc::new(Semaphore::new(room as usize)));
        Self { limiter: settings.rate.map(Limiter::new), room, settings }
    }

    /// The name of one of its rules.
    pub fn rule(&self, key: &str) -> String {
        format!("tools.{}.{key}", self.settings.name.as_str())
    }

    /// The bound on how often it is called.
    pub fn limiter(&self) -> Option<&Limiter> {
        self.limiter.as_ref()
    }

    /// One call more, if the rate allows it.
    pub fn take_turn(&self) -> Result<(), Duration> {
        self.limiter.as_ref().map_or(Ok(()), Limiter::take)
    }
}

impl Policy {
    /// `before`: what the service had until now; its breaker goes on if it is to be the same, and tries again at once.
    pub fn new(service: Arc<str>, settings: PolicySettings, before: Option<&Self>) -> Self {
        let kept = before.filter(|before| before.settings.breaker == settings.breaker);
        let breaker = match kept {
            Some(kept) => kept.breaker.clone().inspect(|breaker| breaker.try_again()),
            None => settings.breaker.map(|settings| Arc::new(Breaker::new(settings))),
        };
        let renamed = |tool: &ToolSettings| Some((tool.rename.clone()?, tool.name.literal()?.to_owned()));
        let nothing = PolicySettings {
            breaker: settings.breaker,
            ignore_server_ttl: settings.ignore_server_ttl,
            dry_run: settings.dry_run,
            ..PolicySettings::default()
        };
        Self {
            service,
            tools: settings.tools.iter().cloned().map(|tool| Arc::new(Tool::new(tool))).collect(),
            renamed: settings.tools.iter().filter_map(renamed).collect(),
            schemas: Schemas::default(),
            breaker,
            plain: settings == nothing,
            settings,
        }
    }

    /// Why the peer may not even see the service.
    pub fn refuses_peer(&self, peer: Peer) -> Option<Denial> {
        if self.plain || self.settings.dry_run { None } else { self.check_peer(peer).err() }
    }

    /// Whether the server's own word on how long its answers may be kept counts.
    pub fn honours_server_ttl(&self) -> bool {
        !self.settings.ignore_server_ttl
    }

    /// Refuses, or notes what would have been refused.
    pub fn refuse(&self, denial: Denial, plan: &mut Plan) -> Result<(), Denial> {
        if !self.settings.dry_run {
            return Err(denial);
        }
        plan.would_deny = true;
        plan.rule = plan.rule.take().or(denial.rule).or_else(|| Some(denial.kind.to_owned()));
        Ok(())
    }

    /// A list as the peer may see it, with what it tells learned; `None`: as it is.
    pub fn edited(&self, list: Kind, result: &str, peer: Peer) -> Option<String> {
        lists::edited(result, list, |name, item| self.edit(list, name, item, peer))
    }

    /// Whether the client may be told of this address.
    pub fn tells_of(&self, uri: &str, peer: Peer) -> bool {
        self.plain
            || self.settings.dry_run
            || rules::refuses(&self.settings, peer, Subject { kind: Kind::Resources, name: uri }).is_none()
    }

    fn edit(&self, list: Kind, name: &str, item: &Item<'_>, peer: Peer) -> Edit<'_> {
        let tool = if list == Kind::Tools { self.tool(name) } else { None };
        if list == Kind::Tools
            && self.validates(tool)
            && let Some(schema) = item.schema()
        {
            self.schemas.learn(name, schema);
        }
        if !self.settings.dry_run && rules::refuses(&self.settings, peer, Subject { kind: list, name }).is_some() {
            return Edit::Drop;
        }
        match tool.map(|tool| &tool.settings) {
            Some(tool) if tool.hide => Edit::Drop,
            Some(ToolSettings { rename, description, .. }) if rename.is_some() || description.is_some() => {
                Edit::Change { name: rename.as_deref(), description: description.as_deref() }
            }
            _ => Edit::Keep,
        }
    }

    /// Whether anything in such a list may have to change, or be learned.
    fn edits(&self, list: Kind) -> bool {
        let of_tools = list == Kind::Tools && (!self.tools.is_empty() || self.settings.validate_arguments);
        of_tools || rules::concern(&self.settings, list)
    }

    fn tool(&self, name: &str) -> Option<&Arc<Tool>> {
        let exact = self.tools.iter().find(|tool| tool.settings.name.literal() == Some(name));
        exact.or_else(|| self.tools.iter().find(|tool| tool.settings.name.matches(name)))
    }

    fn resource(&self, uri: &str) -> Option<&ResourceSettings> {
        self.settings.resources.iter().find(|resource| resource.pattern.matches(uri))
    }

    fn validates(&self, tool: Option<&Arc<Tool>>) -> bool {
        tool.and_then(|tool| tool.settings.validate_arguments).unwrap_or(self.settings.validate_arguments)
    }

    /// Too many calls of a tool.
    pub fn too_often(&self, tool: &Tool, name: &str, wait: Duration) -> Denial {
        let message = format!(
            "service {}: the tool {name:?} is called too often; again in {} ms",
            self.service,
            wait.as_millis()
        );
        let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Denial {
            rule: Some(tool.rule("rate")),
            details: Some(("retry_after_ms", wait)),
            ..Denial::new(code::TOO_MANY, "rate_limited", message)
        }
    }

    /// The service's breaker is open.
    pub fn circuit_open(&self, wait: Duration) -> Denial {
        let message = format!(
            "service {}: it has failed too often and is not tried for another {} ms (circuit_breaker)",
            self.service,
            wait.as_millis()
        );
        let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Denial {
            rule: Some("circuit_breaker".to_owned()),
            details: Some(("retry_after_ms", wait)),
            ..Denial::new(code::UPSTREAM_FAILED, "circuit_open", message)
        }
    }

    /// The result in the bounds of its tool, or of its resource. `None`: it keeps to them.
    pub fn bounded(&self, plan: &mut Plan, name: &str, result: &str) -> Option<Bounded> {
        results::bounded(&self.service, self.settings.dry_run, plan, name, result)
    }
}

const MAX_NAME_BYTES: usize = 8 * 1024;

#[cfg(test)]
mod tests;
