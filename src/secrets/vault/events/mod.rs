//! Vault Enterprise tells of writes to KV v2 by itself (developer.hashicorp.com/vault/docs/concepts/events): a WebSocket at
//! `sys/events/subscribe/kv-v2/data-write?json=true`, one CloudEvents object in JSON for each write, with a path and no value.
//!
//! They hasten what `freshness` does and replace nothing: delivery is best effort, and a token is only told of paths for which it has
//! the capability `subscribe`, so looks go on as `refresh` says. When a subscription begins or is cut something may have been missed, so
//! everybody looks at once. A server that does not know them (OpenBao: 404) or refuses them is asked again after `ASK_AGAIN`.
//! Invariants: no connection without an item whose versions are watched; none is older than `LONGEST`, nor than its token.

mod websocket;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use super::super::schedule::{BACKOFF_CAP, backoff_in, chance};
use super::super::source::{FailureKind, FetchError};
use super::VaultSource;
use websocket::{Heard, WebSocket};

#[derive(Default)]
pub(super) struct Events {
    board: watch::Sender<Board>,
    /// Rung when somebody waits for news.
    wanted: Notify,
}

#[derive(Default)]
struct Board {
    /// When each path was last written to, as far as was told.
    written: BTreeMap<String, Instant>,
    /// Up to then something may have been missed.
    unsure: Option<Instant>,
}

/// What is worth acting upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    Written,
    Unsure,
}

impl Events {
    /// Completes when there is news of `path`, which was last seen at `since`.
    pub async fn of(&self, path: &str, since: Instant) -> News {
        self.wanted.notify_one();
        let mut board = self.board.subscribe();
        // The sender is in `self`, so waiting cannot fail.
        let mut news = News::Unsure;
        let is_news = |board: &Board| board.news(path, since).map(|found| news = found).is_some();
        let _ = board.wait_for(is_news).await;
        news
    }

    /// Never ends: keeps a subscription for as long as somebody wants news.
    pub async fn tend(&self, source: &VaultSource) {
        let mut failures = 0_u32;
        loop {
            if self.board.receiver_count() == 0 {
                self.wanted.notified().await;
            }
            let began = Instant::now();
            let pause = match self.subscribed(source).await {
                Ok(()) => {
                    failures = if began.elapsed() < STEADY { failures + 1 } else { 1 };
                    backoff_in(failures, BACKOFF_CAP, chance())
                }
                Err(error) if error.kind.is_items() && error.kind != FailureKind::ServerError => {
                    debug!(%error, "the server tells of no events; versions are looked at");
                    ASK_AGAIN
                }
                Err(error) => {
                    debug!(%error, "no subscription to events");
                    failures += 1;
                    backoff_in(failures, BACKOFF_CAP, chance())
                }
            };
            sleep(pause).await;
        }
    }

    /// One subscription, from its beginning to its end; an error if there was none.
    async fn subscribed(&self, source: &VaultSource) -> Result<(), FetchError> {
        let key = websocket::key();
        let (response, token) = source.subscribe(SUBSCRIBE, &key).await?;
        let mut socket = WebSocket::open(response, &key).await.map_err(|reason| {
            FetchError::new(FailureKind::Malformed, format!("{} answered {SUBSCRIBE} with {reason}", source.address()))
        })?;
        info!(server = source.address(), "subscribed to events");
        self.miss();
        tokio::select! {
            () = self.listen(&mut socket) => {}
            () = source.session.newer(token.login) => {}
            () = sleep(LONGEST) => {}
        }
        self.miss();
        socket.close().await;
        debug!(server = source.address(), "the subscription to events has ended");
        Ok(())
    }

    /// Until the connection is of no use any more.
    async fn listen(&self, socket: &mut WebSocket) {
        let mut asked = false;
        loop {
            match timeout(SILENCE, socket.next()).await {
                Ok(Ok(Heard::Text(text))) => self.told(&text),
                Ok(Ok(Heard::Other)) => {}
                Ok(Ok(Heard::Closed) | Err(_)) => return,
                Err(_) if asked => return,
                Err(_) => {
                    if socket.ping().await.is_err() {
                        return;
                    }
                    asked = true;
                    continue;
                }
            }
            asked = false;
        }
    }

    fn told(&self, text: &[u8]) {
        let Some(paths) = paths_in(text) else { return };
        let now = Instant::now();
        self.board.send_modify(|board| {
            if board.written.len() >= MOST_PATHS {
                board.written.clear();
                board.unsure = Some(now);
            }
            board.written.extend(paths.into_iter().map(|path| (path, now)));
        });
    }

    fn miss(&self) {
        self.board.send_modify(|board| board.unsure = Some(Instant::now()));
    }
}

impl Board {
    fn news(&self, path: &str, since: Instant) -> Option<News> {
        if self.written.get(path.trim_matches('/')).is_some_and(|at| *at > since) {
            return Some(News::Written);
        }
        self.unsure.filter(|at| *at > since).map(|_| News::Unsure)
    }
}

/// What one event names, as an item would write it. Servers have named it in `data_path` from the mount on, in `path` with the mount and
/// without; what none of an item's paths is like is nobody's.
fn paths_in(text: &[u8]) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Cloud {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        event: Event,
        #[serde(default)]
        plugin_info: Plugin,
    }
    #[derive(Deserialize)]
    struct Event {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        data_path: Option<String>,
        path: Option<String>,
    }
    #[derive(Default, Deserialize)]
    struct Plugin {
        #[serde(default)]
        mount_path: String,
    }
    let data = serde_json::from_slice::<Cloud>(text).ok()?.data;
    let mount = data.plugin_info.mount_path.trim_matches('/').to_owned();
    let named = [data.event.metadata.data_path, data.event.metadata.path];
    let paths = named.into_iter().flatten().flat_map(|path| {
        let path = path.trim_matches('/').to_owned();
        let below = format!("{mount}/{path}");
        [path, below]
    });
    Some(paths.collect())
}

pub(super) const SUBSCRIBE: &str = "sys/events/subscribe/kv-v2/data-write";
const ASK_AGAIN: Duration = Duration::from_secs(600);
/// A subscription that lived so long was a good one.
const STEADY: Duration = Duration::from_secs(60);
/// Then it makes way for a new one, which has everybody look.
const LONGEST: Duration = Duration::from_secs(600);
/// After so long the server is asked whether it is there, and after as long again it is not.
const SILENCE: Duration = Duration::from_secs(10);
const MOST_PATHS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_a_path_in_any_of_its_ways() {
        let event = |metadata: &str| {
            let text = format!(
                r#"{{"id":"1","source":"vault://node","specversion":"1.0","type":"*","data":{{"event":{{"id":"1","metadata":{metadata}}},
                "event_type":"kv-v2/data-write","plugin_info":{{"mount_class":"secret","mount_path":"kv/","plugin":"kv"}}}},
                "datacontenttype":"application/cloudevents","time":"2026-11-01T00:00:00Z"}}"#
            );
            paths_in(text.as_bytes()).unwrap()
        };
        for metadata in [
            r#"{"data_path":"kv/data/app","modified":"true","operation":"data-write","path":"kv/data/app"}"#,
            r#"{"current_version":"2","path":"data/app"}"#,
        ] {
            assert!(event(metadata).contains(&"kv/data/app".to_owned()), "{metadata}");
        }
        assert_eq!(paths_in(b"{}"), None);
        assert_eq!(paths_in(b"hunter2"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn news_is_what_came_after_the_last_look() {
        let events = Events::default();
        let before = Instant::now();
        sleep(Duration::from_secs(1)).await;
        events.told(br#"{"data":{"event":{"metadata":{"data_path":"kv/data/app"}}}}"#);
        assert_eq!(events.of("kv/data/app", before).await, News::Written);
        sleep(Duration::from_secs(1)).await;
        assert!(timeout(Duration::from_secs(5), events.of("kv/data/app", Instant::now())).await.is_err());
        assert!(timeout(Duration::from_secs(5), events.of("kv/data/other", before)).await.is_err());
        events.miss();
        assert_eq!(events.of("kv/data/other", before).await, News::Unsure);
    }
}
