//! What programs call a severity, as OpenTelemetry counts it (logs data model, "Severity Fields").

use std::collections::BTreeMap;

/// The first number of each of OpenTelemetry's ranges, and what lies within.
pub const TRACE: u8 = 1;
pub const DEBUG: u8 = 5;
pub const INFO: u8 = 9;
pub const NOTICE: u8 = 10;
pub const WARN: u8 = 13;
pub const ERROR: u8 = 17;
pub const CRITICAL: u8 = 18;
pub const ALERT: u8 = 19;
pub const FATAL: u8 = 21;

/// Names of the configuration, in lower case, before those that everybody knows.
pub type Names = BTreeMap<String, u8>;

/// 0 for a name that nobody knows.
pub fn of_text(text: &str, own: &Names) -> u8 {
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || matches!(c, '[' | ']' | '<' | '>'));
    if text.len() > LONGEST {
        return 0;
    }
    if !own.is_empty()
        && let Some(number) = own.get(&text.to_ascii_lowercase())
    {
        return *number;
    }
    let mut lower = [0_u8; LONGEST];
    for (to, from) in lower.iter_mut().zip(text.bytes()) {
        *to = from.to_ascii_lowercase();
    }
    match &lower[..text.len()] {
        b"info" | b"information" | b"i" | b"inf" | b"informational" => INFO,
        b"error" | b"err" | b"e" | b"severe" | b"eror" => ERROR,
        b"warn" | b"warning" | b"w" | b"wrn" => WARN,
        b"debug" | b"d" | b"dbg" | b"fine" | b"config" => DEBUG,
        b"trace" | b"t" | b"trc" | b"verbose" | b"finer" | b"finest" | b"silly" => TRACE,
        b"notice" | b"success" | b"http" => NOTICE,
        b"crit" | b"critical" | b"c" => CRITICAL,
        b"alert" => ALERT,
        b"fatal" | b"f" | b"ftl" | b"emerg" | b"emergency" | b"panic" | b"dpanic" | b"off" => FATAL,
        digits if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => text.parse().map_or(0, of_number),
        _ => 0,
    }
}

/// Below 8 it is syslog's (RFC 5424, section 6.2.1), from 10 on that of the loggers that count in tens.
pub fn of_number(number: i64) -> u8 {
    match number {
        0..=7 => of_syslog(number as u8),
        10..20 => TRACE,
        20..30 => DEBUG,
        30..40 => INFO,
        40..50 => WARN,
        50..60 => ERROR,
        60.. => FATAL,
        _ => 0,
    }
}

pub fn of_syslog(severity: u8) -> u8 {
    match severity {
        0 => FATAL,
        1 => ALERT,
        2 => CRITICAL,
        3 => ERROR,
        4 => WARN,
        5 => NOTICE,
        6 => INFO,
        _ => DEBUG,
    }
}

/// OpenTelemetry's own name of a range, where the source has none.
pub fn name_of(number: u8) -> &'static str {
    match number {
        1..=4 => "TRACE",
        5..=8 => "DEBUG",
        9..=12 => "INFO",
        13..=16 => "WARN",
        17..=20 => "ERROR",
        21..=24 => "FATAL",
        _ => "",
    }
}

const LONGEST: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_many_loggers_are_known_and_own_ones_win() {
        let none = Names::new();
        for (text, expected) in [
            ("INFO", INFO),
            ("Warning", WARN),
            ("[ERROR]", ERROR),
            ("crit", CRITICAL),
            ("FATAL", FATAL),
            ("30", INFO),
            ("3", ERROR),
            ("quux", 0),
            ("", 0),
            ("a name that is much too long", 0),
        ] {
            assert_eq!(of_text(text, &none), expected, "{text}");
        }
        let own = Names::from([("quux".to_owned(), ALERT), ("info".to_owned(), DEBUG)]);
        assert_eq!((of_text("Quux", &own), of_text("INFO", &own)), (ALERT, DEBUG));
    }
}
