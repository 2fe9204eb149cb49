//! Both bridges, message by message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::advance;

use super::*;
use crate::mcp::message::{Message, parse};
use crate::mcp::settings::{OnRotate, ServiceSettings, StdioSettings, UpstreamSettings};

/// A bridge with both ends in hand.
struct Ends {
    bridge: Bridge,
    /// What was sent to the upstream and given to the client, and not looked at yet.
    sent: Vec<Value>,
    given: Vec<Value>,
    withdrawn: Vec<IdKey>,
}

impl Ends {
    fn new() -> Self {
        let upstream = UpstreamSettings::Stdio(StdioSettings {
            argv: vec!["true".into()],
            env: BTreeMap::new(),
            working_directory: None,
            identity: None,
            on_rotate: OnRotate::Ignore,
            files: Vec::new(),
            limits: Default::default(),
        });
        let settings = ServiceSettings { upstream, timeout: Duration::from_secs(1), policy: Default::default() };
        let service = Arc::new(Service::new("s", settings).unwrap());
        let bridge = Bridge::new(service, Duration::from_secs(60));
        Self { bridge, sent: Vec::new(), given: Vec::new(), withdrawn: Vec::new() }
    }

    /// In front of a server of the modern era, after the client's `initialize`.
    fn to_modern(capabilities: Value) -> Self {
        let mut ends = Self::new();
        ends.bridge.service.found(Era::Legacy, false);
        let capabilities_of_client = json!({ "elicitation": {}, "sampling": {} });
        assert!(ends.client(json!({ "id": 0, "method": "initialize",
            "params": { "protocolVersion": "2025-06-18", "capabilities": capabilities_of_client, "clientInfo": { "name": "c" } } })));
        let discover = ends.sent();
        assert_eq!(discover["method"], "server/discover");
        ends.upstream(json!({ "id": discover["id"], "result": { "supportedVersions": ["2026-07-28"], "capabilities": capabilities } }));
        let initialized = ends.given();
        assert_eq!((&initialized["id"], &initialized["result"]["protocolVersion"]), (&json!(0), &json!("2025-06-18")));
        ends
    }

    /// In front of a server of the legacy era, after `initialize` in the client's name.
    fn to_legacy(capabilities: Value) -> Self {
        let mut ends = Self::new();
        ends.bridge.service.found(Era::Modern, false);
        assert!(ends.client(modern(100, "server/discover", json!({}))));
        let initialize = ends.sent();
        assert_eq!(
            (&initialize["method"], &initialize["params"]["capabilities"]["elicitation"]),
            (&json!("initialize"), &json!({}))
        );
        ends.upstream(json!({ "id": initialize["id"], "result": { "protocolVersion": "2025-11-25", "capabilities": capabilities } }));
        assert_eq!(ends.sent()["method"], "notifications/initialized");
        assert_eq!(ends.given()["result"]["supportedVersions"], json!(["2026-07-28"]));
        ends
    }

    fn client(&mut self, message: Value) -> bool {
        let line = line(message);
        let taken = match parse(&line).unwrap() {
            Message::Request(request) => self.bridge.request(&request, &line),
            Message::Notification(notification) => self.bridge.notification(&notification, &line),
            Message::Answer(answer) => self.bridge.client_answer(&answer),
        };
        self.take();
        taken
    }

    fn upstream(&mut self, message: Value) -> bool {
        let line = line(message);
        let taken = match parse(&line).unwrap() {
            Message::Request(request) => self.bridge.upstream_request(&request, &line),
            Message::Notification(notification) => self.bridge.upstream_notification(&notification, &line),
            Message::Answer(answer) => self.bridge.answer(&answer, &line),
        };
        self.take();
        taken
    }

    fn take(&mut self) {
        for step in self.bridge.steps() {
            match step {
                Step::Send { line, .. } => self.sent.push(serde_json::from_slice(&line).unwrap()),
                Step::Give(line) => self.given.push(serde_json::from_slice(&line).unwrap()),
                Step::Withdraw(key) => self.withdrawn.push(key),
                Step::Extend(_) | Step::Resume(_) => {}
            }
        }
    }

    fn sent(&mut self) -> Value {
        assert!(!self.sent.is_empty(), "nothing was sent");
        self.sent.remove(0)
    }

    fn given(&mut self) -> Value {
        assert!(!self.given.is_empty(), "nothing was given");
        self.given.remove(0)
    }

    fn is_quiet(&self) -> bool {
        self.sent.is_empty() && self.given.is_empty()
    }
}

fn line(mut message: Value) -> Bytes {
    message["jsonrpc"] = json!("2.0");
    message.to_string().into()
}

fn modern(id: u32, method: &str, mut params: Value) -> Value {
    params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
    params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({ "elicitation": {} });
    json!({ "id": id, "method": method, "params": params })
}

fn key(id: u32) -> IdKey {
    IdKey::Integer(id.into())
}

#[test]
fn two_of_one_era_are_left_alone() {
    let mut ends = Ends::new();
    assert!(!ends.client(json!({ "id": 1, "method": "initialize", "params": {} })));
    assert!(!ends.upstream(json!({ "id": 1, "result": { "protocolVersion": "2025-06-18" } })));
    assert!(!ends.client(json!({ "id": 2, "method": "tools/list" })));
    assert!(!ends.upstream(json!({ "id": 7, "method": "sampling/createMessage" })));
    assert!(ends.is_quiet() && ends.bridge.service.speaks(Era::Legacy) == Some(true));

    let mut ends = Ends::new();
    assert!(ends.client(modern(1, "tools/list", json!({}))));
    let discover = ends.sent();
    ends.upstream(
        json!({ "id": discover["id"], "result": { "supportedVersions": ["2026-07-28"], "capabilities": {} } }),
    );
    assert_eq!(ends.sent()["id"], 1, "what was held goes as it came");
    assert!(!ends.client(modern(2, "tools/list", json!({}))) && ends.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_a_question_of_the_modern_era_is_told_initialize() {
    let mut ends = Ends::new();
    ends.client(modern(1, "tools/list", json!({})));
    let discover = ends.sent();
    advance(Duration::from_secs(4)).await;
    ends.bridge.expire();
    ends.take();
    let initialize = ends.sent();
    assert_eq!(initialize["method"], "initialize");
    // It was only slow, and speaks the modern era alone.
    ends.upstream(
        json!({ "id": discover["id"], "result": { "supportedVersions": ["2026-07-28"], "capabilities": {} } }),
    );
    ends.upstream(json!({ "id": initialize["id"], "error": { "code": -32022, "message": "no" } }));
    assert_eq!(ends.sent()["id"], 1);
    assert_eq!(ends.bridge.service.speaks(Era::Modern), Some(true));
}

#[test]
fn a_client_whose_greeting_is_refused_twice_gets_the_first_refusal() {
    let mut ends = Ends::new();
    ends.client(json!({ "id": 1, "method": "initialize", "params": {} }));
    assert!(ends.upstream(json!({ "id": 1, "error": { "code": -1, "message": "not you" } })));
    let discover = ends.sent();
    ends.upstream(json!({ "id": discover["id"], "error": { "code": -32601, "message": "what?" } }));
    assert_eq!(ends.given()["error"]["message"], "not you");
    assert!(ends.is_quiet());
}

#[test]
fn what_a_modern_server_wants_to_know_is_asked_and_brought() {
    let mut ends = Ends::to_modern(json!({ "tools": {} }));
    ends.client(json!({ "id": "a", "method": "tools/call", "params": { "name": "t", "arguments": { "n": 1 } } }));
    let call = ends.sent();
    assert_eq!(
        call["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"],
        json!({ "elicitation": {}, "sampling": {} })
    );
    let asks = json!({ "resultType": "input_required", "requestState": "s", "inputRequests": {
        "x": { "method": "elicitation/create", "params": { "mode": "url", "url": "u", "message": "m" } },
        "y": { "method": "sampling/createMessage", "params": { "maxTokens": 1 } } } });
    ends.upstream(json!({ "id": call["id"], "result": asks }));
    let (x, y) = (ends.given(), ends.given());
    assert!(x["params"]["elicitationId"].is_string() && y["method"] == "sampling/createMessage");
    ends.client(json!({ "id": y["id"], "result": { "model": "m" } }));
    assert!(ends.is_quiet(), "one answer is missing");
    ends.client(json!({ "id": x["id"], "result": { "action": "accept" } }));
    let again = ends.sent();
    assert_ne!(again["id"], call["id"]);
    assert_eq!(again["params"]["inputResponses"], json!({ "x": { "action": "accept" }, "y": { "model": "m" } }));
    assert_eq!((&again["params"]["requestState"], &again["params"]["arguments"]), (&json!("s"), &json!({ "n": 1 })));
    ends.upstream(json!({ "id": again["id"], "result": { "resultType": "complete", "content": [] } }));
    assert_eq!(ends.given()["id"], "a");
}

#[test]
fn a_question_that_is_not_answered_ends_its_request_and_takes_the_others_back() {
    let mut ends = Ends::to_modern(json!({ "tools": {} }));
    ends.client(json!({ "id": 5, "method": "tools/call", "params": { "name": "t" } }));
    let id = ends.sent()["id"].clone();
    let asks = json!({ "resultType": "input_required", "inputRequests": { "x": { "method": "roots/list" }, "y": { "method": "roots/list" } } });
    ends.upstream(json!({ "id": id, "result": asks }));
    let (x, y) = (ends.given(), ends.given());
    ends.client(json!({ "id": x["id"], "error": { "code": -32601, "message": "no roots" } }));
    let cancelled = ends.given();
    assert_eq!(
        (&cancelled["method"], &cancelled["params"]["requestId"]),
        (&json!("notifications/cancelled"), &y["id"])
    );
    let failed = ends.given();
    assert_eq!((&failed["id"], &failed["error"]["code"]), (&json!(5), &json!(-32601)));
    assert!(failed["error"]["message"].as_str().unwrap().contains("no roots"));
}

#[test]
fn a_modern_server_that_asks_for_ever_is_not_tried_for_ever() {
    let mut ends = Ends::to_modern(json!({ "tools": {} }));
    ends.client(json!({ "id": 5, "method": "tools/call", "params": { "name": "t" } }));
    let mut tries = 0;
    while ends.given.is_empty() {
        tries += 1;
        let id = ends.sent()["id"].clone();
        ends.upstream(json!({ "id": id, "result": { "resultType": "input_required", "requestState": "again" } }));
    }
    assert_eq!((tries, &ends.given()["error"]["code"]), (16, &json!(-32010)));
}

#[tokio::test(start_paused = true)]
async fn a_legacy_client_is_told_what_a_modern_server_tells_its_subscriptions() {
    let mut ends = Ends::to_modern(json!({ "tools": { "listChanged": true }, "resources": { "subscribe": true } }));
    assert!(ends.client(json!({ "method": "notifications/initialized" })));
    let lists = ends.sent();
    assert_eq!(lists["params"]["notifications"], json!({ "toolsListChanged": true }));
    ends.client(json!({ "id": 2, "method": "resources/subscribe", "params": { "uri": "u" } }));
    let one = ends.sent();
    let on = |listen: &Value, method: &str, more: Value| {
        let mut params = more;
        params["_meta"]["io.modelcontextprotocol/subscriptionId"] = listen["id"].clone();
        json!({ "method": method, "params": params })
    };
    let acknowledged = "notifications/subscriptions/acknowledged";
    ends.upstream(on(&lists, acknowledged, json!({ "notifications": { "toolsListChanged": true } })));
    assert!(ends.is_quiet());
    ends.upstream(on(&one, acknowledged, json!({ "notifications": { "resourceSubscriptions": ["u"] } })));
    assert_eq!(ends.given(), json!({ "jsonrpc": "2.0", "id": 2, "result": {} }));
    ends.upstream(on(&lists, "notifications/tools/list_changed", json!({})));
    assert_eq!(ends.given(), json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" }));
    ends.upstream(on(&one, "notifications/resources/updated", json!({ "uri": "u" })));
    assert_eq!(ends.given()["params"], json!({ "uri": "u" }));

    // A subscription that breaks is made again, and what may have been missed is told.
    ends.upstream(json!({ "method": "notifications/cancelled", "params": { "requestId": lists["id"] } }));
    advance(Duration::from_secs(2)).await;
    ends.bridge.expire();
    ends.take();
    assert_eq!(
        (ends.given()["method"].clone(), ends.sent()["method"].clone()),
        (json!("notifications/tools/list_changed"), json!("subscriptions/listen"))
    );

    ends.client(json!({ "id": 3, "method": "resources/unsubscribe", "params": { "uri": "u" } }));
    assert_eq!((ends.given()["id"].clone(), ends.withdrawn.len()), (json!(3), 1));
}

#[test]
fn what_a_legacy_server_asks_is_answered_by_the_next_try() {
    let mut ends = Ends::to_legacy(json!({ "tools": {} }));
    ends.client(modern(1, "tools/call", json!({ "name": "t", "_meta": { "progressToken": "p" } })));
    let call = ends.sent();
    assert_eq!(call["params"], json!({ "name": "t", "_meta": { "progressToken": call["id"] } }));
    ends.upstream(json!({ "id": "q", "method": "elicitation/create", "params": { "message": "m" } }));
    let asked = ends.given();
    assert_eq!((&asked["id"], &asked["result"]["resultType"]), (&json!(1), &json!("input_required")));
    let state = asked["result"]["requestState"].clone();
    let name = asked["result"]["inputRequests"].as_object().unwrap().keys().next().unwrap().clone();

    // Another request with that state is none of it.
    ends.client(modern(2, "tools/call", json!({ "name": "other", "requestState": state })));
    assert_eq!(ends.given()["error"]["code"], -32602);
    // One that brings nothing is asked again.
    ends.client(modern(3, "tools/call", json!({ "name": "t", "requestState": state })));
    assert_eq!(ends.given()["result"]["resultType"], "input_required");
    let again = json!({ "name": "t", "requestState": state, "inputResponses": { name: { "action": "accept" } }, "_meta": { "progressToken": 9 } });
    ends.client(modern(4, "tools/call", again));
    assert_eq!(ends.sent(), json!({ "jsonrpc": "2.0", "id": "q", "result": { "action": "accept" } }));
    ends.upstream(
        json!({ "method": "notifications/progress", "params": { "progressToken": call["id"], "progress": 1 } }),
    );
    assert_eq!(ends.given()["params"]["progressToken"], 9, "it is the last try that is told");
    ends.upstream(json!({ "id": call["id"], "result": { "content": [] } }));
    assert_eq!(
        ends.given(),
        json!({ "jsonrpc": "2.0", "id": 4, "result": { "content": [], "resultType": "complete" } })
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_come_back_is_not_waited_for_for_ever() {
    let mut ends = Ends::to_legacy(json!({ "tools": {} }));
    ends.client(modern(1, "tools/call", json!({ "name": "t" })));
    let call = ends.sent();
    ends.upstream(json!({ "id": 1, "method": "elicitation/create", "params": {} }));
    ends.given();
    advance(Duration::from_secs(61)).await;
    ends.bridge.expire();
    ends.take();
    assert_eq!(ends.sent()["error"]["code"], -32011);
    assert_eq!(ends.withdrawn, [IdKey::Text(call["id"].as_str().unwrap().into())]);
}

#[test]
fn an_answer_that_comes_while_the_client_thinks_is_kept_for_it() {
    let mut ends = Ends::to_legacy(json!({ "tools": {} }));
    ends.client(modern(1, "tools/call", json!({ "name": "t" })));
    let call = ends.sent();
    ends.upstream(json!({ "id": 1, "method": "elicitation/create", "params": {} }));
    let state = ends.given()["result"]["requestState"].clone();
    ends.upstream(json!({ "method": "notifications/cancelled", "params": { "requestId": 1 } }));
    ends.upstream(json!({ "id": call["id"], "result": { "content": ["late"] } }));
    assert!(ends.is_quiet());
    ends.client(modern(2, "tools/call", json!({ "name": "t", "requestState": state, "inputResponses": {} })));
    assert_eq!(ends.given()["result"]["content"], json!(["late"]));
}

#[test]
fn a_server_that_asks_what_no_client_would_answer_is_refused() {
    let mut ends = Ends::to_legacy(json!({ "tools": {} }));
    ends.upstream(json!({ "id": 1, "method": "elicitation/create", "params": {} }));
    assert_eq!(ends.sent()["error"]["code"], -32601, "nothing is under way");
    ends.client(modern(1, "tools/call", json!({ "name": "t" })));
    ends.sent();
    ends.upstream(json!({ "id": 2, "method": "sampling/createMessage", "params": {} }));
    assert_eq!(ends.sent()["error"]["code"], -32601, "the client has not said that it can");
    ends.upstream(json!({ "id": 3, "method": "ping" }));
    assert_eq!(ends.sent(), json!({ "jsonrpc": "2.0", "id": 3, "result": {} }));
}

#[test]
fn a_modern_client_hears_of_the_log_only_what_it_wants() {
    let mut ends = Ends::to_legacy(json!({ "tools": {}, "logging": {} }));
    let log = |level: &str| json!({ "method": "notifications/message", "params": { "level": level, "data": 1 } });
    ends.client(modern(1, "tools/call", json!({ "name": "t" })));
    ends.sent();
    ends.upstream(log("error"));
    assert!(ends.is_quiet());
    ends.client(modern(
        2,
        "tools/call",
        json!({ "name": "t", "_meta": { "io.modelcontextprotocol/logLevel": "warning" } }),
    ));
    assert_eq!(ends.sent()["params"], json!({ "level": "warning" }));
    ends.sent();
    ends.upstream(log("info"));
    assert!(ends.is_quiet());
    ends.upstream(log("warning"));
    assert_eq!(ends.given()["params"]["level"], "warning");
}

#[test]
fn a_modern_client_subscribes_to_what_a_legacy_server_tells() {
    let mut ends =
        Ends::to_legacy(json!({ "tools": { "listChanged": true }, "prompts": {}, "resources": { "subscribe": true } }));
    let filter = json!({ "toolsListChanged": true, "promptsListChanged": true, "resourceSubscriptions": ["u", "v"] });
    ends.client(modern(7, "subscriptions/listen", json!({ "notifications": filter })));
    let (u, v) = (ends.sent(), ends.sent());
    assert_eq!((&u["method"], &v["params"]), (&json!("resources/subscribe"), &json!({ "uri": "v" })));
    ends.upstream(json!({ "id": u["id"], "result": {} }));
    assert!(ends.given.is_empty());
    ends.upstream(json!({ "id": v["id"], "error": { "code": -1, "message": "no" } }));
    let acknowledged = ends.given();
    assert_eq!(
        acknowledged["params"]["notifications"],
        json!({ "toolsListChanged": true, "resourceSubscriptions": ["u"] })
    );
    assert_eq!(acknowledged["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], 7);
    ends.upstream(json!({ "method": "notifications/prompts/list_changed" }));
    ends.upstream(json!({ "method": "notifications/resources/updated", "params": { "uri": "v" } }));
    assert!(ends.is_quiet());
    ends.upstream(json!({ "method": "notifications/resources/updated", "params": { "uri": "u" } }));
    assert_eq!(ends.given()["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], 7);
    assert!(ends.bridge.withdraw(&key(7)));
    ends.take();
    assert_eq!((ends.sent()["method"].clone(), ends.is_quiet()), (json!("resources/unsubscribe"), true));
}

#[test]
fn errors_and_methods_that_the_modern_era_does_not_have_are_said_in_its_words() {
    let mut ends = Ends::to_legacy(json!({ "resources": {} }));
    ends.client(modern(1, "resources/read", json!({ "uri": "u" })));
    let id = ends.sent()["id"].clone();
    ends.upstream(json!({ "id": id, "error": { "code": -32002, "message": "none", "data": { "uri": "u" } } }));
    assert_eq!(ends.given()["error"], json!({ "code": -32602, "message": "none", "data": { "uri": "u" } }));
    for (id, method) in [(2, "ping"), (3, "logging/setLevel"), (4, "resources/subscribe")] {
        ends.client(modern(id, method, json!({})));
        assert_eq!(ends.given()["error"]["code"], -32601, "{method}");
    }
    let mut other = modern(5, "tools/list", json!({}));
    other["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2031-01-01");
    ends.client(other);
    assert_eq!(ends.given()["error"]["data"]["supported"], json!(["2026-07-28"]));
}
