//! What the secrets domain is told by the configuration, checked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use crate::secret::SecretText;

#[derive(Debug, Clone, PartialEq, Default)]
pub struct SecretsSettings {
    pub providers: BTreeMap<String, ProviderSettings>,
    /// Every item's `provider` is a key of `providers`.
    pub items: BTreeMap<String, ItemSettings>,
    /// Whether leases are given back at a clean stop.
    pub revoke_on_exit: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ProviderSettings {
    Vault(Box<VaultSettings>),
    /// A YAML mapping in a file that only its owner may read.
    File {
        path: PathBuf,
    },
    /// The variables that the process was started with.
    Environment,
}

#[derive(Debug, Clone, PartialEq)]
pub struct VaultSettings {
    /// `http` or `https`, with no path.
    pub address: Url,
    pub namespace: Option<String>,
    pub auth: VaultAuth,
    /// PEM; in place of the system's roots.
    pub ca_file: Option<PathBuf>,
    /// For one request.
    pub timeout: Duration,
}

/// No variant refers to a secret item: the provider has to log in before there are any.
#[derive(Debug, Clone, PartialEq)]
pub enum VaultAuth {
    Token(SecretText),
    /// Read again at every login.
    TokenFile(PathBuf),
    AppRole {
        mount: String,
        role_id: String,
        secret_id: SecretIdSource,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum SecretIdSource {
    Inline(SecretText),
    /// Read again at every login.
    File(PathBuf),
}

#[derive(Debug, Clone, PartialEq)]
pub struct ItemSettings {
    pub provider: String,
    /// In the provider's own terms: a Vault API path (`secret/data/weather`), a key of the file (empty: the whole file), a variable.
    pub path: String,
    /// What is wanted of a path that makes its values to order. Empty: the path is read.
    pub parameters: BTreeMap<String, String>,
    pub refresh: Duration,
    /// How long a replaced lease is kept, for those who still use its values.
    pub overlap: Duration,
    /// How long the last known value is served while the provider fails. `None`: for good.
    pub max_stale: Option<Duration>,
    /// The process is not ready before the item was fetched once.
    pub require_at_start: bool,
}
