//! `mcpeg migrate`: what is kept (`storage`), or with `config` the files of the configuration, which go where they can be followed from. Nothing is
//! removed, there or here, and nothing is overwritten that somebody else changes meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;
use zeroize::Zeroizing;

use super::source::block_on_any;
use super::{bad_configuration, failed, say, storage};
use crate::config::source::{Remote, Written};
use crate::config::{self, Problem, Problems, Sources};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct MigrateArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    kept: storage::CarryArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write the configuration into etcd or Consul, where it can be followed from
    Config(ConfigArgs),
}

impl MigrateArgs {
    pub fn is_of_config(&self) -> bool {
        self.what.is_some()
    }
}

pub fn migrate(sources: &Sources, args: &MigrateArgs) -> ExitCode {
    match &args.what {
        Some(What::Config(args)) => config(sources, args),
        None => storage::carry(sources, &args.kept),
    }
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// Where to: etcd://host:2379/prefix/ or consul://host:8500/prefix/; --source says how it is reached
    #[arg(long, value_name = "ADDRESS")]
    to: String,
    /// A file or a folder beside mcpeg.yaml that belongs to it too; may be given more than once
    #[arg(long, value_name = "PATH")]
    also: Vec<PathBuf>,
    /// Say which files would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn config(sources: &Sources, args: &ConfigArgs) -> ExitCode {
    let files = match files_of(sources, &args.also) {
        Ok(files) => files,
        Err(problems) => return bad_configuration(&problems),
    };
    if args.dry_run {
        let names: Vec<&String> = files.keys().collect();
        match args.json {
            true => say(&json!({ "files": names }).to_string()),
            false => names.iter().for_each(|name| say(name)),
        }
        return ExitCode::SUCCESS;
    }
    let to = Sources { config: Some(PathBuf::from(&args.to)), fetched: None, ..sources.clone() };
    let remote = match Remote::named_by(&to, false) {
        Ok(Some(remote)) => remote,
        Ok(None) => return failed(&format!("--to: `{}` is no address of etcd or Consul", args.to)),
        Err(problems) => return bad_configuration(&problems),
    };
    match block_on_any(remote.write(&files)) {
        Ok(Ok(written)) => {
            report(&args.to, files.len(), &written, args.json);
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => failed(&error.to_string()),
        Err(error) => failed(&format!("the runtime could not be started: {error}")),
    }
}

fn report(to: &str, count: usize, written: &Written, as_json: bool) {
    if as_json {
        return say(&json!({
            "files": count, "written": written.written, "unchanged": written.unchanged, "others": written.others,
        })
        .to_string());
    }
    let Written { written, unchanged, others, .. } = written;
    say(&format!("{to}: {count} files, {written} written, {unchanged} there already; all read back, and the same"));
    if !others.is_empty() {
        say(&format!("left there as they were: {}", others.join(", ")));
    }
}

type Tree = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// What belongs to the configuration: everything that is read for any environment, the folders of the templates, and what was named besides. All of it
/// has to be in the main file's folder, because the destination has no other place for it.
fn files_of(sources: &Sources, also: &[PathBuf]) -> Result<Tree, Problems> {
    if let Some(fetched) = &sources.fetched {
        return Ok(fetched.files.iter().map(|(name, content)| (name.clone(), content.clone())).collect());
    }
    let one = |problem: Problem| {
        let mut problems = Problems::default();
        problems.push(problem);
        problems
    };
    let main = sources.main_file().map_err(one)?;
    let root = main.parent().unwrap_or(Path::new("/")).to_owned();
    let mut paths = BTreeSet::new();
    let names = config::environments(sources).map_err(one)?;
    for environment in std::iter::once(None).chain(names.into_iter().map(Some)) {
        let sources = Sources { environment, only_checks: true, ..sources.clone() };
        let config = config::load(&sources)?;
        paths.extend(config.files);
        for template in &config.templates {
            let folder = template.source.parent().unwrap_or(&root).to_owned();
            // Others that it includes lie beside it, unless that is where everything lies.
            if folder == root {
                paths.insert(template.source.clone())
            } else {
                paths.insert(folder)
            };
        }
    }
    paths.extend(also.iter().map(|path| root.join(path)));
    let mut files = Tree::new();
    for path in paths {
        add(&root, &path, 0, &mut files).map_err(|reason| one(Problem::of_file(reason, &path)))?;
    }
    Ok(files)
}

/// Adds a file, or all files of a folder.
fn add(root: &Path, path: &Path, depth: usize, files: &mut Tree) -> Result<(), String> {
    let facts = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if facts.is_dir() && depth < DEEPEST {
        for entry in std::fs::read_dir(path).map_err(|error| error.to_string())? {
            add(root, &entry.map_err(|error| error.to_string())?.path(), depth + 1, files)?;
        }
        return Ok(());
    }
    let outside = "it is not in the folder of the main file: move it there, or name it by an absolute path".to_owned();
    let name = plain(path).strip_prefix(plain(root)).map_err(|_| outside)?.to_string_lossy().into_owned();
    if !facts.is_file() || facts.len() > LARGEST || files.len() >= MOST {
        return Err(format!("it is no file of at most {LARGEST} bytes, or one of more than {MOST}"));
    }
    files.insert(name, Zeroizing::new(std::fs::read(path).map_err(|error| error.to_string())?));
    Ok(())
}

/// Without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part {
            std::path::Component::ParentDir => {
                plain.pop();
            }
            std::path::Component::CurDir => {}
            part => plain.push(part),
        }
        plain
    })
}

const DEEPEST: usize = 16;
const LARGEST: u64 = 1024 * 1024;
const MOST: usize = 20_000;
