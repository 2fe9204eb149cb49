//! What the storage domain is told by the configuration, checked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sealed::Recipient;
use crate::secret::SecretText;
use crate::tls::Files;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StorageSettings {
    pub runtime: RuntimeSettings,
    pub cache: CacheSettings,
    /// `None`: no points of metrics are kept.
    pub metrics: Option<MetricsSettings>,
    pub backup: Option<BackupSettings>,
    /// Holds the process's number while it runs.
    pub pid_file: Option<PathBuf>,
}

/// Backups that are written while the process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupSettings {
    pub every: Duration,
    /// So many of the newest.
    pub keep: usize,
    pub folder: PathBuf,
    /// Empty: they are not sealed.
    pub recipients: Vec<Recipient>,
}

/// Points of metrics, which are kept where state is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsSettings {
    /// Between two points of a series.
    pub interval: Duration,
    /// Older ones are removed.
    pub retention: Duration,
}

/// Where state and metric points are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeSettings {
    pub kind: RuntimeKind,
    /// Between two times that what has changed is made to last.
    pub snapshot_interval: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeKind {
    /// In this process; with a file, snapshots of it outlive the process.
    Memory {
        file: Option<PathBuf>,
    },
    Sqlite {
        path: PathBuf,
    },
    Redis(ServerSettings),
    Postgres(ServerSettings),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSettings {
    pub kind: CacheKind,
    /// Of keys and values.
    pub max_bytes: u64,
    /// Nothing is kept longer, whatever its own time says.
    pub ttl: Duration,
}

/// Where cached answers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheKind {
    /// In this process; they end with it.
    Memory,
    /// Sealed with the key.
    Sqlite { path: PathBuf, key: SecretText },
    /// Sealed with the key, which all processes that share them have.
    Redis { server: ServerSettings, key: SecretText },
}

/// A server that is asked over the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    pub kind: &'static str,
    pub host: String,
    pub port: u16,
    pub database: String,
    pub username: Option<String>,
    pub password: Option<SecretText>,
    pub encrypted: bool,
    pub tls: Files,
    /// What everything of these processes begins with there.
    pub namespace: String,
}

impl RuntimeKind {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Memory { .. } => "memory",
            Self::Sqlite { .. } => "sqlite",
            Self::Redis(_) => "redis",
            Self::Postgres(_) => "postgres",
        }
    }

    /// Where its files are, of which one process has the use at a time.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Memory { file: Some(path) } | Self::Sqlite { path } => path.parent(),
            _ => None,
        }
    }

    pub fn needs_secrets(&self) -> bool {
        let password = match self {
            Self::Redis(server) | Self::Postgres(server) => server.password.as_ref(),
            _ => None,
        };
        password.is_some_and(|password| password.references().next().is_some())
    }

    /// Whether other processes see the same.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Redis(_) | Self::Postgres(_))
    }
}

impl CacheKind {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Sqlite { .. } => "sqlite",
            Self::Redis { .. } => "redis",
        }
    }
}

impl ServerSettings {
    /// For messages.
    pub fn address(&self) -> String {
        format!("{} at {}:{}", self.kind, self.host, self.port)
    }
}

impl Default for RuntimeSettings {
    fn default() -> Self {
        Self { kind: RuntimeKind::Memory { file: None }, snapshot_interval: Duration::from_secs(300) }
    }
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self { kind: CacheKind::Memory, max_bytes: 64 << 20, ttl: Duration::from_secs(24 * 3600) }
    }
}
