//! What is sealed in the cache: one JSON object, with every secret in base64, since a value may be any bytes.
//!
//! ```text
//! { "format": 1,
//!   "tokens": { PROVIDER: { binding, token, ttl, renewable, ends, login } },
//!   "items":  { ITEM: { binding, provider, fields: { NAME: VALUE }, lease: { id, ttl, renewable, login } or null, ends } } }
//! ```
//!
//! Times are seconds since 1970, lives are seconds. Logins are numbered by the process that wrote; here the one of the token is `OURS` and every
//! other `ANOTHER`. Buffers on the heap are wiped when they are freed, the stack by whoever calls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::memory::with_wiped_stack;
use crate::secret::{Secret, SecretVersion};

use super::super::source::{Lease, LeaseId};

#[derive(Default)]
pub(super) struct Document {
    pub tokens: BTreeMap<String, KeptToken>,
    pub items: BTreeMap<String, KeptItem>,
}

/// The token of a provider's login.
#[derive(Clone)]
pub(in crate::secrets) struct KeptToken {
    pub binding: String,
    pub token: Arc<Secret>,
    /// When it was new. `None`: it does not end.
    pub ttl: Option<Duration>,
    pub renewable: bool,
    pub ends: Option<SystemTime>,
    pub login: u64,
}

/// Leased values.
#[derive(Clone)]
pub(in crate::secrets) struct KeptItem {
    pub binding: String,
    pub provider: String,
    pub values: Arc<SecretVersion>,
    /// `Held` or `Ends`.
    pub lease: Lease,
    pub ends: SystemTime,
}

pub(super) fn write(document: &Document) -> Zeroizing<Vec<u8>> {
    with_wiped_stack(|| {
        let tokens = document.tokens.iter().map(|(name, kept)| (name.as_str().into(), Token::of(kept))).collect();
        let items = document.items.iter().map(|(name, kept)| (name.as_str().into(), Item::of(kept))).collect();
        let mut text = Zeroizing::new(Vec::new());
        // Strings and numbers always are JSON, and a vector takes every byte.
        let _ = serde_json::to_writer(&mut *text, &Written { format: FORMAT, tokens, items });
        text
    })
}

/// The reason quotes nothing.
pub(super) fn read(text: &[u8]) -> Result<Document, String> {
    with_wiped_stack(|| {
        let written: Written = serde_json::from_slice(text)
            .map_err(|error| format!("not the expected JSON (line {}, column {})", error.line(), error.column()))?;
        if written.format != FORMAT {
            return Err(format!("it is of format {}, and this version knows {FORMAT}", written.format));
        }
        let mut document = Document::default();
        let mut logins = BTreeMap::new();
        for (name, token) in written.tokens {
            logins.insert(name.clone(), token.login);
            document.tokens.insert(name, token.into_kept().ok_or(NOT_BASE64)?);
        }
        for (name, item) in written.items {
            let ours = logins.get(&item.provider).copied();
            document.items.insert(name, item.into_kept(ours).ok_or(NOT_BASE64)?);
        }
        Ok(document)
    })
}

#[derive(Serialize, Deserialize)]
struct Written {
    format: u32,
    tokens: BTreeMap<String, Token>,
    items: BTreeMap<String, Item>,
}

#[derive(Serialize, Deserialize)]
struct Token {
    binding: String,
    token: String,
    ttl: Option<f64>,
    renewable: bool,
    ends: Option<f64>,
    login: u64,
}

#[derive(Serialize, Deserialize)]
struct Item {
    binding: String,
    provider: String,
    fields: BTreeMap<String, String>,
    lease: Option<Held>,
    ends: f64,
}

#[derive(Serialize, Deserialize)]
struct Held {
    id: String,
    ttl: f64,
    renewable: bool,
    login: u64,
}

impl Token {
    fn of(kept: &KeptToken) -> Self {
        Self {
            binding: kept.binding.clone(),
            token: STANDARD.encode(kept.token.expose()),
            ttl: kept.ttl.map(|ttl| ttl.as_secs_f64()),
            renewable: kept.renewable,
            ends: kept.ends.map(seconds),
            login: kept.login,
        }
    }

    fn into_kept(self) -> Option<KeptToken> {
        Some(KeptToken {
            binding: self.binding,
            token: Arc::new(decoded(&self.token)?),
            ttl: self.ttl.and_then(life),
            renewable: self.renewable,
            ends: self.ends.and_then(moment),
            login: OURS,
        })
    }
}

impl Item {
    fn of(kept: &KeptItem) -> Self {
        let lease = match &kept.lease {
            Lease::Held { id, ttl, renewable, login } => {
                Some(Held { id: id.expose().to_owned(), ttl: ttl.as_secs_f64(), renewable: *renewable, login: *login })
            }
            Lease::Ends(_) | Lease::Rotates(_) => None,
        };
        let fields = kept.values.fields.iter();
        Self {
            binding: kept.binding.clone(),
            provider: kept.provider.clone(),
            fields: fields.map(|(name, value)| (name.clone(), STANDARD.encode(value.expose()))).collect(),
            lease,
            ends: seconds(kept.ends),
        }
    }

    fn into_kept(self, ours: Option<u64>) -> Option<KeptItem> {
        let ends = moment(self.ends)?;
        let lease = match self.lease {
            Some(held) => Lease::Held {
                id: LeaseId::new(held.id),
                ttl: life(held.ttl)?,
                renewable: held.renewable,
                login: if Some(held.login) == ours { OURS } else { ANOTHER },
            },
            None => Lease::Ends(ends.duration_since(SystemTime::now()).unwrap_or_default()),
        };
        let fields = self.fields.into_iter().map(|(name, value)| Some((name, decoded(&value)?)));
        let values = SecretVersion {
            version: 0,
            provider_version: None,
            fields: fields.collect::<Option<_>>()?,
            fetched_at: SystemTime::now(),
        };
        Some(KeptItem { binding: self.binding, provider: self.provider, values: Arc::new(values), lease, ends })
    }
}

fn decoded(text: &str) -> Option<Secret> {
    STANDARD.decode(text).ok().map(Secret::new)
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn moment(seconds: f64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(life(seconds)?)
}

fn life(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

const FORMAT: u32 = 1;
/// The login of the token that was kept, which is the first of this process.
pub(in crate::secrets) const OURS: u64 = 1;
/// A login of before that one.
const ANOTHER: u64 = 0;
const NOT_BASE64: &str = "a value in it is not what was written";
