//! The shapes of credentials that vendors document: a fixed beginning and what may follow.

use std::ops::Range;

pub struct Shape {
    /// What stands in the mark, and in the metric.
    pub name: &'static str,
    pub begins: &'static str,
    follows: Follows,
}

enum Follows {
    /// So many characters of a kind, all of which are the credential with its beginning.
    Run(Class, usize, usize),
    /// As `Run`, with lower case, upper case and a digit in it: the beginning alone says too little.
    Mixed(Class, usize, usize),
    /// Quotes and separators, and then a run that alone is the credential.
    Value(Class, usize, usize),
    /// Two more parts, with dots between them (RFC 7519).
    Jwt,
    /// To the end of the block (RFC 7468).
    Pem,
    /// `user:password@`, of which the password is the credential.
    Password,
}

#[derive(Clone, Copy)]
enum Class {
    Upper,
    Hex,
    Alphanumeric,
    /// And `-` and `_`.
    Word,
    /// And `.`.
    Dotted,
    /// Of base64 and of a bearer token (RFC 6750): `-._~+/=` too, and `%`.
    Token,
}

use Class::{Alphanumeric, Dotted, Hex, Token, Upper, Word};
use Follows::{Jwt, Mixed, Password, Pem, Run, Value};

const fn shape(name: &'static str, begins: &'static str, follows: Follows) -> Shape {
    Shape { name, begins, follows }
}

impl Class {
    fn has(self, byte: u8) -> bool {
        match self {
            Upper => byte.is_ascii_uppercase() || byte.is_ascii_digit(),
            Hex => byte.is_ascii_hexdigit(),
            Alphanumeric => byte.is_ascii_alphanumeric(),
            Word => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'),
            Dotted => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'),
            Token => {
                byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'+' | b'/' | b'=' | b'%')
            }
        }
    }

    /// How many bytes from `at` on are of the kind, up to one more than `most`.
    fn run(self, text: &[u8], at: usize, most: usize) -> usize {
        text[at..].iter().take(most + 1).take_while(|byte| self.has(**byte)).count()
    }
}

impl Shape {
    /// The beginning is not the middle of a longer word. An escape before it, such as `\n` or `%3D`, is not a word.
    pub fn stands_alone(&self, text: &[u8], start: usize) -> bool {
        if matches!(self.follows, Password | Pem | Value(..)) {
            return true;
        }
        let Some(before) = start.checked_sub(1).map(|at| text[at]) else { return true };
        let is_word = before.is_ascii_alphanumeric() || matches!(before, b'-' | b'_');
        let escape = start >= 2 && text[start - 2] == b'\\' && b"nrtbf".contains(&before)
            || start >= 3 && text[start - 3] == b'%' && text[start - 2..start].iter().all(u8::is_ascii_hexdigit);
        !is_word || escape
    }

    /// What of the text is the credential, when the beginning stands at `start`.
    pub fn extent(&self, text: &[u8], start: usize, pem: &mut PemEnds) -> Option<Range<usize>> {
        let after = start + self.begins.len();
        let run = |class: Class, from: usize, least: usize, most: usize| {
            let length = class.run(text, from, most);
            (least..=most).contains(&length).then_some(from + length)
        };
        match self.follows {
            Run(class, least, most) => Some(start..run(class, after, least, most)?),
            Mixed(class, least, most) => {
                let end = run(class, after, least, most)?;
                let kinds = [u8::is_ascii_lowercase, u8::is_ascii_uppercase, u8::is_ascii_digit];
                kinds.iter().all(|kind| text[after..end].iter().any(kind)).then_some(start..end)
            }
            Value(class, least, most) => {
                let gap = text[after..].iter().take(MOST_GAP).take_while(|byte| b"\\\"'=: ".contains(byte)).count();
                Some(after + gap..run(class, after + gap, least, most)?)
            }
            Jwt => {
                let mut end = run(Word, after, 8, LONGEST)?;
                for least in [2, 0] {
                    let dot = text.get(end).filter(|byte| **byte == b'.').map(|_| end + 1)?;
                    end = run(Word, dot, least, LONGEST)?;
                }
                Some(start..end)
            }
            Pem => pem.block(text, start, after),
            Password => password(text, after),
        }
    }
}

/// Where PEM blocks end. It remembers where none does, so that many beginnings do not cost a search each.
#[derive(Default)]
pub struct PemEnds {
    none_before: usize,
}

impl PemEnds {
    fn block(&mut self, text: &[u8], start: usize, after: usize) -> Option<Range<usize>> {
        let label = text[after..].iter().take(MOST_LABEL).take_while(|byte| **byte != b'-').count();
        if !text[after..after + label].windows(PRIVATE.len()).any(|part| part == PRIVATE) {
            return None;
        }
        let body = after + label;
        let until = text.len().min(body + LONGEST_PEM);
        if until > self.none_before {
            if let Some(end) = memchr::memmem::find(&text[body..until], b"-----END ") {
                let end = body + end + "-----END ".len();
                let label = text[end..].iter().take(MOST_LABEL).take_while(|byte| **byte != b'-').count();
                let dashes = text[end + label..].iter().take(5).take_while(|byte| **byte == b'-').count();
                return Some(start..end + label + dashes);
            }
            self.none_before = until;
        }
        // It is cut off: what can be part of the block goes.
        let of_block = |byte: &u8| Token.has(*byte) || matches!(byte, b'\\' | b'\n' | b'\r' | b' ' | b':' | b',');
        Some(start..body + text[body..until].iter().take_while(|byte| of_block(byte)).count())
    }
}

fn password(text: &[u8], after: usize) -> Option<Range<usize>> {
    let ends =
        |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'/' | b'"' | b'\'' | b'<' | b'>' | b'\\' | b'?' | b'#');
    let user = text[after..].iter().take(MOST_USER).position(|byte| *byte == b':' || *byte == b'@' || ends(*byte))?;
    if text[after + user] != b':' {
        return None;
    }
    let from = after + user + 1;
    let length = text[from..].iter().take(MOST_USER).position(|byte| *byte == b'@' || ends(*byte))?;
    // What stands there already instead of a password: a mark, a placeholder.
    let blank = length == 0 || matches!(text[from], b'[' | b'$' | b'{' | b'*');
    (text[from + length] == b'@' && !blank).then_some(from..from + length)
}

const PRIVATE: &[u8] = b"PRIVATE KEY";
const MOST_LABEL: usize = 40;
const MOST_GAP: usize = 8;
const MOST_USER: usize = 256;
const LONGEST: usize = 16 * 1024;
const LONGEST_PEM: usize = 16 * 1024;

/// Of beginnings that are also the beginning of another one, the longer is taken where it stands.
pub const SHAPES: &[Shape] = &[
    shape("age-secret-key", "AGE-SECRET-KEY-1", Run(Upper, 50, 80)),
    shape("anthropic-key", "sk-ant-", Run(Word, 20, 200)),
    shape("atlassian-token", "ATATT3", Run(Token, 50, 400)),
    shape("aws-access-key", "AKIA", Run(Upper, 16, 16)),
    shape("aws-access-key", "ASIA", Run(Upper, 16, 16)),
    shape("aws-secret-key", "aws_secret_access_key", Value(Token, 40, 40)),
    shape("aws-secret-key", "AWS_SECRET_ACCESS_KEY", Value(Token, 40, 40)),
    shape("aws-secret-key", "SecretAccessKey", Value(Token, 40, 40)),
    shape("aws-secret-key", "secretAccessKey", Value(Token, 40, 40)),
    shape("aws-session-token", "aws_session_token", Value(Token, 100, 4096)),
    shape("aws-session-token", "AWS_SESSION_TOKEN", Value(Token, 100, 4096)),
    shape("aws-session-token", "SessionToken", Value(Token, 100, 4096)),
    shape("azure-key", "AccountKey=", Value(Token, 40, 120)),
    shape("azure-key", "SharedAccessKey=", Value(Token, 40, 120)),
    shape("azure-signature", "&sig=", Value(Token, 40, 120)),
    shape("basic-credentials", "Authorization: Basic ", Value(Token, 8, 4096)),
    shape("bearer-token", "Authorization: Bearer ", Value(Token, 8, LONGEST)),
    shape("databricks-token", "dapi", Run(Hex, 32, 32)),
    shape("digitalocean-token", "dop_v1_", Run(Hex, 64, 64)),
    shape("digitalocean-token", "doo_v1_", Run(Hex, 64, 64)),
    shape("digitalocean-token", "dor_v1_", Run(Hex, 64, 64)),
    shape("docker-token", "dckr_pat_", Run(Word, 20, 60)),
    shape("doppler-token", "dp.pt.", Run(Alphanumeric, 40, 50)),
    shape("github-token", "ghp_", Run(Alphanumeric, 36, 255)),
    shape("github-token", "gho_", Run(Alphanumeric, 36, 255)),
    shape("github-token", "ghu_", Run(Alphanumeric, 36, 255)),
    shape("github-token", "ghs_", Run(Alphanumeric, 36, 255)),
    shape("github-token", "ghr_", Run(Alphanumeric, 36, 255)),
    shape("github-token", "github_pat_", Run(Word, 40, 255)),
    shape("gitlab-token", "glpat-", Run(Dotted, 20, 300)),
    shape("gitlab-token", "gldt-", Run(Dotted, 20, 300)),
    shape("gitlab-token", "glrt-", Run(Dotted, 20, 300)),
    shape("gitlab-token", "glcbt-", Run(Dotted, 20, 300)),
    shape("gitlab-token", "glptt-", Run(Dotted, 20, 300)),
    shape("gitlab-token", "glsoat-", Run(Dotted, 20, 300)),
    shape("google-api-key", "AIza", Run(Word, 35, 35)),
    shape("google-oauth", "GOCSPX-", Run(Word, 20, 60)),
    shape("google-oauth", "ya29.", Run(Word, 20, 2048)),
    shape("grafana-token", "glc_", Run(Token, 32, 400)),
    shape("grafana-token", "glsa_", Run(Word, 32, 100)),
    shape("groq-key", "gsk_", Run(Alphanumeric, 40, 80)),
    shape("huggingface-token", "hf_", Run(Alphanumeric, 30, 60)),
    shape("jwt", "eyJ", Jwt),
    shape("linear-key", "lin_api_", Run(Alphanumeric, 32, 60)),
    shape("mailgun-key", "key-", Run(Hex, 32, 32)),
    shape("newrelic-key", "NRAK-", Run(Alphanumeric, 27, 27)),
    shape("notion-token", "ntn_", Run(Alphanumeric, 40, 60)),
    shape("npm-token", "npm_", Run(Alphanumeric, 36, 36)),
    shape("openai-key", "sk-", Mixed(Word, 20, 300)),
    shape("perplexity-key", "pplx-", Run(Alphanumeric, 40, 80)),
    shape("planetscale-token", "pscale_tkn_", Run(Dotted, 30, 80)),
    shape("postman-key", "PMAK-", Run(Word, 50, 80)),
    shape("private-key", "-----BEGIN ", Pem),
    shape("pulumi-token", "pul-", Run(Hex, 40, 40)),
    shape("pypi-token", "pypi-AgEI", Run(Word, 50, 400)),
    shape("replicate-token", "r8_", Run(Alphanumeric, 37, 40)),
    shape("rubygems-key", "rubygems_", Run(Hex, 48, 48)),
    shape("sendgrid-key", "SG.", Mixed(Dotted, 60, 80)),
    shape("sentry-token", "sntrys_", Run(Token, 40, 600)),
    shape("shopify-token", "shpat_", Run(Hex, 32, 32)),
    shape("shopify-token", "shpca_", Run(Hex, 32, 32)),
    shape("shopify-token", "shppa_", Run(Hex, 32, 32)),
    shape("shopify-token", "shpss_", Run(Hex, 32, 32)),
    shape("slack-token", "xapp-", Run(Word, 20, 300)),
    shape("slack-token", "xoxa-", Run(Word, 20, 300)),
    shape("slack-token", "xoxb-", Run(Word, 20, 300)),
    shape("slack-token", "xoxe-", Run(Word, 20, 300)),
    shape("slack-token", "xoxp-", Run(Word, 20, 300)),
    shape("slack-token", "xoxr-", Run(Word, 20, 300)),
    shape("slack-token", "xoxs-", Run(Word, 20, 300)),
    shape("slack-webhook", "hooks.slack.com/services/", Value(Token, 20, 120)),
    shape("square-token", "sq0atp-", Run(Word, 22, 60)),
    shape("square-token", "sq0csp-", Run(Word, 40, 60)),
    shape("stripe-key", "rk_live_", Run(Alphanumeric, 16, 250)),
    shape("stripe-key", "rk_test_", Run(Alphanumeric, 16, 250)),
    shape("stripe-key", "sk_live_", Run(Alphanumeric, 16, 250)),
    shape("stripe-key", "sk_test_", Run(Alphanumeric, 16, 250)),
    shape("stripe-key", "whsec_", Run(Token, 24, 250)),
    shape("twilio-key", "SK", Run(Hex, 32, 32)),
    shape("url-password", "://", Password),
    // OpenBao's, and Vault's before 1.10.
    shape("vault-token", "s.", Mixed(Alphanumeric, 24, 24)),
    shape("vault-token", "hvb.", Run(Word, 20, 400)),
    shape("vault-token", "hvr.", Run(Word, 20, 400)),
    shape("vault-token", "hvs.", Run(Word, 20, 400)),
    shape("xai-key", "xai-", Run(Alphanumeric, 60, 100)),
];
