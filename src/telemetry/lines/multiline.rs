//! Which lines belong together: by a pattern that the first line of a record fits, or by the shape of the exceptions of a language.
//!
//! Both decide with what they have seen and the next line alone. Of an exception's shape nothing is asked but that its lines can be told
//! from others; a line in front of it that announces it (an error's line, or one that ends in a colon) is joined too.

use super::rules::Pattern;

/// How lines become records.
#[derive(Debug, Clone, PartialEq)]
pub enum Multiline {
    /// A line that fits begins a record.
    Start(Pattern),
    Exceptions(Vec<Language>),
}

/// Whose exceptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Java,
    Python,
    Go,
    JavaScript,
    DotNet,
    Ruby,
    Php,
    Rust,
}

impl Language {
    pub const ALL: [Self; 8] =
        [Self::Java, Self::Python, Self::Go, Self::JavaScript, Self::DotNet, Self::Ruby, Self::Php, Self::Rust];
}

/// What is known of the record that the next line may belong to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    within: Option<Language>,
    /// The line before says that something went wrong.
    announces: bool,
    /// The exception may be over: only what chains another one to it goes on.
    is_over: bool,
}

impl Multiline {
    /// What to know of a record that begins with this line.
    pub fn begin(&self, line: &[u8]) -> Seen {
        let within = match self {
            Self::Start(_) => None,
            Self::Exceptions(languages) => languages.iter().copied().find(|language| language.begins(line)),
        };
        Seen { within, announces: announces(line), is_over: false }
    }

    /// Whether the line belongs to the record that `seen` is about.
    pub fn continues(&self, seen: &mut Seen, line: &[u8]) -> bool {
        let languages = match self {
            Self::Start(pattern) => return !pattern.is_match(line),
            Self::Exceptions(languages) => languages,
        };
        if let Some(language) = seen.within {
            return language.continues(seen, line);
        }
        for language in languages {
            let joins = (language.begins(line) && seen.announces) || language.is_frame(line);
            if joins {
                *seen = Seen { within: Some(*language), ..*seen };
                return true;
            }
        }
        false
    }
}

impl Language {
    fn begins(self, line: &[u8]) -> bool {
        match self {
            Self::Java | Self::JavaScript | Self::DotNet => {
                line.starts_with(b"Exception in thread")
                    || line.starts_with(b"Unhandled exception")
                    || names_an_exception(line)
            }
            Self::Python => line.starts_with(b"Traceback (most recent call last)"),
            Self::Go => line.starts_with(b"panic: ") || line.starts_with(b"fatal error: "),
            Self::Ruby => has(line, b":in `") || has(line, b":in '"),
            Self::Php => has(line, b"Fatal error: ") && has(line, b"Uncaught "),
            Self::Rust => line.starts_with(b"thread '") && has(line, b"panicked at"),
        }
    }

    /// A line that occurs in an exception only.
    fn is_frame(self, line: &[u8]) -> bool {
        let inner = line.trim_ascii_start();
        let is_indented = inner.len() < line.len();
        match self {
            Self::Java | Self::JavaScript | Self::DotNet => {
                (is_indented && inner.starts_with(b"at "))
                    || (is_indented && inner.starts_with(b"... ") && inner.ends_with(b" more"))
                    || inner.starts_with(b"Caused by: ")
                    || (is_indented && inner.starts_with(b"Suppressed: "))
                    || inner.starts_with(b"--- End of ")
            }
            Self::Python => is_indented && inner.starts_with(b"File \"") && has(inner, b", line "),
            Self::Go => line.starts_with(b"goroutine ") && line.ends_with(b"]:"),
            Self::Ruby => is_indented && inner.starts_with(b"from "),
            Self::Php => line.starts_with(b"Stack trace:"),
            Self::Rust => line.starts_with(b"stack backtrace:"),
        }
    }

    fn continues(self, seen: &mut Seen, line: &[u8]) -> bool {
        let inner = line.trim_ascii_start();
        let is_indented = inner.len() < line.len();
        match self {
            Self::Java | Self::JavaScript | Self::DotNet => self.is_frame(line),
            Self::Python => python_continues(seen, line, inner, is_indented),
            Self::Go => {
                inner.is_empty()
                    || is_indented
                    || self.is_frame(line)
                    || [&b"created by "[..], b"[signal ", b"exit status ", b"panic: "]
                        .iter()
                        .any(|start| line.starts_with(start))
                    || (has(line, b"(") && line.ends_with(b")") && !line.contains(&b' '))
            }
            Self::Ruby => self.is_frame(line),
            Self::Php => {
                self.is_frame(line)
                    || (line.starts_with(b"#") && line.get(1).is_some_and(u8::is_ascii_digit))
                    || (is_indented && inner.starts_with(b"thrown in "))
            }
            Self::Rust => {
                self.is_frame(line)
                    || line.starts_with(b"note: ")
                    || (is_indented && (inner.starts_with(b"at ") || inner.first().is_some_and(u8::is_ascii_digit)))
                    // The message has a line of its own.
                    || !std::mem::replace(&mut seen.is_over, true)
            }
        }
    }
}

/// Frames are indented; the line that is not names the error and ends it, unless another one is chained to it.
fn python_continues(seen: &mut Seen, line: &[u8], inner: &[u8], is_indented: bool) -> bool {
    let chains =
        line.starts_with(b"During handling of the above exception") || line.starts_with(b"The above exception was");
    if seen.is_over {
        if chains || line.starts_with(b"Traceback (most recent call last)") {
            seen.is_over = line.starts_with(b"The above") || line.starts_with(b"During");
            return true;
        }
        return inner.is_empty();
    }
    seen.is_over = !is_indented && !inner.is_empty();
    true
}

/// `java.lang.IllegalStateException: why`, `TypeError: why`, also behind `Uncaught `.
fn names_an_exception(line: &[u8]) -> bool {
    let line = line.strip_prefix(b"Uncaught ").unwrap_or(line);
    let end = line.iter().position(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'$' | b'`')));
    let (name, rest) = line.split_at(end.unwrap_or(line.len()));
    let is_name = [&b"Exception"[..], b"Error", b"Throwable"].iter().any(|suffix| name.ends_with(suffix));
    is_name && matches!(rest.first(), None | Some(b':')) && name.first().is_some_and(u8::is_ascii_alphabetic)
}

fn announces(line: &[u8]) -> bool {
    const WORDS: [&[u8]; 9] =
        [b"ERROR", b"FATAL", b"SEVERE", b"WARN", b"CRITICAL", b"Error", b"error", b"xception", b"panic"];
    line.trim_ascii_end().ends_with(b":") || WORDS.iter().any(|word| has(line, word))
}

fn has(line: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(line, part).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(rule: &Multiline, text: &str) -> Vec<String> {
        let mut records: Vec<String> = Vec::new();
        let mut seen = Seen::default();
        for line in text.lines() {
            match records.last_mut() {
                Some(record) if rule.continues(&mut seen, line.as_bytes()) => {
                    record.push('\n');
                    record.push_str(line);
                }
                _ => {
                    seen = rule.begin(line.as_bytes());
                    records.push(line.to_owned());
                }
            }
        }
        records
    }

    #[test]
    fn a_pattern_begins_records() {
        let rule = Multiline::Start(Pattern::new(r"^\d{4}-").unwrap());
        let found = records(&rule, "2026-01 one\n more\n\n2026-02 two\nthree");
        assert_eq!(found, ["2026-01 one\n more\n", "2026-02 two\nthree"]);
    }

    #[test]
    fn the_exceptions_of_each_language_stay_together_and_other_lines_apart() {
        let cases = [
            (
                Language::Java,
                "2026 ERROR it failed\njava.lang.IllegalStateException: no\n\tat a.B.c(B.java:1)\n\t... 3 more\nCaused by: java.io.IOException\n\tat d.E.f(E.java:2)",
            ),
            (Language::Java, "Exception in thread \"main\" a.BError: x\n\tat a.B.c(B.java:1)"),
            (Language::JavaScript, "TypeError: x is not a function\n    at f (/a.js:1:2)\n    at node:internal/x:1:2"),
            (
                Language::DotNet,
                "System.InvalidOperationException: x\n   at A.B() in C.cs:line 1\n--- End of inner exception stack trace ---\n   at D.E()",
            ),
            (
                Language::Python,
                "ERROR:root:it failed\nTraceback (most recent call last):\n  File \"a.py\", line 1, in f\n    g()\nValueError: no\n\nDuring handling of the above exception, another exception occurred:\n\nTraceback (most recent call last):\n  File \"a.py\", line 3, in f\n    h()\na.b.Error: why",
            ),
            (
                Language::Go,
                "panic: runtime error: index out of range\n\ngoroutine 1 [running]:\nmain.f(0x1)\n\t/a.go:3 +0x1d\nmain.main()\n\t/a.go:9 +0x2\nexit status 2",
            ),
            (Language::Ruby, "a.rb:1:in `f': no (RuntimeError)\n\tfrom a.rb:5:in `<main>'"),
            (
                Language::Php,
                "PHP Fatal error:  Uncaught Exception: no in /a.php:3\nStack trace:\n#0 {main}\n  thrown in /a.php on line 3",
            ),
            (
                Language::Rust,
                "thread 'main' panicked at src/main.rs:2:5:\nno\nstack backtrace:\n   0: rust_begin_unwind\n             at /rustc/x\nnote: run with `RUST_BACKTRACE=1`",
            ),
        ];
        for (language, exception) in cases {
            for rule in [Multiline::Exceptions(vec![language]), Multiline::Exceptions(Language::ALL.to_vec())] {
                let found = records(&rule, &format!("before\n{exception}\nafter it all\nand more"));
                assert_eq!(found, ["before", exception, "after it all", "and more"], "{language:?}");
            }
        }
    }
}
