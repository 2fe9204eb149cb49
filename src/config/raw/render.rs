//! The written shape of `render`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::hooks::RawGroup;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRender {
    /// Files that change together, by the name that their templates give as `group`.
    #[serde(default)]
    pub groups: BTreeMap<String, RawGroup>,
}
