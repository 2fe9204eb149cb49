//! As whom mcpeg logs in: the current versions of the secrets, and what is done when the database refuses them.
//!
//! A `Login` is of one version of each item. Connections that were made with it share it, and with it a hold on its leases, so that a
//! user is not taken away while one of its connections is in use. Its values stay in locked memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::session::Fault;
use crate::ports::{Hold, SecretControl, SecretReader};
use crate::secret::{Secret, SecretText};
use crate::services::settings::database::DatabaseSettings;

pub struct Login {
    username: Option<Secret>,
    password: Option<Secret>,
    versions: BTreeMap<String, u64>,
    _holds: Vec<Hold>,
}

impl Login {
    /// A copy, which the caller's driver keeps or wipes.
    pub fn username(&self) -> Result<Option<String>, String> {
        text(self.username.as_ref(), "username")
    }

    pub fn password(&self) -> Result<Option<String>, String> {
        text(self.password.as_ref(), "password")
    }

    pub fn with_password(&self, take: impl FnOnce(&[u8])) {
        if let Some(password) = &self.password {
            take(password.expose());
        }
    }

    /// `item@version`
    pub fn list(&self) -> Arc<[String]> {
        self.versions.iter().map(|(item, version)| format!("{item}@{version}")).collect()
    }
}

fn text(secret: Option<&Secret>, what: &str) -> Result<Option<String>, String> {
    let not_text = || format!("connection.{what}: the secret is no text");
    secret.map(|secret| secret.expose_str().map(str::to_owned).ok_or_else(not_text)).transpose()
}

/// Gives the login of the moment.
pub struct Logins {
    service: String,
    username: Option<SecretText>,
    password: Option<SecretText>,
    items: BTreeSet<String>,
    secrets: Arc<dyn SecretReader>,
    control: Arc<dyn SecretControl>,
    current: Mutex<Option<Arc<Login>>>,
    /// When fresh ones were asked for.
    refreshed: tokio::sync::Mutex<Option<Instant>>,
}

impl Logins {
    pub fn new(
        service: &str,
        settings: &DatabaseSettings,
        secrets: Arc<dyn SecretReader>,
        control: Arc<dyn SecretControl>,
    ) -> Self {
        let texts = || settings.username.iter().chain(&settings.password);
        Self {
            service: service.to_owned(),
            username: settings.username.clone(),
            password: settings.password.clone(),
            items: texts().flat_map(SecretText::references).map(|reference| reference.item.clone()).collect(),
            secrets,
            control,
            current: Mutex::default(),
            refreshed: tokio::sync::Mutex::default(),
        }
    }

    pub fn items(&self) -> impl Iterator<Item = &String> {
        self.items.iter()
    }

    /// The login of the current versions; the same one while they are the same.
    pub fn current(&self) -> Result<Arc<Login>, Fault> {
        let versions = self.versions()?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(login) = current.as_ref().filter(|login| login.versions == versions) {
            return Ok(login.clone());
        }
        let login = Arc::new(self.made()?);
        *current = Some(login.clone());
        Ok(login)
    }

    /// Lets go of a login whose versions are not the current ones any more.
    pub fn forget_old(&self) {
        let versions = self.versions().ok();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|login| Some(&login.versions) != versions.as_ref()) {
            *current = None;
        }
    }

    pub fn is_current(&self, login: &Login) -> bool {
        self.versions().is_ok_and(|versions| versions == login.versions)
    }

    /// Asks for fresh secrets, because the database has refused this login. Whoever comes while somebody else asks waits for that one's
    /// answer; nothing is asked where there are others already, or a moment after it was.
    pub async fn refresh(&self, refused: &Login) {
        let mut last = self.refreshed.lock().await;
        let is_recent = last.is_some_and(|last| last.elapsed() < REFRESH_PAUSE);
        if is_recent || !self.is_current(refused) {
            return;
        }
        let outcomes = join_all(self.items.iter().map(|item| self.control.refresh(item))).await;
        for (item, outcome) in self.items.iter().zip(outcomes) {
            let service = self.service.as_str();
            match outcome {
                Ok(refreshed) => {
                    let changed = refreshed.changed;
                    tracing::info!(service, item, changed, "the database refused a login, which was fetched anew");
                }
                Err(error) => tracing::warn!(service, item, %error, "a refused login was not fetched anew"),
            }
        }
        *last = Some(Instant::now());
    }

    fn versions(&self) -> Result<BTreeMap<String, u64>, Fault> {
        let version = |item: &String| {
            let current = self.secrets.current(item).map_err(|error| Fault::Credential(error.to_string()))?;
            Ok((item.clone(), current.version))
        };
        self.items.iter().map(version).collect()
    }

    fn made(&self) -> Result<Login, Fault> {
        let (mut versions, mut held) = (BTreeMap::new(), BTreeMap::new());
        for item in &self.items {
            let version = self.secrets.current(item).map_err(|error| Fault::Credential(error.to_string()))?;
            versions.insert(item.clone(), version.version);
            held.insert(item.clone(), version);
        }
        // Before the values are used, so that no lease of them ends in between.
        let holds = versions.iter().map(|(item, version)| self.secrets.hold(item, *version)).collect();
        let resolved = |text: &Option<SecretText>| {
            let secret = text.as_ref().map(|text| {
                // Each item that a text refers to is among `items`.
                text.resolve(|reference| held.get(&reference.item).cloned().ok_or("not configured"))
            });
            secret.transpose().map_err(|error| Fault::Credential(format!("connection: {error}")))
        };
        Ok(Login { username: resolved(&self.username)?, password: resolved(&self.password)?, versions, _holds: holds })
    }
}

const REFRESH_PAUSE: Duration = Duration::from_secs(1);
