//! The HTTP client of a service: how connections to its upstream are made.
//!
//! Explicit in everything: TLS by rustls with ring, roots from a file or from the system, a certificate of its own where it is configured,
//! no redirects (a credential must not follow one), no proxy from the environment, no cookies. It adds no credential; that is done at each
//! request.
//!
//! Invariant: after `renew`, no connection is used that carried an older request, and those that are idle are closed: the buffer of an
//! HTTP/1 connection keeps the bytes of its last request.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use reqwest::Client;
use url::Url;

use crate::mcp::settings::HttpSettings;
use crate::tls::{Destination, TlsError, Trust};

pub struct HttpClients {
    settings: HttpSettings,
    trust: Trust,
    destination: Destination,
    current: ArcSwap<Client>,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Destination(String),
    #[error("the HTTP client: {0}")]
    Build(#[source] reqwest::Error),
}

impl HttpClients {
    pub fn new(settings: &HttpSettings) -> Result<Self, ClientError> {
        let origin = settings.url.origin().ascii_serialization();
        let trust = Trust::build(&origin, settings.url.scheme(), settings.tls.clone())?;
        let destination =
            Destination::new(&settings.url, settings.server_name.as_deref()).map_err(ClientError::Destination)?;
        let current = ArcSwap::from_pointee(client(settings, &trust, &destination)?);
        Ok(Self { settings: settings.clone(), trust, destination, current })
    }

    pub fn current(&self) -> Arc<Client> {
        self.current.load_full()
    }

    /// Where requests are sent: the configured address, under the name that the server has to prove.
    pub fn url(&self) -> &Url {
        &self.destination.base
    }

    /// Replaces the client. Requests that are under way end on the old one.
    pub fn renew(&self) -> Result<(), ClientError> {
        self.current.store(Arc::new(client(&self.settings, &self.trust, &self.destination)?));
        Ok(())
    }

    /// Whether there are files that `follow` looks at.
    pub fn has_files(&self) -> bool {
        self.trust.changes()
    }

    /// Reads the files of TLS again if they changed, and uses them from the next request on.
    pub fn follow(&self) -> Result<(), ClientError> {
        if self.trust.follow() { self.renew() } else { Ok(()) }
    }

    /// Why the files of TLS, as they are now, are not in use.
    pub fn trouble(&self) -> Option<String> {
        self.trust.trouble()
    }
}

fn client(settings: &HttpSettings, trust: &Trust, destination: &Destination) -> Result<Client, ClientError> {
    let mut tls = trust.config();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut builder = destination
        .apply(Client::builder())
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .user_agent(concat!("mcpeg/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE);
    if let Some(socket) = &settings.socket {
        builder = builder.unix_socket(socket.clone());
    }
    if settings.http2_only {
        builder = builder.http2_prior_knowledge();
    }
    builder.build().map_err(ClientError::Build)
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Below the 5 s after which Node and uvicorn close an idle connection, so that a request seldom meets one that is closing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
const MAX_IDLE: usize = 8;
