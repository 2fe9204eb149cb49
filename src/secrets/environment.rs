//! The `environment` kind: an item's path is the name of a variable that the process was started with.
//!
//! Its value is wiped from the process's environment when it is read first.
//! The environment of a process does not change, so there is nothing to watch and nothing to be out.

use std::collections::BTreeMap;

use crate::environment;

use super::source::{BoxFuture, FailureKind, FetchError, Fetched, SecretSource};

pub(super) struct EnvironmentSource;

impl EnvironmentSource {
    fn read(name: &str) -> Result<Fetched, FetchError> {
        let value = environment::take(name)
            .ok_or_else(|| FetchError::new(FailureKind::NotFound, format!("the environment has no variable {name}")))?;
        let fields = BTreeMap::from([("value".to_owned(), value)]);
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
        // Cargo sets this one for every test, and nothing else here reads it.
        for _ in 0..2 {
            let found = EnvironmentSource::read("CARGO_PKG_VERSION_MINOR").unwrap();
            assert_eq!(found.fields["value"].expose(), b"1");
        }
        assert_eq!(std::env::var("CARGO_PKG_VERSION_MINOR").as_deref(), Ok(""), "the name alone is left");
        assert_eq!(environment::text("CARGO_PKG_VERSION_MINOR").as_deref(), Some("1"));
        let missing = EnvironmentSource::read("MCPEG_NO_SUCH_VARIABLE").map(drop).unwrap_err();
        assert_eq!(missing.to_string(), "the environment has no variable MCPEG_NO_SUCH_VARIABLE");
    }
}
