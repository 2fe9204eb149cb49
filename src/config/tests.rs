//! The configuration as a user meets it: what is accepted, what is refused and in which words.

mod aws;
mod extends;
mod hooks;
mod oauth;
mod policy;
mod process;
mod secrets;
mod services;
mod telemetry;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::mcp::settings::UpstreamSettings;
use crate::sealed::KeySource;
use crate::secrets::settings::{ProviderSettings, VaultAuth};

/// A folder with the given files; `mcpeg.yaml` is the main one.
struct Folder(tempfile::TempDir);

impl Folder {
    fn with(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn sources(&self) -> Sources {
        Sources { config: Some(self.path("mcpeg.yaml")), ..Sources::default() }
    }

    fn load(&self) -> Result<Config, Problems> {
        load(&self.sources())
    }

    /// All problems, a line each, with the folder taken out.
    fn problems(&self, sources: &Sources) -> Vec<String> {
        let problems = load(sources).expect_err("the configuration was accepted");
        let prefix = format!("{}/", self.0.path().display());
        problems.iter().map(|problem| problem.one_line().replace(&prefix, "")).collect()
    }
}

fn variables(pairs: &[(&str, &str)]) -> Variables {
    Variables::Only(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

fn problems_of(main: &str) -> Vec<String> {
    let folder = Folder::with(&[("mcpeg.yaml", main)]);
    folder.problems(&folder.sources())
}

#[test]
fn a_whole_configuration_becomes_settings() {
    let folder = Folder::with(&[
        (
            "mcpeg.yaml",
            r#"
version: "1.0"
metadata: { name: test, environment: production }
secrets:
  providers:
    corp: { type: vault, address: "https://vault.example:8200", namespace: "", auth: { method: approle, role_id: r, secret_id_file: id }, tls: { ca_file: "" } }
    dev: { type: file, path: secrets/api-keys.yaml }
    process: { type: environment }
  items:
    weather: { provider: corp, path: secret/data/weather, refresh: 10s, max_stale: 24h }
    github: { provider: dev, path: github }
services:
  github: { config_file: services/github.yaml }
  off: { enabled: false, config_file: services/none.yaml }
templates:
  - { source: templates/app.j2, destination: run/app.conf, on_change: { signal: SIGHUP, pid_file: run/app.pid } }
telemetry:
  otlp: { endpoint: "http://127.0.0.1:4318", headers: { Authorization: "Bearer ${secret.weather.token}" } }
audit: { path: data/audit.log }
"#,
        ),
        ("secrets/api-keys.yaml", "github: { token: abc }"),
        (
            "services/github.yaml",
            "type: mcp\nurl: https://mcp.example/mcp\nheaders: { Authorization: 'Bearer ${secret.github.token}' }\ntimeout: 5s\n",
        ),
        ("templates/app.j2", "x"),
    ]);
    let config = folder.load().unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.name, "test");
    let ProviderSettings::Vault(vault) = &config.secrets.providers["corp"] else { panic!("not a Vault") };
    assert_eq!((vault.namespace.as_deref(), &vault.tls), (None, &crate::tls::Files::default()));
    assert_eq!(config.secrets.items["weather"].max_stale, Some(Duration::from_secs(86_400)));
    let path = folder.path("secrets/api-keys.yaml");
    assert_eq!(config.secrets.providers["dev"], ProviderSettings::File { path, sealed_with: None });
    let UpstreamSettings::Http(http) = &config.mcp.services["github"].upstream else { panic!("not HTTP") };
    assert_eq!(format!("{:?}", http.headers[0].1), "[literal]${secret.github.token}");
    assert_eq!(config.mcp.services.len(), 1);
    assert_eq!(config.mcp.unix.as_ref().unwrap().path, folder.path("run/mcpeg.sock"));
    assert_eq!(config.templates[0].file.mode, 0o600);
    assert!(config.telemetry.audit.required);
    assert_eq!(config.telemetry.resource["deployment.environment.name"], "production");
    assert_eq!(config.files, [folder.path("mcpeg.yaml"), folder.path("services/github.yaml")]);
}

#[test]
fn a_rendered_file_has_owner_label_backup_and_bounds() {
    let folder = Folder::with(&[
        (
            "mcpeg.yaml",
            r#"version: "1.0"
templates:
  - { source: a.j2, destination: run/a, owner: "app:33", selinux_label: "u:r:t:s0", backup: true, on_remove: remove, max_size: 64KiB }
  - { source: a.j2, destination: run/b }
render: { allowed_folders: [run] }
"#,
        ),
        ("a.j2", "x"),
    ]);
    let config = folder.load().unwrap_or_else(|problems| panic!("{problems}"));
    let [first, second] = config.templates.as_slice() else { panic!("not two") };
    assert_eq!((first.max_size, second.max_size), (65_536, 1_048_576));
    assert_eq!(first.file.owner, crate::render::settings::Owner::parse("app:33"));
    assert_eq!((first.file.backup, second.file.backup), (true, false));
    assert_eq!(first.file.selinux_label.as_deref(), Some("u:r:t:s0"));
    assert!(!first.file.allowed_folders.is_any() && first.file.on_remove != second.file.on_remove);
    let found = problems_of(
        r#"version: "1.0"
templates:
  - { source: mcpeg.yaml, destination: run/a, owner: "a b", selinux_label: x, max_size: 1MB }
  - { source: mcpeg.yaml, destination: run/b, backup: true }
  - { source: mcpeg.yaml, destination: run/b.bak }
  - { source: mcpeg.yaml, destination: out/c }
render: { allowed_folders: [run] }
"#,
    );
    assert_eq!(
        found,
        [
            "mcpeg.yaml:3:54: expected `USER`, `USER:GROUP` or `:GROUP`, names or ids",
            "mcpeg.yaml:3:76: expected a label such as `system_u:object_r:etc_t:s0`",
            "mcpeg.yaml:3:89: expected a size such as `512B`, `64KiB` or `1MiB`, at most `64MiB`",
            "mcpeg.yaml:4:55: template 3 writes the file that the backup would be",
            "mcpeg.yaml:6:40: out/c is outside of `render.allowed_folders`",
        ]
    );
}

#[test]
fn every_mistake_is_reported_at_once_with_its_place_and_a_near_miss() {
    let found = problems_of(
        r#"version: "1.0"
global: { log_level: inof, timeuot: 30s }
transports:
  unix: { mode: "0999", allow_uids: [abc] }
secrets:
  providers:
    corp: { type: valt, address: "https://v:8200" }
    dev: { type: vault, address: not-an-address, auth: { method: token } }
  items:
    weather: { provider: cork, path: p, refresh: 10 }
services: 7
"#,
    );
    assert_eq!(
        found,
        [
            "mcpeg.yaml:2:22: expected one of `error`, `warn`, `info`, `debug`, `trace` (did you mean `info`?)",
            "mcpeg.yaml:2:28: unknown key `timeuot` (did you mean `timeout`?)",
            "mcpeg.yaml:4:17: expected octal permission bits that the owner can read, such as `\"0600\"`",
            "mcpeg.yaml:4:38: expected a whole number, found a text",
            "mcpeg.yaml:7:19: expected one of `vault`, `aws-secrets-manager`, `oauth`, `directory`, `file`, `environment` (did you mean `vault`?)",
            "mcpeg.yaml:8:34: expected an address such as `https://host:8200`: relative URL without a base",
            "mcpeg.yaml:8:56: `token` or `token_file` is missing",
            "mcpeg.yaml:10:26: there is no provider `cork`",
            "mcpeg.yaml:10:50: expected a text (put it in quotes), found a number",
            "mcpeg.yaml:11:11: expected a mapping, found a number",
        ]
    );
}

#[test]
fn duplicate_keys_are_found_with_both_places() {
    assert_eq!(
        problems_of("version: \"1.0\"\nglobal:\n  timeout: 1s\n  log_level: info\n  timeout: 2s\n"),
        ["mcpeg.yaml:5:3: `timeout` is given twice; the first is at line 3, column 3"]
    );
}

#[test]
fn what_later_versions_serve_is_refused_by_name() {
    let found = problems_of(
        r#"version: "1.0"
security: { sandbox: true }
"#,
    );
    let said = |line: &String| line.contains("`security.sandbox` is not available in this version");
    assert!(found.len() == 1 && found.iter().all(said), "{found:#?}");
}

#[test]
fn each_store_takes_its_own_keys_and_what_leaves_the_process_has_to_be_sealed() {
    let found = problems_of(
        r#"version: "1.0"
storage:
  runtime: { type: redis, url: "redis://user:pass@127.0.0.1/0" }
  cache: { type: sqlite, url: "redis://127.0.0.1/0" }
"#,
    );
    for words in ["3:32: user and password do not stand", "4:31: `url` does not belong", "4:10: `key` is missing"] {
        assert!(found.iter().any(|line| line.contains(words)), "{words}: {found:#?}");
    }
    assert!(!found.iter().any(|line| line.contains("pass@")), "{found:#?}");
    for (text, words) in [
        ("runtime: { type: postgres }", "`url` is missing, such as `postgres://"),
        ("runtime: { type: postgres, url: 'redis://127.0.0.1' }", "expected an address such as `postgres://"),
        ("runtime: { type: redis, url: 'redis://127.0.0.1/x' }", "a database of Redis is a number"),
        ("runtime: { type: sqlite, persistence: true }", "the other kinds always last"),
        ("runtime: { type: memory, snapshot_interval: 10ms }", "one second at least"),
        ("cache: { type: memory, key: x }", "`key` does not belong"),
    ] {
        let found = problems_of(&format!("version: \"1.0\"\nstorage: {{ {text} }}\n"));
        assert!(found.iter().any(|line| line.contains(words)), "{words}: {found:#?}");
    }
    let text = r#"version: "1.0"
storage:
  runtime: { type: postgres, url: "postgres://db.example/x", password: p }
  cache: { type: redis, url: "rediss://cache.example:7000/3", key: 0123456789abcdef, namespace: team }
"#;
    let storage = Folder::with(&[("mcpeg.yaml", text)]).load().unwrap().storage;
    let crate::storage::settings::RuntimeKind::Postgres(server) = storage.runtime.kind else { panic!() };
    assert!(server.encrypted && server.port == 5432 && server.database == "x" && server.namespace == "mcpeg");
    let crate::storage::settings::CacheKind::Redis { server, .. } = storage.cache.kind else { panic!() };
    assert!(server.encrypted && server.port == 7000 && server.database == "3" && server.namespace == "team");
}

#[test]
fn the_leak_guard_is_on_and_a_pattern_that_cannot_serve_is_refused_at_its_place() {
    let found = problems_of(
        r#"version: "1.0"
security:
  leak_guard: block
  redaction:
    patterns:
      - { name: ticket, regex: 'TICKET-[0-9]+' }
      - { name: ticket, regex: 'x*' }
      - { name: "a b", regex: '(' }
"#,
    );
    for (place, words) in [
        ("mcpeg.yaml:7:", "another pattern has this name"),
        ("mcpeg.yaml:7:", "it fits an empty text"),
        ("mcpeg.yaml:8:", "a pattern's name has 1 to 64 letters"),
        ("mcpeg.yaml:8:", "not a usable regular expression: unclosed group"),
    ] {
        assert!(found.iter().any(|line| line.contains(place) && line.contains(words)), "{words}: {found:#?}");
    }
    assert_eq!(found.len(), 4);
}

#[test]
fn what_would_have_no_effect_is_refused() {
    let folder = Folder::with(&[
        (
            "mcpeg.yaml",
            "version: \"1.0\"\nstorage: { runtime: { type: memory, url: a } }\nservices: { a: { config_file: a.yaml } }\n",
        ),
        ("a.yaml", "type: mcp\ncommand: [cat]\ntls: { ca_file: b }\ntimeout: 0s\ndriver: mysql\n"),
    ]);
    let found = folder.problems(&folder.sources()).join("\n");
    for words in [
        "`url` does not belong",
        "`tls` belongs to",
        "expected a duration",
        "`driver` belongs to a service of `type: database`",
    ] {
        assert!(found.contains(words), "{words}: {found}");
    }
}

#[test]
fn a_missing_version_or_type_hides_no_other_mistake() {
    let folder = Folder::with(&[
        (
            "mcpeg.yaml",
            "services: { a: { config_file: a.yaml }, b: { config_file: none.yaml } }\ntemplates: [ { source: none.j2, destination: x } ]\n",
        ),
        ("a.yaml", "command: [cat]\nenv: { A: \"${secret.no.such}\" }\n"),
    ]);
    let found = folder.problems(&folder.sources()).join("\n");
    for words in [
        "`version` is missing",
        "`type` is missing",
        "none.yaml cannot be opened",
        "none.j2 cannot be opened",
        "there is no secret `no`",
    ] {
        assert!(found.contains(words), "{words}: {found}");
    }
}

#[test]
fn no_value_is_ever_quoted() {
    let folder = Folder::with(&[(
        "mcpeg.yaml",
        "version: \"1.0\"\nglobal: { timeout: hunter2, log_level: hunter2 }\nsecrets:\n  providers:\n    corp: { type: hunter2, password: hunter2 }\n  items: hunter2\nadmin: { http: { enabled: hunter2, token: [hunter2] } }\n",
    )]);
    let problems = folder.load().unwrap_err();
    assert!(problems.len() >= 5);
    for text in [problems.render(), problems.to_json().to_string(), format!("{problems:?}")] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn layers_lie_in_their_order() {
    let folder = Folder::with(&[
        (
            "mcpeg.yaml",
            "version: \"1.0\"\nmetadata: { environment: prod }\nglobal: { timeout: 1s, shutdown_timeout: 1s, log_level: info }\n",
        ),
        ("mcpeg-prod.yaml", "global: { timeout: 2s, shutdown_timeout: 2s }\n"),
    ]);
    let mut sources = folder.sources();
    sources.variables =
        variables(&[("MCPEG_GLOBAL__SHUTDOWN_TIMEOUT", "3s"), ("MCPEG_TRANSPORTS__UNIX__ALLOW_UIDS", "1000,1001")]);
    sources.set.push("global.log_level=debug".into());
    sources.set.push("transports.unix.enabled=true".into());
    let config = load(&sources).unwrap();
    assert_eq!(config.shutdown_timeout, Duration::from_secs(3));
    assert_eq!(config.telemetry.log.level, crate::telemetry::settings::LogLevel::Debug);
    assert_eq!(config.mcp.unix.unwrap().allow_uids, [1000, 1001]);
    assert_eq!(config.files.len(), 2);

    sources.environment = Some("staging".into());
    assert!(folder.problems(&sources)[0].contains("mcpeg-staging.yaml: the overlay"));
}

#[test]
fn a_mistake_in_a_variable_or_a_flag_names_it() {
    let folder = Folder::with(&[("mcpeg.yaml", "version: \"1.0\"\n")]);
    let mut sources = folder.sources();
    sources.variables = variables(&[("MCPEG_GLOBL__LOG_LEVEL", "debug")]);
    sources.set = vec!["global.timeout=soon".into(), "nothing".into()];
    let found = folder.problems(&sources).join("\n");
    assert!(
        found.contains("environment variable MCPEG_GLOBL__LOG_LEVEL: unknown key `globl` (did you mean `global`?)"),
        "{found}"
    );
    assert!(found.contains("flag --set global.timeout: expected a duration"), "{found}");
    assert!(found.contains("flag --set nothing: expected KEY=VALUE"), "{found}");
}

#[test]
fn references_are_checked_and_allowed_only_where_a_secret_may_stand() {
    let folder = Folder::with(&[
        (
            "mcpeg.yaml",
            "version: \"1.0\"\nmetadata: { name: \"${secret.github.token}\" }\nsecrets:\n  providers: { e: { type: environment } }\n  items: { github: { provider: e, path: G } }\nservices: { a: { config_file: a.yaml } }\n",
        ),
        (
            "a.yaml",
            "type: mcp\ncommand: [cat]\nenv: { A: \"${secret.githab.token}\", B: \"$${secret.x}\", C: \"${UNSET}\" }\n",
        ),
    ]);
    assert_eq!(
        folder.problems(&folder.sources()),
        [
            "a.yaml:3:11: there is no secret `githab` in `secrets.items` (did you mean `github`?)",
            "a.yaml:3:59: the environment variable UNSET is not set (set it, or give a default: ${UNSET:default})",
            "mcpeg.yaml:2:19: a secret may not stand here (secrets may stand in headers, environments, tokens and passwords)",
        ]
    );
}

#[test]
fn files_that_cannot_be_configurations_get_a_clear_error() {
    let folder = Folder::with(&[("empty", "")]);
    let main = folder.path("mcpeg.yaml");
    let says = |expected: &str| {
        let found = folder.problems(&folder.sources()).join("\n");
        assert!(found.contains(expected), "expected {expected:?} in {found:?}");
    };
    says("cannot be opened: no such file or directory");
    fs::create_dir(&main).unwrap();
    says("is a folder, not a regular file");
    fs::remove_dir(&main).unwrap();
    std::os::unix::fs::symlink(&main, &main).unwrap();
    says("too many levels of symbolic links");
    fs::remove_file(&main).unwrap();
    fs::write(&main, vec![b'#'; 10 * 1024 * 1024]).unwrap();
    says("has 10485760 bytes; a configuration file may have 1048576");
    fs::write(&main, b"version: \"1.0\"\nname: \xff\n").unwrap();
    says("mcpeg.yaml:2:7: the file is not UTF-8");
    fs::write(&main, "version: \"1.0\"\nglobal: { timeout: 30s\nservices: {}\n").unwrap();
    says("this is not YAML that can be read");
    fs::write(&main, bomb()).unwrap();
    says("a configuration may have 20,000 nodes");
    fs::write(&main, "[".repeat(5_000)).unwrap();
    says("mcpeg.yaml:1:");
    fs::write(&main, "version: \"1.0\"\n---\nversion: \"1.0\"\n").unwrap();
    says("a configuration is one document");
    fs::write(&main, "version: \"1.0\"\n7: a\n").unwrap();
    says("a key is a text");
    fs::write(&main, "version: \"1.0\"\nmetadata: { name: !secret x }\n").unwrap();
    says("mcpeg.yaml:2:");
    fs::write(&main, "- a\n- b\n").unwrap();
    says("expected a mapping, found a list");
    fs::write(&main, "").unwrap();
    says("`version` is missing");
}

fn bomb() -> String {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = level - 1;
        text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{before}"); 9].join(", ")));
    }
    text
}

#[test]
fn an_error_of_the_parser_shows_nothing_of_the_file() {
    for text in [
        "version: \"1.0\"\npassword: \"hunter2\nother: 1\n",
        "version: *hunter2\n",
        "a: hunter2: b\n",
        "a: {hunter2\n",
        "a: !hunter2 x\n",
        "a: 1\n hunter2: 3\n",
        "a: hunter2\n\tb: hunter2\n",
        "%HUNTER hunter2\n---\na: b\n",
        "a: \"hunter2 \\q\"\n",
    ] {
        let folder = Folder::with(&[("mcpeg.yaml", text)]);
        let problems = folder.load().unwrap_err();
        let shown: String = problems
            .iter()
            .map(|problem| problem.one_line())
            .chain([problems.render(), problems.to_json().to_string()])
            .collect();
        let shown = shown.replace("key `hunter2`", "").replace("| {hunter2", "").replace(" hunter2: ***", "");
        assert!(!shown.contains("hunter2"), "{text:?}: {shown}");
    }
}

#[test]
fn the_schema_accepts_what_the_check_accepts() {
    let schema = schema::main_file();
    let validator = jsonschema::validator_for(schema).unwrap();
    let good = serde_json::json!({
        "version": "1.0",
        "secrets": { "providers": { "dev": { "type": "file", "path": "x" } }, "items": { "a": { "provider": "dev" } } },
        "security": { "lock_memory": "require" }
    });
    assert!(validator.is_valid(&good), "{:?}", validator.iter_errors(&good).map(|e| e.to_string()).collect::<Vec<_>>());
    let bad = serde_json::json!({ "version": "1.0", "secrets": { "providers": { "dev": { "type": "fil" } } } });
    assert!(!validator.is_valid(&bad));
    assert!(!schema.to_string().contains("$ref"));
}

#[test]
fn a_relative_path_starts_at_the_file_that_names_it() {
    let folder = Folder::with(&[
        ("mcpeg.yaml", "version: \"1.0\"\nservices: { a: { config_file: services/a.yaml } }\n"),
        ("services/a.yaml", "type: mcp\ncommand: [cat]\nworking_directory: ../here\n"),
        ("here/x", ""),
    ]);
    let config = folder.load().unwrap_or_else(|problems| panic!("{problems}"));
    let UpstreamSettings::Stdio(stdio) = &config.mcp.services["a"].upstream else { panic!("not stdio") };
    assert_eq!(stdio.working_directory.as_deref(), Some(folder.path("services/../here").as_path()));
    assert!(Path::new(&stdio.argv[0]).is_relative());
}

#[test]
fn http_wants_a_token_and_off_loopback_tls() {
    let found = problems_of(
        "version: \"1.0\"\ntransports:\n  http:\n    enabled: true\n    address: 0.0.0.0\n    allowed_origins: [\"https://a.example/path\", \"https://b.example\"]\n",
    );
    for words in [
        "mcpeg.yaml:5:14: an address that is not loopback wants `tls`",
        "`token` is missing",
        "mcpeg.yaml:6:23: expected an origin",
    ] {
        assert!(found.iter().any(|line| line.contains(words)), "{words}: {found:#?}");
    }
    assert_eq!(found.len(), 3);
    let folder = Folder::with(&[(
        "mcpeg.yaml",
        "version: \"1.0\"\ntransports: { http: { enabled: true, token: t }, stdio: { enabled: true }, unix: { allow_gids: [7] }, limits: { idle_timeout: 5m, max_sessions: 3, replay_kb: 2 } }\n",
    )]);
    let config = load(&folder.sources()).unwrap();
    assert_eq!(config.mcp.http.unwrap().address.to_string(), "127.0.0.1:8080");
    assert!(config.mcp.stdio);
    assert_eq!(config.mcp.unix.unwrap().allow_gids, [7]);
    let limits = config.mcp.limits;
    assert_eq!((limits.idle_timeout.as_secs(), limits.max_sessions, limits.replay_bytes), (300, 3, 2048));
}
