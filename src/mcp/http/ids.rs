//! Ids of modern requests on a session that several share: unique there, and put back as the client wrote them.
//!
//! Only the id, the progress token and the mark of a subscription change; every other byte stays as it came. The id on the session begins with
//! the client's own where that is short, so that records show it.

use crate::mcp::message::{Answer, Field, IdKey, Notification, Request};
use crate::mcp::splice;

/// What a request's messages carry on the way back to the client.
#[derive(Debug, Clone)]
pub struct Original {
    /// As it was written.
    id: Box<str>,
    token: Option<Box<str>>,
    /// What stands in their place, as JSON.
    own: Box<str>,
}

impl Original {
    /// Gives the request an id of the session. `None`: the parts are not of this text.
    pub fn replace(text: &str, request: &Request<'_>, mark: u64, count: u64) -> Option<(Self, String, IdKey)> {
        let id = request.id.raw();
        let plain = id.trim_matches('"');
        let shown =
            plain.len() <= LONGEST_SHOWN && plain.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let key = format!("{}.{mark:x}-{count:x}", if shown { plain } else { "" });
        let own = format!("\"{key}\"");
        let token = request.params.meta.as_ref().and_then(|meta| meta.progress_token);
        let mut parts = vec![(request.id, own.as_str())];
        parts.extend(token.map(|token| (token, own.as_str())));
        let line = splice::replace_each(text, &parts)?;
        let token = token.map(|token| token.raw().into());
        Some((Self { id: id.into(), token, own: own.into() }, line, IdKey::Text(key.into())))
    }

    /// The answer as the client has to see it. `everywhere`: the result may name the request as well.
    pub fn answer(&self, text: &str, answer: &Answer<'_>, everywhere: bool) -> Option<String> {
        if everywhere { Some(text.replace(&*self.own, &self.id)) } else { splice::replace(text, answer.id, &self.id) }
    }

    /// Progress, or what a subscription tells.
    pub fn notification(&self, text: &str, notification: &Notification<'_>) -> Option<String> {
        let subscription = notification.params.meta.as_ref().and_then(|meta| meta.subscription);
        let mut parts: Vec<(Field<'_>, &str)> = Vec::new();
        parts.extend(subscription.map(|mark| (mark, &*self.id)));
        if let (Some(field), Some(token)) = (notification.params.progress_token, self.token.as_deref()) {
            parts.push((field, token));
        }
        splice::replace_each(text, &parts)
    }
}

const LONGEST_SHOWN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::message::{Message, parse};

    #[test]
    fn a_request_and_what_comes_of_it_differ_in_nothing_but_the_ids() {
        let line = r#"{ "id" : "a1","jsonrpc":"2.0","method":"tools/call","params":{"_meta":{"progressToken":7,"x":1.0},"name":"t"}}"#;
        let Ok(Message::Request(request)) = parse(line.as_bytes()) else { panic!() };
        let (original, sent, key) = Original::replace(line, &request, 255, 3).unwrap();
        assert_eq!(key, IdKey::Text("a1.ff-3".into()));
        assert_eq!(sent, line.replace("\"a1\"", "\"a1.ff-3\"").replace(":7,", ":\"a1.ff-3\","));

        let came = r#"{"jsonrpc":"2.0", "id":"a1.ff-3","result":{"n":1.0,"_meta":{"s":"a1.ff-3"}}}"#;
        let Ok(Message::Answer(answer)) = parse(came.as_bytes()) else { panic!() };
        let back = original.answer(came, &answer, false).unwrap();
        assert_eq!(back, r#"{"jsonrpc":"2.0", "id":"a1","result":{"n":1.0,"_meta":{"s":"a1.ff-3"}}}"#);
        assert_eq!(original.answer(came, &answer, true).unwrap(), came.replace("a1.ff-3", "a1"));

        let came = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"a1.ff-3","progress":1.50}}"#;
        let Ok(Message::Notification(notification)) = parse(came.as_bytes()) else { panic!() };
        assert_eq!(original.notification(came, &notification).unwrap(), came.replace("\"a1.ff-3\"", "7"));

        let came = r#"{"jsonrpc":"2.0","method":"notifications/x","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"a1.ff-3"}}}"#;
        let Ok(Message::Notification(notification)) = parse(came.as_bytes()) else { panic!() };
        assert_eq!(original.notification(came, &notification).unwrap(), came.replace("a1.ff-3", "a1"));
    }

    #[test]
    fn a_long_or_odd_id_is_put_back_as_it_was_and_not_shown() {
        for id in ["\"a b\"", "12345678901234567890123456789012345", "1.5", "\"\\u0061\""] {
            let line = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#);
            let Ok(Message::Request(request)) = parse(line.as_bytes()) else { panic!() };
            let (original, sent, key) = Original::replace(&line, &request, 1, 1).unwrap();
            assert_eq!(key, IdKey::Text(".1-1".into()), "{id}");
            let came = sent.replace(r#""method":"ping""#, r#""result":{}"#);
            let Ok(Message::Answer(answer)) = parse(came.as_bytes()) else { panic!("{came}") };
            assert!(original.answer(&came, &answer, false).unwrap().contains(&format!("\"id\":{id},")), "{id}");
        }
    }
}
