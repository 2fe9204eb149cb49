//! The plan: where the collector is, how to speak to it, and whom to trust; checked and ready, but not connected.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use url::Url;

use crate::telemetry::error::TelemetryError;
use crate::telemetry::metrics::Signal;
use crate::telemetry::settings::{OtlpProtocol, OtlpSettings};
use crate::tls;

use super::headers::{HeaderProblem, Resolved, SecretSlot, resolve};

pub struct Plan {
    pub settings: OtlpSettings,
    /// Empty for an endpoint without TLS.
    pub roots: Arc<RootCertStore>,
    secrets: Arc<SecretSlot>,
}

impl Plan {
    /// Reads the certificates. Connects to nothing.
    pub fn new(settings: OtlpSettings, secrets: Arc<SecretSlot>) -> Result<Self, TelemetryError> {
        let unusable =
            |reason: &str| TelemetryError::Endpoint { endpoint: shown(&settings.endpoint), reason: reason.to_owned() };
        if settings.endpoint.host_str().is_none() {
            return Err(unusable("it names no host"));
        }
        let scheme = settings.endpoint.scheme();
        if !matches!(scheme, "http" | "https") {
            return Err(unusable("it is neither http nor https"));
        }
        let roots = tls::roots(scheme, settings.ca_file.as_deref()).map_err(|error| unusable(&error.to_string()))?;
        Ok(Self { settings, roots: Arc::new(roots), secrets })
    }

    /// Where requests of `signal` go with `http/protobuf`: the standard path below the endpoint's own.
    pub fn url(&self, signal: Signal) -> Url {
        let mut url = self.settings.endpoint.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/v1/{}", signal.as_str()));
        url
    }

    /// The endpoint as it may be shown: without a password that stands in it.
    pub fn shown(&self) -> String {
        shown(&self.settings.endpoint)
    }

    pub fn headers(&self) -> Result<Resolved, HeaderProblem> {
        resolve(&self.settings.headers, &self.secrets)
    }

    /// A connection that was used may hold a credential in its buffers.
    pub fn carries_secrets(&self) -> bool {
        !self.settings.headers.is_empty()
    }

    pub fn protocol(&self) -> &'static str {
        match self.settings.protocol {
            OtlpProtocol::Grpc => "grpc",
            OtlpProtocol::HttpProtobuf => "http/protobuf",
        }
    }

    /// TLS with ring and the plan's roots only.
    pub fn tls(&self) -> Result<ClientConfig, TelemetryError> {
        tls::client_config(self.roots.clone())
            .map_err(|error| TelemetryError::Endpoint { endpoint: self.shown(), reason: error.to_string() })
    }
}

fn shown(endpoint: &Url) -> String {
    let mut shown = endpoint.clone();
    // Fails only for addresses that cannot have a user, which then have none to hide.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_query(None);
    shown.as_str().trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    fn plan(endpoint: &str, ca_file: Option<&Path>) -> Result<Plan, TelemetryError> {
        let settings = OtlpSettings {
            endpoint: endpoint.parse().unwrap(),
            protocol: OtlpProtocol::HttpProtobuf,
            headers: Vec::new(),
            gzip: false,
            timeout: Duration::from_secs(1),
            ca_file: ca_file.map(Path::to_owned),
            queue_records: 10,
        };
        Plan::new(settings, Arc::default())
    }

    #[test]
    fn paths_are_appended_and_passwords_are_not_shown() {
        let plan = plan("http://user:pass@127.0.0.1:4318/otlp/?token=x", None).unwrap();
        assert_eq!(plan.url(Signal::Traces).path(), "/otlp/v1/traces");
        assert_eq!(plan.shown(), "http://127.0.0.1:4318/otlp");
    }

    #[test]
    fn a_ca_file_or_a_scheme_that_cannot_be_used_is_named() {
        let missing = plan("https://collector", Some(Path::new("/none/ca.pem"))).err().unwrap().to_string();
        assert!(missing.starts_with("OTLP endpoint https://collector: certificates in /none/ca.pem: "), "{missing}");
        let scheme = plan("ftp://collector", None).err().unwrap().to_string();
        assert_eq!(scheme, "OTLP endpoint ftp://collector: it is neither http nor https");
    }
}
