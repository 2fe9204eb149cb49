//! Following a source that is no folder: what it gives is looked at when it says that it has changed, and what was applied is kept for a start
//! while it is away. While it is away, what runs goes on, and is asked again after waits that grow.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use crate::config::Sources;
use crate::config::source::{Backoff, Fetched, Remote, SourceError};
use crate::ports::{Condition, ConditionState};

pub struct Following {
    remote: Arc<Remote>,
    state: Mutex<State>,
}

struct State {
    running: Arc<Fetched>,
    /// What was looked at last, applied or not.
    looked_at: Arc<Fetched>,
    /// Since when the source is away, and why.
    away: Option<(Instant, String)>,
    /// Why what runs could not be kept.
    not_kept: Option<String>,
}

impl Following {
    /// `None`: the configuration is in a folder.
    pub fn of(sources: &Sources) -> Option<Self> {
        let (remote, running) = (sources.remote.clone()?, sources.fetched.clone()?);
        let away = sources.away.clone().map(|reason| (Instant::now(), reason));
        let state = State { looked_at: running.clone(), running, away, not_kept: None };
        Some(Self { remote, state: Mutex::new(state) })
    }

    /// The tree as the source has it now.
    pub async fn fetch(&self) -> Result<Arc<Fetched>, SourceError> {
        match self.remote.fetch().await {
            Ok(fetched) => {
                self.is_there();
                Ok(fetched)
            }
            Err(error) => {
                self.is_away(&error);
                Err(error)
            }
        }
    }

    /// Waits for a tree that is another one than what was looked at last. After a start without the source it is asked at once.
    pub async fn next(&self) -> Arc<Fetched> {
        let mut backoff = Backoff::default();
        loop {
            let earliest = Instant::now() + LEAST;
            let found = match self.remote.changed().await {
                Ok(()) => self.fetch().await,
                Err(error) => {
                    self.is_away(&error);
                    Err(error)
                }
            };
            match found {
                Ok(fetched) => {
                    backoff.reset();
                    let is_new = !fetched.is_same(&self.lock().looked_at);
                    if is_new {
                        return fetched;
                    }
                }
                Err(_) => sleep(backoff.wait()).await,
            }
            sleep_until(earliest).await;
        }
    }

    /// What was fetched has been looked at: it runs now, or was refused.
    pub async fn looked_at(&self, fetched: Arc<Fetched>, is_good: bool) {
        {
            let mut state = self.lock();
            state.looked_at = fetched.clone();
            if is_good {
                state.running = fetched;
            }
        }
        if is_good {
            return self.settle().await;
        }
        self.forget_others().await;
    }

    /// Removes what a tree brought that does not run.
    pub async fn forget_others(&self) {
        let (remote, running) = (self.remote.clone(), self.lock().running.clone());
        // Nothing follows from it.
        let _ = tokio::task::spawn_blocking(move || remote.forget_others(&running)).await;
    }

    /// Puts back what a comparison removed of a tree that waited for its turn.
    pub async fn lay_again(&self, fetched: &Arc<Fetched>) -> Result<(), String> {
        let (remote, fetched) = (self.remote.clone(), fetched.clone());
        let laid = tokio::task::spawn_blocking(move || remote.lay_again(&fetched).map_err(|error| error.to_string()));
        laid.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// As `fetch`, for a look that changes nothing: what is waited for stays the same.
    pub async fn peek(&self) -> Result<Arc<Fetched>, SourceError> {
        self.remote.peek().await
    }

    /// Keeps what runs for a start without the source.
    pub async fn settle(&self) {
        let (remote, running) = (self.remote.clone(), self.lock().running.clone());
        let kept =
            tokio::task::spawn_blocking(move || remote.settle(&running).map_err(|error| error.to_string())).await;
        let not_kept = kept.unwrap_or_else(|error| Err(error.to_string())).err();
        if let Some(reason) = &not_kept {
            warn!(reason, "the last good configuration is not kept: a start without the source would fail");
        }
        self.lock().not_kept = not_kept;
    }

    /// The revision of a tree, for the audit trail; of what runs, where there is none.
    pub fn revision(&self, fetched: Option<&Arc<Fetched>>) -> String {
        fetched.map_or_else(|| self.lock().running.revision.clone(), |fetched| fetched.revision.clone())
    }

    pub fn condition(&self) -> Condition {
        let state = self.lock();
        let revision = &state.running.revision;
        let (condition, message) = match (&state.away, &state.not_kept) {
            (Some((since, reason)), _) => {
                let seconds = since.elapsed().as_secs();
                let message = format!("away for {seconds} s, revision {revision} goes on: {reason}");
                (ConditionState::Degraded, message)
            }
            (None, Some(reason)) => {
                (ConditionState::Degraded, format!("the last good configuration could not be kept: {reason}"))
            }
            (None, None) => (ConditionState::Ok, format!("{} at revision {revision}", self.remote.name())),
        };
        Condition { component: "config.source".to_owned(), state: condition, message }
    }

    pub fn detail(&self) -> serde_json::Value {
        let state = self.lock();
        json!({
            "address": self.remote.name(),
            "revision": state.running.revision,
            "looked_at": state.looked_at.revision,
            "away": state.away.as_ref().map(|(since, reason)| json!({
                "seconds": since.elapsed().as_secs(), "reason": reason,
            })),
        })
    }

    fn is_there(&self) {
        if let Some((since, _)) = self.lock().away.take() {
            let (source, seconds) = (self.remote.name(), since.elapsed().as_secs());
            info!(source, seconds, "the source of the configuration is there again");
        }
    }

    fn is_away(&self, error: &SourceError) {
        let reason = error.to_string();
        let mut state = self.lock();
        let since = state.away.as_ref().map(|(since, _)| *since);
        if state.away.as_ref().is_none_or(|(_, known)| *known != reason) {
            warn!(
                source = self.remote.name(),
                reason, "the source of the configuration cannot be read; what runs goes on"
            );
        }
        state.away = Some((since.unwrap_or_else(Instant::now), reason));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Between two questions to a source that says at each that there is something new.
const LEAST: Duration = Duration::from_millis(100);
