//! What the admin domain is told by the configuration, checked.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::secret::SecretText;

#[derive(Debug, Clone, PartialEq)]
pub struct AdminSettings {
    pub unix: Option<AdminUnixSettings>,
    pub http: Option<AdminHttpSettings>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct AdminUnixSettings {
    pub path: PathBuf,
    pub mode: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct AdminHttpSettings {
    /// A loopback address.
    pub address: SocketAddr,
    /// Asked for as `Authorization: Bearer`, except by `/livez` and `/readyz`.
    pub token: SecretText,
}
