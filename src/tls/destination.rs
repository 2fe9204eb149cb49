//! Where an HTTP client's requests go: the address that is connected to, and the name that the server has to prove.
//!
//! They differ where `tls.server_name` says so (a tunnel, an address without a name). Then requests are made for that name, so that SNI and
//! the check of the certificate follow by themselves, the name resolves to the address that was configured, and `Host` says what it
//! would have said.

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderValue;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::Url;

pub struct Destination {
    /// What requests are made for.
    pub base: Url,
    detour: Option<Detour>,
}

struct Detour {
    host: HeaderValue,
    resolver: Arc<Fixed>,
}

impl Destination {
    pub fn new(address: &Url, server_name: Option<&str>) -> Result<Self, String> {
        let name = match server_name {
            Some(name) if address.scheme() == "https" => name,
            _ => return Ok(Self { base: address.clone(), detour: None }),
        };
        let mut base = address.clone();
        base.set_host(Some(name)).map_err(|error| format!("tls.server_name: {error}"))?;
        let host = address.host_str().unwrap_or_default();
        let shown = address.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let header = HeaderValue::from_str(&shown).map_err(|error| format!("the address: {error}"))?;
        let resolver = Arc::new(Fixed { host: host.trim_matches(['[', ']']).to_owned() });
        Ok(Self { base, detour: Some(Detour { host: header, resolver }) })
    }

    /// The `Host` header, where it is not the one of `base`.
    pub fn host(&self) -> Option<HeaderValue> {
        self.detour.as_ref().map(|detour| detour.host.clone())
    }

    pub fn apply(&self, builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
        match &self.detour {
            Some(detour) => builder.dns_resolver(detour.resolver.clone()),
            None => builder,
        }
    }
}

/// Resolves every name to where `host` is.
struct Fixed {
    host: String,
}

impl Resolve for Fixed {
    fn resolve(&self, _: Name) -> Resolving {
        let host = self.host.clone();
        Box::pin(async move {
            // The port is put in by the client.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_name_changes_what_is_asked_for_and_not_the_host() {
        let plain = Destination::new(&"https://10.0.0.1:8200".parse().unwrap(), None).unwrap();
        assert_eq!((plain.base.as_str(), plain.host()), ("https://10.0.0.1:8200/", None));
        let named = Destination::new(&"https://[::1]:8200".parse().unwrap(), Some("vault.example")).unwrap();
        assert_eq!(named.base.as_str(), "https://vault.example:8200/");
        assert_eq!(named.host().unwrap(), "[::1]:8200");
        assert_eq!(named.detour.unwrap().resolver.host, "::1");
        let open = Destination::new(&"http://10.0.0.1".parse().unwrap(), Some("vault.example")).unwrap();
        assert_eq!(open.base.as_str(), "http://10.0.0.1/");
    }
}
