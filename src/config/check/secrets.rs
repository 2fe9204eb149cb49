//! `secrets` from its written shape to the secrets domain's settings.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::vault::{Variables, vault};
use super::{Check, join, seconds};
use crate::config::problem::Problems;
use crate::config::raw::scalar::RawPath;
use crate::config::raw::secrets::{
    RawDirectory, RawItem, RawProvider, RawSealedWith, RawSecrets, RawSecretsCache, RawServe, RawServeAllow,
};
use crate::config::read_raw;
use crate::config::sealed::SealedWith;
use crate::config::tree::Node;
use crate::config::yaml::plain_io;
use crate::sealed::KeySource;
use crate::secret::SecretRef;
use crate::secrets::settings::{
    AllowRule, CacheSettings, ItemSettings, ProviderSettings, SecretsSettings, ServeSettings,
};

pub fn settings(raw: RawSecrets, variables: Variables<'_>, check: &mut Check<'_>) -> SecretsSettings {
    let known: Vec<String> =
        check.tree.get("secrets").and_then(|node| node.get("providers")).map(keys).unwrap_or_default();
    let mut settings =
        SecretsSettings { revoke_on_exit: raw.revoke_on_exit.unwrap_or_default(), ..SecretsSettings::default() };
    settings.cache = raw.cache.and_then(|raw| cache(raw, settings.revoke_on_exit, check));
    for (name, raw) in raw.providers {
        let path = ["secrets", "providers", name.as_str()];
        check.name(&path, "provider", &name);
        if let Some(provider) = provider(raw, &path, variables, check) {
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
    super::oauth::references(&settings, check);
    settings
}

fn keys(node: &crate::config::tree::Node) -> Vec<String> {
    node.entries().iter().map(|entry| entry.key.clone()).collect()
}

fn provider(
    raw: RawProvider,
    path: &[&str],
    variables: Variables<'_>,
    check: &mut Check<'_>,
) -> Option<ProviderSettings> {
    match raw {
        RawProvider::Vault(raw) => {
            vault(*raw, path, variables, check).map(|vault| ProviderSettings::Vault(Box::new(vault)))
        }
        RawProvider::File(raw) => {
            let at = join(path, &["path"]);
            check.readable(&at, &raw.path.0);
            let is_sealed = raw.sealed_with.is_some();
            let sealed_with = raw.sealed_with.and_then(|raw| sealed_with(raw, &join(path, &["sealed_with"]), check));
            if !is_sealed {
                check.private(&at, &raw.path.0);
            }
            Some(ProviderSettings::File { path: raw.path.0, sealed_with })
        }
        RawProvider::Environment(_) => Some(ProviderSettings::Environment),
        RawProvider::AwsSecretsManager(raw) => super::aws::settings(*raw, path, variables, check)
            .map(|aws| ProviderSettings::AwsSecretsManager(Box::new(aws))),
        RawProvider::OAuth(raw) => {
            super::oauth::settings(*raw, path, check).map(|oauth| ProviderSettings::OAuth(Box::new(oauth)))
        }
        RawProvider::Directory(raw) => directory(raw, path, variables, check),
    }
}

fn directory(
    raw: RawDirectory,
    path: &[&str],
    variables: Variables<'_>,
    check: &mut Check<'_>,
) -> Option<ProviderSettings> {
    let given = RawPath::given(raw.path);
    let folder = given.or_else(|| variables("CREDENTIALS_DIRECTORY").map(PathBuf::from));
    let Some(folder) = folder.filter(|folder| folder.is_absolute()) else {
        let help = "systemd sets CREDENTIALS_DIRECTORY for a unit with LoadCredential= or SetCredential=";
        check.problem_with(path, "`path` is missing, and so is the variable CREDENTIALS_DIRECTORY", help);
        return None;
    };
    match std::fs::metadata(&folder) {
        Ok(facts) if facts.is_dir() => {}
        Ok(_) => check.problem(&join(path, &["path"]), format!("{} is not a folder", folder.display())),
        Err(error) => check
            .problem(&join(path, &["path"]), format!("{} cannot be opened: {}", folder.display(), plain_io(&error))),
    }
    Some(ProviderSettings::Directory { path: folder })
}

fn cache(raw: RawSecretsCache, revoke_on_exit: bool, check: &mut Check<'_>) -> Option<CacheSettings> {
    let path = ["secrets", "cache"];
    if revoke_on_exit {
        check.problem(
            &path,
            "what `secrets.revoke_on_exit` gives back cannot be kept for the next start: leave one of the two out",
        );
    }
    if raw.sealed_with.passphrase_file.is_some() {
        let at = join(&path, &["sealed_with", "passphrase_file"]);
        check.problem(&at, "a passphrase would cost a second at each change: use `identity_file` or `credential`");
        return None;
    }
    let sealed_with = sealed_with(raw.sealed_with, &join(&path, &["sealed_with"]), check)?;
    Some(CacheSettings { path: raw.path.0, sealed_with })
}

/// The key of `security.sealed_with`, which is needed before anything else is read. `None`: none is named, or its mistake has been said.
pub fn key_of_sealed(tree: &Node, problems: &mut Problems) -> Option<SealedWith> {
    let node = tree.get("security")?.get("sealed_with")?;
    let mut raw: RawSealedWith = read_raw(node, problems)?;
    let path = ["security", "sealed_with"];
    let mut check = Check { tree, problems };
    let Some(item) = raw.item.take() else { return sealed_with(raw, &path, &mut check).map(SealedWith::Key) };
    if raw.identity_file.is_some() || raw.passphrase_file.is_some() || raw.credential.is_some() {
        check.problem(&path, "expected one of `identity_file`, `passphrase_file`, `credential` and `item`");
    }
    let reference = SecretRef::parse(&item);
    if reference.is_none() {
        check.problem(&join(&path, &["item"]), "expected the name of a secret, or `ITEM.FIELD`");
    }
    reference.map(SealedWith::Item)
}

/// Whether the key can be had shows when it is needed: a credential is there only where systemd has started the process.
fn sealed_with(raw: RawSealedWith, path: &[&str], check: &mut Check<'_>) -> Option<KeySource> {
    if raw.item.is_some() {
        let reason =
            "what holds secrets cannot be opened with one of them; only `security.sealed_with` may name an item";
        check.problem(&join(path, &["item"]), reason);
        return None;
    }
    match (raw.identity_file, raw.passphrase_file, raw.credential) {
        (Some(file), None, None) => Some(KeySource::IdentityFile(file.0)),
        (None, Some(file), None) => Some(KeySource::PassphraseFile(file.0)),
        (None, None, Some(name)) if is_credential_name(&name) => Some(KeySource::Credential(name)),
        (None, None, Some(_)) => {
            check.problem(&join(path, &["credential"]), "a credential's name has no `/` and is not empty");
            None
        }
        _ => {
            check.problem(path, "expected one of `identity_file`, `passphrase_file` and `credential`");
            None
        }
    }
}

fn is_credential_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && name != "." && name != ".."
}

fn item(raw: RawItem, settings: &SecretsSettings, path: &[&str], check: &mut Check<'_>) -> ItemSettings {
    let refresh = raw.refresh.map_or(seconds(60), |refresh| refresh.0);
    if refresh < std::time::Duration::from_millis(100) {
        check.problem(&join(path, &["refresh"]), "expected at least `100ms`");
    }
    let provider = settings.providers.get(&raw.provider);
    let may_lack_path = |provider: &ProviderSettings| {
        matches!(
            provider,
            ProviderSettings::File { .. } | ProviderSettings::Directory { .. } | ProviderSettings::OAuth(_)
        )
    };
    let needs_path = provider.is_some_and(|provider| !may_lack_path(provider));
    if needs_path && raw.path.trim_matches('/').is_empty() {
        check.problem(path, "`path` is missing");
    }
    parameters(&raw.parameters, provider, path, check);
    let mut item_path = raw.path;
    match provider {
        Some(ProviderSettings::AwsSecretsManager(_)) => {
            item_path = super::aws::item_path(&item_path, raw.version_stage, path, check);
        }
        Some(_) if raw.version_stage.is_some() => {
            check.problem(
                &join(path, &["version_stage"]),
                "only secrets of an `aws-secrets-manager` have version stages",
            );
        }
        Some(ProviderSettings::Directory { .. }) if item_path.split('/').any(|part| part == ".." || part == ".") => {
            check.problem(&join(path, &["path"]), "the path may not lead out of the folder");
        }
        _ => {}
    }
    ItemSettings {
        provider: raw.provider,
        path: item_path,
        parameters: raw.parameters,
        refresh,
        overlap: raw.overlap.map_or(seconds(30), |overlap| overlap.0),
        max_stale: raw.max_stale.map(|max_stale| max_stale.0),
        require_at_start: raw.require_at_start.unwrap_or(true),
    }
}

fn parameters(
    raw: &BTreeMap<String, String>,
    provider: Option<&ProviderSettings>,
    path: &[&str],
    check: &mut Check<'_>,
) {
    let at = join(path, &["parameters"]);
    match provider {
        None | Some(ProviderSettings::Vault(_)) => {}
        Some(ProviderSettings::OAuth(_)) => {
            for name in raw.keys().filter(|name| !super::oauth::is_parameter(name)) {
                check.problem(&join(&at, &[name]), format!("`{name}` has a key of its own"));
            }
        }
        Some(_) if raw.is_empty() => {}
        Some(_) => check.problem(&at, "only a provider of type `vault` or `oauth` takes parameters"),
    }
}

/// The socket for local programs. `items` are the names that are configured.
pub fn serve(raw: RawServe, folder: &Path, items: &BTreeSet<String>, check: &mut Check<'_>) -> ServeSettings {
    let path = raw.unix.path.map_or_else(|| folder.join("run/secrets.sock"), |path| path.0);
    check.socket_path(&["secrets", "serve", "unix", "path"], &path);
    let mode = raw.unix.mode.map_or(0o660, |mode| mode.0);
    let max_connections = raw.unix.max_connections.unwrap_or(64);
    let rules = raw.allow.into_iter().enumerate();
    let allow = rules.map(|(index, rule)| allow_rule(rule, &index.to_string(), items, check)).collect();
    ServeSettings { path, mode, max_connections, allow }
}

fn allow_rule(raw: RawServeAllow, index: &str, items: &BTreeSet<String>, check: &mut Check<'_>) -> AllowRule {
    let path = ["secrets", "serve", "allow", index];
    if raw.uid.is_none() && raw.gid.is_none() {
        check.problem(&path, "`uid` or `gid` is missing: whom it allows");
    }
    if raw.items.is_empty() {
        check.problem(&path, "`items` is missing: what it allows");
    }
    for (number, item) in raw.items.iter().enumerate() {
        if !items.contains(item) {
            let at = join(&path, &["items"]);
            let number = number.to_string();
            check.unknown(&join(&at, &[&number]), "secret", item, items.iter().map(String::as_str));
        }
    }
    AllowRule { uid: raw.uid, gid: raw.gid, items: raw.items }
}
