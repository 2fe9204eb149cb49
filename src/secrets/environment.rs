//! The `environment` kind: an item's path is the name of a variable that the process was started with.
//!
//! The environment of a process does not change, so there is nothing to watch and nothing to be out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::secret::Secret;

use super::source::{BoxFuture, FailureKind, FetchError, Fetched, SecretSource};

pub(super) struct EnvironmentSource;

impl EnvironmentSource {
    fn read(name: &str) -> Result<Fetched, FetchError> {
        let value: OsString = std::env::var_os(name)
            .ok_or_else(|| FetchError::new(FailureKind::NotFound, format!("the environment has no variable {name}")))?;
        let fields = BTreeMap::from([("value".to_owned(), Secret::new(value.into_vec()))]);
        Ok(Fetched { fields, provider_version: None, lease: None })
    }
}

impl SecretSource for EnvironmentSource {
    fn fetch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(std::future::ready(Self::read(path)))
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn tend<'a>(&'a self, _changed: &'a (dyn Fn() + Send + Sync)) -> BoxFuture<'a, ()> {
        Box::pin(std::future::pending())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_one_field_and_a_missing_one_is_named() {
        // Cargo sets this one for every test.
        let found = EnvironmentSource::read("CARGO_PKG_NAME").unwrap();
        assert_eq!(found.fields["value"].expose(), b"mcpeg");
        let missing = EnvironmentSource::read("MCPEG_NO_SUCH_VARIABLE").map(drop).unwrap_err();
        assert_eq!(missing.to_string(), "the environment has no variable MCPEG_NO_SUCH_VARIABLE");
    }
}
