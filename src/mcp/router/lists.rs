//! Lists of several services made into one: `tools/list` and its kin.
//!
//! An item keeps its bytes but for its name or address. Order: by service, then as the service has it. A service that does not answer is left
//! out and named in `_meta`. Bounds: `MAX_PAGES` of one service, and the size of a message for the whole.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::names::{address, prefixed};
use crate::mcp::message::Field;
use crate::mcp::protocol::{Era, PROMPTS_LIST, RESOURCES_LIST, TEMPLATES_LIST, TOOLS_LIST};
use crate::mcp::splice;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListKind {
    Tools,
    Prompts,
    Resources,
    Templates,
}

impl ListKind {
    pub fn of(method: &str) -> Option<Self> {
        Some(match method {
            TOOLS_LIST => Self::Tools,
            PROMPTS_LIST => Self::Prompts,
            RESOURCES_LIST => Self::Resources,
            TEMPLATES_LIST => Self::Templates,
            _ => return None,
        })
    }

    pub fn method(self) -> &'static str {
        match self {
            Self::Tools => TOOLS_LIST,
            Self::Prompts => PROMPTS_LIST,
            Self::Resources => RESOURCES_LIST,
            Self::Templates => TEMPLATES_LIST,
        }
    }

    /// The capability without which a server need not be asked.
    pub fn capability(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources | Self::Templates => "resources",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Templates => "resourceTemplates",
            other => other.capability(),
        }
    }

    /// The member by which an item is asked for.
    fn member(self) -> &'static str {
        match self {
            Self::Tools | Self::Prompts => "name",
            Self::Resources => "uri",
            Self::Templates => "uriTemplate",
        }
    }
}

/// What an item is called by its service, where that cannot be told from what it is called here.
#[derive(Debug, PartialEq, Eq)]
pub enum Known {
    /// A resource, or a template, which may be asked for by its own address as well.
    Address(String),
    /// A name that was shortened, and the whole one.
    Shortened(String, String),
}

/// What has come for one list so far.
#[derive(Debug)]
pub struct Collection {
    pub kind: ListKind,
    parts: BTreeMap<String, Part>,
    bytes: usize,
    limit: usize,
}

#[derive(Debug, Default)]
struct Part {
    items: Vec<String>,
    pages: usize,
    done: bool,
    problem: Option<String>,
}

/// What a page leaves to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Page {
    /// The cursor of the next, as JSON.
    More(String),
    Last,
}

impl Collection {
    pub fn new(kind: ListKind, services: impl IntoIterator<Item = String>, limit: usize) -> Self {
        let parts = services.into_iter().map(|service| (service, Part::default())).collect();
        Self { kind, parts, bytes: 0, limit }
    }

    /// Takes a page of a service. Gives what has to be known of the items in it.
    pub fn add(&mut self, service: &str, result: &str) -> (Page, Vec<Known>) {
        let mut known = Vec::new();
        let Some(part) = self.parts.get_mut(service) else { return (Page::Last, known) };
        part.pages += 1;
        let Ok(members) = serde_json::from_str::<HashMap<Cow<'_, str>, &RawValue>>(result) else {
            part.fail("its list is not an object");
            return (Page::Last, known);
        };
        let items = members.get(self.kind.key()).map(|items| serde_json::from_str::<Vec<&RawValue>>(items.get()));
        let Some(Ok(items)) = items else {
            part.fail("its list has no items");
            return (Page::Last, known);
        };
        for item in items {
            self.bytes += item.get().len();
            if self.bytes > self.limit {
                part.fail("the list of all services is larger than a message may be");
                return (Page::Last, known);
            }
            match named(self.kind, service, item.get()) {
                Some((item, its)) => {
                    part.items.push(item);
                    known.extend(its);
                }
                None => tracing::warn!(service, list = self.kind.method(), "an item without a proper name is left out"),
            }
        }
        let cursor = members.get("nextCursor").map(|cursor| cursor.get()).filter(|cursor| *cursor != "null");
        match cursor {
            Some(_) if part.pages >= MAX_PAGES => {
                part.fail("its list has too many pages");
                (Page::Last, known)
            }
            Some(cursor) => (Page::More(cursor.to_owned()), known),
            None => {
                part.done = true;
                (Page::Last, known)
            }
        }
    }

    /// The service has nothing of the kind.
    pub fn add_nothing(&mut self, service: &str) {
        if let Some(part) = self.parts.get_mut(service) {
            part.done = true;
        }
    }

    pub fn fail(&mut self, service: &str, problem: &str) {
        if let Some(part) = self.parts.get_mut(service) {
            part.fail(problem);
        }
    }

    pub fn is_done(&self) -> bool {
        self.parts.values().all(|part| part.done)
    }

    /// Whoever has not answered yet is left out, and named.
    pub fn give_up(&mut self) -> Vec<String> {
        let mut left_out = Vec::new();
        for (service, part) in &mut self.parts {
            if !part.done {
                tracing::warn!(service, list = self.kind.method(), "a service did not answer in time and is left out");
                part.fail("it did not answer in time");
                left_out.push(service.clone());
            }
        }
        left_out
    }

    /// The items, by service.
    pub fn take_items(&mut self) -> Vec<String> {
        self.parts.values_mut().flat_map(|part| std::mem::take(&mut part.items)).collect()
    }

    /// Who is missing, and why.
    pub fn unavailable(&self) -> Vec<Value> {
        let missing = self.parts.iter().filter_map(|(service, part)| {
            part.problem.as_ref().map(|problem| json!({ "service": service, "reason": problem }))
        });
        missing.collect()
    }
}

/// The result of a list, as JSON; `next` is one too.
pub fn result(kind: ListKind, items: &[String], next: Option<&str>, unavailable: &[Value], era: Era) -> String {
    let mut result = format!("{{\"{}\":[{}]", kind.key(), items.join(","));
    if let Some(next) = next {
        result.push_str(&format!(",\"nextCursor\":{next}"));
    }
    if !unavailable.is_empty() {
        result.push_str(&format!(",\"_meta\":{}", json!({ UNAVAILABLE: unavailable })));
    }
    if era == Era::Modern {
        result.push_str(MODERN_MEMBERS);
    }
    result.push('}');
    result
}

impl Part {
    fn fail(&mut self, problem: &str) {
        self.done = true;
        self.problem = Some(problem.to_owned());
    }
}

/// The item as the aggregate has it.
fn named(kind: ListKind, service: &str, item: &str) -> Option<(String, Option<Known>)> {
    let members = serde_json::from_str::<HashMap<Cow<'_, str>, &RawValue>>(item).ok()?;
    let field = Field(members.get(kind.member())?.get());
    let own = field.text()?;
    let (name, known) = match kind {
        ListKind::Tools | ListKind::Prompts => {
            let (name, shortened) = prefixed(service, &own);
            let known = shortened.then(|| Known::Shortened(name.clone(), own.clone().into_owned()));
            (name, known)
        }
        ListKind::Resources | ListKind::Templates => {
            (address(service, &own), Some(Known::Address(own.clone().into_owned())))
        }
    };
    Some((splice::replace(item, field, &json!(name).to_string())?, known))
}

/// The key in `_meta` under which services are named that are missing from a list.
const UNAVAILABLE: &str = "mcpeg/unavailable";
const MAX_PAGES: usize = 50;
/// What every list of the modern era says about itself: not to be kept.
const MODERN_MEMBERS: &str = r#","resultType":"complete","ttlMs":0,"cacheScope":"private""#;

#[cfg(test)]
mod tests {
    use super::*;

    fn collection(kind: ListKind) -> Collection {
        Collection::new(kind, ["b".to_owned(), "a".to_owned()], 10_000)
    }

    #[test]
    fn items_keep_their_bytes_but_for_the_name_and_stand_by_service() {
        let mut list = collection(ListKind::Tools);
        let page = r#"{"tools":[{ "x":1.0, "name":"t\u0031" , "deep":{"name":"no"}}],"nextCursor":"c\"1"}"#;
        assert_eq!(list.add("b", page).0, Page::More(r#""c\"1""#.into()));
        assert_eq!(list.add("b", r#"{"tools":[{"name":"t2"}]}"#).0, Page::Last);
        assert!(!list.is_done());
        assert_eq!(list.add("a", r#"{"tools":[{"name":"t0"}]}"#).0, Page::Last);
        assert!(list.is_done());
        assert_eq!(
            result(ListKind::Tools, &list.take_items(), None, &list.unavailable(), Era::Legacy),
            r#"{"tools":[{"name":"a__t0"},{ "x":1.0, "name":"b__t1" , "deep":{"name":"no"}},{"name":"b__t2"}]}"#
        );
    }

    #[test]
    fn who_does_not_answer_is_named_and_the_others_are_listed() {
        let mut list = collection(ListKind::Resources);
        let (_, known) = list.add("a", r#"{"resources":[{"uri":"file:///x"}]}"#);
        assert_eq!(known, [Known::Address("file:///x".into())]);
        list.give_up();
        let items = list.take_items();
        let text = result(ListKind::Resources, &items, Some("\"c\""), &list.unavailable(), Era::Modern);
        let result: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(result["resources"][0]["uri"], "mcpeg://a/file:///x");
        assert_eq!(result["nextCursor"], "c");
        assert_eq!(result["_meta"]["mcpeg/unavailable"][0]["service"], "b");
        assert_eq!((&result["resultType"], &result["ttlMs"]), (&json!("complete"), &json!(0)));
    }

    #[test]
    fn endless_pages_and_huge_lists_are_bounded() {
        let mut list = collection(ListKind::Tools);
        for _ in 1..MAX_PAGES {
            assert_eq!(list.add("a", r#"{"tools":[],"nextCursor":"x"}"#).0, Page::More("\"x\"".into()));
        }
        assert_eq!(list.add("a", r#"{"tools":[],"nextCursor":"x"}"#).0, Page::Last);
        let huge = format!(r#"{{"tools":[{{"name":"{}"}}]}}"#, "n".repeat(20_000));
        assert_eq!(list.add("b", &huge).0, Page::Last);
        assert!(list.is_done());
    }
}
