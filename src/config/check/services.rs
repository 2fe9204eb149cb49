//! The services that mcpeg serves itself: from a service file to the services domain's settings.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Map, Value, json};

use super::{Check, join};
use crate::config::raw::mcp::RawServiceFile;
use crate::config::raw::policy::{RawMethod, RawTool};
use crate::services::settings::template::{Text, UrlTemplate};
use crate::services::settings::{HttpSettings, HttpTool, ServiceSettings, VaultSettings};

/// The keys of a tool that is a request, which no other service has.
pub fn refuse_requests(raw: &RawServiceFile, check: &mut Check<'_>) {
    for (index, tool) in raw.tools.iter().flatten().enumerate() {
        let index = index.to_string();
        for (key, given) in [
            ("method", tool.method.is_some()),
            ("url", tool.url.is_some()),
            ("query", tool.query.is_some()),
            ("headers", tool.headers.is_some()),
            ("body", tool.body.is_some()),
            ("input_schema", tool.input_schema.is_some()),
            ("result", tool.result.is_some()),
        ] {
            if given {
                check.problem(&["tools", &index, key], format!("`{key}` belongs to a service of `type: http`"));
            }
        }
    }
}

/// `type: vault`. Which items there are is checked where they are known.
pub fn vault(raw: &mut RawServiceFile, check: &mut Check<'_>) -> ServiceSettings {
    refuse_requests(raw, check);
    for (key, given) in [("headers", !raw.headers.is_empty()), ("tls", check.tree.get("tls").is_some())] {
        if given {
            check.problem(&[key], format!("a service of `type: vault` asks nobody: `{key}` has no use"));
        }
    }
    ServiceSettings::Vault(VaultSettings { items: raw.items.take().map(|items| items.into_iter().collect()) })
}

/// `type: http`. Takes what is its own out of the tools.
pub fn http(raw: &mut RawServiceFile, check: &mut Check<'_>) -> ServiceSettings {
    let (tls, server_name) = check.tls(&[], std::mem::take(&mut raw.tls));
    if server_name.is_some() {
        check.problem(&["tls", "server_name"], "tools may ask several servers: each proves the name in its address");
    }
    let common = check.headers(&["headers"], std::mem::take(&mut raw.headers));
    let mut tools: Vec<HttpTool> = Vec::new();
    for (index, tool) in raw.tools.iter_mut().flatten().enumerate() {
        let index = index.to_string();
        let Some(mut tool) = http_tool(tool, &["tools", &index], check) else { continue };
        let own: Vec<_> = tool.headers.iter().map(|(name, _)| name.clone()).collect();
        tool.headers.extend(common.iter().filter(|(name, _)| !own.contains(name)).cloned());
        tools.push(tool);
    }
    if tools.is_empty() && raw.tools.as_ref().is_none_or(Vec::is_empty) {
        check.problem(&[], "`tools` is missing: a service of `type: http` is what its tools are");
    }
    ServiceSettings::Http(HttpSettings { tools, tls })
}

fn http_tool(raw: &mut RawTool, path: &[&str], check: &mut Check<'_>) -> Option<HttpTool> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if !raw.name.bytes().all(good) {
        check.problem(&join(path, &["name"]), "a tool's name has letters, digits, `_`, `-` and `.`");
    }
    let method = raw.method.take().map_or(Method::GET, method);
    let headers = check.headers(&join(path, &["headers"]), raw.headers.take().unwrap_or_default());
    let mut arguments = BTreeSet::new();
    let mut query = Vec::new();
    for (name, text) in raw.query.take().unwrap_or_default() {
        if let Some(text) = text_of(&text, &join(path, &["query", &name]), check) {
            arguments.extend(text.arguments().map(str::to_owned));
            query.push((name, text));
        }
    }
    let body = raw.body.take().map(|body| Value::Object(body.0));
    if body.is_some() && matches!(method, Method::GET | Method::HEAD) {
        check.problem_with(&join(path, &["body"]), format!("a {method} has no body"), "give `method: POST`");
    }
    if let Some(body) = &body {
        in_body(body, &join(path, &["body"]), &mut arguments, check);
    }
    let result = raw.result.take();
    if result.as_deref().is_some_and(|pointer| !pointer.is_empty() && !pointer.starts_with('/')) {
        check.problem(&join(path, &["result"]), "expected a JSON pointer such as `/current/temperature`");
    }
    let Some(url) = raw.url.take() else {
        check.problem(path, "`url` is missing");
        return None;
    };
    let url = match UrlTemplate::parse(&url) {
        Ok(url) => url,
        Err(reason) => {
            check.problem(&join(path, &["url"]), reason);
            return None;
        }
    };
    let in_path: BTreeSet<String> = url.arguments().map(str::to_owned).collect();
    let input_schema = match raw.input_schema.take() {
        Some(schema) => given_schema(schema.0, in_path.iter().chain(&arguments), path, check),
        None => schema_of_texts(&in_path, &arguments),
    };
    let max_bytes = raw.max_bytes.as_ref().map_or(DEFAULT_MAX_BYTES, |size| size.0);
    Some(HttpTool {
        name: raw.name.clone(),
        description: raw.description.clone(),
        method,
        url,
        query,
        headers,
        body,
        input_schema,
        result,
        max_bytes,
    })
}

/// A text for each argument; those of the path are required.
fn schema_of_texts(in_path: &BTreeSet<String>, others: &BTreeSet<String>) -> Map<String, Value> {
    let all = in_path.iter().chain(others);
    let properties: Map<String, Value> = all.map(|name| (name.clone(), json!({ "type": "string" }))).collect();
    Map::from_iter([
        ("type".to_owned(), json!("object")),
        ("properties".to_owned(), Value::Object(properties)),
        ("required".to_owned(), json!(in_path)),
        ("additionalProperties".to_owned(), json!(false)),
    ])
}

/// A schema that was written has to know every argument that is used.
fn given_schema<'a>(
    schema: Map<String, Value>,
    used: impl Iterator<Item = &'a String>,
    path: &[&str],
    check: &mut Check<'_>,
) -> Map<String, Value> {
    let path = join(path, &["input_schema"]);
    if schema.get("type") != Some(&json!("object")) {
        check.problem(&path, "`type: object` is missing: arguments have names");
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for name in used.filter(|name| properties.is_none_or(|properties| !properties.contains_key(*name))) {
        check.problem(&path, format!("`properties` does not have the argument `{name}`, which the request needs"));
    }
    schema
}

fn text_of(text: &str, path: &[&str], check: &mut Check<'_>) -> Option<Text> {
    Text::parse(text).map_err(|reason| check.problem(path, reason)).ok()
}

fn in_body(body: &Value, path: &[&str], arguments: &mut BTreeSet<String>, check: &mut Check<'_>) {
    match body {
        Value::String(text) => {
            if let Some(text) = text_of(text, path, check) {
                arguments.extend(text.arguments().map(str::to_owned));
            }
        }
        Value::Array(items) => items.iter().for_each(|item| in_body(item, path, arguments, check)),
        Value::Object(entries) => entries.values().for_each(|value| in_body(value, path, arguments, check)),
        _ => {}
    }
}

fn method(raw: RawMethod) -> Method {
    match raw {
        RawMethod::Get => Method::GET,
        RawMethod::Head => Method::HEAD,
        RawMethod::Post => Method::POST,
        RawMethod::Put => Method::PUT,
        RawMethod::Patch => Method::PATCH,
        RawMethod::Delete => Method::DELETE,
    }
}

const DEFAULT_MAX_BYTES: usize = 1024 * 1024;
