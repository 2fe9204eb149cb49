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
    /// A sealed file in which tokens and leased values outlive the process, so that a restart logs in to nothing and leases nothing anew. Not with
    /// `revoke_on_exit`. Default: none.
    pub cache: Option<RawSecretsCache>,
    /// A socket on which local programs read secrets over HTTP: `GET /v1/secrets/ITEM`.
    pub serve: Option<RawServe>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RawProvider {
    /// HashiCorp Vault or OpenBao.
    Vault(Box<RawVault>),
    /// AWS Secrets Manager.
    AwsSecretsManager(Box<RawAws>),
    /// Access tokens of an authorization server.
    #[serde(rename = "oauth")]
    OAuth(Box<RawOAuth>),
    /// A folder with a file for each secret: a mounted Kubernetes Secret or ConfigMap, systemd credentials, Docker secrets.
    Directory(RawDirectory),
    /// A YAML mapping in a file with mode 0600 or narrower, or sealed with age.
    File(RawFile),
    /// The variables that the process was started with. A value that an item names is wiped from the process's environment.
    Environment(RawEnvironment),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawVault {
    /// The server's address, such as `https://vault.example:8200`. Left out: `BAO_ADDR` or `VAULT_ADDR`.
    pub address: Option<RawUrl>,
    /// Sent with each request when it is not empty. Left out: `BAO_NAMESPACE` or `VAULT_NAMESPACE`.
    pub namespace: Option<String>,
    /// How to log in. Left out: with the token in `BAO_TOKEN` or `VAULT_TOKEN`.
    pub auth: Option<RawVaultAuth>,
    #[serde(default)]
    pub tls: RawVaultTls,
    /// Headers of each request, for what stands before the server. `X-Vault-Token` and the like are not among them.
    #[serde(default)]
    pub headers: BTreeMap<String, RawSecretText>,
    /// For one request. Default: `10s`.
    pub timeout: Option<RawDuration>,
    /// About how many mcpeg processes share this server. After an outage the first requests of each wait for turns, so that together they make at
    /// most 20 a second; a process that is alone waits for nothing. Default: `1`.
    pub agents: Option<u32>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RawVaultAuth {
    /// A token that somebody else made.
    Token {
        /// The token itself; prefer `token_file`.
        token: Option<RawSecretText>,
        /// Read again at every login.
        token_file: Option<RawPath>,
    },
    /// A role and a secret id.
    Approle {
        role_id: String,
        /// The secret id itself; prefer `secret_id_file`.
        secret_id: Option<RawSecretText>,
        /// Read again at every login.
        secret_id_file: Option<RawPath>,
        /// What is given is a wrapping token with the secret id inside. It is unwrapped once. Default: `false`.
        secret_id_wrapped: Option<bool>,
        /// Where the method is mounted. Default: `approle`.
        mount: Option<String>,
    },
    /// The service account of the pod.
    Kubernetes {
        role: String,
        /// Read again at every login. Default: `/var/run/secrets/kubernetes.io/serviceaccount/token`.
        token_file: Option<RawPath>,
        /// Where the method is mounted. Default: `kubernetes`.
        mount: Option<String>,
    },
    /// A signed JSON Web Token.
    Jwt {
        /// Left out: the server's default role.
        role: Option<String>,
        /// The JWT itself; prefer `token_file`.
        token: Option<RawSecretText>,
        /// Read again at every login.
        token_file: Option<RawPath>,
        /// Where the method is mounted. Default: `jwt`.
        mount: Option<String>,
    },
    /// The client's certificate: `tls.cert_file` and `tls.key_file`.
    Cert {
        /// Left out: any role whose constraints the certificate meets.
        role: Option<String>,
        /// Where the method is mounted. Default: `cert`.
        mount: Option<String>,
    },
    /// AWS IAM: a signed `sts:GetCallerIdentity`. Vault only; OpenBao has no such method.
    Aws {
        /// Left out: the role that is called like the identity.
        role: Option<String>,
        /// Of the STS address that the server is told to ask. Left out: the global address, as the server expects unless it was told otherwise.
        region: Option<String>,
        /// The value of `X-Vault-AWS-IAM-Server-ID`, where the server asks for one.
        server_id: Option<String>,
        /// Left out, with the two below and `credentials_file`: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
        access_key_id: Option<String>,
        secret_access_key: Option<RawSecretText>,
        /// Of temporary credentials.
        session_token: Option<RawSecretText>,
        /// A shared credentials file, in place of the keys. Read again at every login.
        credentials_file: Option<RawPath>,
        /// Of the credentials file. Default: `default`.
        profile: Option<String>,
        /// Where the method is mounted. Default: `aws`.
        mount: Option<String>,
    },
    /// A name and a password.
    Userpass {
        username: String,
        /// The password itself; prefer `password_file`.
        password: Option<RawSecretText>,
        /// Read again at every login.
        password_file: Option<RawPath>,
        /// Where the method is mounted. Default: `userpass`.
        mount: Option<String>,
    },
}

/// Read again when one of the files changes; what cannot be used leaves the TLS of before in place.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawVaultTls {
    /// PEM certificates to trust in place of the system's. Left out: `BAO_CACERT` or `VAULT_CACERT`. Empty: the system's.
    pub ca_file: Option<RawPath>,
    /// The client's certificate, PEM, with those between it and its authority. Left out: `BAO_CLIENT_CERT` or `VAULT_CLIENT_CERT`.
    pub cert_file: Option<RawPath>,
    /// The client's key, PEM. Left out: `BAO_CLIENT_KEY` or `VAULT_CLIENT_KEY`.
    pub key_file: Option<RawPath>,
    /// The name to ask for and to check in the server's certificate, in place of the address's host. Left out: `BAO_TLS_SERVER_NAME` or
    /// `VAULT_TLS_SERVER_NAME`.
    pub server_name: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTls {
    /// PEM certificates to trust in place of the system's.
    pub ca_file: Option<RawPath>,
    /// PEM: the client's certificate, then those between it and its authority. Not for AWS, in this version.
    pub cert_file: Option<RawPath>,
    /// PEM, not encrypted (PKCS#8, PKCS#1 or SEC1), 0600 or narrower: the client's key. Not for AWS, in this version.
    pub key_file: Option<RawPath>,
    /// The name that the server has to prove, and that it is asked for, where it is not the address's. Not for AWS and authorization servers, in this version.
    pub server_name: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAws {
    /// Such as `eu-west-1`. Default: `AWS_REGION`, `AWS_DEFAULT_REGION`, else the profile's.
    pub region: Option<String>,
    /// In place of AWS's own address, when it is not empty.
    pub endpoint: Option<String>,
    /// The same for the Security Token Service, which `web-identity` and `assume_roles` ask.
    pub sts_endpoint: Option<String>,
    /// The profile of `~/.aws/config` whose credentials and region to use. Default: `AWS_PROFILE`.
    pub profile: Option<String>,
    /// Where the credentials come from. Default: `method: default`.
    pub auth: Option<RawAwsAuth>,
    /// The roles to assume one after the other, the first of them with the credentials of `auth`.
    #[serde(default)]
    pub assume_roles: Vec<RawAwsRole>,
    #[serde(default)]
    pub tls: RawTls,
    /// For one request. Default: `10s`.
    pub timeout: Option<RawDuration>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RawAwsAuth {
    /// The variables `AWS_ACCESS_KEY_ID` and so on, else the profile, else the web identity that `AWS_WEB_IDENTITY_TOKEN_FILE` names,
    /// else the container's credentials.
    Default {
        /// Whether the address of the instance's metadata (169.254.169.254) is asked when nothing else has credentials. Default: `false`.
        instance_metadata: Option<bool>,
    },
    /// An access key.
    Static { access_key_id: RawSecretText, secret_access_key: RawSecretText, session_token: Option<RawSecretText> },
    /// A token from a file is given for a role: a Kubernetes service account, for example.
    WebIdentity {
        role_arn: String,
        /// Read again at every login.
        token_file: RawPath,
        /// Default: `mcpeg`.
        session_name: Option<String>,
    },
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAwsRole {
    pub role_arn: String,
    /// What the role's owner asks for.
    pub external_id: Option<String>,
    /// Default: `mcpeg`.
    pub session_name: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawOAuth {
    /// Where tokens are asked for. Left out: as the metadata of `issuer` say.
    pub token_url: Option<RawUrl>,
    /// The authorization server (RFC 8414, OpenID Connect Discovery). Left out, with `token_url`: the one that `resource` names (RFC 9728).
    pub issuer: Option<RawUrl>,
    /// What the token is for, such as an MCP server's address; sent with each request (RFC 8707).
    pub resource: Option<RawUrl>,
    pub client_id: String,
    /// The client's secret; prefer `client_secret_file`, or `${secret.ITEM.FIELD}` of another provider. Left out, with `client_secret_file`: the
    /// client has none.
    pub client_secret: Option<RawSecretText>,
    /// Read again at every request.
    pub client_secret_file: Option<RawPath>,
    /// How the client's secret is sent. Left out: as the metadata say, else `basic`.
    pub client_auth: Option<RawOAuthClientAuth>,
    /// How tokens are asked for.
    pub grant: RawOAuthGrant,
    /// The first refresh token; prefer `refresh_token_file`, or `${secret.ITEM.FIELD}` of another provider. Where the server gives a new one at each use,
    /// that is kept in memory and in `secrets.cache`.
    pub refresh_token: Option<RawSecretText>,
    /// A file with the first refresh token.
    pub refresh_token_file: Option<RawPath>,
    /// Of items that name none in their `path`. Empty: as the server has it.
    #[serde(default)]
    pub scopes: Vec<String>,
    #[serde(default)]
    pub tls: RawTls,
    /// For one request. Default: `10s`.
    pub timeout: Option<RawDuration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawOAuthGrant {
    /// The client is itself who the token is for.
    ClientCredentials,
    /// Somebody has consented, which a refresh token stands for.
    RefreshToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawOAuthClientAuth {
    /// In the header `Authorization`.
    Basic,
    /// In the body.
    Post,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawDirectory {
    /// Default: `$CREDENTIALS_DIRECTORY`, where systemd puts a unit's credentials.
    pub path: Option<RawPath>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawFile {
    pub path: RawPath,
    /// What opens the file, which then has to be sealed: with `mcpeg seal`, or with age.
    pub sealed_with: Option<RawSealedWith>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSecretsCache {
    /// Made with mode 0600. Only one process uses it.
    pub path: RawPath,
    /// An `identity_file` or a `credential`: a passphrase would cost a second at each change.
    pub sealed_with: RawSealedWith,
}

/// One of them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSealedWith {
    /// An identity of age (`AGE-SECRET-KEY-1...`), readable by its owner and at most its group: a file, a mounted Kubernetes Secret.
    pub identity_file: Option<RawPath>,
    /// The first line is the passphrase. Opening takes a second and 256 MiB of memory for each new file.
    pub passphrase_file: Option<RawPath>,
    /// The name of a systemd credential with an identity in it: `LoadCredentialEncrypted=`, which the TPM may hold the key of.
    pub credential: Option<String>,
    /// `ITEM` or `ITEM.FIELD`: a secret whose value is an identity of age. For `security.sealed_with` alone; the item is fetched before what is
    /// sealed is opened, so that nothing sealed may stand below `secrets`.
    pub item: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawEnvironment {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawItem {
    /// A key of `providers`.
    pub provider: String,
    /// In the provider's terms: a Vault path (`secret/data/weather`), a key of the file (left out: the whole file), a variable's name,
    /// a file's name in the folder (left out: all of them, as fields), the name or ARN of a secret of AWS, the scopes of a token, separated by spaces.
    #[serde(default)]
    pub path: String,
    /// What is wanted of a Vault path that makes its values to order: `{ common_name: app.example }` for `pki/issue/app`; for `oauth`, further
    /// parameters of the request: `{ audience: ... }`.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// How long a lease is kept after its values were replaced, before it is revoked. Default: `30s`.
    pub overlap: Option<RawDuration>,
    /// The longest time between two questions to the provider (up to a tenth less, by chance). Default: `1m`.
    pub refresh: Option<RawDuration>,
    /// How long the last known value is served while the provider fails. Default: for good.
    pub max_stale: Option<RawDuration>,
    /// For AWS, the label of the version to take: `AWSCURRENT`, `AWSPENDING`, `AWSPREVIOUS` or one of your own. Default: `AWSCURRENT`.
    pub version_stage: Option<String>,
    /// Whether `ready` waits for the first value. Default: `true`.
    pub require_at_start: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawServe {
    #[serde(default)]
    pub unix: RawServeUnix,
    /// Who may read what. Nobody is allowed who is not in a rule, root and mcpeg's own user neither.
    #[serde(default)]
    pub allow: Vec<RawServeAllow>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawServeUnix {
    /// Default: `run/secrets.sock`.
    pub path: Option<RawPath>,
    /// Default: `"0660"`.
    pub mode: Option<RawMode>,
    /// Open at one time; one user may have half of them. Default: 64.
    #[schemars(range(min = 2, max = 4096))]
    pub max_connections: Option<usize>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawServeAllow {
    /// The program's user.
    pub uid: Option<u32>,
    /// The program's primary group. With `uid`: both have to match.
    pub gid: Option<u32>,
    /// Names of `secrets.items`.
    #[serde(default)]
    pub items: Vec<String>,
}
