//! What the services domain is told by the configuration, checked.

pub mod database;
pub mod template;

use std::collections::BTreeSet;

use http::{HeaderName, Method};
use serde_json::{Map, Value};

use self::database::DatabaseSettings;
use self::template::{Text, UrlTemplate};
use crate::secret::SecretText;
use crate::tls::Files;

#[derive(Debug, Clone, PartialEq)]
pub enum ServiceSettings {
    Database(Box<DatabaseSettings>),
    Http(HttpSettings),
    Vault(VaultSettings),
}

impl ServiceSettings {
    /// The service file's `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Database(_) => "database",
            Self::Http(_) => "http",
            Self::Vault(_) => "vault",
        }
    }

    /// The items of secrets that are referred to.
    pub fn items(&self) -> BTreeSet<String> {
        let texts: Vec<&SecretText> = match self {
            Self::Database(database) => database.username.iter().chain(&database.password).collect(),
            Self::Http(http) => http.tools.iter().flat_map(|tool| tool.headers.iter().map(|(_, text)| text)).collect(),
            Self::Vault(_) => Vec::new(),
        };
        let references = texts.into_iter().flat_map(SecretText::references);
        references.map(|reference| reference.item.clone()).collect()
    }
}

/// What mcpeg knows of its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultSettings {
    /// `None`: all items.
    pub items: Option<BTreeSet<String>>,
}

/// Tools that are requests to an HTTP interface.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSettings {
    pub tools: Vec<HttpTool>,
    pub tls: Files,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpTool {
    pub name: String,
    pub description: Option<String>,
    pub method: Method,
    pub url: UrlTemplate,
    pub query: Vec<(String, Text)>,
    /// Read at each call.
    pub headers: Vec<(HeaderName, SecretText)>,
    /// JSON in whose texts arguments stand.
    pub body: Option<Value>,
    pub input_schema: Map<String, Value>,
    /// A JSON pointer (RFC 6901) to what is given of the answer; `None`: all of it.
    pub result: Option<String>,
    /// A longer answer is refused.
    pub max_bytes: usize,
}
