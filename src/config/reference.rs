//! The reference of the configuration as Markdown, made from the schemas, so that it cannot say anything else than they do.

use std::fmt::Write as _;

use serde_json::Value as Json;

use super::schema;

/// docs/CONFIGURATION.md, whole.
pub fn markdown() -> String {
    let mut text = HEAD.to_owned();
    text.push_str("\n## mcpeg.yaml\n\n| key | form | meaning |\n| --- | --- | --- |\n");
    rows(schema::main_file(), "", &mut text);
    text.push_str("\n## A service file\n\n| key | form | meaning |\n| --- | --- | --- |\n");
    rows(schema::service_file(), "", &mut text);
    text.push_str(SOURCE_HEAD);
    rows(schema::source_file(), "", &mut text);
    text
}

/// A row for each key below `schema`, mappings before what is in them.
fn rows(schema: &Json, prefix: &str, text: &mut String) {
    for variant in variants(schema) {
        let Some(properties) = variant.get("properties").and_then(Json::as_object) else { continue };
        let required: Vec<&str> =
            variant.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect();
        let tag = tag_of(variant);
        if let Some((key, word)) = tag {
            let meaning = variant.get("description").and_then(Json::as_str).unwrap_or_default();
            let _ = writeln!(text, "| `{prefix}{key}: {word}` | | {} |", one_line(meaning));
        }
        for (key, inner) in properties.iter().filter(|(key, _)| tag.is_none_or(|(name, _)| name != *key)) {
            let path = format!("{prefix}{key}");
            let mut form = form_of(inner);
            if required.contains(&key.as_str()) {
                form.push_str(", required");
            }
            let meaning = inner.get("description").and_then(Json::as_str).unwrap_or_default();
            let _ = writeln!(text, "| `{path}` | {form} | {} |", one_line(meaning));
            below(inner, &path, text);
        }
    }
}

/// What stands below a key: the keys of a mapping, of a named entry (`NAME`) or of a list's entry (`[]`).
fn below(schema: &Json, path: &str, text: &mut String) {
    let inner = without_null(schema);
    if let Some(entry) = inner.get("additionalProperties").filter(|entry| entry.is_object()) {
        rows(without_null(entry), &format!("{path}.NAME."), text);
    } else if let Some(entry) = inner.get("items") {
        rows(without_null(entry), &format!("{path}[]."), text);
    } else {
        rows(inner, &format!("{path}."), text);
    }
}

fn variants(schema: &Json) -> Vec<&Json> {
    match schema.get("oneOf").and_then(Json::as_array) {
        Some(of) => of.iter().collect(),
        None => vec![schema],
    }
}

fn without_null(schema: &Json) -> &Json {
    let of = schema.get("anyOf").and_then(Json::as_array).into_iter().flatten();
    of.into_iter().find(|inner| inner.get("type").and_then(Json::as_str) != Some("null")).unwrap_or(schema)
}

fn tag_of(schema: &Json) -> Option<(&str, &str)> {
    let properties = schema.get("properties")?.as_object()?;
    properties.iter().find_map(|(key, inner)| Some((key.as_str(), inner.get("const")?.as_str()?)))
}

fn form_of(schema: &Json) -> String {
    let of = alternatives(schema);
    if of.len() > 1 {
        let mut forms: Vec<String> = of.into_iter().map(form_of).collect();
        forms.dedup();
        return forms.join(" or ");
    }
    let inner = without_null(schema);
    if let Some(words) = words_of(inner) {
        return words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    }
    if inner.get("x-secret") == Some(&Json::Bool(true)) {
        return "text, may hold `${secret...}`".to_owned();
    }
    let kind = match inner.get("type") {
        Some(Json::String(kind)) => kind.as_str(),
        Some(Json::Array(kinds)) => kinds.iter().filter_map(Json::as_str).find(|kind| *kind != "null").unwrap_or(""),
        _ => "",
    };
    let form = match (inner.get("format").and_then(Json::as_str), kind) {
        (Some("duration"), _) => "duration",
        (Some("size"), _) => "size",
        (Some("rate"), _) => "rate",
        (Some("mode"), _) => "octal mode",
        (Some("url"), _) => "address",
        (Some("path"), _) => "path",
        (Some("signal"), _) => "signal",
        (Some("ip"), _) => "IP address",
        (_, "string") => "text",
        (_, "integer") => "whole number",
        (_, "number") => "number",
        (_, "boolean") => "`true`, `false`",
        (_, "array") => return format!("list of {}", inner.get("items").map_or_else(String::new, form_of)),
        (_, "object") => "mapping",
        _ if inner.get("oneOf").is_some() => "mapping",
        _ => "any value",
    };
    form.to_owned()
}

/// The schemas that a value may follow, without the one of nothing.
fn alternatives(schema: &Json) -> Vec<&Json> {
    match schema.get("anyOf").and_then(Json::as_array) {
        Some(of) => of.iter().flat_map(alternatives).collect(),
        None if schema.get("type").and_then(Json::as_str) == Some("null") => Vec::new(),
        None => vec![schema],
    }
}

fn words_of(schema: &Json) -> Option<Vec<&str>> {
    if let Some(words) = schema.get("enum").and_then(Json::as_array) {
        return Some(words.iter().filter_map(Json::as_str).collect());
    }
    let of = schema.get("oneOf")?.as_array()?;
    let words: Vec<&str> = of
        .iter()
        .flat_map(|inner| match inner.get("const") {
            Some(Json::String(word)) => vec![word.as_str()],
            _ => inner.get("enum").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect(),
        })
        .collect();
    (!words.is_empty()).then_some(words)
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

const SOURCE_HEAD: &str = "
## A source file

What `--source FILE` or `MCPEG_SOURCE` names, where `--config` is no file but the address of etcd, Consul or a Git repository
([SOURCES.md](SOURCES.md)). A variable such as `MCPEG_SOURCE__TOKEN_FILE` sets one of its keys.

| key | form | meaning |
| --- | --- | --- |
";

const HEAD: &str = "# Configuration

Every key of `mcpeg.yaml` and of the service files, generated from the schema (`mcpeg schema --markdown`). `mcpeg check` says everything
that is wrong with a configuration at once, with file, line and column; `mcpeg schema` prints the JSON Schema for an editor.

Layers, later wins: `mcpeg.yaml`, `mcpeg-<environment>.yaml` beside it, variables (`MCPEG_GLOBAL__LOG_LEVEL=debug`), flags
(`--set global.log_level=debug`). The environment is `--environment`, else `MCPEG_ENVIRONMENT`, else `metadata.environment`. Mappings are
merged key by key; anything else is replaced. A list from a variable or a flag is written with commas.

A file may begin with others: `extends: ../base/http.yaml`, or a list of files. They lie below what the file says itself, later ones over earlier
ones, key by key as layers do; a key with nothing behind it (`timeout:`) takes away what a base says; lists are replaced. Up to eight
may extend each other in a row. `mcpeg check --all-environments` checks the configuration with each overlay that there is.

`${NAME}` is an environment variable and must be set, `${NAME:default}` has a default, `$${` is a literal `${`. `${secret.ITEM}` and
`${secret.ITEM.FIELD}` refer to a secret; they may stand where the form says so, and the value is read at each use, never stored.

A path is relative to the file that names it (from a variable or a flag: to `mcpeg.yaml`). Durations are `250ms`, `30s`, `5m`, `1h`,
`30d`. Modes are octal, in quotes: `\"0600\"`. A file has at most 1 MiB, 20,000 nodes and 64 levels.
";
