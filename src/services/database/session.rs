//! One connection to a database, of whichever kind, and what can go wrong with it.
//!
//! A session is made ready for one statement (`begin`), runs it, and is put back into the state that it had when it was new (`end`), so
//! that nothing of one call is met by the next. A statement that was given up is stopped at the server (`stop`), and its session closed.

use serde_json::Value;

use super::login::Login;
use super::mysql::MysqlSession;
use super::postgres::PostgresSession;
use super::rows::Rows;
use super::sqlite::SqliteSession;
use crate::services::settings::database::{Bounds, DatabaseSettings, Driver};

pub enum Session {
    Mysql(MysqlSession),
    Postgres(Box<PostgresSession>),
    Sqlite(SqliteSession),
}

/// A statement, with what its parameters are.
pub struct Query<'a> {
    pub sql: &'a str,
    pub parameters: &'a [Value],
    pub bounds: Bounds,
}

/// Why there is no result. Texts hold no credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The statement is at fault, or was refused: words for the model.
    Statement(String),
    /// The database does not take the login.
    Login(String),
    /// A secret has no value.
    Credential(String),
    Unreachable(String),
    /// The connection ended.
    Broken(String),
    /// All connections are in use for too long.
    Busy(String),
}

impl Session {
    pub async fn open(settings: &DatabaseSettings, login: &Login) -> Result<Self, Fault> {
        let opening = async {
            Ok(match settings.driver {
                Driver::Mysql => Self::Mysql(MysqlSession::open(settings, login).await?),
                Driver::Postgres => Self::Postgres(Box::new(PostgresSession::open(settings, login).await?)),
                Driver::Sqlite => Self::Sqlite(SqliteSession::open(settings).await?),
            })
        };
        let patience = settings.pool.connect;
        match tokio::time::timeout(patience, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(Fault::Unreachable(format!("the database does not answer within {patience:?}"))),
        }
    }

    /// Makes it ready for one statement; fails where the connection has ended since it was used.
    pub async fn begin(&mut self, bounds: &Bounds) -> Result<(), Fault> {
        match self {
            Self::Mysql(session) => session.begin(bounds).await,
            Self::Postgres(session) => session.begin(bounds).await,
            Self::Sqlite(_) => Ok(()),
        }
    }

    pub async fn run(&mut self, query: &Query<'_>) -> Result<Rows, Fault> {
        match self {
            Self::Mysql(session) => session.run(query).await,
            Self::Postgres(session) => session.run(query).await,
            Self::Sqlite(session) => session.run(query).await,
        }
    }

    /// Makes the session as new. Whether it can be used again.
    pub async fn end(&mut self) -> Result<bool, Fault> {
        match self {
            Self::Mysql(session) => session.end().await,
            Self::Postgres(session) => session.end().await,
            Self::Sqlite(session) => Ok(session.is_whole()),
        }
    }

    /// Ends what it is still doing, at the server, and the session.
    pub async fn stop(self, settings: &DatabaseSettings, login: &Login) {
        match self {
            Self::Mysql(session) => session.stop(settings, login).await,
            Self::Postgres(session) => session.stop().await,
            Self::Sqlite(session) => session.stop(),
        }
    }

    /// Takes leave.
    pub async fn close(self) {
        match self {
            Self::Mysql(session) => session.close().await,
            // Their connections end with them.
            Self::Postgres(_) | Self::Sqlite(_) => {}
        }
    }
}

/// The number of parameters that were given is the number that the statement has.
pub fn check_parameters(wanted: usize, given: usize) -> Result<(), Fault> {
    if wanted == given {
        return Ok(());
    }
    Err(Fault::Statement(format!("the statement has {wanted} parameters, and `parameters` has {given}")))
}
