//! The plan: where the collector is, how to speak to it, and whom to trust; checked and ready, but not connected.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderValue;
use rustls::ClientConfig;
use url::Url;

use crate::telemetry::error::TelemetryError;
use crate::telemetry::settings::{DestinationSettings, OtlpProtocol, OtlpSettings};
use crate::telemetry::tallies::Signal;
use crate::tls::{Destination, Trust};

use super::headers::{HeaderProblem, Resolved, SecretSlot, resolve};

pub struct Plan {
    pub settings: OtlpSettings,
    /// Follows the files of TLS.
    trust: Trust,
    /// How often they were read anew.
    readings: AtomicU64,
    /// Where HTTP requests go.
    pub address: Destination,
    secrets: Arc<SecretSlot>,
}

/// The plans of one destination, one for each signal, in the order of `Signal`; the same for all that are alike.
#[derive(Clone)]
pub struct SignalPlans([Arc<Plan>; Signal::ALL.len()]);

impl SignalPlans {
    /// Reads the certificates. Connects to nothing.
    pub fn new(settings: &DestinationSettings, secrets: &Arc<SecretSlot>) -> Result<Self, TelemetryError> {
        let [logs, traces, metrics] = settings.all();
        let first = Arc::new(Plan::new(logs.clone(), secrets.clone())?);
        let other = |settings: &OtlpSettings| {
            if settings == logs {
                Ok(first.clone())
            } else {
                Plan::new(settings.clone(), secrets.clone()).map(Arc::new)
            }
        };
        let (traces, metrics) = (other(traces)?, other(metrics)?);
        Ok(Self([first, traces, metrics]))
    }

    pub fn of(&self, signal: Signal) -> &Arc<Plan> {
        &self.0[signal as usize]
    }

    /// Why files of TLS as they are now are not in use.
    pub fn trouble(&self) -> Option<String> {
        self.0.iter().find_map(|plan| plan.trust.trouble())
    }
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
        let trust = Trust::build(&shown(&settings.endpoint), scheme, settings.tls.clone())
            .map_err(|error| unusable(&error.to_string()))?;
        let address = Destination::new(&settings.endpoint, settings.server_name.as_deref())
            .map_err(|reason| unusable(&reason))?;
        Ok(Self { settings, trust, readings: AtomicU64::new(0), address, secrets })
    }

    /// Where requests of `signal` go with `http/protobuf`: the standard path below the endpoint's own.
    pub fn url(&self, signal: Signal) -> Url {
        let mut url = self.address.base.clone();
        if self.settings.endpoint_is_whole {
            return url;
        }
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

    /// TLS with ring, by the files as they were when they could last be used.
    pub fn tls(&self) -> ClientConfig {
        self.trust.config()
    }

    /// Reads the files of TLS again if they changed. Another number than before: there is a new `tls`.
    pub fn follow_tls(&self) -> u64 {
        if self.trust.follow() {
            self.readings.fetch_add(1, Ordering::AcqRel);
        }
        self.readings.load(Ordering::Acquire)
    }

    /// What a server has to prove to be.
    pub fn server_name(&self) -> &str {
        self.settings.server_name.as_deref().or_else(|| self.settings.endpoint.host_str()).unwrap_or_default()
    }

    /// The `Host` of a request, where it is not the one of its address.
    pub fn host(&self) -> Option<HeaderValue> {
        self.address.host()
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
    use crate::telemetry::settings::Compression;

    fn plan(endpoint: &str, ca_file: Option<&Path>) -> Result<Plan, TelemetryError> {
        let settings = OtlpSettings {
            endpoint: endpoint.parse().unwrap(),
            protocol: OtlpProtocol::HttpProtobuf,
            headers: Vec::new(),
            compression: Compression::None,
            timeout: Duration::from_secs(1),
            tls: crate::tls::Files { ca_file: ca_file.map(Path::to_owned), client: None },
            server_name: None,
            endpoint_is_whole: false,
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
