//! Patterns of names and addresses: globs, and templates such as `repo://{owner}/{name}`.
//!
//! `*` and `{+name}` stand for any characters, also none; `{name}` for one or more that are not `/`. Everything else stands for itself.
//! A match looks at each character a bounded number of times for each piece, whatever the pattern.

use std::fmt;

#[derive(Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// Any characters.
    Any,
    /// One or more, without `/`.
    Segment,
}

impl Pattern {
    /// `*` is the only character with a meaning.
    pub fn glob(text: &str) -> Self {
        let mut pieces = Vec::new();
        for (index, literal) in text.split('*').enumerate() {
            if index > 0 && pieces.last() != Some(&Piece::Any) {
                pieces.push(Piece::Any);
            }
            if !literal.is_empty() {
                pieces.push(Piece::Literal(literal.to_owned()));
            }
        }
        Self { text: text.to_owned(), pieces }
    }

    /// As a glob, with variables in braces. The reason why not, in words.
    pub fn template(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            pieces.extend(Self::glob(&rest[..at]).pieces);
            let Some((variable, after)) = rest[at + 1..].split_once('}') else {
                return Err("a `{` without its `}`".to_owned());
            };
            let (name, piece) = match variable.strip_prefix('+') {
                Some(name) => (name, Piece::Any),
                None => (variable, Piece::Segment),
            };
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                return Err(format!("`{{{variable}}}` is none of `{{name}}` and `{{+name}}`"));
            }
            pieces.push(piece);
            rest = after;
        }
        if rest.contains('}') {
            return Err("a `}` without its `{`".to_owned());
        }
        pieces.extend(Self::glob(rest).pieces);
        Ok(Self { text: text.to_owned(), pieces })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name itself, if it stands for one only.
    pub fn literal(&self) -> Option<&str> {
        match &*self.pieces {
            [Piece::Literal(name)] => Some(name),
            _ => None,
        }
    }

    /// What everything that matches begins with.
    pub fn prefix(&self) -> &str {
        match self.pieces.first() {
            Some(Piece::Literal(prefix)) => prefix,
            _ => "",
        }
    }

    pub fn matches(&self, name: &str) -> bool {
        match &*self.pieces {
            [Piece::Literal(literal)] => literal == name,
            [Piece::Any] => true,
            [Piece::Literal(prefix), Piece::Any] => name.starts_with(prefix.as_str()),
            pieces => matches(pieces, name.as_bytes()),
        }
    }
}

/// Follows the pieces through the name, keeping every place that the pieces so far may lead to.
fn matches(pieces: &[Piece], name: &[u8]) -> bool {
    let mut places = vec![false; name.len() + 1];
    places[0] = true;
    for piece in pieces {
        let mut next = vec![false; name.len() + 1];
        match piece {
            Piece::Literal(literal) => {
                for at in (0..=name.len()).filter(|at| places[*at]) {
                    if name[at..].starts_with(literal.as_bytes()) {
                        next[at + literal.len()] = true;
                    }
                }
            }
            Piece::Any => {
                if let Some(first) = places.iter().position(|place| *place) {
                    next[first..].fill(true);
                }
            }
            Piece::Segment => {
                let mut within = false;
                for at in 0..name.len() {
                    within = (within || places[at]) && name[at] != b'/';
                    next[at + 1] = within;
                }
            }
        }
        places = next;
    }
    places[name.len()]
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_stands_for_anything_and_the_rest_for_itself() {
        for (pattern, name, expected) in [
            ("get_issue", "get_issue", true),
            ("get_issue", "get_issues", false),
            ("get_*", "get_", true),
            ("get_*", "forget_it", false),
            ("*", "", true),
            ("*_all", "delete_all", true),
            ("*_all", "delete_all_but_one", false),
            ("a*b*c", "a__b__b__c", true),
            ("a*b*c", "a__c__b", false),
            ("**", "x", true),
            ("a?c", "abc", false),
            ("[a]", "a", false),
            ("", "", true),
            ("", "x", false),
            ("größe*", "größe_2", true),
        ] {
            assert_eq!(Pattern::glob(pattern).matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_variable_stands_for_one_segment_or_with_a_plus_for_many() {
        for (pattern, name, expected) in [
            ("repo://{owner}/{name}", "repo://acme/site", true),
            ("repo://{owner}/{name}", "repo://acme/site/x", false),
            ("repo://{owner}/{name}", "repo://acme/", false),
            ("repo://{owner}/{name}", "repo://acme", false),
            ("file:///{+path}", "file:///a/b/c", true),
            ("file:///{+path}.md", "file:///a/b/c.txt", false),
            ("x://{a}-{b}", "x://1-2-3", true),
            ("x://{a}*", "x://1/2", true),
        ] {
            assert_eq!(Pattern::template(pattern).unwrap().matches(name), expected, "{pattern} {name}");
        }
        for wrong in ["a{b", "a}b", "{}", "{a b}", "{/a}", "{a*}"] {
            assert!(Pattern::template(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_a_glob_was_made_from_matches_it(parts in proptest::collection::vec("[^*]{0,5}", 1..5), fill in "\\PC{0,5}") {
            let pattern = Pattern::glob(&parts.join("*"));
            prop_assert!(pattern.matches(&parts.join(&fill)));
            prop_assert!(pattern.matches(&parts.concat()));
        }
    }

    #[test]
    fn many_ways_to_fail_are_one_walk() {
        let pattern = Pattern::template(&"{a}a".repeat(20)).unwrap();
        assert!(pattern.matches(&"a".repeat(8000)));
        assert!(!pattern.matches(&format!("{}/", "a".repeat(8000))));
    }
}
