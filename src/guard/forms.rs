//! In which forms a secret value is looked for: as it is, and as common encoders write it.
//!
//! A base64 form is the part that depends on the value alone, for each of the three places that the value can have in a longer text, so
//! that `user:VALUE` in base64 is found too. Each form is put together in one buffer that is wiped, and shown for the moment; nothing
//! here keeps one.

use zeroize::{Zeroize, Zeroizing};

/// How a value was written where it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Plain,
    Base64,
    Hex,
    Url,
    Json,
}

impl Encoding {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Base64 => "base64",
            Self::Hex => "hex",
            Self::Url => "url",
            Self::Json => "json",
        }
    }
}

/// One way to write a value.
pub(super) struct Form<'a> {
    pub text: &'a [u8],
    pub encoding: Encoding,
    /// In base64: the character before, or after, has bits of the value too.
    pub spills: Spills,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Spills {
    pub left: bool,
    pub right: bool,
}

/// Shows every form of `value` that differs from the ones before. The same text may come twice.
pub(super) fn each(value: &[u8], mut show: impl FnMut(Form<'_>)) {
    let (mut text, mut escaped) = (Buffer::for_value(value), Buffer::for_value(value));
    let mut give = |text: &[u8], encoding, spills| show(Form { text, encoding, spills });
    give(value, Encoding::Plain, Spills::default());
    for upper in [false, true] {
        text.filled(|out| hex(value, upper, out));
        give(&text.0, Encoding::Hex, Spills::default());
    }
    for (escape, encoding) in escapes() {
        text.filled(|out| escape.write(value, out));
        if text.0.as_slice() != value {
            give(&text.0, encoding, Spills::default());
        }
        // A document inside of a string of another one, as tools answer.
        if text.0.contains(&b'\\') && encoding == Encoding::Json {
            escaped.filled(|out| Escape::Json(JsonStyle::Least).write(&text.0, out));
            give(&escaped.0, Encoding::Json, Spills::default());
        }
    }
    for phase in 0..3 {
        for alphabet in [STANDARD, URL_SAFE] {
            let mut spills = Spills::default();
            text.filled(|out| spills = base64(value, phase, alphabet, out));
            give(&text.0, Encoding::Base64, spills);
            for escape in [
                Escape::Percent { kept: b"", upper: true, plus: false },
                Escape::Percent { kept: b"", upper: false, plus: false },
                Escape::Json(JsonStyle::Slash),
            ] {
                escaped.filled(|out| escape.write(&text.0, out));
                if *escaped.0 != *text.0 {
                    give(&escaped.0, Encoding::Base64, spills);
                }
            }
        }
    }
}

/// Has room for every form of a value, so that it never moves and leaves nothing behind.
struct Buffer(Zeroizing<Vec<u8>>);

impl Buffer {
    fn for_value(value: &[u8]) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(value.len() * 8 + 16)))
    }

    fn filled(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        self.0.zeroize();
        fill(&mut self.0);
    }
}

enum Escape {
    /// Letters, digits and `-._~` stay, and what is in `kept`.
    Percent {
        kept: &'static [u8],
        upper: bool,
        plus: bool,
    },
    /// Not even those stay.
    PercentAll {
        upper: bool,
    },
    Json(JsonStyle),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum JsonStyle {
    /// What has to be escaped (RFC 8259, section 7).
    Least,
    /// And `/`.
    Slash,
    /// And what is not ASCII, as UTF-16.
    Ascii { upper: bool },
    /// And what HTML knows, as Go writes it.
    Html,
    /// As .NET writes it.
    Cautious,
    /// Every character.
    All { upper: bool },
}

fn escapes() -> impl Iterator<Item = (Escape, Encoding)> {
    // RFC 3986; with `/` kept, as in a path; JavaScript's `encodeURIComponent` and `encodeURI`; forms (WHATWG URL, `+` for a blank).
    let sets: [(&'static [u8], bool); 5] =
        [(b"", false), (b"/", false), (b"!'()*", false), (b";,/?:@&=+$#!'()*", false), (b"*", true)];
    let percent = sets
        .into_iter()
        .flat_map(|(kept, plus)| [true, false].map(|upper| (Escape::Percent { kept, upper, plus }, Encoding::Url)));
    let all = [true, false].map(|upper| (Escape::PercentAll { upper }, Encoding::Url));
    let json = [
        JsonStyle::Least,
        JsonStyle::Slash,
        JsonStyle::Ascii { upper: false },
        JsonStyle::Ascii { upper: true },
        JsonStyle::Html,
        JsonStyle::Cautious,
        JsonStyle::All { upper: false },
        JsonStyle::All { upper: true },
    ];
    percent.chain(all).chain(json.map(|style| (Escape::Json(style), Encoding::Json)))
}

impl Escape {
    fn write(&self, value: &[u8], out: &mut Vec<u8>) {
        match *self {
            Self::Percent { kept, upper, plus } => {
                for byte in value {
                    match byte {
                        b' ' if plus => out.push(b'+'),
                        b'~' if plus => percent(*byte, upper, out),
                        b'-' | b'.' | b'_' | b'~' => out.push(*byte),
                        byte if byte.is_ascii_alphanumeric() || kept.contains(byte) => out.push(*byte),
                        byte => percent(*byte, upper, out),
                    }
                }
            }
            Self::PercentAll { upper } => value.iter().for_each(|byte| percent(*byte, upper, out)),
            Self::Json(style) => json(value, style, out),
        }
    }
}

fn percent(byte: u8, upper: bool, out: &mut Vec<u8>) {
    out.push(b'%');
    hex(&[byte], upper, out);
}

fn hex(value: &[u8], upper: bool, out: &mut Vec<u8>) {
    let digits: &[u8; 16] = if upper { b"0123456789ABCDEF" } else { b"0123456789abcdef" };
    for byte in value {
        out.extend_from_slice(&[digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]);
    }
}

/// Inside of a JSON string. Bytes that are no UTF-8 are taken as characters of Latin-1 where a style escapes them.
fn json(value: &[u8], style: JsonStyle, out: &mut Vec<u8>) {
    let ascii_only = !matches!(style, JsonStyle::Least | JsonStyle::Slash | JsonStyle::Html);
    match std::str::from_utf8(value) {
        Ok(text) => {
            let mut bytes = [0_u8; 4];
            for character in text.chars() {
                if character.is_ascii() {
                    json_ascii(character as u8, style, out);
                } else if ascii_only {
                    let mut units = [0_u16; 2];
                    character.encode_utf16(&mut units).iter().for_each(|unit| unicode(*unit, style, out));
                    units.zeroize();
                } else {
                    out.extend_from_slice(character.encode_utf8(&mut bytes).as_bytes());
                }
            }
            bytes.zeroize();
        }
        Err(_) => {
            for byte in value {
                match byte {
                    byte if byte.is_ascii() => json_ascii(*byte, style, out),
                    byte if ascii_only => unicode(u16::from(*byte), style, out),
                    byte => out.push(*byte),
                }
            }
        }
    }
}

fn json_ascii(byte: u8, style: JsonStyle, out: &mut Vec<u8>) {
    let short = match byte {
        b'"' => b'"',
        b'\\' => b'\\',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        8 => b'b',
        12 => b'f',
        b'/' if style == JsonStyle::Slash => b'/',
        _ => 0,
    };
    let spelled = match style {
        JsonStyle::All { .. } => true,
        JsonStyle::Html => matches!(byte, b'<' | b'>' | b'&'),
        JsonStyle::Cautious => matches!(byte, b'"' | b'<' | b'>' | b'&' | b'\'' | b'+' | b'`'),
        JsonStyle::Least | JsonStyle::Slash | JsonStyle::Ascii { .. } => false,
    };
    match (spelled, short) {
        (true, _) => unicode(u16::from(byte), style, out),
        (false, 0) if byte < 0x20 || byte == 0x7f && style == JsonStyle::Cautious => {
            unicode(u16::from(byte), style, out);
        }
        (false, 0) => out.push(byte),
        (false, short) => out.extend_from_slice(&[b'\\', short]),
    }
}

fn unicode(unit: u16, style: JsonStyle, out: &mut Vec<u8>) {
    let upper =
        matches!(style, JsonStyle::Cautious | JsonStyle::Ascii { upper: true } | JsonStyle::All { upper: true });
    out.extend_from_slice(b"\\u");
    hex(&unit.to_be_bytes(), upper, out);
}

/// The characters that depend on `value` alone when `phase` bytes stand before it in its group of three (RFC 4648, sections 4 and 5).
fn base64(value: &[u8], phase: usize, alphabet: &[u8; 64], out: &mut Vec<u8>) -> Spills {
    let first = [0, 4, 2][phase];
    let bits = value.len() * 8;
    let mut at = first;
    while at + 6 <= bits {
        let pair = u16::from_be_bytes([value[at / 8], value.get(at / 8 + 1).copied().unwrap_or(0)]);
        out.push(alphabet[usize::from(pair >> (10 - at % 8) & 63)]);
        at += 6;
    }
    Spills { left: first > 0, right: at < bits }
}

pub(super) fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_')
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
