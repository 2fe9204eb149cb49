//! The `aws-secrets-manager` kind: AWS Secrets Manager, through AWS's own SDK
//! (docs.aws.amazon.com/secretsmanager/latest/apireference).
//!
//! `login` makes the client, `batch` puts first reads together, `value` tells fields and flaws, `failure` puts errors into words. An
//! item's path is `NAME#STAGE`: a secret's name or ARN, and the label of the version, which is sent with every read. A refresh asks which
//! version has the label (DescribeSecret, else ListSecretVersionIds, else the value itself, as far as the credentials allow), and reads
//! the value only when it is another one than what is held.
//! Invariants: a value leaves the SDK's plain buffers at once; a version that is not whole is an error, so that the last good one
//! stays; nothing here tries again by itself, the rotator does.

mod batch;
mod failure;
mod login;
mod value;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};

use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::error::{ProvideErrorMetadata, SdkError};
use tokio::sync::{Mutex, Semaphore};

use crate::memory::with_wiped_stack;

use super::schedule::{chance, refresh_in};
use super::settings::AwsSettings;
use super::source::{BoxFuture, FailureKind, FetchError, Fetched, Known, SecretSource, Sign};

use batch::Batch;
use login::Login;
use value::Shape;

pub(super) struct AwsSource {
    login: Login,
    server: String,
    /// Made at the first request, and anew when its credentials are refused.
    session: Mutex<Option<Arc<Session>>>,
    batch: Batch,
    /// Bounds the requests under way, and so the connections.
    permits: Semaphore,
    /// By path: what is known of the last versions.
    memos: Lock<BTreeMap<String, Memo>>,
}

/// A client with its login.
struct Session {
    client: Client,
    /// The credentials were accepted once: if they are refused later, new ones may do.
    proven: AtomicBool,
}

#[derive(Default, Clone)]
struct Memo {
    /// Of the last good version.
    shape: Option<Shape>,
    detect: Detect,
}

/// How to learn which version has a label.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Detect {
    #[default]
    Describe,
    List,
    /// By reading the value.
    Read,
}

/// A version as it came, in the SDK's plain buffers.
struct Plain {
    version: Option<String>,
    text: Option<String>,
    binary: Option<Vec<u8>>,
}

impl AwsSource {
    /// Reads the roots; asks nothing of the network.
    pub fn build(settings: &AwsSettings) -> Result<Self, String> {
        let login = Login::new(settings)?;
        Ok(Self {
            server: login.server(),
            login,
            session: Mutex::new(None),
            batch: Batch::default(),
            permits: Semaphore::new(REQUESTS_AT_ONCE),
            memos: Lock::default(),
        })
    }

    async fn take(&self, path: &str) -> Result<Fetched, FetchError> {
        let (name, stage) = parts(path);
        // A batch takes no label: it gives AWSCURRENT.
        if stage == "AWSCURRENT"
            && self.known(path).shape.is_none()
            && let Some(answer) = self.batch.read(self, name).await
        {
            let entry = answer?;
            let binary = entry.secret_binary.map(|blob| blob.into_inner());
            return self.accept(path, Plain { version: entry.version_id, text: entry.secret_string, binary });
        }
        self.read(path).await
    }

    /// Whether another version than `held` has the label; only its value tells where the credentials allow nothing cheaper.
    async fn look(&self, path: &str, held: &str) -> Result<Sign, FetchError> {
        match self.version_now(path).await? {
            Some(version) if version == held => Ok(Sign::Same(Some(version))),
            _ => Ok(Sign::Read),
        }
    }

    /// The version that has the label now; `None` when only its value tells.
    async fn version_now(&self, path: &str) -> Result<Option<String>, FetchError> {
        let (name, stage) = parts(path);
        loop {
            let outcome = match self.known(path).detect {
                Detect::Read => return Ok(None),
                Detect::Describe => self.describe(name, stage).await,
                Detect::List => self.list(name, stage).await,
            };
            match outcome {
                Ok(Some(version)) => return Ok(Some(version)),
                Ok(None) => {
                    let message = format!("{} has no version of {name} with the label {stage}", self.server);
                    return Err(FetchError::new(FailureKind::NotFound, message));
                }
                Err(error) if error.kind == FailureKind::Denied => {
                    self.learn(path, |known| {
                        known.detect = if known.detect == Detect::Describe { Detect::List } else { Detect::Read };
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn describe(&self, name: &str, stage: &str) -> Result<Option<String>, FetchError> {
        let answer = self.ask(name, |client| client.describe_secret().secret_id(name).send()).await?;
        if answer.deleted_date.is_some() {
            let message = format!("{name} is marked for deletion at {}", self.server);
            return Err(FetchError::new(FailureKind::NotFound, message));
        }
        let versions = answer.version_ids_to_stages.unwrap_or_default();
        Ok(versions
            .into_iter()
            .find(|(_, stages)| stages.iter().any(|label| label == stage))
            .map(|(version, _)| version))
    }

    async fn list(&self, name: &str, stage: &str) -> Result<Option<String>, FetchError> {
        let answer = self.ask(name, |client| client.list_secret_version_ids().secret_id(name).send()).await?;
        let found =
            answer.versions.unwrap_or_default().into_iter().find(|version| {
                version.version_stages.as_deref().unwrap_or_default().iter().any(|label| label == stage)
            });
        Ok(found.and_then(|version| version.version_id))
    }

    async fn read(&self, path: &str) -> Result<Fetched, FetchError> {
        let (name, stage) = parts(path);
        let ask = |client: &Client| client.get_secret_value().secret_id(name).version_stage(stage).send();
        let answer = match self.ask(name, ask).await {
            Err(error) if error.kind == FailureKind::NotFound => return Err(self.missing(path, error).await),
            outcome => outcome?,
        };
        let binary = answer.secret_binary.map(|blob| blob.into_inner());
        self.accept(path, Plain { version: answer.version_id, text: answer.secret_string, binary })
    }

    /// The same answer is given for a secret that is not there and for a version without a value.
    async fn missing(&self, path: &str, error: FetchError) -> FetchError {
        match self.version_now(path).await {
            Ok(Some(version)) => flawed(path, Some(&version), &value::Flaw::Empty),
            // That it has no such version, or is marked for deletion, says more.
            Err(told) if told.kind == FailureKind::NotFound && !told.message.contains(NOT_FOUND) => told,
            _ => error,
        }
    }

    fn accept(&self, path: &str, plain: Plain) -> Result<Fetched, FetchError> {
        let before = self.known(path).shape;
        let parsed = with_wiped_stack(|| value::parse(plain.text, plain.binary, before.as_ref()));
        let (fields, shape) = parsed.map_err(|flaw| flawed(path, plain.version.as_deref(), &flaw))?;
        self.learn(path, |known| known.shape = Some(shape));
        Ok(Fetched { fields, provider_version: plain.version, lease: None })
    }

    /// One request; a second where credentials that were good are refused, with those that there are now. `what` is for messages.
    async fn ask<T, E, F>(&self, what: &str, send: impl Fn(&Client) -> F) -> Result<T, FetchError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        F: Future<Output = Result<T, SdkError<E>>>,
    {
        let session = self.session().await?;
        match self.ask_with(&session, what, &send).await {
            Err(error) if error.kind == FailureKind::Login && session.proven.load(Ordering::Relaxed) => {}
            outcome => return outcome,
        }
        let session = self.session().await?;
        self.ask_with(&session, what, &send).await
    }

    async fn ask_with<T, E, F>(
        &self,
        session: &Arc<Session>,
        what: &str,
        send: impl Fn(&Client) -> F,
    ) -> Result<T, FetchError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        F: Future<Output = Result<T, SdkError<E>>>,
    {
        let outcome = {
            let _permit = self.permits.acquire().await;
            send(&session.client).await
        };
        match outcome {
            Ok(answer) => {
                session.proven.store(true, Ordering::Relaxed);
                Ok(answer)
            }
            Err(error) => {
                let error = failure::failure(&self.server, what, &error);
                if error.kind == FailureKind::Login {
                    self.forget(session).await;
                }
                Err(error)
            }
        }
    }

    async fn session(&self) -> Result<Arc<Session>, FetchError> {
        let mut session = self.session.lock().await;
        if let Some(session) = &*session {
            return Ok(session.clone());
        }
        let new = Session { client: self.login.client().await?, proven: AtomicBool::new(false) };
        Ok(session.insert(Arc::new(new)).clone())
    }

    /// Credentials that were refused are not used again: the next request logs in anew.
    async fn forget(&self, refused: &Arc<Session>) {
        let mut session = self.session.lock().await;
        if session.as_ref().is_some_and(|session| Arc::ptr_eq(session, refused)) {
            *session = None;
        }
    }

    fn known(&self, path: &str) -> Memo {
        self.table().get(path).cloned().unwrap_or_default()
    }

    fn learn(&self, path: &str, change: impl FnOnce(&mut Memo)) {
        change(self.table().entry(path.to_owned()).or_default());
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Memo>> {
        self.memos.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Any answer will do, also that there is no such secret.
    async fn answers(&self) -> Result<(), FetchError> {
        match self.ask(NO_SECRET, |client| client.describe_secret().secret_id(NO_SECRET).send()).await {
            Err(error) if error.kind.is_outage() => Err(error),
            _ => Ok(()),
        }
    }
}

impl SecretSource for AwsSource {
    fn fetch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(self.take(path))
    }

    fn watch<'a>(&'a self, path: &'a str, known: Known<'a>) -> BoxFuture<'a, Result<Sign, FetchError>> {
        Box::pin(async move {
            tokio::time::sleep(refresh_in(known.every, chance())).await;
            match known.version {
                Some(held) => self.look(path, held).await,
                None => Ok(Sign::Read),
            }
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        Box::pin(self.answers())
    }

    fn tend<'a>(&'a self, _changed: &'a (dyn Fn() + Send + Sync)) -> BoxFuture<'a, ()> {
        Box::pin(std::future::pending())
    }
}

fn flawed(path: &str, version: Option<&str>, flaw: &value::Flaw) -> FetchError {
    let (name, stage) = parts(path);
    let version = version.map(|version| format!(" ({version})")).unwrap_or_default();
    FetchError::new(FailureKind::Incomplete, format!("{name}: the version with the label {stage}{version} {flaw}"))
}

/// The secret and the label; `#` is in no name.
fn parts(path: &str) -> (&str, &str) {
    path.rsplit_once('#').unwrap_or((path, "AWSCURRENT"))
}

const REQUESTS_AT_ONCE: usize = 4;
const NO_SECRET: &str = "mcpeg/probe";
const NOT_FOUND: &str = "ResourceNotFoundException";
