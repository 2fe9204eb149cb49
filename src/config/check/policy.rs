//! What a service file says about who may use what, within which bounds, to the MCP domain's policy.

use std::collections::HashMap;

use super::{Check, join, seconds};
use crate::config::raw::mcp::RawServiceFile;
use crate::config::raw::policy::{
    RawBreaker, RawCacheScope, RawPeer, RawPeerName, RawPeerRuleSet, RawResource, RawRules, RawTool,
};
use crate::config::raw::scalar::{RawDuration, RawGlob};
use crate::mcp::settings::pattern::Pattern;
use crate::mcp::settings::policy::{
    Bounds, BreakerSettings, CacheRule, PeerName, PeerRules, PolicySettings, ResourceSettings, RuleSet, Rules,
    ToolSettings,
};

/// Takes its keys out of the service file.
pub fn settings(raw: &mut RawServiceFile, check: &mut Check<'_>) -> PolicySettings {
    let allow = rules(raw.allow.take().unwrap_or_default(), &["allow"], check);
    let deny = rules(raw.deny.take().unwrap_or_default(), &["deny"], check);
    let peers = raw.peers.take().unwrap_or_default();
    let peers = peers.into_iter().enumerate().map(|(index, raw)| {
        let index = index.to_string();
        let path = ["peers", index.as_str()];
        let mut set = |raw: RawPeerRuleSet, key| {
            let RawPeerRuleSet { tools, resources, prompts } = raw;
            rules(RawRules { tools, resources, prompts, peers: None }, &join(&path, &[key]), check)
        };
        PeerRules {
            rules: Rules { allow: set(raw.allow, "allow"), deny: set(raw.deny, "deny") },
            peers: raw.peers.map(names),
        }
    });
    let peers = peers.collect();
    PolicySettings {
        rules: Rules { allow, deny },
        peers,
        dry_run: raw.dry_run.unwrap_or(false),
        validate_arguments: raw.validate_arguments.unwrap_or(false),
        ignore_server_ttl: raw.server_ttl == Some(false),
        tools: tools(raw.tools.take().unwrap_or_default(), check),
        resources: resources(raw.resources.take().unwrap_or_default(), check),
        breaker: raw.circuit_breaker.take().and_then(breaker),
    }
}

fn breaker(raw: RawBreaker) -> Option<BreakerSettings> {
    raw.enabled.unwrap_or(true).then(|| BreakerSettings {
        failure_threshold: raw.failure_threshold.unwrap_or(5),
        reset_timeout: raw.reset_timeout.map_or(seconds(60), |timeout| timeout.0),
    })
}

fn rules(raw: RawRules, path: &[&str], check: &mut Check<'_>) -> RuleSet {
    let globs = |raw: Option<Vec<RawGlob>>| {
        raw.map(|globs| globs.iter().map(|glob| Pattern::glob(&glob.0)).collect::<Vec<_>>())
    };
    let resources = raw.resources.map(|globs| {
        let pattern = |(index, glob): (usize, RawGlob)| {
            let index = index.to_string();
            template(&glob.0, &join(path, &["resources", &index]), check)
        };
        globs.into_iter().enumerate().filter_map(pattern).collect()
    });
    RuleSet { tools: globs(raw.tools), prompts: globs(raw.prompts), resources, peers: raw.peers.map(names) }
}

fn names(raw: Vec<RawPeer>) -> Vec<PeerName> {
    let name = |raw| match raw {
        RawPeer::Uid(uid) => PeerName::Uid(uid),
        RawPeer::Name(RawPeerName::Tcp) => PeerName::Tcp,
    };
    raw.into_iter().map(name).collect()
}

fn template(text: &str, path: &[&str], check: &mut Check<'_>) -> Option<Pattern> {
    match Pattern::template(text) {
        Ok(pattern) => Some(pattern),
        Err(reason) => {
            check.problem(path, format!("not a pattern of addresses: {reason}"));
            None
        }
    }
}

fn tools(raw: Vec<RawTool>, check: &mut Check<'_>) -> Vec<ToolSettings> {
    let mut settings: Vec<ToolSettings> = Vec::new();
    let mut taken: HashMap<String, usize> = HashMap::new();
    for (index, raw) in raw.into_iter().enumerate() {
        let number = index.to_string();
        let at = |key| ["tools", number.as_str(), key];
        let name = Pattern::glob(&raw.name);
        if raw.name.is_empty() {
            check.problem(&at("name"), "a tool's name is not empty");
        } else if settings.iter().any(|before| before.name == name) {
            check.problem(&at("name"), "another entry has this name");
        }
        if let Some(rename) = &raw.rename {
            check_new_name(rename, name.literal(), &at("rename"), check);
            if taken.insert(rename.clone(), index).is_some() {
                check.problem(&at("rename"), "another tool is given this name");
            }
        }
        if raw.description.is_some() && name.literal().is_none() {
            check.problem(&at("description"), "only one tool can be described: `name` is a pattern here");
        }
        let cache = cache(raw.cache_ttl, raw.cache_scope, &at("cache_scope"), check);
        settings.push(ToolSettings {
            name,
            rename: raw.rename,
            description: raw.description,
            hide: raw.hide,
            timeout: raw.timeout.map(|timeout| timeout.0),
            cache,
            concurrency: raw.concurrency,
            rate: raw.rate.map(|rate| rate.0),
            bounds: Bounds {
                max_bytes: raw.max_bytes.map(|size| size.0),
                max_rows: raw.max_rows.map(|rows| rows as usize),
            },
            validate_arguments: raw.validate_arguments,
        });
    }
    for (new, index) in &taken {
        let of_another = |tool: &ToolSettings| tool.name.literal() == Some(new) && tool.rename.is_none();
        if settings.iter().any(of_another) {
            let message = "another tool has this name; give that one a new name too";
            check.problem(&["tools", &index.to_string(), "rename"], message);
        }
    }
    settings
}

/// The names of the protocol: letters, digits and a few signs, so that every client can take them.
fn check_new_name(new: &str, tool: Option<&str>, path: &[&str], check: &mut Check<'_>) {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if new.is_empty() || new.len() > LONGEST_NAME || !new.bytes().all(good) {
        check.problem(path, format!("a tool's name has 1 to {LONGEST_NAME} letters, digits, `_`, `-` and `.`"));
    } else if tool.is_none() {
        check.problem(path, "only one tool can be renamed: `name` is a pattern here");
    } else if tool == Some(new) {
        check.problem(path, "the tool has this name already");
    }
}

fn resources(raw: Vec<RawResource>, check: &mut Check<'_>) -> Vec<ResourceSettings> {
    let mut settings = Vec::new();
    for (index, raw) in raw.into_iter().enumerate() {
        let number = index.to_string();
        let at = |key| ["resources", number.as_str(), key];
        // A database has taken its own.
        for (key, given) in [("handler", raw.handler.is_some()), ("max_rows", raw.max_rows.is_some())] {
            if given {
                check.problem(&at(key), format!("`{key}` belongs to a service of `type: database`"));
            }
        }
        let cache = cache(raw.cache_ttl, raw.cache_scope, &at("cache_scope"), check);
        let Some(pattern) = template(&raw.pattern, &at("pattern"), check) else { continue };
        let timeout = raw.timeout.map(|timeout| timeout.0);
        settings.push(ResourceSettings { pattern, timeout, cache, max_bytes: raw.max_bytes.map(|size| size.0) });
    }
    settings
}

fn cache(
    ttl: Option<RawDuration>,
    scope: Option<RawCacheScope>,
    path: &[&str],
    check: &mut Check<'_>,
) -> Option<CacheRule> {
    if ttl.is_none() && scope.is_some() {
        check.problem(path, "`cache_scope` belongs to a `cache_ttl`");
    }
    Some(CacheRule { ttl: ttl?.0, public: scope == Some(RawCacheScope::Public) })
}

/// Of the specification (2025-11-25, tools, tool names).
const LONGEST_NAME: usize = 128;
