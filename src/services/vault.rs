//! `type: vault`: what mcpeg knows of its secrets, and a fetch out of turn. Names, versions, ages and leases, never a value.
//!
//! It asks the domain of the secrets through `ports::SecretControl`, for the configured items and whatever their providers are. It holds
//! no secret and has no way to one.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::resources::{Completion, Content, Page, Resources};
use super::server::{CallFuture, Called, Output, Served, Trouble};
use super::settings::VaultSettings;
use crate::ports::{SecretControl, StatusReport};

pub struct VaultService {
    /// The items that are shown; `None`: all of them.
    items: Option<BTreeSet<String>>,
    control: Arc<dyn SecretControl>,
    /// The same domain's facts, among them how long leases last.
    report: Arc<dyn StatusReport>,
}

impl VaultService {
    pub fn new(settings: VaultSettings, control: Arc<dyn SecretControl>, report: Arc<dyn StatusReport>) -> Self {
        Self { items: settings.items, control, report }
    }

    fn shows(&self, item: &str) -> bool {
        self.items.as_ref().is_none_or(|items| items.contains(item))
    }

    /// Each item that is shown, with what is known of it.
    fn summaries(&self) -> Vec<Value> {
        let shown = self.control.list().into_iter().filter(|summary| self.shows(&summary.item));
        // A summary is plain data, which is always JSON.
        shown.filter_map(|summary| serde_json::to_value(summary).ok()).collect()
    }

    fn names(&self) -> Vec<String> {
        self.control.list().into_iter().map(|summary| summary.item).filter(|item| self.shows(item)).collect()
    }

    fn described(&self, item: &str) -> Option<Map<String, Value>> {
        let summary = self.summaries().into_iter().find(|summary| summary["item"] == item)?;
        let Value::Object(mut described) = summary else { return None };
        let facts = self.report.detail()["items"][item].take();
        for key in ["path", "fields", "refresh_seconds", "expires_in_seconds", "stale"] {
            described.insert(key.to_owned(), facts[key].clone());
        }
        Some(described)
    }

    /// What has an end of its own: a lease, a token, a certificate.
    fn leases(&self) -> Vec<Value> {
        let facts = self.report.detail();
        let lease = |summary: Value| {
            let left = &facts["items"][summary["item"].as_str()?]["expires_in_seconds"];
            (!left.is_null()).then(|| {
                let (item, provider, version) = (&summary["item"], &summary["provider"], &summary["version"]);
                json!({ "item": item, "provider": provider, "version": version, "expires_in_seconds": left })
            })
        };
        self.summaries().into_iter().filter_map(lease).collect()
    }

    async fn run(&self, tool: Tool, arguments: &Map<String, Value>) -> Result<Output, Trouble> {
        let list = |name: &str, list: Vec<Value>| Ok(output(Map::from_iter([(name.to_owned(), Value::Array(list))])));
        match tool {
            Tool::List => return list("secrets", self.summaries()),
            Tool::Leases => return list("leases", self.leases()),
            Tool::Describe | Tool::Refresh => {}
        }
        let item = arguments.get("item").and_then(Value::as_str);
        let item = item.ok_or_else(|| Trouble::Tool("the argument `item` is missing, or no text".to_owned()))?;
        let unknown = || Trouble::Tool(format!("there is no secret `{item}`"));
        if !self.shows(item) {
            return Err(unknown());
        }
        if tool == Tool::Describe {
            return self.described(item).map(output).ok_or_else(unknown);
        }
        let refreshed = self.control.refresh(item).await.map_err(|error| Trouble::Tool(error.to_string()))?;
        match serde_json::to_value(refreshed) {
            Ok(Value::Object(refreshed)) => Ok(output(refreshed)),
            // It is plain data with names.
            _ => Err(unknown()),
        }
    }
}

impl Served for VaultService {
    fn tools(&self) -> Vec<Value> {
        TOOLS.iter().map(|(tool, name, description)| listed(*tool, name, description)).collect()
    }

    fn call(self: Arc<Self>, tool: &str, arguments: Map<String, Value>) -> Option<CallFuture> {
        let (tool, ..) = *TOOLS.iter().find(|(_, name, _)| *name == tool)?;
        Some(Box::pin(async move {
            let outcome = self.run(tool, &arguments).await;
            Called { outcome, versions: Arc::default() }
        }))
    }

    fn resources(self: Arc<Self>) -> Option<Arc<dyn Resources>> {
        Some(self)
    }
}

/// Each secret is a resource: what `describe_secret` gives. An item's name needs no encoding.
impl Resources for VaultService {
    fn templates(&self) -> Vec<Value> {
        let description = "One secret: its path, the names of its fields, its version, age and lease. Never a value.";
        vec![json!({ "uriTemplate": TEMPLATE, "name": "secret", "description": description, "mimeType": JSON })]
    }

    fn list(self: Arc<Self>, _: Option<String>) -> CallFuture<Page> {
        let listed = |item: &String| json!({ "uri": format!("{ADDRESS}{item}"), "name": item, "mimeType": JSON });
        let resources = self.names().iter().map(listed).collect();
        known(Page { resources, next: None })
    }

    fn read(self: Arc<Self>, address: &str) -> Option<CallFuture<Option<Content>>> {
        let item = address.strip_prefix(ADDRESS)?;
        let described = if self.shows(item) { self.described(item) } else { None };
        known(described.map(|described| Content { mime_type: JSON, text: Value::Object(described).to_string() })).into()
    }

    fn complete(self: Arc<Self>, template: &str, argument: &str, begun: &str) -> Option<CallFuture<Completion>> {
        if template != TEMPLATE || argument != "item" {
            return None;
        }
        let mut values = self.names();
        values.retain(|item| item.starts_with(begun));
        let has_more = values.len() > MAX_COMPLETIONS;
        values.truncate(MAX_COMPLETIONS);
        Some(known(Completion { values, has_more }))
    }
}

fn known<T: Send + 'static>(found: T) -> CallFuture<T> {
    Box::pin(std::future::ready(Called { outcome: Ok(found), versions: Arc::default() }))
}

const ADDRESS: &str = "vault://secrets/";
const TEMPLATE: &str = "vault://secrets/{item}";
const JSON: &str = "application/json";
/// Of the specification.
const MAX_COMPLETIONS: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    List,
    Describe,
    Refresh,
    Leases,
}

const TOOLS: [(Tool, &str, &str); 4] = [
    (
        Tool::List,
        "list_secrets",
        "The secrets that are configured: names, providers, versions, ages and states. Never a value.",
    ),
    (
        Tool::Describe,
        "describe_secret",
        "One secret: its path, the names of its fields, its version, age and lease. Never a value.",
    ),
    (Tool::Refresh, "refresh_secret", "Fetches a secret from its provider now, and says whether it has changed."),
    (Tool::Leases, "lease_status", "How long leases, tokens and certificates still last."),
];

fn listed(tool: Tool, name: &str, description: &str) -> Value {
    let schema = match tool {
        Tool::List | Tool::Leases => json!({ "type": "object" }),
        Tool::Describe | Tool::Refresh => json!({
            "type": "object",
            "properties": { "item": { "type": "string", "description": "The secret's name in the configuration of mcpeg" } },
            "required": ["item"],
        }),
    };
    let hints = json!({ "readOnlyHint": tool != Tool::Refresh, "idempotentHint": true, "openWorldHint": false });
    json!({ "name": name, "description": description, "inputSchema": schema, "annotations": hints })
}

fn output(structured: Map<String, Value>) -> Output {
    Output { text: Value::Object(structured.clone()).to_string(), structured: Some(structured) }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use super::*;
    use crate::ports::{Condition, ConditionState, RefreshError, Refreshed, SecretSummary};

    struct Two;

    impl SecretControl for Two {
        fn list(&self) -> Vec<SecretSummary> {
            let summary = |item: &str| SecretSummary {
                item: item.to_owned(),
                provider: "corp".to_owned(),
                state: ConditionState::Ok,
                version: Some(3),
                provider_version: None,
                age_seconds: Some(1.0),
                next_seconds: None,
                message: String::new(),
            };
            ["database", "other"].map(summary).into()
        }

        fn refresh<'a>(
            &'a self,
            item: &'a str,
        ) -> Pin<Box<dyn Future<Output = Result<Refreshed, RefreshError>> + Send + 'a>> {
            let refreshed = Refreshed { item: item.to_owned(), version: 4, provider_version: None, changed: true };
            Box::pin(std::future::ready(if item == "database" { Ok(refreshed) } else { Err(RefreshError::TooSoon) }))
        }
    }

    impl StatusReport for Two {
        fn section(&self) -> &'static str {
            "secrets"
        }

        fn conditions(&self) -> Vec<Condition> {
            Vec::new()
        }

        fn detail(&self) -> Value {
            json!({ "items": {
                "database": { "path": "database/creds/app", "fields": ["username", "password"], "expires_in_seconds": 60.0 },
                "other": { "expires_in_seconds": null },
            } })
        }
    }

    async fn call(items: Option<&[&str]>, tool: &str, arguments: Value) -> Result<Value, Trouble> {
        let items = items.map(|items| items.iter().map(|item| (*item).to_owned()).collect());
        let service = Arc::new(VaultService::new(VaultSettings { items }, Arc::new(Two), Arc::new(Two)));
        let called = service.call(tool, arguments.as_object().unwrap().clone()).unwrap().await;
        called.outcome.map(|output| Value::Object(output.structured.unwrap()))
    }

    #[tokio::test]
    async fn items_are_listed_described_and_refreshed_and_only_those_that_are_shown() {
        let names = |listed: Value| -> Vec<String> {
            let secrets = listed["secrets"].as_array().unwrap().clone();
            secrets.iter().map(|secret| secret["item"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(call(None, "list_secrets", json!({})).await.unwrap()), ["database", "other"]);
        let shown = Some(&["database"][..]);
        assert_eq!(names(call(shown, "list_secrets", json!({})).await.unwrap()), ["database"]);
        let described = call(shown, "describe_secret", json!({ "item": "database" })).await.unwrap();
        assert_eq!((&described["path"], &described["version"]), (&json!("database/creds/app"), &json!(3)));
        let leases = call(None, "lease_status", json!({})).await.unwrap();
        assert_eq!(leases["leases"].as_array().unwrap().len(), 1);
        assert_eq!(leases["leases"][0]["expires_in_seconds"], 60.0);
        assert_eq!(call(None, "refresh_secret", json!({ "item": "database" })).await.unwrap()["changed"], true);
        let hidden = Trouble::Tool("there is no secret `other`".to_owned());
        for tool in ["describe_secret", "refresh_secret"] {
            assert_eq!(call(shown, tool, json!({ "item": "other" })).await, Err(hidden.clone()), "{tool}");
        }
        let too_soon = call(None, "refresh_secret", json!({ "item": "other" })).await.unwrap_err();
        assert!(matches!(too_soon, Trouble::Tool(words) if words.contains("less than a second ago")));
        assert!(matches!(call(None, "describe_secret", json!({})).await, Err(Trouble::Tool(_))));
    }

    #[tokio::test]
    async fn secrets_are_resources_and_only_those_that_are_shown() {
        let items = Some(["database".to_owned()].into());
        let service = Arc::new(VaultService::new(VaultSettings { items }, Arc::new(Two), Arc::new(Two)));
        let listed = service.clone().list(None).await.outcome.unwrap().resources;
        assert_eq!((listed.len(), &listed[0]["uri"]), (1, &json!("vault://secrets/database")));
        let read = async |address: &str| match service.clone().read(address) {
            Some(reading) => reading.await.outcome.unwrap().map(|content| content.text),
            None => None,
        };
        assert!(read("vault://secrets/database").await.unwrap().contains("database/creds/app"));
        for none in ["vault://secrets/other", "vault://secrets/none", "vault://else"] {
            assert_eq!(read(none).await, None, "{none}");
        }
        let completed =
            async |begun: &str| service.clone().complete(TEMPLATE, "item", begun).unwrap().await.outcome.unwrap();
        assert_eq!((completed("d").await.values, completed("o").await.values), (vec!["database".to_owned()], vec![]));
    }
}
