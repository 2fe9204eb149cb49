//! What a service file says about who may use what, within which bounds.

use super::*;
use crate::mcp::settings::policy::{PeerName, Rate};

const MAIN: &str = "version: \"1.0\"\nservices: { a: { config_file: a.yaml } }\n";

fn service(text: &str) -> Folder {
    Folder::with(&[("mcpeg.yaml", MAIN), ("a.yaml", text)])
}

#[test]
fn a_policy_is_read_whole() {
    let folder = service(
        r#"type: mcp
command: [cat]
circuit_breaker: { failure_threshold: 3 }
allow: { tools: ["get_*"], peers: [1000, tcp] }
deny: { resources: ["repo://secret/{name}"] }
peers:
  - { peers: [1001], allow: { tools: [] } }
  - deny: { prompts: [x] }
dry_run: true
validate_arguments: true
server_ttl: false
tools:
  - { name: get_issue, rename: issue, description: d, timeout: 10s, cache_ttl: 1m, cache_scope: public, rate: 60/m }
  - { name: "get_*", hide: true, concurrency: 2, max_bytes: 1MiB, max_rows: 10, validate_arguments: false }
resources:
  - { pattern: "repo://{owner}/{name}", cache_ttl: 1h, max_bytes: 64KiB }
"#,
    );
    let policy = folder.load().unwrap().mcp.services["a"].policy.clone();
    let breaker = policy.breaker.unwrap();
    assert_eq!((breaker.failure_threshold, breaker.reset_timeout), (3, Duration::from_secs(60)));
    assert_eq!(policy.rules.allow.peers, Some(vec![PeerName::Uid(1000), PeerName::Tcp]));
    assert!(policy.rules.allow.prompts.is_none() && policy.rules.deny.resources.is_some());
    assert_eq!(policy.peers[0].rules.allow.tools.as_ref().map(Vec::len), Some(0));
    assert_eq!((policy.peers[1].peers.is_none(), policy.dry_run, policy.ignore_server_ttl), (true, true, true));
    let [one, many] = &policy.tools[..] else { panic!("{:?}", policy.tools) };
    assert!(matches!(one.rate, Some(Rate { count, period }) if count.get() == 60 && period.as_secs() == 60));
    assert!(one.cache.is_some_and(|cache| cache.public && cache.ttl.as_secs() == 60) && !one.hide);
    assert_eq!((many.hide, many.concurrency, many.validate_arguments), (true, Some(2), Some(false)));
    assert_eq!((many.bounds.max_bytes, many.bounds.max_rows), (Some(1 << 20), Some(10)));
    assert!(policy.resources[0].pattern.matches("repo://acme/site"));
    let off = service("type: mcp\ncommand: [cat]\ncircuit_breaker: { enabled: false }\n").load().unwrap();
    assert!(off.mcp.services["a"].policy.breaker.is_none());
}

#[test]
fn mistakes_of_a_policy_are_named_at_their_place() {
    let folder = service(
        r#"type: mcp
command: [cat]
allow: { resources: ["a{b"] }
tools:
  - { name: a, rename: "b c" }
  - { name: "x*", rename: y, description: d }
  - { name: b, rename: c }
  - { name: c }
  - { name: a, rate: 5/d, cache_scope: public }
resources: [ { pattern: "{}", handler: h } ]
peers: [ { peers: [udp] } ]
"#,
    );
    let found = folder.problems(&folder.sources());
    for (line, words) in [
        (3, "not a pattern of addresses"),
        (5, "1 to 128 letters"),
        (6, "only one tool can be renamed"),
        (6, "only one tool can be described"),
        (7, "another tool has this name"),
        (9, "expected a rate"),
        (10, "expected one of `get_table_schema`"),
        (10, "is none of `{name}` and `{+name}`"),
        (11, "expected one of `tcp`"),
    ] {
        let place = format!("a.yaml:{line}:");
        assert!(found.iter().any(|said| said.contains(&place) && said.contains(words)), "{line} {words}: {found:#?}");
    }
}
