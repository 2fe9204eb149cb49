//! The environment of the process, made at the moment of its start: variables of ours that hold no credential, and the named ones with
//! secrets put in.
//!
//! Invariants: what is made here is handed to `exec` and freed, and thereby wiped, before the start returns; what stays is a keyed digest, by
//! which a change is known, and the numbers of the versions.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use ring::hmac;
use tokio::process::Command;

use crate::ports::{Hold, SecretReader, SecretUnavailable};
use crate::secret::{ResolveError, Secret};

use super::ProcessError;
use super::settings::{Inherit, ProcessSettings, is_credential};

/// The configured variables with the secrets of now.
pub(super) struct Environment {
    values: Vec<(String, Secret)>,
    /// `item@version`, by item.
    pub versions: Vec<String>,
    /// The same, in parts.
    used: BTreeMap<String, u64>,
    /// Differs when a value does.
    pub digest: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digest([u8; 32]);

/// A key that no other process has, so that a digest says nothing of the value.
pub(super) struct Digester(hmac::Key);

impl Digester {
    pub fn new() -> Result<Self, ProcessError> {
        let random = ring::rand::SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random).map_err(|_| ProcessError::Random)?;
        Ok(Self(key))
    }
}

impl Environment {
    pub fn now(
        settings: &ProcessSettings,
        secrets: &dyn SecretReader,
        digester: &Digester,
    ) -> Result<Self, Unresolved> {
        let mut used = BTreeMap::new();
        let mut values = Vec::with_capacity(settings.env.len());
        let mut digest = hmac::Context::with_key(&digester.0);
        for (name, text) in &settings.env {
            let value = text.resolve(|reference| {
                let version = secrets.current(&reference.item)?;
                used.insert(reference.item.clone(), version.version);
                Ok(version)
            });
            let value = value.map_err(|source| Unresolved { variable: name.clone(), source })?;
            if value.expose().contains(&0) {
                return Err(Unresolved { variable: name.clone(), source: ResolveError::Unavailable(Fault::ZeroByte) });
            }
            digest.update(&(value.len() as u64).to_le_bytes());
            digest.update(value.expose());
            values.push((name.clone(), value));
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.sign().as_ref());
        let versions = used.iter().map(|(item, version)| format!("{item}@{version}")).collect();
        Ok(Self { values, versions, used, digest: Digest(bytes) })
    }

    /// Keeps what these versions were leased under from being given back.
    pub fn hold(&self, secrets: &dyn SecretReader) -> Vec<Hold> {
        self.used.iter().map(|(item, version)| secrets.hold(item, *version)).collect()
    }

    /// What is to be executed. It holds copies of the values: it must not outlive the start.
    pub fn command(&self, settings: &ProcessSettings, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(settings.argv.iter().skip(1)).env_clear();
        inherit(&mut command, settings);
        if let Some(identity) = settings.identity.as_ref().filter(|identity| !identity.is_own()) {
            identity.describe_in(&mut command);
        }
        if let Some(folder) = &settings.working_directory {
            command.current_dir(folder);
        }
        for (name, value) in &self.values {
            command.env(name, OsStr::from_bytes(value.expose()));
        }
        command
    }
}

fn inherit(command: &mut Command, settings: &ProcessSettings) {
    let is_wanted = |name: &OsStr| {
        let Some(name) = name.to_str() else { return settings.inherit == Inherit::All };
        let is_named = match &settings.inherit {
            Inherit::All => true,
            Inherit::None => false,
            Inherit::Names(names) => names.contains(name),
        };
        is_named && !is_credential(name) && !settings.withheld.contains(name)
    };
    command.envs(std::env::vars_os().filter(|(name, _)| is_wanted(name)));
}

/// Why the process has no environment now. Names the variable and the secret, never a value.
#[derive(Debug, thiserror::Error)]
#[error("variable {variable}: {source}")]
pub(super) struct Unresolved {
    variable: String,
    source: ResolveError<Fault>,
}

impl Unresolved {
    /// Nobody knows yet whether it can be fetched.
    pub fn is_early(&self) -> bool {
        let ResolveError::Unavailable(Fault::Secret(unavailable)) = &self.source else { return false };
        matches!(unavailable, SecretUnavailable::NotFetched { reason: None, .. })
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Secret(#[from] SecretUnavailable),
    #[error("the secret holds a zero byte, which no variable can")]
    ZeroByte,
}

/// The items that the environment is made of.
pub(super) fn items(settings: &ProcessSettings) -> Vec<Arc<str>> {
    let references = settings.env.values().flat_map(|text| text.references());
    let items: std::collections::BTreeSet<&str> = references.map(|reference| reference.item.as_str()).collect();
    items.into_iter().map(Arc::from).collect()
}
