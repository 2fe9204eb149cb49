//! Where the configuration comes from, and what lies over what.
//!
//! `mcpeg.yaml` -> `mcpeg-<environment>.yaml` -> variables (`MCPEG_GLOBAL__LOG_LEVEL`) -> flags (`--set global.log_level=debug`). Later
//! wins. Files are those of a folder, or of a tree that a source gave (`source`). The environment is `--environment`, else `MCPEG_ENVIRONMENT`, else `metadata.environment`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::extend::Reader;
use super::interpolate::interpolate;
use super::problem::{Problem, Problems};
use super::source::Remote;
use super::source::fetched::{Fetched, Files};
use super::tree::{Node, Origin};
use super::yaml;
use crate::ports::SecretReader;

/// What the command line and the process's environment say.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A file, or the address of a source (see `source::address`).
    pub config: Option<PathBuf>,
    /// The file that says how the source is reached.
    pub source: Option<PathBuf>,
    /// What the source gave, where there is one: everything is read from it.
    pub fetched: Option<Arc<Fetched>>,
    /// The source, for a process that follows it.
    pub remote: Option<Arc<Remote>>,
    /// Why the source did not give `fetched`, which is the last good one then.
    pub away: Option<String>,
    pub environment: Option<String>,
    /// Nothing will be done with it: a key of sealed values may be missing.
    pub only_checks: bool,
    /// Where the key of sealed values is, if it is an item's value.
    pub items: Items,
    /// `key.path=value`, in the order given.
    pub set: Vec<String>,
    /// `None`: nothing is going to be run. The program and its arguments of `mcpeg run -- ...`, which may be empty.
    pub program: Option<Vec<String>>,
    pub variables: Variables,
}

/// Secrets that can be read while a configuration is.
#[derive(Clone, Default)]
pub struct Items(pub Option<Arc<dyn SecretReader>>);

impl std::fmt::Debug for Items {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Items" } else { "no items" })
    }
}

/// Where environment variables are looked up.
#[derive(Debug, Clone)]
pub enum Variables {
    /// This process's own, each read when it is asked for: a copy of all of them would lie in memory for good.
    Process,
    /// Exactly these.
    Only(BTreeMap<String, String>),
}

impl Default for Variables {
    fn default() -> Self {
        Self::Only(BTreeMap::new())
    }
}

impl Variables {
    fn get(&self, name: &str) -> Option<String> {
        match self {
            Self::Process => crate::environment::text(name),
            Self::Only(variables) => variables.get(name).cloned(),
        }
    }

    /// Those whose names start with `prefix`, in the order of their names. One that is not UTF-8 is left out.
    pub fn starting_with(&self, prefix: &str) -> BTreeMap<String, String> {
        match self {
            Self::Process => std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
                .filter(|(name, _)| name.starts_with(prefix))
                .filter_map(|(name, value)| Some((name, value.into_string().ok()?)))
                .collect(),
            Self::Only(variables) => variables
                .iter()
                .filter(|(name, _)| name.starts_with(prefix))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        }
    }
}

impl Sources {
    /// With this process's environment.
    pub fn from_process(config: Option<PathBuf>, environment: Option<String>, set: Vec<String>) -> Self {
        Self { config, environment, set, variables: Variables::Process, ..Self::default() }
    }

    /// The same, read from this tree.
    #[must_use]
    pub fn of_tree(&self, fetched: Arc<Fetched>) -> Self {
        Self { fetched: Some(fetched), ..self.clone() }
    }

    /// How its files are read.
    pub fn files(&self) -> Files {
        self.fetched.clone().map_or(Files::Disk, Files::Fetched)
    }

    /// The folder that the main file stands in, or that the root of a tree stands for.
    pub fn folder<'a>(&'a self, main: &'a Path) -> &'a Path {
        match &self.fetched {
            Some(fetched) => fetched.work(),
            None => main.parent().unwrap_or(Path::new("/")),
        }
    }

    pub fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name)
    }

    /// The main file: as asked for, else the first of the usual places that exists.
    pub fn main_file(&self) -> Result<PathBuf, Problem> {
        if let Some(fetched) = &self.fetched {
            return Ok(fetched.main());
        }
        if let Some(reason) = &self.away {
            return Err(Problem::nowhere(format!("the configuration cannot be read: {reason}")));
        }
        let asked = self.config.clone().or_else(|| self.variable("MCPEG_CONFIG").map(PathBuf::from));
        let chosen = match asked {
            Some(path) => path,
            None => USUAL_PLACES.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
                let message = format!("no configuration: none of {} exists", USUAL_PLACES.join(", "));
                Problem::nowhere(message).help("name one with --config, or try `mcpeg demo`")
            })?,
        };
        // Absolute, so that a later change of folder, or a reload, reads the same file.
        std::path::absolute(&chosen)
            .map_err(|error| Problem::of_file(format!("cannot be found: {}", yaml::plain_io(&error)), &chosen))
    }
}

/// The layers, merged and with variables put in, and the files that they came from.
pub struct Layered {
    pub tree: Node,
    pub files: Vec<PathBuf>,
}

/// `followed` gets every file whose change may change the outcome, an overlay that is not there among them.
pub fn load(sources: &Sources, main: &Path, followed: &mut Vec<PathBuf>, problems: &mut Problems) -> Option<Layered> {
    let source = sources.files();
    let variable = |name: &str| sources.variable(name);
    let mut files = Vec::new();
    let mut reader = Reader { files: &source, variable: &variable, read: &mut files, followed };
    let mut tree = reader.read(main, problems)?;
    if let Some((environment, asked_by)) = environment_of(sources, &tree) {
        let overlay = overlay_path(main, &environment);
        if overlay.exists() {
            if let Some(upper) = reader.read(&overlay, problems) {
                tree.lay_over(upper);
            }
        } else if let Some(asked_by) = asked_by {
            let message = format!("the overlay of the environment that {asked_by} names does not exist");
            problems.push(Problem::of_file(message, &source.shown(&overlay)));
        }
        if !reader.followed.contains(&overlay) {
            reader.followed.push(overlay);
        }
    }
    interpolate(&mut tree, &variable, problems);
    lay_variables(sources, &mut tree);
    lay_flags(sources, &mut tree, problems);
    Some(Layered { tree, files })
}

/// The environment's name, and who asked for it where a missing overlay is a mistake.
fn environment_of(sources: &Sources, tree: &Node) -> Option<(String, Option<&'static str>)> {
    if let Some(name) = &sources.environment {
        return Some((name.clone(), Some("--environment")));
    }
    if let Some(name) = sources.variable("MCPEG_ENVIRONMENT") {
        return Some((name, Some("MCPEG_ENVIRONMENT")));
    }
    let mut name = tree.get("metadata")?.get("environment")?.clone();
    // A mistake in it is reported when the whole tree is interpolated.
    interpolate(&mut name, &|variable| sources.variable(variable), &mut Problems::default());
    Some((name.as_str()?.to_owned(), None))
}

fn overlay_path(main: &Path, environment: &str) -> PathBuf {
    let (stem, extension) = overlay_form(main);
    // A name with a separator in it must not lead out of the folder.
    let environment = environment.replace(['/', '\0'], "_");
    main.with_file_name(format!("{stem}-{environment}.{extension}"))
}

/// What the name of an overlay begins with, before a dash and the environment, and its extension.
pub fn overlay_form(main: &Path) -> (String, String) {
    let stem = main.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let extension = main.extension().map_or_else(|| "yaml".to_owned(), |e| e.to_string_lossy().into_owned());
    (stem, extension)
}

fn lay_variables(sources: &Sources, tree: &mut Node) {
    for (name, value) in sources.variables.starting_with(PREFIX) {
        if name.starts_with(SOURCE_PREFIX) {
            continue;
        }
        let Some(rest) = name.strip_prefix(PREFIX).filter(|rest| rest.contains("__")) else { continue };
        let path: Vec<String> = rest.split("__").map(str::to_ascii_lowercase).collect();
        tree.put(&path, Node::text(&value, true, Origin::Variable(name.clone())));
    }
}

fn lay_flags(sources: &Sources, tree: &mut Node, problems: &mut Problems) {
    for flag in &sources.set {
        let Some((key, value)) = flag.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            let origin = Origin::Flag(flag.split('=').next().unwrap_or_default().to_owned());
            problems.push(Problem::new("expected KEY=VALUE, such as global.log_level=debug".to_owned(), origin));
            continue;
        };
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        let mut node = Node::text(value, true, Origin::Flag(key.to_owned()));
        interpolate(&mut node, &|name| sources.variable(name), problems);
        tree.put(&path, node);
    }
}

const PREFIX: &str = "MCPEG_";
/// Of variables that say how a source is reached, which are none of the configuration's.
pub const SOURCE_PREFIX: &str = "MCPEG_SOURCE__";
const USUAL_PLACES: [&str; 3] = ["config/mcpeg.yaml", "/opt/mcpeg/config/mcpeg.yaml", "/etc/mcpeg/mcpeg.yaml"];
