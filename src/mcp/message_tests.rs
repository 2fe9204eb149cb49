//! The envelope against odd, hostile and generated messages.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn request(line: &str) -> Request<'_> {
    match parse(line.as_bytes()) {
        Ok(Message::Request(request)) => request,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(line: &str) -> Refusal {
    match parse(line.as_bytes()) {
        Err(refusal) => refusal,
        Ok(message) => panic!("{line}: {message:?}"),
    }
}

#[test]
fn a_call_is_read_whatever_the_order_and_the_unknown_fields() {
    let found = request(
        r#" {"x":[1e400,{"id":9}],"params":{"arguments":{"name":"no"},"_meta":{"traceparent":"00-a-b-01","k":0},"name":"say"},"id":"7","method":"tools/call","jsonrpc":"2.0"} "#,
    );
    assert_eq!(found.method, "tools/call");
    assert_eq!(found.key, IdKey::Text("7".into()));
    assert_eq!(found.called_name().as_deref(), Some("say"));
    assert_eq!(found.traceparent().as_deref(), Some("00-a-b-01"));
    assert_eq!(found.modern_version(), None);
}

#[test]
fn escapes_in_methods_keys_and_names_are_read() {
    let found = request(r#"{"jsonrpc":"2.0","id":1,"m\u0065thod":"tools\/call","params":{"n\u0061me":"s\u0061y"}}"#);
    assert_eq!((found.method.as_ref(), found.called_name().as_deref()), ("tools/call", Some("say")));
}

#[test]
fn ids_that_are_the_same_are_equal_and_big_ones_are_kept() {
    let key = |id: &str| request(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m"}}"#)).key;
    assert_eq!(key("1"), key("1.0"));
    assert_eq!(key("-0"), key("0"));
    assert_eq!(key(r#""a""#), key(r#""\u0061""#));
    assert_ne!(key("1"), key(r#""1""#));
    assert_ne!(key("18446744073709551615"), key("18446744073709551616"));
    assert_ne!(key("9007199254740993"), key("9007199254740992"));
    assert_eq!(key("123456789012345678901234567890"), IdKey::Number("123456789012345678901234567890".into()));
    assert_eq!(key("1.5"), IdKey::Number("1.5".into()));
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    for line in [
        r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"m"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{},"params":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","n\u0061me":"b"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","Name":"b"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"a","URI":"b"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"m","Method":"b"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"traceparent":"a","traceparent":"b"}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"m","result":{}}"#,
        r#"{"jsonrpc":"2.0","id":null,"method":"m"}"#,
        r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#,
        r#"{"jsonrpc":"1.0","id":1,"method":"m"}"#,
        r#"{"id":1,"method":"m"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":5}"#,
        r#"{"jsonrpc":"2.0"}"#,
        r#""text""#,
    ] {
        assert!(matches!(refused(line), Refusal::Invalid(_)), "{line}: {:?}", refused(line));
        assert_eq!(refused(line).code(), -32600);
    }
    assert_eq!(refused(r#"[{"jsonrpc":"2.0","id":1,"method":"m"}]"#), Refusal::Batch);
    request(r#"{"jsonrpc":"2.0","id":1,"method":"vendor/m","params":{"Name":"b"}}"#);
    request(r#"{"jsonrpc":"2.0","id":1,"method":"m","params":[1,2]}"#);
}

#[test]
fn what_is_no_json_is_a_parse_error() {
    for line in ["", "{", "{\"a\":}", "{} {}", "nonsense", "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\"}x"] {
        assert!(matches!(refused(line), Refusal::Syntax(_)), "{line}: {:?}", refused(line));
        assert_eq!(refused(line).code(), -32700);
    }
    assert!(matches!(parse(b"{\"jsonrpc\":\"\xff\"}"), Err(Refusal::Syntax(_))));
}

#[test]
fn nesting_is_bounded_but_brackets_in_strings_do_not_count() {
    let nested = |levels: usize| {
        let (open, close) = ("[".repeat(levels), "]".repeat(levels));
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{"a":{open}{close}}}}}"#)
    };
    request(&nested(MAX_DEPTH - 2));
    assert_eq!(refused(&nested(MAX_DEPTH - 1)), Refusal::TooDeep);
    assert_eq!(refused(&nested(1_000_000)), Refusal::TooDeep);
    request(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{"a":"\"{}"}}}}"#, "[".repeat(1000)));
}

#[test]
fn answers_say_whether_they_are_errors() {
    let answer = |line: &'static str| match parse(line.as_bytes()) {
        Ok(Message::Answer(answer)) => answer,
        other => panic!("{other:?}"),
    };
    let tool_error = |line| match answer(line).body {
        AnswerBody::Result { tool_error, .. } => tool_error,
        AnswerBody::Error { .. } => panic!("an error"),
    };
    assert!(tool_error(r#"{"jsonrpc":"2.0","id":1,"result":{"content":[],"isError":true}}"#));
    assert!(!tool_error(r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"isError":true}]}}"#));
    assert!(!tool_error(r#"{"jsonrpc":"2.0","id":1,"result":null}"#));
    let failed = answer(r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32601,"message":"no"}}"#);
    assert_eq!(failed.key, None);
    assert!(matches!(failed.body, AnswerBody::Error { code: Some(-32601), message: Some(Field("\"no\"")) }));
}

#[test]
fn the_id_of_a_refused_message_is_found_if_there_is_one() {
    let id = |line: &'static str| id_of_refused(line.as_bytes()).map(Field::raw);
    assert_eq!(id(r#"{"jsonrpc":"2.0","method":"a","method":"b","id":5}"#), Some("5"));
    assert_eq!(id(r#"{"id":1,"id":2}"#), None);
    assert_eq!(id(r#"{"id":null}"#), None);
    assert_eq!(id("nonsense"), None);
}

proptest! {
    #[test]
    fn any_line_is_read_or_refused_without_a_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&line);
        let _ = id_of_refused(&line);
    }

    #[test]
    fn every_well_formed_call_is_read_as_a_general_reader_reads_it(
        name in "\\PC{0,30}", id in any::<i64>(), text in "\\PC{0,60}", pretty in any::<bool>(),
    ) {
        let value = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call",
            "params": { "name": name, "arguments": { "text": text, "name": "inner" } } });
        let line = if pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() };
        let found = request(&line);
        prop_assert_eq!(&found.key, &IdKey::Integer(id));
        let called = found.called_name();
        prop_assert_eq!(called.as_deref(), Some(name.as_str()));
    }
}

#[test]
fn no_refusal_quotes_a_value() {
    let values =
        [r#""LEAK-me""#, r#"["LEAK-me"]"#, r#"{"code":"LEAK-me","a":"LEAK-me"}"#, "314159265", "true", "3.14159265"];
    for key in ["jsonrpc", "id", "method", "params", "result", "error", "other"] {
        for value in values {
            for rest in
                [r#""jsonrpc":"2.0","id":1"#, r#""jsonrpc":"2.0","id":1,"method":"x""#, r#""result":1,"jsonrpc":"2.0""#]
            {
                let line = format!("{{{rest},\"{key}\":{value}}}");
                let Err(refusal) = parse(line.as_bytes()) else { continue };
                let text = refusal.to_string();
                assert!(!text.contains("LEAK") && !text.contains("14159") && !text.contains("true"), "{line}: {text}");
            }
        }
    }
    for line in [
        r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":"LEAK"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":"LEAK","message":1,"message":"LEAK"},"id":2}"#,
        r#"{"jsonrpc":"2.0","id":1,"error":"LEAK"#,
        r#""LEAK""#,
        r#"LEAK"#,
    ] {
        let text = refused(line).to_string();
        assert!(!text.contains("LEAK"), "{line}: {text}");
    }
    let text = refused(r#"{"jsonrpc":"2.0","id":1,"error":"LEAK"}"#).to_string();
    assert_eq!(text, "not a JSON-RPC 2.0 message: a value of the wrong kind at line 1 column 38");
}

#[test]
fn a_null_member_of_an_answer_is_as_if_it_were_absent() {
    let body = |line: &'static str| match parse(line.as_bytes()) {
        Ok(Message::Answer(answer)) => answer.body,
        other => panic!("{line}: {other:?}"),
    };
    assert!(matches!(body(r#"{"jsonrpc":"2.0","id":1,"result":{},"error":null}"#), AnswerBody::Result { .. }));
    assert!(matches!(body(r#"{"jsonrpc":"2.0","id":1,"result":null,"error":null}"#), AnswerBody::Result { .. }));
    assert!(matches!(
        body(r#"{"jsonrpc":"2.0","id":1,"result":null,"error":{"code":5}}"#),
        AnswerBody::Error { code: Some(5), .. }
    ));
    refused(r#"{"jsonrpc":"2.0","id":1,"error":null,"result":1,"error":{"code":5}}"#);
    refused(r#"{"jsonrpc":"2.0","id":1,"error":null}"#);
    refused(r#"{"jsonrpc":"2.0","id":1,"result":1,"error":{"code":5}}"#);
}

#[test]
fn the_request_that_an_unreadable_line_answers_is_found() {
    let found = |line: &str| answered_by_refused(line.as_bytes());
    assert_eq!(found(r#"{"jsonrpc":"2.0","id":1,"error":"text"}"#), Some(IdKey::Integer(1)));
    assert_eq!(found(r#"{"id":"a","result":1}"#), Some(IdKey::Text("a".into())));
    assert_eq!(found(r#"{"jsonrpc":"2.0","id":1,"method":"x","params":"text"}"#), None);
    assert_eq!(found(r#"{"id":1,"id":2,"error":"text"}"#), None);
    assert_eq!(found("rubbish"), None);
}
