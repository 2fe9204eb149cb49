//! The variables of the OpenTelemetry specification, which fill in what `telemetry` leaves out. What is written wins.
//!
//! `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is of one signal and wins over `OTEL_EXPORTER_OTLP_ENDPOINT`, which is of all three. They describe
//! the destination of `telemetry.otlp` and no other. An empty variable is one that is not set ("SDK environment variables", "OTLP exporter
//! configuration").

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use percent_encoding::percent_decode_str;
use url::Url;

use super::Check;
use crate::config::raw::scalar::RawPath;
use crate::config::raw::secrets::RawTls;
use crate::secret::SecretText;
use crate::telemetry::settings::{Compression, OtlpProtocol};

pub struct Otel<'a> {
    pub variable: &'a dyn Fn(&str) -> Option<String>,
}

/// The names of the signals within variables, in the order of their settings.
pub const SIGNALS: [&str; 3] = ["LOGS", "TRACES", "METRICS"];
const PREFIX: &str = "OTEL_EXPORTER_OTLP_";

impl Otel<'_> {
    pub fn get(&self, name: &str) -> Option<String> {
        (self.variable)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// The variable of this signal, else that of all, with its name.
    fn of(&self, signal: &str, key: &str) -> Option<(String, String)> {
        [format!("{PREFIX}{signal}_{key}"), format!("{PREFIX}{key}")]
            .into_iter()
            .find_map(|name| self.get(&name).map(|value| (name, value)))
    }

    fn is_set_for(&self, signal: &str, key: &str) -> bool {
        self.get(&format!("{PREFIX}{signal}_{key}")).is_some()
    }

    /// Whether the signal has files of its own.
    pub fn has_own_tls(&self, signal: &str) -> bool {
        ["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"].iter().any(|key| self.is_set_for(signal, key))
    }

    /// Whether any variable says where to export to.
    pub fn names_an_endpoint(&self) -> bool {
        self.get(&format!("{PREFIX}ENDPOINT")).is_some() || SIGNALS.iter().any(|s| self.is_set_for(s, "ENDPOINT"))
    }

    /// The address, and whether it is the signal's own, to which nothing is appended.
    pub fn endpoint(&self, signal: &str, protocol: OtlpProtocol, check: &mut Check<'_>) -> Option<(Url, bool)> {
        let (name, value) = self.of(signal, "ENDPOINT")?;
        let plain = self.of(signal, "INSECURE").is_some_and(|(_, value)| value.eq_ignore_ascii_case("true"));
        let address = match (protocol, value.contains("://")) {
            (OtlpProtocol::Grpc, false) if plain => format!("http://{value}"),
            (OtlpProtocol::Grpc, false) => format!("https://{value}"),
            _ => value,
        };
        match Url::parse(&address).ok().filter(Url::has_host) {
            Some(url) => Some((url, self.is_set_for(signal, "ENDPOINT"))),
            None => {
                check.problem(OTLP, format!("{name} is not an address such as `http://127.0.0.1:4318`"));
                None
            }
        }
    }

    pub fn protocol(&self, signal: &str, check: &mut Check<'_>) -> Option<OtlpProtocol> {
        let (name, value) = self.of(signal, "PROTOCOL")?;
        match value.as_str() {
            "grpc" => Some(OtlpProtocol::Grpc),
            "http/protobuf" => Some(OtlpProtocol::HttpProtobuf),
            _ => {
                check.problem(OTLP, format!("{name} is neither `grpc` nor `http/protobuf`"));
                None
            }
        }
    }

    pub fn compression(&self, signal: &str, check: &mut Check<'_>) -> Option<Compression> {
        let (name, value) = self.of(signal, "COMPRESSION")?;
        match value.as_str() {
            "none" => Some(Compression::None),
            "gzip" => Some(Compression::Gzip),
            "zstd" => Some(Compression::Zstd),
            _ => {
                check.problem(OTLP, format!("{name} is none of `gzip`, `zstd` and `none`"));
                None
            }
        }
    }

    pub fn timeout(&self, signal: &str, check: &mut Check<'_>) -> Option<Duration> {
        let (name, value) = self.of(signal, "TIMEOUT")?;
        self.milliseconds(&name, &value, OTLP, check)
    }

    /// The files that `tls` leaves out, if it leaves out all of them.
    pub fn tls(&self, signal: &str, tls: &mut RawTls) {
        let given = [&mut tls.ca_file, &mut tls.cert_file, &mut tls.key_file].map(|file| file.is_some());
        if given.contains(&true) {
            return;
        }
        let file = |key| self.of(signal, key).map(|(_, path)| RawPath(PathBuf::from(path)));
        tls.ca_file = file("CERTIFICATE");
        (tls.cert_file, tls.key_file) = (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY"));
    }

    /// Adds `key=value` pairs, separated by commas and percent-encoded, of names that are not there yet.
    pub fn headers(&self, signal: &str, headers: &mut Vec<(HeaderName, SecretText)>, check: &mut Check<'_>) {
        let Some((name, pairs)) = self.of(signal, "HEADERS") else { return };
        let parse = |pair: &str| {
            let (key, value) = pair.split_once('=')?;
            let header = HeaderName::try_from(key.trim()).ok()?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            Some((header, SecretText::literal(&value)))
        };
        for pair in pairs.split(',').filter(|pair| !pair.trim().is_empty()) {
            match parse(pair) {
                Some((header, value)) if !headers.iter().any(|(known, _)| *known == header) => {
                    headers.push((header, value));
                }
                Some(_) => {}
                // The pair is not shown: it may be a password.
                None => check.problem(OTLP, format!("{name} is not `key=value` pairs separated by commas")),
            }
        }
    }

    /// The attributes that only these variables give, and the defaults of mcpeg would hide.
    pub fn resource(&self, key: &str) -> Option<String> {
        if key == "service.name"
            && let Some(name) = self.get("OTEL_SERVICE_NAME")
        {
            return Some(name);
        }
        let attributes = self.get("OTEL_RESOURCE_ATTRIBUTES")?;
        let found =
            attributes.split(',').filter_map(|pair| pair.split_once('=')).find(|(name, _)| name.trim() == key)?;
        Some(percent_decode_str(found.1.trim()).decode_utf8_lossy().into_owned())
    }

    /// Whether the signal is exported at all, as far as variables say.
    pub fn is_exported(&self, signal: &str) -> bool {
        let disabled = self.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        !disabled && self.get(&format!("OTEL_{signal}_EXPORTER")).is_none_or(|exporters| exporters != "none")
    }

    pub fn sample_ratio(&self, check: &mut Check<'_>) -> Option<f64> {
        let sampler = self.get("OTEL_TRACES_SAMPLER")?;
        match sampler.strip_prefix("parentbased_").unwrap_or(&sampler) {
            "always_on" => Some(1.0),
            "always_off" => Some(0.0),
            "traceidratio" => {
                let ratio = self.get("OTEL_TRACES_SAMPLER_ARG").map_or(Ok(1.0), |ratio| ratio.parse());
                let ratio = ratio.ok().filter(|ratio| (0.0..=1.0).contains(ratio));
                if ratio.is_none() {
                    check.problem(&["telemetry"], "OTEL_TRACES_SAMPLER_ARG is not a share between 0 and 1");
                }
                ratio
            }
            _ => None,
        }
    }

    pub fn metric_interval(&self, check: &mut Check<'_>) -> Option<Duration> {
        let value = self.get("OTEL_METRIC_EXPORT_INTERVAL")?;
        self.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", &value, &["telemetry"], check)
    }

    fn milliseconds(&self, name: &str, value: &str, path: &[&str], check: &mut Check<'_>) -> Option<Duration> {
        let parsed = value.parse().ok().filter(|milliseconds| *milliseconds > 0).map(Duration::from_millis);
        if parsed.is_none() {
            check.problem(path, format!("{name} is not a number of milliseconds"));
        }
        parsed
    }
}

const OTLP: &[&str] = &["telemetry", "otlp"];
