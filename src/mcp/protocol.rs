//! The words of the Model Context Protocol that mcpeg must know: versions, methods, and the error codes that it answers with.
//!
//! It must not know transports or messages. The names are those of the specification (modelcontextprotocol.io, versions
//! 2024-11-05 to 2026-07-28). Invariant: none of our own error codes lies within -32020..-32099, which the protocol keeps.

/// The first version of the modern era: no `initialize`, the version stands in `_meta` of each request.
pub const MODERN: &str = "2026-07-28";

/// The versions of the legacy era, newest first. What a client asks for is chosen if it is one of them, else the newest.
pub const LEGACY: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

/// The keys of the modern era in `params._meta`.
pub const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
pub const META_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
pub const META_SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";
pub const META_CLIENT: &str = "io.modelcontextprotocol/clientInfo";
pub const META_SERVER: &str = "io.modelcontextprotocol/serverInfo";
pub const META_LEVEL: &str = "io.modelcontextprotocol/logLevel";

/// Which of the two protocols a peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Era {
    /// `initialize`, then a session.
    Legacy,
    /// Each request stands by itself.
    Modern,
}

/// JSON-RPC's own codes, then ours.
pub mod code {
    pub const PARSE_ERROR: i32 = -32700;
    pub const INVALID_REQUEST: i32 = -32600;
    pub const METHOD_NOT_FOUND: i32 = -32601;
    pub const INVALID_PARAMS: i32 = -32602;
    /// The protocol's own, for a header that says something else than the message.
    pub const HEADER_MISMATCH: i32 = -32020;
    /// The protocol's own, for a client that lacks a capability which the request wants.
    pub const MISSING_CAPABILITY: i32 = -32021;
    /// The protocol's own, for a version of the modern era that a server does not speak.
    pub const UNSUPPORTED_VERSION: i32 = -32022;
    /// The upstream could not be started or reached, died, or broke the protocol.
    pub const UPSTREAM_FAILED: i32 = -32010;
    /// No answer within the service's `timeout`.
    pub const TIMED_OUT: i32 = -32011;
    /// A bound of the configuration was reached.
    pub const TOO_MANY: i32 = -32012;
    /// `audit.required` is set and the event could not be written.
    pub const NOT_AUDITED: i32 = -32013;
    /// The user of the connection is not among those that may connect.
    pub const NOT_ALLOWED: i32 = -32014;
    /// The answer holds a secret, and `security.leak_guard` is `block`.
    pub const LEAK: i32 = -32015;
}

pub const INITIALIZE: &str = "initialize";
pub const INITIALIZED: &str = "notifications/initialized";
pub const CANCELLED: &str = "notifications/cancelled";
pub const PROGRESS: &str = "notifications/progress";
pub const DISCOVER: &str = "server/discover";
pub const PING: &str = "ping";
pub const TOOLS_LIST: &str = "tools/list";
pub const TOOLS_CALL: &str = "tools/call";
pub const PROMPTS_LIST: &str = "prompts/list";
pub const PROMPTS_GET: &str = "prompts/get";
pub const RESOURCES_LIST: &str = "resources/list";
pub const TEMPLATES_LIST: &str = "resources/templates/list";
pub const RESOURCES_READ: &str = "resources/read";
pub const SUBSCRIBE: &str = "resources/subscribe";
pub const UNSUBSCRIBE: &str = "resources/unsubscribe";
pub const TOOLS_CHANGED: &str = "notifications/tools/list_changed";
pub const PROMPTS_CHANGED: &str = "notifications/prompts/list_changed";
pub const RESOURCES_CHANGED: &str = "notifications/resources/list_changed";
pub const RESOURCE_UPDATED: &str = "notifications/resources/updated";
pub const SET_LEVEL: &str = "logging/setLevel";
pub const COMPLETE: &str = "completion/complete";
/// A request of the modern era whose answer comes only when the subscription ends.
pub const LISTEN: &str = "subscriptions/listen";

/// A version as a label of bounded variety: `None` for one that is not the protocol's.
pub fn known_version(version: &str) -> Option<&'static str> {
    LEGACY.into_iter().chain([MODERN]).find(|known| *known == version)
}

/// The name of a method as a label of bounded variety: a method that the protocol knows, else `other`.
pub fn method_label(method: &str) -> &'static str {
    KNOWN.iter().find(|known| **known == method).copied().unwrap_or("other")
}

/// Whether a request may be sent a second time when it is not known what became of the first.
pub fn is_safe_to_repeat(method: &str) -> bool {
    SAFE.contains(&method)
}

/// Whether the protocol has the name of a tool or a prompt, or an address, in the parameters, by which the request is judged.
pub fn names_a_subject(method: &str) -> bool {
    matches!(method, TOOLS_CALL | PROMPTS_GET | RESOURCES_READ | SUBSCRIBE | UNSUBSCRIBE)
}

const SAFE: [&str; 9] =
    [TOOLS_LIST, PROMPTS_LIST, PROMPTS_GET, RESOURCES_LIST, TEMPLATES_LIST, RESOURCES_READ, PING, DISCOVER, COMPLETE];

const KNOWN: [&str; 26] = [
    TOOLS_CALL,
    TOOLS_LIST,
    INITIALIZE,
    INITIALIZED,
    CANCELLED,
    PROGRESS,
    DISCOVER,
    PING,
    PROMPTS_LIST,
    PROMPTS_GET,
    RESOURCES_LIST,
    TEMPLATES_LIST,
    RESOURCES_READ,
    SUBSCRIBE,
    UNSUBSCRIBE,
    SET_LEVEL,
    LISTEN,
    COMPLETE,
    "roots/list",
    "sampling/createMessage",
    "elicitation/create",
    "tasks/get",
    "tasks/list",
    "tasks/result",
    "tasks/cancel",
    "tasks/update",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_codes_keep_out_of_the_protocols_range() {
        for ours in [code::UPSTREAM_FAILED, code::TIMED_OUT, code::TOO_MANY, code::NOT_AUDITED, code::NOT_ALLOWED] {
            assert!(!(-32099..=-32020).contains(&ours), "{ours}");
            assert!((-32099..=-32000).contains(&ours), "{ours} is not a server error");
        }
    }

    #[test]
    fn an_unknown_method_has_one_label_and_is_never_repeated() {
        assert_eq!(method_label("tools/call"), "tools/call");
        assert_eq!(method_label("vendor/anything"), "other");
        assert!(!is_safe_to_repeat("tools/call"));
        assert!(!is_safe_to_repeat("vendor/anything"));
    }
}
