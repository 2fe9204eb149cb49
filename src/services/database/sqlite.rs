//! SQLite, by rusqlite, each statement on a thread that may block.
//!
//! A database that is for reading is opened so. No other file can be attached. What has been given up, or takes too long, ends at the
//! next of SQLite's own looks at its handler, which is every thousand steps.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::limits::Limit;
use rusqlite::types::{ToSqlOutput, Value as Sql, ValueRef};
use rusqlite::{Connection, Error, ErrorCode, OpenFlags};
use serde_json::Value;

use super::rows::{self, Column, Rows};
use super::session::{Fault, Query, check_parameters};
use crate::services::settings::database::{Bounds, DatabaseSettings, Target};

pub struct SqliteSession {
    /// `None` while a statement runs, and when one was given up.
    connection: Option<Connection>,
    state: Arc<State>,
}

struct State {
    given_up: AtomicBool,
    deadline: Mutex<Option<Instant>>,
}

impl State {
    fn is_over(&self) -> bool {
        let is_late = || self.deadline.lock().is_ok_and(|deadline| deadline.is_some_and(|at| at <= Instant::now()));
        self.given_up.load(Ordering::Relaxed) || is_late()
    }
}

impl SqliteSession {
    pub async fn open(settings: &DatabaseSettings) -> Result<Self, Fault> {
        let Target::File(path) = settings.target.clone() else {
            return Err(Fault::Unreachable("it is no file".to_owned()));
        };
        let read_only = settings.read_only;
        let state = Arc::new(State { given_up: AtomicBool::new(false), deadline: Mutex::new(None) });
        let watched = state.clone();
        let opened = blocking(move || {
            let access = if read_only { OpenFlags::SQLITE_OPEN_READ_ONLY } else { OpenFlags::SQLITE_OPEN_READ_WRITE };
            let mut connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
            connection.busy_timeout(BUSY)?;
            connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
            connection.pragma_update(None, "query_only", read_only)?;
            connection.pragma_update(None, "trusted_schema", false)?;
            connection.pragma_update(None, "foreign_keys", true)?;
            connection.progress_handler(STEPS, Some(move || watched.is_over()))?;
            // What is no database is found out by reading.
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
            Ok(connection)
        });
        let connection = opened.await?.map_err(|error: Error| Fault::Unreachable(words(&error)))?;
        Ok(Self { connection: Some(connection), state })
    }

    pub async fn run(&mut self, query: &Query<'_>) -> Result<Rows, Fault> {
        let Some(connection) = self.connection.take() else {
            return Err(Fault::Broken("the connection was given up".to_owned()));
        };
        if let Ok(mut deadline) = self.state.deadline.lock() {
            *deadline = Instant::now().checked_add(query.bounds.time);
        }
        let (sql, parameters, bounds) = (query.sql.to_owned(), query.parameters.to_vec(), query.bounds);
        let ran = blocking(move || {
            let ran = run(&connection, &sql, &parameters, &bounds);
            (connection, ran)
        });
        let (connection, ran) = ran.await?;
        self.connection = Some(connection);
        ran
    }

    pub fn is_whole(&self) -> bool {
        self.connection.as_ref().is_some_and(Connection::is_autocommit)
    }

    pub fn stop(self) {
        self.state.given_up.store(true, Ordering::Relaxed);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|_| Fault::Broken("the thread of the statement failed".to_owned()))
}

fn run(connection: &Connection, sql: &str, parameters: &[Value], bounds: &Bounds) -> Result<Rows, Fault> {
    let mut statement = connection.prepare(sql).map_err(|error| running(&error))?;
    check_parameters(statement.parameter_count(), parameters.len())?;
    for (index, value) in parameters.iter().enumerate() {
        statement.raw_bind_parameter(index + 1, parameter(value)).map_err(|error| running(&error))?;
    }
    let columns: Vec<Column> = statement
        .columns()
        .map(|column| Column {
            name: column.name().to_owned(),
            kind: column.decl_type().unwrap_or("any").to_ascii_lowercase(),
        })
        .collect();
    let (count, writes) = (columns.len(), !statement.readonly());
    let mut rows = Rows::new(columns);
    let mut found = statement.raw_query();
    while let Some(row) = found.next().map_err(|error| running(&error))? {
        let values: Result<Vec<Value>, Error> = (0..count).map(|index| row.get_ref(index).map(json)).collect();
        // A statement that writes and gives rows is led to its end.
        if !rows.push(values.map_err(|error| running(&error))?, bounds) && !writes {
            break;
        }
    }
    drop(found);
    drop(statement);
    if writes {
        rows.affected = Some(connection.changes());
    }
    Ok(rows)
}

fn running(error: &Error) -> Fault {
    match error.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => {
            Fault::Statement("the statement took too long, and was stopped".to_owned())
        }
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt | ErrorCode::CannotOpen) => {
            Fault::Broken(words(error))
        }
        _ => Fault::Statement(words(error)),
    }
}

/// Without the path of the file.
fn words(error: &Error) -> String {
    match error {
        Error::SqliteFailure(code, Some(_)) if code.code == ErrorCode::CannotOpen => {
            "the file cannot be opened".to_owned()
        }
        Error::SqliteFailure(_, Some(said)) => said.clone(),
        Error::SqlInputError { msg, offset, .. } => format!("{msg} (at {offset})"),
        Error::MultipleStatement => "only one statement is run at a time".to_owned(),
        error => error.to_string(),
    }
}

fn parameter(value: &Value) -> ToSqlOutput<'static> {
    ToSqlOutput::Owned(match value {
        Value::Null => Sql::Null,
        Value::Bool(value) => Sql::Integer((*value).into()),
        Value::Number(number) => match number.as_i64() {
            Some(number) => Sql::Integer(number),
            None => Sql::Real(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => Sql::Text(text.clone()),
        other => rows::bytes_of(other).map_or_else(|| Sql::Text(other.to_string()), Sql::Blob),
    })
}

fn json(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => rows::integer(number),
        ValueRef::Real(number) => rows::float(number),
        ValueRef::Text(text) => rows::text(text.to_vec()),
        ValueRef::Blob(bytes) => rows::binary(bytes),
    }
}

/// How long a statement waits for a writer of another program.
const BUSY: Duration = Duration::from_secs(5);
const STEPS: i32 = 1000;
