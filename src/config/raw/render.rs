//! The written shape of `render`: what holds for all rendered files.

use schemars::JsonSchema;
use serde::Deserialize;

use super::scalar::RawPath;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRender {
    /// The folders below which files may be written, whatever links lead to. Default: any.
    #[serde(default)]
    pub allowed_folders: Vec<RawPath>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawOnRemove {
    Keep,
    Remove,
}
