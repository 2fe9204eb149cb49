//! What a server wants to know from a client before it answers: `input_required` results, and the requests of the legacy era.
//!
//! Towards a modern client (`Parked`): a call to a legacy server that has asked something is answered `input_required`, and waits here under
//! the state that the client will bring again. Towards a legacy client (`Round`): the questions of a modern server are requests to the
//! client, and its answers are gathered for the next try.

use bytes::Bytes;
use serde_json::json;

use crate::mcp::members::Members;
use crate::mcp::message::IdKey;
use crate::mcp::protocol::{PROMPTS_GET, RESOURCES_READ, TOOLS_CALL};

/// A request of a legacy server that a modern client is to answer.
#[derive(Debug)]
pub struct Question {
    /// Its key in `inputRequests`.
    pub name: String,
    /// As the server wrote it.
    pub id: Box<str>,
    pub key: IdKey,
    method: String,
    params: Option<String>,
}

impl Question {
    pub fn of(name: String, key: IdKey, id: &str, method: &str, line: &[u8]) -> Option<Self> {
        let message = Members::read(std::str::from_utf8(line).ok()?)?;
        let params = message.get("params").map(str::to_owned);
        Some(Self { name, id: id.into(), key, method: method.to_owned(), params })
    }
}

/// The result that asks; `state` is a text.
pub fn input_required(questions: &[Question], state: Option<&str>) -> String {
    let mut requests: Vec<String> = Vec::new();
    for question in questions {
        let params = question.params.as_ref().map(|params| format!(",\"params\":{params}")).unwrap_or_default();
        requests.push(format!("{}:{{\"method\":{}{params}}}", json!(question.name), json!(question.method)));
    }
    let state = state.map(|state| format!(",\"requestState\":{}", json!(state))).unwrap_or_default();
    format!(r#"{{"resultType":"input_required","inputRequests":{{{}}}{state}}}"#, requests.join(","))
}

/// The addresses that a legacy server wants a user to visit, which it says in an error; as questions of the modern era.
pub fn visits(error: &str) -> Option<String> {
    let error = Members::read(error)?;
    let data = error.object("data")?;
    let wanted: Vec<&serde_json::value::RawValue> = serde_json::from_str(data.get("elicitations")?).ok()?;
    let asked = wanted.iter().enumerate().map(|(index, params)| {
        format!(r#""visit-{}":{{"method":"elicitation/create","params":{}}}"#, index + 1, params.get())
    });
    let asked: Vec<String> = asked.collect();
    (!asked.is_empty()).then(|| format!(r#"{{"resultType":"input_required","inputRequests":{{{}}}}}"#, asked.join(",")))
}

/// A try of a legacy client's request at a modern server, which waits for what the client is asked.
#[derive(Debug)]
pub struct Round {
    /// The client's request, as it came.
    pub line: Bytes,
    pub tries: usize,
    /// `requestState`, as JSON.
    pub state: Option<String>,
    pub asked: Vec<Asked>,
}

#[derive(Debug)]
pub struct Asked {
    /// Its key in `inputRequests`.
    pub name: String,
    /// The id of our request to the client.
    pub key: IdKey,
    /// What the client has answered, as JSON.
    pub response: Option<String>,
}

impl Round {
    pub fn is_answered(&self) -> bool {
        self.asked.iter().all(|asked| asked.response.is_some())
    }

    /// `inputResponses`, as JSON; `None` if nothing was asked.
    pub fn responses(&self) -> Option<String> {
        let given =
            self.asked.iter().filter_map(|asked| Some(format!("{}:{}", json!(asked.name), asked.response.as_ref()?)));
        let given: Vec<String> = given.collect();
        (!given.is_empty()).then(|| format!("{{{}}}", given.join(",")))
    }
}

/// Whether a server may want to know something before it answers a request of this method.
pub fn may_ask(method: &str) -> bool {
    matches!(method, TOOLS_CALL | PROMPTS_GET | RESOURCES_READ)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_keep_their_parameters_as_they_were() {
        let line = br#"{"jsonrpc":"2.0","id":1,"method":"elicitation/create","params":{"message":"a\u0062","n":1.0}}"#;
        let one = Question::of("q1".into(), IdKey::Integer(1), "1", "elicitation/create", line).unwrap();
        let two = br#"{"jsonrpc":"2.0","id":2,"method":"roots/list"}"#;
        let two = Question::of("q2".into(), IdKey::Integer(2), "2", "roots/list", two).unwrap();
        assert_eq!(
            input_required(&[one, two], Some("s\"")),
            r#"{"resultType":"input_required","inputRequests":{"q1":{"method":"elicitation/create","params":{"message":"a\u0062","n":1.0}},"q2":{"method":"roots/list"}},"requestState":"s\""}"#
        );
    }

    #[test]
    fn addresses_to_visit_become_questions() {
        let error =
            r#"{"code":-32042,"message":"m","data":{"elicitations":[{"mode":"url","url":"https://x","message":"m"}]}}"#;
        assert_eq!(
            visits(error).unwrap(),
            r#"{"resultType":"input_required","inputRequests":{"visit-1":{"method":"elicitation/create","params":{"mode":"url","url":"https://x","message":"m"}}}}"#
        );
        assert_eq!(visits(r#"{"code":-32042,"message":"m"}"#), None);
    }
}
