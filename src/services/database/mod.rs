//! `type: database`: a MySQL, PostgreSQL or SQLite database, for agents that ask it in SQL and hold no login.
//!
//! Here is what agents see: two tools, and resources of each table (`resources`). `sql` judges a statement before anybody is asked,
//! `pool` keeps the connections, `session` and the drivers run it, `rows` makes JSON of what comes, `schema` and `catalogue` tell of tables,
//! `login` has the credentials of the moment.
//!
//! Invariants: unless `read_only: false` is said, nothing is changed; an answer is no larger than its bounds, and says when it was cut;
//! a call that ends before its answer ends at the server too.

mod catalogue;
mod login;
mod mysql;
pub mod pool;
mod postgres;
mod postgres_values;
mod resources;
mod rows;
mod schema;
mod session;
mod sql;
mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use self::login::Logins;
use self::pool::{Lease, Pool};
use self::rows::Rows;
use self::session::{Fault, Query};
use super::ServicesError;
use super::resources::Resources;
use super::server::{CallFuture, Called, Output, Served, Trouble};
use super::settings::database::{Bounds, DatabaseSettings, Driver};
use crate::ports::{SecretControl, SecretReader};

pub struct DatabaseService {
    settings: DatabaseSettings,
    pool: Arc<Pool>,
}

impl DatabaseService {
    pub fn new(
        name: &str,
        settings: DatabaseSettings,
        secrets: Arc<dyn SecretReader>,
        control: Arc<dyn SecretControl>,
    ) -> Result<Self, ServicesError> {
        // What is wrong with the files is said now, with its own words.
        if let Some(tls) = &settings.tls {
            let checked =
                if tls.verify { tls.files.client_config("https") } else { tls.files.client_config_unverified() };
            checked.map_err(|source| ServicesError::Tls { service: name.to_owned(), source })?;
        }
        let logins = Logins::new(name, &settings, secrets.clone(), control);
        Ok(Self { pool: Arc::new(Pool::new(settings.clone(), logins, secrets)), settings })
    }

    async fn query(&self, arguments: &Map<String, Value>, bounds: Bounds, used: &mut Used) -> Result<Output, Trouble> {
        let Asked { sql, parameters, max_rows } = Asked::of(arguments).map_err(Trouble::Tool)?;
        let driver = self.settings.driver;
        let sql = sql::accepted(sql, driver, self.settings.read_only).map_err(Trouble::Tool)?;
        let max_rows = max_rows.map_or(bounds.max_rows, |rows| rows.min(bounds.max_rows));
        let bounds = Bounds { max_rows, ..bounds };
        let rows = self
            .leased(bounds, used, async |lease: &mut Lease, bounds| lease.run(&Query { sql, parameters, bounds }).await)
            .await?;
        Ok(output(rows.into_object()))
    }

    async fn schema(&self, arguments: &Map<String, Value>, bounds: Bounds, used: &mut Used) -> Result<Output, Trouble> {
        let only = match arguments.get("table") {
            None | Some(Value::Null) => None,
            Some(Value::String(table)) => Some(table.as_str()),
            Some(_) => return Err(Trouble::Tool("the argument `table` has to be a text".to_owned())),
        };
        let driver = self.settings.driver;
        let read = async |lease: &mut Lease, bounds| schema::read(lease, driver, only, bounds).await;
        let found = self.leased(bounds, used, read).await?;
        if let Some(table) = only.filter(|_| found.tables.is_empty()) {
            return Err(Trouble::Tool(format!("there is no table `{table}`, or it may not be read")));
        }
        Ok(output(Map::from_iter([
            ("driver".to_owned(), driver.as_str().into()),
            ("tables".to_owned(), found.tables.into()),
            ("truncated".to_owned(), found.truncated.into()),
        ])))
    }

    /// Does `work` with a connection, within the time that there is. What is late is given up, and with it ends at the server.
    async fn leased<T>(
        &self,
        bounds: Bounds,
        used: &mut Used,
        work: impl AsyncFnOnce(&mut Lease, Bounds) -> Result<T, Fault>,
    ) -> Result<T, Trouble> {
        // Before whoever asked hears that nothing came, so that it hears why.
        let time = bounds.time - (bounds.time / 10).min(MARGIN);
        let bounds = Bounds { time, ..bounds };
        let whole = async {
            let mut lease = self.pool.lease(&bounds).await?;
            used.0 = lease.versions();
            let done = work(&mut lease, bounds).await;
            let is_broken = matches!(done, Err(Fault::Broken(_)));
            Ok((done, lease, is_broken))
        };
        let (done, lease, is_broken) = match tokio::time::timeout(time, whole).await {
            Ok(ended) => ended.map_err(trouble)?,
            Err(_) => {
                return Err(Trouble::Tool(format!(
                    "there was no answer within {time:?}, and the statement was stopped"
                )));
            }
        };
        // A server that does not answer leaves the connection to the keeper.
        let _ = tokio::time::timeout(self.settings.pool.connect, lease.give_back(is_broken)).await;
        done.map_err(trouble)
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

/// The versions of the secrets that a call has used.
#[derive(Default)]
struct Used(Arc<[String]>);

struct Asked<'a> {
    sql: &'a str,
    parameters: &'a [Value],
    max_rows: Option<usize>,
}

impl<'a> Asked<'a> {
    fn of(arguments: &'a Map<String, Value>) -> Result<Self, String> {
        const KNOWN: [&str; 3] = ["sql", "parameters", "max_rows"];
        if let Some(name) = arguments.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            return Err(format!("there is no argument `{name}`; there are: {}", KNOWN.join(", ")));
        }
        let sql = arguments.get("sql").and_then(Value::as_str);
        let sql = sql.ok_or_else(|| "the argument `sql` is missing, or no text".to_owned())?;
        let parameters: &[Value] = match arguments.get("parameters") {
            None | Some(Value::Null) => &[],
            Some(Value::Array(list)) => list,
            Some(_) => return Err("the argument `parameters` has to be a list".to_owned()),
        };
        let max_rows = match arguments.get("max_rows") {
            None | Some(Value::Null) => None,
            Some(rows) => {
                let rows = rows.as_u64().and_then(|rows| usize::try_from(rows).ok());
                Some(rows.ok_or_else(|| "the argument `max_rows` has to be a whole number".to_owned())?)
            }
        };
        Ok(Self { sql, parameters, max_rows })
    }
}

impl Served for DatabaseService {
    fn tools(&self) -> Vec<Value> {
        let query = self.settings.query.map(|bounds| listed_query(&self.settings, &bounds));
        query.into_iter().chain(self.settings.schema.map(|_| listed_schema(self.settings.driver))).collect()
    }

    fn call(self: Arc<Self>, tool: &str, arguments: Map<String, Value>) -> Option<CallFuture> {
        let (is_query, bounds) = match tool {
            QUERY => (true, self.settings.query?),
            SCHEMA => (false, self.settings.schema?),
            _ => return None,
        };
        Some(Box::pin(async move {
            let mut used = Used::default();
            let outcome = if is_query {
                self.query(&arguments, bounds, &mut used).await
            } else {
                self.schema(&arguments, bounds, &mut used).await
            };
            Called { outcome, versions: used.0 }
        }))
    }

    fn resources(self: Arc<Self>) -> Option<Arc<dyn Resources>> {
        if self.settings.resources.is_empty() { None } else { Some(self) }
    }
}

/// What the statement is at fault for is the model's to hear; what the database is, the breaker's to count.
fn trouble(fault: Fault) -> Trouble {
    match fault {
        Fault::Statement(words) | Fault::Busy(words) => Trouble::Tool(words),
        Fault::Login(reason) => Trouble::Behind { kind: "credential_refused", reason },
        Fault::Credential(reason) => Trouble::Behind { kind: "credential_unavailable", reason },
        Fault::Unreachable(reason) => Trouble::Behind {
            kind: "upstream_unreachable",
            reason: format!("the database cannot be reached: {reason}"),
        },
        Fault::Broken(reason) => Trouble::Behind {
            kind: "connection_broken",
            reason: format!("the connection to the database ended: {reason}"),
        },
    }
}

fn listed_query(settings: &DatabaseSettings, bounds: &Bounds) -> Value {
    let driver = settings.driver;
    let places = if driver == Driver::Postgres { "$1, $2, ..." } else { "?" };
    let (title, rows) = (driver.title(), bounds.max_rows);
    let statement = if settings.read_only { "SQL statement that reads" } else { "SQL statement" };
    let description = format!(
        "Runs one {statement} in a {title} database, and gives at most {rows} rows. Put values into `parameters`, not into the statement."
    );
    json!({
        "name": QUERY,
        "description": description,
        "inputSchema": {
            "type": "object",
            "properties": {
                "sql": { "type": "string", "description": format!("One statement, in the dialect of {title}") },
                "parameters": {
                    "type": "array",
                    "description": format!("The values of {places} in the statement, in order; bytes as {{\"base64\": \"...\"}}"),
                },
                "max_rows": { "type": "integer", "minimum": 0, "description": format!("At most {rows}, which is the default") },
            },
            "required": ["sql"],
            "additionalProperties": false,
        },
        "outputSchema": Rows::output_schema(),
        "annotations": {
            "readOnlyHint": settings.read_only,
            "destructiveHint": !settings.read_only,
            "idempotentHint": settings.read_only,
            "openWorldHint": false,
        },
    })
}

fn listed_schema(driver: Driver) -> Value {
    json!({
        "name": SCHEMA,
        "description": format!(
            "The tables and views of a {} database: columns with their types, keys and indexes; of one table if `table` is given.",
            driver.title()
        ),
        "inputSchema": {
            "type": "object",
            "properties": { "table": { "type": "string", "description": "A table's name, as this tool gives it" } },
            "additionalProperties": false,
        },
        "outputSchema": {
            "type": "object",
            "properties": {
                "driver": { "type": "string" },
                "tables": { "type": "array", "items": { "type": "object" } },
                "truncated": { "type": "boolean", "description": "There are more tables than are given" },
            },
            "required": ["driver", "tables", "truncated"],
        },
        "annotations": { "readOnlyHint": true, "idempotentHint": true, "openWorldHint": false },
    })
}

fn output(structured: Map<String, Value>) -> Output {
    Output { text: Value::Object(structured.clone()).to_string(), structured: Some(structured) }
}

pub const QUERY: &str = "query_database";
pub const SCHEMA: &str = "get_schema";
/// What is left of the time for an answer in words.
const MARGIN: Duration = Duration::from_secs(1);
