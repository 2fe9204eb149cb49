//! What a service file says about who may use what, within which bounds; checked.

use std::num::NonZeroU32;
use std::time::Duration;

use super::pattern::Pattern;

/// How a service is to be treated. The default allows everything.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PolicySettings {
    pub rules: Rules,
    /// Rules that hold for some peers besides; the first entry that a peer belongs to is the one.
    pub peers: Vec<PeerRules>,
    /// What would be refused is put on record, and passes.
    pub dry_run: bool,
    /// Arguments are checked against the schemas of their tools, unless a tool says otherwise.
    pub validate_arguments: bool,
    /// Answers are not kept just because the server says that they may be.
    pub ignore_server_ttl: bool,
    /// The first that matches holds; one with the tool's exact name comes before all others.
    pub tools: Vec<ToolSettings>,
    /// The first that matches holds.
    pub resources: Vec<ResourceSettings>,
    /// `None`: failures are not counted.
    pub breaker: Option<BreakerSettings>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rules {
    pub allow: RuleSet,
    /// Wins over `allow`.
    pub deny: RuleSet,
}

/// Patterns for each kind of thing. `None`: it says nothing about the kind.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RuleSet {
    pub tools: Option<Vec<Pattern>>,
    pub prompts: Option<Vec<Pattern>>,
    pub resources: Option<Vec<Pattern>>,
    pub peers: Option<Vec<PeerName>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PeerRules {
    /// `None`: everybody.
    pub peers: Option<Vec<PeerName>>,
    /// Of these, `peers` is not set.
    pub rules: Rules,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerName {
    /// The user of a local client.
    Uid(u32),
    /// Whoever has shown the token of `transports.http`.
    Tcp,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ToolSettings {
    pub name: Pattern,
    /// For clients, in place of the server's name; only of a tool that is named exactly.
    pub rename: Option<String>,
    /// In place of the server's.
    pub description: Option<String>,
    /// Not in lists; it can be called.
    pub hide: bool,
    /// In place of the service's.
    pub timeout: Option<Duration>,
    pub cache: Option<CacheRule>,
    /// Calls of all clients together that are with the server; more wait.
    pub concurrency: Option<u32>,
    /// Calls of all clients together; more are refused.
    pub rate: Option<Rate>,
    pub bounds: Bounds,
    /// In place of what holds for the service.
    pub validate_arguments: Option<bool>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ResourceSettings {
    pub pattern: Pattern,
    /// In place of the service's.
    pub timeout: Option<Duration>,
    pub cache: Option<CacheRule>,
    pub max_bytes: Option<usize>,
}

/// How large a result may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    pub max_bytes: Option<usize>,
    /// Of each list in a result.
    pub max_rows: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheRule {
    pub ttl: Duration,
    /// Whoever may ask gets what another one was answered.
    pub public: bool,
}

/// So many in each period; as many may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub count: NonZeroU32,
    pub period: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Failures in a row.
    pub failure_threshold: u32,
    /// How long nothing is tried then.
    pub reset_timeout: Duration,
}
