//! Resources of a service that mcpeg serves itself: lists, templates, contents, and completion of what stands in a template's place.
//!
//! What the addresses mean is a kind's business (`Resources`). Names are those of the specification.

use std::sync::Arc;

use serde_json::{Value, json};

use super::server::{CallFuture, Called, Trouble};

/// A kind of service that has resources.
pub trait Resources: Send + Sync {
    /// As they stand in `resources/templates/list`.
    fn templates(&self) -> Vec<Value>;

    /// Those that come after `cursor`, and what to ask with for more.
    fn list(self: Arc<Self>, cursor: Option<String>) -> CallFuture<Page>;

    /// The content of one. `None`: there can be none at this address.
    fn read(self: Arc<Self>, address: &str) -> Option<CallFuture<Option<Content>>>;

    /// What the argument's value may be, if it begins so. `None`: there is no such template, or no such place in it.
    fn complete(self: Arc<Self>, template: &str, argument: &str, begun: &str) -> Option<CallFuture<Completion>>;
}

#[derive(Debug, Default, PartialEq)]
pub struct Page {
    /// As they stand in `resources/list`.
    pub resources: Vec<Value>,
    pub next: Option<String>,
}

#[derive(Debug, PartialEq)]
pub struct Content {
    pub mime_type: &'static str,
    pub text: String,
}

#[derive(Debug, Default, PartialEq)]
pub struct Completion {
    pub values: Vec<String>,
    pub has_more: bool,
}

/// A result, or the error's code, message and data.
pub type Answered = Called<Result<Value, (i32, String, Option<Value>)>>;

/// Answers a request about resources. `None`: it is none.
pub async fn answer(resources: Arc<dyn Resources>, method: &str, params: &Value, modern: bool) -> Option<Answered> {
    Some(match method {
        "resources/templates/list" => now(Ok(listed("resourceTemplates", resources.templates(), modern))),
        "resources/list" => {
            let cursor = params["cursor"].as_str().map(str::to_owned);
            done(resources.list(cursor).await, |page| {
                let mut result = listed("resources", page.resources, modern);
                if let Some(next) = page.next {
                    result["nextCursor"] = next.into();
                }
                Ok(result)
            })
        }
        "resources/read" => {
            let Some(address) = params["uri"].as_str() else { return Some(now(Err(invalid("`uri` is missing")))) };
            let none = || (not_found(modern), "there is no such resource".to_owned(), Some(json!({ "uri": address })));
            match resources.read(address) {
                None => now(Err(none())),
                Some(reading) => done(reading.await, |content| {
                    let Content { mime_type, text } = content.ok_or_else(none)?;
                    let mut result = json!({ "contents": [{ "uri": address, "mimeType": mime_type, "text": text }] });
                    cacheable(&mut result, modern);
                    Ok(result)
                }),
            }
        }
        "completion/complete" => {
            let (template, argument) = (params["ref"]["uri"].as_str(), &params["argument"]);
            let (Some(template), Some(name), Some(begun)) =
                (template, argument["name"].as_str(), argument["value"].as_str())
            else {
                return Some(now(Err(invalid("`ref` has to name a template, and `argument` its place"))));
            };
            match resources.complete(template, name, begun) {
                None => now(Err(invalid("there is no such template, or no such place in it"))),
                Some(completing) => done(completing.await, |Completion { values, has_more }| {
                    Ok(json!({ "completion": { "values": values, "hasMore": has_more } }))
                }),
            }
        }
        _ => return None,
    })
}

/// A list, with what the modern era says of how long it holds.
pub fn listed(name: &str, list: Vec<Value>, modern: bool) -> Value {
    let mut result = json!({ name: list });
    cacheable(&mut result, modern);
    result
}

fn cacheable(result: &mut Value, modern: bool) {
    if modern {
        result["ttlMs"] = 0.into();
        result["cacheScope"] = "private".into();
    }
}

fn now(outcome: Result<Value, (i32, String, Option<Value>)>) -> Answered {
    Called { outcome: Ok(outcome), versions: Arc::default() }
}

fn done<T>(called: Called<T>, result: impl FnOnce(T) -> Result<Value, (i32, String, Option<Value>)>) -> Answered {
    let Called { outcome, versions } = called;
    let outcome = match outcome {
        Ok(found) => Ok(result(found)),
        // A resource has no result that is an error.
        Err(Trouble::Tool(words)) => Ok(Err((INTERNAL_ERROR, words, None))),
        Err(trouble) => Err(trouble),
    };
    Called { outcome, versions }
}

fn invalid(words: &str) -> (i32, String, Option<Value>) {
    (INVALID_PARAMS, words.to_owned(), None)
}

fn not_found(modern: bool) -> i32 {
    if modern { INVALID_PARAMS } else { RESOURCE_NOT_FOUND }
}

const INVALID_PARAMS: i32 = -32602;
const INTERNAL_ERROR: i32 = -32603;
/// Of the legacy era.
const RESOURCE_NOT_FOUND: i32 = -32002;
