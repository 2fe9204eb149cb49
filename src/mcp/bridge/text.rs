//! Messages written anew for the other era, with every member that it shares as it was.

use serde_json::json;

use crate::mcp::members::Members;
use crate::mcp::message::{Answer, Field};
use crate::mcp::protocol::{META_CAPABILITIES, META_CLIENT, META_LEVEL, META_SUBSCRIPTION, META_VERSION};
use crate::mcp::splice;

/// A request that can be changed in its parameters and their `_meta`.
pub struct Letter<'a> {
    message: Members<'a>,
    pub params: Members<'a>,
    pub meta: Members<'a>,
}

impl<'a> Letter<'a> {
    /// `None`: the text is no object.
    pub fn read(text: &'a str) -> Option<Self> {
        let message = Members::read(text)?;
        let params = owned(message.object("params"));
        let meta = owned(params.object("_meta"));
        Some(Self { message, params, meta })
    }

    pub fn write(mut self, id: &str) -> Vec<u8> {
        self.message.set("id", json!(id).to_string());
        if self.meta.is_empty() {
            self.params.remove("_meta");
        } else {
            self.params.set("_meta", self.meta.write());
        }
        if !self.params.is_empty() || self.message.get("params").is_some() {
            self.message.set("params", self.params.write());
        }
        self.message.write().into_bytes()
    }
}

/// Members that do not borrow from what they were read from.
fn owned<'a>(members: Option<Members<'_>>) -> Members<'a> {
    members.map(Members::into_owned).unwrap_or_default()
}

/// Takes away what only the modern era has in `_meta`.
pub fn without_modern(meta: &mut Members<'_>) {
    meta.retain(|key| ![META_VERSION, META_CAPABILITIES, META_CLIENT, META_LEVEL, META_SUBSCRIPTION].contains(&key));
}

/// The answer under another id, which is JSON.
pub fn under(answer: &Answer<'_>, line: &[u8], id: &str) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(line).ok()?;
    splice::replace(text, answer.id, id).map(String::into_bytes)
}

/// As `under`, with another result.
pub fn with_result(answer: &Answer<'_>, line: &[u8], id: &str, old: Field<'_>, new: &str) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(line).ok()?;
    splice::replace_each(text, &[(answer.id, id), (old, new)]).map(String::into_bytes)
}

/// A notification without parameters of its own, on a subscription; `subscription` is JSON.
pub fn on_subscription(line: &[u8], subscription: &str) -> Option<Vec<u8>> {
    let mut message = Members::read(std::str::from_utf8(line).ok()?)?;
    let mut params = owned(message.object("params"));
    let mut meta = owned(params.object("_meta"));
    meta.set(META_SUBSCRIPTION, subscription.to_owned());
    params.set("_meta", meta.write());
    message.set("params", params.write());
    Some(message.write().into_bytes())
}

/// A notification as the legacy era has it, without its mark of a subscription.
pub fn off_subscription(line: &[u8]) -> Option<Vec<u8>> {
    let mut message = Members::read(std::str::from_utf8(line).ok()?)?;
    let mut params = owned(message.object("params"));
    let mut meta = owned(params.object("_meta"));
    without_modern(&mut meta);
    if meta.is_empty() {
        params.remove("_meta");
    } else {
        params.set("_meta", meta.write());
    }
    if params.is_empty() {
        message.remove("params");
    } else {
        message.set("params", params.write());
    }
    Some(message.write().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_keeps_what_both_eras_share() {
        let text = r#"{"method":"tools/call","x":1.0,"params":{"name":"t","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","traceparent":"00"},"arguments":{ "n":1e2 }},"id":7,"jsonrpc":"2.0"}"#;
        let mut letter = Letter::read(text).unwrap();
        without_modern(&mut letter.meta);
        assert_eq!(
            String::from_utf8(letter.write("own")).unwrap(),
            r#"{"method":"tools/call","x":1.0,"params":{"name":"t","_meta":{"traceparent":"00"},"arguments":{ "n":1e2 }},"id":"own","jsonrpc":"2.0"}"#
        );
        let letter = Letter::read(r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#).unwrap();
        assert_eq!(String::from_utf8(letter.write("o")).unwrap(), r#"{"jsonrpc":"2.0","id":"o","method":"x"}"#);
    }

    #[test]
    fn a_notification_gets_its_mark_and_loses_it() {
        let plain = br#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
        let marked = on_subscription(plain, "7").unwrap();
        assert_eq!(
            String::from_utf8(marked.clone()).unwrap(),
            r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":7}}}"#
        );
        assert_eq!(off_subscription(&marked).unwrap(), plain);
    }
}
