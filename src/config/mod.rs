//! The configuration: sources -> layers -> written shape -> checked settings.
//!
//! `load` either gives a whole `Config` or every mistake with its place. Raw shapes never leave this module; the domains' settings are
//! the domains' own types. Reading files and variables happens here and nowhere else.

mod check;
mod decode;
pub mod edit;
mod environments;
mod extend;
mod interpolate;
pub mod keys;
mod layers;
mod problem;
mod raw;
pub mod reference;
pub mod schema;
pub mod sealed;
mod shape;
pub mod source;
mod tree;
mod units;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::admin::settings::AdminSettings;
use crate::mcp::settings::{McpSettings, ServiceSettings, UnixSettings};
use crate::process::settings::ProcessSettings;
use crate::render::settings::TemplateSettings;
use crate::secret::{Secret, SecretRef};
use crate::secrets::settings::{SecretsSettings, ServeSettings};
use crate::services::settings as local;
use crate::storage::settings::{RuntimeKind, StorageSettings};
use crate::telemetry::settings::TelemetrySettings;

use check::Check;
pub use environments::environments;
use keys::Keys;
pub use layers::{Items, Sources, Variables};
pub use problem::{Problem, Problems};
use raw::RawConfig;
use raw::mcp::{RawService, RawServiceFile};
use shape::Shape;
use tree::{Node, Origin};
pub use units::parse_duration as duration;

/// A configuration that was checked whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub name: String,
    pub environment: Option<String>,
    /// For a whole stop.
    pub shutdown_timeout: Duration,
    pub secrets: SecretsSettings,
    /// `None`: local programs cannot read secrets.
    pub serve: Option<ServeSettings>,
    pub templates: Vec<TemplateSettings>,
    /// `None`: no program is supervised.
    pub process: Option<ProcessSettings>,
    /// What mcpeg serves itself, by the service's name.
    pub services: BTreeMap<String, local::ServiceSettings>,
    pub mcp: McpSettings,
    pub storage: StorageSettings,
    pub telemetry: TelemetrySettings,
    pub admin: AdminSettings,
    pub lock_memory: LockMemory,
    /// Of live bytes. `None`: as many as the system gives.
    pub memory_limit: Option<u64>,
    /// What is taken out of telemetry besides the live secrets.
    pub redaction: crate::guard::Settings,
    /// What it was read from: the main file first, then overlay and service files.
    pub files: Vec<PathBuf>,
    /// What stood sealed in them, by its dotted path: for whoever looks for secrets where none should be.
    pub sealed: BTreeMap<String, Arc<Secret>>,
    /// The item that what is sealed needs for its key, where that was not at hand: it holds no values then, and is not to be used.
    pub unopened: Option<SecretRef>,
    /// What is written in them, for comparisons.
    pub keys: Keys,
}

impl Config {
    /// How many things of one kind there are, at most.
    pub fn named(&self) -> usize {
        let (secrets, services) = (self.secrets.items.len(), self.mcp.services.len());
        secrets.max(self.templates.len()).max(services)
    }
}

/// What happens when the memory of secrets cannot be locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMemory {
    Require,
    Warn,
    Ignore,
}

/// Reads, layers and checks the configuration.
pub fn load(sources: &Sources) -> Result<Config, Problems> {
    load_following(sources, &mut Vec::new())
}

/// As `load`. `followed` gets the files whose change may change the outcome, whatever it is.
pub fn load_following(sources: &Sources, followed: &mut Vec<PathBuf>) -> Result<Config, Problems> {
    let mut problems = Problems::default();
    let main = match sources.main_file() {
        Ok(main) => main,
        Err(problem) => {
            problems.push(problem);
            return Err(problems);
        }
    };
    let config = load_from(sources, &main, followed, &mut problems);
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(problems.sorted()),
    }
}

fn load_from(sources: &Sources, main: &Path, followed: &mut Vec<PathBuf>, problems: &mut Problems) -> Option<Config> {
    let layers::Layered { mut tree, mut files } = layers::load(sources, main, followed, problems)?;
    let (folder, items) = (sources.folder(main), names_of_items(&tree));
    let Readied { mut references, mut keys, mut opener } = ready(sources, folder, &mut tree, problems)?;
    let mut raw: RawConfig = read_raw(&tree, problems)?;

    let mut check = Check { tree: &tree, problems };
    let storage = check::storage::storage(&mut raw.storage, raw.global.pid_file.take(), folder, &mut check);
    let lock_memory = check::operation::security(&raw.security, &mut check);
    let leak_guard = check::operation::leak_guard(&raw.security);
    let redaction = check::operation::redaction(raw.security.redaction, &mut check);
    let serve = raw.secrets.serve.take().map(|serve| check::secrets::serve(serve, folder, &items, &mut check));
    let secrets = check::secrets::settings(raw.secrets, &|name| sources.variable(name), &mut check);
    let templates = check::operation::templates(raw.templates, raw.render, &mut check);
    let mut process = check::process::settings(raw.process, sources.program.as_deref(), &secrets, &mut check);
    check::hooks::supervised(process.is_some(), &templates, &mut check);
    let shutdown_timeout = raw.global.shutdown_timeout.as_ref().map_or(check::seconds(10), |timeout| timeout.0);
    let unix = check::mcp::unix(&mut raw.transports, folder, &mut check);
    let http = check::mcp::listen(std::mem::take(&mut raw.transports.http), &mut check);
    let aggregate = check::mcp::aggregate(std::mem::take(&mut raw.transports.aggregate), &mut check);
    let limits = check::mcp::limits(&raw.transports.limits, shutdown_timeout);
    let admin = check::operation::admin(raw.admin, folder, &mut check);
    check_sockets_differ(unix.as_ref(), &admin, serve.as_ref(), &mut check);
    let otel = check::otel::Otel { variable: &|name| sources.variable(name) };
    let (global, metadata, logs) = (&raw.global, &raw.metadata, raw.storage.logs);
    let digest = check::mcp::digest(raw.audit.digest.take(), &mut check);
    let telemetry = check::telemetry::settings(raw.telemetry, raw.audit, global, metadata, logs, &otel, &mut check);
    check::sources::tell_process(&telemetry.sources, process.as_mut(), &mut check);
    let stdio = raw.transports.stdio.enabled;
    check::sources::can_be_served(&telemetry.sources, sources.variable("PATH").as_deref(), stdio, &mut check);
    let mut reader = ServiceReader {
        sources,
        timeout: raw.global.timeout.as_ref().map_or(check::mcp::DEFAULT_TIMEOUT, |timeout| timeout.0),
        followed,
        files: &mut files,
        references: &mut references,
        keys: &mut keys,
        opener: &mut opener,
    };
    let (services, served) = reader.read_all(raw.services, unix.as_ref(), &mut check);
    check_items(&references, &served, &items, &mut check);

    Some(Config {
        name: raw.metadata.name.unwrap_or_else(|| "mcpeg".to_owned()),
        environment: raw.metadata.environment,
        shutdown_timeout,
        secrets,
        serve,
        templates,
        process,
        services: served,
        mcp: McpSettings { unix, http, stdio, services, limits, aggregate, leak_guard, digest },
        storage,
        telemetry,
        admin,
        lock_memory,
        memory_limit: raw.global.memory_limit_mb.map(|limit| limit.saturating_mul(1 << 20)),
        redaction,
        files,
        keys,
        sealed: opener.opened,
        unopened: opener.wanted,
    })
}

/// What is known of a main file once it can be read, and what its service files add to.
struct Readied {
    references: Vec<(SecretRef, Origin)>,
    keys: Keys,
    opener: sealed::Opener,
}

/// Checks the shape of the main file and opens what is sealed in it.
fn ready(sources: &Sources, folder: &Path, tree: &mut Node, problems: &mut Problems) -> Option<Readied> {
    let mut shape = Shape::new(folder, problems);
    if !shape.check(tree, schema::main_file()) {
        // What is missing has been reported; a stand-in lets the rest be checked too.
        tree.stand_in("version", "1.0")?;
    }
    let mut references = shape.references;
    let mut keys = Keys::default();
    keys.add("", tree, &shape.secret_places);
    let sealed_with = check::secrets::key_of_sealed(tree, problems);
    let mut opener = sealed::Opener::new(sealed_with, sources.items.clone(), sources.only_checks);
    if let (Some(item), Some(node)) = (opener.item(), tree.get("security").and_then(|node| node.get("sealed_with"))) {
        references.push((item.clone(), node.origin.clone()));
    }
    opener.open("", tree, problems);
    Some(Readied { references, keys, opener })
}

/// Reads the service files that `services` names.
struct ServiceReader<'a> {
    sources: &'a Sources,
    timeout: Duration,
    followed: &'a mut Vec<PathBuf>,
    files: &'a mut Vec<PathBuf>,
    references: &'a mut Vec<(SecretRef, Origin)>,
    keys: &'a mut Keys,
    opener: &'a mut sealed::Opener,
}

impl ServiceReader<'_> {
    fn read_all(
        &mut self,
        raw: BTreeMap<String, RawService>,
        unix: Option<&UnixSettings>,
        check: &mut Check<'_>,
    ) -> (BTreeMap<String, ServiceSettings>, BTreeMap<String, local::ServiceSettings>) {
        let (mut services, mut served) = (BTreeMap::new(), BTreeMap::new());
        for (name, raw) in raw.into_iter().filter(|(_, raw)| raw.enabled.unwrap_or(true)) {
            check::mcp::service_name(&name, unix, check);
            let file = raw.config_file.0;
            self.followed.push(file.clone());
            if let Err(error) = std::fs::metadata(&file) {
                let shown = self.sources.files().shown(&file);
                let message = format!("{} cannot be opened: {}", shown.display(), yaml::plain_io(&error));
                check.problem(&["services", &name, "config_file"], message);
                continue;
            }
            if let Some(read) = self.read(&name, &file, check.problems) {
                served.extend(read.local.map(|settings| (name.clone(), settings)));
                services.insert(name, read.mcp);
            }
        }
        (services, served)
    }

    fn read(&mut self, name: &str, file: &Path, problems: &mut Problems) -> Option<check::mcp::Service> {
        let files = self.sources.files();
        let variable = |name: &str| self.sources.variable(name);
        let mut reader =
            extend::Reader { files: &files, variable: &variable, read: self.files, followed: self.followed };
        let mut tree = reader.read(file, problems)?;
        interpolate::interpolate(&mut tree, &variable, problems);
        let folder = file.parent().unwrap_or(Path::new("/"));
        let mut shape = Shape::new(folder, problems);
        let readable = shape.check(&mut tree, schema::service_file());
        self.references.append(&mut shape.references);
        let path = format!("services.{name}");
        self.keys.add(&path, &tree, &shape.secret_places);
        self.opener.open(&path, &mut tree, problems);
        if !readable {
            tree.stand_in("type", "mcp")?;
        }
        let raw: RawServiceFile = read_raw(&tree, problems)?;
        check::mcp::service(raw, self.timeout, &mut Check { tree: &tree, problems })
    }
}

/// Reads a tree whose shape was checked. A failure is a gap between schema and shape, which is said with the file.
fn read_raw<'t, T: Deserialize<'t>>(tree: &'t Node, problems: &mut Problems) -> Option<T> {
    use serde::de::IntoDeserializer;
    let read = T::deserialize(tree.into_deserializer());
    sealed::handed_over_all();
    match read {
        Ok(raw) => Some(raw),
        Err(error) => {
            problems.push(Problem::new(format!("cannot be read: {error}"), tree.origin.clone()));
            None
        }
    }
}

fn names_of_items(tree: &Node) -> BTreeSet<String> {
    let items = tree.get("secrets").and_then(|secrets| secrets.get("items"));
    items.map(Node::entries).unwrap_or_default().iter().map(|entry| entry.key.clone()).collect()
}

/// Every item that is named is there.
fn check_items(
    references: &[(SecretRef, Origin)],
    services: &BTreeMap<String, local::ServiceSettings>,
    items: &BTreeSet<String>,
    check: &mut Check<'_>,
) {
    check_references(references, items, check.problems);
    check_shown(services, items, check);
}

fn check_references(references: &[(SecretRef, Origin)], items: &BTreeSet<String>, problems: &mut Problems) {
    for (reference, origin) in references.iter().filter(|(reference, _)| !items.contains(&reference.item)) {
        let mut problem =
            Problem::new(format!("there is no secret `{}` in `secrets.items`", reference.item), origin.clone());
        problem.help = shape::near(&reference.item, items.iter().map(String::as_str))
            .map(|name| format!("did you mean `{name}`?"));
        problems.push(problem);
    }
}

/// The items that a service of `type: vault` shows.
fn check_shown(services: &BTreeMap<String, local::ServiceSettings>, items: &BTreeSet<String>, check: &mut Check<'_>) {
    for (name, service) in services {
        let local::ServiceSettings::Vault(vault) = service else { continue };
        for item in vault.items.iter().flatten().filter(|item| !items.contains(*item)) {
            check.problem(
                &["services", name],
                format!("its file shows `{item}`, and there is no such secret in `secrets.items`"),
            );
        }
    }
}

fn check_sockets_differ(
    unix: Option<&UnixSettings>,
    admin: &AdminSettings,
    serve: Option<&ServeSettings>,
    check: &mut Check<'_>,
) {
    let admin_path = admin.unix.as_ref().map(|unix| &unix.path);
    if unix.is_some_and(|unix| Some(&unix.path) == admin_path) {
        check.problem(&["admin", "unix", "path"], "the socket of `transports.unix` has this path");
    }
    let Some(serve) = serve else { return };
    for (section, path) in [("transports.unix", unix.map(|unix| &unix.path)), ("admin.unix", admin_path)] {
        if path == Some(&serve.path) {
            check.problem(&["secrets", "serve", "unix", "path"], format!("the socket of `{section}` has this path"));
        }
    }
}

/// Where a client finds the running sidecar.
#[derive(Debug, PartialEq, Eq)]
pub struct Sockets {
    pub mcp: PathBuf,
    pub admin: PathBuf,
}

/// Finds the sockets without checking the rest, which a client may be unable to read: another user's files, variables that are not set.
pub fn sockets(sources: &Sources) -> Result<Sockets, Problems> {
    let mut problems = Problems::default();
    let main = match sources.main_file() {
        Ok(main) => main,
        Err(problem) => {
            problems.push(problem);
            return Err(problems);
        }
    };
    let folder = sources.folder(&main);
    let Some(layers::Layered { tree, .. }) = layers::load(sources, &main, &mut Vec::new(), &mut problems) else {
        return Err(problems);
    };
    let path = |section: &str, default: &str| -> PathBuf {
        let node = tree.get(section).and_then(|node| node.get("unix")).and_then(|node| node.get("path"));
        match node.and_then(|node| node.as_str().map(|text| (text, &node.origin))) {
            Some((text, Origin::File { file, .. })) => file.base.resolve(text),
            Some((text, _)) => folder.join(text),
            None => folder.join(default),
        }
    };
    Ok(Sockets { mcp: path("transports", "run/mcpeg.sock"), admin: path("admin", "run/admin.sock") })
}

/// A store that the command line describes, with the keys of `storage.runtime`.
pub fn runtime_of(sources: &Sources, written: serde_json::Value) -> Result<RuntimeKind, Problems> {
    let mut problems = Problems::default();
    let main = sources.main_file().unwrap_or_default();
    let folder = sources.folder(&main);
    let runtime = match serde_json::from_value(written) {
        Ok(raw) => {
            let tree = Node::text("", false, Origin::Flag("the command line".to_owned()));
            check::storage::runtime(raw, folder, &mut Check { tree: &tree, problems: &mut problems })
        }
        Err(error) => {
            problems.push(Problem::nowhere(error.to_string()));
            None
        }
    };
    match runtime {
        Some(runtime) if problems.is_empty() => Ok(runtime.kind),
        _ => Err(problems),
    }
}

/// The file, the line and column in it where there are such, and what is wrong.
pub type TemplateProblem = (PathBuf, Option<(usize, usize)>, String);

/// Puts what the render domain found in the templates among the problems.
pub fn template_problems(config: &Config, found: Vec<TemplateProblem>) -> Problems {
    let mut problems = Problems::default();
    debug_assert!(config.templates.len() >= found.len(), "at most one mistake a template");
    for (file, place, message) in found {
        problems.push(match place {
            Some((line, column)) => {
                let source = std::sync::Arc::new(tree::SourceFile::without_text(&file));
                Problem::new(message, source.at(line, column))
            }
            None => Problem::of_file(message, &file),
        });
    }
    problems.sorted()
}
