//! Credentials in files: what a provider shows to log in, read anew each time.

use std::path::Path;

use zeroize::Zeroizing;

use crate::secret::Secret;

use super::source::{FailureKind, FetchError};

/// Reads a credential of one line from a file of at most 64 KiB.
pub(super) async fn in_file(path: &Path) -> Result<Secret, FetchError> {
    let text = file(path).await?;
    let credential = text.trim_ascii();
    if credential.is_empty() {
        return Err(unreadable(path, "it is empty"));
    }
    Ok(Secret::copy_from(credential))
}

/// Reads a file of at most 64 KiB.
pub(super) async fn file(path: &Path) -> Result<Zeroizing<Vec<u8>>, FetchError> {
    let failed = |error: std::io::Error| unreadable(path, &error.to_string());
    let facts = tokio::fs::metadata(path).await.map_err(failed)?;
    if !facts.is_file() || facts.len() > LARGEST {
        return Err(unreadable(path, &format!("it is not a regular file of at most {LARGEST} bytes")));
    }
    Ok(Zeroizing::new(tokio::fs::read(path).await.map_err(failed)?))
}

pub(super) fn unreadable(path: &Path, reason: &str) -> FetchError {
    FetchError::new(FailureKind::Login, format!("cannot read {}: {reason}", path.display()))
}

const LARGEST: u64 = 64 * 1024;
