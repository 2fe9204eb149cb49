//! What a server's lists held, as digests: what a client has been shown by one child is compared with what its successor has.
//!
//! It knows pages and nothing of what is in them. Invariant: a digest is there only for a list that was read whole, from its first page
//! to its last, without another reading in between.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::message::{Field, IdKey, Request};
use super::protocol::{PROMPTS_LIST, RESOURCES_LIST, TEMPLATES_LIST, TOOLS_LIST};

/// A list that a server offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    Tools,
    Prompts,
    Resources,
    Templates,
}

impl List {
    pub const ALL: [Self; 4] = [Self::Tools, Self::Prompts, Self::Resources, Self::Templates];

    pub fn of(method: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|list| list.method() == method)
    }

    pub fn method(self) -> &'static str {
        match self {
            Self::Tools => TOOLS_LIST,
            Self::Prompts => PROMPTS_LIST,
            Self::Resources => RESOURCES_LIST,
            Self::Templates => TEMPLATES_LIST,
        }
    }

    /// The notification that says that it has changed.
    pub fn changed(self) -> &'static str {
        match self {
            Self::Tools => "notifications/tools/list_changed",
            Self::Prompts => "notifications/prompts/list_changed",
            Self::Resources | Self::Templates => "notifications/resources/list_changed",
        }
    }

    /// The member of a modern subscription's filter that asks for that notification.
    pub fn filter(self) -> &'static str {
        match self {
            Self::Tools => "toolsListChanged",
            Self::Prompts => "promptsListChanged",
            Self::Resources | Self::Templates => "resourcesListChanged",
        }
    }

    fn items<'a>(self, page: &Page<'a>) -> Option<&'a RawValue> {
        match self {
            Self::Tools => page.tools,
            Self::Prompts => page.prompts,
            Self::Resources => page.resources,
            Self::Templates => page.templates,
        }
    }
}

/// Takes the pages of one list, in order.
#[derive(Debug, Default)]
pub struct Reading {
    hasher: DefaultHasher,
    /// Where the next page begins; `None` after the last.
    next: Option<String>,
}

impl Reading {
    /// Takes the result of a page. `None` if it is not one.
    pub fn page(&mut self, list: List, result: &str) -> Option<()> {
        let page: Page<'_> = serde_json::from_str(result).ok()?;
        list.items(&page)?.get().hash(&mut self.hasher);
        self.next = page.next_cursor;
        Some(())
    }

    pub fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    pub fn digest(&self) -> u64 {
        self.hasher.finish()
    }
}

/// What one client has been shown.
#[derive(Debug, Default)]
pub struct Shown {
    whole: [Option<u64>; 4],
    readings: [Option<Reading>; 4],
    /// Pages that are asked for, by the id towards the upstream, with the cursor; none for a first page.
    asked: HashMap<IdKey, (List, Option<String>)>,
}

impl Shown {
    /// The client asks. At most as many are remembered as there are requests without an answer.
    pub fn asked(&mut self, request: &Request<'_>) {
        if let Some(list) = List::of(&request.method) {
            let cursor = request.params.cursor.and_then(Field::text).map(Into::into);
            self.asked.insert(request.key.clone(), (list, cursor));
        }
    }

    /// The request will not be answered.
    pub fn lost(&mut self, key: &IdKey) {
        self.asked.remove(key);
    }

    /// The request is answered; `result` if it was with one. Which list it was that was asked for.
    pub fn answered(&mut self, key: &IdKey, result: Option<&str>) -> Option<List> {
        let (list, cursor) = self.asked.remove(key)?;
        if let Some(result) = result {
            self.take(list, cursor, result);
        }
        Some(list)
    }

    /// The client is shown what the cache has, in place of the upstream's answer.
    pub fn kept(&mut self, request: &Request<'_>, result: &str) {
        if let Some(list) = List::of(&request.method) {
            self.take(list, request.params.cursor.and_then(Field::text).map(Into::into), result);
        }
    }

    fn take(&mut self, list: List, cursor: Option<String>, result: &str) {
        let (whole, reading) = (&mut self.whole[list as usize], &mut self.readings[list as usize]);
        let mut current = match cursor {
            None => Reading::default(),
            Some(cursor) => match reading.take().filter(|reading| reading.next() == Some(cursor.as_str())) {
                Some(current) => current,
                None => return,
            },
        };
        if current.page(list, result).is_none() {
            return;
        }
        match current.next() {
            None => *whole = Some(current.digest()),
            Some(_) => *reading = Some(current),
        }
    }

    /// The lists that the client has been shown whole.
    pub fn lists(&self) -> impl Iterator<Item = (List, u64)> {
        List::ALL.into_iter().filter_map(|list| Some((list, self.whole[list as usize]?)))
    }

    /// The client is told that the list is another now: nothing that it has been shown counts.
    pub fn forget(&mut self, list: List) {
        self.whole[list as usize] = None;
    }
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    prompts: Option<&'a RawValue>,
    #[serde(borrow)]
    resources: Option<&'a RawValue>,
    #[serde(borrow, rename = "resourceTemplates")]
    templates: Option<&'a RawValue>,
    #[serde(rename = "nextCursor")]
    next_cursor: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::message::{Message, parse};

    fn ask(shown: &mut Shown, id: i32, cursor: &str) {
        let line = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/list","params":{{{cursor}}}}}"#);
        let Ok(Message::Request(request)) = parse(line.as_bytes()) else { panic!("{line}") };
        shown.asked(&request);
    }

    fn answer(shown: &mut Shown, id: i64, result: &str) {
        shown.answered(&IdKey::Integer(id), Some(result));
    }

    #[test]
    fn a_list_counts_when_all_its_pages_were_shown_in_order() {
        let mut shown = Shown::default();
        ask(&mut shown, 1, "");
        answer(&mut shown, 1, r#"{"tools":[{"name":"a"}],"nextCursor":"p\u0032"}"#);
        assert_eq!(shown.lists().count(), 0, "there is another page");
        ask(&mut shown, 2, r#""cursor":"p2""#);
        answer(&mut shown, 2, r#"{"tools":[{"name":"b"}]}"#);
        let (list, digest) = shown.lists().next().unwrap();
        assert_eq!(list, List::Tools);

        let mut again = Reading::default();
        again.page(list, r#"{"nextCursor":"p2","tools":[{"name":"a"}]}"#).unwrap();
        again.page(list, r#"{"tools":[{"name":"b"}]}"#).unwrap();
        assert_eq!(again.digest(), digest);
        let mut other = Reading::default();
        other.page(list, r#"{"tools":[{"name":"a"},{"name":"c"}]}"#).unwrap();
        assert_ne!(other.digest(), digest);
        assert!(other.page(list, r#"{"prompts":[]}"#).is_none());
    }

    #[test]
    fn a_list_of_the_cache_counts_as_the_upstreams_does() {
        let result = r#"{"tools":[{"name":"a"}],"ttlMs":1}"#;
        let (mut asked, mut kept) = (Shown::default(), Shown::default());
        ask(&mut asked, 1, "");
        answer(&mut asked, 1, result);
        let line = br#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        let Ok(Message::Request(request)) = parse(line) else { panic!() };
        kept.kept(&request, result);
        assert!(asked.lists().eq(kept.lists()) && kept.lists().count() == 1);
    }

    #[test]
    fn a_page_without_the_one_before_it_counts_for_nothing() {
        let mut shown = Shown::default();
        ask(&mut shown, 1, r#""cursor":"p2""#);
        answer(&mut shown, 1, r#"{"tools":[]}"#);
        ask(&mut shown, 2, "");
        shown.answered(&IdKey::Integer(2), None);
        assert_eq!(shown.lists().count(), 0);
        assert!(shown.asked.is_empty());
    }
}
