//! A token that somebody else made: given in the configuration, or in a file that is read again at every login.

use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;

use super::super::super::source::{BoxFuture, FetchError};
use super::super::transport::{Request, Transport};
use super::{AuthMethod, Grant};

pub(super) struct Token(Origin);

enum Origin {
    Fixed(Secret),
    File(PathBuf),
}

impl Token {
    pub fn fixed(token: Secret) -> Self {
        Self(Origin::Fixed(token))
    }

    pub fn in_file(path: PathBuf) -> Self {
        Self(Origin::File(path))
    }

    /// Looks the token up, which shows that it is valid and how long it lives.
    async fn check(&self, transport: &Transport) -> Result<Grant, FetchError> {
        let token = match &self.0 {
            Origin::Fixed(token) => Secret::copy_from(token.expose()),
            Origin::File(path) => super::credential::in_file(path).await?,
        };
        let facts = transport.call(Request::LookupSelf, Some(&token), vaultrs::token::lookup_self).await?;
        let ttl = (facts.ttl > 0).then(|| Duration::from_secs(facts.ttl));
        Ok(Grant { token, ttl, renewable: facts.renewable.unwrap_or(false) })
    }
}

impl AuthMethod for Token {
    fn name(&self) -> &'static str {
        match self.0 {
            Origin::Fixed(_) => "token",
            Origin::File(_) => "token_file",
        }
    }

    fn makes_tokens(&self) -> bool {
        false
    }

    fn login<'a>(&'a self, transport: &'a Transport) -> BoxFuture<'a, Result<Grant, FetchError>> {
        Box::pin(self.check(transport))
    }
}
