//! A call that a modern HTTP server refuses because arguments are missing in its headers (-32020): nobody has listed the server's tools yet, or
//! the tool is another one since. The list is fetched, once for all calls that meet this at the same time, and the call is made again, once.
//!
//! A refused call has not been carried out, so any may be made again. What is fetched is told to the service's catalogue and to nobody else;
//! bounded in pages, in bytes by the exchange's limit, and in time by the call's own.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::header::HeaderMap;
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::exchange::{Exchange, Trouble, is_stream, one_line};
use super::headers;
use super::outgoing::{Hints, parameters};
use super::sse::Parser;
use crate::mcp::message::{Answer, AnswerBody, IdKey, Message, parse};
use crate::mcp::protocol::{TOOLS_CALL, TOOLS_LIST, code};
use crate::mcp::service::Service;

/// What there is to know of a call for its second try.
pub struct ToolCall {
    service: Arc<Service>,
    tool: Box<str>,
    /// How often the list had been fetched when the call was made.
    fetched: u64,
}

impl ToolCall {
    /// `None` for what is no call of the modern era.
    pub fn of(service: &Arc<Service>, hints: Option<&Hints>) -> Option<Self> {
        let hints = hints.filter(|hints| hints.modern.is_some() && hints.method == TOOLS_CALL)?;
        let tool = hints.name.as_deref()?.into();
        Some(Self { service: service.clone(), tool, fetched: service.catalogue.fetches() })
    }
}

impl Exchange {
    /// The answer to the call, after a second try if the first one lacked headers that the tool wants.
    pub(super) async fn with_listed_headers(&self, response: Response, call: &Bytes) -> Result<Response, Trouble> {
        let Some(tool_call) = self.call.as_ref().filter(|_| response.status() == StatusCode::BAD_REQUEST) else {
            return Ok(response);
        };
        let (status, original) = (response.status(), response.headers().clone());
        let body = self.body(response).await?;
        if is_mismatch(&body)
            && let Some(headers) = self.listed_headers(tool_call, call).await
        {
            return self.send(self.posting(headers, call.clone())).await;
        }
        let mut again = http::Response::new(body);
        *again.status_mut() = status;
        *again.headers_mut() = original;
        Ok(again.into())
    }

    /// The headers of the call as the server's list wants them, if they are others than the call had.
    async fn listed_headers(&self, call: &ToolCall, body: &Bytes) -> Option<HeaderMap> {
        let service = &call.service;
        if let Err(trouble) = service.catalogue.fetch_once(call.fetched, self.fetch_tools(call, body)).await {
            let reason = trouble.message;
            tracing::warn!(
                service = &*service.name,
                reason,
                "the list of tools that a call wants could not be fetched"
            );
            return None;
        }
        let tool = service.catalogue.tool(&call.tool)?;
        let mut wanted = self.headers.clone();
        headers::add_parameters(&mut wanted, &parameters(&tool.headers, body));
        (wanted != self.headers).then_some(wanted)
    }

    /// Asks for the list of tools, as the call's client would, page by page.
    async fn fetch_tools(&self, call: &ToolCall, body: &Bytes) -> Result<(), Trouble> {
        let meta = serde_json::from_slice::<Request<'_>>(body).map(|request| request.params.meta).unwrap_or_default();
        let meta: BTreeMap<&str, &RawValue> = meta.into_iter().filter(|(key, _)| *key != "progressToken").collect();
        let mut headers = self.headers.clone();
        headers::set_method(&mut headers, TOOLS_LIST);
        let mut cursor: Option<String> = None;
        for page in 1..=MAX_PAGES {
            let id = format!("mcpeg/tools/{page}");
            let mut params = json!({ "_meta": meta });
            if let Some(cursor) = &cursor {
                params["cursor"] = json!(cursor);
            }
            let request = json!({ "jsonrpc": "2.0", "id": id, "method": TOOLS_LIST, "params": params });
            let response = self.send(self.posting(headers.clone(), request.to_string().into())).await?;
            let answer = self.single(response, &IdKey::Text(id.into())).await?;
            let Ok(Message::Answer(Answer { body: AnswerBody::Result { raw, .. }, .. })) = parse(&answer) else {
                return Err(Trouble::new("bad_answer", "the upstream did not answer with a list"));
            };
            call.service.catalogue.learn(raw.raw());
            cursor = serde_json::from_str::<Page>(raw.raw()).ok().and_then(|page| page.next_cursor);
            if cursor.is_none() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The one message that answers `key`, whether it comes as a document or as an event.
    async fn single(&self, response: Response, key: &IdKey) -> Result<Bytes, Trouble> {
        if !is_stream(&response) {
            return self.body(response).await;
        }
        let mut parser = Parser::new(self.limit);
        let mut chunks = response.bytes_stream();
        while let Some(Ok(chunk)) = chunks.next().await {
            parser.push(&chunk).map_err(|error| Trouble::new("message_too_large", error))?;
            while let Some(event) = parser.next() {
                let line = one_line(event.data);
                if matches!(parse(&line), Ok(Message::Answer(answer)) if answer.key.as_ref() == Some(key)) {
                    return Ok(line);
                }
            }
        }
        Err(Trouble::new("stream_ended", "the upstream ended its stream before the list"))
    }
}

fn is_mismatch(body: &[u8]) -> bool {
    let expected = Some(i64::from(code::HEADER_MISMATCH));
    matches!(parse(body), Ok(Message::Answer(Answer { body: AnswerBody::Error { code, .. }, .. })) if code == expected)
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    params: Params<'a>,
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow, default, rename = "_meta")]
    meta: BTreeMap<&'a str, &'a RawValue>,
}

#[derive(Deserialize)]
struct Page {
    #[serde(rename = "nextCursor")]
    next_cursor: Option<String>,
}

const MAX_PAGES: usize = 256;
