//! `Chain`: the refresh token to use next, where the server gives a new one at each use.
//!
//! It outlives a reload, since the first token, which the configuration names, is worth nothing after its use. Invariant: one `Link` at a
//! time, from the use of a token to the keeping of the next.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard};

use crate::secret::Secret;

/// SHA-256.
pub(super) type Digest = [u8; 32];

#[derive(Default)]
pub(in crate::secrets) struct Chain(Mutex<State>);

#[derive(Default)]
struct State {
    /// `None`: the configured one.
    current: Option<Arc<Secret>>,
    /// Of the first token that was replaced.
    spent: Option<Digest>,
}

pub(super) struct Link<'a>(MutexGuard<'a, State>);

impl Chain {
    pub fn from(kept: Option<Arc<Secret>>) -> Self {
        Self(Mutex::new(State { current: kept, spent: None }))
    }

    pub(super) async fn link(&self) -> Link<'_> {
        Link(self.0.lock().await)
    }
}

impl Link<'_> {
    pub fn current(&self) -> Option<Arc<Secret>> {
        self.0.current.clone()
    }

    /// `next` came in the place of the one with this digest.
    pub fn replace(&mut self, next: Arc<Secret>, used: Digest) {
        if self.0.current.is_none() {
            self.0.spent = Some(used);
        }
        self.0.current = Some(next);
    }

    pub fn forget(&mut self) {
        self.0.current = None;
    }

    pub fn was_spent(&self, token: Digest) -> bool {
        self.0.spent == Some(token)
    }
}
