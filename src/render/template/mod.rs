//! A template: read from its folder, compiled, rendered from the current secrets into a bounded buffer that is wiped.
//!
//! MiniJinja with strict undefined values and no escaping: what a configuration file needs is said with a filter. A template sees
//! `secret.ITEM.FIELD` (`secret["my-item"].field`, and `secret.ITEM` where there is one field), `env("NAME")`, and may include what lies
//! in its own folder (`sources`). `bundle` puts certificates together, `mask` is what is shown in place of a secret.
//! Invariants: all fields of an item in one rendering come from one version; an unknown item or field fails the rendering, whatever
//! the template does with it; no message quotes a value.

mod book;
mod bundle;
mod filters;
#[cfg(test)]
mod language_tests;
pub(super) mod mask;
mod sources;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use zeroize::Zeroizing;

use crate::memory::with_wiped_stack;
use crate::ports::SecretReader;

use super::{Place, RenderError};

use book::Book;
pub use book::SecretProblem;
pub(super) use book::{ItemRead, Reads};
use sources::Sources;

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
        // An error would hold the values of the template's variables.
        environment.set_debug(false);
        // It would print the whole context.
        environment.remove_global("debug");
        environment.add_function("env", env);
        filters::add_to(&mut environment);
        let (loader_folder, loader_sources) = (folder.to_owned(), sources.clone());
        environment.set_loader(move |name| loader_sources.include(&loader_folder, name));
        let template = Self { source: source.to_owned(), name: name.to_owned(), environment, sources };
        // The main source is read here, so that a missing file is told as such.
        let text = template
            .sources
            .main(source)
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

    /// Renders from the current secrets, to at most `limit` bytes. The items that were read are known even when it fails.
    pub fn render(&self, secrets: &dyn SecretReader, limit: usize) -> (Reads, Result<Zeroizing<Vec<u8>>, RenderError>) {
        let book = Book::new(false);
        let text = with_wiped_stack(|| self.render_with(&book, secrets, limit));
        (book.reads(), text)
    }

    /// As `render`, with a mask in place of each secret. It decides by the secrets what `render` decides.
    pub fn render_masked(&self, secrets: &dyn SecretReader, limit: usize) -> Result<Zeroizing<Vec<u8>>, RenderError> {
        with_wiped_stack(|| self.render_with(&Book::new(true), secrets, limit))
    }

    /// The objects of a template must own what they use, so they cannot hold `secrets`: an item that they miss is put into the book,
    /// and the rendering starts again.
    fn render_with(
        &self,
        book: &Arc<Book>,
        secrets: &dyn SecretReader,
        limit: usize,
    ) -> Result<Zeroizing<Vec<u8>>, RenderError> {
        let template = self.environment.get_template(&self.name).map_err(|error| self.in_words(&error))?;
        for _ in 0..=MOST_ITEMS {
            let mut output = Bounded { text: Zeroizing::default(), limit, is_full: false };
            let context = Value::from_pairs([("secret", book.as_value())]);
            let outcome = filters::reading(book, || template.render_captured_to(context, &mut output).map(drop));
            if let Some(wanted) = book.take_wanted() {
                book.add(&wanted, secrets.current(&wanted));
                continue;
            }
            if output.is_full {
                return Err(RenderError::TooLarge { source_file: self.source.clone(), limit });
            }
            let place = outcome.as_ref().err().map(|error| self.place_of(innermost(error)));
            if let Some(problem) = book.take_problem() {
                return Err(RenderError::Secret {
                    place: place.unwrap_or_else(|| self.nowhere()),
                    problem: Box::new(problem),
                });
            }
            return outcome.map(|()| output.text).map_err(|error| match self.in_words(&error) {
                // A name can be made from a secret: `{% include secret.a.b %}`.
                RenderError::Template { place, message } if book.occurs_in(&message) => {
                    RenderError::Template { place, message: error.kind().to_string() }
                }
                other => other,
            });
        }
        let message = format!("it reads more than {MOST_ITEMS} items");
        Err(RenderError::Template { place: self.nowhere(), message })
    }

    /// Says where and what. A detail is taken over only from errors that speak of names, not of values.
    fn in_words(&self, error: &Error) -> RenderError {
        let error = innermost(error);
        let said = std::error::Error::source(error).and_then(|source| source.downcast_ref::<filters::Said>());
        let detail = error.detail().filter(|_| said.is_some() || speaks_of_names(error.kind()));
        let message = match detail {
            Some(detail) => format!("{}: {detail}", error.kind()),
            None => match self.undefined(error) {
                Some(expression) => format!("{}: `{expression}`", error.kind()),
                None => error.kind().to_string(),
            },
        };
        RenderError::Template { place: self.place_of(error), message }
    }

    fn place_of(&self, error: &Error) -> Place {
        let file = match error.name() {
            Some(name) if name != self.name => self.source.with_file_name(name),
            _ => self.source.clone(),
        };
        let text = error.name().and_then(|name| self.environment.get_template(name).ok());
        let column = text.zip(error.range()).and_then(|(text, range)| column_of(text.source(), range.start));
        Place { file, line: error.line(), column }
    }

    /// What is undefined, as it is written in the template.
    fn undefined(&self, error: &Error) -> Option<String> {
        let range = (error.kind() == ErrorKind::UndefinedError).then(|| error.range()).flatten()?;
        let text = self.environment.get_template(error.name()?).ok()?;
        let expression = text.source().get(range)?;
        (expression.len() <= LONGEST_QUOTE && !expression.contains('\n')).then(|| expression.to_owned())
    }

    fn nowhere(&self) -> Place {
        Place { file: self.source.clone(), line: None, column: None }
    }
}

/// The one that knows most: others say through which includes it came.
fn innermost(error: &Error) -> &Error {
    let mut innermost = error;
    while let Some(inner) = std::error::Error::source(innermost).and_then(|inner| inner.downcast_ref::<Error>()) {
        innermost = inner;
    }
    innermost
}

/// Characters from the line's start, counted from 1.
fn column_of(text: &str, offset: usize) -> Option<usize> {
    let before = text.get(..offset)?;
    Some(before.chars().rev().take_while(|c| *c != '\n').count() + 1)
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

/// A buffer that takes `limit` bytes and is wiped.
struct Bounded {
    text: Zeroizing<Vec<u8>>,
    limit: usize,
    is_full: bool,
}

impl Write for &mut Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.limit {
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

const LONGEST_QUOTE: usize = 80;
const MOST_ITEMS: usize = 256;
/// Instructions; a loop without end comes to one.
const FUEL: u64 = 10_000_000;
