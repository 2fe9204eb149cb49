//! The written shape of what a service file says about who may use what, within which bounds.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::scalar::{RawDuration, RawGlob, RawObject, RawRate, RawSecretText, RawSize};

/// Failures in a row after which a service is left alone for a while, and whoever asks is answered at once. Shared by all its sessions.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawBreaker {
    /// Default: `true`, where the section is there.
    pub enabled: Option<bool>,
    /// Connections that fail, programs that die, time-outs, answers 5xx; not what a tool says. Default: 5.
    #[schemars(range(min = 1, max = 1000000))]
    pub failure_threshold: Option<u32>,
    /// How long nothing is tried; then one request is. Default: `60s`.
    pub reset_timeout: Option<RawDuration>,
}

/// Patterns, in which `*` stands for any characters, for the names that the server gives. A kind that is left out is not concerned.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRules {
    pub tools: Option<Vec<RawGlob>>,
    /// Addresses; a template such as `repo://{owner}/{name}` may stand here as well.
    pub resources: Option<Vec<RawGlob>>,
    pub prompts: Option<Vec<RawGlob>>,
    /// Users of local clients by their uids, and `tcp` for whoever has shown the token of `transports.http`.
    pub peers: Option<Vec<RawPeer>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawPeer {
    Uid(u32),
    Name(RawPeerName),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawPeerName {
    Tcp,
}

/// Rules that hold for some peers besides those of the service.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawPeerRules {
    /// Left out: everybody whom no entry before names.
    pub peers: Option<Vec<RawPeer>>,
    #[serde(default)]
    pub allow: RawPeerRuleSet,
    /// Wins over `allow`.
    #[serde(default)]
    pub deny: RawPeerRuleSet,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawPeerRuleSet {
    pub tools: Option<Vec<RawGlob>>,
    pub resources: Option<Vec<RawGlob>>,
    pub prompts: Option<Vec<RawGlob>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTool {
    /// The server's name of the tool, or a pattern with `*`. An exact name comes before patterns, else the first that matches holds.
    pub name: String,
    /// The name that clients know the tool by, on every socket.
    pub rename: Option<String>,
    /// What clients are told of the tool, in place of the server's words.
    pub description: Option<String>,
    /// It is not listed, and can be called by those who know it. What nobody may call belongs under `deny`. Default: `false`.
    #[serde(default)]
    pub hide: bool,
    /// From a call's arrival to its answer. Default: the service's.
    pub timeout: Option<RawDuration>,
    /// Results without errors are kept so long. Default: not at all.
    pub cache_ttl: Option<RawDuration>,
    /// Who gets what is kept. Default: `private`.
    pub cache_scope: Option<RawCacheScope>,
    /// Calls of all clients together that are with the server; more wait, within their time. Default: no bound.
    #[schemars(range(min = 1, max = 65536))]
    pub concurrency: Option<u32>,
    /// Calls of all clients together; more are refused. As many may come at once. Default: no bound.
    pub rate: Option<RawRate>,
    /// A larger result is withheld, and the model told so. Default: `transports.limits.max_message_mb`; of `type: http`, whose answers
    /// are read no further: `1MiB`. Of `type: database` rows that are beyond it are left out, and that is said; default: `1MiB`.
    pub max_bytes: Option<RawSize>,
    /// Longer lists, in structured content or in text that is JSON, are cut. Default: no bound. Of `type: database`: rows, or tables, that
    /// are given at most, which is said; default: 1000.
    #[schemars(range(max = 10000000))]
    pub max_rows: Option<u32>,
    /// Of `type: http`: the request's method. Default: `GET`.
    pub method: Option<RawMethod>,
    /// Of `type: http`, required there: the address, in whose path arguments stand as `{name}`; `{{` is the sign itself.
    pub url: Option<String>,
    /// Of `type: http`: what follows `?`; arguments stand as `{name}`, and an entry whose argument is missing is left out.
    pub query: Option<BTreeMap<String, String>>,
    /// Of `type: http`: headers of the request besides the service's; read at each call.
    pub headers: Option<BTreeMap<String, RawSecretText>>,
    /// Of `type: http`: a JSON body in whose texts arguments stand. `"{name}"` alone becomes the argument's value, whatever its type.
    pub body: Option<RawObject>,
    /// Of `type: http`: the JSON Schema of the arguments. Default: a text for each, of which those in the address are required.
    pub input_schema: Option<RawObject>,
    /// Of `type: http`: a JSON pointer to what is given of the answer. Default: all of it.
    pub result: Option<String>,
    /// Arguments are checked against the tool's `inputSchema`, once a list has shown it. Default: `validate_arguments` of the service.
    pub validate_arguments: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum RawMethod {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawCacheScope {
    /// Whoever has asked: a user of this machine, or the holder of the token.
    Private,
    /// Everybody who may ask.
    Public,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawResource {
    /// Addresses: `{name}` stands for one segment, `{+name}` and `*` for any characters. The first that matches holds.
    pub pattern: String,
    /// Of `type: database`, required there: what a resource of the pattern, in which `{table}` stands for a table, is.
    pub handler: Option<RawHandler>,
    /// From a request's arrival to its answer. Default: the service's.
    pub timeout: Option<RawDuration>,
    /// Contents are kept so long. Default: as the server says.
    pub cache_ttl: Option<RawDuration>,
    /// Who gets what is kept. Default: `private`.
    pub cache_scope: Option<RawCacheScope>,
    /// A larger content is withheld. Default: `transports.limits.max_message_mb`. Of `type: database` rows that are beyond it are left out;
    /// default: `1MiB`.
    pub max_bytes: Option<RawSize>,
    /// Of `type: database`: rows that are given at most. Default: 100.
    #[schemars(range(max = 10000000))]
    pub max_rows: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawHandler {
    /// The table's columns, keys and indexes.
    GetTableSchema,
    /// Its first rows.
    GetSampleData,
}
