//! What a service file says, put together.

use std::num::NonZeroU32;

use super::*;
use crate::mcp::message::{Message, parse};
use crate::mcp::settings::pattern::Pattern;
use crate::mcp::settings::policy::{BreakerSettings, Rate};

const PEER: Peer = Peer { uid: Some(1000), pid: None, address: None };

fn tool(name: &str) -> ToolSettings {
    ToolSettings {
        name: Pattern::glob(name),
        rename: None,
        description: None,
        hide: false,
        timeout: None,
        cache: None,
        concurrency: None,
        rate: None,
        bounds: Default::default(),
        validate_arguments: None,
    }
}

fn policy(settings: PolicySettings) -> Policy {
    Policy::new("s".into(), settings, None)
}

fn globs(patterns: &[&str]) -> Option<Vec<Pattern>> {
    Some(patterns.iter().map(|pattern| Pattern::glob(pattern)).collect())
}

fn line(method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#)
}

fn judged(policy: &Policy, method: &str, params: &str) -> Result<Option<Box<Plan>>, Denial> {
    let line = line(method, params);
    let Ok(Message::Request(request)) = parse(line.as_bytes()) else { panic!("{line}") };
    policy.judge(&request, &line, PEER)
}

fn rule(policy: &Policy, method: &str, params: &str) -> Option<String> {
    judged(policy, method, params).err().and_then(|denial| denial.rule)
}

#[test]
fn bounds_are_kept_for_everybody() {
    let limits = Limits { max_in_flight: 2, ..Limits::small() };
    let decided = |params: &str, in_flight| {
        let line = line("vendor/x", params);
        let Ok(Message::Request(request)) = parse(line.as_bytes()) else { panic!("{line}") };
        decide(&request, in_flight, &limits).map_err(|denial| denial.kind)
    };
    assert_eq!(decided(r#"{"name":"n"}"#, 1), Ok(()));
    assert_eq!(decided(r#"{"name":"n"}"#, 2), Err("too_many_in_flight"));
    assert_eq!(decided(&format!(r#"{{"name":"{}"}}"#, "n".repeat(MAX_NAME_BYTES)), 0), Err("name_too_long"));
}

#[test]
fn a_service_without_rules_has_nothing_to_say() {
    let breaker = Some(BreakerSettings { failure_threshold: 1, reset_timeout: Duration::from_secs(1) });
    let policy = policy(PolicySettings { breaker, ..PolicySettings::default() });
    assert!(matches!(judged(&policy, "tools/call", r#"{"name":"t"}"#), Ok(None)));
    assert!(matches!(judged(&policy, "tools/list", "{}"), Ok(None)));
}

#[test]
fn what_a_request_is_about_is_found_wherever_the_protocol_says_it() {
    let mut settings = PolicySettings::default();
    settings.rules.deny.tools = globs(&["no"]);
    settings.rules.deny.prompts = globs(&["no"]);
    settings.rules.deny.resources = globs(&["no:*"]);
    let policy = policy(settings);
    for (method, params, denied) in [
        ("tools/call", r#"{"name":"no"}"#, "deny.tools: no"),
        ("tools/call", r#"{"name":"n\u006f"}"#, "deny.tools: no"),
        ("prompts/get", r#"{"name":"no"}"#, "deny.prompts: no"),
        ("resources/read", r#"{"uri":"no:1"}"#, "deny.resources: no:*"),
        ("resources/subscribe", r#"{"uri":"no:1"}"#, "deny.resources: no:*"),
        ("completion/complete", r#"{"ref":{"type":"ref/prompt","name":"no"}}"#, "deny.prompts: no"),
        ("completion/complete", r#"{"ref":{"type":"ref/resource","uri":"no:{x}"}}"#, "deny.resources: no:*"),
        (
            "subscriptions/listen",
            r#"{"notifications":{"resourceSubscriptions":["yes:1","no:1"]}}"#,
            "deny.resources: no:*",
        ),
    ] {
        assert_eq!(rule(&policy, method, params).as_deref(), Some(denied), "{method}");
        let allowed = params.replace("no", "yes").replace(r"n\u006f", "yes").replace("yestifications", "notifications");
        assert!(judged(&policy, method, &allowed).is_ok(), "{method} {allowed}");
    }
    for (method, params) in [
        ("tools/call", r#"{"name":7}"#),
        ("completion/complete", r#"{"ref":{"name":"yes","name":"no"}}"#),
        ("completion/complete", r#"{"ref":{"name":"yes","uri":"no:1"}}"#),
        ("subscriptions/listen", r#"{"notifications":{"resourceSubscriptions":"no:1"}}"#),
    ] {
        assert_eq!(judged(&policy, method, params).map(|_| ()).unwrap_err().kind, "invalid_params", "{params}");
    }
}

#[test]
fn a_dry_run_notes_and_lets_pass() {
    let mut settings = PolicySettings { dry_run: true, ..PolicySettings::default() };
    settings.rules.allow.tools = globs(&["a"]);
    let policy = policy(settings);
    let plan = judged(&policy, "tools/call", r#"{"name":"b"}"#).unwrap().unwrap();
    assert!(plan.would_deny);
    assert_eq!(plan.rule.as_deref(), Some("allow.tools"));
    assert!(matches!(judged(&policy, "tools/call", r#"{"name":"a"}"#), Ok(None)));
    assert_eq!(policy.edited(Kind::Tools, r#"{"tools":[{"name":"b"}]}"#, PEER), None);
}

#[test]
fn an_exact_name_comes_before_patterns() {
    let mut first = tool("get_*");
    first.timeout = Some(Duration::from_secs(1));
    let mut exact = tool("get_x");
    exact.timeout = Some(Duration::from_secs(2));
    let policy = policy(PolicySettings { tools: vec![first, exact], ..PolicySettings::default() });
    let timeout = |name: &str| {
        let plan = judged(&policy, "tools/call", &format!(r#"{{"name":"{name}"}}"#)).unwrap();
        plan.and_then(|plan| plan.timeout)
    };
    assert_eq!(timeout("get_x"), Some(Duration::from_secs(2)));
    assert_eq!(timeout("get_y"), Some(Duration::from_secs(1)));
    assert_eq!(timeout("set_y"), None);
}

#[test]
fn a_renamed_tool_is_known_by_its_new_name_alone() {
    let mut renamed = tool("old");
    renamed.rename = Some("new".into());
    let mut hidden = tool("hidden");
    hidden.hide = true;
    let policy = policy(PolicySettings { tools: vec![renamed, hidden], ..PolicySettings::default() });
    let original = |name: &str| {
        let line = line("tools/call", &format!(r#"{{"name":"{name}"}}"#));
        let Ok(Message::Request(request)) = parse(line.as_bytes()) else { panic!("{line}") };
        policy.original_name(&request).map_err(|denial| denial.kind)
    };
    assert_eq!(original("new"), Ok(Some("old".into())));
    assert_eq!(original("other"), Ok(None));
    assert_eq!(original("old"), Err("unknown_tool"));
    let list = r#"{"tools":[{"name":"old","x":1.0},{"name":"hidden"},{"name":"other"}]}"#;
    assert_eq!(
        policy.edited(Kind::Tools, list, PEER).unwrap(),
        r#"{"tools":[{"name":"new","x":1.0},{"name":"other"}]}"#
    );
}

#[test]
fn arguments_are_checked_for_the_tools_that_want_it() {
    let mut free = tool("free");
    free.validate_arguments = Some(false);
    let policy = policy(PolicySettings { validate_arguments: true, tools: vec![free], ..PolicySettings::default() });
    let list =
        r#"{"tools":[{"name":"t","inputSchema":{"required":["a"]}},{"name":"free","inputSchema":{"required":["a"]}}]}"#;
    assert!(judged(&policy, "tools/call", r#"{"name":"t"}"#).is_ok(), "the schema is not known yet");
    assert!(judged(&policy, "tools/list", "{}").unwrap().unwrap().list.is_some());
    assert_eq!(policy.edited(Kind::Tools, list, PEER), None);
    let denial = judged(&policy, "tools/call", r#"{"name":"t","arguments":{}}"#).map(|_| ()).unwrap_err();
    assert!(denial.as_result && denial.kind == "invalid_arguments", "{denial:?}");
    assert_eq!(denial.rule.as_deref(), Some("validate_arguments"));
    assert!(judged(&policy, "tools/call", r#"{"name":"t","arguments":{"a":1}}"#).is_ok());
    assert!(judged(&policy, "tools/call", r#"{"name":"free"}"#).is_ok());
}

#[test]
fn results_are_kept_in_bounds_and_a_dry_run_only_notes_it() {
    for dry_run in [false, true] {
        let mut bounded = tool("t");
        bounded.bounds.max_bytes = Some(100);
        bounded.bounds.max_rows = Some(1);
        bounded.rate = Some(Rate { count: NonZeroU32::MIN, period: Duration::from_secs(1) });
        let policy = policy(PolicySettings { dry_run, tools: vec![bounded], ..PolicySettings::default() });
        let mut plan = judged(&policy, "tools/call", r#"{"name":"t"}"#).unwrap().unwrap();
        assert_eq!(policy.bounded(&mut plan, "t", r#"{"structuredContent":[1]}"#), None);
        assert_eq!(plan.rule, None);
        let long = format!(r#"{{"content":"{}"}}"#, "x".repeat(100));
        let withheld = policy.bounded(&mut plan, "t", &long);
        assert_eq!((matches!(withheld, Some(Bounded::Result(_))), plan.would_deny), (!dry_run, dry_run));
        assert_eq!(plan.rule.as_deref(), Some("tools.t.max_bytes"));
        plan.rule = None;
        let cut = policy.bounded(&mut plan, "t", r#"{"structuredContent":[1,2]}"#);
        assert_eq!(matches!(cut, Some(Bounded::Cut(_))), !dry_run);
        assert_eq!(plan.rule.as_deref(), Some("tools.t.max_rows"));
    }
}

#[test]
fn a_breaker_outlives_a_change_of_other_settings() {
    let breaker = Some(BreakerSettings { failure_threshold: 1, reset_timeout: Duration::from_secs(60) });
    let before = policy(PolicySettings { breaker, ..PolicySettings::default() });
    before.breaker.as_ref().unwrap().failed();
    let after = Policy::new("s".into(), PolicySettings { breaker, dry_run: true, ..Default::default() }, Some(&before));
    assert!(Arc::ptr_eq(after.breaker.as_ref().unwrap(), before.breaker.as_ref().unwrap()));
    let other = Some(BreakerSettings { failure_threshold: 2, reset_timeout: Duration::from_secs(60) });
    let after = Policy::new("s".into(), PolicySettings { breaker: other, ..Default::default() }, Some(&before));
    assert!(!Arc::ptr_eq(after.breaker.as_ref().unwrap(), before.breaker.as_ref().unwrap()));
}
