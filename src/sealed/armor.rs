//! The form in text: PEM (RFC 7468, strictly) with a label of its own. What is encoded is ciphertext, so nothing here is secret.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::SealError;

/// Whether it begins so, blank lines before it aside.
pub(super) fn is_armored(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(BEGIN.as_bytes())
}

pub(super) fn encode(binary: &[u8]) -> String {
    let body = STANDARD.encode(binary);
    let mut text = String::with_capacity(body.len() + body.len() / COLUMNS + 2 * BEGIN.len() + 4);
    text.push_str(BEGIN);
    text.push('\n');
    for line in body.as_bytes().chunks(COLUMNS) {
        // Base64 is ASCII, so that each byte is a character.
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str(END);
    text.push('\n');
    text
}

pub(super) fn decode(armored: &[u8]) -> Result<Vec<u8>, SealError> {
    let text = std::str::from_utf8(armored).map_err(|_| SealError::Damaged("the armor is not text"))?;
    let body = text.trim().strip_prefix(BEGIN).and_then(|text| text.strip_suffix(END));
    let body = body.ok_or(SealError::Damaged("the armor does not end"))?;
    let lines: Vec<&str> = body.trim_matches(['\r', '\n']).lines().collect();
    let last = lines.len().saturating_sub(1);
    let well_laid = lines.iter().enumerate().all(|(number, line)| match number == last {
        true => (1..=COLUMNS).contains(&line.len()),
        false => line.len() == COLUMNS,
    });
    if !well_laid {
        return Err(SealError::Damaged("a line of the armor has the wrong length"));
    }
    STANDARD.decode(lines.concat()).map_err(|_| SealError::Damaged("the armor is not base64"))
}

const BEGIN: &str = "-----BEGIN AGE ENCRYPTED FILE-----";
const END: &str = "-----END AGE ENCRYPTED FILE-----";
const COLUMNS: usize = 64;
