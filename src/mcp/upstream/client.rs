//! The HTTP client of a service: how connections to its upstream are made.
//!
//! Explicit in everything: TLS by rustls with ring, roots from a file or from the system, no redirects (a credential must not follow
//! one), no proxy from the environment, no cookies. It adds no credential; that is done at each request.
//!
//! Invariant: after `renew`, no connection is used that carried an older request, and those that are idle are closed: the buffer of an
//! HTTP/1 connection keeps the bytes of its last request.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use reqwest::Client;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::mcp::settings::HttpSettings;

pub struct HttpClients {
    tls: ClientConfig,
    current: ArcSwap<Client>,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("ca_file {}: {source}", path.display())]
    CaFile { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("ca_file {}: it holds no certificate", path.display())]
    NoCertificate { path: PathBuf },
    #[error("ca_file {}: a certificate in it cannot be used: {source}", path.display())]
    Certificate { path: PathBuf, source: rustls::Error },
    #[error("the system has no root certificates; name a ca_file{}", .0.as_ref().map(|e| format!(" ({e})")).unwrap_or_default())]
    NoSystemRoots(Option<String>),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the HTTP client: {0}")]
    Build(#[source] reqwest::Error),
}

impl HttpClients {
    pub fn new(settings: &HttpSettings) -> Result<Self, ClientError> {
        let tls = tls(settings)?;
        let current = ArcSwap::from_pointee(client(&tls)?);
        Ok(Self { tls, current })
    }

    pub fn current(&self) -> Arc<Client> {
        self.current.load_full()
    }

    /// Replaces the client. Requests that are under way end on the old one.
    pub fn renew(&self) -> Result<(), ClientError> {
        self.current.store(Arc::new(client(&self.tls)?));
        Ok(())
    }
}

fn client(tls: &ClientConfig) -> Result<Client, ClientError> {
    Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .user_agent(concat!("mcpeg/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE)
        .build()
        .map_err(ClientError::Build)
}

fn tls(settings: &HttpSettings) -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(settings)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(settings: &HttpSettings) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &settings.ca_file {
        let unreadable = |source| ClientError::CaFile { path: path.clone(), source };
        for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
            let certificate = certificate.map_err(unreadable)?;
            roots.add(certificate).map_err(|source| ClientError::Certificate { path: path.clone(), source })?;
        }
        if roots.is_empty() {
            return Err(ClientError::NoCertificate { path: path.clone() });
        }
    } else if settings.url.scheme() == "https" {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            return Err(ClientError::NoSystemRoots(system.errors.first().map(ToString::to_string)));
        }
    }
    Ok(roots)
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Below the 5 s after which Node and uvicorn close an idle connection, so that a request seldom meets one that is closing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
const MAX_IDLE: usize = 8;
