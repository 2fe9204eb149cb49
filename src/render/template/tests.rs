//! What templates see and what they are told, without files beyond the template's own folder.

use std::collections::BTreeMap;
use std::fs;
use std::time::SystemTime;

use tokio::sync::watch;

use super::*;
use crate::ports::SecretUnavailable;
use crate::secret::{Secret, SecretVersion};

/// Fixed items; `slow` was not fetched yet.
pub(super) struct Shelf(BTreeMap<String, Arc<SecretVersion>>);

pub(super) type Fields<'a> = &'a [(&'a str, &'a [u8])];

impl Shelf {
    pub fn new(items: &[(&str, Fields)]) -> Self {
        let version = |fields: Fields| {
            let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), Secret::copy_from(value))).collect();
            Arc::new(SecretVersion { version: 7, provider_version: None, fields, fetched_at: SystemTime::now() })
        };
        Self(items.iter().map(|(name, fields)| ((*name).to_owned(), version(fields))).collect())
    }
}

impl SecretReader for Shelf {
    fn current(&self, item: &str) -> Result<Arc<SecretVersion>, SecretUnavailable> {
        let item = item.to_owned();
        match self.0.get(&item) {
            Some(version) => Ok(version.clone()),
            None if item == "slow" => Err(SecretUnavailable::NotFetched { item, reason: None }),
            None => Err(SecretUnavailable::Unknown { item }),
        }
    }

    fn subscribe(&self, _: &str) -> Option<watch::Receiver<u64>> {
        None
    }
}

pub(super) const LIMIT: usize = 1024 * 1024;

pub(super) fn shelf() -> Shelf {
    Shelf::new(&[
        ("db", &[("user", b"app"), ("password", b"it's \"s\xc3\xb6\" & more\n")]),
        ("api", &[("key", b"abc123")]),
        ("my-item", &[("field", b"dashed")]),
        ("blob", &[("value", b"\xff\x00")]),
    ])
}

pub(super) fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

pub(super) fn render(text: &str) -> Result<String, String> {
    let folder = folder_with(&[("app.conf.j2", text)]);
    let source = folder.path().join("app.conf.j2");
    let template = Template::load(&source).map_err(|error| error.to_string())?;
    let (_, text) = template.render(&shelf(), LIMIT);
    let words = |error: RenderError| error.to_string().replace(&format!("{}/", folder.path().display()), "");
    text.map(|text| String::from_utf8(text.to_vec()).unwrap()).map_err(words)
}

#[test]
fn secrets_are_read_by_item_and_field() {
    assert_eq!(render("u={{ secret.db.user }}\n").unwrap(), "u=app\n");
    assert_eq!(render("{{ secret[\"my-item\"].field }} {{ secret.api }}").unwrap(), "dashed abc123");
    assert_eq!(render("{% set n = 'api' %}{{ secret[n].key ~ '!' }}").unwrap(), "abc123!");
    assert_eq!(render("{% for name in secret.db %}{{ name }} {% endfor %}").unwrap(), "password user ");
    assert_eq!(render("{% if secret.api.key %}yes{% endif %}").unwrap(), "yes");
    assert_eq!(render("{{ secret.api.key == secret.api.key }}").unwrap(), "True");
}

#[test]
fn every_filter_takes_a_secret() {
    assert_eq!(render("{{ secret.db.password | json }}").unwrap(), r#""it's \"sö\" & more\n""#);
    assert_eq!(render("{{ secret.db.password | yaml }}").unwrap(), r#""it's \"sö\" & more\n""#);
    assert_eq!(render("{{ secret.blob.value | base64 }} {{ secret.api | b64encode }}").unwrap(), "/wA= YWJjMTIz");
    assert_eq!(render("{{ secret.db.password | urlencode }}").unwrap(), "it%27s%20%22s%C3%B6%22%20%26%20more%0A");
    assert_eq!(render("{{ secret.db.password | trim | shell }}").unwrap(), r#"'it'\''s "sö" & more'"#);
    assert_eq!(render("{{ ('a\nb' ~ secret.api) | indent(2) }}").unwrap(), "a\n  babc123");
    assert_eq!(render("{{ secret.api.key | upper }} {{ secret.api.key | string | length }}").unwrap(), "ABC123 6");
    assert_eq!(render("{{ secret.db | json }}").unwrap(), r#"{"password":"it's \"sö\" & more\n","user":"app"}"#);
    assert_eq!(render("{{ [1, 'x'] | json }} {{ '\u{85}' | yaml }}").unwrap(), "[1,\"x\"] \"\\u0085\"");
}

#[test]
fn plain_variables_are_read_by_env() {
    assert_eq!(render("{{ env('CARGO_PKG_NAME') }} {{ env('MCPEG_NO_SUCH', 'fallback') }}").unwrap(), "mcpeg fallback");
    let error = render("\n{{ env('MCPEG_NO_SUCH') }}").unwrap_err();
    assert!(error.starts_with("app.conf.j2:2:") && error.contains("no variable MCPEG_NO_SUCH"), "{error}");
}

#[test]
fn what_is_missing_is_named_with_its_line() {
    assert_eq!(
        render("a\n{{ secret.db.pasword }}").unwrap_err(),
        "app.conf.j2:2:10: secret db has no field \"pasword\"; it has password, user"
    );
    assert_eq!(render("{{ secret.nope.key }}").unwrap_err(), "app.conf.j2:1:4: secret nope: no such item");
    assert_eq!(render("{{ secret.slow.key }}").unwrap_err(), "app.conf.j2:1:4: secret slow: not fetched yet");
    assert!(
        render("{{ secret.db }}").unwrap_err().ends_with("secret db has several fields (password, user): name one")
    );
    assert!(render("{{ secret.blob }}").unwrap_err().ends_with("field \"value\", is not text; use the base64 filter"));
    assert!(render("x\n{{ nothing }}").unwrap_err().starts_with("app.conf.j2:2:4: undefined value: `nothing`"));
    assert!(render("x\n{% if %}").unwrap_err().contains("app.conf.j2:2:"));
}

#[test]
fn a_template_cannot_swallow_what_is_missing() {
    for text in [
        "{{ secret.db.pasword or 'x' }}",
        "{{ secret.db.pasword | default('x') }}",
        "{% if secret.nope is defined %}a{% endif %}",
        "{% if secret.db.pasword %}a{% else %}b{% endif %}",
        "{{ 'a' ~ secret.db.pasword }}",
        "{% set x = secret.db | json %}{{ secret.blob | json }}",
    ] {
        assert!(render(text).is_err(), "{text}");
    }
}

#[test]
fn no_error_quotes_a_value() {
    for text in [
        "{{ secret.api.key | int }}",
        "{{ secret.api.key + 1 }}",
        "{{ secret.api.key.x.y }}",
        "{{ (secret.api.key | string) | float }}",
        "{{ secret.api.key() }}",
        "{{ range(secret.api.key | string) }}",
        "{{ [1][secret.api.key | string] }}",
        "{% include secret.api.key | string %}",
    ] {
        let error = render(text).unwrap_err();
        assert!(!error.contains("abc123"), "{text}: {error}");
    }
    for text in ["{{ secret }}", "{{ debug() }}", "{{ secret.db | pprint }}"] {
        let shown = render(text).unwrap_or_else(|error| error);
        assert!(!shown.contains("abc123") && !shown.contains("app\""), "{text}: {shown}");
    }
}

#[test]
fn includes_stay_inside_the_folder_and_are_watched() {
    let folder = folder_with(&[("main.j2", "[{% include 'part.j2' %}]"), ("part.j2", "one {{ secret.api }}")]);
    let outside = folder_with(&[("other.j2", "outside")]);
    std::os::unix::fs::symlink(outside.path().join("other.j2"), folder.path().join("link.j2")).unwrap();
    let template = Template::load(&folder.path().join("main.j2")).unwrap();
    let (reads, text) = template.render(&shelf(), LIMIT);
    assert_eq!(text.unwrap().as_slice(), b"[one abc123]");
    assert_eq!(reads.in_words(), ["api@7"]);
    assert!(!template.has_changed());
    fs::write(folder.path().join("part.j2"), "another").unwrap();
    assert!(template.has_changed());
    let escape = folder.path().join("escape.j2");
    for name in ["../x", "/etc/hostname", "link.j2"] {
        fs::write(&escape, format!("{{% include '{name}' %}}")).unwrap();
        let (_, text) = Template::load(&escape).unwrap().render(&shelf(), LIMIT);
        let error = text.unwrap_err().to_string();
        assert!(error.contains("must be inside the template's folder"), "{error}");
    }
}

#[test]
fn work_and_output_are_bounded() {
    let error = render("{% for i in range(9999) %}{{ 'x' * 999 }}{% endfor %}").unwrap_err();
    assert_eq!(error, "app.conf.j2: the output has more than 1048576 bytes");
    let nested = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}";
    assert!(render(nested).unwrap_err().contains("fuel"), "{:?}", render(nested));
    assert!(render("{% include 'app.conf.j2' %}").is_err());
}
