//! Where the token endpoint is: given, or in the metadata of the server (RFC 8414, or OpenID Connect Discovery where there is none), which may
//! itself be found by a resource that names its server (RFC 9728).
//!
//! What was found is used for an hour, or until a request meets something unexpected there. Invariants: metadata is of the issuer or resource
//! that was asked for, or is not used; an endpoint is not less protected than the place that named it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use super::super::settings::OAuthServer;
use super::super::source::{FailureKind, FetchError};
use super::exchange::{Web, document};

pub(super) struct Discovery {
    server: OAuthServer,
    /// The client shows a certificate, for which a server may have an endpoint of its own (RFC 8705, 5).
    certified: bool,
    found: Mutex<Option<(Endpoint, Instant)>>,
}

#[derive(Clone)]
pub(super) struct Endpoint {
    pub url: Url,
    /// The server takes the client's secret in the body, and not in a header.
    pub posts_only: bool,
}

impl Discovery {
    pub fn new(server: OAuthServer, certified: bool) -> Self {
        Self { server, certified, found: Mutex::new(None) }
    }

    pub async fn endpoint(&self, web: &Web) -> Result<Endpoint, FetchError> {
        if let OAuthServer::TokenUrl(url) = &self.server {
            return Ok(Endpoint { url: url.clone(), posts_only: false });
        }
        let known = self.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((endpoint, at)) = known
            && at.elapsed() < FOUND_FOR
        {
            return Ok(endpoint);
        }
        let endpoint = match &self.server {
            OAuthServer::Resource(resource) => self.of_issuer(web, &issuer_of(web, resource).await?).await?,
            OAuthServer::Issuer(url) | OAuthServer::TokenUrl(url) => self.of_issuer(web, url).await?,
        };
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some((endpoint.clone(), Instant::now()));
        Ok(endpoint)
    }

    /// Looks anew the next time.
    pub fn doubt(&self) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    async fn of_issuer(&self, web: &Web, issuer: &Url) -> Result<Endpoint, FetchError> {
        let place = well_known(issuer, "oauth-authorization-server");
        let metadata: Metadata = match document(web, &place).await {
            // OpenID Connect Discovery puts the path first.
            Err(error) if error.kind == FailureKind::NotFound => {
                let mut place = issuer.clone();
                let path = format!("{}/.well-known/openid-configuration", issuer.path().trim_end_matches('/'));
                place.set_path(&path);
                document(web, &place).await.map_err(|second| {
                    let is_missing = second.kind == FailureKind::NotFound;
                    let neither = format!("{} and {place} have no metadata of an authorization server", error.message);
                    if is_missing { FetchError::new(FailureKind::NotFound, neither) } else { second }
                })?
            }
            outcome => outcome?,
        };
        if !is_same(&metadata.issuer, issuer) {
            return Err(wrong(format!("the metadata at {place} is of another issuer than {issuer}")));
        }
        let of_certified = metadata.mtls_endpoint_aliases.token_endpoint.filter(|_| self.certified);
        let told = of_certified.unwrap_or(metadata.token_endpoint);
        let url = protected(&told, issuer, "the token endpoint")?;
        let methods = metadata.token_endpoint_auth_methods_supported;
        let has = |name: &str| methods.iter().any(|method| method == name);
        Ok(Endpoint { url, posts_only: has("client_secret_post") && !has("client_secret_basic") })
    }
}

/// RFC 8414, 2.
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    token_endpoint: String,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Vec<String>,
    /// RFC 8705, 5.
    #[serde(default)]
    mtls_endpoint_aliases: Aliases,
}

#[derive(Default, Deserialize)]
struct Aliases {
    token_endpoint: Option<String>,
}

/// RFC 9728, 2.
#[derive(Deserialize)]
struct Resource {
    resource: String,
    #[serde(default)]
    authorization_servers: Vec<String>,
}

async fn issuer_of(web: &Web, resource: &Url) -> Result<Url, FetchError> {
    let place = well_known(resource, "oauth-protected-resource");
    let found: Resource = document(web, &place).await?;
    if !is_same(&found.resource, resource) {
        return Err(wrong(format!("the metadata at {place} is of another resource than {resource}")));
    }
    match found.authorization_servers.first() {
        Some(issuer) => protected(issuer, resource, "the authorization server"),
        None => Err(wrong(format!("the metadata at {place} names no authorization server"))),
    }
}

/// The name goes between host and path (RFC 8414, 3; RFC 9728, 3).
fn well_known(of: &Url, name: &str) -> Url {
    let mut place = of.clone();
    place.set_path(&format!("/.well-known/{name}{}", of.path().trim_end_matches('/')));
    place
}

fn is_same(told: &str, asked: &Url) -> bool {
    told.trim_end_matches('/') == asked.as_str().trim_end_matches('/')
}

fn protected(told: &str, by: &Url, what: &str) -> Result<Url, FetchError> {
    let url = Url::parse(told).map_err(|_| wrong(format!("{what} that {by} names is not an address")))?;
    let is_fine =
        url.scheme() == "https" || (url.scheme() == "http" && by.scheme() == "http" && url.host() == by.host());
    if is_fine { Ok(url) } else { Err(wrong(format!("{what} that {by} names is not an https address"))) }
}

fn wrong(message: String) -> FetchError {
    FetchError::new(FailureKind::Malformed, message)
}

const FOUND_FOR: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn metadata_lies_between_host_and_path() {
        let place = |text| well_known(&url(text), "oauth-authorization-server").to_string();
        assert_eq!(place("https://as.example"), "https://as.example/.well-known/oauth-authorization-server");
        assert_eq!(place("https://as.example/a/"), "https://as.example/.well-known/oauth-authorization-server/a");
    }

    #[test]
    fn an_issuer_is_itself_and_an_endpoint_as_protected_as_it() {
        assert!(is_same("https://as.example", &url("https://as.example/")));
        assert!(!is_same("https://as.example.evil", &url("https://as.example/")));
        let named = |told: &str, by: &str| protected(told, &url(by), "it").is_ok();
        assert!(
            named("https://login.example/t", "https://as.example") && named("http://127.0.0.1/t", "http://127.0.0.1")
        );
        assert!(!named("http://as.example/t", "https://as.example") && !named("http://other/t", "http://127.0.0.1"));
        assert!(!named("file:///etc/passwd", "https://as.example") && !named("nothing", "https://as.example"));
    }
}
