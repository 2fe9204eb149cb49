//! Puts secrets into what an upstream needs, at the moment of use, and says which versions were used.
//!
//! Nothing here keeps a value: what `resolve` returns lives in locked memory and is wiped when the caller lets go of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::settings::{ServiceSettings, UpstreamSettings};
use crate::ports::{Hold, SecretReader, SecretUnavailable};
use crate::secret::{ResolveError, Secret, SecretText};

/// Why a header or a variable has no value now. Names the place and the secret, never a value.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("{place}: {source}")]
    Unresolved { place: String, source: ResolveError<SecretUnavailable> },
    #[error("{place}: the secret holds bytes that may not stand in a header")]
    NotAHeaderValue { place: String },
    #[error("{place}: the secret is not text")]
    NotText { place: String },
}

/// The versions that were read for one use.
#[derive(Debug, Default)]
pub struct Versions(BTreeMap<String, u64>);

impl Versions {
    /// Keeps the leases of these versions for as long as the holds are kept.
    pub fn hold(&self, secrets: &dyn SecretReader) -> Vec<Hold> {
        self.0.iter().map(|(item, version)| secrets.hold(item, *version)).collect()
    }

    /// `item@version`, by item.
    pub fn list(&self) -> Arc<[String]> {
        self.0.iter().map(|(item, version)| format!("{item}@{version}")).collect()
    }
}

/// The current text. `place` is said in the error: `header authorization`, `variable GITHUB_TOKEN`.
pub fn resolve(
    text: &SecretText,
    place: impl FnOnce() -> String,
    secrets: &dyn SecretReader,
    versions: &mut Versions,
) -> Result<Secret, CredentialError> {
    text.resolve(|reference| {
        let version = secrets.current(&reference.item)?;
        versions.0.insert(reference.item.clone(), version.version);
        Ok(version)
    })
    .map_err(|source| CredentialError::Unresolved { place: place(), source })
}

/// `item@version` of each secret that the service refers to, as far as there is one.
pub fn versions(settings: &ServiceSettings, secrets: &dyn SecretReader) -> Vec<String> {
    let version = |item: &String| Some(format!("{item}@{}", secrets.current(item).ok()?.version));
    items(settings).iter().filter_map(version).collect()
}

/// All that an upstream is told by the settings and the secrets: whoever has the same would get the same answers. `None`: a secret is not there.
pub fn stamp(settings: &ServiceSettings, secrets: &dyn SecretReader) -> Option<Zeroizing<Vec<u8>>> {
    let mut stamp = Zeroizing::new(format!("{:?}", settings.upstream).into_bytes());
    let mut add = |value: &[u8]| {
        stamp.extend_from_slice(&(value.len() as u64).to_be_bytes());
        stamp.extend_from_slice(value);
    };
    if let UpstreamSettings::Local(local) = &settings.upstream {
        for item in &local.items {
            secrets.current(item).ok()?.fields.values().for_each(|value| add(value.expose()));
        }
        return Some(stamp);
    }
    for text in texts(settings) {
        let value = text.resolve(|reference| secrets.current(&reference.item)).ok()?;
        add(value.expose());
    }
    Some(stamp)
}

/// The items whose change concerns a service.
pub fn items(settings: &ServiceSettings) -> BTreeSet<String> {
    if let UpstreamSettings::Local(local) = &settings.upstream {
        return local.items.clone();
    }
    texts(settings).into_iter().flat_map(SecretText::references).map(|reference| reference.item.clone()).collect()
}

/// The texts with secrets that an upstream is given.
fn texts(settings: &ServiceSettings) -> Vec<&SecretText> {
    match &settings.upstream {
        UpstreamSettings::Stdio(stdio) => stdio.env.values().collect(),
        UpstreamSettings::Http(http) => {
            http.headers.iter().map(|(_, value)| value).chain(http.query.iter().map(|(_, value)| value)).collect()
        }
        UpstreamSettings::Local(_) => Vec::new(),
    }
}

/// Keeps the leases of these versions, as `Versions::list` has them, for as long as the holds are kept.
pub fn hold(versions: &[String], secrets: &dyn SecretReader) -> Vec<Hold> {
    let parted = versions.iter().filter_map(|version| version.rsplit_once('@'));
    parted.filter_map(|(item, version)| Some(secrets.hold(item, version.parse().ok()?))).collect()
}
