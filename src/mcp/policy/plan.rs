//! What holds for the way of one request, and what is to be said of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::Tool;
use super::rules::Kind;
use crate::mcp::breaker::Probe;
use crate::mcp::cache::Keys;
use crate::mcp::settings::policy::CacheRule;

/// Kept with the call, so that it ends with it.
#[derive(Default)]
pub struct Plan {
    /// The rule that refused the request, would have, or has cut its result.
    pub rule: Option<String>,
    /// It goes its way because nothing is refused for now.
    pub would_deny: bool,
    /// What is said of the tool that is called.
    pub tool: Option<Arc<Tool>>,
    pub timeout: Option<Duration>,
    pub cache: Option<CacheRule>,
    /// Of a resource's content, and the pattern that says so.
    pub max_bytes: Option<(usize, String)>,
    /// The answer is a list that is to be edited.
    pub list: Option<Kind>,
    /// The name that the client knows the tool by.
    pub alias: Option<Box<str>>,
    pub caching: Option<Caching>,
    /// The room that the call takes among those of its tool.
    pub permit: Option<OwnedSemaphorePermit>,
    /// It is the one request by which a breaker finds out whether its service works again.
    pub probe: Option<Probe>,
}

/// The part that the cache has in a request.
pub struct Caching {
    pub keys: Keys,
    /// It was answered from there.
    pub hit: bool,
}

impl Plan {
    /// Whether there is anything in it.
    pub fn matters(&self) -> bool {
        self.rule.is_some()
            || self.would_deny
            || self.tool.is_some()
            || self.timeout.is_some()
            || self.cache.is_some()
            || self.max_bytes.is_some()
            || self.list.is_some()
            || self.alias.is_some()
    }
}
