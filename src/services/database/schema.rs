//! What tables there are: columns, types, keys and indexes, asked of the database's own catalogue.
//!
//! Each driver has four statements (`catalogue`) that give the same columns, so that one builder makes the tables of all. A table's name is
//! how it is known here and in resources: as such where that finds it, else `schema.name`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::catalogue;
use super::pool::Lease;
use super::session::{Fault, Query};
use crate::services::settings::database::{Bounds, Driver};

/// Tables as JSON, with what was left out.
pub struct Schema {
    pub tables: Vec<Value>,
    pub truncated: bool,
}

/// A table's names, as it is known and as the database quotes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    pub table: String,
    pub schema: Option<String>,
    pub name: String,
    pub kind: String,
}

/// The tables and views, by name; one of them alone if `only` is given; those after `after`.
pub async fn names(
    lease: &mut Lease,
    driver: Driver,
    only: Option<&str>,
    bounds: Bounds,
) -> Result<(Vec<Named>, bool), Fault> {
    let rows = asked(lease, catalogue::of(driver).tables, driver, only, bounds).await?;
    let truncated = rows.1;
    let named = rows.0.into_iter().map(|mut row| Named {
        table: take(&mut row, "table"),
        schema: Some(take(&mut row, "schema")).filter(|schema| !schema.is_empty()),
        name: take(&mut row, "name"),
        kind: take(&mut row, "kind"),
    });
    Ok((named.collect(), truncated))
}

pub async fn read(lease: &mut Lease, driver: Driver, only: Option<&str>, bounds: Bounds) -> Result<Schema, Fault> {
    let statements = catalogue::of(driver);
    // The bound is of tables; what belongs to them is bounded by bytes.
    let parts = Bounds { max_rows: MAX_PARTS, ..bounds };
    let (tables, mut truncated) = asked(lease, statements.tables, driver, only, bounds).await?;
    let mut columns = Grouped::of(asked(lease, statements.columns, driver, only, parts).await?, &mut truncated);
    let mut indexes = Grouped::of(asked(lease, statements.indexes, driver, only, parts).await?, &mut truncated);
    let mut foreign = Grouped::of(asked(lease, statements.foreign_keys, driver, only, parts).await?, &mut truncated);
    let (mut made, mut bytes) = (Vec::new(), 0);
    for table in tables {
        let name = table.get("table").and_then(Value::as_str).unwrap_or_default().to_owned();
        let table = built(table, columns.of_table(&name), indexes.of_table(&name), foreign.of_table(&name));
        bytes += table.to_string().len();
        if bytes > bounds.max_bytes {
            truncated = true;
            break;
        }
        made.push(table);
    }
    Ok(Schema { tables: made, truncated })
}

type Row = Map<String, Value>;

async fn asked(
    lease: &mut Lease,
    sql: &str,
    driver: Driver,
    only: Option<&str>,
    bounds: Bounds,
) -> Result<(Vec<Row>, bool), Fault> {
    let only = only.map_or(Value::Null, Value::from);
    // Where places have no numbers, each is a parameter.
    let parameters = match driver {
        Driver::Mysql => vec![only.clone(), only],
        Driver::Postgres | Driver::Sqlite => vec![only],
    };
    let rows = lease.run(&Query { sql, parameters: &parameters, bounds }).await?;
    Ok((rows.rows, rows.truncated.is_some()))
}

/// Rows by the table that they belong to.
struct Grouped(BTreeMap<String, Vec<Row>>);

impl Grouped {
    fn of((rows, cut): (Vec<Row>, bool), truncated: &mut bool) -> Self {
        *truncated |= cut;
        let mut tables: BTreeMap<String, Vec<Row>> = BTreeMap::new();
        for mut row in rows {
            tables.entry(take(&mut row, "table")).or_default().push(row);
        }
        Self(tables)
    }

    fn of_table(&mut self, name: &str) -> Vec<Row> {
        self.0.remove(name).unwrap_or_default()
    }
}

fn built(mut table: Row, columns: Vec<Row>, indexes: Vec<Row>, foreign: Vec<Row>) -> Value {
    let mut made = Map::new();
    made.insert("name".to_owned(), take(&mut table, "table").into());
    for key in ["schema", "kind", "comment"] {
        insert_some(&mut made, key, table.remove(key));
    }
    let mut primary: Vec<(i64, String)> = Vec::new();
    let columns = columns.into_iter().map(|mut row| {
        let mut column = Map::new();
        let name = take(&mut row, "name");
        // SQLite says here which columns are its key.
        if let Some(place) = row.get("key").and_then(Value::as_i64).filter(|place| *place > 0) {
            primary.push((place, name.clone()));
        }
        column.insert("name".to_owned(), name.into());
        column.insert("type".to_owned(), take(&mut row, "type").into());
        column.insert("nullable".to_owned(), truth(row.get("nullable")).into());
        for key in ["default", "extra", "comment"] {
            insert_some(&mut column, key, row.remove(key));
        }
        Value::Object(column)
    });
    made.insert("columns".to_owned(), columns.collect());
    primary.sort();
    let mut primary: Vec<String> = primary.into_iter().map(|(_, name)| name).collect();
    let mut shown = Vec::new();
    for (name, rows) in by(indexes, "index") {
        let is_primary = truth(rows[0].get("primary"));
        let unique = truth(rows[0].get("unique"));
        let columns: Vec<String> = rows.into_iter().map(|mut row| take(&mut row, "column")).collect();
        if is_primary {
            primary.clone_from(&columns);
        }
        shown.push(json!({ "name": name, "unique": unique, "columns": columns }));
    }
    made.insert("primary_key".to_owned(), primary.into());
    let foreign = by(foreign, "constraint").into_iter().map(|(name, mut rows)| {
        let to = take(&mut rows[0], "to_table");
        let (from, to_columns): (Vec<String>, Vec<String>) =
            rows.into_iter().map(|mut row| (take(&mut row, "column"), take(&mut row, "to_column"))).unzip();
        json!({ "name": name, "columns": from, "references": { "table": to, "columns": to_columns } })
    });
    made.insert("foreign_keys".to_owned(), foreign.collect());
    made.insert("indexes".to_owned(), shown.into());
    Value::Object(made)
}

/// Rows that follow one another and have the same name.
fn by(rows: Vec<Row>, key: &str) -> Vec<(String, Vec<Row>)> {
    let mut groups: Vec<(String, Vec<Row>)> = Vec::new();
    for mut row in rows {
        let name = take(&mut row, key);
        match groups.last_mut() {
            Some((last, rows)) if *last == name => rows.push(row),
            _ => groups.push((name, vec![row])),
        }
    }
    groups
}

fn take(row: &mut Row, key: &str) -> String {
    match row.remove(key) {
        Some(Value::String(text)) => text,
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

fn insert_some(object: &mut Row, key: &str, value: Option<Value>) {
    if let Some(value) = value.filter(|value| !value.is_null() && value.as_str() != Some("")) {
        object.insert(key.to_owned(), value);
    }
}

/// Databases without booleans say 0 and 1.
fn truth(value: Option<&Value>) -> bool {
    value.is_some_and(|value| value.as_bool().unwrap_or_else(|| value.as_i64().is_some_and(|number| number != 0)))
}

/// Columns, or parts of keys, of all tables together.
const MAX_PARTS: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: Value) -> Row {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_table_is_put_together_from_rows_of_any_catalogue() {
        let table = row(json!({ "table": "orders", "schema": "", "kind": "table", "comment": null }));
        let columns = vec![
            row(json!({ "name": "b", "type": "int", "nullable": 0, "key": 2 })),
            row(json!({ "name": "a", "type": "text", "nullable": true, "default": "'x'", "key": 1 })),
        ];
        let indexes = vec![
            row(json!({ "index": "i", "unique": 1, "primary": false, "column": "a" })),
            row(json!({ "index": "i", "unique": 1, "primary": false, "column": "b" })),
        ];
        let foreign = vec![row(json!({ "constraint": 0, "column": "a", "to_table": "t", "to_column": "id" }))];
        let made = built(table, columns, indexes, foreign);
        assert_eq!(
            made,
            json!({
                "name": "orders", "kind": "table",
                "columns": [
                    { "name": "b", "type": "int", "nullable": false },
                    { "name": "a", "type": "text", "nullable": true, "default": "'x'" },
                ],
                "primary_key": ["a", "b"],
                "foreign_keys": [{ "name": "0", "columns": ["a"], "references": { "table": "t", "columns": ["id"] } }],
                "indexes": [{ "name": "i", "unique": true, "columns": ["a", "b"] }],
            })
        );
    }
}
