//! A template: read from its folder, compiled, rendered from the current secrets into a bounded buffer that is wiped.
//!
//! MiniJinja with strict undefined values and no escaping: what a configuration file needs is said with a filter. A template sees
//! `secret.ITEM.FIELD` (`secret["my-item"].field`, and `secret.ITEM` where there is one field), `env("NAME")`, and may include what lies
//! in its own folder. Every source that was read is remembered with a stamp, so that a change of any is noticed.
//! Invariants: all fields of an item in one rendering come from one version; an unknown item or field fails the rendering, whatever
//! the template does with it; no message quotes a value.

mod book;
mod filters;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use zeroize::Zeroizing;

use crate::memory::with_wiped_stack;
use crate::ports::SecretReader;

use super::RenderError;

use book::Book;
pub use book::SecretProblem;
pub(super) use book::{ItemRead, Reads};

pub(super) struct Template {
    source: PathBuf,
    /// The name of the template within its folder.
    name: String,
    environment: Environment<'static>,
    sources: Sources,
}

impl Template {
    /// Reads and compiles; includes are read when they are first met.
    pub fn load(source: &Path) -> Result<Self, RenderError> {
        let (Some(folder), Some(name)) = (source.parent(), source.file_name().and_then(|name| name.to_str())) else {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
            return Err(RenderError::Source { source_file: source.to_owned(), error });
        };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let sources = Sources::default();
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_syntax(syntax());
        environment.set_fuel(Some(FUEL));
        // It would print the whole context.
        environment.remove_global("debug");
        environment.add_function("env", env);
        filters::add_to(&mut environment);
        let (loader_folder, loader_sources) = (folder.to_owned(), sources.clone());
        environment.set_loader(move |name| load_include(&loader_folder, name, &loader_sources));
        let template = Self { source: source.to_owned(), name: name.to_owned(), environment, sources };
        // The main source is read here, so that a missing file is told as such.
        let text = template
            .sources
            .read(source)
            .map_err(|error| RenderError::Source { source_file: source.to_owned(), error })?;
        template.compile(text)
    }

    fn compile(mut self, text: String) -> Result<Self, RenderError> {
        let compiled = self.environment.add_template_owned(self.name.clone(), text);
        match compiled {
            Ok(()) => Ok(self),
            Err(error) => Err(self.in_words(&error)),
        }
    }

    /// Any source that was read, or looked for, is not what it was.
    pub fn has_changed(&self) -> bool {
        self.sources.changed()
    }

    /// Renders from the current secrets. The items that were read are known even when it fails.
    pub fn render(&self, secrets: &dyn SecretReader) -> (Reads, Result<Zeroizing<Vec<u8>>, RenderError>) {
        let book = Book::new();
        let text = with_wiped_stack(|| self.render_with(&book, secrets));
        (book.reads(), text)
    }

    /// The objects of a template must own what they use, so they cannot hold `secrets`: an item that they miss is put into the book,
    /// and the rendering starts again.
    fn render_with(&self, book: &Arc<Book>, secrets: &dyn SecretReader) -> Result<Zeroizing<Vec<u8>>, RenderError> {
        let template = self.environment.get_template(&self.name).map_err(|error| self.in_words(&error))?;
        for _ in 0..=MOST_ITEMS {
            let mut output = Bounded::default();
            let context = Value::from_pairs([("secret", book.as_value())]);
            let outcome = template.render_captured_to(context, &mut output).map(drop);
            if let Some(wanted) = book.take_wanted() {
                book.add(&wanted, secrets.current(&wanted));
                continue;
            }
            if output.is_full {
                return Err(RenderError::TooLarge { source_file: self.source.clone(), limit: LARGEST });
            }
            let line = outcome.as_ref().err().and_then(Error::line);
            if let Some(problem) = book.take_problem() {
                return Err(RenderError::Secret { source_file: self.source.clone(), line, problem });
            }
            return outcome.map(|()| output.text).map_err(|error| match self.in_words(&error) {
                // A name can be made from a secret: `{% include secret.a.b %}`.
                RenderError::Template { source_file, line, message } if book.occurs_in(&message) => {
                    RenderError::Template { source_file, line, message: error.kind().to_string() }
                }
                other => other,
            });
        }
        let message = format!("it reads more than {MOST_ITEMS} items");
        Err(RenderError::Template { source_file: self.source.clone(), line: 0, message })
    }

    /// Says where and what. A detail is taken over only from errors that speak of names, not of values.
    fn in_words(&self, error: &Error) -> RenderError {
        let mut innermost = error;
        while let Some(inner) = std::error::Error::source(innermost).and_then(|inner| inner.downcast_ref::<Error>()) {
            innermost = inner;
        }
        let source_file = match innermost.name() {
            Some(name) if name != self.name => self.source.with_file_name(name),
            _ => self.source.clone(),
        };
        let detail = innermost.detail().filter(|_| speaks_of_names(innermost.kind()));
        let message = match detail {
            Some(detail) => format!("{}: {detail}", innermost.kind()),
            None => innermost.kind().to_string(),
        };
        RenderError::Template { source_file, line: innermost.line().unwrap_or(0), message }
    }
}

/// Jinja's own, but a file that ends with a newline goes on doing so.
fn syntax() -> SyntaxConfig {
    // Building fails only for delimiters, and none are set.
    SyntaxConfig::builder().keep_trailing_newline(true).build().unwrap_or_default()
}

fn speaks_of_names(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::SyntaxError
            | ErrorKind::TemplateNotFound
            | ErrorKind::UnknownFilter
            | ErrorKind::UnknownTest
            | ErrorKind::UnknownFunction
            | ErrorKind::UnknownMethod
            | ErrorKind::UnknownBlock
            | ErrorKind::MissingArgument
            | ErrorKind::TooManyArguments
            | ErrorKind::OutOfFuel
            | ErrorKind::UndefinedError
            | ErrorKind::BadInclude
    )
}

/// `env("NAME")`, or `env("NAME", "default")`: a plain variable of this process.
fn env(name: &str, default: Option<&str>) -> Result<String, Error> {
    std::env::var(name).ok().or_else(|| default.map(str::to_owned)).ok_or_else(|| {
        Error::new(ErrorKind::UndefinedError, format!("the environment has no variable {name}, or it is not text"))
    })
}

fn load_include(folder: &Path, name: &str, sources: &Sources) -> Result<Option<String>, Error> {
    let refused = |why: String| Err(Error::new(ErrorKind::BadInclude, format!("{name}: {why}")));
    if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
        return refused("an include must be inside the template's folder".to_owned());
    }
    let path = folder.join(name);
    let inside = match (path.canonicalize(), folder.canonicalize()) {
        (Ok(path), Ok(folder)) => path.starts_with(folder),
        // Not there: the read below says so and remembers it.
        _ => true,
    };
    if !inside {
        return refused("an include must be inside the template's folder, and a link leads out of it".to_owned());
    }
    match sources.read(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => refused(error.to_string()),
    }
}

/// The files that were read, each with a stamp from before the reading; `None` when it was not there.
#[derive(Clone, Default)]
struct Sources(Arc<Mutex<BTreeMap<PathBuf, Option<Stamp>>>>);

type Stamp = (u64, u64, i64, i64);

impl Sources {
    fn read(&self, path: &Path) -> io::Result<String> {
        let stamp = stamp_of(path);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), stamp);
        let mut text = String::new();
        fs::File::open(path)?.take(LARGEST as u64 + 1).read_to_string(&mut text)?;
        if text.len() > LARGEST {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {LARGEST} bytes")));
        }
        Ok(text)
    }

    fn changed(&self) -> bool {
        let sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sources.iter().any(|(path, stamp)| stamp_of(path) != *stamp)
    }
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    let facts = fs::metadata(path).ok()?;
    Some((facts.ino(), facts.size(), facts.mtime(), facts.mtime_nsec()))
}

/// A buffer that takes `LARGEST` bytes and is wiped.
#[derive(Default)]
struct Bounded {
    text: Zeroizing<Vec<u8>>,
    is_full: bool,
}

impl Write for &mut Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > LARGEST {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Of a source, and of an output.
const LARGEST: usize = 1024 * 1024;
const MOST_ITEMS: usize = 256;
/// Instructions; a loop without end comes to one.
const FUEL: u64 = 10_000_000;
