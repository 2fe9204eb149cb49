//! The written shape of `render`: what holds for all rendered files, and for groups of them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::hooks::RawGroup;
use super::scalar::RawPath;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRender {
    /// The folders below which files may be written, whatever links lead to. Default: any.
    #[serde(default)]
    pub allowed_folders: Vec<RawPath>,
    /// Files that change together, by the name that their templates give as `group`.
    #[serde(default)]
    pub groups: BTreeMap<String, RawGroup>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawOnRemove {
    Keep,
    Remove,
}
