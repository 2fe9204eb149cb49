//! What can go wrong when telemetry is built, installed or changed. Failures while it runs are conditions, not errors.

use std::io;
use std::path::PathBuf;

/// The text of each variant includes its cause, because a refused reload shows nothing but the text.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("audit file {}: {operation} failed: {cause}", path.display())]
    AuditFile { path: PathBuf, operation: &'static str, cause: io::Error },
    #[error("audit file {}: it is {found}, not a file", path.display())]
    AuditFileKind { path: PathBuf, found: &'static str },
    #[error("log file {}: opening failed: {cause}", path.display())]
    LogFile { path: PathBuf, cause: io::Error },
    #[error("OTLP endpoint {endpoint}: {reason}")]
    Endpoint { endpoint: String, reason: String },
    #[error("the spool {}: {cause}", path.display())]
    Spool { path: PathBuf, cause: io::Error },
    #[error("the spool {}: another process uses it", path.display())]
    SpoolInUse { path: PathBuf },
    #[error("the log cannot be set up: this process already has a tracing subscriber")]
    LoggingInstalled,
    #[error("{what} cannot change while mcpeg runs: restart it")]
    NeedsRestart { what: &'static str },
    #[error("OTLP receiver at {address}: {cause}")]
    Receiver { address: String, cause: io::Error },
    #[error("{0}")]
    Socket(#[from] crate::local_socket::SocketError),
    #[error("{what}: {reason}")]
    Source { what: &'static str, reason: String },
}
