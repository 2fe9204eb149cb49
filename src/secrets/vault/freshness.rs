//! Whether the version of a KV v2 secret has moved, without reading it.
//!
//! Items whose paths share a folder and whose `refresh` is the same are one group, which takes one look at a time for all of them.
//! The ways, the cheapest first: `LIST MOUNT/detailed-metadata/FOLDER/` (openbao.org/api-docs/secret/kv/kv-v2), one request for the
//! whole folder; `MOUNT/metadata/PATH`, then `MOUNT/subkeys/PATH`, which tell one secret's version and no value; reading. A way that the server
//! does not know, or does not allow to this token, is left for the next one, and tried again after `RETRY_WAYS`.
//! Where the server tells of writes by itself (`events`), the wait is cut short.
//! There is no task of its own: of those who wait for a look, one takes it, and if it goes away, another does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep, sleep_until};

use super::super::schedule::{chance, refresh_in};
use super::super::source::{FailureKind, FetchError, Known, Sign};
use super::VaultSource;
use super::events::News;
use super::transport::Ask;

#[derive(Default)]
pub(super) struct Freshness {
    groups: Mutex<BTreeMap<(String, Duration), Arc<Group>>>,
}

struct Group {
    /// Held by the one who waits to take the look.
    look: tokio::sync::Mutex<Option<Look>>,
    /// The cheapest way that works, and since when.
    way: Mutex<(Way, Instant)>,
    /// Since when the server fails at the looks.
    failing: Mutex<Option<Instant>>,
}

/// The last look at the folder.
struct Look {
    at: Instant,
    next: Instant,
    outcome: Result<BTreeMap<String, Marker>, FetchError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    List,
    Metadata,
    Subkeys,
    Read,
}

/// What is known of a secret's current version.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Marker {
    version: u64,
    /// When it was made: a store that was set up anew counts from 1 again.
    created: String,
    /// It was deleted, or will be at some time: only reading can tell.
    doubtful: bool,
}

impl Marker {
    fn is(&self, version: &str, mark: Option<&str>) -> bool {
        !self.doubtful && self.version.to_string() == version && mark.is_none_or(|mark| mark == self.created)
    }
}

impl Freshness {
    /// As `SecretSource::watch`.
    pub async fn watch(&self, source: &VaultSource, path: &str, known: Known<'_>) -> Result<Sign, FetchError> {
        let place = Place::of(path);
        let (Some(place), Some(version)) = (place, known.version) else {
            sleep(refresh_in(known.every, chance())).await;
            return Ok(Sign::Read);
        };
        let news = tokio::select! {
            sign = self.look(source, &place, version, known, false) => return sign,
            news = source.events.of(path, known.since) => news,
        };
        match news {
            News::Written => Ok(Sign::Read),
            News::Unsure => self.look(source, &place, version, known, true).await,
        }
    }

    /// Waits until it is time, or not where `now` is set, and looks.
    async fn look(
        &self,
        source: &VaultSource,
        place: &Place<'_>,
        version: &str,
        known: Known<'_>,
        now: bool,
    ) -> Result<Sign, FetchError> {
        let wait = async || {
            if !now {
                sleep(refresh_in(known.every, chance())).await;
            }
        };
        let group = self.group(place, known.every);
        loop {
            let way = group.way();
            let seen = match way {
                Way::List => group.listed(source, place, known, now).await,
                Way::Metadata | Way::Subkeys => {
                    wait().await;
                    one(source, place, way).await
                }
                Way::Read => {
                    wait().await;
                    return Ok(Sign::Read);
                }
            };
            if seen.is_ok() {
                group.failing.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
            match seen {
                Ok(Some(marker)) if marker.is(version, known.mark) => return Ok(Sign::Same(Some(marker.created))),
                Ok(_) => return Ok(Sign::Read),
                Err(error) if !error.kind.is_items() => return Err(error),
                // One secret that is gone says nothing of the way.
                Err(error) if error.kind == FailureKind::NotFound && way != Way::List => return Ok(Sign::Read),
                Err(error) if error.kind == FailureKind::ServerError && group.bears() => return Err(error),
                Err(error) => {
                    tracing::debug!(?way, %error, "this way to see versions is not open");
                    group.leave(way);
                    // What has just been waited for is not waited for again.
                    if way != Way::List {
                        return Ok(Sign::Read);
                    }
                }
            }
        }
    }

    fn group(&self, place: &Place<'_>, every: Duration) -> Arc<Group> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (format!("{}/{}", place.mount, place.folder), every);
        if groups.len() >= MOST_GROUPS && !groups.contains_key(&key) {
            groups.clear();
        }
        groups.entry(key).or_insert_with(|| Arc::new(Group::new())).clone()
    }
}

impl Group {
    fn new() -> Self {
        Self {
            look: tokio::sync::Mutex::new(None),
            way: Mutex::new((Way::List, Instant::now())),
            failing: Mutex::default(),
        }
    }

    fn way(&self) -> Way {
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        if way.0 != Way::List && way.1.elapsed() > RETRY_WAYS {
            *way = (Way::List, Instant::now());
        }
        way.0
    }

    /// Whether a way at which the server fails is kept: it may work the next time, but not for ever.
    fn bears(&self) -> bool {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let bears = failing.get_or_insert_with(Instant::now).elapsed() < BORNE;
        if !bears {
            *failing = None;
        }
        bears
    }

    fn leave(&self, left: Way) {
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        let next = match left {
            Way::List => Way::Metadata,
            Way::Metadata => Way::Subkeys,
            Way::Subkeys | Way::Read => Way::Read,
        };
        if way.0 == left {
            *way = (next, Instant::now());
        }
    }

    /// What the first look after `known.since` says of one secret; takes that look if nobody else does.
    async fn listed(
        &self,
        source: &VaultSource,
        place: &Place<'_>,
        known: Known<'_>,
        now: bool,
    ) -> Result<Option<Marker>, FetchError> {
        let mut look = self.look.lock().await;
        let next = match &*look {
            Some(look) if look.at > known.since => return look.of(place.name),
            _ if now => Instant::now(),
            Some(look) => look.next,
            None => known.since + refresh_in(known.every, chance()),
        };
        sleep_until(next).await;
        let at = Instant::now();
        let outcome = list(source, place).await;
        let taken = Look { at, next: at + refresh_in(known.every, chance()), outcome };
        look.insert(taken).of(place.name)
    }
}

impl Look {
    fn of(&self, name: &str) -> Result<Option<Marker>, FetchError> {
        self.outcome.as_ref().map(|markers| markers.get(name).cloned()).map_err(Clone::clone)
    }
}

/// Where a KV v2 secret is: `secret/data/team/app` is `app` in the folder `team/` of the mount `secret`.
struct Place<'a> {
    mount: &'a str,
    folder: &'a str,
    name: &'a str,
}

impl<'a> Place<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let (mount, rest) = path.trim_matches('/').split_once("/data/")?;
        let (folder, name) = rest.rsplit_once('/').unwrap_or(("", rest));
        Some(Self { mount, folder, name })
    }
}

async fn list(source: &VaultSource, place: &Place<'_>) -> Result<BTreeMap<String, Marker>, FetchError> {
    #[derive(Deserialize)]
    struct Answer {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        key_info: BTreeMap<String, Info>,
    }
    let path = format!("{}/detailed-metadata/{}", place.mount, place.folder);
    let (body, _) = source.exchange(Ask::list(&path)).await?;
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| unexpected(&path))?;
    let markers = answer.data.key_info.into_iter();
    Ok(markers.filter_map(|(name, info)| Some((name, info.marker()?))).collect())
}

async fn one(source: &VaultSource, place: &Place<'_>, way: Way) -> Result<Option<Marker>, FetchError> {
    #[derive(Deserialize)]
    struct Metadata {
        data: Info,
    }
    #[derive(Deserialize)]
    struct Subkeys {
        data: SubkeysData,
    }
    #[derive(Deserialize)]
    struct SubkeysData {
        metadata: VersionInfo,
    }
    let kind = if way == Way::Subkeys { "subkeys" } else { "metadata" };
    let path = format!("{}/{kind}/{}/{}", place.mount, place.folder, place.name);
    let (body, _) = source.exchange(Ask::get(&path)).await?;
    if way == Way::Metadata {
        return serde_json::from_slice::<Metadata>(&body)
            .map(|answer| answer.data.marker())
            .map_err(|_| unexpected(&path));
    }
    let info = serde_json::from_slice::<Subkeys>(&body).map_err(|_| unexpected(&path))?.data.metadata;
    Ok(info.version.map(|version| Marker { version, doubtful: info.is_doubtful(), created: info.created_time }))
}

/// developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2#read-secret-metadata
#[derive(Deserialize)]
struct Info {
    /// A folder has none.
    current_version: Option<u64>,
    #[serde(default)]
    versions: BTreeMap<u64, VersionInfo>,
}

#[derive(Deserialize)]
struct VersionInfo {
    version: Option<u64>,
    #[serde(default)]
    created_time: String,
    #[serde(default)]
    deletion_time: String,
    #[serde(default)]
    destroyed: bool,
}

impl Info {
    fn marker(&self) -> Option<Marker> {
        let version = self.current_version?;
        let info = self.versions.get(&version);
        let created = info.map(|info| info.created_time.clone()).unwrap_or_default();
        Some(Marker { version, created, doubtful: info.is_none_or(VersionInfo::is_doubtful) })
    }
}

impl VersionInfo {
    fn is_doubtful(&self) -> bool {
        self.destroyed || !self.deletion_time.is_empty()
    }
}

fn unexpected(path: &str) -> FetchError {
    FetchError::new(FailureKind::Malformed, format!("the answer for {path} is not the expected JSON"))
}

const RETRY_WAYS: Duration = Duration::from_secs(600);
/// For how long the server may fail at a look before another way is taken.
const BORNE: Duration = Duration::from_secs(60);
const MOST_GROUPS: usize = 1024;
