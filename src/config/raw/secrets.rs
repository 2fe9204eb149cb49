//! The written shape of `secrets`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::scalar::{RawDuration, RawMode, RawPath, RawSecretText, RawUrl};

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSecrets {
    /// Where secrets come from, by name.
    #[serde(default)]
    pub providers: BTreeMap<String, RawProvider>,
    /// The secrets, by the name that `${secret.NAME.FIELD}` uses.
    #[serde(default)]
    pub items: BTreeMap<String, RawItem>,
    /// Whether leases are given back to the provider at a clean stop. Default: `false`.
    pub revoke_on_exit: Option<bool>,
    /// Not available in this version: a socket on which local programs read secrets.
    pub serve: Option<RawServe>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RawProvider {
    /// HashiCorp Vault or OpenBao.
    Vault(Box<RawVault>),
    /// Not available in this version.
    AwsSecretsManager(RawAws),
    /// Not available in this version: a mounted Kubernetes Secret, systemd credentials.
    Directory(RawDirectory),
    /// A YAML mapping in a file with mode 0600 or narrower, for development.
    File(RawFile),
    /// The variables that the process was started with.
    Environment(RawEnvironment),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawVault {
    /// The server's address, such as `https://vault.example:8200`.
    pub address: RawUrl,
    /// Sent with each request when it is not empty.
    pub namespace: Option<String>,
    pub auth: RawVaultAuth,
    #[serde(default)]
    pub tls: RawTls,
    /// For one request. Default: `10s`.
    pub timeout: Option<RawDuration>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RawVaultAuth {
    Token {
        /// The token itself; prefer `token_file`.
        token: Option<RawSecretText>,
        /// Read again at every login.
        token_file: Option<RawPath>,
    },
    Approle {
        role_id: String,
        /// The secret id itself; prefer `secret_id_file`.
        secret_id: Option<RawSecretText>,
        /// Read again at every login.
        secret_id_file: Option<RawPath>,
        /// Where the method is mounted. Default: `approle`.
        mount: Option<String>,
    },
    /// Not available in this version.
    Kubernetes { role: Option<String>, mount: Option<String>, token_file: Option<RawPath> },
    /// Not available in this version.
    Jwt { role: Option<String>, mount: Option<String>, token_file: Option<RawPath> },
    /// Not available in this version.
    Cert { role: Option<String>, mount: Option<String> },
    /// Not available in this version.
    Aws { role: Option<String>, mount: Option<String>, region: Option<String> },
    /// Not available in this version.
    Userpass {
        username: Option<String>,
        password: Option<RawSecretText>,
        password_file: Option<RawPath>,
        mount: Option<String>,
    },
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTls {
    /// PEM certificates to trust in place of the system's.
    pub ca_file: Option<RawPath>,
    /// Not available in this version: the client's certificate.
    pub cert_file: Option<RawPath>,
    /// Not available in this version: the client's key.
    pub key_file: Option<RawPath>,
    /// Not available in this version: the name to check in the server's certificate.
    pub server_name: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAws {
    pub region: Option<String>,
    /// In place of AWS's own address.
    pub endpoint: Option<String>,
    pub profile: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawDirectory {
    pub path: RawPath,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawFile {
    pub path: RawPath,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawEnvironment {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawItem {
    /// A key of `providers`.
    pub provider: String,
    /// In the provider's terms: a Vault path (`secret/data/weather`), a key of the file (left out: the whole file), a variable's name.
    #[serde(default)]
    pub path: String,
    /// What is wanted of a Vault path that makes its values to order: `{ common_name: app.example }` for `pki/issue/app`.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// How long a lease is kept after its values were replaced, before it is revoked. Default: `30s`.
    pub overlap: Option<RawDuration>,
    /// The longest time between two questions to the provider (up to a tenth less, by chance). Default: `1m`.
    pub refresh: Option<RawDuration>,
    /// How long the last known value is served while the provider fails. Default: for good.
    pub max_stale: Option<RawDuration>,
    /// Whether `ready` waits for the first value. Default: `true`.
    pub require_at_start: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawServe {
    pub unix: Option<RawServeUnix>,
    #[serde(default)]
    pub allow: Vec<RawServeAllow>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawServeUnix {
    pub path: RawPath,
    pub mode: Option<RawMode>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawServeAllow {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    #[serde(default)]
    pub items: Vec<String>,
}
