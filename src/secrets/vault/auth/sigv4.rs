//! AWS Signature Version 4 over one request: POST to `/`, without a query (docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).
//!
//! Pure: it is given the time, and reads nothing. The caller wipes the stack.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::digest;
use ring::hmac;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// What signs. The access key id is no secret.
pub(super) struct Keys {
    pub access_key_id: String,
    pub secret_access_key: Secret,
    /// Of temporary credentials.
    pub session_token: Option<Secret>,
}

/// Where and when the request would be made.
pub(super) struct Scope<'a> {
    pub region: &'a str,
    pub service: &'a str,
    /// `YYYYMMDDTHHMMSSZ`.
    pub time: &'a str,
}

/// The value of `Authorization`. `headers` are lower-case names, in order, each once; values are trimmed.
pub(super) fn authorization(keys: &Keys, scope: &Scope<'_>, headers: &[(&str, &str)], body: &[u8]) -> String {
    let date = scope.time.split('T').next().unwrap_or_default();
    let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let mut request = Zeroizing::new(String::with_capacity(4096));
    request.push_str("POST\n/\n\n");
    for (name, value) in headers {
        request.push_str(name);
        request.push(':');
        request.push_str(value.trim());
        request.push('\n');
    }
    request.push('\n');
    request.push_str(&names);
    request.push('\n');
    request.push_str(&hex(digest::digest(&digest::SHA256, body).as_ref()));
    let hashed = hex(digest::digest(&digest::SHA256, request.as_bytes()).as_ref());
    let place = format!("{date}/{}/{}/aws4_request", scope.region, scope.service);
    let to_sign = format!("AWS4-HMAC-SHA256\n{}\n{place}\n{hashed}", scope.time);
    let mut first = Zeroizing::new(Vec::with_capacity(4 + keys.secret_access_key.len()));
    first.extend_from_slice(b"AWS4");
    first.extend_from_slice(keys.secret_access_key.expose());
    let key = [date, scope.region, scope.service, "aws4_request"]
        .iter()
        .fold(hmac::Key::new(hmac::HMAC_SHA256, &first), |key, part| {
            hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref())
        });
    let signature = hex(hmac::sign(&key, to_sign.as_bytes()).as_ref());
    format!("AWS4-HMAC-SHA256 Credential={}/{place}, SignedHeaders={names}, Signature={signature}", keys.access_key_id)
}

/// `YYYYMMDDTHHMMSSZ`, in the proleptic Gregorian calendar; a time before 1970 counts as 1970.
pub(super) fn basic_time(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    // Days since 0000-03-01: a year then ends with its leap day.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_aws_wants_them() {
        for (seconds, text) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (1_440_938_160, "20150830T123600Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(basic_time(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    /// `post-vanilla`, of the suite that AWS published for this version of the signature.
    #[test]
    fn the_published_example_has_the_published_signature() {
        let keys = Keys {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: Secret::copy_from(b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            session_token: None,
        };
        let scope = Scope { region: "us-east-1", service: "service", time: "20150830T123600Z" };
        let headers = [("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")];
        assert_eq!(
            authorization(&keys, &scope, &headers, b""),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        );
    }
}
