//! The TLS of one server that is asked, which follows its files: the authorities, the client's certificate and its key.
//!
//! Invariant: files that cannot be used change nothing but the trouble that is told of; the last TLS that worked stays.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::ClientConfig;
use tracing::{info, warn};

use super::{Files, Stamp, TlsError};

pub struct Trust {
    /// Its address, for the log.
    server: String,
    scheme: String,
    files: Files,
    state: Mutex<State>,
}

struct State {
    config: ClientConfig,
    /// Of the files that were read last, usable or not.
    seen: Stamp,
    trouble: Option<String>,
}

impl Trust {
    pub fn build(server: &str, scheme: &str, files: Files) -> Result<Self, TlsError> {
        // Before the reading: what is replaced during it is read again.
        let seen = files.stamp();
        let config = files.client_config(scheme)?;
        let state = Mutex::new(State { config, seen, trouble: None });
        Ok(Self { server: server.to_owned(), scheme: scheme.to_owned(), files, state })
    }

    /// There are files that may change.
    pub fn changes(&self) -> bool {
        self.scheme == "https" && !self.files.is_empty()
    }

    pub fn config(&self) -> ClientConfig {
        self.state().config.clone()
    }

    /// Why the files as they are now are not in use.
    pub fn trouble(&self) -> Option<String> {
        self.state().trouble.clone()
    }

    /// Reads the files again if one of them changed. Whether there is a new TLS to use.
    pub fn follow(&self) -> bool {
        if !self.changes() {
            return false;
        }
        let stamp = self.files.stamp();
        let mut state = self.state();
        if state.seen == stamp {
            return false;
        }
        state.seen = stamp;
        match self.files.client_config(&self.scheme) {
            Ok(config) => {
                state.config = config;
                state.trouble = None;
                info!(server = self.server, "the files of tls changed and are in use");
                true
            }
            Err(error) => {
                warn!(server = self.server, %error, "the files of tls changed and cannot be used");
                state.trouble = Some(error.to_string());
                false
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
