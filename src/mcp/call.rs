//! One request of a client, from its arrival to its end, and the record of it: audit event, metrics, span.
//!
//! Invariant: a `Call` is settled exactly once, and before its answer is written. Arguments and results are never looked at, but for keyed
//! digests of them where `audit.digest` wants that.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::breaker::{Change, State};
use super::digest::{Digested, Digests};
use super::metrics::{Metrics, Operation};
use super::policy::{Denial, Plan};
use super::protocol::{PROMPTS_GET, RESOURCES_READ, TOOLS_CALL, code, known_version, method_label, names_a_subject};
use super::trace::{self, RequestSpan, Subject, clip};
use super::upstream::Failure;
use crate::mcp::message::{Field, Request};
use crate::output::Shipping;
use crate::ports::{AuditEvent, AuditLog, AuditRefused, Outcome};

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Of a local socket's client.
    pub uid: Option<u32>,
    pub pid: Option<i32>,
    /// Of a client over TCP, which has shown the token.
    pub address: Option<IpAddr>,
}

impl Peer {
    fn onto(self, event: AuditEvent) -> AuditEvent {
        event
            .with_some("mcpeg.peer.uid", self.uid)
            .with_some("mcpeg.peer.pid", self.pid.map(i64::from))
            .with_some("network.peer.address", self.address.map(|address| address.to_string()))
    }
}

pub struct Call {
    /// As it was written.
    pub id: Box<str>,
    pub method: &'static str,
    /// Of a method that the protocol does not know.
    vendor_method: Option<Box<str>>,
    /// The tool, prompt or nothing.
    called: Option<Box<str>>,
    started: Instant,
    sent: Option<Instant>,
    pub span: RequestSpan,
    /// `github@3`: the secrets that were put in for this request.
    pub versions: Arc<[String]>,
    /// The address that is read; nothing for other methods.
    pub uri: Option<Box<str>>,
    /// The request is one of the modern era.
    pub is_modern: bool,
    /// What it may take.
    pub timeout: Option<Duration>,
    /// What policy and cache have to do with it, if anything.
    pub plan: Option<Box<Plan>>,
    pub arguments: Option<Box<Digested>>,
    pub result: Option<Box<Digested>>,
}

/// How a request ended.
#[derive(Debug)]
pub enum Ending<'a> {
    /// The upstream answered with a result.
    Answered {
        tool_error: bool,
    },
    /// The upstream, or mcpeg in its place, answered with an error of the protocol.
    ErrorAnswer {
        code: Option<i64>,
    },
    /// The upstream could not answer.
    Failed(&'a Failure),
    TimedOut,
    /// The client did not want the answer any more.
    Cancelled,
    /// The client closed its connection.
    ClientGone,
    /// Policy or a bound: nothing was tried.
    Denied {
        kind: &'static str,
    },
}

impl Call {
    /// `version`: of the protocol, as the client's legacy session has agreed on it.
    pub fn begin(request: &Request<'_>, service: &str, version: Option<&'static str>) -> Self {
        let method = method_label(&request.method);
        let called = request.called_name();
        let parent = request.traceparent();
        let uri = request.params.uri.and_then(Field::text).filter(|_| names_a_subject(method));
        let subject = Subject {
            method: &request.method,
            name: called.as_deref(),
            uri: uri.as_deref(),
            service,
            id: request.id.raw(),
            version: request.modern_version().and_then(|version| known_version(&version)).or(version),
        };
        let span = trace::start(subject, parent.as_deref());
        Self {
            id: request.id.raw().into(),
            method,
            vendor_method: (method == "other").then(|| clip(&request.method).into()),
            called: called.map(|name| clip(&name).into()),
            started: Instant::now(),
            sent: None,
            span,
            versions: Arc::default(),
            uri: uri.filter(|_| method == RESOURCES_READ).map(|uri| clip(&uri).into()),
            is_modern: request.modern_version().is_some(),
            timeout: None,
            plan: None,
            arguments: None,
            result: None,
        }
    }

    /// The request is on its way to the upstream.
    pub fn sent(&mut self) {
        self.sent = Some(Instant::now());
    }

    /// A rule refuses it.
    pub fn refused(&mut self, denial: &Denial) {
        if denial.rule.is_some() {
            let plan = self.plan.get_or_insert_default();
            plan.rule.clone_from(&denial.rule);
            plan.would_deny = false;
        }
    }

    /// What has become of it by policy: `allow`, `deny`, or `would_deny`.
    fn decision(&self, outcome: Outcome) -> &'static str {
        match outcome {
            Outcome::Denied => "deny",
            _ if self.plan.as_ref().is_some_and(|plan| plan.would_deny) => "would_deny",
            _ => "allow",
        }
    }

    fn rule(&self) -> Option<&str> {
        self.plan.as_ref()?.rule.as_deref()
    }

    /// Whether it was answered from the cache, if it could have been.
    fn cached(&self) -> Option<&'static str> {
        let caching = self.plan.as_ref()?.caching.as_ref()?;
        Some(if caching.hit { "hit" } else { "miss" })
    }

    pub fn tool(&self) -> Option<&str> {
        (self.method == TOOLS_CALL).then_some(self.called.as_deref()).flatten()
    }

    fn prompt(&self) -> Option<&str> {
        (self.method == PROMPTS_GET).then_some(self.called.as_deref()).flatten()
    }
}

impl Ending<'_> {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Answered { tool_error: false } => Outcome::Success,
            Self::Denied { .. } => Outcome::Denied,
            _ => Outcome::Failure,
        }
    }

    /// The code of an error of the protocol, of bounded variety.
    fn status(&self) -> Option<i64> {
        match self {
            Self::ErrorAnswer { code } => code.filter(|code| (-32800..=-32000).contains(code)),
            Self::Failed(failure) => Some(failure.code.into()),
            Self::TimedOut => Some(code::TIMED_OUT.into()),
            Self::Answered { .. } | Self::Cancelled | Self::ClientGone | Self::Denied { .. } => None,
        }
    }

    /// The value of `error.type`.
    fn error(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Answered { tool_error: false } => return None,
            Self::Answered { tool_error: true } => "tool_error".into(),
            Self::ErrorAnswer { .. } => {
                self.status().map_or_else(|| "rpc_error".into(), |code| code.to_string().into())
            }
            Self::Failed(failure) => failure.kind.into(),
            Self::TimedOut => "timeout".into(),
            Self::Cancelled => "cancelled".into(),
            Self::ClientGone => "client_gone".into(),
            Self::Denied { kind } => (*kind).into(),
        })
    }
}

/// Writes down what became of requests and connections.
pub struct Recorder {
    pub audit: Arc<dyn AuditLog>,
    pub metrics: Metrics,
    /// For what children print.
    pub shipping: Shipping,
    pub digests: Digests,
}

impl Recorder {
    /// Records the end of a call. On `Err` the caller must give the client an error in place of the answer.
    pub fn settle(&self, call: &Call, service: &Arc<str>, peer: Peer, ending: &Ending<'_>) -> Result<(), AuditRefused> {
        let now = Instant::now();
        let total = now.duration_since(call.started);
        let error = ending.error();
        let operation = Operation {
            method: call.method,
            service: service.clone(),
            tool: call.tool(),
            prompt: call.prompt(),
            error: error.as_deref(),
            status: ending.status(),
        };
        self.metrics.answered(&operation, total, call.sent.map(|sent| now.duration_since(sent)));
        if let Some(rule) = call.rule() {
            self.metrics.ruled(service, call.decision(ending.outcome()), rule);
        }
        if let Some(found) = call.cached() {
            self.metrics.looked(service, call.method, found);
        }
        call.span.finish(error.as_deref(), ending.status());
        self.audit.record(event(call, service, peer, ending.outcome(), error, total))
    }

    /// Records that a service's breaker has come to another state.
    pub fn breaker_changed(&self, service: &Arc<str>, change: Change) {
        let state = change.state.as_str();
        self.metrics.breaker_changed(service, change.state);
        tracing::warn!(service = &**service, state, failures = change.failures, "the circuit breaker has changed");
        let outcome = if change.state == State::Open { Outcome::Failure } else { Outcome::Success };
        let event = AuditEvent::new("mcp.breaker", outcome)
            .with("mcpeg.service", &**service)
            .with("mcpeg.breaker.state", state)
            .with("mcpeg.breaker.failures", change.failures);
        if let Err(error) = self.audit.record(event) {
            tracing::error!(%error, service = &**service, "a change of the circuit breaker could not be audited");
        }
    }

    /// Records a message that could not even be read.
    pub fn refused(&self, id: Option<&str>, service: &Arc<str>, peer: Peer, kind: &str) -> Result<(), AuditRefused> {
        let event = AuditEvent::new("mcp.request", Outcome::Denied)
            .with("mcpeg.service", &**service)
            .with("mcpeg.decision", "deny")
            .with("error.type", kind)
            .with_some("jsonrpc.request.id", id.map(|id| clip(id.trim_matches('"'))));
        self.audit.record(peer.onto(event))
    }

    /// Records a connection that was not let in. There is nothing to refuse any more if this fails.
    pub fn connection_denied(&self, socket: &str, peer: Peer, kind: &str) {
        let event = AuditEvent::new("mcp.connection", Outcome::Denied)
            .with("mcpeg.service", socket)
            .with("mcpeg.decision", "deny")
            .with("error.type", kind);
        if let Err(error) = self.audit.record(peer.onto(event)) {
            tracing::error!(%error, socket, uid = ?peer.uid, "a refused connection could not be audited");
        }
    }
}

fn event(
    call: &Call,
    service: &str,
    peer: Peer,
    outcome: Outcome,
    error: Option<Cow<'static, str>>,
    total: Duration,
) -> AuditEvent {
    let decision = call.decision(outcome);
    let alias = call.plan.as_ref().and_then(|plan| plan.alias.as_deref());
    let versions = (!call.versions.is_empty()).then(|| call.versions.to_vec());
    let mut event = AuditEvent::new("mcp.request", outcome)
        .with("mcp.method.name", call.vendor_method.as_deref().unwrap_or(call.method))
        .with_some("gen_ai.tool.name", call.tool())
        .with("mcpeg.service", service)
        .with("mcpeg.decision", decision)
        .with_some("mcpeg.rule", call.rule())
        .with_some("mcpeg.cache", call.cached())
        .with_some("mcpeg.tool.alias", alias)
        .with_some("error.type", error.as_deref())
        .with("mcpeg.duration", total.as_secs_f64())
        .with_some("mcpeg.secret.versions", versions)
        .with("jsonrpc.request.id", clip(call.id.trim_matches('"')));
    if call.arguments.is_some() || call.result.is_some() {
        event = digested(event, call);
    }
    event.trace = call.span.ids;
    peer.onto(event)
}

fn digested(event: AuditEvent, call: &Call) -> AuditEvent {
    let (arguments, result) = (call.arguments.as_deref(), call.result.as_deref());
    event
        .with_some("mcpeg.arguments.hmac", arguments.and_then(Digested::hmac))
        .with_some("mcpeg.arguments.hmac_key", arguments.and_then(Digested::key))
        .with_some("mcpeg.result.hmac", result.and_then(Digested::hmac))
        .with_some("mcpeg.result.hmac_key", result.and_then(Digested::key))
        .with_some("mcpeg.hmac_error", arguments.and_then(Digested::error).or(result.and_then(Digested::error)))
}
