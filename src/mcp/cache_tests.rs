//! What makes two requests the same, and what may be kept.

use proptest::prelude::*;

use super::*;
use crate::mcp::message::{Message, parse};
use crate::mcp::testing;

fn peer(uid: u32) -> Peer {
    Peer { uid: Some(uid), pid: Some(7), address: None }
}

fn keys_of(line: &str, around: &Around<'_>, mark: u64) -> Option<Keys> {
    let Ok(Message::Request(request)) = parse(line.as_bytes()) else { panic!("{line}") };
    Answers::new(testing::no_cache(), mark).keys(&request, line, None, around)
}

fn around<'a>(uid: u32, secrets: &'a [String], changes: &'a Changes) -> Around<'a> {
    Around { common: Common::Process, service: "s", peer: peer(uid), version: None, revision: 0, secrets, changes }
}

fn call(params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#)
}

#[test]
fn a_key_depends_on_what_a_server_could_tell_apart() {
    let changes = Changes::default();
    let own = |params: &str| keys_of(&call(params), &around(1, &[], &changes), 0).map(|keys| keys.own);
    let first = own(r#"{"name":"t","arguments":{"a":[1,{"b":"x"}],"c":null}}"#).unwrap();
    assert!(first.starts_with("s/tools/") && first.len() <= crate::ports::MAX_CACHE_KEY);
    for same in [
        r#"{ "arguments" : { "c":null, "a" : [1, {"b":"\u0078"} ] }, "name":"t" }"#,
        r#"{"name":"t","arguments":{"a":[1,{"b":"x"}],"c":null},"_meta":{"progressToken":9,"traceparent":"00-1"}}"#,
    ] {
        assert_eq!(own(same).as_ref(), Some(&first), "{same}");
    }
    let big = own(r#"{"name":"t","arguments":{"a":123456789012345678901}}"#);
    for other in [
        r#"{"name":"u","arguments":{"a":[1,{"b":"x"}],"c":null}}"#,
        r#"{"name":"t","arguments":{"a":[1,{"b":"x"}]}}"#,
        r#"{"name":"t","arguments":{"a":["1",{"b":"x"}],"c":null}}"#,
        r#"{"name":"t","arguments":{"a":[1,{"b":"x","c":null}]}}"#,
        r#"{"name":"t","arguments":{"a":123456789012345678902}}"#,
        r#"{"name":"t","arguments":{"a":[1,{"b":"x"}],"c":null},"_meta":{"vendor/tenant":"2"}}"#,
        r#"{"name":"t","arguments":{"a":[1,{"b":"x"}],"c":null},"more":1}"#,
    ] {
        assert!(own(other).is_some() && own(other).as_ref() != Some(&first) && own(other) != big, "{other}");
    }
    for never in [
        r#"{"name":"t","arguments":{"a":1,"a":2}}"#,
        r#"{"name":"t","requestState":"x"}"#,
        r#"{"name":"t","inputResponses":{}}"#,
        r#"{"name":"t","task":{"ttl":1000}}"#,
    ] {
        assert_eq!(own(never), None, "{never}");
    }
}

#[test]
fn who_asks_settings_secrets_and_changes_are_part_of_a_key() {
    let changes = Changes::default();
    let line = call(r#"{"name":"t"}"#);
    let first = keys_of(&line, &around(1, &[], &changes), 0).unwrap();
    let other = keys_of(&line, &around(2, &[], &changes), 0).unwrap();
    assert!(first.own != other.own && first.public == other.public && first.own != first.public);
    let secrets = ["token@2".to_owned()];
    let rotated = keys_of(&line, &around(1, &secrets, &changes), 0).unwrap();
    assert!(rotated.own != first.own && rotated.public != first.public);
    let reloaded = keys_of(&line, &Around { revision: 1, ..around(1, &[], &changes) }, 0).unwrap();
    assert_ne!(reloaded.public, first.public);
    assert_ne!(keys_of(&line, &around(1, &[], &changes), 1).unwrap().public, first.public);
    assert_eq!(changes.heard("notifications/prompts/list_changed"), Some("prompts"));
    assert_eq!(keys_of(&line, &around(1, &[], &changes), 0).unwrap().public, first.public);
    assert_eq!(changes.heard("notifications/tools/list_changed"), Some("tools"));
    assert_ne!(keys_of(&line, &around(1, &[], &changes), 0).unwrap().public, first.public);
    assert_eq!(changes.heard("notifications/message"), None);
}

#[test]
fn only_whole_answers_are_kept_and_only_for_those_who_may_have_them() {
    let keys = |rule| Keys { own: String::new(), public: String::new(), rule, seen: ("tools", 0) };
    let minute = Duration::from_secs(60);
    let allows = |rule: Option<bool>, result: &str| {
        keys(rule.map(|public| CacheRule { ttl: minute, public })).allow(result, true)
    };
    assert_eq!(allows(Some(false), r#"{"content":[]}"#), Some(Keep { ttl: minute, public: false }));
    assert_eq!(allows(Some(true), r#"{"content":[]}"#), Some(Keep { ttl: minute, public: true }));
    assert_eq!(allows(Some(true), r#"{"cacheScope":"private"}"#), Some(Keep { ttl: minute, public: false }));
    let second = Duration::from_secs(1);
    assert_eq!(allows(None, r#"{"ttlMs":1000,"cacheScope":"public"}"#), Some(Keep { ttl: second, public: true }));
    assert_eq!(allows(None, r#"{"ttlMs":1000}"#), Some(Keep { ttl: second, public: false }));
    assert_eq!(keys(None).allow(r#"{"ttlMs":1000}"#, false), None, "the legacy era has no such word");
    for never in [
        r#"{"isError":true}"#,
        r#"{"resultType":"input_required","requestState":"x"}"#,
        r#"{"isError":false,"isError":true}"#,
        r#"[]"#,
    ] {
        assert_eq!(allows(Some(true), never), None, "{never}");
    }
    for never in [r#"{"ttlMs":0}"#, r#"{"ttlMs":-5}"#, r#"{"ttlMs":"1000"}"#, r#"{}"#] {
        assert_eq!(allows(None, never), None, "{never}");
    }
}

#[test]
fn what_is_given_out_later_says_what_is_left_of_its_time() {
    let result = r#"{ "tools":[], "ttlMs" : 1000 }"#;
    assert_eq!(aged(result, Duration::from_millis(300)), r#"{ "tools":[], "ttlMs" : 700 }"#);
    assert_eq!(aged(result, Duration::from_secs(3)), r#"{ "tools":[], "ttlMs" : 0 }"#);
    assert_eq!(aged(r#"{"content":[]}"#, Duration::from_secs(3)), r#"{"content":[]}"#);
    let (back, age) = unpacked(&packed(result)).unwrap();
    assert_eq!(&back[..], result.as_bytes());
    assert!(age < Duration::from_secs(60));
    assert!(unpacked(&Bytes::from_static(b"short")).is_none());
}

proptest! {
    #[test]
    fn different_texts_never_share_a_key(a in "\\PC{0,12}", b in "\\PC{0,12}") {
        let changes = Changes::default();
        let own = |one: &str, other: &str| {
            let params = serde_json::json!({ "name": "t", "arguments": { one: other } }).to_string();
            keys_of(&call(&params), &around(1, &[], &changes), 0).unwrap().own
        };
        prop_assert_eq!(own(&a, &b) == own(&b, &a), a == b);
    }
}
