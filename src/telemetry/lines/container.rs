//! What container runtimes put around each line that a container prints.
//!
//! CRI (Kubernetes, `kubelet`'s logging format): `TIME STREAM TAGS LINE`, where the first tag is `F` for a whole line and `P` for a part of
//! one. Docker's `json-file`: `{"log":"LINE\n","stream":"stdout","time":"..."}`, where a part of a line has no `\n` at its end.

use std::borrow::Cow;

use serde::Deserialize;

use super::time::{self, TimeFormat};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"stdout" => Some(Self::Stdout),
            b"stderr" => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// A line as the container printed it.
#[derive(Debug, PartialEq, Eq)]
pub struct Printed<'a> {
    pub content: Cow<'a, [u8]>,
    pub stream: Stream,
    pub time: u64,
    /// The line goes on in the next one of the same stream.
    pub is_part: bool,
}

/// `None` for a line that no runtime has written.
pub fn cri(line: &[u8]) -> Option<Printed<'_>> {
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(words.next()?).ok()?;
    let stream = Stream::parse(words.next()?)?;
    let is_part = match words.next()?.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    let time = time::parse(time, &TimeFormat::Auto)?;
    Some(Printed { content: Cow::Borrowed(words.next().unwrap_or_default()), stream, time, is_part })
}

pub fn docker(line: &[u8]) -> Option<Printed<'_>> {
    #[derive(Deserialize)]
    struct Written<'a> {
        #[serde(borrow)]
        log: Cow<'a, str>,
        #[serde(borrow, default)]
        stream: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        time: Option<Cow<'a, str>>,
    }
    let written: Written<'_> = serde_json::from_slice(line).ok()?;
    let stream = Stream::parse(written.stream.as_deref().unwrap_or("stdout").as_bytes())?;
    let time = written.time.and_then(|time| time::parse(&time, &TimeFormat::Auto)).unwrap_or(0);
    let is_part = !written.log.ends_with('\n');
    let content = match written.log {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim_end_matches(['\n', '\r']).as_bytes()),
        Cow::Owned(mut text) => {
            text.truncate(text.trim_end_matches(['\n', '\r']).len());
            Cow::Owned(text.into_bytes())
        }
    };
    Some(Printed { content, stream, time, is_part })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runtimes_put_around_a_line_is_taken_off() {
        let second = time::SECOND;
        let cases = [
            ("1970-01-01T00:00:01Z stdout F hello  world", Some(("hello  world", Stream::Stdout, false))),
            ("1970-01-01T00:00:01.0Z stderr P:x part", Some(("part", Stream::Stderr, true))),
            ("1970-01-01T00:00:01Z stdout F ", Some(("", Stream::Stdout, false))),
            ("1970-01-01T00:00:01Z stdout F", Some(("", Stream::Stdout, false))),
            ("1970-01-01T00:00:01Z stdin F x", None),
            ("hello world it is", None),
        ];
        for (line, expected) in cases {
            let found = cri(line.as_bytes());
            assert!(found.as_ref().is_none_or(|printed| printed.time == second));
            let found = found
                .map(|printed| (String::from_utf8(printed.content.into()).unwrap(), printed.stream, printed.is_part));
            assert_eq!(found, expected.map(|(text, stream, part)| (text.to_owned(), stream, part)), "{line}");
        }
        let line = br#"{"log":"a \"b\"\n","stream":"stderr","time":"1970-01-01T00:00:01Z"}"#;
        let found = docker(line).unwrap();
        assert_eq!(
            (&found.content[..], found.stream, found.time, found.is_part),
            (&b"a \"b\""[..], Stream::Stderr, second, false)
        );
        assert!(docker(br#"{"log":"part","stream":"stdout"}"#).unwrap().is_part);
        assert!(docker(b"{}").is_none() && docker(b"x").is_none());
    }
}
