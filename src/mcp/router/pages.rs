//! Merged lists in pages: what did not fit into one answer waits here for the cursor that the answer gave.
//!
//! A cursor belongs to one list as it was when it was made, so that no item is missed or told twice while services come and go. Bounds: `KEPT` lists
//! of one client; the oldest goes first, and its cursors are none any more.

use std::collections::VecDeque;

use serde_json::json;

use super::lists::ListKind;

#[derive(Debug, Default)]
pub struct Pages {
    kept: VecDeque<Kept>,
    count: u64,
}

#[derive(Debug)]
struct Kept {
    number: u64,
    kind: ListKind,
    items: Vec<String>,
}

/// One page, and the cursor of the next as JSON.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    pub items: Vec<String>,
    pub next: Option<String>,
}

impl Pages {
    /// The first page of a list.
    pub fn first(&mut self, kind: ListKind, mut items: Vec<String>, size: usize) -> Page {
        if items.len() <= size {
            return Page { items, next: None };
        }
        let rest = items.split_off(size);
        self.count += 1;
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Kept { number: self.count, kind, items: rest });
        Page { items, next: Some(cursor(self.count, 0)) }
    }

    /// The page at a cursor. `None`: there is no such page any more, or never was.
    pub fn at(&mut self, kind: ListKind, given: &str, size: usize) -> Option<Page> {
        let (number, from) = read(given)?;
        let kept = self.kept.iter().find(|kept| kept.number == number && kept.kind == kind)?;
        let items: Vec<String> = kept.items.iter().skip(from).take(size).cloned().collect();
        let end = from + items.len();
        let next = (end < kept.items.len()).then(|| cursor(number, end));
        (!items.is_empty()).then_some(Page { items, next })
    }
}

fn cursor(number: u64, from: usize) -> String {
    json!(format!("mcpeg-{number:x}-{from:x}")).to_string()
}

fn read(cursor: &str) -> Option<(u64, usize)> {
    let (number, from) = cursor.strip_prefix("mcpeg-")?.split_once('-')?;
    Some((u64::from_str_radix(number, 16).ok()?, usize::from_str_radix(from, 16).ok()?))
}

const KEPT: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn items(count: usize) -> Vec<String> {
        (0..count).map(|number| number.to_string()).collect()
    }

    #[test]
    fn pages_put_together_are_the_list() {
        let mut pages = Pages::default();
        let mut page = pages.first(ListKind::Tools, items(25), 10);
        let mut all = page.items.clone();
        while let Some(next) = page.next {
            let next: String = serde_json::from_str(&next).unwrap();
            // A page can be had again, should its answer have been lost.
            assert_eq!(pages.at(ListKind::Tools, &next, 10), pages.at(ListKind::Tools, &next, 10));
            assert_eq!(pages.at(ListKind::Prompts, &next, 10), None);
            page = pages.at(ListKind::Tools, &next, 10).unwrap();
            all.extend(page.items.clone());
        }
        assert_eq!(all, items(25));
        assert_eq!(pages.first(ListKind::Tools, items(10), 10).next, None);
    }

    #[test]
    fn only_some_lists_are_kept_and_no_other_cursor_is_one() {
        let mut pages = Pages::default();
        let first = pages.first(ListKind::Tools, items(3), 1).next.unwrap();
        let first: String = serde_json::from_str(&first).unwrap();
        for _ in 0..KEPT {
            pages.first(ListKind::Tools, items(3), 1);
        }
        assert_eq!(pages.at(ListKind::Tools, &first, 1), None);
        for other in ["", "mcpeg-", "mcpeg-1", "mcpeg-1-ffffffffffffffff", "mcpeg-x-y", "5"] {
            assert_eq!(pages.at(ListKind::Tools, other, 1), None, "{other}");
        }
    }
}
