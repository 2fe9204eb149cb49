//! Messages of syslog, as texts: RFC 5424, and RFC 3164 as programs write it.
//!
//! An old message's time has neither year nor zone. It was written a moment ago on this machine, so the zone is the one, in quarters of an
//! hour, that brings it nearest to now.

use super::time::{self, SECOND, TimeFormat, When};

/// What a message says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Message<'a> {
    pub facility: Option<u8>,
    pub severity: Option<u8>,
    pub time: u64,
    pub host: &'a str,
    pub program: &'a str,
    pub pid: &'a str,
    pub id: &'a str,
    /// Name of the element, of the parameter, and its value as it is written.
    pub data: Vec<(&'a str, &'a str, &'a str)>,
    pub text: &'a str,
}

/// Reads a message of either kind. What is neither is a text.
pub fn parse(text: &str, now: u64) -> Message<'_> {
    let text = text.trim_end_matches(['\n', '\0', '\r']);
    let mut message = Message { text, ..Message::default() };
    let Some((priority, rest)) = priority(text) else { return message };
    (message.facility, message.severity) = (Some(priority / 8), Some(priority % 8));
    message.text = rest;
    if let Some(read) = rest.strip_prefix("1 ").and_then(|rest| rfc5424(rest, &message)) {
        return read;
    }
    rfc3164(rest, now, message)
}

fn priority(text: &str) -> Option<(u8, &str)> {
    let (number, rest) = text.strip_prefix('<')?.split_once('>')?;
    let number: u8 = number.parse().ok().filter(|_| number.len() <= 3)?;
    (number < 192).then_some((number, rest))
}

/// `TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA [MSG]` (RFC 5424, section 6).
fn rfc5424<'a>(rest: &'a str, front: &Message<'a>) -> Option<Message<'a>> {
    let mut words = rest.splitn(6, ' ');
    let (time, host, program, pid, id) = (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
    let (data, text) = structured(words.next()?)?;
    Some(Message {
        facility: front.facility,
        severity: front.severity,
        time: time::parse(time, &TimeFormat::Auto).unwrap_or(0),
        host,
        program,
        pid,
        id,
        data,
        text: text.strip_prefix(' ').unwrap_or(text).trim_start_matches('\u{feff}'),
    })
}

type Parameters<'a> = Vec<(&'a str, &'a str, &'a str)>;

fn structured(text: &str) -> Option<(Parameters<'_>, &str)> {
    let mut data = Vec::new();
    if let Some(rest) = text.strip_prefix(NIL) {
        return Some((data, rest));
    }
    let mut rest = text;
    while let Some(element) = rest.strip_prefix('[') {
        let end = element.find([' ', ']'])?;
        let (name, mut inside) = element.split_at(end);
        while let Some(parameter) = inside.strip_prefix(' ') {
            let (key, quoted) = parameter.split_once("=\"")?;
            let mut is_escaped = false;
            let end = quoted.bytes().position(|byte| {
                let ends = byte == b'"' && !is_escaped;
                is_escaped = byte == b'\\' && !is_escaped;
                ends
            })?;
            if data.len() < MOST_PARAMETERS {
                data.push((name, key, &quoted[..end]));
            }
            inside = &quoted[end + 1..];
        }
        rest = inside.strip_prefix(']')?;
    }
    (!data.is_empty() || rest.len() < text.len()).then_some((data, rest))
}

/// A parameter's value as it was meant.
pub fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let escapes = character == '\\' && matches!(characters.peek(), Some('"' | '\\' | ']'));
        out.push(if escapes { characters.next().unwrap_or(character) } else { character });
    }
    out
}

/// `Mmm dd hh:mm:ss [HOSTNAME] TAG[PID]: MSG` (RFC 3164, section 4.1); libc's syslog(3) leaves the host name out.
fn rfc3164<'a>(rest: &'a str, now: u64, mut message: Message<'a>) -> Message<'a> {
    let mut rest = rest;
    if let Some((time, after)) = old_time(rest, now) {
        (message.time, rest) = (time, after);
    } else if let Some((first, after)) = rest.split_once(' ')
        && let Some(time) = time::parse(first, &TimeFormat::Auto).filter(|_| first.len() >= 19)
    {
        (message.time, rest) = (time, after);
    }
    let is_tag = |word: &str| word.ends_with(':');
    if let Some((host, after)) = rest.split_once(' ')
        && !is_tag(host)
        && after.split(' ').next().is_some_and(is_tag)
    {
        (message.host, rest) = (host, after);
    }
    if let Some((tag, after)) = rest.split_once(':')
        && !tag.is_empty()
        && tag.len() <= 64
        && !tag.contains(' ')
    {
        let (program, pid) =
            tag.split_once('[').map_or((tag, ""), |(program, pid)| (program, pid.trim_end_matches(']')));
        (message.program, message.pid, rest) = (program, pid, after.strip_prefix(' ').unwrap_or(after));
    }
    message.text = rest;
    message
}

fn old_time(text: &str, now: u64) -> Option<(u64, &str)> {
    let bytes = text.as_bytes();
    if bytes.len() < 16 || bytes[3] != b' ' || bytes[6] != b' ' || bytes[15] != b' ' || !text.is_char_boundary(16) {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to)?.trim_start().parse::<u64>().ok();
    let month = time::month_of(&bytes[..3])?;
    let year_of = |seconds: u64| 1970 + seconds as i64 / 31_556_952;
    let this_year = year_of(now / SECOND);
    // Around New Year the nearest of three.
    let candidates = (this_year - 1..=this_year + 1).filter_map(|year| {
        let when = When {
            year,
            month,
            day: number(4, 6)?,
            hour: number(7, 9)?,
            minute: number(10, 12)?,
            second: number(13, 15)?,
            ..When::default()
        };
        when.nanos_since_1970()
    });
    let time = candidates.min_by_key(|time| time.abs_diff(now))?;
    let quarters = (now as i128 - i128::from(time) + i128::from(QUARTER / 2)).div_euclid(i128::from(QUARTER));
    let zoned = if quarters.abs() <= MOST_QUARTERS {
        i128::from(time) + quarters * i128::from(QUARTER)
    } else {
        i128::from(time)
    };
    Some((u64::try_from(zoned).ok()?, &text[16..]))
}

/// Nothing is said here.
pub const NIL: &str = "-";
const QUARTER: u64 = 15 * 60 * SECOND;
/// Zones go to 14 hours.
const MOST_QUARTERS: i128 = 14 * 4;
const MOST_PARAMETERS: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_795_735_053 * SECOND;

    #[test]
    fn both_kinds_of_messages_are_read() {
        let new = "<165>1 2026-11-26T23:17:33.5Z host app 12 ID47 [a@1 k=\"v \\\"q\\\" \\]\" n=\"\"][b x=\"y\"] \u{feff}it happened";
        let read = parse(new, NOW);
        assert_eq!((read.facility, read.severity, read.time), (Some(20), Some(5), NOW + SECOND / 2));
        assert_eq!(
            (read.host, read.program, read.pid, read.id, read.text),
            ("host", "app", "12", "ID47", "it happened")
        );
        assert_eq!(read.data, [("a@1", "k", "v \\\"q\\\" \\]"), ("a@1", "n", ""), ("b", "x", "y")]);
        assert_eq!(unescaped(read.data[0].2), "v \"q\" ]");
        let nil = parse("<14>1 - - - - - -", NOW);
        assert_eq!((nil.time, nil.text), (0, ""));
        let old = parse("<34>Nov 26 23:17:03 host su[7]: failed: for x\n", NOW);
        assert_eq!(
            (old.time, old.host, old.program, old.pid, old.text),
            (NOW - 30 * SECOND, "host", "su", "7", "failed: for x")
        );
        // As libc writes it, in a zone five and a half hours ahead.
        let local = parse("<13>Nov 27 04:47:33 app: hello there", NOW);
        assert_eq!((local.time, local.host, local.program, local.text), (NOW, "", "app", "hello there"));
        let bare = parse("just a text", NOW);
        assert_eq!((bare.severity, bare.text), (None, "just a text"));
    }

    proptest! {
        #[test]
        fn no_message_breaks_it(text in "(<[0-9]{1,4}>)?(1 )?(- |[a-zA-Z0-9:. ]{0,20}|Nov 26 23:17:33 )*(\\[[a-z]+( [a-z]=\"[a-z\\\\\"]{0,3}\")*\\]?)?.{0,20}") {
            parse(&text, NOW);
        }
    }
}
