//! `type: http`: each tool is a request to an HTTP interface.
//!
//! Arguments fill places of the address, the query and the body; headers carry the secrets, read at each call and marked sensitive. An
//! answer is read up to a bound, taken as JSON where it is, and the part that the tool is about goes to the caller (`answer`).
//! No redirect is followed and no proxy is used: a credential goes to the configured host alone.
//!
//! Invariant: connections that carried one version of the secrets are closed before another version is sent.

mod answer;

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Request};
use serde_json::{Map, Value, json};

use super::ServicesError;
use super::server::{CallFuture, Called, Output, Served, Trouble};
use super::settings::template::{FillError, Text};
use super::settings::{HttpSettings, HttpTool};
use crate::memory::with_wiped_stack;
use crate::ports::{SecretReader, SecretUnavailable};
use crate::secret::{ResolveError, SecretText};
use crate::tls::Stamp;

pub struct HttpService {
    settings: HttpSettings,
    secrets: Arc<dyn SecretReader>,
    connections: Mutex<Connections>,
}

/// A client, and what it was made for.
struct Connections {
    client: Client,
    files: Stamp,
    versions: Arc<[String]>,
}

impl HttpService {
    pub fn new(name: &str, settings: HttpSettings, secrets: Arc<dyn SecretReader>) -> Result<Self, ServicesError> {
        let service = || name.to_owned();
        // What is wrong with the files is said now, with its own words.
        let scheme = scheme(&settings);
        settings.tls.client_config(scheme).map_err(|source| ServicesError::Tls { service: service(), source })?;
        let files = settings.tls.stamp();
        let client = client(&settings).map_err(|reason| ServicesError::Client { service: service(), reason })?;
        let connections = Mutex::new(Connections { client, files, versions: Arc::default() });
        Ok(Self { settings, secrets, connections })
    }

    async fn request(
        &self,
        tool: &HttpTool,
        arguments: Map<String, Value>,
        versions: &mut Versions,
    ) -> Result<Output, Trouble> {
        let request = self.made(tool, &arguments, versions)?;
        let client = self.client(&versions.list());
        let response = client.execute(request).await.map_err(|error| unreachable(&tool.url.origin(), &error))?;
        let status = response.status();
        if status.is_server_error() {
            let reason = format!("{} answered {status}", tool.url.origin());
            return Err(Trouble::Behind { kind: "http_5xx", reason });
        }
        answer::read(response, tool).await
    }

    fn made(
        &self,
        tool: &HttpTool,
        arguments: &Map<String, Value>,
        versions: &mut Versions,
    ) -> Result<Request, Trouble> {
        check_names(&tool.input_schema, arguments)?;
        let mut url = tool.url.fill(arguments).map_err(at_fault)?;
        for (name, text) in &tool.query {
            match text.fill(arguments) {
                Ok(value) => _ = url.query_pairs_mut().append_pair(name, &value),
                Err(FillError::Missing(_)) => {}
                Err(error) => return Err(at_fault(error)),
            }
        }
        let mut request = Request::new(tool.method.clone(), url);
        *request.headers_mut() = with_wiped_stack(|| headers(&tool.headers, &*self.secrets, versions))?;
        request.headers_mut().entry(ACCEPT).or_insert(HeaderValue::from_static("application/json, */*;q=0.1"));
        if let Some(body) = &tool.body {
            let body = filled(body, arguments).map_err(at_fault)?.unwrap_or(Value::Null);
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(body.to_string().into());
        }
        Ok(request)
    }

    /// The client for these versions. Another one than before closes the connections of the one before, as does a change of files.
    fn client(&self, versions: &Arc<[String]>) -> Client {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let files = if self.settings.tls.is_empty() { connections.files.clone() } else { self.settings.tls.stamp() };
        if connections.files != files || connections.versions != *versions {
            match client(&self.settings) {
                Ok(client) => *connections = Connections { client, files, versions: versions.clone() },
                Err(reason) => tracing::warn!(reason, "the files of TLS cannot be used; the ones before stay in use"),
            }
        }
        connections.client.clone()
    }
}

impl Served for HttpService {
    fn tools(&self) -> Vec<Value> {
        self.settings.tools.iter().map(listed).collect()
    }

    fn call(self: Arc<Self>, tool: &str, arguments: Map<String, Value>) -> Option<CallFuture> {
        let at = self.settings.tools.iter().position(|known| known.name == tool)?;
        Some(Box::pin(async move {
            let mut versions = Versions::default();
            let outcome = self.request(&self.settings.tools[at], arguments, &mut versions).await;
            Called { outcome, versions: versions.list() }
        }))
    }
}

fn listed(tool: &HttpTool) -> Value {
    let reads = matches!(tool.method, Method::GET | Method::HEAD);
    let mut listed = json!({
        "name": tool.name,
        "inputSchema": tool.input_schema,
        "annotations": { "readOnlyHint": reads, "openWorldHint": true },
    });
    if let Some(description) = &tool.description {
        listed["description"] = description.as_str().into();
    }
    listed
}

/// The versions that were read for one call, by item.
#[derive(Default)]
struct Versions(BTreeMap<String, u64>);

impl Versions {
    fn list(&self) -> Arc<[String]> {
        self.0.iter().map(|(item, version)| format!("{item}@{version}")).collect()
    }
}

fn headers(
    configured: &[(HeaderName, SecretText)],
    secrets: &dyn SecretReader,
    versions: &mut Versions,
) -> Result<HeaderMap, Trouble> {
    let mut headers = HeaderMap::new();
    for (name, text) in configured {
        let unusable = |reason: String| Trouble::Behind {
            kind: "credential_unavailable",
            reason: format!("header {name}: {reason}"),
        };
        let secret = text.resolve(|reference| {
            let version = secrets.current(&reference.item)?;
            versions.0.insert(reference.item.clone(), version.version);
            Ok(version)
        });
        let secret = secret.map_err(|error: ResolveError<SecretUnavailable>| unusable(error.to_string()))?;
        let mut value = HeaderValue::from_bytes(secret.expose())
            .map_err(|_| unusable("the secret holds bytes that may not stand in a header".to_owned()))?;
        value.set_sensitive(true);
        headers.append(name.clone(), value);
    }
    Ok(headers)
}

/// Refuses arguments that the tool does not have, and says which ones are missing.
fn check_names(schema: &Map<String, Value>, arguments: &Map<String, Value>) -> Result<(), Trouble> {
    let known = schema.get("properties").and_then(Value::as_object);
    let is_known = |name: &String| known.is_some_and(|known| known.contains_key(name));
    if let Some(name) = arguments.keys().find(|name| !is_known(name)) {
        let names: Vec<&str> = known.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        return Err(Trouble::Tool(format!("there is no argument `{name}`; there are: {}", names.join(", "))));
    }
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    for name in required {
        if arguments.get(name).is_none_or(Value::is_null) {
            return Err(at_fault(FillError::Missing(name.to_owned())));
        }
    }
    Ok(())
}

/// The body with its arguments; a text that is one argument alone becomes its value, and what has no value is left out.
fn filled(body: &Value, arguments: &Map<String, Value>) -> Result<Option<Value>, FillError> {
    Ok(match body {
        Value::String(text) => {
            // The configuration has read it before.
            let text = Text::parse(text).map_err(|_| FillError::NoAddress)?;
            match text.only_argument() {
                Some(name) => arguments.get(name).cloned(),
                None => Some(Value::String(text.fill(arguments)?)),
            }
        }
        Value::Array(items) => {
            let items: Result<Vec<Option<Value>>, FillError> =
                items.iter().map(|item| filled(item, arguments)).collect();
            Some(Value::Array(items?.into_iter().flatten().collect()))
        }
        Value::Object(entries) => {
            let mut object = Map::new();
            for (key, value) in entries {
                if let Some(value) = filled(value, arguments)? {
                    object.insert(key.clone(), value);
                }
            }
            Some(Value::Object(object))
        }
        other => Some(other.clone()),
    })
}

fn at_fault(error: FillError) -> Trouble {
    Trouble::Tool(error.to_string())
}

/// The innermost cause says why; the address, which holds arguments, is not in it.
fn unreachable(origin: &str, error: &reqwest::Error) -> Trouble {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let reason = if error.is_connect() || error.is_request() {
        format!("{origin} cannot be reached: {cause}")
    } else {
        format!("{origin}: the connection broke: {cause}")
    };
    Trouble::Behind { kind: "upstream_unreachable", reason }
}

/// The system's authorities are needed when a tool speaks TLS.
fn scheme(settings: &HttpSettings) -> &'static str {
    let is_tls = |tool: &HttpTool| tool.url.origin().starts_with("https:");
    if settings.tools.iter().any(is_tls) { "https" } else { "http" }
}

fn client(settings: &HttpSettings) -> Result<Client, String> {
    let mut tls = settings.tls.client_config(scheme(settings)).map_err(|error| error.to_string())?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .user_agent(concat!("mcpeg/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE)
        .build()
        .map_err(|error| error.to_string())
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_IDLE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(of: Value) -> Map<String, Value> {
        of.as_object().unwrap().clone()
    }

    #[test]
    fn a_body_takes_values_as_they_are_and_leaves_out_what_is_missing() {
        let body = json!({ "q": "{q}", "n": "{n}", "text": "about {q}", "list": ["{gone}", "{n}"], "gone": "{gone}", "fixed": 1 });
        let made = filled(&body, &arguments(json!({ "q": "x", "n": 3 }))).unwrap().unwrap();
        assert_eq!(made, json!({ "q": "x", "n": 3, "text": "about x", "list": [3], "fixed": 1 }));
    }

    #[test]
    fn arguments_that_are_unknown_or_missing_are_named() {
        let schema = arguments(json!({ "properties": { "a": {}, "b": {} }, "required": ["a"] }));
        let words = |of: Value| match check_names(&schema, &arguments(of)) {
            Err(Trouble::Tool(words)) => words,
            other => panic!("{other:?}"),
        };
        assert_eq!(words(json!({ "a": 1, "c": 1 })), "there is no argument `c`; there are: a, b");
        assert_eq!(words(json!({ "b": 1 })), "the argument `a` is missing");
        check_names(&schema, &arguments(json!({ "a": 1 }))).unwrap();
    }
}
