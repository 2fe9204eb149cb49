//! The body of an answer, from JSON to fields, without a tree of values in between.
//!
//! A KV v2 answer is told by its shape (`data` holds exactly `data` and `metadata`), not by its path, so that it works under any mount.
//! A field that is not a string becomes its JSON text. Invariant: no problem quotes the body.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::json::{Fields, into_secrets};
use super::super::source::{FailureKind, Fetched, Lease, LeaseId};

/// What is wrong with an answer; shown after `SERVER answered for PATH with`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    NotJson {
        line: usize,
        column: usize,
    },
    NoData,
    /// KV v2: this version was deleted or destroyed.
    Deleted {
        version: u64,
    },
}

impl Problem {
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Deleted { .. } => FailureKind::NotFound,
            Self::NotJson { .. } | Self::NoData => FailureKind::Malformed,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson { line, column } => {
                write!(f, "something that is not the expected JSON (line {line}, column {column})")
            }
            Self::NoData => f.write_str("no data"),
            Self::Deleted { version } => write!(f, "version {version}, which was deleted"),
        }
    }
}

/// Must run where the stack is wiped afterwards.
pub(super) fn parse(body: &[u8]) -> Result<Fetched, Problem> {
    let answer: Answer = serde_json::from_slice(body).map_err(not_json)?;
    let data = answer.data.ok_or(Problem::NoData)?.get();
    let lease = answer.lease();
    if let Ok(kv) = serde_json::from_str::<KvVersion>(data) {
        let version = kv.metadata.version;
        let fields = match kv.data {
            Some(fields) => fields,
            None => return Err(Problem::Deleted { version }),
        };
        return Ok(Fetched {
            fields: into_secrets(fields).map_err(not_json)?,
            provider_version: Some(version.to_string()),
            lease,
        });
    }
    let mut fields: Fields = serde_json::from_str(data).map_err(not_json)?;
    let lease = lease.or_else(|| end_in(&mut fields));
    Ok(Fetched { fields: into_secrets(fields).map_err(not_json)?, provider_version: None, lease })
}

/// How long the life of a lease is that is being renewed (developer.hashicorp.com/vault/api-docs/system/leases#renew-lease).
pub(super) fn renewed(body: &[u8]) -> Option<Duration> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    Some(Duration::from_secs(answer.lease_duration))
}

/// What is left of a lease, and whether it can be renewed.
pub(super) fn looked_up(body: &[u8]) -> Option<(Duration, bool)> {
    #[derive(Deserialize)]
    struct Looked {
        data: Facts,
    }
    #[derive(Deserialize)]
    struct Facts {
        ttl: u64,
        renewable: bool,
    }
    let facts = serde_json::from_slice::<Looked>(body).ok()?.data;
    Some((Duration::from_secs(facts.ttl), facts.renewable))
}

/// What ends values that have no lease. A static role tells the time until the server rotates it in `ttl`, which counts down and so is
/// no part of the value (developer.hashicorp.com/vault/api-docs/secret/databases#get-static-credentials); PKI the moment at which a
/// certificate ends in `expiration`.
fn end_in(fields: &mut Fields) -> Option<Lease> {
    let is_static = ["last_vault_rotation", "last_bao_rotation"].iter().any(|name| fields.contains_key(*name));
    if is_static && let Some(ttl) = fields.remove("ttl") {
        return Some(Lease::Rotates(Duration::from_secs(number_in(ttl).unwrap_or(0))));
    }
    let expiration = fields.get("certificate").and(fields.get("expiration"))?;
    let ends = std::time::UNIX_EPOCH + Duration::from_secs(number_in(expiration)?);
    Some(Lease::Ends(ends.duration_since(std::time::SystemTime::now()).unwrap_or_default()))
}

fn number_in(raw: &RawValue) -> Option<u64> {
    serde_json::from_str::<f64>(raw.get()).ok().map(|number| number.max(0.0) as u64)
}

/// developer.hashicorp.com/vault/api-docs: every answer that reads something has this envelope.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(default)]
    lease_id: String,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

impl Answer<'_> {
    fn lease(&self) -> Option<Lease> {
        (!self.lease_id.is_empty()).then(|| Lease::Held {
            id: LeaseId::new(self.lease_id.clone()),
            ttl: Duration::from_secs(self.lease_duration),
            renewable: self.renewable,
            login: 0,
        })
    }
}

/// developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2#read-secret-version
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KvVersion<'a> {
    #[serde(borrow)]
    data: Option<Fields<'a>>,
    metadata: KvMetadata,
}

#[derive(Deserialize)]
struct KvMetadata {
    version: u64,
}

fn not_json(error: serde_json::Error) -> Problem {
    Problem::NotJson { line: error.line(), column: error.column() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(body: &str) -> (Vec<(String, String)>, Option<String>, Option<Lease>) {
        let fetched = parse(body.as_bytes()).unwrap();
        let fields = fetched.fields.iter().map(|(k, v)| (k.clone(), v.expose_str().unwrap().to_owned())).collect();
        (fields, fetched.provider_version, fetched.lease)
    }

    #[test]
    fn a_kv_version_is_unwrapped_and_other_values_keep_their_json_text() {
        let (fields, version, lease) = plain(
            r#"{"request_id":"x","lease_id":"","renewable":false,"lease_duration":0,"data":{"data":{
            "a":"say \"hi\"\n","n":1.50,"list":[1, "two"],"none":null,"yes":true},
            "metadata":{"version":3,"created_time":"t","destroyed":false}},"warnings":null,"auth":null}"#,
        );
        let expected =
            [("a", "say \"hi\"\n"), ("list", "[1, \"two\"]"), ("n", "1.50"), ("none", "null"), ("yes", "true")];
        assert_eq!(fields, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!((version.as_deref(), lease), (Some("3"), None));
    }

    #[test]
    fn anything_else_is_taken_flat_with_its_lease() {
        let (fields, version, lease) = plain(
            r#"{"lease_id":"database/creds/app/1","lease_duration":3600,"data":{"username":"u","password":"p"}}"#,
        );
        assert_eq!(fields.len(), 2);
        let id = LeaseId::new("database/creds/app/1".to_owned());
        assert_eq!(id.hash(), "490bd46666f5");
        let held = Lease::Held { id, ttl: Duration::from_secs(3600), renewable: false, login: 0 };
        assert_eq!((version, lease), (None, Some(held)));
        // KV v1 has a duration, but no lease: it does not end.
        let (_, _, lease) = plain(r#"{"lease_id":"","lease_duration":2764800,"data":{"data":"x","metadata":"y"}}"#);
        assert_eq!(lease, None);
    }

    #[test]
    fn values_without_a_lease_may_end_too() {
        let (fields, _, lease) = plain(
            r#"{"lease_id":"","data":{"username":"u","password":"p","ttl":17,"last_vault_rotation":"2026-01-01","rotation_period":20}}"#,
        );
        assert_eq!(lease, Some(Lease::Rotates(Duration::from_secs(17))));
        assert!(fields.iter().all(|(name, _)| name != "ttl"), "it counts down, so it is no part of the value");
        let (_, _, lease) =
            plain(r#"{"lease_id":"","data":{"certificate":"c","private_key":"k","expiration":4102444800}}"#);
        assert!(matches!(lease, Some(Lease::Ends(left)) if left > Duration::from_secs(1_000_000_000)), "{lease:?}");
        let (fields, _, lease) = plain(r#"{"lease_id":"","data":{"ttl":"5","expiration":1}}"#);
        assert_eq!((fields.len(), lease), (2, None), "other fields of those names are values");
    }

    #[test]
    fn problems_are_told_apart_and_quote_nothing() {
        let deleted = r#"{"data":{"data":null,"metadata":{"version":2,"deletion_time":"2026-01-01"}}}"#;
        assert_eq!(parse(deleted.as_bytes()).map(drop), Err(Problem::Deleted { version: 2 }));
        assert_eq!(parse(br#"{"data":null}"#).map(drop), Err(Problem::NoData));
        let broken = parse(br#"{"data":"hunter2"}"#).map(drop).unwrap_err().to_string();
        assert!(!broken.contains("hunter2") && broken.contains("column"), "{broken}");
    }
}
