//! Filters, bundles, inheritance, places of errors, and renderings that are shown.

use std::fs;

use super::mask::{CLOSE, OPEN};
use super::tests::{LIMIT, Shelf, folder_with, render, shelf};
use super::*;

fn pem(kind: &str, body: &str) -> String {
    format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----")
}

fn tls() -> Shelf {
    let (leaf, ca, root) = (pem("CERTIFICATE", "leaf"), pem("CERTIFICATE", "ca"), pem("CERTIFICATE", "root"));
    let chain = serde_json::to_string(&[&ca, &root]).unwrap();
    let key = pem("RSA PRIVATE KEY", "key");
    Shelf::new(&[
        (
            "tls",
            &[
                ("certificate", leaf.as_bytes()),
                ("issuing_ca", ca.as_bytes()),
                ("ca_chain", chain.as_bytes()),
                ("private_key", key.as_bytes()),
            ],
        ),
        ("k8s", &[("tls.crt", leaf.as_bytes()), ("tls.key", key.as_bytes())]),
        ("der", &[("certificate", b"MIIB"), ("private_key", key.as_bytes())]),
    ])
}

fn with(shelf: &Shelf, text: &str) -> Result<String, String> {
    let folder = folder_with(&[("a.j2", text)]);
    let template = Template::load(&folder.path().join("a.j2")).map_err(|error| error.to_string())?;
    let words = |error: RenderError| error.to_string().replace(&format!("{}/", folder.path().display()), "");
    template.render(shelf, LIMIT).1.map(|text| String::from_utf8(text.to_vec()).unwrap()).map_err(words)
}

#[test]
fn filters_write_values_of_other_formats() {
    assert_eq!(render("{{ secret.db.password | toml }}").unwrap(), r#""it's \"sö\" & more\n""#);
    assert_eq!(render("{{ '\u{7f}' | toml }} {{ [1, 1.5, true] | toml }}").unwrap(), "\"\\u007f\" [1, 1.5, true]");
    assert_eq!(render("{{ secret.db | toml }}").unwrap(), r#"{ "password" = "it's \"sö\" & more\n", "user" = "app" }"#);
    assert!(render("{{ none | toml }}").unwrap_err().contains("TOML has no form for it"));
    assert_eq!(render("{{ 'YWJj\nMTIz' | unbase64 }} {{ 'YQ' | b64decode }}").unwrap(), "abc123 a");
    assert!(render("{{ '/w==' | unbase64 }}").unwrap_err().contains("is not text"));
    assert!(render("{{ 'no base64!' | unbase64 }}").unwrap_err().contains("it is not base64"));
    assert_eq!(render("{{ secret.db.password | url }}").unwrap(), "it%27s%20%22s%C3%B6%22%20%26%20more%0A");
    assert_eq!(render("a:\n  {{ secret.db.password | indent(2) }}").unwrap(), "a:\n  it's \"sö\" & more");
    assert_eq!(render("{{ 'abc' | sha256 }}").unwrap()[..12], *"ba7816bf8f01");
}

#[test]
fn a_digest_of_a_secret_has_to_be_asked_for() {
    for text in [
        "{{ secret.api.key | sha256 }}",
        "{{ secret.api | sha256 }}",
        "{{ secret.api.key | string | sha256 }}",
        "{{ ('x' ~ secret.api.key) | sha256 }}",
        "{{ (secret.db.password | trim) | sha256 }}",
        "{% set secret2 = secret.api.key %}{{ secret2 ~ '' | sha256 }}{{ secret2 | sha256 }}",
    ] {
        let error = render(text).unwrap_err();
        assert!(error.contains("sha256(allow_secret=true)") && !error.contains("abc123"), "{text}: {error}");
    }
    let digest = render("{{ secret.api.key | sha256(allow_secret=true) }}").unwrap();
    assert_eq!(digest, "6ca13d52ca70c883e0f0bb101e425a89e8624de51db2d2392593af6a84118090");
    assert!(render("{{ secret.api.key | sha256(alow_secret=true) }}").is_err());
}

#[test]
fn a_bundle_is_one_call_in_the_order_asked_for() {
    let (leaf, ca, root) = (pem("CERTIFICATE", "leaf"), pem("CERTIFICATE", "ca"), pem("CERTIFICATE", "root"));
    let key = pem("RSA PRIVATE KEY", "key");
    let shelf = tls();
    assert_eq!(with(&shelf, "{{ secret.tls | pem_bundle }}").unwrap(), format!("{leaf}\n{ca}\n{root}\n{key}\n"));
    assert_eq!(
        with(&shelf, "{{ secret.tls | pem_bundle('key', 'certificate', 'ca') }}").unwrap(),
        format!("{key}\n{leaf}\n{ca}\n")
    );
    assert_eq!(with(&shelf, "{{ secret.tls | pem_bundle('chain', 'ca') }}").unwrap(), format!("{ca}\n{root}\n"));
    assert_eq!(with(&shelf, "{{ secret.k8s | pem_bundle }}").unwrap(), format!("{leaf}\n{key}\n"));
    for (text, problem) in [
        (
            "\n {{ secret.k8s | pem_bundle('chain') }}",
            "a.j2:2:18: secret k8s has none of the fields ca_chain, issuing_ca, ca.crt",
        ),
        ("{{ secret.der | pem_bundle }}", "secret.der.certificate holds no PEM CERTIFICATE-----"),
        ("{{ secret.tls | pem_bundle('cert') }}", "there is no part \"cert\" of a bundle"),
        ("{{ secret.tls.certificate | pem_bundle }}", "takes a whole secret"),
    ] {
        let error = with(&shelf, text).unwrap_err();
        assert!(error.contains(problem) && !error.contains("MIIB"), "{error}");
    }
}

#[test]
fn templates_inherit_import_and_loop() {
    let folder = folder_with(&[
        (
            "main.j2",
            "{% extends 'base/one.j2' %}{% block body %}{% import 'macros.j2' as m %}{{ m.line('key', secret.api.key) }}{% endblock %}",
        ),
        ("macros.j2", "{% macro line(name, value) %}{{ name }}={{ value | shell }}{% endmacro %}"),
    ]);
    fs::create_dir(folder.path().join("base")).unwrap();
    fs::write(folder.path().join("base/one.j2"), "<{% block body %}{% endblock %}>").unwrap();
    let template = Template::load(&folder.path().join("main.j2")).unwrap();
    assert_eq!(template.render(&shelf(), LIMIT).1.unwrap().as_slice(), b"<key='abc123'>");
    fs::write(folder.path().join("base/one.j2"), "({% block body %}{% endblock %})").unwrap();
    assert!(template.has_changed());
    let looped = "{% for name, value in secret.db | items %}{{ name }}={{ value | json }}\n{% endfor %}";
    assert_eq!(render(looped).unwrap(), "password=\"it's \\\"sö\\\" & more\\n\"\nuser=\"app\"\n");
    assert_eq!(
        render("{% for name in secret.db %}{{ secret.db[name] | base64 | length }} {% endfor %}").unwrap(),
        "24 4 "
    );
}

#[test]
fn an_error_has_a_line_and_a_column_also_in_an_include() {
    assert_eq!(
        render("a\nb {{ secret.db.pasword }}").unwrap_err(),
        "app.conf.j2:2:12: secret db has no field \"pasword\"; it has password, user"
    );
    let error = render("ä {{ nothing }}").unwrap_err();
    assert_eq!(error, "app.conf.j2:1:6: undefined value: `nothing`");
    let folder = folder_with(&[("main.j2", "{% include 'part.j2' %}"), ("part.j2", "\n{{ secret.db.nope }}")]);
    let template = Template::load(&folder.path().join("main.j2")).unwrap();
    let error = template.render(&shelf(), LIMIT).1.unwrap_err().to_string();
    assert!(error.contains("/part.j2:2:10: secret db has no field \"nope\""), "{error}");
}

#[test]
fn a_rendering_that_is_shown_has_names_and_the_same_lines() {
    let text = "{% if secret.api.key == secret.api.key %}k={{ secret.api.key }}{% endif %} {{ secret.api.key | base64 }}\n\
                {{ secret.db.password | shell }} {{ secret.db | json }} {{ secret.db | toml }} {{ secret.db.user | upper }}\n\
                {{ secret.api.key | sha256(allow_secret=true) }}{{ secret.api.key | trim | url }}\n";
    let folder = folder_with(&[("a.j2", text)]);
    let template = Template::load(&folder.path().join("a.j2")).unwrap();
    let real = String::from_utf8(template.render(&shelf(), LIMIT).1.unwrap().to_vec()).unwrap();
    let shown = String::from_utf8(template.render_masked(&shelf(), LIMIT).unwrap().to_vec()).unwrap();
    assert!(shown.starts_with(&format!("k={OPEN}secret.api.key{CLOSE} {OPEN}secret.api.key{CLOSE}\n")), "{shown}");
    for part in ["abc123", "YWJjMTIz", "sö", "app", "6ca13d", "APP"] {
        assert!(real.contains(part) && !shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(real.lines().count(), shown.lines().count(), "{shown}");
    let folder = folder_with(&[("a.j2", "{{ secret.tls | pem_bundle }}")]);
    let template = Template::load(&folder.path().join("a.j2")).unwrap();
    let shown = template.render_masked(&tls(), LIMIT).unwrap();
    assert_eq!(shown.iter().filter(|byte| **byte == b'\n').count(), 12);
    assert!(!String::from_utf8_lossy(&shown).contains("BEGIN"));
}

#[test]
fn an_output_has_the_bound_that_it_is_given() {
    let folder = folder_with(&[("a.j2", "{{ 'x' * 100 }}")]);
    let template = Template::load(&folder.path().join("a.j2")).unwrap();
    assert!(template.render(&shelf(), 100).1.is_ok());
    let error = template.render(&shelf(), 99).1.unwrap_err().to_string();
    assert!(error.ends_with("the output has more than 99 bytes"), "{error}");
}
