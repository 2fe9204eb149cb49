//! PostgreSQL, by tokio-postgres.
//!
//! Statements are prepared, so the server takes one at a time; parameters travel as text beside it and are read by the server as what it
//! takes them for. Rows come through a portal, which gives no more of them than are wanted. A column of a type that is not decoded here
//! (`postgres_values`) is asked for as text.
//!
//! The driver keeps no password once the connection stands.

use std::error::Error as _;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::{StreamExt, pin_mut};
use rustls::ClientConfig;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{CancelToken, Client, Config, Error, NoTls, Statement, Transaction};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::login::Login;
use super::postgres_values::{self as values, Raw};
use super::rows::{self, Column, Rows};
use super::session::{Fault, Query, check_parameters};
use super::sql;
use crate::services::settings::database::{Bounds, DatabaseSettings, DatabaseTls, Driver, Host, Target};

pub struct PostgresSession {
    client: Client,
    tls: Option<ClientConfig>,
    read_only: bool,
    /// Drives the connection, and ends with the session.
    _connection: JoinSet<()>,
}

impl PostgresSession {
    pub async fn open(settings: &DatabaseSettings, login: &Login) -> Result<Self, Fault> {
        let config = config(settings, login).await?;
        let mut driving = JoinSet::new();
        let tls = settings.tls.as_ref().map(client_config).transpose()?;
        // What ends a connection is told to whoever uses it.
        let client = if let Some(tls) = &tls {
            let opened = config.connect(MakeRustlsConnect::new(tls.clone())).await;
            let (client, connection) = opened.map_err(|error| opening(&error))?;
            driving.spawn(async move { drop(connection.await) });
            client
        } else {
            let (client, connection) = config.connect(NoTls).await.map_err(|error| opening(&error))?;
            driving.spawn(async move { drop(connection.await) });
            client
        };
        Ok(Self { client, tls, read_only: settings.read_only, _connection: driving })
    }

    pub async fn begin(&mut self, bounds: &Bounds) -> Result<(), Fault> {
        let limit = bounds.time.as_millis().clamp(1, i32::MAX as u128);
        let setup = format!("SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET statement_timeout = {limit}");
        self.client.batch_execute(&setup).await.map_err(|error| Fault::Broken(words(&error)))
    }

    /// In a transaction of its own.
    pub async fn run(&mut self, query: &Query<'_>) -> Result<Rows, Fault> {
        let mut statement = self.client.prepare(query.sql).await.map_err(|error| running(&error))?;
        check_parameters(statement.params().len(), query.parameters.len())?;
        let columns: Vec<Column> = statement.columns().iter().map(described).collect();
        if statement.columns().iter().any(|column| !values::is_known(column.type_())) {
            statement = self.client.prepare(&as_text(query.sql, &statement)).await.map_err(|_| not_shown(&columns))?;
        }
        let mut rows = Rows::new(columns);
        let transaction = self.client.build_transaction().read_only(self.read_only).start().await;
        let transaction = transaction.map_err(|error| running(&error))?;
        // With an error it is rolled back where it is dropped.
        fetch(&transaction, &statement, query, &mut rows).await?;
        // What is checked at the end of a transaction may refuse it.
        transaction.commit().await.map_err(|error| running(&error))?;
        Ok(rows)
    }

    pub async fn end(&mut self) -> Result<bool, Fault> {
        self.client.batch_execute(AS_NEW).await.map_err(|error| Fault::Broken(words(&error)))?;
        Ok(true)
    }

    pub async fn stop(self) {
        let token: CancelToken = self.client.cancel_token();
        // Whether it is heard or not, the connection ends.
        let _ = match self.tls.clone() {
            Some(tls) => token.cancel_query(MakeRustlsConnect::new(tls)).await,
            None => token.cancel_query(NoTls).await,
        };
    }
}

async fn fetch(
    transaction: &Transaction<'_>,
    statement: &Statement,
    query: &Query<'_>,
    rows: &mut Rows,
) -> Result<(), Fault> {
    let kinds: Vec<Type> = statement.columns().iter().map(|column| column.type_().clone()).collect();
    let parameters = query.parameters.iter().map(Parameter);
    let portal = transaction.bind_raw(statement, parameters).await.map_err(|error| running(&error))?;
    // One more than is wanted tells that there are more.
    let most = i32::try_from(query.bounds.max_rows.saturating_add(1)).unwrap_or(i32::MAX);
    let found = transaction.query_portal_raw(&portal, most).await.map_err(|error| running(&error))?;
    pin_mut!(found);
    while let Some(row) = found.next().await {
        let row = row.map_err(|error| running(&error))?;
        let mut values = Vec::with_capacity(kinds.len());
        for (index, kind) in kinds.iter().enumerate() {
            let raw: Option<Raw<'_>> = row.try_get(index).map_err(|error| running(&error))?;
            values.push(raw.map_or(Value::Null, |Raw(bytes)| values::json(kind, bytes)));
        }
        if !rows.push(values, &query.bounds) {
            return Ok(());
        }
    }
    if kinds.is_empty() {
        rows.affected = found.rows_affected();
    }
    Ok(())
}

fn described(column: &tokio_postgres::Column) -> Column {
    Column { name: column.name().to_owned(), kind: column.type_().name().to_owned() }
}

/// The statement, with a cast around each column that is not known.
fn as_text(sql: &str, statement: &Statement) -> String {
    let name = |index: usize| format!("c{index}");
    let columns = statement.columns().iter().enumerate();
    let shown = columns.map(|(index, column)| {
        let cast = if values::is_known(column.type_()) { "" } else { "::text" };
        format!("{}{cast} AS {}", name(index), sql::identifier(column.name(), Driver::Postgres))
    });
    let shown: Vec<String> = shown.collect();
    let names: Vec<String> = (0..shown.len()).map(name).collect();
    // A comment at the statement's end ends with its line.
    format!("SELECT {} FROM (\n{sql}\n) AS q ({})", shown.join(", "), names.join(", "))
}

fn not_shown(columns: &[Column]) -> Fault {
    let kinds: Vec<&str> = columns.iter().map(|column| column.kind.as_str()).collect();
    Fault::Statement(format!("a column has a type that is not shown as it is ({}); cast it to text", kinds.join(", ")))
}

async fn config(settings: &DatabaseSettings, login: &Login) -> Result<Config, Fault> {
    let Target::Server { host, database } = &settings.target else {
        return Err(Fault::Unreachable("it is no server".to_owned()));
    };
    let mut config = Config::new();
    config.application_name("mcpeg").connect_timeout(settings.pool.connect).keepalives_idle(KEEPALIVE);
    if let Some(user) = login.username().map_err(Fault::Credential)? {
        config.user(user);
    }
    login.with_password(|password| {
        config.password(password);
    });
    if let Some(database) = database {
        config.dbname(database);
    }
    config.ssl_mode(if settings.tls.is_some() { SslMode::Require } else { SslMode::Disable });
    match host {
        Host::Name(name, port) => {
            config.port(*port);
            match settings.tls.as_ref().and_then(|tls| tls.server_name.as_deref()) {
                None => {
                    config.host(name);
                }
                Some(proved) => {
                    let found = tokio::net::lookup_host((name.as_str(), *port)).await;
                    let found = found.map_err(|error| Fault::Unreachable(format!("{name}: {error}")))?;
                    for address in found {
                        config.host(proved).hostaddr(address.ip());
                    }
                }
            }
        }
        Host::Socket(folder, port) => {
            config.host_path(folder).port(*port);
        }
    }
    Ok(config)
}

fn client_config(tls: &DatabaseTls) -> Result<ClientConfig, Fault> {
    let config = if tls.verify { tls.files.client_config("https") } else { tls.files.client_config_unverified() };
    config.map_err(|error| Fault::Unreachable(error.to_string()))
}

fn opening(error: &Error) -> Fault {
    match error.code() {
        // Class 28: invalid authorization. A role that is gone is among it.
        Some(code) if code.code().starts_with("28") => {
            Fault::Login(format!("the database refuses the login ({})", code.code()))
        }
        _ => Fault::Unreachable(words(error)),
    }
}

fn running(error: &Error) -> Fault {
    let Some(said) = error.as_db_error() else {
        // What the driver finds wrong with a value is no fault of the connection.
        let is_value = error.to_string().contains("serializing");
        return if is_value { Fault::Statement(words(error)) } else { Fault::Broken(words(error)) };
    };
    let code = said.code();
    if *code == SqlState::QUERY_CANCELED {
        return Fault::Statement("the statement took too long, and the database stopped it".to_owned());
    }
    // Class 57P: the server ends the connection.
    if code.code().starts_with("57P") { Fault::Broken(words(error)) } else { Fault::Statement(words(error)) }
}

fn words(error: &Error) -> String {
    let Some(said) = error.as_db_error() else {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        return format!("{error}").trim_end_matches(cause.as_str()).to_owned() + &cause;
    };
    let mut words = format!("{} ({})", said.message(), said.code().code());
    for more in [said.detail(), said.hint()].into_iter().flatten() {
        words.push_str("; ");
        words.push_str(more);
    }
    words
}

/// A value as text, which the server reads as what the statement takes it for.
#[derive(Debug)]
struct Parameter<'a>(&'a Value);

impl ToSql for Parameter<'_> {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let is_json = *kind == Type::JSON || *kind == Type::JSONB;
        let text = match self.0 {
            Value::Null => return Ok(IsNull::Yes),
            value if is_json => value.to_string(),
            Value::String(text) => text.clone(),
            Value::Array(items) => values::array(items),
            value => match rows::bytes_of(value).filter(|_| *kind == Type::BYTEA) {
                Some(bytes) => values::hex(&bytes),
                None => value.to_string(),
            },
        };
        out.extend_from_slice(text.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// Whatever a statement may have left: its transaction, settings, cursors, locks and tables of the session. (DISCARD ALL would take the
/// driver's own prepared statements too.)
const AS_NEW: &str = "ROLLBACK; RESET SESSION AUTHORIZATION; RESET ALL; CLOSE ALL; UNLISTEN *; \
    SELECT pg_advisory_unlock_all(); DISCARD SEQUENCES; DISCARD TEMP";
const KEEPALIVE: Duration = Duration::from_secs(30);
