//! The headers of an export: read from the secrets at each use, never kept.

use std::sync::{Arc, OnceLock};

use http::{HeaderName, HeaderValue};

use crate::ports::{SecretReader, SecretUnavailable};
use crate::secret::{ResolveError, SecretText};

/// Where the secrets will be: the store exists only after telemetry does.
#[derive(Default)]
pub struct SecretSlot(OnceLock<Arc<dyn SecretReader>>);

impl SecretSlot {
    /// The first reader stays.
    pub fn attach(&self, secrets: Arc<dyn SecretReader>) {
        let _ = self.0.set(secrets);
    }
}

/// Headers with their values of now. Drop them after the request.
pub struct Resolved {
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The versions of the secrets, in the order of their use: another stamp means other values.
    pub stamp: Vec<u64>,
}

/// Why there are no headers now. Names the header and the secret, never a value.
#[derive(Debug, thiserror::Error)]
pub enum HeaderProblem {
    #[error("header {header}: the secrets are not loaded yet")]
    NotAttached { header: HeaderName },
    #[error("header {header}: {reason}")]
    Unavailable { header: HeaderName, reason: ResolveError<SecretUnavailable> },
    #[error("header {header}: the value holds a character that no header may hold")]
    NotAHeader { header: HeaderName },
}

pub fn resolve(configured: &[(HeaderName, SecretText)], secrets: &SecretSlot) -> Result<Resolved, HeaderProblem> {
    let mut resolved = Resolved { headers: Vec::with_capacity(configured.len()), stamp: Vec::new() };
    for (header, text) in configured {
        let reader = secrets.0.get();
        if reader.is_none() && text.references().next().is_some() {
            return Err(HeaderProblem::NotAttached { header: header.clone() });
        }
        let value = text.resolve(|reference| {
            let unknown = || SecretUnavailable::Unknown { item: reference.item.clone() };
            let version = reader.ok_or_else(unknown)?.current(&reference.item)?;
            resolved.stamp.push(version.version);
            Ok(version)
        });
        let value = value.map_err(|reason| HeaderProblem::Unavailable { header: header.clone(), reason })?;
        let mut value = HeaderValue::from_bytes(value.expose())
            .map_err(|_| HeaderProblem::NotAHeader { header: header.clone() })?;
        // Neither printed by Debug nor kept in a connection's header table.
        value.set_sensitive(true);
        resolved.headers.push((header.clone(), value));
    }
    Ok(resolved)
}
