//! `secrets`: what is checked of providers, items, the cache and the socket for local programs.

use super::*;

#[test]
fn variables_of_the_servers_command_line_stand_for_keys_that_are_left_out() {
    let folder = Folder::with(&[
        (
            "mcpeg.yaml",
            "version: \"1.0\"\nsecrets:\n  providers:\n    bare: { type: vault }\n    told: { type: vault, address: \"http://127.0.0.1:1\", namespace: \"\", auth: { method: userpass, username: u, password: p }, tls: { ca_file: \"\", cert_file: \"\", key_file: \"\", server_name: \"\" } }\n",
        ),
        ("ca.pem", ""),
    ]);
    let mut sources = folder.sources();
    let ca = folder.path("ca.pem").display().to_string();
    let mut all = Vec::new();
    for (name, value) in [
        ("VAULT_ADDR", "https://vault.example:8200"),
        ("BAO_ADDR", "https://bao.example:8200"),
        ("VAULT_NAMESPACE", "team"),
        ("VAULT_TOKEN", "hunter2"),
        ("VAULT_CACERT", &ca),
        ("BAO_CLIENT_CERT", &ca),
        ("VAULT_CLIENT_KEY", &ca),
        ("VAULT_TLS_SERVER_NAME", "inner.example"),
        ("VAULT_SKIP_VERIFY", "false"),
    ] {
        all.push((name, value));
    }
    sources.variables = variables(&all);
    let config = load(&sources).unwrap_or_else(|problems| panic!("{problems}"));
    let ProviderSettings::Vault(bare) = &config.secrets.providers["bare"] else { panic!("not a Vault") };
    assert_eq!(bare.address.host_str(), Some("bao.example"));
    assert_eq!((bare.namespace.as_deref(), bare.server_name.as_deref()), (Some("team"), Some("inner.example")));
    assert_eq!(bare.tls.ca_file, Some(folder.path("ca.pem")));
    assert_eq!(bare.tls.client.as_ref().map(|client| client.key_file.clone()), Some(folder.path("ca.pem")));
    assert!(matches!(bare.auth, VaultAuth::Token(_)) && !format!("{bare:?}").contains("hunter2"));
    let ProviderSettings::Vault(told) = &config.secrets.providers["told"] else { panic!("not a Vault") };
    assert_eq!((told.namespace.as_deref(), told.server_name.as_deref()), (None, None));
    assert_eq!((&told.tls, told.address.port()), (&crate::tls::Files::default(), Some(1)));

    all.push(("VAULT_SKIP_VERIFY", "1"));
    sources.variables = variables(&all);
    let found = folder.problems(&sources);
    assert!(
        found.len() == 2 && found.iter().all(|line| line.contains("VAULT_SKIP_VERIFY is set, but certificates are")),
        "{found:#?}"
    );
    sources.variables = Variables::default();
    let found = folder.problems(&sources).join("\n");
    assert!(found.contains("`address` is missing (or set VAULT_ADDR)"), "{found}");
    assert!(found.contains("`auth` is missing (or set VAULT_TOKEN)"), "{found}");
}

#[test]
fn mistakes_in_a_login_and_in_its_tls_are_said() {
    let found = problems_of(
        r#"version: "1.0"
secrets:
  providers:
    a: { type: vault, address: "https://v", auth: { method: cert } }
    b: { type: vault, address: "https://v", auth: { method: jwt }, tls: { cert_file: mcpeg.yaml, server_name: "10.0.0.1" } }
    c: { type: vault, address: "https://v", auth: { method: userpass, username: u, password: p, password_file: f } }
    d: { type: vault, address: "https://v", auth: { method: aws, access_key_id: a, credentials_file: f } }
    e: { type: vault, address: "https://v", auth: { method: aws } }
    f: { type: vault, address: "https://v", auth: { method: token, token: t }, headers: { X-Vault-Token: t, X-A: "${secret.i.f}" }, agents: 0 }
  items: { i: { provider: f, path: p } }
"#,
    )
    .join("\n");
    for words in [
        "mcpeg.yaml:4:51: the login `cert` needs a client certificate",
        "`token` or `token_file` is missing",
        "`key_file` is missing: certificate and key belong together",
        "mcpeg.yaml:5:111: expected a DNS name",
        "only one of `password` and `password_file` may be given",
        "only one of `access_key_id` and `credentials_file` may be given",
        "`access_key_id` or `credentials_file` is missing (or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)",
        "`x-vault-token` is set by mcpeg itself",
        "a login may not refer to a secret",
        "expected a number from 1 to 10000",
    ] {
        assert!(found.contains(words), "{words:?} in {found}");
    }
    assert_eq!(found.lines().count(), 10, "{found}");
}

#[test]
fn a_rule_for_local_programs_names_whom_and_what() {
    let found = problems_of(
        r#"version: "1.0"
secrets:
  providers: { env: { type: environment } }
  items: { weather: { provider: env, path: A } }
  serve:
    unix: { path: run/admin.sock }
    allow:
      - { uid: 1000, items: [wether] }
      - { items: [weather] }
      - { gid: 5 }
"#,
    );
    for words in
        ["there is no secret `wether`", "`uid` or `gid` is missing", "`items` is missing", "`admin.unix` has this path"]
    {
        assert!(found.iter().any(|line| line.contains(words)), "{words}: {found:#?}");
    }
    assert_eq!(found.len(), 4);
}

#[test]
fn leases_have_their_settings() {
    let text = |provider: &str| {
        format!(
            "version: \"1.0\"\nsecrets:\n  revoke_on_exit: true\n  providers:\n    p: {provider}\n  items:\n    \
             tls: {{ provider: p, path: pki/issue/app, parameters: {{ common_name: app.example }}, overlap: 2m }}\n"
        )
    };
    let vault = text("{ type: vault, address: \"http://127.0.0.1:8200\", auth: { method: token, token: t } }");
    let folder = Folder::with(&[("mcpeg.yaml", &vault)]);
    let config = folder.load().unwrap_or_else(|problems| panic!("{problems}"));
    let item = &config.secrets.items["tls"];
    assert!(config.secrets.revoke_on_exit);
    assert_eq!((item.overlap, item.parameters["common_name"].as_str()), (Duration::from_secs(120), "app.example"));
    let folder = Folder::with(&[("mcpeg.yaml", &text("{ type: environment }"))]);
    let problems = folder.problems(&folder.sources());
    assert!(problems[0].ends_with("only a provider of type `vault` or `oauth` takes parameters"), "{problems:?}");
}

#[test]
fn sealed_files_and_the_cache_have_their_settings() {
    let text = "version: \"1.0\"\nsecrets:\n  cache: { path: data/leases.age, sealed_with: { credential: key } }\n  providers:\n    \
                p: { type: file, path: keys.age, sealed_with: { identity_file: id.txt } }\n";
    let folder = Folder::with(&[("mcpeg.yaml", text), ("keys.age", "")]);
    let secrets = folder.load().unwrap_or_else(|problems| panic!("{problems}")).secrets;
    let sealed_with = Some(KeySource::IdentityFile(folder.path("id.txt")));
    assert_eq!(secrets.providers["p"], ProviderSettings::File { path: folder.path("keys.age"), sealed_with });
    let cache = secrets.cache.unwrap();
    assert_eq!(
        (cache.path, cache.sealed_with),
        (folder.path("data/leases.age"), KeySource::Credential("key".to_owned()))
    );
}

#[test]
fn a_key_is_one_thing_and_what_is_given_back_is_not_kept() {
    let folder = Folder::with(&[
        (
            "mcpeg.yaml",
            "version: \"1.0\"\nsecrets:\n  revoke_on_exit: true\n  cache: { path: c, sealed_with: { passphrase_file: p } }\n  \
             providers:\n    a: { type: file, path: keys.age, sealed_with: { identity_file: i, credential: c } }\n    \
             b: { type: file, path: keys.age, sealed_with: { credential: ../c } }\n",
        ),
        ("keys.age", ""),
    ]);
    let problems = folder.problems(&folder.sources());
    for (place, words) in [
        ("mcpeg.yaml:4:10: ", "`secrets.revoke_on_exit`"),
        ("mcpeg.yaml:4:53: ", "a passphrase would cost a second"),
        ("mcpeg.yaml:6:51: ", "expected one of `identity_file`, `passphrase_file` and `credential`"),
        ("mcpeg.yaml:7:65: ", "a credential's name has no `/`"),
    ] {
        let found = problems.iter().any(|problem| problem.starts_with(place) && problem.contains(words));
        assert!(found, "{place}{words}: {problems:#?}");
    }
}

#[test]
fn secrets_files_wider_than_0600_are_refused() {
    let folder = Folder::with(&[
        ("mcpeg.yaml", "version: \"1.0\"\nsecrets:\n  providers: { dev: { type: file, path: keys.yaml } }\n"),
        ("keys.yaml", "a: b"),
    ]);
    assert!(folder.load().is_ok());
    fs::set_permissions(folder.path("keys.yaml"), fs::Permissions::from_mode(0o640)).unwrap();
    let found = folder.problems(&folder.sources()).join("\n");
    assert!(
        found.contains("mcpeg.yaml:3:41:")
            && found.contains("has mode 0640; a file of secrets must be 0600 or narrower"),
        "{found}"
    );
}
