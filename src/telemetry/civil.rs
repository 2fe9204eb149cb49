//! Times as people and file names write them, in UTC: RFC 3339 with microseconds, and a stamp that sorts as a text.

use std::time::{SystemTime, UNIX_EPOCH};

/// Appends the time as RFC 3339 in UTC with microseconds. A time before 1970 is written as 1970.
pub fn write_rfc3339(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let [year, month, day, hour, minute, second] = fields(since.as_secs());
    write_number(out, year, 4);
    for (separator, number) in [(b'-', month), (b'-', day), (b'T', hour), (b':', minute), (b':', second)] {
        out.push(separator);
        write_number(out, number, 2);
    }
    out.push(b'.');
    write_number(out, u64::from(since.subsec_micros()), 6);
    out.push(b'Z');
}

/// `20261126T235959Z`: the basic format of ISO 8601. Stamps of the years 1970 to 9999 sort as their times do.
pub fn stamp(time: SystemTime) -> String {
    let [year, month, day, hour, minute, second] =
        fields(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Whether a text is what `stamp` makes.
pub fn is_stamp(text: &str) -> bool {
    let shape = |(index, byte): (usize, u8)| match index {
        8 => byte == b'T',
        15 => byte == b'Z',
        _ => byte.is_ascii_digit(),
    };
    text.len() == STAMP_BYTES && text.bytes().enumerate().all(shape)
}

/// The length of a stamp.
pub const STAMP_BYTES: usize = 16;

/// Year, month, day, hour, minute and second, for seconds since 1970.
fn fields(seconds: u64) -> [u64; 6] {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date_of(days);
    [year, month, day, second / 3600, second / 60 % 60, second % 60]
}

fn write_number(out: &mut Vec<u8>, number: u64, digits: u32) {
    for place in (0..digits).rev() {
        // A single decimal digit fits.
        out.push(b'0' + (number / 10_u64.pow(place) % 10) as u8);
    }
}

/// Year, month and day of the Gregorian calendar, for days since 1970-01-01. Years are counted from March, so that the leap day comes last.
fn date_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        let date = |days| date_of(days);
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(19_782), (2024, 2, 29));
        assert_eq!(date(20_088), (2024, 12, 31));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
    }

    #[test]
    fn a_stamp_is_known_again() {
        let made = stamp(UNIX_EPOCH + Duration::from_secs(1_793_534_401));
        assert_eq!(made, "20261101T120001Z");
        assert!(is_stamp(&made));
        assert!(!is_stamp("20261101T120001") && !is_stamp("20261101-120001Z") && !is_stamp("2026110aT120001Z"));
    }
}
