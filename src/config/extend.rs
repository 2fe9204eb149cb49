//! `extends: FILE` or `extends: [FILE, ...]` at the top of a configuration file: it begins with what those files say, and says over it what is its own.
//!
//! Later bases win over earlier ones, the file itself over all, key by key as layers do; a key with nothing behind it (`timeout:`) takes away what a
//! base says. A base may extend others, up to `DEEPEST` of them in a row, in no circle. A relative path is relative to the file that it stands in.

use std::path::{Path, PathBuf};

use super::interpolate::interpolate;
use super::problem::{Problem, Problems};
use super::source::fetched::Files;
use super::tree::{Node, Origin, Value};
use super::yaml;

/// What reading a file needs, and what it read.
pub struct Reader<'a> {
    pub files: &'a Files,
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// As problems name them.
    pub read: &'a mut Vec<PathBuf>,
    /// Those whose change may change the outcome.
    pub followed: &'a mut Vec<PathBuf>,
}

impl Reader<'_> {
    /// A file with its bases below it. `None` when one of them cannot be read; the reason is among the problems then.
    pub fn read(&mut self, path: &Path, problems: &mut Problems) -> Option<Node> {
        self.read_in(path, &mut Vec::new(), problems)
    }

    /// `chain`: the files that led here.
    fn read_in(&mut self, path: &Path, chain: &mut Vec<PathBuf>, problems: &mut Problems) -> Option<Node> {
        if !self.followed.iter().any(|known| known == path) {
            self.followed.push(path.to_owned());
        }
        let shown = self.files.shown(path);
        if !self.read.contains(&shown) {
            self.read.push(shown);
        }
        let mut own = yaml::read(self.files, path, problems)?;
        let Some(bases) = take_bases(&mut own) else { return Some(own) };
        chain.push(path.to_owned());
        let whole = self.lay_over_bases(own, bases, chain, problems);
        chain.pop();
        whole
    }

    fn lay_over_bases(
        &mut self,
        own: Node,
        bases: Node,
        chain: &mut Vec<PathBuf>,
        problems: &mut Problems,
    ) -> Option<Node> {
        let bases = match bases.value {
            Value::List(bases) => bases,
            _ => vec![bases],
        };
        let mut whole: Option<Node> = None;
        for mut base in bases {
            interpolate(&mut base, self.variable, problems);
            let path = self.path_of(&base, chain, problems)?;
            let lower = self.read_in(&path, chain, problems)?;
            match &mut whole {
                Some(whole) => whole.lay_over(lower),
                None => whole = Some(lower),
            }
        }
        let Some(mut whole) = whole else { return Some(own) };
        let origin = own.origin.clone();
        whole.lay_over(own);
        whole.origin = origin;
        Some(whole)
    }

    fn path_of(&self, base: &Node, chain: &[PathBuf], problems: &mut Problems) -> Option<PathBuf> {
        let mut refuse = |message: String| {
            problems.push(Problem::new(message, base.origin.clone()).path("extends"));
            None
        };
        let (Some(text), Origin::File { file, .. }) = (base.as_str(), &base.origin) else {
            // A mistake in the text has been reported.
            if base.value == Value::Wrong {
                return None;
            }
            return refuse("`extends` is the path of a file, or a list of such".to_owned());
        };
        let path = file.base.resolve(text);
        let is_in_circle = chain.iter().any(|known| same(known, &path));
        match std::fs::metadata(&path) {
            _ if is_in_circle => refuse("the file extends itself, by way of this one".to_owned()),
            _ if chain.len() >= DEEPEST => refuse(format!("more than {DEEPEST} files extend each other")),
            Err(error) => {
                let shown = self.files.shown(&path);
                refuse(format!("{} cannot be opened: {}", shown.display(), yaml::plain_io(&error)))
            }
            Ok(_) => Some(path),
        }
    }
}

/// Takes `extends` out of a file.
fn take_bases(own: &mut Node) -> Option<Node> {
    let Value::Map(entries) = &mut own.value else { return None };
    let at = entries.iter().position(|entry| entry.key == KEY)?;
    let bases = entries.remove(at).node;
    (bases.value != Value::Null).then_some(bases)
}

fn same(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

pub const KEY: &str = "extends";
const DEEPEST: usize = 8;
