//! `type: database`: which database, as whom, and within which bounds; checked.

use std::path::PathBuf;
use std::time::Duration;

use crate::secret::SecretText;
use crate::tls::Files;

#[derive(Debug, Clone, PartialEq)]
pub struct DatabaseSettings {
    pub driver: Driver,
    pub target: Target,
    pub username: Option<SecretText>,
    pub password: Option<SecretText>,
    /// `None`: not encrypted.
    pub tls: Option<DatabaseTls>,
    /// Nothing is changed, whatever a statement says.
    pub read_only: bool,
    pub pool: PoolSettings,
    /// `None`: there is no such tool.
    pub query: Option<Bounds>,
    /// `None`: there is no such tool.
    pub schema: Option<Bounds>,
    pub resources: Vec<DatabaseResource>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Mysql,
    Postgres,
    Sqlite,
}

impl Driver {
    /// As in the configuration, and as the scheme of its resources.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mysql => "mysql",
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
        }
    }

    /// As people call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Mysql => "MySQL",
            Self::Postgres => "PostgreSQL",
            Self::Sqlite => "SQLite",
        }
    }
}

/// Where the database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Server { host: Host, database: Option<String> },
    File(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Name(String, u16),
    /// A Unix socket; of PostgreSQL, the folder in which it lies, and the port in its name.
    Socket(PathBuf, u16),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseTls {
    pub files: Files,
    /// In place of the host's.
    pub server_name: Option<String>,
    /// The server's certificate is checked.
    pub verify: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSettings {
    pub max_connections: usize,
    /// Kept open while nothing is asked.
    pub idle_connections: usize,
    /// An older one is closed once nobody uses it.
    pub connection_lifetime: Duration,
    /// For a connection of `max_connections` to be free.
    pub wait: Duration,
    /// For a new connection to be made.
    pub connect: Duration,
}

/// What one answer may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Rows, or tables.
    pub max_rows: usize,
    /// Of values, about.
    pub max_bytes: usize,
    /// From a call's arrival to its answer.
    pub time: Duration,
}

/// A template of addresses with one place for the name of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseResource {
    pub before: String,
    pub after: String,
    pub handler: Handler,
    pub bounds: Bounds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    /// `get_table_schema`
    Schema,
    /// `get_sample_data`
    Data,
}
