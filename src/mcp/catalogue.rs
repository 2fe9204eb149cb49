//! What is known of a service's tools, learned from the lists that pass by: which of them may be called twice, and which of their arguments
//! a modern HTTP server wants in headers.
//!
//! Shared by the sessions of a service. Invariants: what is not known is not safe; at most `MAX_TOOLS` are kept.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use http::HeaderName;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::Mutex;

use super::parameters;

#[derive(Default)]
pub struct Catalogue {
    tools: ArcSwap<HashMap<Box<str>, Arc<Tool>>>,
    /// How often the list was fetched because nobody had asked for it.
    fetches: AtomicU64,
    /// Held while it is fetched.
    fetching: Mutex<()>,
}

#[derive(Debug, Default, PartialEq)]
pub struct Tool {
    /// It says of itself that it changes nothing, or nothing more when it is called again: a call may be made a second time when it is not
    /// known what became of the first.
    pub repeatable: bool,
    /// Header and the path of the argument whose value it carries.
    pub headers: Vec<(HeaderName, Vec<Box<str>>)>,
}

impl Catalogue {
    /// Takes the result of `tools/list`, or a page of it.
    pub fn learn(&self, result: &str) {
        let Ok(listed) = serde_json::from_str::<Listed<'_>>(result) else { return };
        let known = self.tools.load();
        let read = listed.tools.iter().filter_map(|tool| serde_json::from_str::<Entry<'_>>(tool.get()).ok());
        let read: Vec<(Box<str>, Tool)> = read.map(Entry::understood).collect();
        if read.iter().all(|(name, tool)| known.get(name).is_some_and(|known| **known == *tool)) {
            return;
        }
        let mut tools = (**known).clone();
        for (name, tool) in read {
            if tools.len() < MAX_TOOLS || tools.contains_key(&name) {
                tools.insert(name, Arc::new(tool));
            }
        }
        self.tools.store(Arc::new(tools));
    }

    /// What is known of a tool; `None`: nothing, so that it must not be called twice.
    pub fn tool(&self, name: &str) -> Option<Arc<Tool>> {
        self.tools.load().get(name).cloned()
    }

    pub fn fetches(&self) -> u64 {
        self.fetches.load(Ordering::Relaxed)
    }

    /// Runs `fetch`, which learns the whole list, unless that has been done since `before` was read from `fetches`.
    pub async fn fetch_once<E>(&self, before: u64, fetch: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        let _turn = self.fetching.lock().await;
        if self.fetches() == before {
            fetch.await?;
            self.fetches.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The service is another now.
    pub fn forget(&self) {
        self.tools.store(Arc::default());
    }
}

#[derive(Deserialize)]
struct Listed<'a> {
    #[serde(borrow)]
    tools: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    name: String,
    #[serde(default)]
    annotations: Option<Annotations>,
    #[serde(borrow, default, rename = "inputSchema")]
    schema: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Annotations {
    #[serde(default)]
    read_only_hint: Option<bool>,
    #[serde(default)]
    idempotent_hint: Option<bool>,
}

impl Entry<'_> {
    fn understood(self) -> (Box<str>, Tool) {
        let hint = |hint: fn(&Annotations) -> Option<bool>| self.annotations.as_ref().and_then(hint) == Some(true);
        let repeatable = hint(|of| of.read_only_hint) || hint(|of| of.idempotent_hint);
        let headers = self.schema.map(|schema| parameters::of_schema(schema.get())).unwrap_or_default();
        (self.name.into(), Tool { repeatable, headers })
    }
}

const MAX_TOOLS: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_tool_that_says_so_may_be_called_again() {
        let catalogue = Catalogue::default();
        catalogue.learn(
            r#"{"tools":[{"name":"read","annotations":{"readOnlyHint":true}},{"name":"put","annotations":{"idempotentHint":true,"readOnlyHint":false}},
                {"name":"add","annotations":{"idempotentHint":false}},{"name":"plain"},{"name":"odd","annotations":{"readOnlyHint":"yes"}},7]}"#,
        );
        let is_repeatable = |name: &str| catalogue.tool(name).is_some_and(|tool| tool.repeatable);
        let repeatable = ["read", "put", "add", "plain", "odd", "unknown"].map(is_repeatable);
        assert_eq!(repeatable, [true, true, false, false, false, false]);
        catalogue.learn(r#"{"tools":[{"name":"read"}]}"#);
        assert!(!is_repeatable("read"), "the latest word counts");
        assert!(is_repeatable("put"), "a page says nothing of the others");
        catalogue.forget();
        assert!(!is_repeatable("put"));
    }
}
