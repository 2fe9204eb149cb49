//! Writing a tree into etcd or Consul: only where a key is as it was read a moment before, verified by reading it again. Nothing is removed, there
//! or at the source.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::{Kind, Options, SourceError};

/// What became of the files.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub written: usize,
    /// They were there already.
    pub unchanged: usize,
    /// Somebody else changed these meanwhile; they and all that come after them were not written.
    pub lost: Vec<String>,
    /// The destination has these, and the source has not.
    pub others: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("{place} cannot be written to: a Git repository is changed by commits")]
    ReadOnly { place: String },
    #[error("{place} was written to by somebody else meanwhile, nothing of that was overwritten: {}", names.join(", "))]
    Lost { place: String, names: Vec<String> },
    #[error("{place} does not have what was written: {}", names.join(", "))]
    Differs { place: String, names: Vec<String> },
}

pub async fn write(
    kind: &Kind,
    place: &str,
    files: &BTreeMap<String, Zeroizing<Vec<u8>>>,
    options: &Options,
) -> Result<Written, WriteError> {
    let place = || place.to_owned();
    let mut written = match kind {
        Kind::Etcd(etcd) => etcd.put(files, options).await?,
        Kind::Consul(consul) => consul.put(files, options).await?,
        Kind::Git(_) => return Err(WriteError::ReadOnly { place: place() }),
    };
    if !written.lost.is_empty() {
        return Err(WriteError::Lost { place: place(), names: written.lost });
    }
    let there = match kind {
        Kind::Etcd(etcd) => etcd.fetch(options).await?,
        Kind::Consul(consul) => consul.fetch(options).await?,
        Kind::Git(_) => return Err(WriteError::ReadOnly { place: place() }),
    };
    let differ = files.iter().filter(|(name, content)| there.files.get(*name) != Some(content));
    let names: Vec<String> = differ.map(|(name, _)| name.clone()).collect();
    if !names.is_empty() {
        return Err(WriteError::Differs { place: place(), names });
    }
    written.others = there.files.into_keys().filter(|name| !files.contains_key(name)).collect();
    Ok(written)
}
