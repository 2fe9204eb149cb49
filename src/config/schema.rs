//! The JSON Schemas of the configuration's files, made from the written shapes: each once, because a configuration may have hundreds of files.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value as Json;

use super::raw::RawConfig;
use super::raw::mcp::RawServiceFile;
use super::raw::source::RawSource;

/// Of `mcpeg.yaml`.
pub fn main_file() -> &'static Json {
    static SCHEMA: LazyLock<Json> = LazyLock::new(|| extendable(schema_of::<RawConfig>("mcpeg.yaml")));
    &SCHEMA
}

/// Of a service file.
pub fn service_file() -> &'static Json {
    static SCHEMA: LazyLock<Json> = LazyLock::new(|| extendable(schema_of::<RawServiceFile>("a service of mcpeg")));
    &SCHEMA
}

/// Of the file that `--source` names.
pub fn source_file() -> &'static Json {
    static SCHEMA: LazyLock<Json> =
        LazyLock::new(|| schema_of::<RawSource>("how a source of mcpeg's configuration is reached"));
    &SCHEMA
}

/// With the key that is taken out before the rest is read.
fn extendable(mut schema: Json) -> Json {
    let extends = serde_json::json!({
        "description": "Files that this one begins with; what it says itself lies over them, key by key, and a key with nothing behind it takes away.",
        "anyOf": [
            { "type": "string", "format": "path" },
            { "type": "array", "items": { "type": "string", "format": "path" } },
        ],
    });
    let add = |schema: &mut Json| {
        if let Some(properties) = schema.get_mut("properties").and_then(Json::as_object_mut) {
            properties.insert(super::extend::KEY.to_owned(), extends.clone());
        }
    };
    match schema.get_mut("oneOf").and_then(Json::as_array_mut) {
        Some(variants) => variants.iter_mut().for_each(add),
        None => add(&mut schema),
    }
    schema
}

/// Without `$ref`, so that whoever walks it meets each type where it stands.
fn schema_of<T: JsonSchema>(title: &str) -> Json {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = SchemaGenerator::new(settings).into_root_schema_for::<T>();
    schema.insert("title".to_owned(), title.into());
    schema.to_value()
}
