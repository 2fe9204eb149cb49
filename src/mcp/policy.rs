//! Decides whether a request may go to its upstream. Pure: it sees the envelope and the numbers, and does nothing itself.
//!
//! For now every method and tool is allowed, and only bounds are checked; `allow` and `deny` of a service's tools belong here.

use super::message::Request;
use super::protocol::code;
use super::settings::Limits;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow,
    Deny(Denial),
}

/// Why a request is refused, before anything was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    pub code: i32,
    /// For whoever sent the request.
    pub message: String,
    /// The value of `error.type`.
    pub kind: &'static str,
}

/// `in_flight`: the requests of this client that are not answered yet.
pub fn decide(request: &Request<'_>, in_flight: usize, limits: &Limits) -> Decision {
    if in_flight >= limits.max_in_flight {
        return deny(
            code::TOO_MANY,
            "too_many_in_flight",
            format!("{in_flight} requests of this connection are not answered yet, which is the limit"),
        );
    }
    let longest = [request.params.name, request.params.uri].into_iter().flatten().map(|field| field.raw().len()).max();
    if longest.is_some_and(|length| length > MAX_NAME_BYTES) {
        return deny(
            code::INVALID_PARAMS,
            "name_too_long",
            format!("\"name\" or \"uri\" is longer than {MAX_NAME_BYTES} bytes"),
        );
    }
    Decision::Allow
}

fn deny(code: i32, kind: &'static str, message: String) -> Decision {
    Decision::Deny(Denial { code, message, kind })
}

const MAX_NAME_BYTES: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::super::message::{Message, parse};
    use super::*;

    #[test]
    fn bounds_are_kept_and_everything_else_is_allowed() {
        let limits = Limits { max_in_flight: 2, ..Limits::small() };
        let decide_on = |line: &str, in_flight| match parse(line.as_bytes()).unwrap() {
            Message::Request(request) => decide(&request, in_flight, &limits),
            other => panic!("{other:?}"),
        };
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"vendor/x","params":{"name":"n"}}"#;
        assert_eq!(decide_on(call, 1), Decision::Allow);
        assert!(matches!(decide_on(call, 2), Decision::Deny(Denial { kind: "too_many_in_flight", .. })));
        let long = call.replace("\"n\"", &format!("\"{}\"", "n".repeat(MAX_NAME_BYTES)));
        assert!(matches!(decide_on(&long, 0), Decision::Deny(Denial { kind: "name_too_long", .. })));
    }
}
