//! How a source is reached: the file that `--source` names, and variables (`MCPEG_SOURCE__TOKEN_FILE`) over it.
//!
//! It is read before there is a configuration, and is small: places of credentials, TLS, waits and bounds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::check::Check;
use super::super::interpolate::interpolate;
use super::super::layers::{SOURCE_PREFIX, Sources};
use super::super::problem::Problems;
use super::super::raw::scalar::RawPath;
use super::super::raw::source::RawSource;
use super::super::shape::Shape;
use super::super::tree::{Node, Origin, Value};
use super::super::{read_raw, schema, yaml};
use super::fetched::Files;
use crate::tls;

#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    pub work: PathBuf,
    pub keep: PathBuf,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub token_file: Option<PathBuf>,
    pub tls: tls::Files,
    pub server_name: Option<String>,
    pub timeout: Duration,
    pub interval: Duration,
    pub datacenter: Option<String>,
    pub namespace: Option<String>,
    pub allowed_signers: Option<PathBuf>,
    pub max_files: usize,
    pub max_size: usize,
}

/// Everything that is wrong with it at once, as of any configuration.
pub fn load(sources: &Sources) -> Result<Options, Problems> {
    let mut problems = Problems::default();
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let options = load_from(sources, &here, &mut problems);
    match options {
        Some(options) if problems.is_empty() => Ok(options),
        _ => Err(problems.sorted()),
    }
}

fn load_from(sources: &Sources, here: &Path, problems: &mut Problems) -> Option<Options> {
    let asked = sources.source.clone().or_else(|| sources.variable("MCPEG_SOURCE").map(PathBuf::from));
    let mut tree = match asked {
        Some(path) => yaml::read(&Files::Disk, &here.join(path), problems)?,
        None => Node { value: Value::Map(Vec::new()), origin: Origin::Variable(SOURCE_PREFIX.to_owned()) },
    };
    interpolate(&mut tree, &|name| sources.variable(name), problems);
    for (name, value) in sources.variables.starting_with(SOURCE_PREFIX) {
        let path: Vec<String> = name[SOURCE_PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
        tree.put(&path, Node::text(&value, true, Origin::Variable(name.clone())));
    }
    let mut shape = Shape::new(here, problems);
    if !shape.check(&mut tree, schema::source_file()) {
        return None;
    }
    let raw: RawSource = read_raw(&tree, problems)?;
    let mut check = Check { tree: &tree, problems };
    let (tls, server_name) = check.tls(&[], raw.tls);
    let mut file = |raw: Option<RawPath>, key: &str, is_private: bool| {
        let path = RawPath::given(raw)?;
        check.readable(&[key], &path);
        if is_private {
            check.private(&[key], &path);
        }
        Some(path)
    };
    let password_file = file(raw.password_file, "password_file", true);
    let token_file = file(raw.token_file, "token_file", true);
    let allowed_signers = file(raw.allowed_signers, "allowed_signers", false);
    let work = RawPath::given(raw.work).unwrap_or_else(|| here.to_owned());
    let keep = RawPath::given(raw.keep).unwrap_or_else(|| work.join("data/config"));
    Some(Options {
        work,
        keep,
        username: raw.username,
        password_file,
        token_file,
        tls,
        server_name,
        timeout: raw.timeout.map_or(Duration::from_secs(10), |timeout| timeout.0).max(SHORTEST),
        interval: raw.interval.map_or(Duration::from_secs(30), |interval| interval.0).max(SHORTEST),
        datacenter: raw.datacenter,
        namespace: raw.namespace,
        allowed_signers,
        max_files: raw.max_files.map_or(2000, |most| most as usize),
        max_size: raw.max_size.map_or(16 * 1024 * 1024, |size| size.0),
    })
}

const SHORTEST: Duration = Duration::from_millis(100);
