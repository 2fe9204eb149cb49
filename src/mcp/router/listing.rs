//! How a merged list comes about: every service is asked for its pages, and what has come when all have answered, or when the time is
//! over, is the list. `lists` puts it together, `pages` keeps what did not fit.

use std::sync::Arc;

use tokio::time::Instant;

use super::branch::Ask;
use super::lists::{Collection, Known, ListKind, Page, result};
use super::search::{self, Query};
use super::{Catalogue, Open, Own, Purpose, Router};
use crate::mcp::answer;
use crate::mcp::call::{Call, Ending};
use crate::mcp::members::Members;
use crate::mcp::message::{Answer, AnswerBody, Field, IdKey, Request};
use crate::mcp::protocol::{Era, META_LEVEL, code};
use crate::mcp::registry::Registry;
use crate::mcp::service::Service;

impl Router {
    pub(super) fn list(&mut self, request: &Request<'_>, line: &str, kind: ListKind, era: Era, registry: &Registry) {
        let size = registry.aggregate.page_size;
        if let Some(cursor) = request.params.cursor.filter(|cursor| cursor.raw() != "null") {
            let Some(page) = cursor.text().and_then(|cursor| self.pages.at(kind, &cursor, size)) else {
                let message = "the cursor is none of ours, or of a list that is not kept any more: ask without one";
                return self.refuse_request(request, code::INVALID_PARAMS, message, "invalid_params");
            };
            let result = result(kind, &page.items, page.next.as_deref(), &[], era);
            return self.answer_at_once(request, &result);
        }
        if kind == ListKind::Tools && registry.aggregate.search {
            let result = result(kind, &search::tools(), None, &[], era);
            return self.answer_at_once(request, &result);
        }
        self.collect(request, line, kind, Purpose::List, era, registry);
    }

    /// `find_tools`: the tools of all services, of which the best are given.
    pub(super) fn find(&mut self, request: &Request<'_>, line: &str, query: Query, era: Era, registry: &Registry) {
        let known = self.catalogue.take_if(|known| known.until > Instant::now());
        if let Some(known) = known {
            let best = query.best(&known.tools);
            let result = search::found(&best, known.tools.len(), &known.unavailable, era == Era::Modern);
            self.answer_at_once(request, &result);
            self.catalogue = Some(known);
            return;
        }
        self.collect(request, line, ListKind::Tools, Purpose::Find(query), era, registry);
    }

    fn collect(
        &mut self,
        request: &Request<'_>,
        line: &str,
        kind: ListKind,
        purpose: Purpose,
        era: Era,
        registry: &Registry,
    ) {
        let call = Call::begin(request, &self.name, self.version);
        let visible = self.visible(registry);
        let names = visible.iter().map(|service| service.name.to_string());
        let mut list = Collection::new(kind, names, registry.limits.max_message_bytes);
        let asked = visible.iter().filter(|service| {
            let lacks = self.branches.get(&*service.name).is_some_and(|branch| branch.lacks(kind.capability()));
            if lacks {
                list.add_nothing(&service.name);
            }
            !lacks
        });
        let asked: Vec<Arc<Service>> = asked.cloned().collect();
        // The session behind a branch keeps to its service's own time-out.
        let longest = asked.iter().map(|service| service.settings().timeout).max().unwrap_or_default();
        let deadline = Instant::now() + longest.min(registry.aggregate.list_timeout);
        let level = match era {
            Era::Legacy => Some(self.level.clone().unwrap_or_else(|| "warning".to_owned())),
            Era::Modern => {
                Members::read(line).and_then(|message| message.object("params")?.object("_meta")?.text(META_LEVEL))
            }
        };
        self.open.insert(request.key.clone(), Open::Listing { call, era, list, purpose, deadline, level });
        for service in &asked {
            self.ask_for_page(&request.key, kind, service, era, None);
        }
        self.finish_list_if_done(&request.key);
    }

    pub(super) fn ask_for_page(
        &mut self,
        open: &IdKey,
        kind: ListKind,
        service: &Arc<Service>,
        era: Era,
        cursor: Option<String>,
    ) {
        let id = self.next_id();
        let key = IdKey::Text(id.as_str().into());
        self.own.insert(key.clone(), Own::Page { open: open.clone(), service: service.name.to_string() });
        self.submit(key, Ask::Page { id, method: kind.method(), cursor }, service, era);
    }

    pub(super) fn on_page(&mut self, open: &IdKey, service: &str, answer: &Answer<'_>, result: Option<Field<'_>>) {
        let Some(Open::Listing { list, era, .. }) = self.open.get_mut(open) else { return };
        let (kind, era) = (list.kind, *era);
        let Some(result) = result else {
            match answer.body {
                // It does not know the method: it has nothing of the kind.
                AnswerBody::Error { code: Some(code), .. } if code == i64::from(code::METHOD_NOT_FOUND) => {
                    list.add_nothing(service);
                    return self.finish_list_if_done(open);
                }
                _ => return self.page_failed(open, service, &super::replies::error_of(answer, service)),
            }
        };
        let (page, known) = list.add(service, result.raw());
        known.into_iter().for_each(|known| self.learn(service, known));
        let found = self.registry.borrow().services.get(service).cloned();
        match (page, found) {
            (Page::More(cursor), Some(service)) => self.ask_for_page(open, kind, &service, era, Some(cursor)),
            (Page::More(_), None) => self.page_failed(open, service, "it was removed"),
            (Page::Last, _) => {
                self.listed(service, kind);
                self.finish_list_if_done(open);
            }
        }
    }

    fn learn(&mut self, service: &str, known: Known) {
        match known {
            Known::Address(uri) if self.addresses.len() < MAX_KNOWN => {
                self.addresses.entry(uri).or_insert_with(|| service.to_owned());
            }
            Known::Shortened(short, name) if self.shortened.len() < MAX_KNOWN => {
                self.shortened.insert(short, (service.to_owned(), name));
            }
            Known::Address(_) | Known::Shortened(..) => {}
        }
    }

    pub(super) fn page_failed(&mut self, open: &IdKey, service: &str, problem: &str) {
        // Why is for the client alone: it may be the server's own text.
        tracing::warn!(service, "a service is left out of a list");
        if let Some(Open::Listing { list, .. }) = self.open.get_mut(open) {
            list.fail(service, problem);
            let kind = list.kind;
            self.left_out(service, kind);
        }
        self.finish_list_if_done(open);
    }

    pub(super) fn finish_list_if_done(&mut self, key: &IdKey) {
        if !matches!(self.open.get(key), Some(Open::Listing { list, .. }) if list.is_done()) {
            return;
        }
        let Some(Open::Listing { call, era, mut list, purpose, level, .. }) = self.open.remove(key) else { return };
        let (items, unavailable) = (list.take_items(), list.unavailable());
        self.warn_of_missing(level.as_deref(), &unavailable);
        let result = match purpose {
            Purpose::List => {
                let size = self.registry.borrow().aggregate.page_size;
                let page = self.pages.first(list.kind, items, size);
                result(list.kind, &page.items, page.next.as_deref(), &unavailable, era)
            }
            Purpose::Find(query) => {
                let result = search::found(&query.best(&items), items.len(), &unavailable, era == Era::Modern);
                if unavailable.is_empty() {
                    let until = Instant::now() + CATALOGUE_FOR;
                    self.catalogue = Some(Catalogue { tools: items, unavailable, until });
                }
                result
            }
        };
        let line = answer::result(Field(&call.id), &result);
        self.settle(&call, &Ending::Answered { tool_error: false }, line);
    }
}

/// Addresses, and shortened names.
const MAX_KNOWN: usize = 10_000;
/// How long what was found out for one search serves the next, unless a service says that its tools have changed.
const CATALOGUE_FOR: std::time::Duration = std::time::Duration::from_secs(30);
