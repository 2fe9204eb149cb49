//! Service files: what an upstream is.

use super::*;
use crate::mcp::settings::{HttpTransport, OnRotate, ServiceSettings, UpstreamSettings};

fn folder(service: &str) -> Folder {
    let main = "version: \"1.0\"\nsecrets:\n  providers: { own: { type: environment } }\n  items: { key: { provider: own, path: KEY } }\n\
        services:\n  s: { config_file: s.yaml }\n";
    Folder::with(&[("mcpeg.yaml", main), ("s.yaml", &format!("type: mcp\n{service}"))])
}

fn read(service: &str) -> ServiceSettings {
    let folder = folder(service);
    folder.load().unwrap().mcp.services.remove("s").unwrap()
}

#[test]
fn a_program_swaps_unless_it_is_told_otherwise_and_is_bounded_where_that_is_asked_for() {
    let UpstreamSettings::Stdio(plain) = read("command: [server]\n").upstream else { panic!("no program") };
    assert_eq!((plain.on_rotate, plain.limits), (OnRotate::Swap, Default::default()));
    let text = "command: [server]\non_rotate: restart\nfiles: [run/token]\nlimits: { memory_mb: 64, cpu_seconds: 9, open_files: 32, processes: 4 }\n";
    let UpstreamSettings::Stdio(told) = read(text).upstream else { panic!("no program") };
    assert_eq!(told.on_rotate, OnRotate::Restart);
    assert!(told.files[0].is_absolute() && told.files[0].ends_with("run/token"));
    let limits = [told.limits.memory, told.limits.cpu_seconds, told.limits.open_files, told.limits.processes];
    assert_eq!(limits, [Some(64 << 20), Some(9), Some(32), Some(4)]);
}

#[test]
fn an_address_may_have_a_secret_in_its_query_a_socket_and_a_transport() {
    let text = "url: http://localhost/sse?v=1\nsocket: run/s.sock\ntransport: sse\nhttp2_only: true\nquery: { key: \"${secret.key}\" }\n";
    let UpstreamSettings::Http(http) = read(text).upstream else { panic!("no address") };
    assert_eq!((http.transport, http.http2_only, http.query[0].0.as_str()), (HttpTransport::Sse, true, "key"));
    assert_eq!(http.query[0].1.references().next().unwrap().item, "key");
    assert!(http.socket.unwrap().ends_with("run/s.sock"));
    let UpstreamSettings::Http(plain) = read("url: http://localhost/mcp\n").upstream else { panic!("no address") };
    assert_eq!((plain.transport, plain.http2_only, plain.socket), (HttpTransport::Found, false, None));
}

#[test]
fn keys_that_do_not_belong_together_are_refused_at_their_places() {
    for (text, place, words) in [
        ("command: [s]\nquery: { a: b }\n", "s.yaml:3:", "`query` belongs to a service with `url`"),
        ("command: [s]\ntransport: sse\n", "s.yaml:3:", "`transport` belongs to a service with `url`"),
        ("url: http://s/mcp\nlimits: { open_files: 9 }\n", "s.yaml:3:", "`limits` belongs to a service with `command`"),
        ("url: http://s/mcp\nfiles: [a]\n", "s.yaml:3:", "`files` belongs to a service with `command`"),
        ("url: https://s/mcp\nsocket: a\n", "s.yaml:3:", "TLS is not spoken over a Unix socket"),
        ("url: https://s/mcp\ntls: { key_file: s.yaml }\n", "s.yaml:3:", "`cert_file` is missing"),
        ("url: https://s/mcp\ntls: { server_name: \"10.0.0.1\" }\n", "s.yaml:3:", "expected a DNS name"),
    ] {
        let folder = folder(text);
        let found = folder.problems(&folder.sources());
        assert!(found.iter().any(|line| line.starts_with(place) && line.contains(words)), "{text}: {found:#?}");
        assert_eq!(found.len(), 1, "{found:#?}");
    }
}
