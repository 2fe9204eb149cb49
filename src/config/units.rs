//! The written forms of durations, sizes, rates, file modes and signals.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::mcp::settings::policy::Rate;

/// `250ms`, `30s`, `5m`, `1h`, `30d`: a whole number above 0 and a unit. At most 10,000 days.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis_each = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let millis = number.checked_mul(millis_each)?;
    (1..=MAX_MILLIS).contains(&millis).then(|| Duration::from_millis(millis))
}

/// `512B`, `64KiB`, `1MiB`: a whole number above 0 and a unit. At most 64 MiB.
pub fn parse_size(text: &str) -> Option<usize> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let each = match unit {
        "B" => 1,
        "KiB" => 1024,
        "MiB" => 1024 * 1024,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(each).filter(|bytes| (1..=MAX_BYTES).contains(bytes))
}

/// `10/s`, `100/m`, `1000/h`: a whole number above 0 in each second, minute or hour.
pub fn parse_rate(text: &str) -> Option<Rate> {
    let (count, unit) = text.split_once('/')?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let count: NonZeroU32 = count.bytes().all(|digit| digit.is_ascii_digit()).then(|| count.parse().ok())??;
    Some(Rate { count, period: Duration::from_secs(seconds) })
}

/// Three or four octal digits, such as `0600`. The owner must be able to read, and nobody but the owner may write.
pub fn parse_mode(text: &str) -> Option<u32> {
    let octal = (3..=4).contains(&text.len()) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mode = octal.then(|| u32::from_str_radix(text, 8).ok()).flatten()?;
    (mode <= 0o777 && mode & 0o400 != 0).then_some(mode)
}

/// A signal's number on this system, by its name with or without `SIG`.
pub fn parse_signal(text: &str) -> Option<i32> {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

const SIGNALS: [(&str, i32); 9] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("TERM", libc::SIGTERM),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("WINCH", libc::SIGWINCH),
    ("CONT", libc::SIGCONT),
    ("KILL", libc::SIGKILL),
];
const MAX_BYTES: usize = 64 * 1024 * 1024;
const MAX_MILLIS: u64 = 10_000 * 86_400_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_whole_number_and_a_unit() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("30d"), Some(Duration::from_secs(30 * 86_400)));
        for wrong in ["", "30", "s", "1.5s", "-1s", "30 s", "30sec", "0s", "99999999999999999999s", "10001d"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_have_a_whole_number_and_a_unit() {
        assert_eq!(
            (parse_size("512B"), parse_size("64KiB"), parse_size("2MiB")),
            (Some(512), Some(65_536), Some(2_097_152))
        );
        for wrong in ["", "1", "B", "0B", "1.5MiB", "1MB", "65MiB", "99999999999999999999B"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn rates_have_a_whole_number_and_a_period() {
        let rate = |text| parse_rate(text).map(|rate| (rate.count.get(), rate.period.as_secs()));
        assert_eq!((rate("10/s"), rate("1/m"), rate("500/h")), (Some((10, 1)), Some((1, 60)), Some((500, 3600))));
        for wrong in ["", "10", "/s", "0/s", "-1/s", "+1/s", "1/d", "1.5/s", "99999999999/s"] {
            assert_eq!(rate(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn modes_are_octal_and_readable_by_the_owner() {
        assert_eq!(parse_mode("0600"), Some(0o600));
        assert_eq!(parse_mode("640"), Some(0o640));
        for wrong in ["600x", "0888", "06", "7777", "0077", ""] {
            assert_eq!(parse_mode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn signals_have_names() {
        assert_eq!(parse_signal("SIGHUP"), Some(1));
        assert_eq!(parse_signal("USR1"), Some(libc::SIGUSR1));
        assert_eq!(parse_signal("SIGNOTHING"), None);
    }
}
