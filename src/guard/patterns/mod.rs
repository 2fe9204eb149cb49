//! Finds what looks like a credential, by its shape alone: vendors' keys, tokens, private keys, and what the configuration adds.
//!
//! A table over the fixed beginnings (`shapes`) finds the candidates (`beginnings`); what follows is checked by hand, in one pass. The
//! configuration's own patterns are regular expressions that run in linear time. Nothing here is secret.

mod beginnings;
mod shapes;

use std::ops::Range;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

use super::GuardError;
use beginnings::Beginnings;
use shapes::{SHAPES, Shape};

/// A pattern of the configuration: bytes, without Unicode classes, in the syntax of the crate `regex`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Custom {
    pub name: String,
    pub regex: String,
}

pub struct Patterns {
    /// The shapes' beginnings, in the order of `SHAPES`.
    beginnings: Option<Beginnings>,
    names: Vec<Arc<str>>,
    custom: Vec<(Arc<str>, Regex)>,
}

/// A place where a pattern fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    pub range: Range<usize>,
    pub name: Arc<str>,
}

impl Patterns {
    pub fn new(builtin: bool, custom: &[Custom]) -> Result<Self, GuardError> {
        let beginnings = builtin.then(|| Beginnings::new(SHAPES.iter().map(|shape| shape.begins)));
        let names = SHAPES.iter().map(|shape| Arc::from(shape.name)).collect();
        let custom = custom.iter().map(|custom| Ok((custom.name.as_str().into(), compile(custom)?)));
        Ok(Self { beginnings, names, custom: custom.collect::<Result<_, GuardError>>()? })
    }

    /// Every place where a pattern fits. They may overlap.
    pub fn find(&self, text: &[u8]) -> Vec<Fit> {
        let mut found = Vec::new();
        if let Some(beginnings) = &self.beginnings {
            let mut past = 0;
            let mut pem = shapes::PemEnds::default();
            beginnings.each(text, |number, start| {
                if start >= past
                    && let Some(range) = fit(&SHAPES[number], text, start, &mut pem)
                {
                    past = range.end;
                    found.push(Fit { range, name: self.names[number].clone() });
                }
            });
        }
        for (name, regex) in &self.custom {
            let fits = regex.find_iter(text).filter(|fit| !fit.is_empty());
            found.extend(fits.map(|fit| Fit { range: fit.range(), name: name.clone() }));
        }
        found
    }
}

fn fit(shape: &Shape, text: &[u8], start: usize, pem: &mut shapes::PemEnds) -> Option<Range<usize>> {
    shape.stands_alone(text, start).then(|| shape.extent(text, start, pem)).flatten()
}

/// Checks a pattern as `Patterns::new` will.
pub fn compile(custom: &Custom) -> Result<Regex, GuardError> {
    let pattern = |reason: String| GuardError::Pattern { name: custom.name.clone(), reason };
    let regex = RegexBuilder::new(&custom.regex).unicode(false).size_limit(LARGEST).dfa_size_limit(LARGEST).build();
    let regex = regex.map_err(|error| pattern(error.to_string()))?;
    match regex.is_match(b"") {
        true => Err(pattern("it fits an empty text, and so everywhere".to_owned())),
        false => Ok(regex),
    }
}

/// Of a compiled expression, in bytes.
const LARGEST: usize = 512 * 1024;

#[cfg(test)]
mod tests;
