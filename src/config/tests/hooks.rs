//! `on_change`, `validate` and `render.groups`.

use super::*;
use crate::render::settings::Whom;

const GOOD: &str = r#"version: "1.0"
secrets:
  providers: { env: { type: environment } }
  items: { api: { provider: env, path: A } }
render:
  groups:
    tls:
      validate: [check, "{folder}"]
      timeout: 3s
      on_change:
        signal: SIGHUP
        process_name: nginx
        http: { method: PUT, url: "http://localhost/reload", socket: run/app.sock, headers: { X-Token: "${secret.api}" }, status: 204 }
        systemd: { unit: "app@1.service", action: reload-or-restart }
        timeout: 4s
      rollback: true
      settle: 250ms
templates:
  - { source: a.j2, destination: run/tls/cert.pem, group: tls }
  - { source: a.j2, destination: run/tls/key.pem, group: tls, validate: [grep, x, "{file}"] }
  - { source: a.j2, destination: run/app, on_change: { command: [follow], env: { TOKEN: "${secret.api}" }, settle: 5s, retries: 0 } }
"#;

#[test]
fn hooks_and_groups_become_settings() {
    let folder = Folder::with(&[("mcpeg.yaml", GOOD), ("a.j2", "")]);
    let config = folder.load().unwrap_or_else(|problems| panic!("{problems}"));
    let group = config.templates[0].group.as_ref().unwrap();
    assert_eq!(config.templates[1].group.as_ref(), Some(group));
    assert_eq!((group.folder.clone(), group.keep, group.mode), (folder.path("run/tls"), 1, 0o700));
    assert_eq!((group.settle, group.rollback), (Duration::from_millis(250), true));
    assert_eq!(group.validate.as_ref().unwrap().timeout, Duration::from_secs(3));
    let hooks = group.on_change.as_ref().unwrap();
    assert_eq!(hooks.signal.as_ref().unwrap().whom, Whom::Named("nginx".to_owned()));
    let http = hooks.http.as_ref().unwrap();
    assert_eq!((http.method.as_str(), http.status, http.timeout), ("PUT", Some(204), Duration::from_secs(4)));
    assert_eq!(format!("{:?}", http.headers), "[(\"x-token\", ${secret.api})]");
    assert_eq!(hooks.systemd.as_ref().unwrap().action, "reload-or-restart");
    assert_eq!(hooks.retries, 3);
    let alone = &config.templates[2];
    assert_eq!(alone.group, None);
    assert_eq!(alone.on_change.as_ref().unwrap().command.as_ref().unwrap().env.len(), 1);
}

#[test]
fn mistakes_in_hooks_and_groups_are_said_with_their_line() {
    let folder = Folder::with(&[
        (
            "mcpeg.yaml",
            r#"version: "1.0"
render:
  groups:
    tls: { on_change: { command: [follow], settle: 1s }, settle: 6s, mode: "0400" }
    bare: { rollback: true, timeout: 1s }
    none: {}
templates:
  - { source: a.j2, destination: run/tls/cert, group: tls, on_change: { signal: HUP, pid_file: a } }
  - { source: a.j2, destination: run/other/key, group: tls, backup: true }
  - { source: a.j2, destination: run/tls/alone, validate: [check] }
  - { source: a.j2, destination: run/bare/x, group: bare, on_remove: remove }
  - { source: a.j2, destination: real/x, group: real }
  - { source: a.j2, destination: run/y, on_change: { signal: HUP, pid_file: a, process_name: b, settle: 249ms } }
  - { source: a.j2, destination: run/z, on_change: { supervised: true, signal: HUP, env: { A: b } } }
  - { source: a.j2, destination: run/w, on_change: { http: { url: "https://x/", socket: s, headers: { Host: x } }, systemd: { unit: -x } } }
  - { source: a.j2, destination: run/v, on_change: { retries: 2 } }
  - { source: a.j2, destination: run/u, on_change: { http: { url: "http://u:p@x/" }, command: [a] } }
"#,
        ),
        ("a.j2", ""),
    ]);
    let found = folder.problems(&folder.sources());
    let expected = [
        (4, "a group waits before it changes"),
        (4, "expected `250ms` to `5s`"),
        (4, "expected the mode of a folder"),
        (5, "it is for when `on_change` fails"),
        (5, "the timeout is that of `validate`"),
        (6, "no template names this group"),
        (8, "what follows a change of a group is one for all"),
        (9, "and all in one folder"),
        (9, "a group keeps old generations"),
        (10, "belongs to the group `tls`"),
        (10, "`{file}` or `{folder}` is missing"),
        (11, "the last generation of a group stays"),
        (12, "there is no group `real`"),
        (13, "`pid_file` says already whom to signal"),
        (13, "expected `250ms` to `5s`"),
        (14, "there is no `process` to signal"),
        (14, "there is no `command`"),
        (17, "an address may not hold a user or a password"),
        (15, "over a socket the URL's scheme is `http`"),
        (15, "`Host` is set by mcpeg itself"),
        (15, "not the name of a unit"),
        (16, "`signal`, `command`, `http` or `systemd` is missing"),
    ];
    for (line, words) in expected {
        let place = format!("mcpeg.yaml:{line}:");
        assert!(found.iter().any(|said| said.contains(&place) && said.contains(words)), "{line} {words}: {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn a_real_folder_in_the_place_of_a_group_is_refused() {
    let folder = Folder::with(&[("mcpeg.yaml", GOOD), ("a.j2", ""), ("run/tls/precious", "x")]);
    let found = folder.problems(&folder.sources());
    assert!(found.len() == 2 && found.iter().all(|said| said.contains("run/tls is a folder")), "{found:#?}");
}
