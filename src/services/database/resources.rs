//! A database's resources: each table's schema, and a sample of its rows, at the addresses that the service file has patterns for.
//!
//! A table's name stands in an address percent-encoded. Only a table that the catalogue knows is ever asked for.

use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Value, json};

use super::pool::Lease;
use super::session::{Fault, Query};
use super::sql::identifier;
use super::{DatabaseService, Used, schema};
use crate::services::resources::{Completion, Content, Page, Resources};
use crate::services::server::{CallFuture, Called, Trouble};
use crate::services::settings::database::{Bounds, DatabaseResource, Handler};

impl DatabaseResource {
    fn template(&self) -> String {
        format!("{}{{table}}{}", self.before, self.after)
    }

    fn address(&self, table: &str) -> String {
        format!("{}{}{}", self.before, utf8_percent_encode(table, ENCODED), self.after)
    }

    /// The table that an address is of.
    fn table(&self, address: &str) -> Option<String> {
        let place = address.strip_prefix(&self.before)?.strip_suffix(&self.after)?;
        let table = percent_decode_str(place).decode_utf8().ok()?;
        (!place.is_empty() && !place.contains('/')).then(|| table.into_owned())
    }
}

impl DatabaseService {
    async fn page(&self, cursor: Option<String>, used: &mut Used) -> Result<Page, Trouble> {
        let Some(bounds) = self.list_bounds() else { return Ok(Page::default()) };
        let driver = self.settings.driver;
        let names = async |lease: &mut Lease, bounds| schema::names(lease, driver, None, bounds).await;
        let (mut names, _) = self.leased(bounds, used, names).await?;
        if let Some(last) = cursor {
            let start = names.iter().position(|named| named.table == last);
            let Some(start) = start else {
                return Err(Trouble::Tool("the cursor is none of this service's, or its table is gone".to_owned()));
            };
            names.drain(..=start);
        }
        let more = names.len() > PAGE;
        names.truncate(PAGE);
        let next = names.last().filter(|_| more).map(|named| named.table.clone());
        let resources = names.iter().flat_map(|named| {
            self.settings.resources.iter().map(|resource| {
                let what = match resource.handler {
                    Handler::Schema => "The schema",
                    Handler::Data => "Rows",
                };
                json!({
                    "uri": resource.address(&named.table),
                    "name": named.table,
                    "description": format!("{what} of the {} {}", named.kind, named.table),
                    "mimeType": JSON,
                })
            })
        });
        Ok(Page { resources: resources.collect(), next })
    }

    /// For the list of tables, which is bounded by its pages.
    fn list_bounds(&self) -> Option<Bounds> {
        let bounds = self.settings.resources.first()?.bounds;
        Some(Bounds { max_rows: MAX_TABLES, max_bytes: bounds.max_bytes.max(MIN_LIST_BYTES), ..bounds })
    }

    /// `None`: there is no such table.
    async fn content(
        &self,
        resource: &DatabaseResource,
        table: &str,
        used: &mut Used,
    ) -> Result<Option<Content>, Trouble> {
        let driver = self.settings.driver;
        let read = async |lease: &mut Lease, bounds: Bounds| -> Result<Option<Value>, Fault> {
            let one = Bounds { max_rows: 1, ..bounds };
            if resource.handler == Handler::Schema {
                return Ok(schema::read(lease, driver, Some(table), one).await?.tables.pop());
            }
            let (found, _) = schema::names(lease, driver, Some(table), one).await?;
            let Some(named) = found.first() else { return Ok(None) };
            let place = named.schema.iter().chain([&named.name]).map(|name| identifier(name, driver));
            let place = place.collect::<Vec<_>>().join(".");
            let sql = format!("SELECT * FROM {place} LIMIT {}", bounds.max_rows.saturating_add(1));
            let rows = lease.run(&Query { sql: &sql, parameters: &[], bounds }).await?;
            Ok(Some(Value::Object(rows.into_object())))
        };
        let found = self.leased(resource.bounds, used, read).await?;
        Ok(found.map(|value| Content { mime_type: JSON, text: value.to_string() }))
    }

    async fn names_like(&self, begun: &str, used: &mut Used) -> Result<Completion, Trouble> {
        let Some(bounds) = self.list_bounds() else { return Ok(Completion::default()) };
        let driver = self.settings.driver;
        let names = async |lease: &mut Lease, bounds| schema::names(lease, driver, None, bounds).await;
        let (names, _) = self.leased(bounds, used, names).await?;
        let mut values: Vec<String> = names.into_iter().map(|named| named.table).collect();
        values.retain(|table| table.starts_with(begun));
        let has_more = values.len() > MAX_COMPLETIONS;
        values.truncate(MAX_COMPLETIONS);
        Ok(Completion { values, has_more })
    }
}

impl Resources for DatabaseService {
    fn templates(&self) -> Vec<Value> {
        let template = |resource: &DatabaseResource| {
            let (name, description) = match resource.handler {
                Handler::Schema => ("table-schema", "Columns, keys and indexes of a table".to_owned()),
                Handler::Data => {
                    ("table-data", format!("The first rows of a table, at most {}", resource.bounds.max_rows))
                }
            };
            json!({ "uriTemplate": resource.template(), "name": name, "description": description, "mimeType": JSON })
        };
        self.settings.resources.iter().map(template).collect()
    }

    fn list(self: Arc<Self>, cursor: Option<String>) -> CallFuture<Page> {
        Box::pin(async move {
            let mut used = Used::default();
            let outcome = self.page(cursor, &mut used).await;
            Called { outcome, versions: used.0 }
        })
    }

    fn read(self: Arc<Self>, address: &str) -> Option<CallFuture<Option<Content>>> {
        let found = self.settings.resources.iter().enumerate();
        let (index, table) =
            found.map(|(index, resource)| (index, resource.table(address))).find(|(_, table)| table.is_some())?;
        let table = table?;
        Some(Box::pin(async move {
            let mut used = Used::default();
            let outcome = self.content(&self.settings.resources[index], &table, &mut used).await;
            Called { outcome, versions: used.0 }
        }))
    }

    fn complete(self: Arc<Self>, template: &str, argument: &str, begun: &str) -> Option<CallFuture<Completion>> {
        let is_known = self.settings.resources.iter().any(|resource| resource.template() == template);
        if !is_known || argument != "table" {
            return None;
        }
        let begun = begun.to_owned();
        Some(Box::pin(async move {
            let mut used = Used::default();
            let outcome = self.names_like(&begun, &mut used).await;
            Called { outcome, versions: used.0 }
        }))
    }
}

const JSON: &str = "application/json";
/// Tables of one page of the list.
const PAGE: usize = 500;
/// More are not listed; they can be read all the same.
const MAX_TABLES: usize = 10_000;
const MIN_LIST_BYTES: usize = 4 << 20;
/// Of the specification.
const MAX_COMPLETIONS: usize = 100;
/// All but what RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_table_keeps_its_name_in_an_address() {
        let bounds = Bounds { max_rows: 1, max_bytes: 1, time: Duration::ZERO };
        let resource = DatabaseResource {
            before: "mysql://data/".to_owned(),
            after: "/rows".to_owned(),
            handler: Handler::Data,
            bounds,
        };
        for table in ["orders", "a b/ü?#%", "x.y"] {
            assert_eq!(resource.table(&resource.address(table)).as_deref(), Some(table));
        }
        assert_eq!(resource.template(), "mysql://data/{table}/rows");
        for address in ["mysql://data//rows", "mysql://data/a/b/rows", "mysql://data/a", "mysql://data/%ff/rows"] {
            assert_eq!(resource.table(address), None, "{address}");
        }
    }
}
