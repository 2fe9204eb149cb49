//! Times as programs write them, in nanoseconds since 1970.
//!
//! A time without a zone is taken as UTC. What cannot be read is no time, and then the moment at which the line was read stands alone.

/// How times are written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TimeFormat {
    /// RFC 3339 and what is like it, or a number that its size tells seconds, milliseconds, microseconds or nanoseconds.
    #[default]
    Auto,
    /// As strptime(3): `%Y %m %d %H %M %S %f %z %b %y %e %j %s` and literals.
    Pattern(String),
}

pub fn parse(text: &str, format: &TimeFormat) -> Option<u64> {
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '[' || c == ']');
    match format {
        TimeFormat::Auto => like_rfc3339(text.as_bytes()).or_else(|| of_number_text(text)),
        TimeFormat::Pattern(pattern) => by_pattern(text.as_bytes(), pattern.as_bytes()),
    }
}

/// A number of seconds, or of a thousandth, a millionth, a billionth of it.
pub fn of_number(number: f64) -> Option<u64> {
    if !number.is_finite() || number <= 0.0 {
        return None;
    }
    let factor = if number < 1e11 {
        1e9
    } else if number < 1e14 {
        1e6
    } else if number < 1e17 {
        1e3
    } else {
        1.0
    };
    Some((number * factor) as u64)
}

/// As `of_number`, without the rounding of a float.
pub fn of_integer(number: u64) -> Option<u64> {
    let factor = match number {
        0 => return None,
        1..100_000_000_000 => 1_000_000_000,
        100_000_000_000..100_000_000_000_000 => 1_000_000,
        100_000_000_000_000..100_000_000_000_000_000 => 1_000,
        _ => 1,
    };
    number.checked_mul(factor)
}

fn of_number_text(text: &str) -> Option<u64> {
    match text.split_once('.') {
        Some((seconds, fraction)) if seconds.len() <= 11 && !fraction.is_empty() => {
            let seconds: u64 = digits(seconds.as_bytes())?;
            let nanos = fraction_nanos(fraction.as_bytes()).filter(|(_, used)| *used == fraction.len())?.0;
            seconds.checked_mul(SECOND)?.checked_add(nanos)
        }
        Some(_) => of_number(text.parse().ok()?),
        None => of_integer(digits(text.as_bytes())?),
    }
}

/// `2026-11-26T23:17:33.123456789+01:00`; also with a blank or a slash in their places, a comma before the fraction, and without a zone.
fn like_rfc3339(text: &[u8]) -> Option<u64> {
    if text.len() < 19
        || !matches!(text[4], b'-' | b'/')
        || text[7] != text[4]
        || !matches!(text[10], b'T' | b't' | b' ' | b'_')
    {
        return None;
    }
    if text[13] != b':' || text[16] != b':' {
        return None;
    }
    let two = |at: usize| digits(&text[at..at + 2]);
    let mut when = When {
        year: digits(&text[..4])? as i64,
        month: two(5)?,
        day: two(8)?,
        hour: two(11)?,
        minute: two(14)?,
        second: two(17)?,
        ..When::default()
    };
    let mut rest = &text[19..];
    if let Some(fraction) = rest.strip_prefix(b".").or_else(|| rest.strip_prefix(b",")) {
        let (nanos, used) = fraction_nanos(fraction)?;
        when.nanos = nanos;
        rest = &fraction[used..];
    }
    when.offset = zone(rest.trim_ascii())?;
    when.nanos_since_1970()
}

/// Of a fraction's digits, and how many they are.
fn fraction_nanos(text: &[u8]) -> Option<(u64, usize)> {
    let used = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if used == 0 {
        return None;
    }
    let mut nanos = digits(&text[..used.min(9)])?;
    for _ in used.min(9)..9 {
        nanos *= 10;
    }
    Some((nanos, used))
}

/// Seconds east of UTC.
fn zone(text: &[u8]) -> Option<i64> {
    match text {
        b"" | b"Z" | b"z" | b"UTC" | b"GMT" => Some(0),
        [sign @ (b'+' | b'-'), rest @ ..] => {
            let (hours, minutes) = match rest {
                [a, b] => (digits(&[*a, *b])?, 0),
                [a, b, b':', c, d] | [a, b, c, d] => (digits(&[*a, *b])?, digits(&[*c, *d])?),
                _ => return None,
            };
            let seconds = (hours * 3600 + minutes * 60) as i64;
            (hours < 24 && minutes < 60).then_some(if *sign == b'-' { -seconds } else { seconds })
        }
        _ => None,
    }
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0')))
}

#[derive(Debug, Clone, Copy)]
pub struct When {
    pub year: i64,
    pub month: u64,
    pub day: u64,
    pub hour: u64,
    pub minute: u64,
    pub second: u64,
    pub nanos: u64,
    /// Seconds east of UTC.
    pub offset: i64,
}

impl Default for When {
    fn default() -> Self {
        Self { year: 1970, month: 1, day: 1, hour: 0, minute: 0, second: 0, nanos: 0, offset: 0 }
    }
}

impl When {
    pub fn nanos_since_1970(self) -> Option<u64> {
        let is_a_time = (1970..=2262).contains(&self.year)
            && (1..=12).contains(&self.month)
            && (1..=31).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            // A leap second is the first of the next minute.
            && self.second <= 60;
        if !is_a_time {
            return None;
        }
        let days = days_since_1970(self.year, self.month as i64, self.day as i64);
        let seconds = days * 86_400 + (self.hour * 3600 + self.minute * 60 + self.second) as i64 - self.offset;
        u64::try_from(seconds).ok()?.checked_mul(SECOND)?.checked_add(self.nanos)
    }
}

/// Days of the Gregorian calendar, counted in years that begin with March, so that the leap day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// `None` for a pattern with a letter that is not known.
pub fn check_pattern(pattern: &str) -> Option<()> {
    let mut letters = pattern.bytes();
    while let Some(byte) = letters.next() {
        if byte == b'%'
            && !matches!(
                letters.next(),
                Some(b'Y' | b'y' | b'm' | b'd' | b'e' | b'H' | b'M' | b'S' | b'f' | b'z' | b'b' | b'j' | b's' | b'%')
            )
        {
            return None;
        }
    }
    Some(())
}

fn by_pattern(text: &[u8], pattern: &[u8]) -> Option<u64> {
    let (mut when, mut rest, mut letters) = (When::default(), text, pattern.iter());
    let mut day_of_year = None;
    while let Some(letter) = letters.next() {
        if *letter != b'%' {
            rest = rest.strip_prefix(&[*letter])?;
            continue;
        }
        let mut number = |most: usize| {
            let trimmed = rest.trim_ascii_start();
            let count = trimmed.iter().take(most).take_while(|byte| byte.is_ascii_digit()).count();
            let value = digits(&trimmed[..count])?;
            rest = &trimmed[count..];
            Some(value)
        };
        match letters.next()? {
            b'Y' => when.year = number(4)? as i64,
            b'y' => when.year = 2000 + number(2)? as i64,
            b'm' => when.month = number(2)?,
            b'd' | b'e' => when.day = number(2)?,
            b'H' => when.hour = number(2)?,
            b'M' => when.minute = number(2)?,
            b'S' => when.second = number(2)?,
            b'j' => day_of_year = Some(number(3)?),
            b's' => return number(12)?.checked_mul(SECOND),
            b'f' => {
                let (nanos, used) = fraction_nanos(rest)?;
                (when.nanos, rest) = (nanos, &rest[used..]);
            }
            b'b' => {
                when.month = month_of(rest.get(..3)?)?;
                rest = &rest[3..];
            }
            b'z' => {
                let used = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
                (when.offset, rest) = (zone(&rest[..used])?, &rest[used..]);
            }
            b'%' => rest = rest.strip_prefix(b"%")?,
            _ => return None,
        }
    }
    let nanos = when.nanos_since_1970()?;
    Some(nanos + day_of_year.map_or(0, |day| day.saturating_sub(1).min(366) * 86_400 * SECOND))
}

pub fn month_of(name: &[u8]) -> Option<u64> {
    const NAMES: [&[u8; 3]; 12] =
        [b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec"];
    NAMES.iter().position(|month| name.eq_ignore_ascii_case(&month[..])).map(|at| at as u64 + 1)
}

pub const SECOND: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn auto(text: &str) -> Option<u64> {
        parse(text, &TimeFormat::Auto)
    }

    #[test]
    fn times_are_read_in_the_forms_of_many_programs() {
        let second = 1_795_735_053 * SECOND;
        for (text, expected) in [
            ("2026-11-26T23:17:33Z", second),
            ("2026-11-26 23:17:33,5", second + SECOND / 2),
            ("[2026/11/26 23:17:33.000000001]", second + 1),
            ("2026-11-27T00:17:33+01:00", second),
            ("2026-11-26T18:17:33.25-0500", second + SECOND / 4),
            ("1795735053", second),
            ("1795735053.25", second + SECOND / 4),
            ("1795735053250", second + SECOND / 4),
            ("1795735053250000", second + SECOND / 4),
            ("1795735053250000001", second + SECOND / 4 + 1),
        ] {
            assert_eq!(auto(text), Some(expected), "{text}");
        }
        for text in ["", "yesterday", "2026-13-26T23:17:33Z", "2026-11-26T23:17:33+99:99", "0", "-1", "1e400"] {
            assert_eq!(auto(text), None, "{text}");
        }
        let by = |pattern: &str, text: &str| parse(text, &TimeFormat::Pattern(pattern.into()));
        assert_eq!(by("%d/%b/%Y:%H:%M:%S %z", "26/Nov/2026:23:17:33 +0000"), Some(second));
        assert_eq!(by("%y%m%d %H:%M:%S.%f", "261126 23:17:33.5"), Some(second + SECOND / 2));
        assert_eq!(by("%Y %j", "2026 330"), auto("2026-11-26T00:00:00Z"));
        assert_eq!(by("%Y", "x"), None);
        assert!(check_pattern("%Y-%q").is_none() && check_pattern("%Y%%").is_some());
    }

    proptest! {
        #[test]
        fn no_text_breaks_it_and_whole_seconds_come_back(text in ".{0,40}", pattern in "(%[YmdHMSfzbjs]| |:){0,8}", seconds in 1_u64..9_000_000_000) {
            auto(&text);
            parse(&text, &TimeFormat::Pattern(pattern));
            prop_assert_eq!(of_integer(seconds), Some(seconds * SECOND));
            let days = (seconds / 86_400) as i64;
            let written = httpdate::HttpDate::from(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)).to_string();
            let read = parse(&written, &TimeFormat::Pattern("%b".into()));
            prop_assert!(read.is_none() || days >= 0);
            // `Thu, 26 Nov 2026 23:17:33 GMT`
            prop_assert_eq!(by_pattern(&written.as_bytes()[5..], b"%d %b %Y %H:%M:%S %z"), Some(seconds * SECOND));
        }
    }
}
