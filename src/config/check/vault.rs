//! A provider of type `vault`: its server, its TLS and its login; and the variables that stand for keys that were left out.
//!
//! The variables are those of the servers' own command lines (developer.hashicorp.com/vault/docs/commands#environment-variables), with
//! `BAO_` before `VAULT_`, as OpenBao has it. An empty one counts as not set.

use url::Url;

use super::{Check, join, seconds};
use crate::config::raw::scalar::{RawPath, RawSecretText};
use crate::config::raw::secrets::{RawVault, RawVaultAuth, RawVaultTls};
use crate::secret::SecretText;
use crate::secrets::settings::{AwsAuth, AwsCredentials, Credential, VaultAuth, VaultSettings};
use crate::tls;

/// Gives the value of an environment variable.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

pub fn vault(raw: RawVault, path: &[&str], variables: Variables<'_>, check: &mut Check<'_>) -> Option<VaultSettings> {
    refuse_skipping(path, variables, check);
    let address = address(raw.address.map(|address| address.0), path, variables, check);
    let (tls, server_name) = tls(raw.tls, path, variables, check);
    let headers = headers(raw.headers, path, check);
    let namespace = raw.namespace.or_else(|| either(variables, "NAMESPACE").map(|(_, namespace)| namespace));
    let auth = match raw.auth {
        Some(RawVaultAuth::Cert { .. }) if tls.client.is_none() => {
            let help = "set tls.cert_file and tls.key_file";
            check.problem_with(&join(path, &["auth"]), "the login `cert` needs a client certificate", help);
            None
        }
        Some(raw) => login(raw, &join(path, &["auth"]), variables, check),
        None if refused(&join(path, &["auth"]), check) => None,
        None => token_of(path, variables, check),
    };
    Some(VaultSettings {
        address: address?,
        namespace: namespace.filter(|namespace| !namespace.is_empty()),
        auth: auth?,
        tls,
        server_name,
        headers,
        timeout: raw.timeout.map_or(seconds(10), |timeout| timeout.0),
        agents: agents(raw.agents, path, check),
    })
}

fn agents(given: Option<u32>, path: &[&str], check: &mut Check<'_>) -> u32 {
    let agents = given.unwrap_or(1);
    if !(1..=MOST_AGENTS).contains(&agents) {
        check.problem(&join(path, &["agents"]), format!("expected a number from 1 to {MOST_AGENTS}"));
    }
    agents
}

const MOST_AGENTS: u32 = 10_000;

/// Certificates are always checked: whoever counts on the contrary is told.
fn refuse_skipping(path: &[&str], variables: Variables<'_>, check: &mut Check<'_>) {
    if let Some((name, value)) = either(variables, "SKIP_VERIFY")
        && !["0", "f", "false"].contains(&value.to_ascii_lowercase().as_str())
    {
        let help = "unset it; `tls.ca_file` names the authority to trust";
        check.problem_with(path, format!("{name} is set, but certificates are always checked"), help);
    }
}

fn address(given: Option<Url>, path: &[&str], variables: Variables<'_>, check: &mut Check<'_>) -> Option<Url> {
    let at = join(path, &["address"]);
    let address = match (given, either(variables, "ADDR")) {
        (Some(address), _) => address,
        (None, _) if refused(&at, check) => return None,
        (None, None) => {
            check.problem_with(path, "`address` is missing", "or set VAULT_ADDR");
            return None;
        }
        (None, Some((name, text))) => {
            let address = Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
            let Some(address) = address.filter(Url::has_host) else {
                let message = format!("{name} is not an address such as `https://vault.example:8200`");
                check.problem(path, message);
                return None;
            };
            address
        }
    };
    if address.path() != "/" && !address.path().is_empty() || address.query().is_some() {
        check.problem_with(&at, "the address may not have a path", "leave out `/v1`");
    }
    Some(address)
}

fn tls(
    raw: RawVaultTls,
    path: &[&str],
    variables: Variables<'_>,
    check: &mut Check<'_>,
) -> (tls::Files, Option<String>) {
    let mut file = |raw: Option<RawPath>, key: &str, variable: &str| {
        let file = match raw {
            Some(given) => RawPath::given(Some(given)),
            // Relative to where the process was started, as the servers' command lines have it.
            None => either(variables, variable).and_then(|(_, path)| std::path::absolute(path).ok()),
        };
        file.inspect(|file| check.readable(&join(path, &["tls", key]), file))
    };
    let ca_file = file(raw.ca_file, "ca_file", "CACERT");
    let cert_file = file(raw.cert_file, "cert_file", "CLIENT_CERT");
    let key_file = file(raw.key_file, "key_file", "CLIENT_KEY");
    let client = match (cert_file, key_file) {
        (Some(cert_file), Some(key_file)) => Some(tls::ClientFiles { cert_file, key_file }),
        (None, None) => None,
        (cert_file, _) => {
            let missing = if cert_file.is_none() { "cert_file" } else { "key_file" };
            check
                .problem(&join(path, &["tls"]), format!("`{missing}` is missing: certificate and key belong together"));
            None
        }
    };
    let server_name = raw.server_name.or_else(|| either(variables, "TLS_SERVER_NAME").map(|(_, name)| name));
    let server_name = server_name.filter(|name| !name.is_empty());
    if let Some(name) = &server_name {
        let is_name = matches!(url::Host::parse(name), Ok(url::Host::Domain(_)));
        if !is_name {
            check.problem(&join(path, &["tls", "server_name"]), "expected a DNS name, such as `vault.example`");
        }
    }
    (tls::Files { ca_file, client }, server_name)
}

fn headers(
    raw: std::collections::BTreeMap<String, RawSecretText>,
    path: &[&str],
    check: &mut Check<'_>,
) -> Vec<(http::HeaderName, SecretText)> {
    let at = join(path, &["headers"]);
    let headers = check.headers(&at, raw);
    for (name, value) in &headers {
        if SERVERS_HEADERS.contains(&name.as_str()) {
            check.problem(&join(&at, &[name.as_str()]), format!("`{name}` is set by mcpeg itself"));
        }
        refuse_reference(value, &join(&at, &[name.as_str()]), check);
    }
    headers
}

fn token_of(path: &[&str], variables: Variables<'_>, check: &mut Check<'_>) -> Option<VaultAuth> {
    let token = either(variables, "TOKEN").map(|(_, token)| VaultAuth::Token(SecretText::literal(&token)));
    if token.is_none() {
        check.problem_with(path, "`auth` is missing", "or set VAULT_TOKEN");
    }
    token
}

fn login(raw: RawVaultAuth, path: &[&str], variables: Variables<'_>, check: &mut Check<'_>) -> Option<VaultAuth> {
    let or = |mount: Option<String>, default: &str| mount.unwrap_or_else(|| default.to_owned());
    Some(match raw {
        RawVaultAuth::Token { token, token_file } => {
            match one_of(token, token_file, ["token", "token_file"], path, check)? {
                Credential::Inline(token) => VaultAuth::Token(token),
                Credential::File(file) => VaultAuth::TokenFile(file),
            }
        }
        RawVaultAuth::Approle { role_id, secret_id, secret_id_file, secret_id_wrapped, mount } => VaultAuth::AppRole {
            mount: or(mount, "approle"),
            role_id,
            secret_id: one_of(secret_id, secret_id_file, ["secret_id", "secret_id_file"], path, check)?,
            wrapped: secret_id_wrapped.unwrap_or(false),
        },
        RawVaultAuth::Kubernetes { role, token_file, mount } => VaultAuth::Kubernetes {
            mount: or(mount, "kubernetes"),
            role,
            token_file: RawPath::given(token_file).unwrap_or_else(|| SERVICE_ACCOUNT_TOKEN.into()),
        },
        RawVaultAuth::Jwt { role, token, token_file, mount } => VaultAuth::Jwt {
            mount: or(mount, "jwt"),
            role,
            token: one_of(token, token_file, ["token", "token_file"], path, check)?,
        },
        RawVaultAuth::Cert { role, mount } => VaultAuth::Cert { mount: or(mount, "cert"), role },
        RawVaultAuth::Userpass { username, password, password_file, mount } => VaultAuth::Userpass {
            mount: or(mount, "userpass"),
            username,
            password: one_of(password, password_file, ["password", "password_file"], path, check)?,
        },
        RawVaultAuth::Aws {
            role,
            region,
            server_id,
            access_key_id,
            secret_access_key,
            session_token,
            credentials_file,
            profile,
            mount,
        } => {
            let keys = AwsKeys { access_key_id, secret_access_key, session_token };
            let file = RawPath::given(credentials_file);
            if profile.is_some() && file.is_none() {
                check.problem(&join(path, &["profile"]), "a profile is of a `credentials_file`, which is missing");
            }
            let credentials = match file {
                Some(_) if keys.given() => {
                    check.problem(path, "only one of `access_key_id` and `credentials_file` may be given");
                    return None;
                }
                Some(path) => AwsCredentials::File { path, profile: or(profile, "default") },
                None => keys.credentials(path, variables, check)?,
            };
            VaultAuth::Aws(Box::new(AwsAuth { mount: or(mount, "aws"), role, region, server_id, credentials }))
        }
    })
}

struct AwsKeys {
    access_key_id: Option<String>,
    secret_access_key: Option<RawSecretText>,
    session_token: Option<RawSecretText>,
}

impl AwsKeys {
    fn given(&self) -> bool {
        self.access_key_id.is_some() || self.secret_access_key.is_some() || self.session_token.is_some()
    }

    /// Those that were given; if none was, those of the environment. Never a mixture of both.
    fn credentials(self, path: &[&str], variables: Variables<'_>, check: &mut Check<'_>) -> Option<AwsCredentials> {
        let set = |name: &str| variables(name).filter(|value| !value.is_empty());
        let secret = |name: &str| set(name).map(|value| SecretText::literal(&value));
        let given = self.given();
        for (key, value) in [("secret_access_key", &self.secret_access_key), ("session_token", &self.session_token)] {
            if let Some(value) = value
                && refuse_reference(&value.0, &join(path, &[key]), check)
            {
                return None;
            }
        }
        let (id, key, session_token) = match given {
            true => {
                (self.access_key_id, self.secret_access_key.map(|key| key.0), self.session_token.map(|token| token.0))
            }
            false => (set("AWS_ACCESS_KEY_ID"), secret("AWS_SECRET_ACCESS_KEY"), secret("AWS_SESSION_TOKEN")),
        };
        match (id, key) {
            (Some(access_key_id), Some(secret_access_key)) => {
                Some(AwsCredentials::Given { access_key_id, secret_access_key, session_token })
            }
            _ if given => {
                check.problem(path, "`access_key_id` and `secret_access_key` belong together");
                None
            }
            _ => {
                let help = "or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
                check.problem_with(path, "`access_key_id` or `credentials_file` is missing", help);
                None
            }
        }
    }
}

/// Exactly one of a value and a file that holds it.
fn one_of(
    value: Option<RawSecretText>,
    file: Option<RawPath>,
    [value_key, file_key]: [&str; 2],
    path: &[&str],
    check: &mut Check<'_>,
) -> Option<Credential> {
    match (value, file) {
        (Some(value), None) => {
            let refused = refuse_reference(&value.0, &join(path, &[value_key]), check);
            (!refused).then_some(Credential::Inline(value.0))
        }
        (None, Some(file)) => Some(Credential::File(file.0)),
        (None, None) => {
            check.problem(path, format!("`{value_key}` or `{file_key}` is missing"));
            None
        }
        (Some(_), Some(_)) => {
            check.problem(path, format!("only one of `{value_key}` and `{file_key}` may be given"));
            None
        }
    }
}

/// Whether the value refers to a secret, which is a mistake.
fn refuse_reference(value: &SecretText, path: &[&str], check: &mut Check<'_>) -> bool {
    let refers = value.references().next().is_some();
    if refers {
        check.problem(path, "a login may not refer to a secret, which needs the login first");
    }
    refers
}

/// Something was written at `path` and refused, which took it out of the tree.
fn refused(path: &[&str], check: &Check<'_>) -> bool {
    let path = path.join(".");
    check.problems.iter().any(|problem| {
        problem
            .path
            .as_ref()
            .and_then(|known| known.strip_prefix(&path))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// The first of `BAO_NAME` and `VAULT_NAME` that is set, with its name.
fn either(variables: Variables<'_>, name: &str) -> Option<(String, String)> {
    ["BAO_", "VAULT_"].iter().find_map(|prefix| {
        let name = format!("{prefix}{name}");
        variables(&name).filter(|value| !value.is_empty()).map(|value| (name, value))
    })
}

const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const SERVERS_HEADERS: [&str; 4] = ["x-vault-token", "x-vault-namespace", "x-vault-request", "x-vault-wrap-ttl"];
