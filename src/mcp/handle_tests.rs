//! New settings beside running sessions: what appears, what drains, what stays.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::super::settings::{Limits, OnRotate, StdioSettings, UnixSettings};
use super::super::testing::{Audit, Secrets, no_cache, shipping};
use super::super::{Identity, Outside, build};
use super::*;

fn settings(folder: &Path, services: &[(&str, &str)]) -> McpSettings {
    let service = |program: &str| ServiceSettings {
        upstream: UpstreamSettings::Stdio(StdioSettings {
            argv: vec![program.to_owned()],
            env: BTreeMap::new(),
            working_directory: None,
            identity: None,
            on_rotate: OnRotate::Restart,
            files: Vec::new(),
            limits: Default::default(),
        }),
        timeout: Duration::from_secs(5),
        policy: Default::default(),
    };
    McpSettings {
        unix: Some(UnixSettings {
            path: folder.join("mcpeg.sock"),
            mode: 0o600,
            allow_uids: vec![],
            allow_gids: vec![],
        }),
        http: None,
        stdio: false,
        services: services.iter().map(|(name, program)| ((*name).to_owned(), service(program))).collect(),
        limits: Limits { max_connections: 4, max_in_flight: 4, ..Limits::small() },
        aggregate: super::super::settings::AggregateSettings::default(),
        leak_guard: super::super::settings::LeakAction::Redact,
        digest: None,
    }
}

fn built(settings: McpSettings) -> Result<McpHandle, McpError> {
    let identity = Identity { name: "test".into(), version: "0".into() };
    let meter = opentelemetry::global::meter("test");
    let guard = std::sync::Arc::new(crate::guard::Guard::new().unwrap());
    let (secrets, audit, cache) = (Secrets::new(&[]), Audit::new(), no_cache());
    let control = secrets.clone();
    let outside = Outside {
        secrets,
        control,
        guard,
        audit,
        meter,
        shipping: shipping(),
        cache,
        state: crate::mcp::testing::no_state(),
        local: crate::mcp::testing::no_local(),
        identity,
    };
    build(settings, outside).map(|(handle, _)| handle)
}

fn names(handle: &McpHandle) -> Vec<String> {
    handle.sockets().into_iter().map(|(name, _)| name).collect()
}

#[test]
fn a_reload_keeps_the_sockets_of_what_has_not_gone() {
    let folder = tempfile::tempdir().unwrap();
    let handle = built(settings(folder.path(), &[("a", "cat"), ("b", "cat")])).unwrap();
    assert_eq!(names(&handle), ["aggregate", "a", "b"]);
    let client = UnixStream::connect(folder.path().join("services/a.sock")).unwrap();

    let staged = handle.stage(settings(folder.path(), &[("a", "tac"), ("c", "cat")])).unwrap();
    assert_eq!(names(&handle), ["aggregate", "a", "b"], "nothing has changed before the commit");
    staged.commit();
    assert_eq!(names(&handle), ["aggregate", "a", "c"]);
    assert!(UnixStream::connect(folder.path().join("services/c.sock")).is_ok());
    assert!(!folder.path().join("services/b.sock").exists());
    assert!(client.peer_addr().is_ok());
    assert_eq!(handle.detail()["services"]["a"]["upstream"]["program"], "tac");
    assert!(handle.conditions().iter().all(|condition| condition.state == ConditionState::Ok));
}

#[test]
fn what_is_staged_and_dropped_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let handle = built(settings(folder.path(), &[("a", "cat")])).unwrap();
    drop(handle.stage(settings(folder.path(), &[("a", "cat"), ("b", "cat")])).unwrap());
    assert_eq!(names(&handle), ["aggregate", "a"]);
    let left: Vec<_> = std::fs::read_dir(folder.path().join("services")).unwrap().collect();
    assert_eq!(left.len(), 1);
}

#[test]
fn a_socket_that_cannot_be_made_refuses_the_settings_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let handle = built(settings(folder.path(), &[("a", "cat")])).unwrap();
    std::fs::write(folder.path().join("services/b.sock"), "a file").unwrap();
    let Err(error) = handle.stage(settings(folder.path(), &[("b", "cat")])) else { panic!("it was staged") };
    assert!(error.to_string().ends_with("services/b.sock: something that is not a socket stands there"), "{error}");
    assert_eq!(names(&handle), ["aggregate", "a"]);
}

#[tokio::test]
async fn a_socket_whose_name_is_gone_is_said_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let handle = built(settings(folder.path(), &[("a", "cat")])).unwrap();
    let (aggregate, path) = (folder.path().join("mcpeg.sock"), folder.path().join("services/a.sock"));
    std::fs::remove_file(&path).unwrap();
    let said = |handle: &McpHandle| handle.conditions().iter().any(|condition| condition.component == "socket/a");
    assert!(said(&handle));
    handle.stage(settings(folder.path(), &[("a", "cat")])).unwrap().commit();
    assert!(UnixStream::connect(&path).is_ok(), "a reload gives it its name again");
    assert_eq!(names(&handle), ["aggregate", "a"]);
    assert!(!said(&handle));
    assert!(UnixStream::connect(&aggregate).is_ok());
}
