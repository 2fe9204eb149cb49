//! What a child is asked before it takes over from another one: whether it answers at all, and whether its lists are those that the client has
//! been shown.
//!
//! It writes the questions and reads the answers; ids are of its own. Invariant: at most `MAX_PAGES` questions for a list, and all of it
//! within the deadline.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::{Sleep, sleep};

use crate::mcp::answer;
use crate::mcp::message::IdKey;
use crate::mcp::protocol::{DISCOVER, META_CAPABILITIES, META_VERSION};
use crate::mcp::shown::{List, Reading};

pub struct Rehearsal {
    /// The version of a modern session, whose requests each say it.
    modern: Option<String>,
    discover: bool,
    lists: VecDeque<(List, u64)>,
    reading: Reading,
    pages: usize,
    /// The question that is not answered yet.
    asked: Option<IdKey>,
    count: u32,
    changed: Vec<List>,
    pub deadline: Pin<Box<Sleep>>,
}

impl Rehearsal {
    /// `lists`: what the client has been shown.
    pub fn new(modern: Option<String>, lists: impl Iterator<Item = (List, u64)>, patience: Duration) -> Self {
        let lists: VecDeque<_> = lists.collect();
        Self {
            discover: modern.is_some() && lists.is_empty(),
            modern,
            lists,
            reading: Reading::default(),
            pages: 0,
            asked: None,
            count: 0,
            changed: Vec::new(),
            deadline: Box::pin(sleep(patience)),
        }
    }

    /// The next question, if it is time for one.
    pub fn question(&mut self) -> Option<Vec<u8>> {
        if self.asked.is_some() {
            return None;
        }
        let (method, cursor) = match self.lists.front() {
            _ if std::mem::take(&mut self.discover) => (DISCOVER, None),
            Some((list, _)) => (list.method(), self.reading.next().map(str::to_owned)),
            None => return None,
        };
        self.count += 1;
        let id = format!("mcpeg-rehearsal-{}", self.count);
        let mut params = Map::new();
        if let Some(cursor) = cursor {
            params.insert("cursor".to_owned(), json!(cursor));
        }
        if let Some(version) = &self.modern {
            params.insert("_meta".to_owned(), json!({ META_VERSION: version, META_CAPABILITIES: {} }));
        }
        let line = answer::request(&id, method, &Value::Object(params).to_string());
        self.asked = Some(IdKey::Text(id.into()));
        Some(line)
    }

    pub fn awaits(&self, key: &IdKey) -> bool {
        self.asked.as_ref() == Some(key)
    }

    /// The question is answered; `result` if it was with one. The list whose page it is.
    pub fn answered(&mut self, result: Option<&str>) -> Option<List> {
        self.asked = None;
        let &(list, expected) = self.lists.front()?;
        let read = result.and_then(|result| self.reading.page(list, result));
        self.pages += 1;
        // Where nobody knows, the client shall look for itself.
        let unknown = read.is_none() || (self.reading.next().is_some() && self.pages >= MAX_PAGES);
        if unknown || self.reading.next().is_none() {
            if unknown || self.reading.digest() != expected {
                self.changed.push(list);
            }
            self.lists.pop_front();
            (self.reading, self.pages) = (Reading::default(), 0);
        }
        Some(list)
    }

    pub fn is_over(&self) -> bool {
        self.asked.is_none() && self.lists.is_empty() && !self.discover
    }

    /// The lists that are not what the client has been shown, or may not be.
    pub fn changed(self) -> Vec<List> {
        self.changed
    }
}

const MAX_PAGES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(pages: &[&str]) -> u64 {
        let mut reading = Reading::default();
        pages.iter().for_each(|page| reading.page(List::Tools, page).unwrap());
        reading.digest()
    }

    const FIRST: &str = r#"{"tools":[1],"nextCursor":"c\"2"}"#;
    const SECOND: &str = r#"{"tools":[2]}"#;

    #[tokio::test]
    async fn pages_are_asked_for_one_by_one_and_compared_whole() {
        for (last, changed) in [(SECOND, vec![]), (r#"{"tools":[3]}"#, vec![List::Tools])] {
            let shown = [(List::Tools, digest(&[FIRST, SECOND]))];
            let mut rehearsal = Rehearsal::new(None, shown.into_iter(), Duration::from_secs(1));
            let first: Value = serde_json::from_slice(&rehearsal.question().unwrap()).unwrap();
            assert_eq!((&first["method"], &first["params"]), (&json!("tools/list"), &json!({})));
            assert!(rehearsal.awaits(&IdKey::Text("mcpeg-rehearsal-1".into())) && rehearsal.question().is_none());
            rehearsal.answered(Some(FIRST));
            let second: Value = serde_json::from_slice(&rehearsal.question().unwrap()).unwrap();
            assert_eq!(second["params"]["cursor"], "c\"2");
            rehearsal.answered(Some(last));
            assert!(rehearsal.is_over());
            assert_eq!(rehearsal.changed(), changed);
        }
    }

    #[tokio::test]
    async fn a_list_that_is_refused_counts_as_changed_and_any_answer_to_discover_as_life() {
        let mut refused = Rehearsal::new(None, [(List::Prompts, 1)].into_iter(), Duration::from_secs(1));
        refused.question();
        refused.answered(None);
        assert!(refused.is_over());
        assert_eq!(refused.changed(), [List::Prompts]);
        let mut modern = Rehearsal::new(Some("2026-07-28".into()), [].into_iter(), Duration::from_secs(1));
        assert!(!modern.is_over());
        let question: Value = serde_json::from_slice(&modern.question().unwrap()).unwrap();
        assert_eq!(question["method"], "server/discover");
        assert_eq!(question["params"]["_meta"][META_VERSION], "2026-07-28");
        modern.answered(None);
        assert!(modern.is_over());
    }
}
