//! The JSON Schemas of the configuration's files, made from the written shapes.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value as Json;

use super::raw::RawConfig;
use super::raw::mcp::RawServiceFile;
use super::raw::source::RawSource;

/// Of `mcpeg.yaml`.
pub fn main_file() -> Json {
    schema_of::<RawConfig>("mcpeg.yaml")
}

/// Of a service file.
pub fn service_file() -> Json {
    schema_of::<RawServiceFile>("a service of mcpeg")
}

/// Of the file that `--source` names.
pub fn source_file() -> Json {
    schema_of::<RawSource>("how a source of mcpeg's configuration is reached")
}

/// Without `$ref`, so that whoever walks it meets each type where it stands.
fn schema_of<T: JsonSchema>(title: &str) -> Json {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = SchemaGenerator::new(settings).into_root_schema_for::<T>();
    schema.insert("title".to_owned(), title.into());
    schema.to_value()
}
