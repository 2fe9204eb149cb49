//! `secrets` from its written shape to the secrets domain's settings.

use super::{Check, join, seconds};
use crate::config::raw::scalar::{RawPath, RawSecretText};
use crate::config::raw::secrets::{RawItem, RawProvider, RawSecrets, RawVault, RawVaultAuth};
use crate::secrets::settings::{
    ItemSettings, ProviderSettings, SecretIdSource, SecretsSettings, VaultAuth, VaultSettings,
};

pub fn settings(raw: RawSecrets, check: &mut Check<'_>) -> SecretsSettings {
    check.unavailable_if(raw.serve.is_some(), &["secrets", "serve"]);
    let known: Vec<String> =
        check.tree.get("secrets").and_then(|node| node.get("providers")).map(keys).unwrap_or_default();
    let mut settings =
        SecretsSettings { revoke_on_exit: raw.revoke_on_exit.unwrap_or_default(), ..SecretsSettings::default() };
    for (name, raw) in raw.providers {
        let path = ["secrets", "providers", name.as_str()];
        check.name(&path, "provider", &name);
        if let Some(provider) = provider(raw, &path, check) {
            settings.providers.insert(name, provider);
        }
    }
    for (name, raw) in raw.items {
        let path = ["secrets", "items", name.as_str()];
        check.name(&path, "secret", &name);
        if !known.contains(&raw.provider) {
            check.unknown(&join(&path, &["provider"]), "provider", &raw.provider, known.iter().map(String::as_str));
        }
        let item = item(raw, &settings, &path, check);
        settings.items.insert(name, item);
    }
    settings
}

fn keys(node: &crate::config::tree::Node) -> Vec<String> {
    node.entries().iter().map(|entry| entry.key.clone()).collect()
}

fn provider(raw: RawProvider, path: &[&str], check: &mut Check<'_>) -> Option<ProviderSettings> {
    match raw {
        RawProvider::Vault(raw) => vault(*raw, path, check).map(|vault| ProviderSettings::Vault(Box::new(vault))),
        RawProvider::File(raw) => {
            let at = join(path, &["path"]);
            check.readable(&at, &raw.path.0);
            check.private(&at, &raw.path.0);
            Some(ProviderSettings::File { path: raw.path.0 })
        }
        RawProvider::Environment(_) => Some(ProviderSettings::Environment),
        RawProvider::AwsSecretsManager(_) => later("aws-secrets-manager", path, check),
        RawProvider::Directory(_) => later("directory", path, check),
    }
}

fn later(kind: &str, path: &[&str], check: &mut Check<'_>) -> Option<ProviderSettings> {
    check.problem(&join(path, &["type"]), format!("a provider of type `{kind}` is not available in this version"));
    None
}

fn vault(raw: RawVault, path: &[&str], check: &mut Check<'_>) -> Option<VaultSettings> {
    let address = raw.address.0;
    if address.path() != "/" && !address.path().is_empty() || address.query().is_some() {
        check.problem_with(&join(path, &["address"]), "the address may not have a path", "leave out `/v1`");
    }
    let ca_file = check.ca_file(path, raw.tls);
    let auth = auth(raw.auth, &join(path, &["auth"]), check)?;
    Some(VaultSettings {
        address,
        namespace: raw.namespace.filter(|namespace| !namespace.is_empty()),
        auth,
        ca_file,
        timeout: raw.timeout.map_or(seconds(10), |timeout| timeout.0),
    })
}

fn auth(raw: RawVaultAuth, path: &[&str], check: &mut Check<'_>) -> Option<VaultAuth> {
    let method = match raw {
        RawVaultAuth::Token { token, token_file } => {
            return match one_of(token, token_file, ["token", "token_file"], path, check)? {
                Either::Inline(token) => Some(VaultAuth::Token(token.0)),
                Either::File(file) => Some(VaultAuth::TokenFile(file.0)),
            };
        }
        RawVaultAuth::Approle { role_id, secret_id, secret_id_file, mount } => {
            let keys = ["secret_id", "secret_id_file"];
            let secret_id = match one_of(secret_id, secret_id_file, keys, path, check)? {
                Either::Inline(secret_id) => SecretIdSource::Inline(secret_id.0),
                Either::File(file) => SecretIdSource::File(file.0),
            };
            return Some(VaultAuth::AppRole {
                mount: mount.unwrap_or_else(|| "approle".to_owned()),
                role_id,
                secret_id,
            });
        }
        RawVaultAuth::Kubernetes { .. } => "kubernetes",
        RawVaultAuth::Jwt { .. } => "jwt",
        RawVaultAuth::Cert { .. } => "cert",
        RawVaultAuth::Aws { .. } => "aws",
        RawVaultAuth::Userpass { .. } => "userpass",
    };
    let message = format!("the login method `{method}` is not available in this version");
    check.problem_with(&join(path, &["method"]), message, "token and approle are");
    None
}

enum Either {
    Inline(RawSecretText),
    File(RawPath),
}

/// Exactly one of a value and a file that holds it; a value may not refer to a secret, which needs the login first.
fn one_of(
    value: Option<RawSecretText>,
    file: Option<RawPath>,
    [value_key, file_key]: [&str; 2],
    path: &[&str],
    check: &mut Check<'_>,
) -> Option<Either> {
    match (value, file) {
        (Some(value), None) => {
            if value.0.references().next().is_some() {
                check.problem(
                    &join(path, &[value_key]),
                    "a login may not refer to a secret, which needs the login first",
                );
                return None;
            }
            Some(Either::Inline(value))
        }
        (None, Some(file)) => Some(Either::File(file)),
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

fn item(raw: RawItem, settings: &SecretsSettings, path: &[&str], check: &mut Check<'_>) -> ItemSettings {
    let refresh = raw.refresh.map_or(seconds(60), |refresh| refresh.0);
    if refresh < std::time::Duration::from_millis(100) {
        check.problem(&join(path, &["refresh"]), "expected at least `100ms`");
    }
    let needs_path = !matches!(settings.providers.get(&raw.provider), None | Some(ProviderSettings::File { .. }));
    if needs_path && raw.path.trim_matches('/').is_empty() {
        check.problem(path, "`path` is missing");
    }
    let is_vault = matches!(settings.providers.get(&raw.provider), None | Some(ProviderSettings::Vault(_)));
    if !is_vault && !raw.parameters.is_empty() {
        check.problem(&join(path, &["parameters"]), "only a provider of type `vault` takes parameters");
    }
    ItemSettings {
        provider: raw.provider,
        path: raw.path,
        parameters: raw.parameters,
        refresh,
        overlap: raw.overlap.map_or(seconds(30), |overlap| overlap.0),
        max_stale: raw.max_stale.map(|max_stale| max_stale.0),
        require_at_start: raw.require_at_start.unwrap_or(true),
    }
}
