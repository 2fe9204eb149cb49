//! `mcpeg backup`, `mcpeg restore` and `mcpeg migrate`: what is kept in `storage.runtime`, carried elsewhere and back.
//!
//! A sidecar that runs is asked for a backup on its admin socket; else the store is opened here, as `restore` and `migrate` always do, and a
//! store in files only when no sidecar uses it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use super::seal::recipients;
use super::{block_on, complain, failed, load_opened, say};
use crate::admin::client::{self, ClientError};
use crate::config::{self, Config, Sources};
use crate::guard::{Guard, SecretRedactor};
use crate::lifecycle::{Part, PartError};
use crate::ports::{AuditLog, SecretReader, SecretUnavailable};
use crate::sealed::{self, Key, KeySource};
use crate::secret::SecretVersion;
use crate::secrets::SecretsHandle;
use crate::storage::records::{Record, Space};
use crate::storage::settings::RuntimeKind;
use crate::storage::{self, Alone};
use crate::supervisor::Supervisor;
use crate::{secrets, telemetry};

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The file to write, 0600; one that is there is replaced
    file: PathBuf,
    /// Seal it (age) so that whoever has this public key can open it; may be given more than once
    #[arg(long, value_name = "AGE1...", conflicts_with = "passphrase_file")]
    recipient: Vec<String>,
    /// Seal it so that whoever has this identity file can open it
    #[arg(long, value_name = "IDENTITY_FILE", conflicts_with = "passphrase_file")]
    key: Vec<PathBuf>,
    /// Seal it with the first line of this file
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// The sidecar's admin socket [default: as the configuration says]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// What `mcpeg backup` wrote
    file: PathBuf,
    /// The identity file that opens it
    #[arg(long, value_name = "IDENTITY_FILE", conflicts_with = "passphrase_file")]
    key: Option<PathBuf>,
    /// Its first line is the passphrase
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Only say whether the file is whole, and what is in it
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Args)]
pub struct CarryArgs {
    /// memory, sqlite, redis or postgres [default: the configured one]
    #[arg(long, value_name = "KIND")]
    from: Option<String>,
    /// memory, sqlite, redis or postgres. One of the two is the configured one; the options below are of the other
    #[arg(long, value_name = "KIND", required = true)]
    to: Option<String>,
    /// The file of the other one, where it has one [default: as for `storage.runtime.path`]
    #[arg(long, value_name = "FILE")]
    path: Option<PathBuf>,
    /// The address of the other one, where it is a server
    #[arg(long)]
    url: Option<String>,
    /// The user there
    #[arg(long)]
    username: Option<String>,
    /// The first line of this file is the password there
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// PEM certificates to trust there
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// What keys begin with there [default: mcpeg]
    #[arg(long)]
    namespace: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn backup(sources: &Sources, args: &BackupArgs) -> ExitCode {
    let recipients = match recipients(args.passphrase_file.as_deref(), &args.recipient, &args.key) {
        Ok(recipients) => recipients,
        Err(reason) => return failed(&reason),
    };
    let config = match load_opened(&mut sources.clone()) {
        Ok(config) => config,
        Err(code) => return code,
    };
    block_on(1, async {
        let done = async {
            let dumped = dumped(&config, args.socket.clone()).await?;
            let count = storage::records_in(&dumped)?.len();
            let bytes = match &recipients {
                Some(recipients) => {
                    Zeroizing::new(sealed::seal(&dumped, recipients).map_err(|error| error.to_string())?)
                }
                None => Zeroizing::new(dumped),
            };
            sealed::file::replace(&args.file, &bytes, None)
                .map_err(|error| format!("{}: {error}", args.file.display()))?;
            Ok::<_, String>(count)
        };
        match done.await {
            Ok(count) => {
                let how = if recipients.is_some() { "sealed" } else { "not sealed" };
                say(&format!("{}: {count} records, {how}", args.file.display()));
                ExitCode::SUCCESS
            }
            Err(reason) => failed(&format!("backup: {reason}")),
        }
    })
}

/// From the sidecar that runs, or from the store itself.
async fn dumped(config: &Config, socket: Option<PathBuf>) -> Result<Vec<u8>, String> {
    let socket = socket.or_else(|| config.admin.unix.as_ref().map(|unix| unix.path.clone()));
    if let Some(socket) = socket {
        match client::get(&socket, "/v1/storage/backup").await {
            Ok(answer) if answer.status == 200 => return Ok(answer.body),
            Ok(answer) => return Err(String::from_utf8_lossy(&answer.body).trim().to_owned()),
            Err(ClientError::NoSocket { .. } | ClientError::Refused { .. }) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    let store = open(config, &config.storage.runtime.kind, None).await?;
    Ok(storage::carry::dump(&*store.records).await.map_err(|error| error.0)?.0)
}

pub fn restore(sources: &Sources, args: &RestoreArgs) -> ExitCode {
    let records = match read(args) {
        Ok(records) => records,
        Err(reason) => return failed(&format!("{}: {reason}; nothing was changed", args.file.display())),
    };
    if args.check {
        let of = |space| records.iter().filter(|(of, _)| *of == space).count();
        say(&format!("whole: {} of state, {} moments of metrics", of(Space::State), of(Space::Metrics)));
        return ExitCode::SUCCESS;
    }
    let config = match load_opened(&mut sources.clone()) {
        Ok(config) => config,
        Err(code) => return code,
    };
    block_on(1, async {
        let done = async {
            let store = open(&config, &config.storage.runtime.kind, None).await?;
            storage::carry::restore(&*store.records, records).await.map_err(|error| error.0)
        };
        match done.await {
            Ok(count) => {
                say(&format!("restored {count} records into {}", config.storage.runtime.kind.as_str()));
                ExitCode::SUCCESS
            }
            Err(reason) => failed(&format!("restore: {reason}")),
        }
    })
}

fn read(args: &RestoreArgs) -> Result<Vec<(Space, Record)>, String> {
    let bytes = std::fs::read(&args.file).map_err(|error| error.to_string())?;
    if !sealed::is_sealed(&bytes) {
        return storage::records_in(&bytes);
    }
    let source = match (&args.key, &args.passphrase_file) {
        (Some(path), _) => KeySource::IdentityFile(path.clone()),
        (None, Some(path)) => KeySource::PassphraseFile(path.clone()),
        (None, None) => return Err("it is sealed: `--key` or `--passphrase-file` opens it".to_owned()),
    };
    let key: Key = source.read().map_err(|error| error.to_string())?;
    storage::records_in(&sealed::open(&bytes, &key).map_err(|error| error.to_string())?)
}

pub fn carry(sources: &Sources, args: &CarryArgs) -> ExitCode {
    let config = match load_opened(&mut sources.clone()) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let configured = config.storage.runtime.kind.clone();
    let from = args.from.as_deref().unwrap_or(configured.as_str());
    let to = args.to.as_deref().unwrap_or_default();
    let kinds = match (from == configured.as_str(), to == configured.as_str()) {
        (true, false) => other(to, args, sources).map(|other| (configured, other)),
        (false, true) => other(from, args, sources).map(|other| (other, configured)),
        (true, true) => Err("both are the configured store: nothing is to be done".to_owned()),
        (false, false) => Err(format!("neither is the configured store, which is {}", configured.as_str())),
    };
    let (from, to) = match kinds {
        Ok(kinds) => kinds,
        Err(reason) => return failed(&format!("migrate: {reason}")),
    };
    block_on(1, async {
        let done = async {
            let source = open(&config, &from, None).await?;
            let target = open(&config, &to, Some(&source)).await?;
            let told = |space: Space, count| {
                if !args.json {
                    complain(&format!("{}: {count} records", space.as_str()));
                }
            };
            storage::carry::migrate(&*source.records, &*target.records, told).await.map_err(|error| error.0)
        };
        match done.await {
            Ok(done) => {
                let (from, to) = (from.as_str(), to.as_str());
                match args.json {
                    true => {
                        say(&json!({ "from": from, "to": to, "records": done.records, "carried": done.now })
                            .to_string())
                    }
                    false => say(&format!(
                        "{} records are in {to} as they are in {from}, {} carried now",
                        done.records, done.now
                    )),
                }
                ExitCode::SUCCESS
            }
            Err(reason) => failed(&format!("migrate: {reason}; the source is as it was, and doing it again goes on")),
        }
    })
}

/// The store that is not configured, as if it were.
fn other(kind: &str, args: &CarryArgs, sources: &Sources) -> Result<RuntimeKind, String> {
    let absolute = |path: &PathBuf| std::path::absolute(path).map_err(|error| error.to_string());
    let mut written = json!({ "type": kind });
    if kind == "memory" {
        written["persistence"] = json!(true);
    }
    if let Some(path) = &args.path {
        written["path"] = json!(absolute(path)?);
    }
    for (key, value) in [("url", &args.url), ("username", &args.username), ("namespace", &args.namespace)] {
        value.iter().for_each(|value| written[key] = json!(value));
    }
    if let Some(path) = &args.ca_file {
        written["tls"] = json!({ "ca_file": absolute(path)? });
    }
    if let Some(path) = &args.password_file {
        let text = std::fs::read_to_string(path).map(Zeroizing::new);
        let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
        written["password"] = json!(text.lines().next().unwrap_or_default());
    }
    config::runtime_of(sources, written).map_err(|problems| problems.render())
}

async fn open(config: &Config, kind: &RuntimeKind, beside: Option<&Alone>) -> Result<Alone, String> {
    let secrets: Arc<dyn SecretReader> = match kind.needs_secrets() {
        true => fetched(config).await.map_err(|error| error.to_string())?,
        false => Arc::new(NoSecrets),
    };
    storage::open_alone(kind, &config.name, &secrets, beside).map_err(|error| error.0)
}

/// The secrets, fetched once.
async fn fetched(config: &Config) -> Result<Arc<dyn SecretReader>, PartError> {
    let guard = Arc::new(Guard::new()?);
    let redactor = Arc::new(SecretRedactor::new(guard.clone(), &config.redaction)?);
    let (telemetry, parts) = telemetry::build(config.telemetry.clone(), redactor, config.named())?;
    telemetry.install_logging()?;
    crate::app::protect_memory(config.lock_memory)?;
    let audit: Arc<dyn AuditLog> = Arc::new(telemetry.clone());
    let (secrets, rotator) = secrets::build(config.secrets.clone(), audit, telemetry.meter())?;
    secrets.attach_observer(guard);
    let supervisor = Supervisor::start(parts);
    // What is missing is said when it is needed.
    let _ = secrets.fetch_all_once().await;
    supervisor.stop(config.shutdown_timeout).await;
    Ok(Arc::new(Fetched { secrets, _rotator: Mutex::new(rotator) }))
}

/// Secrets as they were fetched. Their rotator is not run, and kept, since it may hold what they need.
struct Fetched {
    secrets: SecretsHandle,
    _rotator: Mutex<Part>,
}

impl SecretReader for Fetched {
    fn current(&self, item: &str) -> Result<Arc<SecretVersion>, SecretUnavailable> {
        self.secrets.current(item)
    }

    fn subscribe(&self, item: &str) -> Option<tokio::sync::watch::Receiver<u64>> {
        self.secrets.subscribe(item)
    }
}

struct NoSecrets;

impl SecretReader for NoSecrets {
    fn current(&self, item: &str) -> Result<Arc<SecretVersion>, SecretUnavailable> {
        Err(SecretUnavailable::NotFetched { item: item.to_owned(), reason: None })
    }

    fn subscribe(&self, _item: &str) -> Option<tokio::sync::watch::Receiver<u64>> {
        None
    }
}
