//! What the secrets domain is told by the configuration, checked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use url::Url;

use crate::sealed::KeySource;
use crate::secret::SecretText;
use crate::tls;

#[derive(Debug, Clone, PartialEq, Default)]
pub struct SecretsSettings {
    pub providers: BTreeMap<String, ProviderSettings>,
    /// Every item's `provider` is a key of `providers`.
    pub items: BTreeMap<String, ItemSettings>,
    /// Whether leases are given back at a clean stop.
    pub revoke_on_exit: bool,
    /// Excludes `revoke_on_exit`.
    pub cache: Option<CacheSettings>,
}

/// Where tokens and leased values outlive the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSettings {
    pub path: PathBuf,
    /// Not a passphrase, which would cost a second at each change.
    pub sealed_with: KeySource,
}

impl SecretsSettings {
    /// The variables of the process's environment that items are read from.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        let of_environment =
            |item: &&ItemSettings| matches!(self.providers.get(&item.provider), Some(ProviderSettings::Environment));
        self.items.values().filter(of_environment).map(|item| item.path.as_str())
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum ProviderSettings {
    Vault(Box<VaultSettings>),
    AwsSecretsManager(Box<AwsSettings>),
    OAuth(Box<OAuthSettings>),
    /// A folder with a file for each secret.
    Directory {
        path: PathBuf,
    },
    /// A YAML mapping in a file that is sealed, or that only its owner may read.
    File {
        path: PathBuf,
        /// What opens the file, which must then be sealed.
        sealed_with: Option<KeySource>,
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
    /// Read again when one of them changes.
    pub tls: tls::Files,
    /// The name to ask for and to check in the server's certificate, in place of the address's host.
    pub server_name: Option<String>,
    /// Sent with every request; none of them is the server's own (`X-Vault-Token` and the like).
    pub headers: Vec<(HeaderName, SecretText)>,
    /// For one request.
    pub timeout: Duration,
    /// How many processes share the server, this one among them; they spare it together after an outage. At least 1.
    pub agents: u32,
}

/// No variant refers to a secret item: the provider has to log in before there are any. `mount` is the path below `auth/`.
#[derive(Debug, Clone, PartialEq)]
pub enum VaultAuth {
    Token(SecretText),
    /// Read again at every login.
    TokenFile(PathBuf),
    AppRole {
        mount: String,
        role_id: String,
        secret_id: Credential,
        /// The secret id is a wrapping token, with the real one inside.
        wrapped: bool,
    },
    Kubernetes {
        mount: String,
        role: String,
        token_file: PathBuf,
    },
    /// Without a role: the one that the server has as its default.
    Jwt {
        mount: String,
        role: Option<String>,
        token: Credential,
    },
    /// With the client certificate of `VaultSettings::tls`. Without a role: any whose constraints it meets.
    Cert {
        mount: String,
        role: Option<String>,
    },
    Userpass {
        mount: String,
        username: String,
        password: Credential,
    },
    Aws(Box<AwsAuth>),
}

/// A login to Vault as an identity of AWS.
#[derive(Debug, Clone, PartialEq)]
pub struct AwsAuth {
    pub mount: String,
    /// `None`: the role that has the identity's name.
    pub role: Option<String>,
    /// Of STS. `None`: its global address.
    pub region: Option<String>,
    /// The value of `X-Vault-AWS-IAM-Server-ID`, where the server asks for one.
    pub server_id: Option<String>,
    pub credentials: AwsCredentials,
}

#[derive(Debug, Clone, PartialEq)]
pub enum AwsCredentials {
    Given {
        access_key_id: String,
        secret_access_key: SecretText,
        session_token: Option<SecretText>,
    },
    /// A profile of a shared credentials file; read again at every login.
    File {
        path: PathBuf,
        profile: String,
    },
}

/// What a login shows.
#[derive(Debug, Clone, PartialEq)]
pub enum Credential {
    Inline(SecretText),
    /// Read again at every login.
    File(PathBuf),
}

/// A provider of type `aws-secrets-manager`.
#[derive(Debug, Clone, PartialEq)]
pub struct AwsSettings {
    /// `None`: as the environment or the profile says.
    pub region: Option<String>,
    /// `http` or `https`, in place of AWS's own address.
    pub endpoint: Option<Url>,
    /// The same for the Security Token Service.
    pub sts_endpoint: Option<Url>,
    pub profile: Option<String>,
    pub auth: AwsLogin,
    /// Assumed one after the other, each with the credentials of the one before.
    pub roles: Vec<AwsRole>,
    /// PEM; in place of the system's roots.
    pub ca_file: Option<PathBuf>,
    /// For one request.
    pub timeout: Duration,
}

/// Where the credentials for AWS come from. No variant refers to a secret item.
#[derive(Debug, Clone, PartialEq)]
pub enum AwsLogin {
    Default {
        instance_metadata: bool,
    },
    Static {
        access_key_id: SecretText,
        secret_access_key: SecretText,
        session_token: Option<SecretText>,
    },
    /// The token file is read again at every login.
    WebIdentity {
        role_arn: String,
        token_file: PathBuf,
        session_name: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct AwsRole {
    pub role_arn: String,
    pub external_id: Option<String>,
    pub session_name: String,
}

/// A provider of type `oauth`.
#[derive(Debug, Clone, PartialEq)]
pub struct OAuthSettings {
    pub server: OAuthServer,
    pub client_id: String,
    /// `None`: the client has none. It may refer to items of other providers.
    pub client_secret: Option<Credential>,
    /// `None`: as the server's metadata say, else `Basic`.
    pub client_auth: Option<ClientAuth>,
    pub grant: OAuthGrant,
    /// Of items that name none.
    pub scopes: Vec<String>,
    /// As it is sent.
    pub resource: Option<String>,
    /// With a client's certificate, and no secret, the certificate is the login (RFC 8705, 2).
    pub tls: tls::Files,
    /// For one request.
    pub timeout: Duration,
}

/// What leads to the token endpoint. `https`, or `http` on the loopback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OAuthServer {
    Issuer(Url),
    TokenUrl(Url),
    Resource(Url),
}

impl OAuthServer {
    pub fn address(&self) -> &Url {
        match self {
            Self::Issuer(url) | Self::TokenUrl(url) | Self::Resource(url) => url,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum OAuthGrant {
    ClientCredentials,
    /// With the first refresh token.
    RefreshToken(Credential),
}

/// How a client's secret is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    Basic,
    Post,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ItemSettings {
    pub provider: String,
    /// In the provider's own terms: a Vault API path (`secret/data/weather`), a key of the file (empty: the whole file), a variable,
    /// a file in the folder (empty: all of them), a secret of AWS with `#` and the version's label, scopes (empty: those of the provider).
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

/// The socket on which local programs read secrets, and who may read what there.
#[derive(Debug, Clone, PartialEq)]
pub struct ServeSettings {
    pub path: PathBuf,
    pub mode: u32,
    /// Open at one time; one user may have half of them.
    pub max_connections: usize,
    pub allow: Vec<AllowRule>,
}

/// What one user or group may read. At least one of `uid` and `gid` is given; a peer has to match what is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowRule {
    pub uid: Option<u32>,
    /// The peer's primary group.
    pub gid: Option<u32>,
    /// Names of configured items.
    pub items: Vec<String>,
}
